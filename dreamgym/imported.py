"""Experience that a run did not collect itself: a folder that ``dreamgym data import`` writes and a run begins from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamgym.checkpoint import config_from_dict, write_text
from dreamgym.config import RunConfig
from dreamgym.errors import CheckpointError, ConfigError, ReplayError
from dreamgym.json_files import parse_json, read_text, sealed, unsealed
from dreamgym.real import as_frame
from dreamgym.replay import Replay
from dreamgym.screens import Screen
from dreamgym.shards import INDEX_NAME

DATA_FILE = "data.json"
"""What a folder of imported experience says about itself; its records are in ``replay`` beside it."""

_FORMAT = 1
_CHUNK = 1024


@dataclass(frozen=True)
class DataFacts:
    """What imported experience is and where it comes from.

    Attributes:
        game: as runs name it.
        actions: size of its action set, counted from 0.
        steps: records.
        episodes: of them.
        screen: how its frames were made of the game's screen, as :attr:`VQVAEConfig.screen` says it; None where they
            are the screens themselves in grey, which a run then shrinks as it does its game's.
        dataset: where it was imported from.
        minari: version of Minari that wrote that.
        environment: id of the environment in it, if it names one.
        dreamgym: version that imported it.
        replay_sha256: of the replay's index, which holds the sums of all records.
        format: of this folder.
    """

    game: str
    actions: int
    steps: int
    episodes: int
    screen: dict[str, Any] | None
    dataset: str
    minari: str
    environment: str | None
    dreamgym: str
    replay_sha256: str
    format: int = _FORMAT


def replay_folder(folder: Path) -> Path:
    """Where a folder of imported experience keeps its records."""
    return folder / "replay"


def replay_sum(folder: Path) -> str:
    """SHA-256 of the index of a folder's records."""
    return hashlib.sha256((replay_folder(folder) / INDEX_NAME).read_bytes()).hexdigest()


def write_facts(folder: Path, facts: DataFacts) -> None:
    """Write what a folder is; its records must be there already."""
    text = json.dumps(sealed(asdict(facts)), indent=2) + "\n"
    write_text(folder / DATA_FILE, text)


def read_facts(folder: Path) -> DataFacts:
    """Read what :func:`write_facts` wrote.

    Raises:
        ReplayError: there is nothing of the kind, it is damaged, or its records are not those that were imported.
    """
    file = folder / DATA_FILE
    try:
        fields = unsealed(parse_json(read_text(file)))
        if fields.get("format") != _FORMAT:
            raise ValueError(f"format: expected {_FORMAT}, got {fields.get('format')!r}")
        facts: DataFacts = config_from_dict(DataFacts, fields)
        found = replay_sum(folder)
    except (OSError, ValueError, CheckpointError) as error:
        raise ReplayError(
            f"{folder}: expected a folder that 'dreamgym data import' wrote, got: {error}. Import the dataset anew."
        ) from error
    if facts.replay_sha256 != found:
        raise ReplayError(
            f"{replay_folder(folder)}: expected the records that were imported (sha256 {facts.replay_sha256}), got "
            f"others ({found}). Import the dataset anew."
        )
    return facts


class Experience:
    """Imported experience for one run's first round.

    Attributes:
        facts: what it is.
        replay: its records; frames as they were imported.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read a folder.

        Args:
            folder: that ``dreamgym data import`` wrote.

        Raises:
            ReplayError: it is none, or damaged.
        """
        self._folder = Path(folder)
        self.facts = read_facts(self._folder)
        self.replay = Replay.load(replay_folder(self._folder))
        if len(self.replay) != self.facts.steps:
            raise ReplayError(
                f"{self._folder}: expected {self.facts.steps:,} records, got {len(self.replay):,}. Import the dataset "
                "anew."
            )

    def check(self, config: RunConfig, actions: spaces.Discrete | spaces.Box) -> None:
        """See that a run can begin from it.

        Args:
            config: the run's.
            actions: of the run's game.

        Raises:
            ConfigError: it is of another game, was seen otherwise, has other actions, or more steps than the run's
                first round.
        """
        facts, wanted = self.facts, json.loads(json.dumps(config.codec.screen))
        if facts.game != config.game:
            raise ConfigError(
                f"data: expected experience of {config.game}, {self._folder} is of {facts.game}: --game {facts.game}."
            )
        if not isinstance(actions, spaces.Discrete) or facts.actions != actions.n:
            raise ConfigError(
                f"data: expected experience with the actions of {config.game}, {actions}; {self._folder} has "
                f"Discrete({facts.actions}). Import a dataset of the same action set."
            )
        if facts.screen is not None and (facts.screen, self.replay.frame_shape) != (wanted, config.codec.frame):
            raise ConfigError(
                f"data: expected frames that show the screen as the run does, {wanted}, {self._folder} has "
                f"{facts.screen} in frames of {self.replay.frame_shape}. Choose the "
                "--preset or the --codec options that the data was collected with."
            )
        if facts.steps > config.collect.first_steps:
            raise ConfigError(
                f"data: expected at most collect.first_steps={config.collect.first_steps:,} steps, as imported ones "
                f"count as the first round's; {self._folder} has {facts.steps:,}. Add --collect.first-steps "
                f"{facts.steps} or more; what is missing is played at random."
            )

    def append_to(self, replay: Replay, screen: Screen) -> None:
        """Copy all records to the end of a run's replay, frames made as small as the run's.

        Args:
            replay: the run's.
            screen: how it shows the game.
        """
        source = self.replay
        for begin in range(0, len(source), _CHUNK):
            records = np.arange(begin, min(begin + _CHUNK, len(source)))
            frames = source.frames_at(records)[:, 0]
            if self.facts.screen is None:
                frames = [as_frame(frame, screen["size"], screen["shrink"]) for frame in frames]
            columns = (
                frames,
                source.actions_at(records),
                source.rewards_at(records).tolist(),
                source.terminated_at(records).tolist(),
                source.truncated_at(records).tolist(),
                source.life_lost_at(records).tolist(),
                source.first_at(records).tolist(),
                source.phase_at(records).tolist(),
            )
            for record in zip(*columns, strict=True):
                replay.append(*record)
