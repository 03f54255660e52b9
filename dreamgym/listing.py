"""The command ``list``: which dreams are here, what they scored, and which of them an id opens.

Its signature and docstring are its ``--help``. What needs torch is imported when it is needed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dreamgym.errors import DreamgymError, InvalidInputError
from dreamgym.terminal import print_json

_TITLES = ("id", "game", "preset", "seed", "real steps", "real score", "MB", "from", "state", "where")
_RIGHT = ("seed", "real steps", "MB")


@dataclass(frozen=True)
class Listed:
    """A dream as ``dreamgym list`` knows it. What its file does not say is None.

    Attributes:
        file: where it is.
        source: "run" for one in a run folder, "package" for one that comes with the package, else "file".
        bytes: size of the file.
        id: the id that opens it where nothing else is said, such as ``Dream-Pong-v0``; None for a dream that another
            goes before, or that ids do not look for.
        game: its name.
        preset: of the run.
        seed: of the run.
        interactions: real steps that it was fitted to.
        score: the last real score: ``mean``, ``low`` and ``high`` of its 95 % interval, ``episodes``, and
            ``interactions``, the real steps by then.
        finished: whether the run had all its rounds.
        error: why it cannot be opened; None where it can.
    """

    file: str
    source: str
    bytes: int
    id: str | None = None
    game: str | None = None
    preset: str | None = None
    seed: int | None = None
    interactions: int | None = None
    score: Mapping[str, Any] | None = None
    finished: bool | None = None
    error: str | None = None


def list_dreams(
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the dreams that are here: of runs, in files of their own, and those that come with the package.

    Every file is read as if it were to be opened, so that a damaged one is named with what is wrong with it. Ids open
    finished runs below $DREAMGYM_HOME (./runs by default), the newest of a game, else the dream that comes with the
    package; everything else is opened by its path.

    Args:
        folder: the folder below which to look; by default where ids look, and in the package.
        json: print JSON: folder, and dreams with all that is known of each.
    """
    from dreamgym.checkpoint import SHIPPED, dream_files, dreamgym_home

    if folder is not None and not folder.is_dir():
        raise InvalidInputError(f"DIR: expected a folder, got {folder}.")
    place = dreamgym_home() if folder is None else folder
    files = [*dream_files(place), *(dream_files(SHIPPED) if folder is None else ())]
    listed = [look_at(file) for file in files]
    if json:
        print_json({"folder": str(place), "dreams": [asdict(one) for one in listed]})
    elif listed:
        print(_table(listed))
    else:
        print(f"No dreams below {place}. Train one with: dreamgym train --game Pong --preset quick")


def look_at(file: Path) -> Listed:
    """What there is to know of a dream's file, or why it cannot be opened.

    Args:
        file: a safetensors file, of a run or not.
    """
    from dreamgym.checkpoint import DREAM_FILE, SHIPPED, header_says, load_dream
    from dreamgym.run_facts import facts_of
    from dreamgym.run_folder import run_of

    source = "package" if file.parent == SHIPPED else "run" if file.name == DREAM_FILE else "file"
    size = 0
    try:
        size = file.stat().st_size
        dream = load_dream(file)
        facts = facts_of(file, dream)
    except (DreamgymError, OSError) as error:
        said = header_says(file)
        game = None if said is None else said[0]
        return Listed(str(file), source, size, game and _id_of(file, game), game, error=str(error))
    about, last = facts.about, facts.scored[-1] if facts.scored else None
    rounds = facts.rounds
    return Listed(
        file=str(file),
        source=source,
        bytes=size,
        id=_id_of(file, facts.game),
        game=facts.game,
        preset=about.get("preset"),
        seed=about.get("seed"),
        interactions=about.get("interactions"),
        score=None
        if last is None
        else {name: getattr(last, name) for name in ("mean", "low", "high", "episodes", "interactions")},
        finished=about.get("finished") if run_of(file) is None or rounds is None else rounds[0] >= rounds[1],
    )


def _id_of(file: Path, game: str) -> str | None:
    """The id that opens a file, if one does."""
    from dreamgym.checkpoint import resolve_checkpoint
    from dreamgym.real import game_names
    from dreamgym.registration import dream_id

    if game not in game_names():
        return None
    name = dream_id(game)
    try:
        return name if resolve_checkpoint(name).samefile(file) else None
    except (DreamgymError, OSError):
        return None


def _table(listed: list[Listed]) -> str:
    """A line for every dream, under titles; a damaged one's says why below it."""
    rows = [_TITLES, *map(_row, listed)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    lines: list[str] = []
    for row in rows:
        cells = (
            text.rjust(width) if title in _RIGHT else text.ljust(width)
            for text, title, width in zip(row, _TITLES, widths, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    broken = [f"  {one.error}" for one in listed if one.error is not None]
    return "\n".join([*lines, *(["", "These cannot be opened:", *broken] if broken else [])])


def _row(one: Listed) -> tuple[str, ...]:
    score = one.score
    shown = "-" if score is None else f"{score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})"
    state = "damaged" if one.error is not None else "finished" if one.finished else "not finished"
    return (
        one.id or "-",
        one.game or "-",
        one.preset or "-",
        "-" if one.seed is None else str(one.seed),
        "-" if one.interactions is None else f"{one.interactions:,}",
        shown,
        f"{one.bytes / 1e6:.2f}",
        one.source,
        state,
        one.file,
    )
