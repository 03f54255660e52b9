"""The commands ``data export`` and ``data import``: real steps to and from Minari, the exchange format.

Their signatures and docstrings are their ``--help``. What needs torch is imported by the command that needs it.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from dreamgym.terminal import print_json

Flag = tyro.conf.FlagCreatePairsOff


def export_data(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_ID")],
    out: Path | None = None,
    dataset: str | None = None,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Write the real steps that a run collected as a Minari dataset, frames without loss.

    An episode that has not ended is truncated at its last step and marked in infos/unfinished; after the last step of
    an episode, where a run keeps no frame, the one before stands once more. A step takes as many bytes as its frame
    has pixels.

    Args:
        run: a run folder, finished or not, or the id of a dream of which there is a run.
        out: the dataset's folder, which must not be there; by default Minari's own place for its id.
        dataset: the dataset's id; by default dreamgym/<game>-<preset>-seed<seed>-v0.
        json: print JSON.
    """
    from dreamgym.minari_data import export_dataset

    print("device: cpu (nothing is computed)", file=sys.stderr)
    done = export_dataset(run, out, dataset)
    if json:
        print_json(asdict(done) | {"folder": str(done.folder)})
        return
    print(f"{done.folder}: {done.dataset}, {done.episodes:,} episodes, {done.steps:,} steps")
    if done.unfinished:
        print(f"  {done.unfinished:,} without an end: truncated at their last step, infos/unfinished says which")
    if done.left_out:
        print(f"  left out: {done.left_out:,} steps of an episode whose beginning is gone")
    where = f'minari.MinariDataset("{done.folder / "data"}")' if out else f'minari.load_dataset("{done.dataset}")'
    print(f"  read by: {where}")


def import_data(
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    out: Path,
    game: str | None = None,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Turn a Minari dataset of images and discrete actions into experience that train --data begins from.

    Nothing is downloaded (minari download does that), and no environment that the dataset names is made.

    Args:
        dataset: a dataset's folder, or the id of one in Minari's own folder.
        out: the folder to write, which must not be there.
        game: what train --game calls the game; by default what the dataset says.
        json: print JSON.
    """
    from dreamgym.minari_data import import_dataset

    print("device: cpu (nothing is computed)", file=sys.stderr)
    facts = import_dataset(dataset, out, game)
    if json:
        print_json({"folder": str(out), **asdict(facts)})
        return
    seen = "frames as dreamgym made them" if facts.screen else "grey screens, which a run shrinks as its game's"
    print(
        f"{out}: {facts.dataset}, {facts.game}, {facts.episodes:,} episodes, {facts.steps:,} steps, "
        f"{facts.actions} actions, {seen}"
    )
    print(f"  begin from it: dreamgym train --game {facts.game} --data {out} --collect.first-steps {facts.steps}")
