"""Collecting real experience with the agent (Robine et al. 2023, Sect. 3.3.1)."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dreamgym.observations import ObservationBuilder, to_numpy
from dreamgym.real_env import LatentTracker
from dreamgym.replay import Replay
from dreamgym.terminal import progress_bar
from dreamgym.world_model import WorldModel

_log = logging.getLogger("dreamgym")


class ActingPolicy(Protocol):
    """What collection needs of a policy: Stable-Baselines3's ``predict``."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Observations with a leading axis of one to (actions, recurrent state)."""
        ...


class Outcome(NamedTuple):
    """What a real step came to."""

    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool


class GameSession:
    """One real game that goes on from round to round, rebuilt from the replay whenever it is needed.

    Every episode's seed is a function of its number, and a game is a function of its seed and actions; so the open
    episode is brought back by playing its recorded actions again, in the same process or after a crash alike. A game
    that does not repeat itself cannot be brought back: its open episode stays without an end and a new one begins.

    Args:
        env: the real game, frames uint8 (1, size, size).
        replay: all that was played before; records are appended to it.
        episode_seed: from an episode's number, counted from 0, to the seed it is reset with.
    """

    def __init__(self, env: gym.Env[Any, Any], replay: Replay, episode_seed: Callable[[int], int]) -> None:
        """Bring the open episode back."""
        self._env = env
        self.action_space = env.action_space
        self.replay = replay
        self._episode_seed = episode_seed
        spans = replay.iter_episodes()
        self._episodes = len(spans)
        self.first = True
        if spans and not bool(replay.ends_at(spans[-1][1] - 1)):
            self._episodes -= 1
            self._begin()
            if self._play_again(spans[-1]):
                self.first = False
                return
            _log.warning("The game did not repeat the open episode: a new one begins.")
        self._begin()

    def step(self, action: Any) -> bool:
        """Play an action, record it, and begin a new episode where one ended.

        Returns:
            Whether the frame now shown begins an episode.
        """
        observation, reward, terminated, truncated, info = self._env.step(_native(action))
        self.last = Outcome(float(reward), bool(terminated), bool(truncated), bool(info.get("life_lost", False)))
        self.replay.append(self.frame, action, *self.last, self.first, self.phase)
        self.arrived: npt.NDArray[np.uint8] = observation[-1]
        self.first = terminated or truncated
        if self.first:
            self._begin()
        else:
            self.frame = self.arrived
        return self.first

    def recent_frames(self, count: int, stack: int) -> npt.NDArray[np.uint8]:
        """The newest observations of the open episode, the one now shown included, oldest first.

        Args:
            count: at most so many.
            stack: frames in an observation; before the episode's start the first one is repeated.

        Returns:
            (up to count, stack, size, size) uint8.
        """
        begin = len(self.replay) if self.first else self.replay.iter_episodes()[-1][0]
        past = np.arange(max(begin, len(self.replay) - count - stack + 2), len(self.replay))
        frames = [*self.replay.frames_at(past, 1)[:, 0]] if len(past) else []
        frames.append(self.frame)
        padded = [frames[0]] * (stack - 1) + frames
        stacked = np.stack([np.stack(padded[i : i + stack]) for i in range(len(frames))])
        return stacked[-count:]

    def _play_again(self, span: tuple[int, int]) -> bool:
        """Play an episode's recorded actions; False as soon as the game shows anything but the recorded frames."""
        for index in range(*span):
            if not np.array_equal(self.frame, self.replay.frames_at(index)[0]):
                return False
            observation, _, terminated, truncated, _ = self._env.step(_native(self.replay.actions_at(index)))
            if terminated or truncated:
                return False
            self.frame = observation[-1]
        return True

    def _begin(self) -> None:
        observation, info = self._env.reset(seed=self._episode_seed(self._episodes))
        self.phase = int(info.get("phase", 0))
        self._episodes += 1
        self.frame: npt.NDArray[np.uint8] = observation[-1]
        self.first = True


def collect_random(session: GameSession, steps: int, policy: ActingPolicy, *, progress: bool = True) -> None:
    """Collect with a policy that looks at nothing, in the first round.

    Args:
        session: the game.
        steps: how many.
        policy: its observation is an empty batch of one.
        progress: show a progress bar.
    """
    nothing = np.zeros((1, 1), dtype=np.float32)
    for _ in progress_bar(range(steps), name="collect", unit="step", wanted=progress):
        actions, _ = policy.predict(nothing)
        session.step(actions[0])


def collect_with(
    session: GameSession,
    steps: int,
    policy: ActingPolicy,
    world_model: WorldModel,
    builder: ObservationBuilder,
    latent_stack: int,
    seed: int,
    *,
    progress: bool = True,
) -> None:
    """Collect with the agent, which sees the game through the encoder.

    Args:
        session: the game.
        steps: how many.
        policy: acts on what ``builder`` builds.
        world_model: encodes the frames.
        builder: from latents to observations.
        latent_stack: latents that an observation shows.
        seed: of the policy's sampling; torch's global generator is left as it was.
        progress: show a progress bar.
    """
    tracker = LatentTracker(world_model, 1, latent_stack, hidden_state=False)
    window = _Window(session, world_model.frame_stack)
    start = _track_recent(session, tracker, latent_stack, world_model.frame_stack)
    state: Any = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in progress_bar(range(steps), name="collect", unit="step", wanted=progress):
            observation = to_numpy(tracker.show(builder))
            actions, state = policy.predict(observation, state, np.array([start]), False)
            start = session.step(actions[0])
            frames = window.push(start)
            if start:
                tracker.begin(frames, np.array([session.phase]))
            else:
                tracker.advance(actions, frames)


class SessionGames(gym.vector.VectorEnv[Any, Any, Any]):
    """A session as a vector env of one game, SAME_STEP autoreset: what an algorithm plays in it is recorded.

    ``reset`` goes on with the open episode, which nothing but its end ends. Observations are frames, uint8 (1, stack,
    height, width). Rewards and ends are what dreams show of them: a reward's sign, and lost lives where they count.

    Args:
        session: the game.
        stack: frames in an observation.
        life_loss_ends: whether a lost life counts as an end.
    """

    def __init__(self, session: GameSession, stack: int, life_loss_ends: bool) -> None:
        """Take over the game's spaces."""
        self._session = session
        self._life_loss_ends = life_loss_ends
        self._window = _Window(session, stack)
        self.num_envs = 1
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        height, width = session.frame.shape
        self.single_observation_space = gym.spaces.Box(0, 255, (stack, height, width), np.uint8)
        self.observation_space = batch_space(self.single_observation_space, 1)
        self.single_action_space = session.action_space
        self.action_space = batch_space(self.single_action_space, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The open episode's newest frames; its seed was chosen when it began."""
        return self._window.frames.copy(), {"phase": np.array([self._session.phase])}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play and record actions (1,); where the episode ended, ``final_obs`` holds its last frames."""
        before = self._window.frames[0, 1:]
        self._session.step(actions[0])
        last, frames = self._session.last, self._window.push(self._session.first)
        terminated = last.terminated or (last.life_lost and self._life_loss_ends)
        infos: dict[str, Any] = {"phase": np.array([self._session.phase])}
        if terminated or last.truncated:
            final = np.empty(1, dtype=object)
            final[0] = np.concatenate([before, self._session.arrived[None]])
            infos |= {"final_obs": final, "_final_obs": np.ones(1, dtype=np.bool_)}
        return frames, np.sign([last.reward]), np.array([terminated]), np.array([last.truncated]), infos


class _Window:
    """The newest frames of the open episode as one observation of the codec."""

    def __init__(self, session: GameSession, stack: int) -> None:
        self._session = session
        self.frames = session.recent_frames(1, stack)

    def push(self, first: bool) -> npt.NDArray[np.uint8]:
        frame = self._session.frame
        if first:
            self.frames = np.broadcast_to(frame, self.frames.shape).copy()
        else:
            self.frames = np.concatenate([self.frames[:, 1:], frame[None, None]], axis=1)
        return self.frames


def _track_recent(session: GameSession, tracker: LatentTracker, latent_stack: int, stack: int) -> bool:
    """Fill a tracker with the latents of the open episode's newest frames; whether the episode has just begun."""
    recent = session.recent_frames(latent_stack, stack)
    tracker.begin(recent[:1], np.array([session.phase]))
    led = np.arange(len(session.replay) - len(recent) + 1, len(session.replay))
    for index, observation in zip(led, recent[1:], strict=True):
        tracker.advance(session.replay.actions_at(index)[None], observation[None])
    return session.first


def _native(action: Any) -> Any:
    """A plain int where an action is one number: emulators refuse numpy scalars of odd types."""
    array = np.asarray(action)
    return int(array) if array.ndim == 0 else array
