"""Real experience as a Minari dataset, and a Minari dataset as experience that a run begins from.

Minari (Farama Foundation) is the exchange format of offline reinforcement learning. Frames are stored without loss:
what is exported and imported again is the same, record by record.
"""

import copy
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from dreamgym import __version__
from dreamgym.checkpoint import resolve_checkpoint
from dreamgym.config import RunConfig
from dreamgym.errors import ConfigError, InvalidInputError, ReplayError, UnknownGameError
from dreamgym.imported import DataFacts, replay_folder, replay_sum, write_facts
from dreamgym.json_files import read_text
from dreamgym.loop import game_actions
from dreamgym.provenance import file_name
from dreamgym.real import game_names, resolve_game
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder, run_of

_ABOUT = "dreamgym"
"""The entry of a dataset's metadata, and the prefix of its infos, that are ours."""

_LIFE_LOST, _UNFINISHED, _PHASE = "life_lost", "unfinished", "phase"
_FRAME_SKIP = 4
_MOST_PIXELS = 2**22
_DATASET_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+-v\d+")


@dataclass(frozen=True)
class Exported:
    """A dataset that was written.

    Attributes:
        folder: where it is; ``minari.MinariDataset(folder / "data")`` reads it.
        dataset: its id, by which ``minari.load_dataset`` finds it where it lies in Minari's own folder.
        episodes: how many.
        steps: real steps in them.
        unfinished: episodes without an end: in the dataset they are truncated at their last step.
        left_out: steps of an episode whose beginning the run no longer has.
    """

    folder: Path
    dataset: str
    episodes: int
    steps: int
    unfinished: int
    left_out: int


def export_dataset(run: str | Path, out: Path | None = None, dataset: str | None = None) -> Exported:
    """Write the real steps that a run collected as a Minari dataset.

    Observations are the run's frames, uint8 (height, width); rewards are raw. A run keeps the frame at which each
    action was taken, so not the one after an episode's last step: the last frame stands there once more. An episode
    without an end (the one that was being played, and those that a stopped run left) is truncated at its last step, as
    Minari itself does it, and ``infos["unfinished"]`` is True there; ``infos["life_lost"]`` tells lost lives. Both have
    an entry more than there are steps: entry ``t + 1`` belongs to step ``t``.

    Args:
        run: a run folder, finished or not, or an id of which there is a run.
        out: the dataset's folder, which must not be there; by default where Minari looks for its id.
        dataset: its id, ``(namespace/)name-v0``; by default ``dreamgym/<game>-<preset>-seed<seed>-v0``.

    Returns:
        What was written.

    Raises:
        ConfigError: no run, an id that Minari does not take, a folder that is there, or Minari is not installed.
        ReplayError: the run has no real steps, or their files are damaged.
    """
    _require_minari()
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage import get_dataset_path

    folder = _run_folder(run)
    config = folder.config()
    name = dataset or f"dreamgym/{_plain(config.game)}-{_plain(config.preset)}-seed{config.seed}-v0"
    if not _DATASET_ID.fullmatch(name):
        raise ConfigError(f"dataset: expected an id such as dreamgym/pong-v0, got {name!r}.")
    # Minari loses its way in a relative folder.
    place = (get_dataset_path(name) if out is None else out).resolve()
    if place.exists():
        raise ConfigError(f"{place}: expected a folder that is not there yet. Choose another --out or --dataset.")
    replay = Replay.load(folder.replay)
    spans = [span for span in replay.iter_episodes() if bool(replay.first_at(span[0]))]
    steps = sum(stop - start for start, stop in spans)
    if not steps:
        raise ReplayError(f"{folder.replay}: expected at least one episode with its beginning, got none.")
    height, width = replay.frame_shape
    part = place.with_name(f".{place.name}-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        storage = MinariStorage.new(
            part / "data",
            observation_space=spaces.Box(0, 255, (height, width), np.uint8),
            action_space=game_actions(config),
            env_spec=_environment(config),
            # JPEG, which is the default, would change the frames.
            jpeg_encoding=False,
        )
        storage.update_metadata(
            {
                "dataset_id": name,
                "minari_version": importlib.metadata.version("minari"),
                "algorithm_name": config.algo,
                "description": f"Real steps of {config.game} that dreamgym collected (grey, preset {config.preset}).",
                _ABOUT: _about(config, folder),
            }
        )
        storage.update_episodes(_episodes(replay, spans))
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    unfinished = sum(not bool(replay.ends_at(stop - 1)) for _, stop in spans)
    return Exported(place, name, len(spans), steps, unfinished, len(replay) - steps)


def _run_folder(run: str | Path) -> RunFolder:
    folder = RunFolder(run)
    if folder.config_file.is_file():
        return folder
    source = resolve_checkpoint(str(run))
    found = run_of(source)
    if found is None:
        raise ConfigError(f"data export: expected a run folder, or an id of which there is a run, got {source}.")
    return found


def _plain(name: str) -> str:
    """A name with nothing in it that ids of datasets do not allow."""
    return re.sub(r"[^-\w]", "-", file_name(name)).lower()


def _environment(config: RunConfig) -> EnvSpec | None:
    """What makes the game as Gymnasium registers it, one step of it for one of the run's; None if it has no spec."""
    atari = config.game in game_names()
    spec = copy.deepcopy(gym.spec(f"ALE/{config.game}-v5" if atari else config.game.rpartition(":")[2]))
    if atari:
        spec.kwargs |= {
            "frameskip": _FRAME_SKIP,
            "repeat_action_probability": config.game_options.sticky_actions,
        }
    # A spec that holds a function cannot be written down.
    return None if callable(spec.entry_point) else spec


def _about(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """What the frames are, for whoever reads them, and for :func:`import_dataset`."""
    options = config.game_options
    return {
        "version": __version__,
        "game": config.game,
        "preset": config.preset,
        "seed": config.seed,
        "screen": dict(config.codec.screen),
        "frame_skip": _FRAME_SKIP if config.game in game_names() else 1,
        "sticky_actions": options.sticky_actions,
        "noop_max": options.noop_max,
        "commit": folder.machine().get("commit"),
        "last_observation": "the one before once more",
    }


def _episodes(replay: Replay, spans: list[tuple[int, int]]) -> Iterator[Any]:
    """Episodes as Minari takes them."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    for number, (start, stop) in enumerate(spans):
        records = np.arange(start, stop)
        frames, ended = replay.frames_at(records)[:, 0], replay.ends_at(records)
        unfinished = np.zeros(len(records) + 1, np.bool_)
        unfinished[-1] = not ended[-1]
        life_lost = np.concatenate([[False], replay.life_lost_at(records)])
        phases = replay.phase_at(np.append(records, records[-1]))
        yield EpisodeBuffer(
            id=number,
            observations=cast(Any, np.concatenate([frames, frames[-1:]])),
            actions=cast(Any, replay.actions_at(records)),
            rewards=cast(Any, replay.rewards_at(records)),
            terminations=cast(Any, replay.terminated_at(records)),
            truncations=cast(Any, replay.truncated_at(records) | unfinished[1:]),
            infos={_LIFE_LOST: life_lost, _UNFINISHED: unfinished, _PHASE: phases},
        )


def import_dataset(dataset: str, out: Path, game: str | None = None) -> DataFacts:
    """Turn a Minari dataset of images and discrete actions into experience that ``dreamgym train --data`` begins from.

    Frames of a dataset that :func:`export_dataset` wrote stay as they are, and so do all records. Those of others are
    turned grey; a run shrinks them as it does its game's screens. Nothing in the dataset is run: no environment is made
    of what it names.

    Args:
        dataset: a dataset's folder, or the id of one in Minari's own folder. Nothing is downloaded.
        out: the folder to write, which must not be there.
        game: what runs call the game; by default what the dataset says.

    Returns:
        What was imported.

    Raises:
        ConfigError: the folder is there already, or Minari is not installed.
        InvalidInputError: no such dataset, one of other observations or actions, an empty or damaged one, or one that
            does not say which game it is of.
        UnknownGameError: there is no such game.
    """
    _require_minari()
    if out.exists():
        raise ConfigError(f"{out}: expected a folder that is not there yet. Choose another --out.")
    source = _Source(dataset)
    named = source.game() if game is None else resolve_game(game)
    replay = Replay(source.steps, source.frame_shape)
    for episode in source.episodes():
        for record in zip(*episode, strict=True):
            replay.append(*record)
    if not len(replay):
        raise InvalidInputError(f"{dataset}: expected at least one step, got none. Choose another dataset.")
    part = out.with_name(f".{out.name}-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        replay.save(replay_folder(part))
        facts = DataFacts(
            game=named,
            actions=source.actions,
            steps=len(replay),
            episodes=len(replay.iter_episodes()),
            screen=source.screen,
            dataset=source.name,
            minari=source.minari,
            environment=source.environment,
            dreamgym=__version__,
            replay_sha256=replay_sum(part),
        )
        write_facts(part, facts)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return facts


class _Source:
    """A dataset that is read with Minari, after a look at what it claims to be."""

    def __init__(self, dataset: str) -> None:
        from minari import MinariDataset

        self._named = dataset
        path = self._find(dataset)
        try:
            metadata: Any = json.loads(read_text(path / "metadata.json"))
            # Without them Minari would make the environment that the dataset names, and so import what it names.
            missing = [name for name in ("observation_space", "action_space") if not isinstance(metadata[name], str)]
            if missing:
                raise ValueError(f"{missing}")
            self._data: Any = MinariDataset(path)
            self.name, self.minari = str(self._data.id), str(self._data.minari_version)
            spec = self._data.env_spec
            self.environment: str | None = None if spec is None else str(spec.id)
        except Exception as error:
            # Minari checks by assert, and what it reads with fails in ways of its own.
            raise InvalidInputError(
                f"{dataset}: expected a Minari dataset with its spaces, got {type(error).__name__}: {error}. Choose "
                "another dataset."
            ) from error
        self._about: dict[str, Any] = metadata.get(_ABOUT) if isinstance(metadata.get(_ABOUT), dict) else {}
        self._check_spaces()

    def _find(self, dataset: str) -> Path:
        from minari.storage import get_dataset_path

        for path in (Path(dataset) / "data", Path(dataset)):
            if (path / "metadata.json").is_file():
                return path
        local = Path(get_dataset_path(dataset)) / "data"
        if _DATASET_ID.fullmatch(dataset) and (local / "metadata.json").is_file():
            return local
        raise InvalidInputError(
            f"dataset: expected the folder of a Minari dataset, or the id of one in {get_dataset_path()}, got "
            f"{dataset!r}. To fetch one: minari download {dataset}"
        )

    def _check_spaces(self) -> None:
        space, actions = self._data.observation_space, self._data.action_space
        shape: tuple[int, ...] = space.shape if isinstance(space, spaces.Box) else ()
        pixels = _pixels(shape)
        if pixels is None or space.dtype != np.uint8 or min(pixels) < 2 or pixels[0] * pixels[1] > _MOST_PIXELS:
            raise InvalidInputError(
                f"{self._named}: expected observations of one image, uint8 (H, W), (1, H, W), (H, W, 1) or (H, W, 3), "
                f"got {_short(space)}. Choose another dataset."
            )
        if not isinstance(actions, spaces.Discrete) or actions.start != 0:
            raise InvalidInputError(
                f"{self._named}: expected discrete actions counted from 0, got {_short(actions)}. Choose another "
                "dataset."
            )
        self._shape: tuple[int, ...] = shape
        self.frame_shape = pixels
        self.actions = int(actions.n)
        if self._data.total_episodes < 1 or self._data.total_steps < 1:
            raise InvalidInputError(f"{self._named}: expected at least one step, got none. Choose another dataset.")

    @property
    def steps(self) -> int:
        """How many records there are at most."""
        return int(self._data.total_steps)

    @property
    def screen(self) -> dict[str, Any] | None:
        """How the frames were made, where dreamgym made them."""
        screen = self._about.get("screen")
        return cast("dict[str, Any]", screen) if isinstance(screen, dict) else None

    def game(self) -> str:
        """The game that the dataset says it is of; nothing is imported to find out."""
        said = self._about.get("game") or self.environment
        if isinstance(said, str) and ":" not in said:
            try:
                return resolve_game(said)
            except UnknownGameError:
                pass
        raise InvalidInputError(
            f"{self._named}: expected a dataset that names a known game, it says {said!r}. Say which: --game NAME."
        )

    def episodes(self) -> Iterator[tuple[Any, ...]]:
        """Episodes as the columns of :meth:`Replay.append`."""
        try:
            for number, episode in enumerate(self._data.iterate_episodes()):
                yield self._columns(number, episode)
        except (OSError, KeyError, ValueError, TypeError, AssertionError, MemoryError, RuntimeError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"{self._named}: expected episodes that Minari can read, got {type(error).__name__}: {error}. Fetch or "
                "write it anew."
            ) from error

    def _columns(self, number: int, episode: Any) -> tuple[Any, ...]:
        rewards = np.asarray(episode.rewards)
        count = len(rewards)
        columns = {
            "actions": np.asarray(episode.actions),
            "rewards": rewards,
            "terminations": np.asarray(episode.terminations),
            "truncations": np.asarray(episode.truncations),
        }
        for name, values in columns.items():
            kind = {"actions": "iu", "rewards": "fiu"}.get(name, "b")
            if values.shape != (count,) or values.dtype.kind not in kind:
                raise self._wrong(number, f"{name} of {count} steps", f"{values.dtype} {values.shape}")
        frames = np.asarray(episode.observations)
        if frames.dtype != np.uint8 or len(frames) not in (count, count + 1) or frames.shape[1:] != self._shape:
            shape = (f"{count} or {count + 1}", *self._shape)
            raise self._wrong(number, f"observations uint8 {shape}", f"{frames.dtype} {frames.shape}")
        actions, terminated, truncated = columns["actions"], columns["terminations"], columns["truncations"]
        if count and (actions.min() < 0 or actions.max() >= self.actions):
            raise self._wrong(number, f"actions in [0, {self.actions})", f"{actions.min()} to {actions.max()}")
        if not np.isfinite(rewards.astype(np.float32)).all():
            raise self._wrong(number, "finite rewards", "others")
        if (terminated | truncated)[:-1].any():
            raise self._wrong(number, "an end at the last step only", "one before it")
        infos = cast("Mapping[str, Any]", episode.infos or {})
        life_lost, unfinished = self._infos(infos, count)
        return (
            self._grey(frames[:count]),
            actions.astype(np.int64),
            rewards.astype(np.float32).tolist(),
            terminated.tolist(),
            (truncated & ~unfinished).tolist(),
            life_lost.tolist(),
            (np.arange(count) == 0).tolist(),
            self._phases(infos, count).tolist(),
        )

    def _phases(self, infos: Mapping[str, Any], count: int) -> npt.NDArray[np.uint8]:
        """Of every step, as this package wrote it; 0 in datasets of others."""
        phases = np.asarray(infos.get(_PHASE, ()))
        if not self._about or phases.shape != (count + 1,) or phases.dtype != np.uint8:
            return np.zeros(count, np.uint8)
        return phases[:count]

    def _infos(self, infos: Mapping[str, Any], count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which steps lost a life, and which one was cut only because the dataset ends there."""
        none = np.zeros(count, np.bool_)
        entries = {name: np.asarray(values) for name, values in infos.items() if not isinstance(values, dict)}
        usable = {name: values for name, values in entries.items() if values.shape == (count + 1,)}
        if self._about:
            found = (usable.get(name, np.zeros(count + 1, np.bool_))[1:] for name in (_LIFE_LOST, _UNFINISHED))
            life_lost, unfinished = (values.astype(np.bool_) for values in found)
            return life_lost, unfinished
        lives = usable.get("lives")
        return (none if lives is None or lives.dtype.kind not in "iu" else np.diff(lives.astype(np.int64)) < 0), none

    def _grey(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Images as one channel, (steps, height, width), by the weights that the real game's are turned grey with."""
        if frames.ndim == 4 and frames.shape[-1] == 3 and self._shape[0] != 1:
            grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
            return cast("npt.NDArray[np.uint8]", np.stack(grey)) if grey else np.zeros((0, *self.frame_shape), np.uint8)
        return frames.reshape(len(frames), *self.frame_shape)

    def _wrong(self, number: int, expected: str, got: str) -> InvalidInputError:
        return InvalidInputError(
            f"{self._named}, episode {number}: expected {expected}, got {got}. Fetch or write the dataset anew."
        )


def _pixels(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(height, width) of images of a shape: (H, W), (1, H, W), (H, W, 1) or (H, W, 3); None for any other."""
    if len(shape) == 3:
        shape = shape[1:] if shape[0] == 1 else shape[:2] if shape[2] in (1, 3) else ()
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else None


def _short(space: Any) -> str:
    return re.sub(r"\s+", " ", str(space))[:200]


def _require_minari() -> None:
    for module in ("minari", "h5py"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"data needs Minari and h5py, {module} is not installed: pip install 'dreamgym[minari]'.")
