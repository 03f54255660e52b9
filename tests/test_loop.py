import json
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import stable_baselines3
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dreamgym.checkpoint
import dreamgym.loop
import dreamgym.provenance
import dreamgym.replay
import dreamgym.run_folder
from dreamgym.agent import load_agent, read_agent
from dreamgym.checkpoint import load_dream
from dreamgym.config import CollectConfig, DreamConfig, EvaluateConfig, PPOConfig, RunConfig, make_config
from dreamgym.errors import CheckpointError, ConfigError, ReplayError
from dreamgym.evaluate import evaluate_real
from dreamgym.export import export_dream
from dreamgym.fit import FitConfig, Fitter
from dreamgym.held_out import missing_episodes
from dreamgym.loop import train
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.real_env import make_real_env
from dreamgym.replay import Replay
from dreamgym.run_folder import Progress, RunFolder, derive_seed

PHASES = ("collect", "fit", "train", "evaluate")


class Walk(gym.Env[Any, Any]):
    """A dot that walks left or right from the middle: reward 1 at the right end, -1 at the left one."""

    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)

    def __init__(self, continuous: bool = False, length: int = 20, render_mode: str | None = None) -> None:
        self.length, self.render_mode = length, render_mode
        self.action_space = gym.spaces.Box(-2.0, 1.0, (1,), np.float32) if continuous else gym.spaces.Discrete(2)

    def _show(self):
        image = np.full((32, 32, 3), 90, np.uint8)
        image[14:18, self.place : self.place + 3] = 220
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(12, 18)), 0
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        self.place += 2 if float(np.sum(action)) > 0.5 else -2
        reward = float(self.place >= 26) - float(self.place <= 2)
        return self._show(), reward, reward != 0, self.steps >= self.length, {}


for name, settings in {"Walk": {}, "Drive": {"continuous": True}, "Blink": {"length": 2}}.items():
    gym.register(f"{name}Toy-v0", entry_point=Walk, kwargs=settings)


def tiny(**changes: Any) -> RunConfig:
    config = RunConfig(
        game="WalkToy-v0",
        preset="tiny",
        network="light",
        rounds=2,
        codec_updates=(4, 2),
        dynamics_updates=(3,),
        imagined_steps=(40,),
        codec=VQVAEConfig(width=2, frame_size=32),
        dynamics=ConvLSTMConfig(hidden=4, kernel=3, reward_hidden=8),
        collect=CollectConfig(first_steps=60, steps=30),
        fit=FitConfig(
            codec_batch_size=8, dynamics_batch_size=4, sequence_length=5, unquantized_updates=2, windows="balanced"
        ),
        dream=DreamConfig(num_envs=4, horizon=5, start_states=16, context=3, latent_stack=3),
        ppo=PPOConfig(n_steps=10, batch_size=20),
        evaluate=EvaluateConfig(
            episodes=2, final_episodes=2, num_envs=2, dream_episodes=4, record_episodes=1, fidelity_starts=8
        ),
    )
    return replace(config, **changes)


def leave_out_pictures(monkeypatch):
    """Neither measures of the machine nor pictures."""
    monkeypatch.setattr(dreamgym.loop, "matmul_rates", lambda device: {"float32": 1.0, "bfloat16": 1.0})
    for drawing in ("plot_scores", "plot_fidelity", "write_comparison", "write_report"):
        monkeypatch.setattr(dreamgym.loop, drawing, lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    leave_out_pictures(monkeypatch)


def run(config, folder, **settings):
    return train(config, folder, device="cpu", progress=False, **settings)


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in inner for tensor in tensors_in(part)]


def contents(folder, last=1) -> dict[str, Any]:
    """All of a run that is not a time; its last round's weights."""
    run_folder = RunFolder(folder)
    replay, held_out = Replay.load(run_folder.replay), run_folder.load_held_out(1000)
    log = [{k: v for k, v in entry.items() if k not in ("seconds", "memory")} for entry in run_folder.log()]
    every = np.arange(len(replay))
    return {
        "log": json.dumps(log),
        "files": sorted(file.name for file in run_folder.checkpoints.iterdir()),
        "replay": [replay.frames_at(every).tobytes(), replay.actions_at(every).tobytes(), replay.visits.tobytes()],
        "held out": held_out.frames_at(np.arange(len(held_out))).tobytes(),
        "dream": {k: v.numpy().tobytes() for k, v in safetensors.torch.load_file(folder / "dream.safetensors").items()},
        "metadata": load_dream(folder).metadata,
        "model": [t.numpy().tobytes() for t in tensors_in(run_folder.load_model(last))],
        "policy": [t.numpy().tobytes() for t in tensors_in(run_folder.load_policy(last))],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        folder = tmp_path_factory.mktemp("runs") / "undisturbed"
        run(tiny(), folder)
        return contents(folder)


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path, undisturbed):
    torch.manual_seed(123)
    np.random.seed(5)
    assert contents(run(tiny(), tmp_path / "run")) == undisturbed


def test_another_seed_gives_another_run(tmp_path, undisturbed):
    other = contents(run(tiny(seed=1), tmp_path / "run"))
    assert all(other[name] != undisturbed[name] for name in ("log", "replay", "dream", "model", "policy"))


class Killed(BaseException):
    """Nothing in the package may catch it."""


def at_call(count, function, *, after=False):
    """A function that dies at its call of that number."""
    calls = []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) != count:
            return function(*args, **kwargs)
        if after:
            function(*args, **kwargs)
        raise Killed

    return dying


KILLS = {
    **{
        f"{phase} {index} done but not counted": (RunFolder, "finish_phase", 4 * index + number + 1, False)
        for index in (0, 1)
        for number, phase in enumerate(PHASES)
    },
    **{f"{phase} 1 counted": (RunFolder, "finish_phase", 5 + number, True) for number, phase in enumerate(PHASES)},
    "first records written but not indexed": (dreamgym.replay, "write_index", 1, False),
    "later records written but not indexed": (dreamgym.replay, "write_index", 3, False),
    "within the first collecting": (dreamgym.collect.GameSession, "step", 30, False),
    "within the second collecting": (dreamgym.collect.GameSession, "step", 75, False),
    "within the codec's fit": (Fitter, "_codec_update", 5, True),
    "within the dynamics' fit": (Fitter, "_dynamics_update", 5, True),
    "model saved, dream not": (dreamgym.loop, "save_dream", 2, False),
    "policy saved, zip not": (dreamgym.loop, "save_agent", 2, False),
    "within the evaluation": (dreamgym.loop, "evaluate_dream", 2, False),
    "held-out episodes removed but not saved": (dreamgym.run_folder.shutil, "rmtree", 2, True),
    "held-out episodes saved, nothing else": (RunFolder, "save_held_out", 2, True),
    "dream marked as finished": (dreamgym.loop, "save_dream", 3, True),
    "log written, progress not": (dreamgym.run_folder, "_write_json", 6, False),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_was_killed_and_resumed_ends_like_one_that_was_not(tmp_path, undisturbed, kill):
    owner, name, count, after = KILLS[kill]
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at_call(count, getattr(owner, name), after=after))
        with pytest.raises(Killed):
            run(tiny(), folder)
    torch.manual_seed(99)
    np.random.seed(99)
    assert contents(run(tiny(), folder, resume=True)) == undisturbed


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path, undisturbed):
    folder = tmp_path / "run"
    for _ in range(8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunFolder, "finish_phase", at_call(1, RunFolder.finish_phase, after=True))
            with suppress(Killed):
                run(tiny(), folder, resume=True)
    assert RunFolder(folder).progress().round == 2
    assert contents(run(tiny(), folder, resume=True)) == undisturbed


def learning(**changes: Any) -> RunConfig:
    """Of three rounds' agents the last two learn from the game, too; the second one begins anew."""
    collect = CollectConfig(first_steps=60, steps=30, learn_from=1, learn_steps=80)
    return tiny(**{"rounds": 3, "collect": collect, "fresh_agent": (1,), **changes})


LEARNING_KILLS = {
    "within collecting": (dreamgym.collect.GameSession, "step", 60 + 50, False),
    "learned, records not saved": (RunFolder, "save_played", 1, True),
    "records saved, phase not counted": (RunFolder, "finish_phase", 5, False),
    "phase counted": (RunFolder, "finish_phase", 5, True),
    "fitted": (RunFolder, "finish_phase", 6, True),
    "policy saved, zip not": (dreamgym.loop, "save_agent", 2, False),
    "trained": (RunFolder, "finish_phase", 7, True),
    "learned again, records not saved": (RunFolder, "save_played", 2, True),
    "trained again": (RunFolder, "finish_phase", 11, True),
}


@pytest.fixture(scope="module")
def undisturbed_learning(tmp_path_factory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        return contents(run(learning(), tmp_path_factory.mktemp("runs") / "learning"), last=2)


@pytest.mark.parametrize("kill", LEARNING_KILLS)
def test_a_run_that_learns_in_the_game_ends_the_same_when_killed_and_resumed(tmp_path, undisturbed_learning, kill):
    owner, name, count, after = LEARNING_KILLS[kill]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at_call(count, getattr(owner, name), after=after))
        with pytest.raises(Killed):
            run(learning(), tmp_path / "run")
    torch.manual_seed(99)
    assert contents(run(learning(), tmp_path / "run", resume=True), last=2) == undisturbed_learning


def test_what_the_game_taught_is_what_training_in_the_dream_begins_with(tmp_path, monkeypatch):
    begun, learn = [], stable_baselines3.PPO.learn

    def watched(agent, *args, **kwargs):
        assert (agent.n_steps, agent.batch_size) == ((16, 16) if agent.n_envs == 1 else (10, 20))
        before = [t.clone() for t in agent.policy.parameters()]
        learn(agent, *args, **kwargs)
        begun.append((agent.num_timesteps, before, [t.clone() for t in agent.policy.parameters()]))
        return agent

    monkeypatch.setattr(stable_baselines3.PPO, "learn", watched)
    collect = replace(learning().collect, learn_every=16)
    folder = run(learning(fresh_agent=(), collect=collect), tmp_path / "run")
    # Dream, game, dream, game, dream; the game's steps are counted as real ones alone.
    assert [steps for steps, _, _ in begun] == [40, 80, 40, 80, 40]
    log = RunFolder(folder).log()
    assert [e["interactions"] for e in log if e["phase"] == "collect"] == [60, 140, 220]
    assert [e["imagined_steps"] for e in log if e["phase"] == "train"] == [40, 80, 120]
    assert len(Replay.load(folder / "replay")) == 220
    for (_, _, after), (_, before, _) in pairwise(begun):
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for _, x, y in begun)


def test_an_agent_that_is_to_begin_anew_forgets_what_it_learned(tmp_path):
    def last_policy(name: str, **changes: Any) -> torch.Tensor:
        config = tiny(imagined_steps=(40, 0), **changes)
        return RunFolder(run(config, tmp_path / name)).load_policy(config.rounds - 1)["policy"]["action_net.weight"]

    learned = last_policy("learned", rounds=1)
    assert torch.equal(last_policy("kept"), learned)
    assert not torch.equal(last_policy("fresh", fresh_agent=(1,)), learned)


def test_real_steps_that_would_be_left_over_are_refused_before_anything_is_played(tmp_path):
    collect = CollectConfig(first_steps=60, steps=30, learn_from=1)
    with pytest.raises(
        ConfigError,
        match=r"collect\.learn_steps: expected a multiple of the 40 steps that PPO learns from at once, got 30",
    ):
        run(learning(collect=collect), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("algo", ["A2C", "RecurrentPPO", "DQN"])
def test_whatever_learns_from_single_steps_learns_in_the_game(tmp_path, algo):
    folder = run(learning(algo=algo, rounds=2), tmp_path / "run")
    assert len(Replay.load(folder / "replay")) == 140
    assert (folder / "checkpoints" / "played-001.pt").is_file()


FIXED = {"rounds": 4, "codec_updates": (4, 0), "codec": VQVAEConfig(width=2, frame_size=32, stages=3)}
"""The codec is fixed after the first round: the latents of earlier rounds are used again."""


@pytest.mark.parametrize("dynamics", [ResidualConfig(2, 8, 1, 4, 2, 8), ConvLSTMConfig(4, 3, 8, patch=2)])
def test_a_run_whose_codec_is_fixed_ends_the_same_when_killed_and_resumed(tmp_path, dynamics):
    config = tiny(**FIXED, dynamics=dynamics)
    whole = run(config, tmp_path / "whole")
    for kill in (3 * 2 + 1, 3 + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fitter, "_dynamics_update", at_call(kill, Fitter._dynamics_update))
            with suppress(Killed):
                run(config, tmp_path / "killed", resume=True)
        assert RunFolder(tmp_path / "killed").progress().round < 4
    assert contents(run(config, tmp_path / "killed", resume=True), last=3) == contents(whole, last=3)
    fitted = [entry for entry in RunFolder(whole).log() if entry["phase"] == "fit"]
    assert ["fit/codec/reconstruction" in entry for entry in fitted] == [True, False, False, False]


def test_the_runs_temperature_is_that_of_its_dream_and_of_what_is_measured_of_it(tmp_path, monkeypatch):
    asked = {"fidelity": set(), "dreams": set()}
    measure, dreams = dreamgym.loop.fidelity, dreamgym.loop.DreamVectorEnv

    def watched(*args, temperature, **settings):
        asked["fidelity"].add(temperature)
        return measure(*args, temperature=temperature, **settings)

    def dreaming(*args, **settings):
        env = dreams(*args, **settings)
        asked["dreams"].add(env.simulator.temperature)
        return env

    monkeypatch.setattr(dreamgym.loop, "fidelity", watched)
    monkeypatch.setattr(dreamgym.loop, "DreamVectorEnv", dreaming)
    folder = run(tiny(rounds=1, dream=replace(tiny().dream, temperature=0.25)), tmp_path / "run")
    assert asked == {"fidelity": {0.25}, "dreams": {0.25}}
    assert load_dream(folder).temperature == load_dream(folder).metadata["temperature"] == 0.25
    exported = load_dream(export_dream(folder, tmp_path / "exported.safetensors").file)
    assert exported.temperature == 0.25


def test_dreams_begin_where_the_run_says_and_fidelity_has_a_horizon_of_its_own(tmp_path, monkeypatch):
    shares, horizons = [], []
    draw, measure = dreamgym.replay.Replay.sample_starts, dreamgym.loop.fidelity

    def drawn(self, count, context, rng, newest=0, newest_share=0.0):
        shares.append(newest_share)
        return draw(self, count, context, rng, newest, newest_share)

    def measured(*args, horizon, **kwargs):
        horizons.append(horizon)
        return measure(*args, horizon=horizon, **kwargs)

    monkeypatch.setattr(dreamgym.replay.Replay, "sample_starts", drawn)
    monkeypatch.setattr(dreamgym.loop, "fidelity", measured)
    config = tiny(rounds=1)
    dream, evaluate = replace(config.dream, newest_share=0.75), replace(config.evaluate, fidelity_horizon=7)
    run(replace(config, dream=dream, evaluate=evaluate), tmp_path / "run")
    # One of them is the finished dream's, which is for any policy.
    assert set(shares) == {0.75, 0.0} and shares.count(0.0) == 1
    assert horizons == [7]


def test_in_the_second_half_of_the_rounds_dreams_may_begin_where_the_policy_has_just_been(tmp_path, monkeypatch):
    drawn, draw = [], dreamgym.replay.Replay.sample_starts

    def watched(self, count, context, rng, newest=0, newest_share=0.0):
        windows = draw(self, count, context, rng, newest, newest_share)
        drawn.append((newest_share, bool(windows.indices[:, -1].min() >= len(self) - newest)))
        return windows

    monkeypatch.setattr(dreamgym.replay.Replay, "sample_starts", watched)
    config = tiny(rounds=2)
    run(replace(config, dream=replace(config.dream, late_newest_share=1.0, start_states=16)), tmp_path / "run")
    assert drawn[0][0] == 0.0
    # The finished dream is for policies that have been elsewhere.
    assert (1.0, True) in drawn and drawn.count((0.0, False)) == 1


@pytest.mark.parametrize(("rounds", "late", "expected"), [(3, 9, [4, 4, 9]), (2, 9, [4, 9]), (2, 0, [4, 4])])
def test_in_the_second_half_of_the_rounds_dreams_may_be_longer(tmp_path, monkeypatch, rounds, late, expected):
    horizons, learn = [], dreamgym.loop.make_agent

    def watched(config, env, seed, device, **settings):
        if "tensorboard_log" in settings:
            horizons.append(env.simulator.horizon)
        return learn(config, env, seed, device, **settings)

    monkeypatch.setattr(dreamgym.loop, "make_agent", watched)
    config = tiny(rounds=rounds)
    folder = run(replace(config, dream=replace(config.dream, horizon=4, late_horizon=late)), tmp_path / "run")
    assert horizons == expected
    # Other policies, which may have learned nothing yet, begin with the first ones.
    assert load_dream(folder).metadata["horizon"] == 4


def test_a_run_folder_holds_what_it_should_and_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    folder = run(tiny(), tmp_path / "run")
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        "config.json",
        "log.jsonl",
        "machine.json",
        "tensorboard",
        "replay",
        "checkpoints",
        "dream.safetensors",
        "policy.zip",
    }
    assert RunFolder(folder).config() == tiny()
    log = RunFolder(folder).log()
    assert [(entry["round"], entry["phase"]) for entry in log] == [(i, phase) for i in (0, 1) for phase in PHASES]
    assert log[0]["interactions"] == 60 and log[4]["interactions"] == 90 and log[6]["imagined_steps"] == 80
    assert {"real", "dream", "random", "fidelity"} <= set(log[3])
    assert log[3]["fidelity"]["windows_uniform"] > 0
    metadata = load_dream(folder).metadata
    assert metadata["finished"] and metadata["score"]["mean"] == log[7]["real"]["mean"]
    assert json.loads((folder / "machine.json").read_text())["matmul_gflops"]["float32"] > 0
    board = EventAccumulator(str(folder / "tensorboard"), {"images": 0}).Reload().Tags()
    assert {"real/mean", "dream/mean", "fit/codec/perplexity"} <= set(board["scalars"])
    assert board["images"] == ["imagined_beside_real"]
    monkeypatch.setattr(Fitter, "fit", None)
    run(tiny(), folder, resume=True)
    assert RunFolder(folder).log() == log


def held_out_spans(folder, **limits):
    held_out = RunFolder(folder).load_held_out(1000, **limits)
    return held_out, held_out.iter_episodes()


def test_held_out_episodes_grow_with_the_run_and_fidelity_is_measured_on_the_newest(tmp_path, monkeypatch):
    measured_on = []
    measure = dreamgym.loop.fidelity

    def watched(world_model, replay, **settings):
        measured_on.append(replay.frames_at(np.arange(len(replay))))
        return measure(world_model, replay, **settings)

    monkeypatch.setattr(dreamgym.loop, "fidelity", watched)
    config = tiny(rounds=4, evaluate=replace(tiny().evaluate, episodes=3, record_episodes=2, fidelity_episodes=3))
    folder = run(config, tmp_path / "run")
    entries = [entry for entry in RunFolder(folder).log() if entry["phase"] == "evaluate"]

    held_out, spans = held_out_spans(folder)
    assert [entry["held_out"]["episodes"] for entry in entries] == [2, 2, 2, 2]
    assert len(spans) == 8
    assert len(held_out) == sum(entry["held_out"]["steps"] for entry in entries)
    newest = held_out.frames_at(np.arange(spans[-3][0], len(held_out)))
    assert np.array_equal(measured_on[-1], newest)
    assert np.array_equal(held_out_spans(folder, episodes=3)[0].frames_at(np.arange(len(newest))), newest)
    first_two = held_out.frames_at(np.arange(spans[1][1]))
    assert np.array_equal(measured_on[0], first_two)


def test_the_score_is_measured_every_few_rounds_and_the_last_and_fidelity_in_between(tmp_path, capsys):
    config = tiny(rounds=5, evaluate=replace(tiny().evaluate, every=2))
    folder = RunFolder(run(config, tmp_path / "run"))
    entries = [entry for entry in folder.log() if entry["phase"] == "evaluate"]

    assert ["real" in entry for entry in entries] == [False, True, False, True, True]
    assert ["fidelity" in entry for entry in entries] == [False, True, True, True, True]
    assert ["random" in entry for entry in entries] == [False, True, False, False, False]
    assert [score["interactions"] for score in dreamgym.provenance.provenance(folder)["scores"]] == [90, 150, 180]
    printed = capsys.readouterr().out
    assert printed.count("real score") == 3 + 1
    assert "random" in printed


def test_what_is_held_out_is_not_in_the_replay_that_is_fitted_to(tmp_path):
    folder = run(tiny(), tmp_path / "run")

    assert len(Replay.load(folder / "replay")) == tiny().interactions
    assert len(held_out_spans(folder)[1]) == 2


@pytest.mark.parametrize("rounds", [1, 3])
def test_at_least_one_episode_in_twenty_is_held_out_even_of_the_shortest(tmp_path, rounds):
    config = tiny(
        game="BlinkToy-v0",
        rounds=rounds,
        collect=CollectConfig(first_steps=100, steps=60),
        evaluate=replace(tiny().evaluate, episodes=1, final_episodes=1),
    )
    folder = run(config, tmp_path / "run")
    entries = [entry for entry in RunFolder(folder).log() if entry["phase"] == "evaluate"]

    fitted, held_out = len(Replay.load(folder / "replay").iter_episodes()), len(held_out_spans(folder)[1])
    assert fitted == 50 + 30 * (rounds - 1)
    assert held_out >= 0.05 * (fitted + held_out) > held_out - rounds
    assert all(len(entry["real"]["episodes"]) == entry["held_out"]["episodes"] for entry in entries)


@pytest.mark.parametrize(
    ("fitted", "held_out", "missing"), [(0, 0, 0), (1, 0, 1), (19, 0, 1), (20, 0, 2), (20, 1, 1), (20, 5, 0)]
)
def test_missing_episodes_are_those_up_to_one_in_twenty(fitted, held_out, missing):
    assert missing_episodes(fitted, held_out) == missing


def test_a_run_can_hold_nothing_out(tmp_path):
    folder = run(tiny(rounds=1, evaluate=replace(tiny().evaluate, record_episodes=0)), tmp_path / "run")

    assert len(held_out_spans(folder)[0]) == 0
    assert not {"fidelity", "held_out"} & set(RunFolder(folder).log()[-1])


def test_episodes_held_out_by_runs_that_kept_one_round_only_are_still_found(tmp_path):
    folder = run(tiny(), tmp_path / "run")
    oldest, newest = (folder / "held_out" / name for name in ("round-000", "round-001"))
    _, (first, second) = held_out_spans(folder)
    for file in oldest.iterdir():
        file.rename(folder / "held_out" / file.name)
    oldest.rmdir()

    assert held_out_spans(folder)[1] == [first, second]
    for file in newest.iterdir():
        file.unlink()
    assert held_out_spans(folder)[1] == [first]


def test_of_too_many_held_out_records_the_newest_are_loaded(tmp_path):
    folder = run(tiny(rounds=3), tmp_path / "run")
    every = RunFolder(folder).load_held_out(1000)

    some = RunFolder(folder).load_held_out(7)

    assert len(some) == 7
    assert np.array_equal(some.frames_at(np.arange(7)), every.frames_at(np.arange(len(every) - 7, len(every))))


def test_the_final_score_is_that_of_the_saved_agent(tmp_path):
    folder = run(tiny(), tmp_path / "run")
    dream = load_dream(folder)
    agent = read_agent(folder / "dream.safetensors", dream)[1]
    games = make_real_env(dream, 2, device="cpu", observation="codes", sticky_actions=0.0, noop_max=30)
    score = evaluate_real(agent, games, 2, derive_seed(0, "evaluate", 1))
    games.close()
    assert list(score.episodes) == RunFolder(folder).log()[-1]["real"]["episodes"]


def test_a_run_records_its_code_its_machine_and_the_command_that_makes_it_again(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    with suppress(Killed), monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish_phase", at_call(3, RunFolder.finish_phase))
        run(tiny(), folder.path)
    begun = folder.machine()
    assert begun["version"] == dreamgym.__version__ and "threads" in begun["machine"] and begun["device"] == "cpu"
    assert begun["matmul_gflops"] == {"float32": 1.0, "bfloat16": 1.0}
    assert begun["command"].startswith("dreamgym train --game WalkToy-v0 ")
    monkeypatch.setattr(dreamgym.provenance, "describe_machine", lambda device: "another machine")
    run(tiny(), folder.path, resume=True)
    ended = folder.machine()
    assert (ended["machine"], ended["earlier"]) == ("another machine", [begun])
    monkeypatch.setattr(dreamgym.provenance, "describe_machine", lambda device: "a machine that only shows the table")
    run(tiny(), folder.path, resume=True)
    assert folder.machine() == ended


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "run"
    RunFolder(folder).begin(tiny(), resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        run(tiny(), folder)


def test_resuming_with_other_settings_is_refused_with_their_names(tmp_path):
    folder = tmp_path / "run"
    RunFolder(folder).begin(tiny(), resume=False)
    other = tiny(seed=4, dream=replace(tiny().dream, horizon=9))
    with pytest.raises(ConfigError) as caught:
        run(other, folder, resume=True)
    assert "seed: 0 / 4" in str(caught.value) and "dream.horizon: 5 / 9" in str(caught.value)
    assert "rounds:" not in str(caught.value)


def test_a_run_can_be_given_more_rounds_and_ends_like_one_that_had_them_from_the_start(tmp_path):
    longer = run(tiny(rounds=3), tmp_path / "longer")
    folder = run(tiny(), tmp_path / "run")
    assert run(tiny(rounds=3), folder, resume=True) == folder
    found, expected = contents(folder, last=2), contents(longer, last=2)
    # Its second round was the last when it was played, and so was measured in other games.
    for name in ("files", "replay", "dream", "model", "policy"):
        assert found[name] == expected[name], name
    assert RunFolder(folder).config() == tiny(rounds=3)
    with pytest.raises(ConfigError, match="rounds: 3 / 2"):
        run(tiny(), folder, resume=True)


def test_more_rounds_than_there_is_memory_for_leave_the_run_as_it_was(tmp_path, monkeypatch):
    folder = run(tiny(), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(dreamgym.loop, "Replay", lambda *arguments: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            run(tiny(rounds=10**7), folder, resume=True)
    assert RunFolder(folder).config() == tiny()


def test_remains_of_a_run_without_its_configuration_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.replay.mkdir()
    with pytest.raises(ConfigError, match=r"replay without config\.json"):
        folder.begin(tiny(), resume=True)


def test_a_run_that_lost_its_experience_or_its_weights_says_so(tmp_path):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "finish_phase", at_call(2, RunFolder.finish_phase, after=True))
        run(tiny(), folder)
    model = folder / "checkpoints" / "model-000.pt"
    content = model.read_bytes()
    for damage in (b"garbage", content[:1000], None):
        model.unlink() if damage is None else model.write_bytes(damage)
        with pytest.raises(CheckpointError, match="model-000"):
            run(tiny(), folder, resume=True)
    model.write_bytes(content)
    (folder / "replay" / "replay.json").unlink()
    with pytest.raises(ReplayError, match="expected 60 records, got 0"):
        run(tiny(), folder, resume=True)


def test_a_damaged_log_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log_file.write_text('{"round": 0}\n{"rou')
    with pytest.raises(CheckpointError, match=r"log\.jsonl"):
        folder.log()


def test_a_damaged_progress_file_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(tiny(), resume=False)
    folder.progress_file.write_text('{"round": ')
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        folder.begin(tiny(), resume=True)


@pytest.mark.parametrize(
    "changes",
    [{"algo": "PPPO"}, {"algo": "SAC"}, {"network": "huge"}, {"dream": replace(tiny().dream, reward="guessed")}],
    ids=["no such algorithm", "one that cannot act", "network", "reward"],
)
def test_a_run_that_cannot_work_fails_before_its_first_step(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(Replay, "append", None)
    with pytest.raises(ConfigError):
        run(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("game", "algo"), [("WalkToy-v0", "DQN"), ("DriveToy-v0", "PPO"), ("BlinkToy-v0", "PPO")], ids=str
)
def test_other_games_and_algorithms_run_too(tmp_path, game, algo):
    config = tiny(game=game, algo=algo, evaluate=replace(tiny().evaluate, episodes=1, final_episodes=1))
    log = RunFolder(run(config, tmp_path / "run")).log()
    assert len(log) == 8
    assert ("fidelity" in log[-1]) == (game != "BlinkToy-v0")
    file = export_dream(tmp_path / "run", tmp_path / "exported.safetensors").file
    for source in (tmp_path / "run", file):
        agent = load_agent(source, device="cpu")
        assert agent.predict(agent.env.reset())[0].shape[0] == 1


def test_pong_runs_and_its_ball_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(dreamgym.loop, "matmul_rates", lambda device: {"float32": 1.0, "bfloat16": 1.0})
    smoke = make_config("smoke")
    config = replace(
        smoke,
        rounds=1,
        codec_updates=(3,),
        dynamics_updates=(2,),
        imagined_steps=(200,),
        collect=CollectConfig(first_steps=80),
        ppo=PPOConfig(n_steps=10, batch_size=80),
        evaluate=replace(smoke.evaluate, final_episodes=1, num_envs=1, fidelity_starts=8),
    )
    folder = run(config, tmp_path / "run")
    assert 0 <= RunFolder(folder).log()[-1]["fidelity"]["ball_located"] <= 1
    for name in ("scores.png", "fidelity.png", "imagined_vs_real.mp4", "imagined_vs_real.png"):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.parametrize("max_pool", [False, True])
def test_a_run_says_that_a_game_flickers_where_it_would_not_see_it(tmp_path, monkeypatch, caplog, max_pool):
    monkeypatch.setattr(dreamgym.loop, "flicker", lambda game: 30.0)
    run(tiny(codec=VQVAEConfig(width=2, frame_size=32, max_pool=max_pool), rounds=1), tmp_path)
    said = [record.getMessage() for record in caplog.records if "every second frame" in record.getMessage()]
    assert len(said) == (not max_pool) and all("--codec.max-pool" in message for message in said)


def test_progress_goes_through_the_phases_and_on_to_the_next_round():
    progress = Progress()
    passed = []
    for _ in range(5):
        passed.append((progress.round, progress.phase))
        progress.advance()
    assert passed == [(0, "collect"), (0, "fit"), (0, "train"), (0, "evaluate"), (1, "collect")]


def test_streams_have_different_seeds_that_never_change():
    seeds = {derive_seed(seed, name, n) for seed in range(5) for name in ("fit", "episode", "agent") for n in range(20)}
    assert len(seeds) == 5 * 3 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, "episode", 7) == derive_seed(0, "episode", 7)


def stopped_at(folder, finished):
    """A run that was killed after so many phases."""
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(RunFolder, "finish_phase", at_call(finished, RunFolder.finish_phase, after=True))
        run(tiny(), folder)


@pytest.mark.parametrize("finished", [5, 6, 7])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_run_goes_on_without_a_damaged_shard_and_says_what_was_lost(tmp_path, caplog, capsys, finished, damage):
    folder = tmp_path / "run"
    stopped_at(folder, finished)
    whole = Replay.load(folder / "replay")
    shard = folder / "replay" / "records-000000000060.npz"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    run(tiny(), folder, resume=True)

    assert "records-000000000060.npz" in caplog.text and "30 of 90 records are lost" in caplog.text
    assert "no resume is bit for bit" in caplog.text
    kept = Replay.load(folder / "replay")
    assert np.array_equal(kept.frames_at(np.arange(60)), whole.frames_at(np.arange(60))) and len(kept) == 60
    # Nothing was thrown away, and what is told of the run tells of the damage.
    assert (folder / "quarantine" / "replay-001" / shard.name).is_file() == (damage != "gone")
    records = RunFolder(folder).log()[finished:]
    assert records and all("30 of 90" in record["damage"][0] for record in records)
    assert "Damaged: replay shard" in capsys.readouterr().out.replace("replay file", "replay shard")
    # It is said once; whoever resumes next finds a whole folder.
    caplog.clear()
    run(tiny(rounds=3), folder, resume=True)
    assert "lost" not in caplog.text and len(Replay.load(folder / "replay")) == 90


def test_damage_to_what_no_finished_phase_collected_is_made_good_bit_for_bit(tmp_path, undisturbed, caplog):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(RunFolder, "finish_phase", at_call(5, RunFolder.finish_phase))
        run(tiny(), folder)
    (folder / "replay" / "records-000000000060.npz").write_bytes(b"")
    run(tiny(), folder, resume=True)
    assert "No record that was counted is lost" in caplog.text
    found = contents(folder)
    different = {name for name in found if found[name] != undisturbed[name]}
    # The log tells of it, and the numbers of records, which only name files, begin higher.
    assert different <= {"log"}


def test_of_a_run_that_lost_its_first_shard_whole_episodes_are_left(tmp_path):
    folder = tmp_path / "run"
    stopped_at(folder, 5)
    before = Replay.load(folder / "replay")
    (folder / "replay" / "records-000000000000.npz").unlink()
    run(tiny(), folder, resume=True)
    kept = Replay.load(folder / "replay")
    assert 0 < len(kept) <= 30 and bool(kept.first_at(0))
    assert np.array_equal(kept.frames_at(np.arange(len(kept))), before.frames_at(np.arange(90 - len(kept), 90)))


@pytest.mark.parametrize("step", ["save_progress", "rename"])
def test_a_crash_while_damage_is_put_aside_loses_nothing_more(tmp_path, step):
    folder = tmp_path / "run"
    stopped_at(folder, 6)
    (folder / "replay" / "records-000000000060.npz").unlink()
    with pytest.MonkeyPatch.context() as patch:
        owner = RunFolder if step == "save_progress" else dreamgym.run_folder.Path
        patch.setattr(owner, step, at_call(1, getattr(owner, step), after=True))
        with pytest.raises(Killed):
            run(tiny(), folder, resume=True)
    run(tiny(), folder, resume=True)
    assert len(Replay.load(folder / "replay")) == 60
    assert len(RunFolder(folder).progress().damage) == 1


def test_damaged_held_out_episodes_are_left_out(tmp_path, caplog):
    folder = run(tiny(), tmp_path / "run")
    next((folder / "held_out" / "round-001").glob("records-*.npz")).write_bytes(b"")
    assert len(held_out_spans(folder)[1]) == 1
    assert "measured without these episodes" in caplog.text


def test_every_phase_tells_the_most_memory_that_it_held(tmp_path):
    folder = run(tiny(rounds=1), tmp_path / "run")
    log = RunFolder(folder).log()
    assert [entry["phase"] for entry in log] == list(PHASES)
    assert all(1e8 < entry["memory"] < 1e11 for entry in log)
