"""The real game seen through a dream's encoder: same spaces as the dream, so that one policy plays both."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dreamgym.checkpoint import Dream
from dreamgym.dreaming import (
    DreamSource,
    check_actions,
    check_names,
    check_seed,
    dream_action_space,
    open_dream,
)
from dreamgym.errors import ConfigError, InvalidInputError
from dreamgym.models.layers import action_vectors
from dreamgym.models.losses import NO_REWARD, reward_classes
from dreamgym.observations import (
    Observation,
    ObservationBuilder,
    ObservationKind,
    objects_at,
    put_rows,
    take_rows,
    to_numpy,
)
from dreamgym.real import make_game_env, make_game_vector_env
from dreamgym.states import map_state
from dreamgym.world_model import WorldModel

Frames = npt.NDArray[np.uint8]


class GameOptions(TypedDict, total=False):
    """Settings of the real game, as in ``make_game_env``."""

    sticky_actions: float
    """Probability that the game repeats the last action; 0 by default."""
    noop_max: int
    """Up to this many no-ops begin an episode; 30 by default."""
    frame_skip: int
    """Frames of the game for each step; 4 by default."""
    max_episode_steps: int
    """Steps after which an episode is truncated; 27,000 by default."""


class LatentTracker:
    """Follows real games in latent space: newest latents, last actions and, if asked for, the dynamics' state.

    Args:
        world_model: encodes frames; its dynamics is run along the real actions.
        num_envs: games followed.
        latent_stack: latents kept for each.
        hidden_state: whether to run the dynamics.
    """

    def __init__(self, world_model: WorldModel, num_envs: int, latent_stack: int, hidden_state: bool) -> None:
        """Begin with latents of zeros; ``begin`` fills them."""
        self._world_model = world_model
        self._latent_stack = latent_stack
        self._state: Any = world_model.initial_state(num_envs) if hidden_state else None
        shape = (num_envs, latent_stack, *world_model.codec.latent_shape)
        self.latents = torch.zeros(shape, dtype=torch.int64, device=world_model.device)
        self.taken = torch.zeros(num_envs, world_model.act_size, device=world_model.device)

    def begin(self, frames: Frames, phases: npt.NDArray[np.int64], rows: npt.NDArray[np.int64] | None = None) -> None:
        """Games begin: their first latent fills the stack, as in the dream's start states.

        Args:
            frames: (num_envs, channels, height, width) uint8, the first of each.
            phases: (num_envs,), see :meth:`dreamgym.replay.Replay.append`.
            rows: indices of the games that begin; None means all.
        """
        rows = np.arange(len(frames)) if rows is None else rows
        latents = self._world_model.encode(frames[rows])
        index = torch.as_tensor(rows, device=self.latents.device)
        self.latents = self.latents.clone()
        self.latents[index] = latents.unsqueeze(1).expand(-1, self._latent_stack, *[-1] * (latents.ndim - 1))
        nothing = torch.zeros(len(rows), self._world_model.num_actions, device=index.device)
        begun = torch.cat([nothing, self._world_model.phase_digits(phases[rows])], dim=1)
        self.taken = self.taken.index_copy(0, index, begun)
        if self._state is not None:
            blank = self._world_model.initial_state(len(rows), torch.zeros(len(rows), dtype=torch.int64))

            def put(kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
                return kept.index_copy(0, index, new.to(kept.dtype))

            self._state = map_state(put, self._state, blank)

    def advance(self, actions: npt.NDArray[Any], frames: Frames, rewards: npt.NDArray[Any] | None = None) -> None:
        """Games take a step: actions (num_envs,) led to frames (num_envs, channels, height, width) uint8.

        The dynamics' state, where it is kept, is told of the rewards (num_envs,).
        """
        number = torch.float32 if self._world_model.config.continuous else torch.int64
        taken = torch.as_tensor(np.array(actions), dtype=number, device=self.latents.device)
        count = self._world_model.num_actions
        taken = self._world_model.acts(taken, self.taken[:, count:])
        self.taken = action_vectors(taken, count)
        if self._state is not None:
            before = self._state
            self._state = self._world_model.step(self.latents[:, -1], taken, before)[1]
            if rewards is not None:
                came = torch.as_tensor(np.array(rewards, dtype=np.float32), device=self.latents.device)
                rewarded = reward_classes(came) != NO_REWARD
                self._state = self._world_model.dynamics.told_reward(before, self._state, rewarded)
        latents = self._world_model.encode(frames)
        self.latents = torch.cat([self.latents[:, 1:], latents.unsqueeze(1)], dim=1)

    def hidden(self) -> torch.Tensor | None:
        """The dynamics' hidden state (num_envs, hidden channels, height, width), where it is run."""
        return None if self._state is None else self._world_model.hidden(self._state)

    def show(self, builder: ObservationBuilder) -> Observation:
        """What a builder makes of all that is known of the games."""
        return builder.build(self.latents, self.hidden(), self.taken)


class RealEnv(gym.Env[Any, Any]):
    """One real game whose observations are the dream's (see ``make_real_env``); rewards are the game's own.

    Infos are the game's (``lives``, ``life_lost``).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        dream: Dream,
        builder: ObservationBuilder,
        game: gym.Env[Any, Any],
        seed: int | None,
        render_mode: str | None,
    ) -> None:
        """Put the encoder before a game of ``make_game_env``."""
        self.dream = dream
        self.game = game
        self.render_mode = render_mode
        self.observation_space = builder.space
        self.action_space = _check_actions(game.action_space, dream)
        self._builder = builder
        self._tracker = LatentTracker(dream.world_model, 1, builder.latent_stack, builder.hidden_state)
        self._first_seed = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed makes it repeatable."""
        seed, self._first_seed = self._first_seed if seed is None else seed, None
        super().reset(seed=seed)
        frames, info = self.game.reset(seed=seed, options=options)
        self._tracker.begin(frames[None], _phases(info, 1))
        return self._observe(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step of the real game."""
        action = check_actions(action, self.action_space, ()).cpu().numpy()
        frames, reward, terminated, truncated, info = self.game.step(action)
        self._tracker.advance(action[None], frames[None], np.array([reward]))
        return self._observe(), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """The game's own picture, uint8 (height, width, 3), with render_mode="rgb_array"."""
        return self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()

    def _observe(self) -> Any:
        return take_rows(to_numpy(self._tracker.show(self._builder)), 0)


class RealVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """Many real games, SAME_STEP autoreset, encoded in one batch (see ``make_real_env``)."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        dream: Dream,
        builder: ObservationBuilder,
        games: gym.vector.VectorEnv[Any, Any, Any],
        seed: int | None,
        render_mode: str | None,
    ) -> None:
        """Put the encoder before games of ``make_game_vector_env``."""
        self.dream = dream
        self.games = games
        self.num_envs = games.num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = builder.space
        self.observation_space = batch_space(builder.space, self.num_envs)
        self.single_action_space = _check_actions(games.single_action_space, dream)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._builder = builder
        self._tracker = LatentTracker(dream.world_model, self.num_envs, builder.latent_stack, builder.hidden_state)
        self._first_seed = seed
        self._frames: Frames | None = None
        self._phases = np.zeros(self.num_envs, np.int64)

    @property
    def phases(self) -> npt.NDArray[np.int64]:
        """(num_envs,): of the episode of every game, see :meth:`dreamgym.replay.Replay.append`, a copy."""
        return self._phases.copy()

    @property
    def frames(self) -> Frames:
        """The newest raw frame of every game, uint8 (num_envs, height, width), a copy: what a replay keeps of them.

        Raises:
            InvalidInputError: the games have not begun.
        """
        if self._frames is None:
            raise InvalidInputError("frames: the games have not begun; call reset() first.")
        return self._frames[:, -1].copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every game, or in those of ``options["reset_mask"]``; a seed makes them repeatable."""
        seed, self._first_seed = self._first_seed if seed is None else seed, None
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        # Read before the games are reset: Gymnasium's own vector env takes the mask out of the options.
        mask = None if options is None else options.get("reset_mask")
        frames, infos = self.games.reset(seed=seed, options=options)
        self._frames = np.asarray(frames)
        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self._begin(rows, infos)
        return self._observe(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one step in every game; games that end begin anew within the step.

        Args:
            actions: (num_envs,) integers.

        Returns:
            Observations, rewards float32 (num_envs,), terminated and truncated bool (num_envs,), and the games' infos
            with ``final_obs`` encoded like every other observation.

        Raises:
            InvalidActionError: actions of the wrong shape, type or range.
        """
        actions = check_actions(actions, self.single_action_space, (self.num_envs,)).cpu().numpy()
        frames, rewards, terminated, truncated, infos = self.games.step(actions)
        frames, ended = np.asarray(frames), np.asarray(terminated) | np.asarray(truncated)
        self._frames = frames
        rows = np.flatnonzero(ended)
        arrived = frames
        if len(rows):
            arrived = frames.copy()
            for row in rows:
                arrived[row] = infos["final_obs"][row]
        self._tracker.advance(actions, arrived, rewards)
        observation = self._observe()
        if len(rows):
            final = objects_at(self.num_envs, rows, take_rows(observation, rows))
            infos = {**infos, "final_obs": final, "_final_obs": ended}
            self._begin(rows, infos)
            put_rows(observation, rows, take_rows(self._observe(), rows))
        ends = np.array(terminated, dtype=np.bool_), np.array(truncated, dtype=np.bool_)
        return observation, np.array(rewards, dtype=np.float32), *ends, infos

    def render(self) -> Any:
        """The games' own pictures, where they can be had."""
        return self.games.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the games."""
        self.games.close(**kwargs)

    def _begin(self, rows: npt.NDArray[np.int64], infos: dict[str, Any]) -> None:
        """Follow the games at rows from their first frames; of the others the infos may say nothing."""
        assert self._frames is not None
        self._phases[rows] = _phases(infos, self.num_envs)[rows]
        self._tracker.begin(self._frames, self._phases, rows)

    def _observe(self) -> Any:
        return to_numpy(self._tracker.show(self._builder))


def _phases(infos: dict[str, Any], count: int) -> npt.NDArray[np.int64]:
    """What games say of their phases; those that say nothing have one."""
    return np.broadcast_to(np.asarray(infos.get("phase", 0), dtype=np.int64), count)


def _check_actions(space: gym.Space[Any], dream: Dream) -> gym.Space[Any]:
    """The game's action space, once it is known to be the dream's."""
    expected = dream_action_space(dream)
    if space != expected:
        raise ConfigError(f"The game's actions are {space}, but the dream was fitted with {expected}.")
    return space


@overload
def make_real_env(
    id_or_run: DreamSource,
    num_envs: None = None,
    *,
    checkpoint: DreamSource | None = None,
    device: str = "auto",
    observation: ObservationKind = "embedding",
    latent_stack: int | None = None,
    hidden_state: bool = False,
    seed: int | None = None,
    render_mode: Literal["rgb_array"] | None = None,
    **game_options: Unpack[GameOptions],
) -> RealEnv: ...


@overload
def make_real_env(
    id_or_run: DreamSource,
    num_envs: int,
    *,
    checkpoint: DreamSource | None = None,
    device: str = "auto",
    observation: ObservationKind = "embedding",
    latent_stack: int | None = None,
    hidden_state: bool = False,
    seed: int | None = None,
    render_mode: Literal["rgb_array"] | None = None,
    **game_options: Unpack[GameOptions],
) -> RealVectorEnv: ...


def make_real_env(
    id_or_run: DreamSource,
    num_envs: int | None = None,
    *,
    checkpoint: DreamSource | None = None,
    device: str = "auto",
    observation: ObservationKind = "embedding",
    latent_stack: int | None = None,
    hidden_state: bool = False,
    seed: int | None = None,
    render_mode: Literal["rgb_array"] | None = None,
    **game_options: Unpack[GameOptions],
) -> RealEnv | RealVectorEnv:
    """The real game of a dream, seen through the dream's encoder.

    With the same ``observation``, ``latent_stack`` and ``hidden_state`` its spaces are exactly the dream's. Latents are
    stacked as in the dream, and with ``hidden_state`` the dynamics runs along the real actions.

    Args:
        id_or_run: ``"Dream-Pong-v0"``, a game, a run folder, a file or a loaded ``Dream``.
        num_envs: None for a ``gym.Env``; a number for a ``gym.vector.VectorEnv`` with SAME_STEP autoreset, which
            encodes in batches.
        checkpoint: a run folder, a file or a loaded ``Dream``, instead of looking weights up.
        device: where to encode: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        observation: ``"embedding"``, ``"codes"``, ``"objects"`` or ``"pixels"``, see ``ObservationBuilder``.
        latent_stack: how many latents are shown; None as the checkpoint says.
        hidden_state: show the dynamics' hidden state as well.
        seed: of the first reset.
        render_mode: ``"rgb_array"``.
        game_options: see ``GameOptions``.

    Returns:
        The environment.

    Raises:
        MissingWeightsError: no weights; the message says where they were looked for and how to train them.
        ConfigError: the game's actions are not the dream's, or a setting is outside its range.
    """
    check_names("real games", game_options, GameOptions.__annotations__)
    check_seed(seed)
    dream = open_dream(id_or_run, checkpoint, device)
    model = dream.world_model
    stack = dream.latent_stack if latent_stack is None else latent_stack
    builder = ObservationBuilder(model, observation, stack, hidden_state)
    codec = model.config.codec
    settings: dict[str, Any] = {
        "stack": codec.frame_stack,
        **codec.screen,
        "render_mode": render_mode,
        **game_options,
    }
    if num_envs is None:
        return RealEnv(dream, builder, make_game_env(model.config.game, **settings), seed, render_mode)
    games = make_game_vector_env(model.config.game, num_envs, **settings)
    return RealVectorEnv(dream, builder, games, seed, render_mode)
