import pickle
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

import dreamgym
from dreamgym.agent import (
    POLICY_FILE,
    ExploringPolicy,
    load_agent,
    load_parameters,
    make_agent,
    policy_tensors,
    save_agent,
    set_parameters,
)
from dreamgym.checkpoint import Dream, save_dream
from dreamgym.config import OffPolicyConfig, PPOConfig, RunConfig
from dreamgym.errors import CheckpointError, ConfigError, MissingWeightsError
from dreamgym.run_folder import RunFolder
from dreamgym.sb3 import codebook_of, make_sb3_env

PPO = RunConfig(network="light", ppo=PPOConfig(n_steps=8, batch_size=8))
DQN = replace(PPO, algo="DQN")


def agent_of(config, dream=None, seed=0):
    env = make_sb3_env(dream or make_tiny_dream(), 2, observation=config.observation, seed=0, device="cpu")
    return make_agent(config, env, seed)


def make_run(folder, config, dream=None, agent=None):
    """A run folder with settings, a dream and an agent."""
    RunFolder(folder).begin(config, resume=False)
    save_dream(folder, dream or make_tiny_dream())
    save_agent(folder / POLICY_FILE, agent or agent_of(config, dream))
    return folder


def observe(agent, count=64):
    agent.env.seed(0)
    return np.repeat(agent.env.reset()[:1], count, axis=0)


def test_other_algorithms_are_set_for_many_short_dreams():
    trpo = agent_of(replace(PPO, algo="TRPO"))
    assert (trpo.n_steps, trpo.batch_size) == (8, 8)
    dqn = agent_of(replace(DQN, imagined_steps=(800,)))
    assert (dqn.learning_starts, dqn.gradient_steps, dqn.train_freq.frequency) == (200, 16, 1)
    assert agent_of(replace(PPO, algo="A2C", ppo=replace(PPO.ppo, gamma=0.5))).gamma == 0.5


def test_an_algorithm_that_needs_action_masks_is_refused():
    with pytest.raises(ConfigError, match="PPO"):
        agent_of(replace(PPO, algo="MaskablePPO"))


def test_the_runs_hyperparameters_reach_ppo():
    agent = agent_of(replace(PPO, ppo=PPOConfig(n_steps=8, batch_size=8, gamma=0.5, vf_coef=0.125, learning_rate=1e-5)))
    assert (agent.gamma, agent.vf_coef, agent.learning_rate, agent.n_steps) == (0.5, 0.125, 1e-5, 8)


def test_temperature_flattens_the_policy_as_dividing_its_logits_does():
    agent = agent_of(PPO)
    bias = torch.log(torch.tensor([0.7, 0.1, 0.05, 0.05, 0.05, 0.05]))
    with torch.no_grad():
        agent.policy.action_net.weight.zero_()
        agent.policy.action_net.bias.copy_(bias)
    seen = observe(agent, 6000)
    for temperature in (1.0, 2.0):
        torch.manual_seed(0)
        actions, _ = ExploringPolicy(agent, temperature, 0.0, 0).predict(seen)
        share = np.bincount(actions, minlength=6) / len(actions)
        assert share == pytest.approx(torch.softmax(bias / temperature, 0).numpy(), abs=0.025)


def test_exploring_leaves_no_hook_behind_even_when_the_policy_fails():
    agent = agent_of(PPO)
    policy = ExploringPolicy(agent, 2.0, 0.0, 0)
    policy.predict(observe(agent, 1))
    with pytest.raises((ValueError, RuntimeError)):
        policy.predict(np.zeros((1, 2), np.float32))
    assert not agent.policy.action_net._forward_hooks


def test_an_agent_that_remembers_acts_before_it_learns_as_it_does_afterwards():
    agent = agent_of(replace(DQN, off_policy=OffPolicyConfig(epsilon=0.125, batch_size=4)))
    assert agent.exploration_rate == 0.125
    agent.learn(8)
    assert agent.exploration_rate == 0.125


def test_a_policy_without_logits_explores_by_chance():
    agent = agent_of(replace(DQN, off_policy=OffPolicyConfig(epsilon=0.0)))
    seen = observe(agent, 2000)
    greedy, _ = ExploringPolicy(agent, 2.0, 0.0, 0).predict(seen)
    assert len(set(greedy.tolist())) == 1
    explored, _ = ExploringPolicy(agent, 2.0, 0.6, 0).predict(seen)
    assert (explored != greedy[0]).mean() == pytest.approx(0.6 * 5 / 6, abs=0.04)


def test_a_policy_with_logits_does_not_explore_by_chance_as_well():
    agent = agent_of(PPO)
    with torch.no_grad():
        agent.policy.action_net.weight.zero_()
        agent.policy.action_net.bias.copy_(torch.tensor([99.0, 0, 0, 0, 0, 0]))
    actions, _ = ExploringPolicy(agent, 1.0, 1.0, 0).predict(observe(agent))
    assert not actions.any()


@pytest.mark.parametrize("kind", ["run", "file"])
@pytest.mark.parametrize("config", [PPO, DQN], ids=["PPO", "DQN"])
def test_an_agent_comes_back_from_its_run_or_file_without_a_pickle_being_opened(tmp_path, monkeypatch, config, kind):
    dream = make_tiny_dream()
    agent = agent_of(config, dream, seed=7)
    run = make_run(tmp_path / "run", config, dream, agent)
    single = Dream(dream.world_model, dream.starts, 4, {"config": config.to_json()}, policy_tensors(agent))
    source = run if kind == "run" else save_dream(tmp_path / "Pong.safetensors", single)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", refuse)
        patch.setattr(pickle, "load", refuse)
        loaded = load_agent(source, device="cpu")
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2] == after[2]
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, loaded.policy.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["run", "file"])
def test_an_agent_that_was_trained_on_embeddings_acts_on_codes(tmp_path, kind):
    dream = make_tiny_dream()
    env = make_sb3_env(dream, 64, observation="embedding", device="cpu")
    trained = make_agent(PPO, env, 7)
    run = make_run(tmp_path / "run", PPO, dream, trained)
    single = Dream(dream.world_model, dream.starts, 4, {"config": PPO.to_json()}, policy_tensors(trained))
    source = run if kind == "run" else save_dream(tmp_path / "Pong.safetensors", single)
    agent = load_agent(source, device="cpu")
    codes = make_sb3_env(dream, 64, observation="codes", device="cpu")
    for same in (env, codes):
        same.seed(0)
    expected, _ = trained.predict(env.reset(), deterministic=True)
    assert np.array_equal(agent.predict(codes.reset(), deterministic=True)[0], expected)


def test_a_file_that_holds_a_codebook_beside_its_policy_is_read_too(tmp_path):
    agent, dream = agent_of(PPO, seed=7), make_tiny_dream()
    outdated = {"features_extractor.codebook": torch.zeros_like(codebook_of(dream.world_model))}
    loaded = load_agent(file_with(tmp_path, policy_tensors(agent) | outdated, {"config": PPO.to_json()}), device="cpu")
    assert torch.equal(loaded.policy.features_extractor.codebook, codebook_of(dream.world_model))
    assert torch.equal(loaded.policy.action_net.weight, agent.policy.action_net.weight)


def test_an_agent_that_sees_codes_looks_them_up_in_the_refitted_codebook():
    trained = agent_of(DQN, make_tiny_dream())
    refitted = make_tiny_dream()
    refitted.world_model.codec.quantizer.codes.add_(1.0)
    agent = agent_of(DQN, refitted, seed=1)
    set_parameters(agent, trained.get_parameters(), refitted.world_model)
    for network in (agent.policy.q_net, agent.policy.q_net_target):
        assert torch.equal(network.features_extractor.codebook, codebook_of(refitted.world_model))
        assert torch.equal(network.q_net[0].weight, trained.policy.q_net.q_net[0].weight)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "flipped", "pickle"])
def test_a_damaged_policy_is_refused_and_named(tmp_path, damage):
    path = tmp_path / POLICY_FILE
    save_agent(path, agent_of(PPO))
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        path.write_bytes(b"no zip")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("policy.pth").header_offset + 2000
        content[start : start + 50] = bytes(50 * [255])
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("policy.pth", pickle.dumps(zipfile.ZipFile))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_parameters(path)
    assert str(path) in str(caught.value)


def test_a_missing_policy_says_how_to_train_one(tmp_path):
    with pytest.raises(MissingWeightsError, match="dreamgym train"):
        load_parameters(tmp_path / POLICY_FILE)


def test_a_policy_of_another_network_is_refused(tmp_path):
    run = make_run(tmp_path / "run", replace(PPO, network="paper"), agent=agent_of(PPO))
    with pytest.raises(CheckpointError, match=r"policy\.zip.*does not fit"):
        load_agent(run, device="cpu")


def test_a_trunk_that_actor_and_critic_share_is_stored_once():
    agent = agent_of(PPO)
    stored = policy_tensors(agent)
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in agent.policy.parameters())
    assert len(stored) < len(agent.policy.state_dict())


def file_with(path, policy, metadata):
    dream = make_tiny_dream()
    return save_dream(path / "Pong.safetensors", Dream(dream.world_model, dream.starts, 4, metadata, policy))


def spoil(policy, damage):
    name = next(iter(policy))
    changed = {
        "missing": {key: value for key, value in policy.items() if key != name},
        "reshaped": {**policy, name: policy[name][:-1].clone()},
        "unknown": {**policy, "more": torch.zeros(2)},
    }
    return changed[damage]


@pytest.mark.parametrize("damage", ["missing", "reshaped", "unknown"])
def test_a_file_whose_policy_is_not_that_of_its_settings_is_refused_and_named(tmp_path, damage):
    file = file_with(tmp_path, spoil(policy_tensors(agent_of(PPO)), damage), {"config": PPO.to_json()})
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_agent(file, device="cpu")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("metadata", [{}, {"config": None}, {"config": {"colour": "red"}}], ids=str)
def test_a_file_whose_policys_settings_cannot_be_read_is_refused_and_named(tmp_path, metadata):
    file = file_with(tmp_path, policy_tensors(agent_of(PPO)), metadata)
    with pytest.raises(CheckpointError, match="settings of its policy") as caught:
        load_agent(file, device="cpu")
    assert str(file) in str(caught.value)


def test_a_dream_without_a_policy_says_so(tmp_path):
    file = file_with(tmp_path, {}, {})
    (tmp_path / POLICY_FILE).write_bytes(b"of somebody else")
    with pytest.raises(MissingWeightsError, match=r"Pong\.safetensors is a dream but comes with no agent"):
        load_agent(file, device="cpu")
    with pytest.raises(MissingWeightsError, match="dreamgym train"):
        load_agent("Zaxxon", checkpoint=tmp_path / "nowhere")


def test_an_agent_is_found_by_its_games_id_and_not_taken_for_another_games(tmp_path, monkeypatch):
    make_run(tmp_path / "home" / "pong", PPO)
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    agent = dreamgym.load_agent("Dream-Pong-v0", device="cpu")
    assert agent.predict(observe(agent, 3))[0].shape == (3,)
    with pytest.raises(ConfigError, match=r"dream of Boxing.*one of Pong"):
        dreamgym.load_agent("Dream-Boxing-v0", checkpoint=tmp_path / "home" / "pong", device="cpu")
