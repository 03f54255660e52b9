import numpy as np
import pytest

from dreamgym.errors import InvalidInputError, ReplayError
from dreamgym.replay import Replay
from dreamgym.surprise import SurpriseWindows


def records(count, ends=(), capacity=None, rewarded=()):
    """Experience in which episodes end, and rewards come, at given steps."""
    replay = Replay(capacity or count, (4, 4))
    for step in range(count):
        first = step == 0 or step - 1 in ends
        replay.append(np.zeros((4, 4), np.uint8), 0, float(step in rewarded), step in ends, False, False, first)
    return replay


def known(replay, losses, limit=8.0, power=1.0, settling=0):
    """A sampler to which all losses are known."""
    sampler = SurpriseWindows(limit, power, settling)
    sampler.restore(np.asarray(losses, np.float32), 0)
    sampler.follow(replay)
    return sampler


def test_windows_are_drawn_in_proportion_to_the_loss_of_their_targets():
    replay = records(300)
    losses = np.ones(300)
    losses[100:110] = 3.0
    sampler = known(replay, losses)
    drawn = sampler.draw(replay, 200_000, 3, np.random.default_rng(0))
    counts = np.bincount(drawn.indices[:, 0], minlength=298)
    expected = losses[1:299] + losses[2:300]
    assert np.allclose(counts / counts.sum(), expected / expected.sum(), atol=1e-3)
    assert drawn.indices.shape == (200_000, 3)


def test_a_power_of_the_loss_draws_what_is_badly_known_more_often_still():
    replay = records(300)
    losses = np.ones(300)
    losses[100:110] = 3.0
    sampler = known(replay, losses, limit=20.0, power=2.0)
    counts = np.bincount(sampler.draw(replay, 200_000, 2, np.random.default_rng(0)).indices[:, 0], minlength=299)
    assert np.allclose(counts / counts.sum(), losses[1:] ** 2 / (losses[1:] ** 2).sum(), atol=1.5e-3)


def test_what_follows_a_reward_counts_as_an_average_of_the_rest_at_most():
    replay = records(300, ends=[200], rewarded=[99])
    losses = np.ones(300)
    losses[100:103] = 5.0  # the score
    losses[103] = 3.0  # played for
    losses[201] = 5.0  # another episode's scene
    losses[101] = 0.5  # foretold
    counted = losses.copy()
    others = np.delete(losses, [0, 1, 2, 100, 101, 102, 201, 202, 203])
    counted[[100, 102, 201]] = others.mean()
    drawn = known(replay, losses, settling=3).draw(replay, 400_000, 2, np.random.default_rng(0))
    counts = np.bincount(drawn.indices[:, 0], minlength=299)
    assert np.allclose(counts / counts.sum(), counted[1:] / counted[1:].sum(), atol=4e-4)


def test_settling_longer_than_rewards_are_remembered_is_refused():
    with pytest.raises(InvalidInputError, match="settling: expected 0 to 128, got 129"):
        SurpriseWindows(8.0, settling=129)


def test_weighted_windows_count_as_if_they_were_drawn_evenly():
    replay = records(300)
    losses = np.random.default_rng(1).exponential(size=300)
    losses[100:110] = 100.0
    drawn = known(replay, losses).draw(replay, 400_000, 3, np.random.default_rng(0))
    starts = drawn.indices[:, 0]
    assert drawn.weights.dtype == np.float32 and np.ptp(drawn.weights) > 2
    shares = np.bincount(starts, drawn.weights, minlength=298) / len(starts)
    assert np.allclose(shares, 1 / 298, rtol=0.25)
    assert drawn.weights.mean() == pytest.approx(1, abs=0.02)


def test_no_window_is_drawn_more_or_less_often_than_the_limit_says():
    replay = records(1_000)
    losses = np.zeros(1_000)
    losses[500:502] = 1e6
    drawn = known(replay, losses, limit=4.0).draw(replay, 400_000, 2, np.random.default_rng(0))
    counts = np.bincount(drawn.indices[:, 0], minlength=999)
    often, seldom = counts[499:501].mean(), np.delete(counts, [499, 500]).mean()
    assert often / seldom == pytest.approx(16, rel=0.1)


def test_a_record_of_unknown_loss_counts_as_an_average_one():
    replay = records(101)
    losses = np.full(101, 2.0)
    losses[40:60] = np.nan
    drawn = known(replay, losses).draw(replay, 100_000, 2, np.random.default_rng(0))
    counts = np.bincount(drawn.indices[:, 0], minlength=100)
    assert counts.min() > 0.85 * counts.mean() and counts.max() < 1.15 * counts.mean()


def test_without_any_loss_all_windows_are_alike():
    replay = records(50)
    sampler = SurpriseWindows(8.0)
    assert sampler.follow(replay) == 0
    starts = sampler.draw(replay, 46_000, 5, np.random.default_rng(0)).indices[:, 0]
    counts = np.bincount(starts, minlength=46)
    assert len(counts) == 46 and counts.min() > 800


def test_losses_beyond_the_episode_are_not_remembered():
    replay = records(20, ends=(9,))
    sampler = SurpriseWindows(8.0)
    sampler.follow(replay)
    windows = replay.windows_from([6], 8)
    sampler.update(windows, np.arange(1.0, 8.0, dtype=np.float32)[None])
    assert sampler.losses[7:10].tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(sampler.losses[10:]).all() and np.isnan(sampler.losses[:7]).all()


def test_losses_that_are_no_numbers_are_ignored():
    replay = records(10)
    sampler = known(replay, np.full(10, 5.0))
    sampler.update(replay.windows_from([2], 5), np.array([[np.nan, np.nan, 1.0, 2.0]], np.float32))
    assert sampler.losses.tolist() == [5, 5, 5, 5, 5, 1, 2, 5, 5, 5]


def test_records_that_are_only_shown_are_no_targets():
    replay = records(300)
    losses = np.ones(300)
    losses[100:110] = 3.0
    drawn = known(replay, losses).draw(replay, 200_000, 5, np.random.default_rng(0), shown=2)
    counts = np.bincount(drawn.indices[:, 0], minlength=296)
    expected = losses[3:299] + losses[4:300]
    assert np.allclose(counts / counts.sum(), expected / expected.sum(), atol=1e-3)


def test_new_records_join_and_those_of_another_replay_do_not():
    replay = records(30, capacity=60)
    sampler = known(replay, np.ones(30))
    for _ in range(10):
        replay.append(np.zeros((4, 4), np.uint8), 0, 0.0, False, False, False, False)
    assert sampler.follow(replay) == 30
    assert (sampler.losses[:30] == 1).all() and np.isnan(sampler.losses[30:]).all() and len(sampler.losses) == 40
    assert sampler.follow(records(40)) == 0
    assert np.isnan(sampler.losses).all()


def test_losses_move_with_their_records_when_the_oldest_are_dropped():
    replay = records(30)
    sampler = known(replay, np.arange(30.0))
    for _ in range(4):
        replay.append(np.zeros((4, 4), np.uint8), 0, 0.0, False, False, False, False)
    assert sampler.follow(replay) == 26
    assert sampler.losses[:26].tolist() == list(range(4, 30)) and np.isnan(sampler.losses[26:]).all()
    assert sampler.first == 4 and sampler.follow(replay) == 30
    other = SurpriseWindows(8.0)
    other.restore(sampler.losses, sampler.first)
    replay.append(np.zeros((4, 4), np.uint8), 0, 0.0, False, False, False, False)
    assert other.follow(replay) == 29 and other.losses[:25].tolist() == list(range(5, 30))
    for _ in range(60):
        replay.append(np.zeros((4, 4), np.uint8), 0, 0.0, False, False, False, False)
    assert other.follow(replay) == 0 and np.isnan(other.losses).all() and len(other.losses) == 30


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidInputError, match="limit"):
        SurpriseWindows(0.5)
    with pytest.raises(InvalidInputError, match="records"):
        SurpriseWindows(2.0).restore(np.zeros((2, 2)), 0)
    replay = records(5)
    sampler = known(replay, np.ones(5))
    with pytest.raises(ReplayError):
        sampler.draw(replay, 2, 9, np.random.default_rng(0))


def test_a_share_of_the_windows_is_drawn_by_how_rare_they_are():
    replay = records(300)
    rarity = np.ones(300)
    rarity[100:110] = 9.0
    sampler = SurpriseWindows(20.0, rare_share=0.25)
    sampler.restore(np.ones(300, np.float32), 0)
    sampler.follow(replay)
    sampler.rate(rarity)
    drawn = sampler.draw(replay, 200_000, 2, np.random.default_rng(0))
    counts = np.bincount(drawn.indices[:, 0], minlength=299) / 200_000
    assert np.allclose(counts, 0.75 / 299 + 0.25 * rarity[1:] / rarity[1:].sum(), atol=1e-3)
    even = np.bincount(drawn.indices[:, 0], drawn.weights, minlength=299) / 200_000
    assert np.allclose(even, 1 / 299, rtol=0.25)


def test_a_share_of_the_windows_is_drawn_evenly_and_bounds_their_weights():
    replay = records(300)
    losses = np.ones(300)
    losses[100:110] = 1_000.0
    largest = []
    for share in (0.0, 0.25, 1.0):
        sampler = SurpriseWindows(64.0, even_share=share)
        sampler.restore(losses.astype(np.float32), 0)
        sampler.follow(replay)
        drawn = sampler.draw(replay, 200_000, 2, np.random.default_rng(0))
        largest.append(drawn.weights.max())
        if share == 0.25:
            counts = np.bincount(drawn.indices[:, 0], minlength=299) / 200_000
            clipped = np.clip(losses[1:], losses[1:].mean() / 64, losses[1:].mean() * 64)
            assert np.allclose(counts, 0.25 / 299 + 0.75 * clipped / clipped.sum(), atol=1.5e-3)
    assert largest[0] > 10 and 2 < largest[1] <= 4 and largest[2] == 1


def test_what_is_rare_about_a_score_counts_as_an_average_of_the_rest():
    replay = records(300, rewarded=[99])
    rarity = np.ones(300)
    rarity[100] = 50.0
    sampler = SurpriseWindows(64.0, settling=3, rare_share=1.0)
    sampler.follow(replay)
    sampler.rate(rarity)
    starts = sampler.draw(replay, 100_000, 2, np.random.default_rng(0)).indices[:, 0]
    assert (starts == 99).mean() == pytest.approx(1 / 299, rel=0.2)


def test_rarity_that_was_not_said_or_is_of_other_records_is_refused():
    replay = records(10)
    sampler = SurpriseWindows(8.0, rare_share=0.5)
    sampler.follow(replay)
    with pytest.raises(InvalidInputError, match="not rated"):
        sampler.draw(replay, 1, 2, np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match=r"rarity: expected \(10,\), got \(9,\)"):
        sampler.rate(np.ones(9))
    for shares in ({"rare_share": 2.0}, {"even_share": -0.1}, {"rare_share": 0.6, "even_share": 0.6}):
        with pytest.raises(InvalidInputError, match="at least 0 each and at most 1 together, got"):
            SurpriseWindows(8.0, **shares)


def test_of_many_records_the_weights_are_computed_anew_every_few_draws(monkeypatch):
    replay = records(300)
    losses = np.ones((1, 3), np.float32)

    def shares(draws):
        """Share of windows from records 100 to 102 in every draw, when their losses rise before the second."""
        sampler, rng, found = known(replay, np.ones(300), limit=1e6), np.random.default_rng(0), []
        for index in range(draws):
            starts = sampler.draw(replay, 2_000, 2, rng).indices[:, 0]
            found.append(((starts >= 99) & (starts < 102)).mean())
            if index == 0:
                sampler.update(replay.windows_from([99], 4), 1_000 * losses)
        # What all is drawn by has changed.
        sampler.rate(np.ones(300))
        starts = sampler.draw(replay, 2_000, 2, rng).indices[:, 0]
        return found, ((starts >= 99) & (starts < 102)).mean()

    found, rated = shares(3)
    assert found[0] < 0.1 and min(found[1:]) > 0.8 and rated > 0.8
    monkeypatch.setattr("dreamgym.surprise._RENEWED", 100)
    found, rated = shares(4)
    assert max(found[:3]) < 0.1 and found[3] > 0.8
    found, rated = shares(2)
    assert max(found) < 0.1 and rated > 0.8
