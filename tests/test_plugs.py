"""Other libraries, as they are, on dreams: algorithms, wrappers, training loops, and games that are not Atari's."""

import re
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.wrappers import NumpyToTorch, RecordEpisodeStatistics, RecordVideo, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecNormalize

from dreamgym import make_real_env, make_sb3_env
from dreamgym.cli import main
from dreamgym.config import make_config
from dreamgym.errors import ConfigError, UnknownSettingError
from dreamgym.loop import game_actions
from dreamgym.real import make_game_env
from dreamgym.sb3 import make_algorithm

ROLLOUTS: dict[str, Any] = {"n_steps": 8, "batch_size": 16}
REPLAYS: dict[str, Any] = {"learning_starts": 8, "buffer_size": 64, "batch_size": 8}
STOCK: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "A2C": (stable_baselines3.A2C, "MlpPolicy", {"n_steps": 8}),
    "DQN": (stable_baselines3.DQN, "MlpPolicy", REPLAYS),
    "QRDQN": (sb3_contrib.QRDQN, "MlpPolicy", REPLAYS),
    "TRPO": (sb3_contrib.TRPO, "MlpPolicy", ROLLOUTS),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", {**ROLLOUTS, "n_epochs": 1}),
    "ARS": (sb3_contrib.ARS, "LinearPolicy", {"n_delta": 2, "n_eval_episodes": 4}),
}
"""Class, policy and small settings; PPO is in test_sb3."""


def single(run: Path, **settings: Any) -> gym.Env[Any, Any]:
    return gym.make("Dream-Pong-v0", checkpoint=run, **{"device": "cpu", "horizon": 4, **settings})


def many(run: Path, num_envs: int = 3, **settings: Any) -> Any:
    settings = {"device": "cpu", "horizon": 4, **settings}
    return gym.make_vec("Dream-Pong-v0", num_envs=num_envs, checkpoint=run, **settings)


def frames_of(video: Path) -> list[Any]:
    opened = cv2.VideoCapture(str(video))
    frames: list[Any] = []
    while (read := opened.read())[0]:
        frames.append(read[1])
    return frames


# Stable-Baselines3 and sb3-contrib


@pytest.mark.parametrize("name", STOCK)
def test_stock_algorithms_learn_with_their_own_networks(smoke_run: Path, name: str) -> None:
    kind, policy, settings = STOCK[name]
    model = kind(policy, make_sb3_env(smoke_run, 4, device="cpu", seed=0), seed=0, device="cpu", **settings)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    assert model.learn(64).num_timesteps >= 64
    assert not all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


def test_stock_ppo_learns_from_decoded_frames(smoke_run: Path) -> None:
    env = make_sb3_env(smoke_run, 2, device="cpu", observation="pixels")
    model = stable_baselines3.PPO("CnnPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu")
    assert model.learn(8).num_timesteps == 8


def test_sb3s_wrappers_and_callbacks_take_the_dream_and_the_real_game(smoke_run: Path, tmp_path: Path) -> None:
    env = VecNormalize(make_sb3_env(smoke_run, 4, device="cpu", observation="codes"), norm_obs=False)
    other = VecNormalize(make_sb3_env(smoke_run, 2, device="cpu", observation="codes", stagger=False), norm_obs=False)
    callback = EvalCallback(other, n_eval_episodes=2, eval_freq=8, log_path=str(tmp_path), verbose=0)
    stable_baselines3.A2C("MlpPolicy", env, n_steps=8, device="cpu").learn(64, callback=callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["timesteps"].tolist() == [32, 64]
    assert scores["ep_lengths"].tolist() == [[10, 10]] * 2


# Gymnasium's wrappers


def test_wrappers_of_one_env_go_around_a_dream(smoke_run: Path, tmp_path: Path) -> None:
    plain = single(smoke_run, horizon=9)
    env = TimeLimit(single(smoke_run, horizon=9, render_mode="rgb_array"), max_episode_steps=5)
    env = NumpyToTorch(
        RecordEpisodeStatistics(RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda _: True))
    )
    expected, _ = plain.reset(seed=3)
    observation, _ = env.reset(seed=3)
    total = 0.0
    for step in range(1, 6):
        assert isinstance(observation, torch.Tensor) and np.array_equal(observation.numpy(), expected)
        expected, wanted, *_ = plain.step(step % 6)
        observation, reward, terminated, truncated, info = env.step(torch.tensor(step % 6))
        assert float(reward) == wanted
        total += wanted
        assert (terminated, truncated) == (False, step == 5)
    assert float(info["episode"]["r"]) == pytest.approx(total, abs=1e-5)
    assert int(info["episode"]["l"]) == 5
    shown = np.asarray(env.render())
    env.close()
    frames = frames_of(tmp_path / "videos" / "rl-video-episode-0.mp4")
    assert [frame.shape for frame in frames] == [(384, 384, 3)] * 6
    # What a video does to colours is little; OpenCV's are blue, green, red, and these are grey.
    assert np.abs(frames[-1].astype(int) - shown).mean() < 4


def test_the_limit_of_gym_make_is_gymnasiums_own_wrapper(smoke_run: Path) -> None:
    env = single(smoke_run, max_episode_steps=2)
    assert isinstance(env, TimeLimit)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]


def recorded(run: Path, folder: Path, mode: str) -> Any:
    """Dreams, four steps long, whose first episode is filmed and whose episodes are counted."""
    env = many(run, autoreset_mode=mode, render_mode="rgb_array")
    env = vector_wrappers.RecordVideo(env, str(folder / mode), episode_trigger=lambda episode: episode == 0)
    return vector_wrappers.RecordEpisodeStatistics(env)


@pytest.mark.filterwarnings("ignore:.*same-step.*last frame")
def test_wrappers_of_vector_envs_go_around_dreams_that_begin_anew(smoke_run: Path, tmp_path: Path) -> None:
    plain, env = many(smoke_run), recorded(smoke_run, tmp_path, "same_step")
    expected, observation = plain.reset(seed=3)[0], env.reset(seed=3)[0]
    returns = np.zeros(3)
    for step in range(4):
        assert np.array_equal(observation, expected)
        expected, rewards, _, truncated, infos = plain.step((np.arange(3) + step) % 6)
        observation, _, _, ended, seen = env.step((np.arange(3) + step) % 6)
        returns += rewards
    assert truncated.all() and ended.all()
    assert all(np.array_equal(a, b) for a, b in zip(seen["final_obs"], infos["final_obs"], strict=True))
    assert seen["episode"]["l"].tolist() == [4] * 3
    assert np.allclose(seen["episode"]["r"], returns, atol=1e-5)
    env.close()
    frames = frames_of(next((tmp_path / "same_step").glob("*.mp4")))
    assert len(frames) == 4 and frames[0].std() > 0  # Gymnasium's own leaves the last out here


def test_wrappers_of_vector_envs_go_around_dreams_that_are_reset_by_mask(smoke_run: Path, tmp_path: Path) -> None:
    plain = many(smoke_run, autoreset_mode="disabled")
    env = vector_wrappers.NumpyToTorch(recorded(smoke_run, tmp_path, "disabled"))
    expected, observation = plain.reset(seed=3)[0], env.reset(seed=3)[0]
    for step in range(4):
        assert isinstance(observation, torch.Tensor) and np.array_equal(observation.numpy(), expected)
        actions = (np.arange(3) + step) % 6
        expected, rewards, _, _, _ = plain.step(actions)
        observation, got, terminated, truncated, infos = env.step(torch.from_numpy(actions))
        assert np.array_equal(got.numpy(), rewards)
    assert truncated.tolist() == [True] * 3 and terminated.tolist() == [False] * 3
    assert infos["episode"]["l"].tolist() == [4] * 3
    mask = np.ones(3, dtype=np.bool_)
    expected = plain.reset(options={"reset_mask": mask})[0]
    observation, _ = env.reset(options={"reset_mask": torch.from_numpy(mask)})
    assert np.array_equal(observation.numpy(), expected)
    env.close()
    assert len(frames_of(next((tmp_path / "disabled").glob("*.mp4")))) == 5


def test_dreams_that_are_tensors_already_need_no_conversion(smoke_run: Path) -> None:
    env = many(smoke_run, array="torch")
    observation, _ = env.reset(seed=0)
    assert isinstance(observation, torch.Tensor)
    assert all(isinstance(value, torch.Tensor) for value in env.step(torch.zeros(3, dtype=torch.int64))[:4])


# TorchRL


@pytest.mark.parametrize("observation", ["embedding", "codes", "pixels"])
def test_torchrl_wraps_a_dream(smoke_run: Path, observation: str) -> None:
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(single(smoke_run, observation=observation, hidden_state=observation == "codes"))
    check_env_specs(env)
    rollout = env.rollout(10)
    assert rollout.shape == (4,) and rollout["next", "truncated"][:, 0].tolist() == [False] * 3 + [True]
    assert ("hidden" in set(rollout.keys())) == (observation == "codes")


def test_torchrl_makes_a_dream_by_its_id(smoke_run: Path) -> None:
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    # It tries settings that dreams do not have, and goes on without those that are refused as Python does it.
    env = GymEnv("Dream-Pong-v0", checkpoint=str(smoke_run), horizon=4, from_pixels=True, pixels_only=False)
    check_env_specs(env)
    assert env.rollout(10)["pixels"].shape == (4, 384, 384, 3)
    with pytest.raises(UnknownSettingError, match="frameskip"):
        single(smoke_run, frameskip=1)
    assert issubclass(UnknownSettingError, ConfigError) and issubclass(UnknownSettingError, TypeError)


@pytest.mark.parametrize(("mode", "array"), [("disabled", "numpy"), ("disabled", "torch"), ("same_step", "torch")])
def test_torchrl_wraps_many_dreams(smoke_run: Path, mode: str, array: str) -> None:
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(many(smoke_run, autoreset_mode=mode, array=array))
    check_env_specs(env)
    rollout = env.rollout(10, break_when_any_done=False)
    assert rollout.shape == (3, 10)
    ends = rollout["next", "truncated"][..., 0]
    assert ends.tolist() == [[step % 4 == 3 for step in range(10)]] * 3
    # What a dream ended with and what the next began with are told apart.
    last, first = rollout["next", "observation"][:, 3], rollout["observation"][:, 4]
    assert not torch.equal(last, first)
    assert torch.equal(rollout["next", "observation"][:, 2], rollout["observation"][:, 3])


# Any dream by one id


def test_one_id_stands_for_any_dream(smoke_run: Path) -> None:
    env = gym.make("Dream-v0", checkpoint=smoke_run, device="cpu")
    assert env.spec is not None and env.spec.id == "Dream-v0"
    assert np.array_equal(env.reset(seed=2)[0], single(smoke_run).reset(seed=2)[0])
    assert gym.make_vec("Dream-v0", num_envs=2, game=str(smoke_run), device="cpu").num_envs == 2
    with pytest.raises(ConfigError, match="Which dream"):
        gym.make("Dream-v0")


# Games that are not Atari's

DOCS = Path(__file__).parent.parent / "docs"
SMALLEST = (
    *("--preset", "smoke", "--rounds", "1", "--codec-updates", "12", "--dynamics-updates", "4"),
    *("--imagined-steps", "80", "--ppo.n-steps", "5", "--ppo.batch-size", "40", "--collect.first-steps", "60"),
    *("--evaluate.final-episodes", "1", "--evaluate.num-envs", "1", "--evaluate.dream-episodes", "4"),
    *("--device", "cpu"),
)


def test_a_dream_of_a_game_that_is_not_ataris_is_trained_from_its_id_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *_ = re.findall(r"```python\n# car_racing.py\n(.*?)```", (DOCS / "any_env.md").read_text(), re.DOTALL)
    assert "1_000" in module
    (tmp_path / "car_racing.py").write_text(module.replace("1_000", "40"))
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "car"
    assert main(["train", "--game", "car_racing:CarRacingDiscrete-v0", "--out", str(run), *SMALLEST]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "1", "--json"]) == 0
    assert '"real"' in capsys.readouterr().out
    env = gym.make("Dream-v0", checkpoint=run, device="cpu")
    real = make_real_env(run, device="cpu")
    assert env.action_space == real.action_space == gym.spaces.Discrete(5)
    assert env.observation_space == real.observation_space
    model = make_algorithm("PPO", make_sb3_env(run, 2, device="cpu"), device="cpu", n_steps=4, batch_size=8)
    actions, _ = model.learn(8).predict(real.reset(seed=0)[0])
    assert real.step(actions)[0].shape == real.observation_space.shape


def test_a_game_with_continuous_actions_is_known_by_its_id() -> None:
    env = make_game_env("CarRacing-v3")
    assert env.reset(seed=0)[0].shape == (1, 96, 96)
    assert game_actions(make_config("smoke", game="CarRacing-v3")) == gym.spaces.Box(
        np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)
    )
