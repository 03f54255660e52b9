import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dreamgym.envs import DreamVectorEnv
from dreamgym.errors import InvalidInputError
from dreamgym.evaluate import RandomPolicy, Score, evaluate_dream, evaluate_real, random_score
from dreamgym.fidelity import fidelity
from dreamgym.real_env import make_real_env
from dreamgym.replay import Replay


class Counting(gym.Env):
    """Episodes of a fixed length with a reward of one a step; the observation counts the steps."""

    observation_space = gym.spaces.Box(0, 255, (1,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, length: int):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {"life_lost": False}

    def step(self, action):
        self.age += 1
        ended = self.age == self.length
        info = {"life_lost": self.age == 2}
        return (
            np.array([self.age], np.float32),
            1.0,
            ended and self.length % 2 == 0,
            ended and self.length % 2 == 1,
            info,
        )


class CountingVector(SyncVectorEnv):
    """Several of them, whose raw frames show env and age."""

    def __init__(self, lengths, autoreset_mode=AutoresetMode.SAME_STEP):
        super().__init__([lambda length=length: Counting(length) for length in lengths], autoreset_mode=autoreset_mode)

    @property
    def frames(self):
        return np.stack([np.array([[index, env.age]], np.uint8) for index, env in enumerate(self.envs)])


class Fixed:
    """Always the same action; remembers how it was called."""

    def __init__(self):
        self.starts = []
        self.states = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.starts.append(episode_start.copy())
        self.states.append(None if state is None else state[0].copy())
        return np.full(len(observation), 1), (np.full(len(observation), len(self.starts)),)


class Sampling:
    """Draws from the global generators, as Stable-Baselines3's policies do."""

    def __init__(self):
        self.action_space = gym.spaces.Discrete(4, seed=0)
        self.drawn = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        actions = torch.randint(4, (len(observation),)).numpy()
        self.drawn.append([*actions, np.random.randint(100), int(self.action_space.sample())])
        return actions, None


def test_a_score_summarises_its_episodes():
    score = Score.of([1.0, 2.0, 6.0], [10, 20, 30])

    assert score.mean == 3.0
    assert score.std == pytest.approx(np.std([1, 2, 6]))
    assert score.low <= score.mean <= score.high
    assert score.episodes == (1.0, 2.0, 6.0)
    assert score.lengths == (10, 20, 30)


def test_a_score_goes_through_json():
    as_dict = Score.of([1.0, 2.0, 6.0], [10, 20, 30]).as_dict()

    assert json.loads(json.dumps(as_dict)) == as_dict
    assert set(as_dict) == {"mean", "std", "low", "high", "episodes", "lengths"}


def test_the_interval_is_that_of_the_mean():
    returns = np.random.default_rng(0).normal(5, 2, size=400).tolist()

    score = Score.of(returns, [1] * 400)

    half = 1.96 * np.std(returns) / np.sqrt(400)
    assert score.low == pytest.approx(score.mean - half, abs=0.2 * half)
    assert score.high == pytest.approx(score.mean + half, abs=0.2 * half)


@pytest.mark.parametrize("returns", [[-21.0], [-21.0] * 8])
def test_the_interval_of_equal_returns_is_a_point(returns):
    score = Score.of(returns, [5] * len(returns))

    assert score.low == score.high == score.mean == -21.0


def test_a_score_without_episodes_is_refused():
    with pytest.raises(InvalidInputError, match="at least one episode"):
        Score.of([], [])


def test_every_env_contributes_its_share_however_short_its_episodes():
    env = CountingVector([1, 60])

    score = evaluate_real(Fixed(), env, episodes=4)

    assert sorted(score.episodes) == [1, 1, 60, 60]
    assert sorted(score.lengths) == [1, 1, 60, 60]


def test_a_share_that_does_not_divide_goes_to_single_envs():
    score = evaluate_real(Fixed(), CountingVector([2, 3, 4]), episodes=5)

    assert sorted(score.episodes) == [2, 3, 3, 4, 4]


def test_more_envs_than_episodes_play_no_more_episodes():
    assert len(evaluate_real(Fixed(), CountingVector([2, 2, 2, 2]), episodes=1).episodes) == 1


def test_the_policy_is_told_where_episodes_begin_and_given_its_state_back():
    policy = Fixed()

    evaluate_real(policy, CountingVector([2, 3]), episodes=2)

    assert [starts.tolist() for starts in policy.starts] == [[True, True], [False, False], [True, False]]
    assert [None if state is None else state.tolist() for state in policy.states] == [None, [1, 1], [2, 2]]


def test_one_seed_gives_one_evaluation_and_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    first, second, third = Sampling(), Sampling(), Sampling()

    evaluate_real(first, CountingVector([9, 9]), episodes=2, seed=1)
    evaluate_real(second, CountingVector([9, 9]), episodes=2, seed=1)
    evaluate_real(third, CountingVector([9, 9]), episodes=2, seed=2)

    assert first.drawn == second.drawn != third.drawn
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert first.action_space.sample() == gym.spaces.Discrete(4, seed=0).sample()


def test_an_env_that_resets_in_the_next_step_is_refused():
    with pytest.raises(InvalidInputError, match="SAME_STEP"):
        evaluate_real(Fixed(), CountingVector([2, 2], AutoresetMode.NEXT_STEP), episodes=2)


def test_no_episodes_are_refused():
    with pytest.raises(InvalidInputError, match="episodes"):
        evaluate_real(Fixed(), CountingVector([2]), episodes=0)


def test_recorded_episodes_are_whole_and_one_after_the_other():
    replay = Replay(100, frame_shape=(1, 2))

    evaluate_real(Fixed(), CountingVector([3, 4]), episodes=4, record=replay, record_episodes=3)

    records = np.arange(len(replay))
    frames = replay.frames_at(records)[:, -1, 0]
    episodes = [
        tuple(map(tuple, part.tolist())) for part in np.split(frames, np.flatnonzero(replay.first_at(records))[1:])
    ]
    assert sorted(episodes) == [
        ((0, 0), (0, 1), (0, 2)),
        ((0, 0), (0, 1), (0, 2)),
        ((1, 0), (1, 1), (1, 2), (1, 3)),
    ]
    ages, lengths = frames[:, 1], np.where(frames[:, 0] == 0, 3, 4)
    assert np.array_equal(replay.first_at(records), ages == 0)
    assert np.array_equal(replay.truncated_at(records), (ages == 2) & (lengths == 3))
    assert np.array_equal(replay.terminated_at(records), (ages == 3) & (lengths == 4))
    assert np.array_equal(replay.life_lost_at(records), ages == 1)
    assert (replay.actions_at(records) == 1).all()
    assert (replay.rewards_at(records) == 1).all()


def test_a_life_lost_with_the_end_of_an_episode_is_recorded():
    replay = Replay(100, frame_shape=(1, 2))

    evaluate_real(Fixed(), CountingVector([2]), episodes=1, record=replay, record_episodes=1)

    assert replay.life_lost_at(np.arange(2)).tolist() == [False, True]


def test_recording_needs_a_replay_and_no_more_episodes_than_are_played():
    with pytest.raises(InvalidInputError, match="record="):
        evaluate_real(Fixed(), CountingVector([2]), episodes=2, record_episodes=1)
    with pytest.raises(InvalidInputError, match="0 to 2"):
        evaluate_real(Fixed(), CountingVector([2]), episodes=2, record=Replay(9, frame_shape=(1, 2)), record_episodes=3)


def test_recording_needs_an_env_that_shows_its_raw_frames():
    env = SyncVectorEnv([lambda: Counting(2)], autoreset_mode=AutoresetMode.SAME_STEP)

    with pytest.raises(InvalidInputError, match="frames"):
        evaluate_real(Fixed(), env, episodes=1, record=Replay(9, frame_shape=(1, 2)), record_episodes=1)


@pytest.mark.parametrize(("horizon", "stagger", "message"), [(None, False, "horizon"), (25, True, "stagger")])
def test_dreams_that_have_no_horizon_or_do_not_start_together_are_refused(horizon, stagger, message):
    env = CountingVector([2])
    env.simulator = SimpleNamespace(horizon=horizon, stagger=stagger)

    with pytest.raises(InvalidInputError, match=message):
        evaluate_dream(Fixed(), env, episodes=1)


def test_random_actions_are_uniform():
    policy = RandomPolicy(gym.spaces.Discrete(3, start=1), seed=0)

    actions, _ = policy.predict(np.zeros((3000, 2)))

    counts = np.bincount(actions, minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 1000) < 120).all()


def test_random_actions_fill_a_box():
    space = gym.spaces.Box(np.array([-1, 2], np.float32), np.array([1, 3], np.float32))

    actions, _ = RandomPolicy(space, seed=0).predict({"observation": np.zeros((500, 2))})

    assert actions.shape == (500, 2)
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions)
    assert np.ptp(actions, axis=0) == pytest.approx([2, 1], rel=0.05)


@pytest.mark.parametrize("space", [gym.spaces.MultiBinary(2), gym.spaces.Box(-np.inf, np.inf, (2,))])
def test_random_actions_need_a_space_to_be_uniform_over(space):
    with pytest.raises(InvalidInputError, match="action_space"):
        RandomPolicy(space, seed=0)


def test_the_random_score_is_that_of_the_real_game():
    first = random_score("Pong", episodes=2, seed=3, num_envs=2, max_episode_steps=150)
    second = random_score("Pong", episodes=2, seed=3, num_envs=2, max_episode_steps=150)

    assert first == second
    assert first.lengths == (150, 150)
    assert -5 <= first.mean < 0


def test_the_random_score_needs_an_env():
    with pytest.raises(InvalidInputError, match="num_envs"):
        random_score("Pong", num_envs=0)


class Watching:
    """Random actions; keeps every observation."""

    def __init__(self):
        self.seen = []
        self.random = RandomPolicy(gym.spaces.Discrete(6), seed=0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.seen.append(observation.copy())
        return self.random.predict(observation)


def test_what_is_recorded_is_what_the_policy_saw_of_the_real_game(tiny_dream):
    env = make_real_env(tiny_dream, num_envs=2, device="cpu", observation="codes", max_episode_steps=30)
    replay = Replay(200)
    policy = Watching()

    score = evaluate_real(policy, env, episodes=4, seed=1, record=replay, record_episodes=2)

    assert score.lengths == (30, 30, 30, 30)
    codes = tiny_dream.world_model.encode(replay.frames_at(np.arange(60))).flatten(1).numpy()
    assert np.array_equal(codes[:30], [seen[0, :, -1] for seen in policy.seen[:30]])
    assert np.array_equal(codes[30:], [seen[1, :, -1] for seen in policy.seen[:30]])
    assert replay.truncated_at(np.arange(60)).nonzero()[0].tolist() == [29, 59]
    assert score.episodes[0] == replay.rewards_at(np.arange(30)).sum()


def test_dreams_are_scored_by_horizon(tiny_dream):
    env = DreamVectorEnv(4, checkpoint=tiny_dream, device="cpu", observation="codes", horizon=10)

    first = evaluate_dream(Watching(), env, episodes=8, seed=3)

    assert len(first.episodes) == 8
    assert max(first.lengths) <= 10
    assert first == evaluate_dream(Watching(), env, episodes=8, seed=3)


def test_the_fidelity_of_a_dream_that_learned_nothing_is_measured(tiny_dream):
    replay = Replay(400)
    env = make_real_env(tiny_dream, num_envs=2, device="cpu", observation="codes", max_episode_steps=120)
    evaluate_real(Watching(), env, episodes=2, seed=1, record=replay, record_episodes=2)

    measured = fidelity(tiny_dream.world_model, replay, context=4, horizon=10, starts=16)

    assert len(measured["code_accuracy"]) == 10
    assert max(measured["code_accuracy"]) < 0.5
    assert measured["events_lost"] > 0
    assert json.loads(json.dumps(measured)) == measured
