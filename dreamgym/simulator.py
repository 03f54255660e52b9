"""Many dreams stepped at once: tensors in, tensors out, no adapter's conventions."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from dreamgym.device import resolve_device
from dreamgym.errors import ConfigError, InvalidActionError, InvalidInputError
from dreamgym.models.layers import action_vectors
from dreamgym.states import map_state, take_state, where_rows, where_state
from dreamgym.streams import Streams
from dreamgym.warm_starts import WarmStarts

if TYPE_CHECKING:
    from dreamgym.checkpoint import StartStates
    from dreamgym.models.dynamics import Prediction
    from dreamgym.world_model import WorldModel

Watch = Callable[["Prediction", Tensor], None]
"""Sees what a step predicted, given its reward, and the latents (num_envs, height, width) int64 that were drawn."""


class StepResult(NamedTuple):
    """What one step of all dreams gives."""

    latents: Tensor
    """(num_envs, latent_stack, *latent_shape) int64, newest last: after the step."""
    reward: Tensor
    """(num_envs,) float32 in [-1, 1]."""
    terminated: Tensor
    """(num_envs,) bool: the game ended, as the model believes."""
    truncated: Tensor
    """(num_envs,) bool: the horizon was reached in a game that goes on."""


class DreamState(NamedTuple):
    """Everything that decides how the dreams go on, randomness included."""

    dynamics: Any
    """The dynamics' state: a NamedTuple of tensors (num_envs, ...)."""
    latents: Tensor
    """(num_envs, latent_stack, *latent_shape) int64, newest last."""
    taken: Tensor
    """(num_envs, act_size) float32: what was done last, one-hot where actions are discrete, zeros at an episode's
    begin; and the digits of its phase."""
    age: Tensor
    """(num_envs,) int64: steps since the dream started."""
    start: Tensor
    """(num_envs,) int64: index of the start state."""
    streams: Streams
    """One random stream a dream."""

    def take(self, indices: Tensor) -> DreamState:
        """The dreams at indices (rows,) int64, copied.

        ``take(torch.zeros(n, dtype=torch.int64))`` forks dream 0 n times. The copies also share their random streams:
        call ``seed`` after ``set_state`` to let them differ.
        """
        indices = indices.to(self.latents.device)
        return DreamState(
            take_state(self.dynamics, indices),
            self.latents[indices],
            self.taken[indices],
            self.age[indices],
            self.start[indices],
            take_state(self.streams, indices),
        )


class DreamSimulator:
    """``num_envs`` dreams of one world model, each with its own start, age and random stream.

    There is no automatic reset here: a dream that ended goes on until it is reset by mask. What one dream does never
    depends on the others: resetting dream i leaves dream j as it was, bit for bit. Nothing in ``step`` and ``reset``
    waits for an accelerator (but the first reset, which warms the starts up), and no global random generator is read.

    Rewards are expected values by default; a sampled reward is the paper's (Robine et al. 2023, Sect. 3.2.2). Ends are
    sampled from the predicted probability. Next latents are sampled, too: it is their randomness that lets a
    deterministic network imagine different futures. Whether there was a reward is drawn for the dynamics' account of
    them even where the reward paid is the expected one, but not at temperature 0: then they go by what is likely.

    Starts are warmed up once, with the weights of that moment: after a refit of the world model, build a new simulator.

    One simulator belongs to one thread at a time: its calls are not guarded against each other. Simulators share
    nothing that they write, so that each may be stepped in a thread of its own, also where they are of one world model,
    as long as nobody fits that at the same time or moves it to another device.

    Args:
        world_model: codec and dynamics; moved to ``device``.
        starts: real contexts from which dreams start, at least ``latent_stack`` steps long.
        num_envs: number of dreams.
        horizon: steps after which a dream is truncated; None never truncates.
        latent_stack: how many of the newest latents are shown.
        reward: ``"expected"`` or ``"sampled"``.
        temperature: of the next latent's distribution; 0 takes the most likely codes.
        horizon_as: ``"truncation"``, or ``"termination"`` to reproduce the paper, whose agents do not bootstrap there.
        stagger: draw the first ages of a full reset from 0..horizon-1, so that not all dreams end in the same step.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...; None leaves the world model where it is.
        seed: of all streams; None draws one from the operating system.
        watch: called in every step with what it predicted and what was drawn of that; it may not change either.

    Raises:
        ConfigError: a setting is outside its range.
        DeviceError: the device does not exist.
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: StartStates,
        *,
        num_envs: int,
        horizon: int | None = 25,
        latent_stack: int = 4,
        reward: Literal["expected", "sampled"] = "expected",
        temperature: float = 1.0,
        horizon_as: Literal["truncation", "termination"] = "truncation",
        stagger: bool = False,
        device: str | torch.device | None = None,
        seed: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Check the settings and move the world model and the start states to the device."""
        _check_choice("reward", reward, ("expected", "sampled"))
        _check_choice("horizon_as", horizon_as, ("truncation", "termination"))
        _check_at_least("num_envs", num_envs, 1)
        _check_at_least("latent_stack", latent_stack, 1)
        if horizon is not None:
            _check_at_least("horizon", horizon, 1)
        if not isinstance(cast(Any, temperature), Real) or not 0.0 <= temperature < math.inf:
            raise ConfigError(f"temperature: expected a finite number of at least 0, got {temperature!r}.")
        self.device = world_model.device if device is None else resolve_device(device)
        self.world_model = world_model.to(self.device)
        self.num_envs = num_envs
        self.horizon = horizon
        self.latent_stack = latent_stack
        self.reward_mode = reward
        self.temperature = temperature
        self.horizon_as = horizon_as
        self.stagger = stagger
        self._watch = watch
        self._starts = WarmStarts(self.world_model, starts, self.device)
        if latent_stack > self._starts.context:
            raise ConfigError(
                f"latent_stack: expected at most {self._starts.context}, the context of the start states, "
                f"got {latent_stack}."
            )
        self._latent_shape = tuple(world_model.codec.latent_shape)
        self._state: DreamState | None = None
        try:
            self._streams = self._new_streams(secrets.randbits(63) if seed is None else seed)
        except RuntimeError as error:
            raise ConfigError(
                f"num_envs: expected as many dreams as there is memory for, got {num_envs:,}; take fewer."
            ) from error

    @property
    def num_starts(self) -> int:
        """How many start states dreams are drawn from."""
        return self._starts.count

    @property
    def latents(self) -> Tensor:
        """The stacks shown: (num_envs, latent_stack, *latent_shape) int64, newest last."""
        return self._current().latents

    @property
    def taken(self) -> Tensor:
        """(num_envs, act_size) float32: what was done last, zeros in a dream of an episode's begin; and its phase."""
        return self._current().taken

    @property
    def age(self) -> Tensor:
        """(num_envs,) int64: steps since each dream started (or its staggered first age)."""
        return self._current().age

    @property
    def start(self) -> Tensor:
        """(num_envs,) int64: the start state each dream came from."""
        return self._current().start

    def hidden(self) -> Tensor:
        """The dynamics' hidden state: (num_envs, hidden channels, height, width) float32.

        It has read everything before the newest latent, not that latent itself.
        """
        return self.world_model.hidden(self._current().dynamics)

    def seed(self, seed: int, mask: Tensor | None = None) -> None:
        """Restart random streams; dream i's depends on the seed and on i only.

        Args:
            seed: any integer.
            mask: (num_envs,) bool: the dreams concerned; None means all.
        """
        fresh = self._new_streams(seed)
        if mask is not None:
            fresh = where_state(self._check_mask(mask), fresh, self._streams)
        self._streams = fresh

    @torch.no_grad()
    def reset(self, mask: Tensor | None = None, *, starts: Tensor | None = None) -> Tensor:
        """Start dreams anew from real contexts drawn uniformly.

        Args:
            mask: (num_envs,) bool: the dreams to start anew; None means all.
            starts: (num_envs,) int64: start states to take instead of the drawn ones, where the mask holds.

        Returns:
            The stacks of all dreams afterwards, (num_envs, latent_stack, *latent_shape) int64, newest last.

        Raises:
            InvalidInputError: the mask or the starts have the wrong shape or type, or a dream left out never began.
        """
        rows = None if mask is None else self._check_mask(mask)
        if rows is not None and self._state is None:
            raise InvalidInputError("reset: the first reset must start all dreams, so call it without a mask.")
        uniforms, self._streams = self._streams.draw(2, rows)
        start = self._draw(uniforms[:, 0], self.num_starts)
        if starts is not None:
            chosen = self._check_starts(starts)
            start = chosen if rows is None else torch.where(rows, chosen, start)
        age = torch.zeros_like(start)
        if self.stagger and self.horizon is not None and rows is None:
            age = self._draw(uniforms[:, 1], self.horizon)
        fresh = DreamState(
            self._starts.states(start, rows),
            self._starts.stacks(start, self.latent_stack),
            self._starts.taken(start),
            age,
            start,
            self._streams,
        )
        if rows is None or self._state is None:
            self._state = fresh
            return fresh.latents
        old = self._state
        self._state = DreamState(
            where_state(rows, fresh.dynamics, old.dynamics),
            where_rows(rows, fresh.latents, old.latents),
            where_rows(rows, fresh.taken, old.taken),
            where_rows(rows, fresh.age, old.age),
            where_rows(rows, fresh.start, old.start),
            self._streams,
        )
        return self._state.latents

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        """Take one step in every dream.

        Args:
            actions: (num_envs,) integers in [0, num_actions), or (num_envs, num_actions) numbers for continuous ones.
                On an accelerator their range is the caller's to check: doing it here would wait for the device.

        Returns:
            Stacks, rewards and ends, in fresh tensors.

        Raises:
            InvalidActionError: the actions have the wrong shape, type or, on the CPU, range.
            InvalidInputError: the dreams were never reset.
        """
        state = self._current()
        count = self.world_model.num_actions
        acts = self.world_model.acts(self._check_actions(actions), state.taken[:, count:])
        prediction, dynamics = self.world_model.step(state.latents[:, -1], acts, state.dynamics)
        cells = math.prod(self._latent_shape)
        uniforms, self._streams = self._streams.draw(cells + 2)
        drawn = uniforms[:, :cells].unflatten(1, self._latent_shape)
        reward, told = self.world_model.draw_reward(prediction, uniforms[:, cells], state.dynamics, dynamics)
        # Without chance what is likely comes, whatever was drawn.
        by_chance = self.reward_mode == "sampled" or self.temperature > 0
        latent = self.world_model.draw_latent(prediction, drawn, self.temperature, reward if by_chance else None)
        if self._watch is not None:
            self._watch(self.world_model.dynamics.given_reward(prediction, reward) if by_chance else prediction, latent)
        if self.reward_mode == "expected":
            reward = prediction.expected_reward()
        if by_chance:
            dynamics = told
        terminated = uniforms[:, cells + 1] < prediction.end_probability()
        age = state.age + 1
        at_horizon = torch.zeros_like(terminated) if self.horizon is None else age >= self.horizon
        if self.horizon_as == "termination":
            terminated, truncated = terminated | at_horizon, torch.zeros_like(terminated)
        else:
            truncated = at_horizon & ~terminated
        latents = torch.cat([state.latents[:, 1:], latent.unsqueeze(1)], dim=1)
        taken = action_vectors(acts, count)
        self._state = DreamState(dynamics, latents, taken, age, state.start, self._streams)
        return StepResult(latents, reward.float(), terminated, truncated)

    def state(self) -> DreamState:
        """A copy of the dreams' state, random streams included: with ``set_state`` it saves and forks dreams."""
        return self._current()._replace(streams=self._streams).take(torch.arange(self.num_envs))

    def set_state(self, state: DreamState) -> None:
        """Continue from a state, copied: the same actions then lead to the same dreams.

        Args:
            state: of ``state()`` of a simulator of the same world model, or ``take`` of one, with num_envs rows.

        Raises:
            InvalidInputError: the state is for another number of dreams or another latent stack.
        """
        expected = (self.num_envs, self.latent_stack, *self._latent_shape)
        if not isinstance(cast(Any, state), DreamState):
            raise InvalidInputError(f"state: expected a DreamState, as state() gives it, got {state!r}.")
        if tuple(state.latents.shape) != expected:
            raise InvalidInputError(f"state: expected latents of shape {expected}, got {tuple(state.latents.shape)}.")
        copy = state.take(torch.arange(self.num_envs))
        self._state = DreamState(
            map_state(self._here, copy.dynamics),
            self._here(copy.latents),
            self._here(copy.taken),
            self._here(copy.age),
            self._here(copy.start),
            map_state(self._here, copy.streams),
        )
        self._streams = self._state.streams

    def _current(self) -> DreamState:
        if self._state is None:
            raise InvalidInputError("The dreams have not begun: call reset() first.")
        return self._state

    def _new_streams(self, seed: int) -> Streams:
        return Streams.from_seed(seed, self.num_envs, self.device)

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    @staticmethod
    def _draw(uniforms: Tensor, count: int) -> Tensor:
        """Integers in [0, count) from uniforms; float64 keeps the product below count."""
        return (uniforms.double() * count).long()

    def _check_mask(self, mask: Tensor) -> Tensor:
        if tuple(mask.shape) != (self.num_envs,) or mask.dtype != torch.bool:
            raise InvalidInputError(
                f"mask: expected torch.bool of shape ({self.num_envs},), got {mask.dtype} of {tuple(mask.shape)}."
            )
        return mask.to(self.device)

    def _check_starts(self, starts: Tensor) -> Tensor:
        if tuple(starts.shape) != (self.num_envs,) or starts.dtype != torch.int64:
            raise InvalidInputError(
                f"starts: expected torch.int64 of ({self.num_envs},), got {starts.dtype} of {tuple(starts.shape)}."
            )
        if starts.device.type == "cpu" and not bool(((starts >= 0) & (starts < self.num_starts)).all()):
            raise InvalidInputError(f"starts: expected indices in [0, {self.num_starts}), got {starts.tolist()}.")
        return starts.to(self.device)

    def _check_actions(self, actions: Tensor) -> Tensor:
        continuous = self.world_model.config.continuous
        if not isinstance(cast(Any, actions), Tensor):
            kind = type(actions).__name__
            raise InvalidActionError(f"actions: expected a torch tensor, got {kind}: pass torch.as_tensor(actions).")
        shape = (self.num_envs, self.world_model.num_actions) if continuous else (self.num_envs,)
        if tuple(actions.shape) != shape:
            raise InvalidActionError(f"actions: expected shape {shape}, got {tuple(actions.shape)}.")
        if actions.is_floating_point() != continuous or actions.is_complex() or actions.dtype == torch.bool:
            raise InvalidActionError(
                f"actions: expected {'floating-point numbers' if continuous else 'integers'}, got {actions.dtype}."
            )
        if actions.device.type == "cpu":
            inside = (
                torch.isfinite(actions) if continuous else (actions >= 0) & (actions < self.world_model.num_actions)
            )
            if not bool(inside.all()):
                expected = "finite numbers" if continuous else f"integers in [0, {self.world_model.num_actions})"
                raise InvalidActionError(f"actions: expected {expected}, got {actions.tolist()}.")
        return actions.to(device=self.device, dtype=torch.float32 if continuous else torch.int64)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}.")


def _check_at_least(name: str, value: int, least: int) -> None:
    whole = isinstance(cast(Any, value), Real) and not isinstance(value, bool) and value % 1 == 0
    if not whole or value < least:
        raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}.")
