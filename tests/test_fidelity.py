from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym.errors import InvalidInputError, ReplayError
from dreamgym.events import calibration_error, dreamt_events
from dreamgym.fidelity import episode_spans, fidelity, open_loop
from dreamgym.held_out import draw_windows
from dreamgym.replay import Replay

LENGTH = 100
LOST = (20, 45, 70)
WON = (33, 88)


def reward_at(step):
    return np.where(np.isin(step, LOST), -1.0, np.where(np.isin(step, WON), 1.0, 0.0))


def game(episodes=4, length=LENGTH, events=True, frames_of=lambda step: step):
    """Episodes of a game whose frame shows the step: top left in a field of 50."""
    replay = Replay(episodes * length, frame_shape=(4, 4))
    for _ in range(episodes):
        for step in range(length):
            frame = np.full((4, 4), 100, np.uint8)
            frame[:2, :2] = 2 * frames_of(step)
            reward = float(reward_at(step)) if events else 0.0
            replay.append(frame, step % 3, reward, step == length - 1, False, False, step == 0)
    return replay


@dataclass
class Prediction:
    latent: torch.Tensor
    reward: torch.Tensor
    end: torch.Tensor

    def expected_reward(self):
        return self.reward

    def end_probability(self):
        return self.end


@dataclass
class Knowing:
    """A world model that knows the game; every field makes it wrong in one way.

    Its state is the true step, followed from the first frame of context, and the number of steps that it took.
    """

    late: int = 0
    blind_after: int = 10_000
    alarms: tuple[int, ...] = ()
    always: float = 0.0
    end_late: int = 0
    end_alarms: tuple[int, ...] = ()
    noise: float = 0.0
    darker: int = 0
    strength: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frame_stack: int = 1

    def encode(self, frames):
        return torch.as_tensor(np.asarray(frames))[:, -1, ::2, ::2].long() // 2

    def decode(self, latent):
        frames = (2 * latent - self.darker).clamp(0, 255).to(torch.uint8)
        return frames.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, None]

    def acts(self, actions, digits):
        return actions

    def phase_digits(self, phases):
        return phases

    def initial_state(self, batch, elapsed=None):
        return torch.full((batch,), -1), torch.zeros(batch, dtype=torch.int64)

    def step(self, latent, action, state):
        true, taken = state
        true = torch.where(true < 0, latent[:, 0, 0], true)
        following = torch.full_like(latent, 50)
        following[:, 0, 0] = true + 1
        reward = self.strength * reward_at((true - self.late).numpy()) - np.isin(true.numpy(), self.alarms)
        reward = np.where(taken.numpy() >= self.blind_after, 0.0, reward) + self.always
        end = torch.as_tensor(np.isin(true.numpy(), (LENGTH - 1 + self.end_late, *self.end_alarms))).float()
        return Prediction(following, torch.as_tensor(reward).float(), end), (true + 1, taken + 1)

    def draw_reward(self, prediction, uniforms, before, after):
        return torch.zeros(len(uniforms), dtype=torch.int64), after

    def draw_latent(self, prediction, uniforms, temperature=1.0, rewards=None):
        return torch.where(uniforms < self.noise, (prediction.latent + 7) % 128, prediction.latent)

    def latent_log_probability(self, prediction, latent):
        drawn = torch.where(latent == (prediction.latent + 7) % 128, self.noise, 0.0)
        return torch.where(latent == prediction.latent, 1 - self.noise, drawn).clamp(min=1e-6).log()


def measure(model, replay=None, starts=64, **options):
    return fidelity(model, replay or game(), context=4, horizon=25, starts=starts, **options)


def test_a_dream_that_knows_the_game_is_perfect():
    measured = measure(Knowing())

    assert measured["code_accuracy"] == [1.0] * 25
    for name in ("1", "5", "10", "15", "25"):
        assert measured[f"code_accuracy_{name}"] == 1.0
        assert measured[f"code_nll_{name}"] == 0.0
        assert measured[f"pixel_error_{name}"] == 0.0
    assert measured["code_nll"] == [0.0] * 25
    for name in ("recall", "recall_lost", "recall_won", "precision", "precision_lost", "precision_won"):
        assert measured[name] == 1.0, name
    for name in ("recall_0_10", "recall_15_25", "end_recall", "end_recall_0_10", "end_recall_15_25", "end_precision"):
        assert measured[name] == 1.0, name
    for name in ("reward_ratio", "reward_ratio_lost", "reward_ratio_won", "end_ratio"):
        assert measured[name] == pytest.approx(1.0), name
    assert measured["calibration_error"] == measured["end_calibration_error"] == 0.0
    for low, high in ((0, 5), (5, 10), (10, 15), (15, 25)):
        assert measured[f"recall_lost_{low}_{high}"] == measured[f"recall_won_{low}_{high}"] == 1.0
    assert measured["reward_correlation"] == pytest.approx(1.0)
    assert measured["reward_dream"] == pytest.approx(measured["reward_real"])
    assert measured["pixel_error"] == measured["pixel_error_codec"] == 0.0


def test_the_numbers_of_windows_and_events_are_told():
    measured = measure(Knowing())

    assert measured["windows_uniform"] == 64
    assert measured["windows_event"] == 32
    assert measured["windows_end"] == 8
    assert measured["events_lost"] >= 16
    assert measured["events_won"] >= 16
    assert measured["events_end"] >= 8


def test_a_point_two_steps_late_is_recalled_and_three_steps_late_is_not():
    assert measure(Knowing(late=2))["recall_lost"] == 1.0
    assert measure(Knowing(late=3))["recall_lost"] == 0.0
    assert measure(Knowing(late=3))["precision"] == 0.0


def test_a_point_less_expected_than_not_is_no_point():
    assert measure(Knowing(strength=0.6))["recall"] == 1.0
    weak = measure(Knowing(strength=0.4))

    assert weak["recall"] == 0.0
    assert "precision" not in weak
    assert weak["reward_dream"] == pytest.approx(0.4 * weak["reward_real"], rel=1e-5)
    assert weak["reward_correlation"] == pytest.approx(1.0)
    assert [weak["reward_ratio_lost"], weak["reward_ratio_won"]] == pytest.approx([0.4, 0.4])
    assert weak["calibration_error"] == pytest.approx(0.6)


def test_a_point_that_never_was_lowers_the_precision_of_its_sign_only():
    measured = measure(Knowing(alarms=(10, 27, 39, 52, 60, 78, 94)))

    assert measured["precision_lost"] < 0.5
    assert measured["precision_won"] == 1.0
    assert measured["precision_lost"] < measured["precision"] < 1.0
    assert measured["recall"] == 1.0


def test_recall_is_told_by_step():
    measured = measure(Knowing(blind_after=3 + 10))

    assert measured["recall_lost_0_5"] == measured["recall_lost_5_10"] == 1.0
    assert measured["recall_lost_10_15"] == measured["recall_lost_15_25"] == 0.0
    assert measured["recall_0_10"] == measured["recall_0_5"] == 1.0
    assert measured["recall_15_25"] == 0.0
    assert 0 < measured["recall_lost"] < 1


def test_wrong_codes_are_counted():
    measured = measure(Knowing(noise=0.25))

    assert np.mean(measured["code_accuracy"]) == pytest.approx(0.75, abs=0.02)
    assert measured["pixel_error"] > 0
    assert measured["pixel_error_codec"] == 0


def test_the_likelihood_is_that_of_the_real_codes_whatever_was_drawn():
    measured = measure(Knowing(noise=0.25))

    assert measured["code_nll"] == pytest.approx([-np.log(0.75)] * 25)
    assert measured["code_nll_10"] == measured["code_nll"][9]
    # One of the four cells shows each of about a hundred steps as often; the others never change.
    assert measured["code_nll_marginal"] == pytest.approx(np.log(LENGTH) / 4, rel=0.05)


def test_a_dream_that_always_loses_is_right_as_often_as_points_are_lost():
    measured = measure(Knowing(strength=0.0, always=-1.0), starts=400)

    assert measured["recall_lost"] == 1.0
    assert "recall_won" in measured and measured["recall_won"] == 0.0
    # A dreamt point is real when one of three falls within two steps of it, of a hundred.
    assert measured["precision_lost"] == measured["precision"] == pytest.approx(0.15, abs=0.04)
    assert measured["calibration_error"] == pytest.approx(1 - measured["precision"])
    assert measured["reward_dream"] == measured["reward_dream_won"] - measured["reward_dream_lost"]
    assert measured["reward_ratio_lost"] == pytest.approx(1 / measured["reward_real_lost"], rel=0.1)


def test_a_dream_that_is_too_sure_of_its_points_is_told_by_how_much():
    # Three lost points are real, two won ones, and three are made up: it is sure of eight and five are real.
    measured = measure(Knowing(alarms=(39, 52, 60)), starts=400)

    assert measured["precision_lost"] == pytest.approx(1 / 2, abs=0.05)
    assert measured["precision"] == pytest.approx(5 / 8, abs=0.05)
    assert measured["calibration_error"] == pytest.approx(1 - measured["precision"])
    assert measured["reward_ratio_lost"] == pytest.approx(2, rel=0.1)
    assert measured["reward_ratio_won"] == pytest.approx(1)


def test_calibration_compares_within_bins_of_equal_certainty():
    half = np.arange(100) % 2 == 0

    assert calibration_error(np.full(100, 0.5), half) == pytest.approx(0.0)
    assert calibration_error(np.full(100, 0.9), half) == pytest.approx(0.4)
    assert calibration_error(np.full(100, 0.1), half) == pytest.approx(0.4)
    # Too sure of one half and not sure enough of the other: the mean would say that all is well.
    assert calibration_error(np.where(half, 0.1, 0.9), half) == pytest.approx(0.9)
    assert calibration_error(np.where(half, 0.1, 1.0), ~half) == pytest.approx(0.05)
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False]), np.array([9.0, 1.0])) == pytest.approx(0.0)


def test_what_is_expected_close_together_is_one_event_as_sure_as_its_sum():
    expected = np.zeros((3, 12))
    expected[0, [2, 3, 4]] = 0.2, 0.5, 0.2
    expected[1, [1, 8]] = 0.6, 0.7
    expected[2, [0, 6]] = 0.05, 0.04

    found = dreamt_events(expected)

    assert found[0, 3] == pytest.approx(0.9)
    assert found[1, 1] == pytest.approx(0.6) and found[1, 8] == pytest.approx(0.7)
    assert (found > 0).sum(1).tolist() == [1, 2, 0]
    assert dreamt_events(np.full((1, 5), 0.9)).max() == 1.0


def test_an_end_two_steps_late_is_recalled_and_three_steps_late_is_not():
    late = measure(Knowing(end_late=2))

    assert late["end_recall"] == late["end_precision"] == 1.0
    # All but the two last steps of the horizon: there the dreamt end is no longer in it.
    assert late["end_ratio"] == pytest.approx(1.0, abs=0.15)
    too_late = measure(Knowing(end_late=3))
    assert too_late["end_recall"] == too_late["end_ratio"] == 0.0
    assert "end_precision" not in too_late


def test_an_end_that_never_was_lowers_the_precision_of_ends_only():
    measured = measure(Knowing(end_alarms=(30, 60)), starts=400)

    assert measured["end_recall"] == measured["precision"] == 1.0
    # A window that starts too close to the end of the episode has no context: of a hundred steps 93 can be dreamt.
    assert measured["end_precision"] == pytest.approx(1 / 3, abs=0.05)
    assert measured["end_calibration_error"] == pytest.approx(1 - measured["end_precision"])
    assert measured["end_ratio"] == pytest.approx(3, rel=0.15)


def test_ends_are_told_by_step():
    measured = measure(Knowing(end_alarms=()), life_loss_ends=False)

    for low, high in ((0, 5), (5, 10), (10, 15), (15, 25), (0, 10)):
        assert measured[f"end_recall_{low}_{high}"] == 1.0


def rare():
    """One lost point in a thousand steps."""
    replay = Replay(1000, frame_shape=(4, 4))
    for step in range(1000):
        replay.append(np.zeros((4, 4), np.uint8), 0, -float(step == 500), step == 999, False, False, step == 0)
    return replay


def test_windows_drawn_for_their_events_are_weighted_back():
    replay = rare()
    drawn = [draw_windows(replay, 4, 25, 64, True, np.random.default_rng(seed)) for seed in range(300)]
    lost = [windows.rewards[:, 2:-2] == -1 for windows in drawn]

    counted = [float((windows.weight[:, None] * events).sum()) for windows, events in zip(drawn, lost, strict=True)]

    # 997 starts have a context, and the point lies in the horizon of 25 of them.
    assert np.mean([windows.weight.sum() for windows in drawn]) == pytest.approx(997, rel=0.05)
    assert np.mean(counted) == pytest.approx(25, rel=0.05)
    assert np.mean([events.sum() for events in lost]) > 10
    assert all(windows.event == 16 for windows in drawn)


def test_rewards_are_compared_even_where_uniform_windows_hold_none():
    measured = [fidelity(Knowing(), rare(), context=4, horizon=25, starts=16, seed=seed) for seed in range(60)]

    assert all(found["reward_real_lost"] > 0 for found in measured)
    assert np.mean([found["reward_real_lost"] for found in measured]) == pytest.approx(1 / 1000, rel=0.3)


def test_pixels_are_compared_where_the_frame_is_not_background():
    assert measure(Knowing(darker=20))["pixel_error"] == pytest.approx(20 / 255, abs=0.02)
    still = measure(Knowing(darker=20), game(frames_of=lambda step: 50))

    assert not [key for key in still if key.startswith("pixel_error")]


def test_one_seed_gives_one_measurement():
    first, second, third = (measure(Knowing(noise=0.2), seed=seed) for seed in (1, 1, 2))

    assert first == second != third


def test_what_never_happens_is_not_reported():
    measured = measure(Knowing(strength=0.0), game(events=False))

    assert measured["events_lost"] == measured["events_won"] == measured["windows_event"] == 0
    assert not [key for key in measured if key.startswith(("recall", "precision", "event_"))]
    assert "reward_correlation" not in measured
    assert measured["end_recall"] == 1.0


def test_a_lost_life_is_an_end_when_the_dream_was_taught_so():
    replay = Replay(80, frame_shape=(4, 4))
    for step in range(80):
        frame = np.full((4, 4), 100, np.uint8)
        frame[:2, :2] = 2 * step
        replay.append(frame, 0, 0.0, False, False, step == 40, step == 0)

    assert measure(Knowing(), replay)["end_recall"] == 0.0
    assert "end_recall" not in measure(Knowing(), replay, life_loss_ends=False)


def test_nothing_after_the_end_of_an_episode_is_compared():
    measured = measure(Knowing(), game(episodes=30, length=12, events=False))

    # Context 4 leaves 8 dreamt frames of an episode of 12.
    assert measured["code_accuracy"] == [1.0] * 8
    assert "code_accuracy_10" not in measured


def test_episodes_shorter_than_the_context_are_refused():
    with pytest.raises(ReplayError, match="at least 4 steps"):
        measure(Knowing(), game(episodes=10, length=3))


@pytest.mark.parametrize("name", ["context", "horizon", "starts"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(InvalidInputError, match=name):
        fidelity(Knowing(), game(), **{name: 0})


def test_the_dream_starts_from_the_last_frame_of_the_context_and_is_given_every_action():
    seen = []

    class Watching(Knowing):
        def step(self, latent, action, state):
            seen.append((int(latent[0, 0, 0]), int(action[0])))
            return super().step(latent, action, state)

    context = torch.full((1, 3, 2, 2), 50)
    context[0, :, 0, 0] = torch.arange(5, 8)
    dream = open_loop(Watching(), context, torch.arange(5)[None], torch.Generator())

    assert seen == [(5, 0), (6, 1), (7, 2), (8, 3), (9, 4)]
    assert dream.latents[0, :, 0, 0].tolist() == [8, 9, 10]
    assert dream.rewards.shape == dream.ends.shape == (1, 3)


def test_a_dream_without_an_action_for_its_first_step_is_refused():
    with pytest.raises(InvalidInputError, match="actions"):
        open_loop(Knowing(), torch.zeros(1, 3, 2, 2).long(), torch.zeros(1, 2).long(), torch.Generator())


def test_spans_are_those_of_the_episodes():
    replay = Replay(10, frame_shape=(1, 1))
    for step, (ended, first) in enumerate([(0, 1), (0, 0), (1, 0), (0, 1), (0, 0), (0, 1), (0, 0)]):
        replay.append(np.full((1, 1), step, np.uint8), 0, 0.0, bool(ended), False, False, bool(first))

    begin, stop = episode_spans(replay)

    assert begin.tolist() == [0, 0, 0, 3, 3, 5, 5]
    assert stop.tolist() == [3, 3, 3, 5, 5, 7, 7]


def drawn_at(monkeypatch, call):
    """The temperatures at which latents are drawn, and what came of the call."""
    temperatures = set()
    original = Knowing.draw_latent

    def watched(self, prediction, uniforms, temperature=1.0, rewards=None):
        temperatures.add(temperature)
        return original(self, prediction, uniforms, temperature)

    monkeypatch.setattr(Knowing, "draw_latent", watched)
    return temperatures, call()


def test_dreams_are_measured_at_the_temperature_that_is_asked_for(monkeypatch):
    assert drawn_at(monkeypatch, lambda: measure(Knowing()))[0] == {1.0}
    assert drawn_at(monkeypatch, lambda: measure(Knowing(), temperature=0.1))[0] == {0.1}


def test_at_temperature_zero_one_dream_comes_of_a_context_and_the_likelihood_stays_that_of_the_distribution():
    model = make_tiny_dream().world_model
    starts = make_tiny_dream().starts
    context, actions = starts.latents[:4, :3].long(), starts.actions[:4]
    real = starts.latents[:4, 3:].long()

    def dream(temperature, seed):
        generator = torch.Generator().manual_seed(seed)
        return open_loop(model, context, actions, generator, real, temperature=temperature)

    cold = [dream(0.0, seed) for seed in (1, 2)]
    assert torch.equal(cold[0].latents, cold[1].latents)
    assert not torch.equal(dream(1.0, 1).latents, dream(1.0, 2).latents)
    # Before anything was drawn, both saw the same.
    assert torch.equal(cold[0].log_likelihood[:, 0], dream(1.0, 1).log_likelihood[:, 0])


def test_precision_is_told_by_range_of_steps_and_calibration_by_bin():
    measured = measure(Knowing())
    for name in ("precision_0_5", "precision_lost_10_15", "precision_won_15_25", "end_precision_5_10"):
        assert measured.get(name, 1.0) == 1.0, name
    assert {"precision_0_5", "precision_15_25"} <= set(measured)
    sure, real, share = (measured[f"calibration_{part}"] for part in ("confidence", "real", "share"))
    assert sure == real == pytest.approx([1.0]) and share == pytest.approx([1.0])
    weak = measure(Knowing(late=3))
    held = zip(weak["calibration_confidence"], weak["calibration_real"], weak["calibration_share"], strict=True)
    error = sum(part * abs(certain - true) for certain, true, part in held)
    assert error == pytest.approx(weak["calibration_error"])
