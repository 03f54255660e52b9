"""What the environments have in common: finding a dream, its settings, its spaces and how its actions are checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from dreamgym.checkpoint import Dream, game_of, load_dream, resolve_checkpoint
from dreamgym.device import resolve_device
from dreamgym.errors import ConfigError, InvalidActionError, InvalidInputError, UnknownSettingError
from dreamgym.observations import ObservationBuilder, ObservationKind
from dreamgym.real import game_names
from dreamgym.simulator import DreamSimulator, DreamState

DEFAULT_HORIZON = 25
"""Steps a dream lasts if neither its user nor its checkpoint says otherwise."""

DreamSource = str | Path | Dream
"""A game, an id ``Dream-<Game>-v0``, a run folder, a file, or a dream in memory."""


class DreamOptions(TypedDict, total=False):
    """Settings of a dream that all environments take, beside those that they name themselves."""

    latent_stack: int | None
    """How many of the newest latents are shown; None: as the checkpoint says."""
    hidden_state: bool
    """Show the dynamics' hidden state as well: observations become {"observation", "hidden"}."""
    reward: Literal["expected", "sampled"]
    """Expected rewards (default), or sampled ones as in the paper."""
    temperature: float | None
    """Of the next latent's distribution; 0 takes the most likely codes; None: as the checkpoint says."""
    horizon_as: Literal["truncation", "termination"]
    """What reaching the horizon is; ``"termination"`` reproduces the paper."""
    stagger: bool
    """Spread the first ages over the horizon, so that not all dreams end in the same step."""


def open_dream(source: DreamSource | None, checkpoint: DreamSource | None, device: str) -> Dream:
    """Find and load a dream.

    Args:
        source: a game, an id, a run folder, a file, or a dream in memory.
        checkpoint: a run folder, a file or a dream in memory; it goes before the source.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...

    Returns:
        The dream, its world model on the device (one in memory is moved there).

    Raises:
        MissingWeightsError: nothing was found; the message says where it was looked for.
        UnknownGameError: nothing was found and there is no such game; the message lists the nearest names.
        CheckpointError: the file is damaged.
        ConfigError: neither a source nor a checkpoint, or a checkpoint of another game.
        DeviceError: there is no such device.
    """
    place = resolve_device(device)
    for given in (checkpoint, source):
        if isinstance(given, Dream):
            given.world_model.to(place)
            return given
    for name, given in (("checkpoint", checkpoint), ("game", source)):
        if given is not None and not isinstance(cast(Any, given), str | Path):
            raise ConfigError(f"{name}: expected a game, an id, the path of a run or file, or a Dream, got {given!r}.")
    if source is None and checkpoint is None:
        raise ConfigError("Which dream? Pass a game or an id, or checkpoint= with a run folder or a file.")
    name = "" if source is None else str(source)
    return find_dream(name, cast("str | Path | None", checkpoint), place)[1]


def find_dream(
    id_or_run: str | Path, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[Path, Dream]:
    """Find a dream's file, load it, and see that it is of the game that was asked for.

    Args:
        id_or_run: a game, an id, a run folder or a file.
        checkpoint: a run folder or file that goes before all else.
        device: where to put it.

    Returns:
        The file's path and the dream.

    Raises:
        MissingWeightsError: nothing was found; the message says where it was looked for.
        UnknownGameError: nothing was found and there is no such game; the message lists the nearest names.
        CheckpointError: the file is damaged.
        ConfigError: it is a dream of another game.
        DeviceError: there is no such device.
    """
    file = resolve_checkpoint(str(id_or_run), checkpoint)
    dream = load_dream(file, device)
    asked, found = game_of(str(id_or_run)), dream.world_model.config.game
    if asked in game_names() and asked != found:
        raise ConfigError(f"checkpoint: expected a dream of {asked}, {file} is one of {found}: use Dream-{found}-v0.")
    return file, dream


def resolve_horizon(horizon: float | None, metadata: Mapping[str, Any]) -> int | None:
    """A dream's horizon in steps, or None for dreams without one.

    Args:
        horizon: steps; ``math.inf`` for none; None for the checkpoint's own (``metadata["horizon"]``, else 25).
        metadata: of the dream.

    Raises:
        ConfigError: not a positive whole number of steps.
    """
    if horizon is None:
        return cast("int | None", metadata.get("horizon", DEFAULT_HORIZON))
    if horizon == math.inf:
        return None
    whole = isinstance(cast(Any, horizon), Real) and not isinstance(horizon, bool) and horizon % 1 == 0
    if not whole or horizon < 1:
        raise ConfigError(f"horizon: expected a positive number of steps, math.inf or None, got {horizon!r}.")
    return int(horizon)


def dream_action_space(dream: Dream) -> spaces.Discrete | spaces.Box:
    """The game's actions.

    Discrete, or a Box whose bounds are in the dream's metadata (``action_low``, ``action_high``; -1 and 1 by default).
    """
    config = dream.world_model.config
    if not config.continuous:
        return spaces.Discrete(config.num_actions)
    bounds = (dream.metadata.get(name, default) for name, default in (("action_low", -1.0), ("action_high", 1.0)))
    low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float32), config.num_actions) for bound in bounds)
    return spaces.Box(low, high, dtype=np.float32)


def check_actions(actions: Any, space: gym.Space[Any], lead: tuple[int, ...]) -> torch.Tensor:
    """Actions as a tensor, once their shape, type and (on the CPU) range are right.

    Args:
        actions: array, tensor or number.
        space: of one action: Discrete or Box.
        lead: leading axes expected: () for one env, (num_envs,) for a batch.

    Returns:
        (*lead, *space.shape), int64 or float32.

    Raises:
        InvalidActionError: they are wrong.
    """
    shape = (*lead, *(space.shape or ()))
    discrete = isinstance(space, spaces.Discrete)
    name = "integers" if discrete else "numbers"
    if not isinstance(actions, torch.Tensor):
        try:
            array = np.array(actions)
        except ValueError as error:
            raise InvalidActionError(f"action: expected {name} of shape {shape}, got {actions!r}.") from error
        if array.dtype.kind not in ("iu" if discrete else "fiu"):
            raise InvalidActionError(f"action: expected {name} of shape {shape}, got {actions!r}.")
        actions = torch.from_numpy(array.astype(np.int64 if discrete else np.float32))
    if tuple(actions.shape) != shape:
        raise InvalidActionError(f"action: expected shape {shape}, got {tuple(actions.shape)}.")
    if actions.is_complex() or actions.dtype == torch.bool or (discrete and actions.is_floating_point()):
        raise InvalidActionError(f"action: expected {name}, got {actions.dtype}.")
    if actions.device.type == "cpu":
        if isinstance(space, spaces.Discrete):
            inside = (actions >= 0) & (actions < int(space.n))
        else:
            box = cast(spaces.Box, space)
            inside = (actions >= torch.from_numpy(box.low)) & (actions <= torch.from_numpy(box.high))
        if not bool(inside.all()):
            raise InvalidActionError(f"action: expected {name} in {space}, got {actions.tolist()}.")
    return actions


def check_seed(seed: Any) -> None:
    """Gymnasium's rule for seeds, before anything was done.

    Raises:
        InvalidInputError: it is neither None nor a whole number of at least 0.
    """
    if seed is not None and (not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0):
        raise InvalidInputError(f"seed: expected a whole number of at least 0, or None, got {seed!r}.")


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse settings that there are not.

    Raises:
        UnknownSettingError: one is not known; the message names the nearest that are.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            # Python's own words are in it: TorchRL's GymEnv reads them and goes on without what is not known.
            raise UnknownSettingError(
                f"{name}: {what} have no such setting (unexpected keyword argument {name!r}), expected some of "
                f"{', '.join(known)}{hint}"
            )


class Dreaming:
    """A loaded dream with its simulator and its observations; the arguments are those of the environments."""

    def __init__(
        self,
        num_envs: int,
        source: DreamSource | None,
        checkpoint: DreamSource | None,
        device: str,
        observation: ObservationKind,
        horizon: float | None,
        max_episode_steps: int | None,
        seed: int | None,
        *,
        latent_stack: int | None = None,
        hidden_state: bool = False,
        reward: Literal["expected", "sampled"] = "expected",
        temperature: float | None = None,
        horizon_as: Literal["truncation", "termination"] = "truncation",
        stagger: bool = False,
        **unknown: Any,
    ) -> None:
        """Load the dream and build what runs it."""
        check_names("dreams", unknown, DreamOptions.__annotations__)
        check_seed(seed)
        self.dream = open_dream(source, checkpoint, device)
        stack = self.dream.latent_stack if latent_stack is None else latent_stack
        steps = resolve_horizon(horizon, self.dream.metadata)
        if max_episode_steps is not None:
            steps = max_episode_steps if steps is None else min(steps, max_episode_steps)
        self.simulator = DreamSimulator(
            self.dream.world_model,
            self.dream.starts,
            num_envs=num_envs,
            horizon=steps,
            latent_stack=stack,
            reward=reward,
            temperature=self.dream.temperature if temperature is None else temperature,
            horizon_as=horizon_as,
            stagger=stagger,
            seed=seed,
        )
        self.builder = ObservationBuilder(self.dream.world_model, observation, stack, hidden_state)
        self.action_space = dream_action_space(self.dream)

    def observe(self, rows: torch.Tensor | None = None) -> Any:
        """Observations of all dreams, or of those at indices rows, on the device."""
        latents, taken = self.simulator.latents, self.simulator.taken
        hidden = self.simulator.hidden() if self.builder.hidden_state else None
        if rows is not None:
            latents, taken, hidden = latents[rows], taken[rows], None if hidden is None else hidden[rows]
        return self.builder.build(latents, hidden, taken)

    def restart(self, seed: int | None, options: Mapping[str, Any], mask: torch.Tensor | None) -> None:
        """Reset dreams and, given a seed, their random streams.

        Args:
            seed: restarts the streams of the dreams concerned.
            options: ``start``: index or indices of the contexts to begin with; ``state``: a ``DreamState`` to go on
                from.
            mask: (num_envs,) bool, the dreams concerned; None means all.

        Raises:
            InvalidInputError: the options contradict each other or are out of range.
        """
        if not isinstance(cast(Any, options), Mapping):
            raise InvalidInputError(f"options: expected a dict such as {{'start': 0}}, got {options!r}.")
        if options.get("state") is not None:
            if mask is not None or options.get("start") is not None:
                raise InvalidInputError("options: 'state' sets all dreams, so it excludes 'reset_mask' and 'start'.")
            self.simulator.set_state(cast(DreamState, options["state"]))
            if seed is not None:
                self.simulator.seed(seed)
            return
        if seed is not None:
            self.simulator.seed(seed, mask)
        starts = None
        if options.get("start") is not None:
            starts = self._starts(options["start"])
        self.simulator.reset(mask, starts=starts)

    def _starts(self, chosen: Any) -> torch.Tensor:
        """One index for each dream, from one for all or a row of them."""
        count = self.simulator.num_envs
        try:
            starts = torch.as_tensor(chosen)
            if starts.is_floating_point() or starts.dtype == torch.bool:
                raise TypeError(f"{starts.dtype}")
            return starts.to(torch.int64).broadcast_to(count)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"options['start']: expected an index in [0, {self.simulator.num_starts}), or {count} of them, one for "
                f"each dream, got {chosen!r}."
            ) from error
