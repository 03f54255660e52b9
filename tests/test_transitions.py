"""Real experience in a replay buffer is what the same steps, played by the algorithm itself, would have put there."""

from typing import Any

import numpy as np
import pytest
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from dreamgym.replay import Replay
from dreamgym.transitions import Transitions, real_transitions, remember

CELLS, STACK = 4, 3
SPACE = spaces.Box(0, 255, (CELLS, STACK), np.uint8)


def experience(ends: dict[int, str], count: int) -> tuple[Replay, np.ndarray]:
    """So many records, some of which end their episode, and a latent for each in which its number can be read."""
    replay = Replay(count, (4, 4))
    first = True
    for index in range(count):
        end = ends.get(index, "")
        frame = np.full((4, 4), index, np.uint8)
        replay.append(
            frame, index % 6, 3.0 * (index % 3 - 1), end == "terminated", end == "truncated", end == "life", first
        )
        first = end in ("terminated", "truncated")
    latents = np.arange(count, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return replay, latents


def shown(observation: np.ndarray) -> list[int]:
    """Numbers of the records in an observation's stack."""
    assert (observation == observation[:1]).all()
    return observation[0].tolist()


def test_stacks_stay_within_an_episode_and_rewards_are_signs():
    replay, latents = experience({3: "terminated"}, 7)
    past = real_transitions(latents, replay, STACK, life_loss_ends=False)
    assert [shown(o) for o in past.observations] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 4, 5]]
    assert [shown(o) for o in past.next_observations][:3] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert shown(past.next_observations[-1]) == [4, 5, 6]
    assert past.rewards.tolist() == [-1, 0, 1, -1, 0, 1]
    assert past.actions.tolist() == [0, 1, 2, 3, 4, 5]
    assert past.terminated.tolist() == [False, False, False, True, False, False]
    # The newest step is open: what came of it is not recorded.
    assert past.broken.tolist() == [False, False, False, False, False, True]


def test_a_time_limit_is_no_end_and_a_lost_life_is_one_where_it_counts():
    replay, latents = experience({1: "truncated", 4: "life", 5: "terminated"}, 6)
    past = real_transitions(latents, replay, STACK, life_loss_ends=False)
    assert past.terminated.tolist() == [False] * 5 + [True]
    assert past.broken.tolist() == [False, True, False, False, False, False]
    counted = real_transitions(latents, replay, STACK, life_loss_ends=True)
    assert counted.terminated.tolist() == [False] * 4 + [True, True]


def test_nothing_played_is_nothing_to_remember():
    past = real_transitions(np.zeros((0, 2, 2), np.uint8), Replay(4, (4, 4)), STACK, life_loss_ends=False)
    assert len(past.rewards) == 0
    buffer = ReplayBuffer(8, SPACE, spaces.Discrete(6), "cpu")
    assert remember(buffer, past) == 0
    assert (buffer.pos, buffer.full) == (0, False)


def played(past: Transitions, buffer: ReplayBuffer) -> None:
    """The same transitions through the buffer's own ``add``."""
    for i in range(len(past.rewards)):
        done = past.terminated[i] | past.broken[i]
        buffer.add(
            past.observations[i][None],
            past.next_observations[i][None],
            past.actions[i][None],
            past.rewards[i][None],
            np.array([done]),
            [{"TimeLimit.truncated": bool(past.broken[i])}],
        )


def test_one_envs_buffer_is_what_its_own_add_makes_of_it():
    replay, latents = experience({3: "terminated", 9: "truncated"}, 20)
    past = real_transitions(latents, replay, STACK, life_loss_ends=False)
    filled, added = (ReplayBuffer(30, SPACE, spaces.Discrete(6), "cpu") for _ in range(2))
    assert remember(filled, past) == 19
    played(past, added)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(filled, name), getattr(added, name)), name
    assert (filled.pos, filled.full) == (added.pos, added.full)


def test_returns_of_several_steps_never_run_from_one_envs_stretch_into_anothers():
    replay, latents = experience({11: "terminated"}, 25)
    past = real_transitions(latents, replay, STACK, life_loss_ends=False)
    buffer: Any = NStepReplayBuffer(40, SPACE, spaces.Discrete(6), "cpu", n_envs=4, n_steps=3, gamma=0.5)
    assert remember(buffer, past) == 24
    assert buffer.pos == 6
    for env in range(4):
        assert [shown(o)[-1] for o in buffer.observations[:6, env]] == list(range(6 * env, 6 * env + 6))
    # Record 4 of the first stretch: two rewards, then what the sixth observation of it led to.
    sample = buffer._get_samples(np.full(64, 4))
    first = (sample.observations[:, 0, -1] == 4).numpy()
    assert first.any()
    rewards = sample.rewards.numpy()[first]
    assert np.allclose(rewards, past.rewards[4] + 0.5 * past.rewards[5])
    assert (sample.next_observations.numpy()[first][:, 0, -1] == 6).all()
    assert (sample.dones.numpy()[first] == 0).all()


def test_where_there_is_no_room_for_all_the_newest_stay():
    replay, latents = experience({}, 20)
    past = real_transitions(latents, replay, STACK, life_loss_ends=False)
    buffer = ReplayBuffer(8, SPACE, spaces.Discrete(6), "cpu", n_envs=2)
    assert remember(buffer, past) == 8
    assert (buffer.pos, buffer.full) == (0, True)
    assert [shown(o)[-1] for o in buffer.observations[:, 1]] == [15, 16, 17, 18]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_an_algorithm_goes_on_where_the_memory_ends(n_steps):
    class Still(stable_baselines3.common.vec_env.VecEnv):
        """An env in which nothing happens."""

        def reset(self):
            return np.zeros((1, CELLS, STACK), np.uint8)

        def step_async(self, actions):
            pass

        def step_wait(self):
            return self.reset(), np.zeros(1, np.float32), np.zeros(1, bool), [{}]

        def close(self): ...
        def get_attr(self, attr_name, indices=None):
            return [None]

        def set_attr(self, attr_name, value, indices=None): ...
        def env_method(self, method_name, *args, indices=None, **kwargs): ...
        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False]

    env = Still(1, SPACE, spaces.Discrete(6))
    agent = stable_baselines3.DQN(
        "MlpPolicy", env, buffer_size=40, learning_starts=0, batch_size=4, train_freq=1, n_steps=n_steps
    )
    replay, latents = experience({}, 21)
    remember(agent.replay_buffer, real_transitions(latents, replay, STACK, life_loss_ends=False))
    agent.learn(5)
    buffer = agent.replay_buffer
    assert buffer is not None
    assert buffer.pos == 25
    assert [shown(o)[-1] for o in buffer.observations[18:22, 0]] == [18, 19, 0, 0]
