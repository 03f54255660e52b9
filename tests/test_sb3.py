"""Stable-Baselines3 on dreams: the vector env's contract, stock algorithms, and networks that read latents."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import COARSE_DYNAMICS, make_tiny_dream
from sb3_contrib import ARS
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from dreamgym import make_sb3_env
from dreamgym.checkpoint import Dream
from dreamgym.errors import ConfigError
from dreamgym.observations import take_rows
from dreamgym.sb3 import (
    CodesExtractor,
    LightExtractor,
    PaperPolicyExtractor,
    codebook_of,
    make_algorithm,
    policy_kwargs_for,
    replace_codebook,
)

FAST: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "A2C": {"n_steps": 8},
    "TRPO": {"n_steps": 8, "batch_size": 16},
    "RecurrentPPO": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "DQN": {"learning_starts": 8, "buffer_size": 64, "batch_size": 8},
    "QRDQN": {"learning_starts": 8, "buffer_size": 64, "batch_size": 8},
    "ARS": {"n_delta": 2, "n_eval_episodes": 4},
}


def sb3_env(dream: Dream | Path, n_envs: int = 4, **settings: Any) -> Any:
    return make_sb3_env(dream, n_envs, **{"device": "cpu", "seed": 3, **settings})


def actions_of(step: int, num_envs: int = 4) -> np.ndarray[Any, Any]:
    return (np.arange(num_envs) + step) % 6


# The vector env


def test_infos_say_how_an_episode_ended(tiny_dream: Dream) -> None:
    for dream, truncated in ((tiny_dream, True), (make_tiny_dream(end_logit=50.0), False)):
        env = sb3_env(dream, horizon=1, stagger=False)
        first = env.reset()
        observation, rewards, dones, infos = env.step(actions_of(0))
        assert dones.tolist() == [True] * 4
        assert rewards.dtype == np.float32
        for row, info in enumerate(infos):
            assert info["TimeLimit.truncated"] is truncated
            assert np.array_equal(info["terminal_observation"][:-32], first[row][32:])
            assert not np.array_equal(info["terminal_observation"], observation[row])
            assert info["age"] == 1
            assert info["episode"]["l"] == 1
            assert info["episode"]["r"] == pytest.approx(rewards[row], abs=1e-5)


def test_infos_are_empty_dicts_of_their_own_while_an_episode_runs(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, stagger=False)
    env.reset()
    infos = env.step(actions_of(0))[3]
    assert infos == [{}] * 4
    assert len({id(info) for info in infos}) == 4


def test_episodes_report_their_return_and_length(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, horizon=5, stagger=False)
    env.reset()
    results = [env.step(actions_of(step)) for step in range(10)]
    for end in (4, 9):
        returns = np.sum([result[1] for result in results[end - 4 : end + 1]], axis=0)
        for row, info in enumerate(results[end][3]):
            assert info["episode"]["l"] == 5
            assert info["episode"]["r"] == pytest.approx(returns[row], abs=1e-4)


@pytest.mark.parametrize("hidden_state", [False, True])
def test_buffers_are_fresh_and_writable(tiny_dream: Dream, hidden_state: bool) -> None:
    env = sb3_env(tiny_dream, horizon=3, hidden_state=hidden_state)

    def flat(observation: Any) -> list[Any]:
        return [value.copy() for value in observation.values()] if hidden_state else [observation.copy()]

    kept = [env.reset()]
    copies = [flat(kept[0])]
    for step in range(6):
        observation, rewards, _, _ = env.step(actions_of(step))
        rewards += 1.0
        kept.append(observation)
        copies.append(flat(observation))
    for observation, copy in zip(kept, copies, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(flat(observation), copy, strict=True))


def test_global_seeding_does_not_change_the_dream_but_its_own_seed_does(tiny_dream: Dream) -> None:
    def rollout(global_seed: int, seed: int | None) -> Any:
        env = sb3_env(tiny_dream, observation="codes")
        PPO("MlpPolicy", env, seed=None, n_steps=8, batch_size=16)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        env.seed(seed)
        env.reset()
        return np.stack([env.step(actions_of(step))[0] for step in range(3)])

    assert np.array_equal(rollout(0, None), rollout(1, None))
    assert np.array_equal(rollout(0, 5), rollout(1, 5))
    assert not np.array_equal(rollout(0, 5), rollout(0, 6))


def test_a_seeded_run_of_an_algorithm_is_repeatable(tiny_dream: Dream) -> None:
    weights: list[torch.Tensor] = []
    for _ in range(2):
        algorithm = make_algorithm("PPO", sb3_env(tiny_dream), 7, "cpu", network="light", **FAST["PPO"]).learn(64)
        weights.append(torch.cat([parameter.flatten() for parameter in algorithm.policy.parameters()]))
    assert torch.equal(*weights)


def test_attributes_and_methods_belong_to_the_batch(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, render_mode="rgb_array")
    env.reset()
    assert env.get_attr("num_envs") == [4] * 4
    assert env.get_attr("num_envs", indices=[0, 2]) == [4, 4]
    assert env.get_attr("num_envs", indices=1) == [4]
    assert not env.has_attr("nonsense")
    env.set_attr("note", "hello")
    assert env.dream_env.note == "hello"
    with pytest.raises(ConfigError, match="one batch"):
        env.set_attr("note", "hello", indices=[1])
    assert len(env.env_method("render")) == 4
    assert env.env_is_wrapped(Monitor) == [True] * 4
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    assert env.render().shape == (768, 768, 3)
    env.close()


def test_options_are_used_once(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream)
    env.set_options({"start": 13})
    env.reset()
    assert [info["start"] for info in env.reset_infos] == [13] * 4
    env.reset()
    assert [info["start"] for info in env.reset_infos] != [13] * 4


def test_ages_are_staggered_unless_asked_otherwise(tiny_dream: Dream) -> None:
    spread, together = sb3_env(tiny_dream, 32), sb3_env(tiny_dream, 32, stagger=False)
    spread.reset()
    together.reset()
    assert len(set(spread.simulator.age.tolist())) > 10
    assert set(together.simulator.age.tolist()) == {0}


def test_sb3s_own_monitor_and_evaluation_work(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, horizon=4, stagger=False)
    algorithm = make_algorithm("A2C", env, 0, "cpu", network="light", **FAST["A2C"])
    returns, lengths = evaluate_policy(algorithm, env, n_eval_episodes=8, return_episode_rewards=True)
    assert lengths == [4] * 8
    assert len(returns) == 8
    with pytest.warns(UserWarning, match="already wrapped"):
        monitored = VecMonitor(env)
    monitored.reset()
    infos = [monitored.step(actions_of(step))[3] for step in range(4)][-1]
    assert infos[0]["episode"]["l"] == 4


# Algorithms


@pytest.mark.parametrize("name", sorted(FAST))
def test_stock_algorithms_learn_in_the_dream_and_play_the_real_game(tiny_run: Path, name: str) -> None:
    env = sb3_env(tiny_run, horizon=5, observation="codes")
    algorithm = make_algorithm(name, env, 0, "cpu", network="light", **FAST[name]).learn(40)
    real = sb3_env(tiny_run, 2, real=True, observation="codes")
    actions, _ = algorithm.predict(real.reset())
    assert real.step(actions)[0].shape == (2, 36, 4)
    algorithm.set_env(sb3_env(tiny_run, observation="codes"))
    algorithm.learn(20, reset_num_timesteps=False)


def test_stock_ppo_learns_without_any_of_our_networks(tiny_run: Path) -> None:
    model = PPO("MlpPolicy", make_sb3_env(tiny_run, n_envs=4, device="cpu"), **FAST["PPO"])
    before = model.policy.action_net.weight.detach().clone()
    assert model.learn(64).num_timesteps == 64
    assert not torch.equal(before, model.policy.action_net.weight)


@pytest.mark.parametrize("hidden_state", [False, True])
@pytest.mark.parametrize("observation", ["embedding", "codes", "pixels"])
def test_the_policy_fits_every_observation(tiny_dream: Dream, observation: str, hidden_state: bool) -> None:
    env = sb3_env(tiny_dream, 2, observation=observation, hidden_state=hidden_state, horizon=4)
    algorithm = make_algorithm("ppo", env, 0, "cpu", network="light", n_steps=4, batch_size=8, n_epochs=1).learn(8)
    extractor = algorithm.policy.features_extractor
    assert isinstance(extractor, CodesExtractor) == (observation == "codes")
    assert isinstance(extractor, LightExtractor) == (observation == "embedding")


@pytest.mark.parametrize("hidden_state", [False, True])
@pytest.mark.parametrize("observation", ["embedding", "codes", "pixels"])
def test_random_search_changes_the_network_that_fits_the_observation(
    tiny_dream: Dream, tmp_path: Path, observation: str, hidden_state: bool
) -> None:
    env = sb3_env(tiny_dream, 2, observation=observation, hidden_state=hidden_state, horizon=4, stagger=False)
    model: Any = make_algorithm("ARS", env, 0, "cpu", network="light", n_delta=2, n_eval_episodes=2)
    extractor = model.policy.features_extractor
    if observation != "pixels":
        assert isinstance(extractor, CodesExtractor if observation == "codes" else LightExtractor)
    before = [parameter.detach().clone() for parameter in extractor.parameters()]
    model.learn(1)
    assert before and not all(torch.equal(a, b) for a, b in zip(before, extractor.parameters(), strict=True))
    model.save(tmp_path / "policy.zip")
    seen = env.reset()
    again = ARS.load(tmp_path / "policy.zip", device="cpu")
    assert np.array_equal(model.predict(seen)[0], again.predict(seen)[0])


@pytest.mark.parametrize("dynamics", COARSE_DYNAMICS)
@pytest.mark.parametrize("observation", ["embedding", "codes", "pixels"])
def test_ppo_learns_with_a_hidden_state_on_a_coarser_grid_than_the_latent(observation: str, dynamics: str) -> None:
    dream = make_tiny_dream(stages=3, dynamics=COARSE_DYNAMICS[dynamics])
    env = sb3_env(dream, 2, observation=observation, hidden_state=True, horizon=4)
    assert env.observation_space["hidden"].shape == (8, 6, 6)
    algorithm: Any = make_algorithm("PPO", env, 0, "cpu", network="light", **FAST["PPO"])
    before = [parameter.detach().clone() for parameter in algorithm.policy.features_extractor.parameters()]
    algorithm.learn(32)
    after = list(algorithm.policy.features_extractor.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert algorithm.predict(sb3_env(dream, 2, observation=observation, hidden_state=True).reset())[0].shape == (2,)


@pytest.mark.parametrize("observation", ["embedding", "codes"])
def test_every_cell_of_a_coarser_hidden_state_stands_beside_the_latents_cells_that_it_covers(observation: str) -> None:
    dream = make_tiny_dream(stages=3, dynamics=COARSE_DYNAMICS["residual"])
    env = sb3_env(dream, 2, observation=observation, hidden_state=True)
    algorithm: Any = make_algorithm("PPO", env, 0, "cpu", network="light", **FAST["PPO"])
    shown: list[torch.Tensor] = []
    extractor = algorithm.policy.features_extractor
    extractor.trunk.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    seen = {name: torch.as_tensor(value) for name, value in env.reset().items()}
    extractor(seen)
    assert shown[0].shape == (2, 4 * 32 + 8, 12, 12)
    embedded = dream.world_model.embed(env.simulator.latents.flatten(0, 1)).reshape(2, 4 * 32, 12, 12)
    assert torch.equal(shown[0][:, :-8], embedded)
    for row in range(12):
        for column in range(12):
            assert torch.equal(shown[0][:, -8:, row, column], seen["hidden"][:, :, row // 2, column // 2])


def test_the_papers_network_is_the_default_with_linear_heads_and_its_initialisation(tiny_dream: Dream) -> None:
    env = sb3_env(make_tiny_dream(frame_stack=4, latent_stack=1), 2)
    algorithm: Any = make_algorithm("PPO", env, 0, "cpu", **FAST["PPO"])
    policy = algorithm.policy
    assert isinstance(policy.features_extractor, PaperPolicyExtractor)
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert count == 1_303_571 - (18 - 6) * 513
    assert not policy.ortho_init
    assert policy.optimizer.defaults["eps"] == 1e-8
    assert isinstance(
        make_algorithm("DQN", env, 0, "cpu", **FAST["DQN"]).policy.q_net.features_extractor, torch.nn.Module
    )


def test_users_policy_settings_go_before_ours(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, 2)
    kwargs = {"policy_kwargs": {"net_arch": [16], "ortho_init": True}}
    algorithm: Any = make_algorithm("PPO", env, 0, "cpu", network="light", **FAST["PPO"], **kwargs)
    assert algorithm.policy.ortho_init
    assert algorithm.policy.net_arch == [16]


def test_codes_and_embeddings_lead_to_the_same_features(tiny_dream: Dream) -> None:
    seen = {kind: sb3_env(tiny_dream, 3, observation=kind) for kind in ("embedding", "codes")}
    by_embedding = PaperPolicyExtractor(seen["embedding"].observation_space)
    by_codes = CodesExtractor(seen["codes"].observation_space, codebook_of(tiny_dream.world_model), (6, 6))
    by_codes.trunk.load_state_dict(by_embedding.trunk.state_dict())
    features = by_embedding(torch.from_numpy(seen["embedding"].reset()))
    # Codes are looked up in a table of the first convolution: the same sum in another order.
    torch.testing.assert_close(features, by_codes(torch.from_numpy(seen["codes"].reset()).float()))


def test_the_codebook_is_frozen_and_can_be_replaced_after_a_refit(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, 2, observation="codes")
    algorithm: Any = make_algorithm("DQN", env, 0, "cpu", network="light", **FAST["DQN"]).learn(16)
    books = [module.codebook for module in algorithm.policy.modules() if isinstance(module, CodesExtractor)]
    assert len(books) == 2  # the network and its target
    assert all(torch.equal(book, codebook_of(tiny_dream.world_model)) for book in books)
    tiny_dream.world_model.codec.quantizer.codes.mul_(2.0)
    replace_codebook(algorithm, tiny_dream.world_model)
    assert all(torch.equal(book, codebook_of(tiny_dream.world_model)) for book in books)


def test_a_saved_policy_plays_again(tiny_dream: Dream, tmp_path: Path) -> None:
    env = sb3_env(tiny_dream, 2, observation="codes")
    algorithm = make_algorithm("PPO", env, 0, "cpu", network="light", **FAST["PPO"])
    algorithm.save(tmp_path / "policy.zip")
    loaded = PPO.load(tmp_path / "policy.zip", device="cpu")
    observation = env.reset()
    ours, theirs = (model.predict(observation, deterministic=True)[0] for model in (algorithm, loaded))
    assert np.array_equal(ours, theirs)


def test_gymnasiums_single_env_serves_sb3s_own_vector_env(tiny_run: Path) -> None:
    env = DummyVecEnv([lambda: gym.make("Dream-Pong-v0", checkpoint=tiny_run, device="cpu")] * 2)
    assert make_algorithm("PPO", env, 0, "cpu", network="light", **FAST["PPO"]).learn(16).num_timesteps == 16
    single = gym.make("Dream-Pong-v0", checkpoint=tiny_run, device="cpu")
    assert PPO("MlpPolicy", single, n_steps=8, batch_size=8).learn(8).num_timesteps == 8


def test_unknown_algorithms_and_networks_list_the_known_ones(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, 2)
    with pytest.raises(ConfigError, match=r"expected one of A2C, ARS, .*PPO, .*, got 'PPOO'"):
        make_algorithm("PPOO", env)
    with pytest.raises(ConfigError, match="network: expected one of 'paper', 'light', got 'heavy'"):
        policy_kwargs_for(env, "heavy")


def test_algorithms_for_other_actions_are_refused(tiny_dream: Dream) -> None:
    with pytest.raises(ConfigError, match="SAC cannot act in this env"):
        make_algorithm("SAC", sb3_env(tiny_dream, 2), device="cpu")
    with pytest.raises(ConfigError, match="TQC cannot act in this env"):
        make_algorithm("TQC", sb3_env(tiny_dream, 2), device="cpu")
    with pytest.raises(ConfigError, match="n_stepps"):
        make_algorithm("PPO", sb3_env(tiny_dream, 2), device="cpu", n_stepps=8)


def test_the_real_game_has_the_dreams_spaces(any_dream: Dream) -> None:
    for settings in ({}, {"observation": "codes", "latent_stack": 2}, {"hidden_state": True}):
        dream, real = sb3_env(any_dream, 2, **settings), sb3_env(any_dream, 2, real=True, **settings)
        assert real.observation_space.contains(take_rows(real.reset(), 0))
        assert dream.observation_space == real.observation_space
        assert dream.action_space == real.action_space


def test_episodes_of_the_real_game_end_with_their_last_observation(tiny_dream: Dream) -> None:
    env = sb3_env(tiny_dream, 2, real=True, max_episode_steps=2)
    env.reset()
    env.step(np.array([0, 0]))
    observation, _, dones, infos = env.step(np.array([2, 3]))
    assert dones.all()
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 2
    assert "lives" in infos[0]
    assert not np.array_equal(infos[0]["terminal_observation"], observation[0])


def test_gymnasiums_name_for_the_number_of_envs_is_corrected(tiny_dream: Dream) -> None:
    with pytest.raises(ConfigError, match="n_envs"):
        make_sb3_env(tiny_dream, num_envs=4)
