"""Dreams in other processes and threads, and beside each other in one."""

import pickle
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_tiny_dream
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from dreamgym import DreamSimulator, DreamVectorEnv
from dreamgym.checkpoint import save_dream


class MakeDream:
    """What a new process is told: it imports dreamgym by itself."""

    def __init__(self, run: Path, seed: int) -> None:
        self.run, self.seed = str(run), seed

    def __call__(self) -> Any:
        torch.set_num_threads(1)
        return gym.make("dreamgym:Dream-Pong-v0", checkpoint=self.run, device="cpu", seed=self.seed)


def alone(run: Path, seed: int, actions: list[int]) -> list[Any]:
    env = MakeDream(run, seed)()
    shown = [env.reset()[0]]
    shown += [env.step(action)[0] for action in actions]
    env.close()
    return shown


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_dreams_in_processes_of_their_own_are_those_of_this_one(tiny_run: Path, context: str) -> None:
    makers, actions = [MakeDream(tiny_run, seed) for seed in (1, 2)], [1, 4, 2]
    expected = [alone(tiny_run, seed, actions) for seed in (1, 2)]
    envs = AsyncVectorEnv(makers, context=context)
    shown = [envs.reset()[0].copy()]
    shown += [envs.step(np.array([action, action]))[0].copy() for action in actions]
    envs.close()
    for step, both in enumerate(shown):
        assert all(np.array_equal(both[i], expected[i][step]) for i in (0, 1))


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_stable_baselines_processes_dream_the_same(tiny_run: Path, start_method: str) -> None:
    expected = alone(tiny_run, 1, [1, 4])
    envs = SubprocVecEnv([MakeDream(tiny_run, 1)], start_method=start_method)
    shown = [envs.reset()[0].copy(), *(envs.step(np.array([action]))[0][0].copy() for action in (1, 4))]
    envs.close()
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_an_envs_spec_can_be_pickled_and_makes_the_same_env(tiny_run: Path) -> None:
    env = gym.make("Dream-Pong-v0", checkpoint=str(tiny_run), device="cpu", seed=5)
    assert env.spec is not None
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert np.array_equal(env.reset()[0], again.reset()[0])
    assert np.array_equal(env.step(2)[0], again.step(2)[0])
    from_json = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert from_json.observation_space == env.observation_space


def played(simulator: DreamSimulator, steps: int) -> list[torch.Tensor]:
    shown = [simulator.reset().clone()]
    for step in range(steps):
        shown.append(simulator.step(torch.full((simulator.num_envs,), step % 6)).latents)
    return shown


def simulator_of(dream: Any, seed: int = 3) -> DreamSimulator:
    return DreamSimulator(dream.world_model, dream.starts, num_envs=4, seed=seed)


def test_two_dreams_in_one_process_share_no_state(tmp_path: Path) -> None:
    files = [save_dream(tmp_path / name, make_tiny_dream(starts=starts)) for name, starts in (("a", 40), ("b", 24))]

    def env(file: Path) -> DreamVectorEnv:
        return DreamVectorEnv(3, checkpoint=file, device="cpu", seed=7, observation="codes")

    def seen(which: DreamVectorEnv) -> Any:
        return which.step(np.array([1, 2, 3]))[0]

    expected = []
    for file in files:
        single = env(file)
        expected.append([single.reset()[0], *(seen(single) for _ in range(6))])
    first, second = map(env, files)
    both = [[first.reset()[0]], [second.reset()[0]]]
    for _ in range(6):
        both[0].append(seen(first))
        both[1].append(seen(second))
    # What is done to one's networks is not done to the other's.
    for found, wanted in zip(both, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        first.dream.world_model.codec.quantizer.codes.zero_()
    assert bool(second.dream.world_model.codec.quantizer.codes.any())


def test_simulators_of_one_world_model_can_be_stepped_in_threads_of_their_own() -> None:
    dream = make_tiny_dream()
    expected = [played(simulator_of(dream, seed), 30) for seed in range(4)]
    found: dict[int, list[torch.Tensor]] = {}
    simulators = [simulator_of(dream, seed) for seed in range(4)]

    def work(seed: int) -> None:
        found[seed] = played(simulators[seed], 30)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, wanted in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(found[seed], wanted, strict=True))
