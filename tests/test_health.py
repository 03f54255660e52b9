import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from test_loop import FIXED, Killed, at_call, contents, learning, leave_out_pictures, run, tiny

import dreamgym.fit
import dreamgym.health
import dreamgym.loop
from dreamgym.checkpoint import load_dream
from dreamgym.cli import main
from dreamgym.config import PRESETS, CollectConfig, RunConfig, make_config
from dreamgym.errors import SickRunError
from dreamgym.evaluate import Score
from dreamgym.fit import Fitter, reward_chances
from dreamgym.health import (
    LOWER_RATE,
    below_random,
    collapsed_policy,
    dead_codebook,
    deaf_reward_head,
    exploded_loss,
    loss_limits,
)
from dreamgym.models.quantizer import VectorQuantizer
from dreamgym.replay import Replay
from dreamgym.run_folder import Progress, RunFolder
from dreamgym.world_model import WorldModelConfig

NAN = math.nan


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    leave_out_pictures(monkeypatch)


# The signs, from figures.


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_loss_that_is_no_number_has_exploded(value):
    said = exploded_loss({"codec/reconstruction": -5845.0, "dynamics/latent": value}, {})
    assert said is not None and said.startswith(f"dynamics/latent ended at {value}, where a finite number was expected")


def limits(report: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    codec = PRESETS["laptop"]().codec
    return loss_limits(WorldModelConfig(codec=codec), report, before)


PONG = {
    "codec/reconstruction": -5845.0,
    "codec/commitment": 6e-7,
    "dynamics/latent": 2.76,
    "dynamics/reward": 0.0012,
    "dynamics/end": 0.003,
}
"""A first fit of the preset ``laptop``."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Before anything is learned, as in the shortest runs.
        {"codec/reconstruction": 20_000.0, "dynamics/latent": 3300.0, "dynamics/reward": 1.4, "dynamics/end": 0.8},
        # Boxing, and the paper's codebook before it has settled.
        {"dynamics/latent": 40.0, "dynamics/reward": 0.14, "codec/commitment": 1e4},
    ],
)
def test_losses_of_healthy_fits_are_within_their_limits(changes):
    report = PONG | changes
    assert exploded_loss(report, limits(report, {})) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("codec/reconstruction", 1e8), ("dynamics/latent", 40_000.0), ("dynamics/reward", 12.0), ("dynamics/end", 9.0)],
)
def test_a_loss_that_is_worse_than_a_guess_has_exploded(name, value):
    report = PONG | {name: value}
    said = exploded_loss(report, limits(report, {}))
    assert said is not None and said.startswith(f"{name} ended at {value:.4g}, where at most ")


def test_a_loss_that_is_many_times_the_last_has_exploded_unless_there_are_new_codes():
    refitted = PONG | {"dynamics/latent": 100.0}
    same_codes = {name: value for name, value in refitted.items() if not name.startswith("codec/")}
    assert exploded_loss(same_codes, limits(same_codes, PONG)) is not None
    assert exploded_loss(refitted, limits(refitted, PONG)) is None
    slightly = same_codes | {"dynamics/latent": 10.0}
    assert exploded_loss(slightly, limits(slightly, PONG | {"dynamics/latent": 0.01})) is None


@pytest.mark.parametrize(
    ("perplexity", "busy", "is_dead"),
    [
        (2.73, 0.03, False),
        (1.0, 0.03, True),
        (1.05, 0.03, True),
        (1.0, 0.0, False),
        (1.0, 1.0, True),
        (1.5, 0.9, False),
    ],
)
def test_a_codebook_is_dead_that_does_not_tell_what_is_there_from_the_background(perplexity, busy, is_dead):
    said = dead_codebook(perplexity, busy)
    assert (said is not None) == is_dead
    assert said is None or f"perplexity is {perplexity:.3f}, where at least 1." in said


def chances(rewarded: list[float], others: list[float]):
    return np.array(rewarded, np.float32), np.array(others, np.float32)


@pytest.mark.parametrize(
    ("found", "rewards", "shown", "is_deaf"),
    [
        (chances([0.9, 0.6, 0.01], [0.001, 0.003]), 700, 2e4, False),
        # Right after it was drawn, and after it was shown some.
        (chances([0.66, 0.67], [0.65, 0.68]), 10, 50, False),
        (chances([0.020, 0.021], [0.021, 0.020]), 700, 2e4, True),
        # A game with hardly any rewards, and one with none; one whose every step brings one.
        (chances([1e-4], [1e-4, 2e-4]), 1, 1e4, False),
        (chances([], [1e-7, 1e-7]), 0, 0, False),
        (chances([0.9999, 0.9999], []), 30_000, 1e6, False),
        # One that is often rewarded, whatever is seen.
        (chances([0.7, 0.8], [0.5, 0.6]), 9000, 1e6, False),
        (chances([0.3, 0.3], [0.3, 0.3]), 5, 5, True),
        (chances([0.0, 0.0], [0.0, 0.0]), 5, 5, True),
    ],
)
def test_a_reward_head_is_deaf_that_says_the_same_with_and_without_a_reward(found, rewards, shown, is_deaf):
    said = deaf_reward_head(found, rewards, shown)
    assert (said is not None) == is_deaf
    assert said is None or "predicts a constant" in said


@pytest.mark.parametrize(
    ("entropy", "actions", "collapsed"),
    [(1.79, 6, False), (0.63, 6, False), (0.05, 6, False), (0.01, 6, True), (0.0, 2, True), (0.0, 1, False)],
)
def test_a_policy_has_collapsed_whose_entropy_is_next_to_none(entropy, actions, collapsed):
    said = collapsed_policy(entropy, actions)
    assert (said is not None) == collapsed
    assert said is None or f"{entropy:.4f} nats, where at least" in said


RANDOM = Score.of([-21.0] * 20 + [-20.0] * 9 + [-19.0] * 3, [800] * 32).as_dict()


@pytest.mark.parametrize(
    ("real", "is_below"),
    [
        ([-12.0, -18.0, -9.0, -15.0, -13.0, -16.0, -10.0, -8.0], False),
        ([-21.0, -21.0, -20.0, -21.0, -20.0, -21.0, -21.0, -19.0], False),
        ([-40.0, -41.0, -39.0, -40.0, -40.0], True),
        # Too few to know.
        ([-40.0, -40.0], False),
    ],
)
def test_a_score_is_below_random_only_where_it_surely_is(real, is_below):
    said = below_random(Score.of(real, [800] * len(real)).as_dict(), RANDOM)
    assert (said is not None) == is_below
    assert said is None or ("-40.00 [" in said and "-20.53 [" in said)


def test_chances_of_rewards_are_measured_without_a_draw_or_a_visit(tmp_path):
    folder = run(rewarding(rounds=1), tmp_path / "run")
    model, replay = load_dream(folder).world_model, Replay.load(folder / "replay")
    before = torch.get_rng_state()
    visits, state = replay.visits, np.random.get_state()[1].tobytes()
    rewarded, others = reward_chances(model, replay, tiny().fit, most=3)
    assert len(rewarded) == len(others) == 3 and ((others > 0) & (others < 1)).all()
    assert np.array_equal(replay.visits, visits) and torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == state


# Faults in a run.


def rewarding(**changes: Any) -> RunConfig:
    """A tiny run with a few rewards in its experience, of which little is measured."""
    measured = replace(tiny().evaluate, episodes=1, final_episodes=1, num_envs=1, dream_episodes=2, record_episodes=0)
    return tiny(**{"collect": CollectConfig(first_steps=200, steps=30), "evaluate": measured, **changes})


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups)


def after_fit(harm, *, below=0.0):
    """A fit at whose end ``harm(fitter, report)`` is done, at learning rates above ``below`` of the run's."""
    fit = Fitter.fit

    def harmed(self, *args, **kwargs):
        report = fit(self, *args, **kwargs)
        if self.rate > below and self.codec_updates > 4:
            harm(self, report)
        return report

    return harmed


def silence_rewards(fitter, report):
    with torch.no_grad():
        last = [m for m in fitter.world_model.dynamics.reward_head.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.weight.zero_()


def spoil_weights(fitter, report):
    with torch.no_grad():
        next(fitter.world_model.dynamics.parameters()).fill_(NAN)


FIT_FAULTS = {
    "a loss without a number": (
        lambda fitter, report: report.update({"dynamics/reward": NAN}),
        "dynamics/reward ended",
    ),
    "a loss too large": (lambda fitter, report: report.update({"dynamics/latent": 1e4}), "dynamics/latent ended at 1e"),
    "weights without numbers": (spoil_weights, "hold NaN or infinity"),
    "one code for all": (lambda fitter, report: report.update({"codec/perplexity": 1.0}), "the codebook is dead"),
    "rewards never": (silence_rewards, "It predicts a constant"),
}


@pytest.mark.parametrize("fault", FIT_FAULTS)
def test_a_fit_that_goes_wrong_is_done_again_at_a_lower_rate_from_where_it_began(tmp_path, monkeypatch, caplog, fault):
    harm, expected = FIT_FAULTS[fault]
    begun, fit = [], Fitter.fit

    def watched(self, *args, **kwargs):
        weights = torch.cat([t.flatten().double() for t in self.world_model.state_dict().values()])
        begun.append((self.rate, self.codec_updates, weights))
        report = fit(self, *args, **kwargs)
        assert rate_of(self.dynamics_optimizer) <= self.rate * tiny().fit.dynamics_learning_rate
        if self.rate == 1 and self.codec_updates == 4:
            harm(self, report)
        return report

    monkeypatch.setattr(Fitter, "fit", watched)
    folder = RunFolder(run(rewarding(), tmp_path / "run"))
    # Once: the fit after it is at the run's own rate again.
    assert [(rate, updates) for rate, updates, _ in begun] == [(1, 0), (LOWER_RATE, 0), (1, 4)]
    assert torch.equal(begun[0][2], begun[1][2])
    (said,) = [record.getMessage() for record in caplog.records if "Back to" in record.getMessage()]
    assert said.startswith("Round 1, fit: ") and expected in said and "once more at 0.3 of the learning rate" in said
    assert [entry["sick"] for entry in folder.log() if "sick" in entry] == [[said]]
    assert folder.log()[1]["sick"] == [said] and folder.progress().sick == ()


def test_a_loss_that_becomes_no_number_in_the_midst_of_a_fit_is_seen(tmp_path, monkeypatch):
    loss = dreamgym.fit.dynamics_loss

    def broken(*args, **kwargs):
        value, metrics = loss(*args, **kwargs)
        return value * NAN, metrics

    monkeypatch.setattr(dreamgym.fit, "dynamics_loss", broken)
    with pytest.raises(SickRunError, match=r"Round 1, fit: The weights dynamics.* hold NaN"):
        run(rewarding(), tmp_path / "run")


def test_an_encoder_whose_every_cell_gets_one_code_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(VectorQuantizer, "nearest", lambda self, vectors: torch.zeros(len(vectors), dtype=torch.int64))
    with pytest.raises(SickRunError, match=r"perplexity is 1\.000, where at least 1\.\d+ was expected"):
        run(rewarding(), tmp_path / "run")


def harmed_learning(harm, at=0):
    """PPO's ``learn``, at the end of whose call of that number the agent is harmed, and the rate of every call."""
    learn, calls = stable_baselines3.PPO.learn, []

    def harmed(agent, *args, **kwargs):
        learn(agent, *args, **kwargs)
        calls.append(agent.learning_rate)
        if len(calls) - 1 == at:
            with torch.no_grad():
                harm(agent)
        return agent

    return harmed, calls


AGENT_FAULTS = {
    "sure of all": (lambda agent: agent.policy.action_net.bias.copy_(torch.tensor([1e3, 0.0])), "has collapsed"),
    "weights without numbers": (lambda agent: agent.policy.action_net.bias.fill_(NAN), "hold NaN or infinity"),
    "a value without bounds": (
        lambda agent: agent.logger.name_to_value.update({"train/value_loss": 1e9}),
        "train/value_loss ended at 1e+09",
    ),
}


@pytest.mark.parametrize("fault", AGENT_FAULTS)
def test_an_agent_that_goes_wrong_learns_again_at_a_lower_rate(tmp_path, monkeypatch, fault):
    harm, expected = AGENT_FAULTS[fault]
    learn, rates = harmed_learning(harm)
    monkeypatch.setattr(stable_baselines3.PPO, "learn", learn)
    folder = RunFolder(run(rewarding(rounds=1), tmp_path / "run"))
    rate = tiny().ppo.learning_rate
    assert rates == [rate, LOWER_RATE * rate]
    entry = folder.log()[2]
    assert len(entry["sick"]) == 1 and expected in entry["sick"][0]
    # What was dreamt in vain was dreamt.
    assert entry["imagined_steps"] == 80


def test_numbers_that_fail_while_an_agent_learns_are_told_from_other_errors(tmp_path, monkeypatch):
    train = stable_baselines3.PPO.train

    def broken(agent):
        train(agent)
        with torch.no_grad():
            agent.policy.action_net.weight.fill_(NAN)

    monkeypatch.setattr(stable_baselines3.PPO, "train", broken)
    # The second rollout fails to draw from what the first update left.
    with pytest.raises(SickRunError, match=r"policy\.action_net\.weight hold NaN"):
        run(rewarding(imagined_steps=(80,)), tmp_path / "run")
    monkeypatch.setattr(stable_baselines3.PPO, "train", lambda agent: (_ for _ in ()).throw(ValueError("another")))
    with pytest.raises(ValueError, match="another"):
        run(rewarding(), tmp_path / "other")


def test_an_agent_that_collapses_in_the_game_plays_again_and_its_steps_are_said_to_be_lost(tmp_path, monkeypatch):
    # Calls: dream, game, game again, dream, ...
    learn, rates = harmed_learning(AGENT_FAULTS["sure of all"][0], at=1)
    monkeypatch.setattr(stable_baselines3.PPO, "learn", learn)
    folder = RunFolder(run(learning(rounds=2), tmp_path / "run"))
    rate = tiny().ppo.learning_rate
    assert rates == [rate, rate, LOWER_RATE * rate, rate]
    assert "The 80 real steps of this try are thrown away, and not counted." in folder.log()[4]["sick"][0]
    assert len(Replay.load(folder.replay)) == folder.log()[4]["interactions"] == 140


def test_a_policy_without_entropy_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(dreamgym.health, "collapsed_policy", None)
    log = RunFolder(run(rewarding(rounds=1, algo="DQN"), tmp_path / "run")).log()
    assert not any("sick" in entry for entry in log)


def test_a_score_below_random_is_said_and_nothing_is_done_again(tmp_path, monkeypatch, caplog):
    evaluate = dreamgym.loop.evaluate_real

    def worse(*args, **kwargs):
        return Score.of([value - 100 for value in evaluate(*args, **kwargs).episodes], [1] * 6)

    monkeypatch.setattr(dreamgym.loop, "evaluate_real", worse)
    config = rewarding(evaluate=replace(rewarding().evaluate, episodes=6, final_episodes=6, num_envs=6))
    log = RunFolder(run(config, tmp_path / "run")).log()
    first, last = (entry["sick"] for entry in log if "sick" in entry)
    assert len(log) == 8 and "the next round collects with it" in first[0] and "--resume --rounds" in last[0]
    assert first[0] in caplog.text and "where more than that of random actions was expected" in first[0]


# Stopping, and going on.


def test_a_phase_that_goes_wrong_twice_stops_the_run_where_it_can_be_resumed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Fitter, "fit", after_fit(silence_rewards))
        with pytest.raises(SickRunError) as caught:
            run(rewarding(), folder)
    said = str(caught.value)
    assert "Round 2, fit: The reward head gives" in said and "nothing of this try was kept" in said
    assert (
        f"dreamgym train --out {folder} --resume, which tries this phase once more at 0.09 of the learning rate" in said
    )
    progress = RunFolder(folder).progress()
    assert (progress.round, progress.phase, len(progress.sick)) == (1, "fit", 2)
    assert not (folder / "checkpoints" / "model-001.pt").exists()
    run(rewarding(), folder, resume=True)
    entry = RunFolder(folder).log()[5]
    assert entry["sick"] == list(progress.sick) and entry["sick"][1].endswith("Stopped.")


def test_the_command_line_ends_with_1_where_training_went_wrong(tmp_path, monkeypatch, capsys):
    def sick(*args, **kwargs):
        raise SickRunError("Round 1, fit: it exploded.")

    monkeypatch.setattr(dreamgym.loop, "train", sick)
    assert main(["train", "--preset", "smoke", "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == "dreamgym train: Round 1, fit: it exploded.\n"


KILLS = {
    "remedy written, phase not begun again": (RunFolder, "save_progress", 6, True),
    "within the phase done again": (Fitter, "_dynamics_update", 8, True),
    "done again but not counted": (RunFolder, "finish_phase", 6, False),
    "done again and counted": (RunFolder, "finish_phase", 6, True),
    "before the remedy was written": (RunFolder, "save_progress", 6, False),
}


@pytest.fixture(scope="module")
def remedied(tmp_path_factory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        patch.setattr(Fitter, "fit", after_fit(silence_rewards, below=0.5))
        return contents(run(rewarding(), tmp_path_factory.mktemp("runs") / "remedied"))


@pytest.mark.parametrize("kill", KILLS)
def test_a_remedied_run_that_was_killed_and_resumed_ends_like_one_that_was_not(tmp_path, monkeypatch, remedied, kill):
    assert "once more at 0.3" in remedied["log"]
    monkeypatch.setattr(Fitter, "fit", after_fit(silence_rewards, below=0.5))
    owner, name, count, after = KILLS[kill]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(count, getattr(owner, name), after=after))
        with pytest.raises(Killed):
            run(rewarding(), tmp_path / "run")
    torch.manual_seed(99)
    assert contents(run(rewarding(), tmp_path / "run", resume=True)) == remedied


@pytest.mark.parametrize("changes", [{}, {"sick": ["seen"]}])
def test_progress_files_of_before_are_still_read(tmp_path, changes):
    folder = RunFolder(tmp_path)
    folder.progress_file.write_text(
        json.dumps({"round": 1, "phase": "fit", "imagined_steps": 0, "seconds": 1.0} | changes)
    )
    assert folder.progress() == Progress(1, "fit", 0, 1.0, sick=tuple(changes.get("sick", ())))


# Healthy runs.


@pytest.mark.parametrize(
    "config",
    [
        rewarding(seed=3),
        learning(algo="A2C", seed=1),
        tiny(**FIXED, algo="RecurrentPPO", imagined_steps=(40, 0), dynamics_updates=(3, 0)),
    ],
    ids=["PPO", "A2C, in the game too", "nothing learned after a round"],
)
def test_nothing_is_said_of_a_healthy_run(tmp_path, caplog, config):
    log = RunFolder(run(config, tmp_path / "run")).log()
    assert not any("sick" in entry for entry in log) and "Back to" not in caplog.text


def test_nothing_is_said_of_the_smallest_preset(smoke_run):
    folder = RunFolder(smoke_run)
    assert folder.config() == make_config("smoke")
    assert len(folder.log()) == 8 and not any("sick" in entry for entry in folder.log())
