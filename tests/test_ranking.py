import json
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy import stats

from dreamgym.envs import DreamVectorEnv
from dreamgym.errors import InvalidInputError
from dreamgym.evaluate import RandomPolicy, Score
from dreamgym.ranking import EpsilonPolicy, Ranking, graded_policies, per_step, rank_correlation, rank_policies
from dreamgym.real_env import make_real_env

ACTIONS = gym.spaces.Discrete(4)


class Target(gym.Env):
    """A reward of `gain` for the action that is right and of `miss` for any other; episodes of one length."""

    observation_space = gym.spaces.Box(0, 255, (1,), np.float32)
    action_space = ACTIONS

    def __init__(self, gain: float, miss: float, length: int):
        self.gain, self.miss, self.length = gain, miss, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.age += 1
        return np.zeros(1, np.float32), self.gain if action == 3 else self.miss, self.age == self.length, False, {}


def world(gain, miss, length):
    return SyncVectorEnv([partial(Target, gain, miss, length)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)


class Right:
    """Always the action that is right."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation), 3), state


def score(*returns, length=10):
    return Score.of(list(returns), [length] * len(returns))


def test_a_dream_that_rewards_what_the_game_rewards_ranks_as_it_does():
    ranking = rank_policies(graded_policies(Right(), ACTIONS), world(1, 0, 200), world(0.3, -0.3, 25))

    assert ranking.correlation == ranking.correlation_per_step == pytest.approx(1)
    assert ranking.low > 0.95 and ranking.high == pytest.approx(1)
    assert [s.mean for s in ranking.real] == sorted([s.mean for s in ranking.real], reverse=True)
    assert ranking.real[0].mean == 200 and ranking.real[-1].mean == pytest.approx(50, abs=5)


def test_a_dream_that_rewards_the_opposite_ranks_the_other_way_round():
    ranking = rank_policies(graded_policies(Right(), ACTIONS), world(1, 0, 200), world(-1, 1, 25))

    assert ranking.correlation == pytest.approx(-1)


def test_a_dream_in_which_nothing_matters_ranks_nothing():
    ranking = rank_policies(graded_policies(Right(), ACTIONS), world(1, 0, 50), world(0, 0, 25), dream_episodes=8)

    assert ranking.correlation is ranking.low is ranking.high is ranking.correlation_per_step is None
    assert json.loads(json.dumps(ranking.as_dict()))["rank_correlation"] is None


def test_policies_that_are_close_leave_a_wide_interval():
    noise = np.random.default_rng(0).normal(0, 5, (2, 8, 6))
    real = tuple(score(*row) for row in noise[0])
    dream = tuple(score(*row) for row in noise[1])

    ranking = Ranking.of(tuple("abcdefgh"), real, dream)

    assert ranking.low < 0 < ranking.high
    assert ranking.low <= ranking.correlation <= ranking.high


def test_returns_per_step_are_compared_too():
    # The longer episode has the greater return, and the smaller one a step.
    real = (score(1, length=10), score(2, length=40), score(3, length=90))
    dream = (score(0.1), score(0.2), score(0.3))

    ranking = Ranking.of(("a", "b", "c"), real, dream)

    assert ranking.correlation == pytest.approx(1)
    assert ranking.correlation_per_step == pytest.approx(-1)


def test_dreams_of_different_lengths_count_by_their_steps():
    assert per_step(Score.of([1.0, 0.0], [5, 45])) == pytest.approx(1 / 50)


def test_ranks_are_those_of_spearman_with_ties_shared():
    random = np.random.default_rng(0)
    for _ in range(20):
        left, right = random.integers(0, 5, (2, 9)).astype(float)
        assert rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)
    assert rank_correlation(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 5.0, 5.0, 6.0])) == pytest.approx(1)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_graded_policies_go_from_the_agent_to_chance_in_equal_steps():
    policies = graded_policies(Right(), ACTIONS, 5)
    observation = np.zeros((4000, 1))

    right = [float((policy.predict(observation)[0] == 3).mean()) for policy in policies.values()]

    assert list(policies) == ["0% random", "25% random", "50% random", "75% random", "100% random"]
    assert right == pytest.approx([1, 1 - 0.25 * 0.75, 1 - 0.5 * 0.75, 1 - 0.75 * 0.75, 0.25], abs=0.03)
    assert right[0] == 1


def test_weaker_policies_take_the_same_random_actions_and_more_of_them():
    observation = np.zeros((500, 1))

    less, more = (EpsilonPolicy(Right(), ACTIONS, epsilon, seed=2).predict(observation)[0] for epsilon in (0.3, 0.6))

    assert np.array_equal(less[less != 3], more[less != 3])
    assert (more != 3).sum() > (less != 3).sum()


def test_controls_are_mixed_as_whole_vectors():
    space = gym.spaces.Box(-1, 1, (3,), np.float32)

    class Still:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.full((len(observation), 3), 2.0, np.float32), state

    actions, _ = EpsilonPolicy(Still(), space, 0.5).predict(np.zeros((200, 1)))

    kept = (actions == 2).sum(1)
    assert actions.dtype == np.float32 and set(kept.tolist()) == {0, 3}
    assert (kept == 3).mean() == pytest.approx(0.5, abs=0.1)


def test_a_recurrent_policy_is_given_its_state_back():
    class Counting:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.zeros(len(observation), np.int64), (np.array([1 if state is None else state[0][0] + 1]),)

    policy = EpsilonPolicy(Counting(), ACTIONS, 1.0)
    _, state = policy.predict(np.zeros((2, 1)))
    _, state = policy.predict(np.zeros((2, 1)), state)

    assert state[0].tolist() == [2]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EpsilonPolicy(Right(), ACTIONS, 1.5), "epsilon: expected 0 to 1"),
        (lambda: EpsilonPolicy(Right(), gym.spaces.MultiBinary(2), 0.5), "action_space"),
        (lambda: graded_policies(Right(), ACTIONS, 2), "at least 3 policies"),
        (lambda: rank_policies({"a": Right()}, world(1, 0, 5), world(1, 0, 5)), "at least 3"),
        (lambda: Ranking.of(("a", "b", "c"), (score(1),) * 3, (score(1),) * 2), "two scores for each"),
    ],
)
def test_what_cannot_be_ranked_is_refused(build, message):
    with pytest.raises(InvalidInputError, match=message):
        build()


def test_the_real_game_and_a_dream_of_it_are_compared_and_one_seed_gives_one_ranking(tiny_dream):
    real = make_real_env(tiny_dream, num_envs=2, device="cpu", observation="codes", max_episode_steps=60)
    dreams = DreamVectorEnv(4, checkpoint=tiny_dream, device="cpu", observation="codes", horizon=5)
    agent = RandomPolicy(real.single_action_space, seed=5)

    def rank():
        policies = graded_policies(agent, real.single_action_space, 3, seed=1)
        agent._random = np.random.default_rng(5)
        return rank_policies(policies, real, dreams, episodes=2, dream_episodes=8, seed=1)

    first = rank()

    assert first == rank()
    found = json.loads(json.dumps(first.as_dict()))
    assert [policy["name"] for policy in found["policies"]] == ["0% random", "50% random", "100% random"]
    assert len(found["policies"][0]["real"]["episodes"]) == 2
    assert len(found["policies"][0]["dream"]["episodes"]) == 8
    assert found["policies"][0]["real_per_step"] == pytest.approx(np.mean(first.real[0].episodes) / 60)
    real.close()
    dreams.close()
