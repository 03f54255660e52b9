import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym import replay as replay_module
from dreamgym import shards as shards_module
from dreamgym.errors import InvalidInputError, ReplayError
from dreamgym.real import make_game_env
from dreamgym.replay import LONGEST_ELAPSED, Replay
from dreamgym.start_weights import StartWeights
from dreamgym.sumtree import SumTree

settings.register_profile("replay", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("replay")

FRAME_SHAPE = (2, 3)
ENDS = ("terminated", "truncated", "left")  # "left": a run that was killed, the env reset without an end


class Reference:
    """The records of a ring as plain lists: what a buffer must agree with."""

    def __init__(self, episodes: list[tuple[int, str]], capacity: int) -> None:
        records: list[dict[str, Any]] = []
        for episode, (length, end) in enumerate(episodes):
            for step in range(length):
                last = step == length - 1
                records.append(
                    {
                        "number": len(records),
                        "episode": episode,
                        "terminated": last and end == "terminated",
                        "truncated": last and end == "truncated",
                        "life_lost": len(records) % 5 == 3,
                        "reward": float(len(records) % 7 == 2),
                        "first": step == 0,
                    }
                )
        self.all = records
        self.held = records[-capacity:]

    def fill(self, replay: Replay, start: int = 0, stop: int | None = None) -> Replay:
        for record in self.all[start:stop]:
            replay.append(
                frame_of(record["number"]),
                record["number"] % 4,
                record["reward"],
                record["terminated"],
                record["truncated"],
                record["life_lost"],
                record["first"],
            )
        return replay

    def episode_start(self, index: int) -> int:
        """The oldest record held of the episode of a record."""
        while index > 0 and self.held[index - 1]["episode"] == self.held[index]["episode"]:
            index -= 1
        return index


def frame_of(number: int) -> np.ndarray:
    frame = np.full(FRAME_SHAPE, 7, np.uint8)
    frame[0, 0], frame[1, 2] = number % 256, number // 256
    return frame


def numbers_of(frames: np.ndarray) -> np.ndarray:
    return frames[..., 0, 0].astype(int) + 256 * frames[..., 1, 2].astype(int)


def build(episodes: list[tuple[int, str]], capacity: int) -> tuple[Replay, Reference]:
    reference = Reference(episodes, capacity)
    return reference.fill(Replay(capacity, FRAME_SHAPE)), reference


def assert_equal(left: Replay, right: Replay) -> None:
    assert len(left) == len(right)
    every = np.arange(len(left))
    for name in ("actions_at", "rewards_at", "terminated_at", "truncated_at", "life_lost_at", "first_at", "ends_at"):
        one, other = getattr(left, name)(every), getattr(right, name)(every)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other), name
    assert np.array_equal(left.frames_at(every, 3), right.frames_at(every, 3))
    assert np.array_equal(left.visits, right.visits)
    assert left.iter_episodes() == right.iter_episodes()


episodes_strategy = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(ENDS)), min_size=1, max_size=12)
capacity_strategy = st.integers(1, 60)
seed_strategy = st.integers(0, 2**32 - 1)


# What is held


@given(episodes_strategy, capacity_strategy)
def test_the_newest_records_are_held_in_order(episodes: list[tuple[int, str]], capacity: int) -> None:
    replay, reference = build(episodes, capacity)
    held, every = reference.held, np.arange(len(replay))
    assert len(replay) == len(held)
    assert replay.appended == len(reference.all)
    assert numbers_of(replay.frames_at(every)[:, 0]).tolist() == [record["number"] for record in held]
    assert replay.actions_at(every).tolist() == [record["number"] % 4 for record in held]
    assert replay.rewards_at(every).tolist() == [record["reward"] for record in held]
    for name in ("terminated", "truncated", "life_lost", "first"):
        assert getattr(replay, f"{name}_at")(every).tolist() == [record[name] for record in held]
    assert replay.ends_at(every).tolist() == [record["terminated"] or record["truncated"] for record in held]


@given(episodes_strategy, capacity_strategy, st.integers(1, 6))
def test_stacked_frames_never_reach_across_an_episode_start(
    episodes: list[tuple[int, str]], capacity: int, stack: int
) -> None:
    replay, reference = build(episodes, capacity)
    frames = replay.frames_at(np.arange(len(replay)), stack)
    assert frames.shape == (len(replay), stack, *FRAME_SHAPE)
    for index in range(len(replay)):
        first = reference.episode_start(index)
        wanted = [reference.held[max(index - back, first)]["number"] for back in reversed(range(stack))]
        assert numbers_of(frames[index]).tolist() == wanted


@given(episodes_strategy, capacity_strategy)
def test_episodes_are_spans_that_cover_the_buffer(episodes: list[tuple[int, str]], capacity: int) -> None:
    replay, reference = build(episodes, capacity)
    spans = replay.iter_episodes()
    assert [index for start, stop in spans for index in range(start, stop)] == list(range(len(replay)))
    for start, stop in spans:
        assert len({record["episode"] for record in reference.held[start:stop]}) == 1
    assert len(spans) == len({record["episode"] for record in reference.held})


def test_steps_since_the_last_reward_are_those_that_one_counts():
    rng = np.random.default_rng(0)
    replay = Replay(150, (4, 4))
    expected, since = [], 0
    for step in range(220):
        first = step == 0 or step % 60 == 17
        since = 0 if first else since
        expected.append(since)
        reward = float(rng.choice([*[0.0] * 9, 1.0, -3.0, 0.4]))
        replay.append(np.zeros((4, 4), np.uint8), 0, reward, step % 60 == 16, False, False, first)
        since = 0 if abs(reward) > 0.5 else since + 1
    # Of the episode whose beginning was overwritten nothing is known before the first record held.
    counted, held = replay.elapsed_at(np.arange(150)).tolist(), expected[70:]
    begun = held.index(0)
    assert begun > 2 and counted[:begun] == [LONGEST_ELAPSED] * begun and counted[begun:] == held[begun:]
    assert replay.elapsed_at([[begun, 149]]).shape == (1, 2)
    assert replay.elapsed_at(np.arange(150), longest=3).tolist() == [min(steps, 3) for steps in counted]
    with pytest.raises(InvalidInputError, match="longest"):
        replay.elapsed_at([0], longest=0)
    with pytest.raises(InvalidInputError):
        replay.elapsed_at([150])


def test_indices_of_any_shape_are_served() -> None:
    replay, _ = build([(10, "left")], 20)
    indices = np.arange(6).reshape(2, 3)
    assert replay.frames_at(indices, 4).shape == (2, 3, 4, *FRAME_SHAPE)
    assert replay.rewards_at(indices).shape == (2, 3)
    assert replay.frames_at(3, 2).shape == (2, *FRAME_SHAPE)
    assert replay.actions_at([]).shape == (0,)


def test_continuous_actions_are_kept_as_they_are() -> None:
    replay = Replay(4, FRAME_SHAPE, (2,), np.float32)
    actions = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    for step, action in enumerate(actions):
        replay.append(frame_of(step), action, -0.5, False, False, False, step == 0)
    assert np.array_equal(replay.actions_at(np.arange(4)), actions[2:])
    with tempfile.TemporaryDirectory() as folder:
        replay.save(folder)
        assert_equal(Replay.load(folder), replay)


def test_the_background_is_the_median_frame() -> None:
    replay = Replay(2000, FRAME_SHAPE)
    rng = np.random.default_rng(0)
    for step in range(1500):
        frame = np.full(FRAME_SHAPE, 90, np.uint8)
        frame[rng.integers(2), rng.integers(3)] = 255
        replay.append(frame, 0, 0.0, False, False, False, step == 0)
    background = replay.background()
    assert background.dtype == np.uint8
    assert np.array_equal(background, np.full(FRAME_SHAPE, 90))


def test_an_empty_ring_for_a_hundred_thousand_frames_takes_no_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    replay = Replay(102_400)
    for step in range(100):
        replay.append(np.zeros((96, 96), np.uint8), 0, 0.0, False, False, False, step == 0)
    replay.sample_windows(4, 8, np.random.default_rng(0), weights="balanced")
    assert resident() - before < 50e6


# Windows


@given(
    episodes_strategy, capacity_strategy, st.integers(1, 15), st.sampled_from(["uniform", "balanced"]), seed_strategy
)
def test_no_window_crosses_an_unmasked_episode_end_or_the_rings_seam(
    episodes: list[tuple[int, str]], capacity: int, length: int, weights: Any, seed: int
) -> None:
    replay, reference = build(episodes, capacity)
    rng = np.random.default_rng(seed)
    if len(replay) < length:
        with pytest.raises(ReplayError, match=f"at least {length}"):
            replay.sample_windows(3, length, rng)
        return
    replay.prioritise_events(length, 3.0)
    indices, mask, importance = replay.sample_windows(8, length, rng, weights=weights)
    assert indices.shape == mask.shape == (8, length)
    assert importance.shape == (8,)
    assert indices.min() >= 0
    assert indices.max() < len(replay)
    numbers = numbers_of(replay.frames_at(indices)[:, :, 0])
    assert np.array_equal(numbers, numbers[:, :1] + np.arange(length))
    for row, shown in zip(indices, mask, strict=True):
        episode = reference.held[row[0]]["episode"]
        assert shown.tolist() == [reference.held[index]["episode"] == episode for index in row]
        ends = replay.ends_at(row)
        if ends.any():
            assert shown[: ends.argmax() + 1].all() or not shown[ends.argmax()]
            assert not shown[ends.argmax() + 1 :].any()


@pytest.mark.parametrize("weights", ["uniform", "balanced"])
@pytest.mark.parametrize("full", [False, True])
def test_every_possible_start_is_drawn_and_no_other(weights: Any, full: bool) -> None:
    replay, _ = build([(9, "terminated")] * (5 if full else 2), 23)
    starts = replay.sample_windows(4000, 6, np.random.default_rng(0), weights=weights).indices[:, 0]
    assert np.unique(starts).tolist() == list(range(len(replay) - 5))


def test_uniform_windows_start_everywhere_equally_often() -> None:
    replay, _ = build([(10, "terminated")] * 4, 30)
    starts = replay.sample_windows(50_000, 5, np.random.default_rng(0)).indices[:, 0]
    counts = np.bincount(starts, minlength=26)
    assert np.abs(counts / counts.mean() - 1).max() < 0.1
    assert np.array_equal(replay.visits[:26], counts)


def test_one_generator_state_draws_one_batch() -> None:
    for weights in ("uniform", "balanced"):
        first, second = (build([(40, "left")], 30)[0] for _ in range(2))
        for _ in range(3):
            one = first.sample_windows(5, 4, np.random.default_rng(1), weights=weights)
            other = second.sample_windows(5, 4, np.random.default_rng(1), weights=weights)
            assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


# Balancing and priorities


def test_balanced_sampling_prefers_what_was_not_visited() -> None:
    reference = Reference([(200, "left")], 300)
    replay = reference.fill(Replay(300, FRAME_SHAPE), 0, 100)
    rng = np.random.default_rng(0)
    for _ in range(100):
        replay.sample_windows(100, 1, rng)
    reference.fill(replay, 100)
    starts = replay.sample_windows(1000, 1, rng, weights="balanced").indices[:, 0]
    assert np.mean(starts >= 100) > 0.97
    uniform = replay.sample_windows(1000, 1, rng).indices[:, 0]
    assert 0.4 < np.mean(uniform >= 100) < 0.6
    for _ in range(1000):
        replay.sample_windows(100, 1, rng, weights="balanced")
    # softmax(-visits / tau) pulls the counts together: far closer than the hundreds of visits that they have by now.
    assert abs(replay.visits[:100].mean() - replay.visits[100:].mean()) < 40


@pytest.mark.parametrize("tau", [5.0, 20.0])
@pytest.mark.parametrize("level", [0, 10**6])
def test_balanced_draws_follow_the_softmax_however_large_the_visits(tau: float, level: int) -> None:
    starts = StartWeights(8)
    starts.visits[:] = level + np.array([0, 5, 10, 20, 30, 40, 50, 10**4])
    before = starts.visits.copy()
    wanted = np.exp(-(before - before.min()) / tau)
    # One draw at a time from fresh visits: visits shift the distribution.
    rng, count = np.random.default_rng(0), 20_000
    slots, importance = starts.draw([(0, 8)], count, rng, balanced=True, tau=tau, prioritised=True)
    assert np.allclose(np.bincount(slots, minlength=8) / count, wanted / wanted.sum(), atol=0.012)
    assert np.array_equal(starts.visits - before, np.bincount(slots, minlength=8))
    assert np.all(importance == 1)


def test_balanced_draws_go_on_when_all_visits_grow_without_bound() -> None:
    starts = StartWeights(4)
    rng = np.random.default_rng(0)
    for _ in range(60):
        slots, _ = starts.draw([(0, 4)], 4000, rng, balanced=True, tau=1.0, prioritised=True)
    assert starts.visits.sum() == 60 * 4000
    assert np.ptp(starts.visits) <= 4000
    assert len(np.unique(slots)) >= 1


def test_visits_can_be_set_back_and_the_same_draws_follow() -> None:
    replay, _ = build([(40, "left")], 30)
    rng = np.random.default_rng(0)
    for _ in range(20):
        replay.sample_windows(30, 2, rng, weights="balanced")
    visits, state = replay.visits, rng.bit_generator.state
    drawn = replay.sample_windows(30, 2, rng, weights="balanced").indices
    replay.visits = visits
    rng.bit_generator.state = state
    assert np.array_equal(replay.sample_windows(30, 2, rng, weights="balanced").indices, drawn)
    fresh, _ = build([(40, "left")], 30)
    fresh.visits = visits
    rng.bit_generator.state = state
    assert np.array_equal(fresh.sample_windows(30, 2, rng, weights="balanced").indices, drawn)
    for wrong in (visits[1:], visits - 1000, visits.astype(float)):
        with pytest.raises(InvalidInputError, match="visits"):
            replay.visits = wrong


def test_an_overwritten_record_takes_its_visits_and_priority_with_it() -> None:
    reference = Reference([(40, "left")], 10)
    replay = reference.fill(Replay(10, FRAME_SHAPE), 0, 10)
    replay.set_priority(np.arange(10), 50.0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        replay.sample_windows(10, 1, rng, weights="balanced")
    reference.fill(replay, 10, 15)
    assert np.all(replay.visits[:5] > 0)
    assert np.all(replay.visits[5:] == 0)
    starts = replay.sample_windows(1000, 1, rng).indices[:, 0]
    assert 0.93 < np.mean(starts < 5) <= 1.0


def test_priorities_multiply_the_chance_of_a_start_and_the_weights_undo_them() -> None:
    replay, _ = build([(20, "left")], 20)
    replay.set_priority([3, 7], [9.0, 4.0])
    indices, _, importance = replay.sample_windows(50_000, 1, np.random.default_rng(0))
    starts = indices[:, 0]
    counts = np.bincount(starts, minlength=20)
    chances = np.ones(20)
    chances[[3, 7]] = 9, 4
    assert np.allclose(counts / len(starts), chances / chances.sum(), atol=0.006)
    assert np.allclose(importance, (chances.sum() / 20 / chances)[starts])
    values = np.random.default_rng(1).normal(size=20)
    assert np.mean(importance * values[starts]) == pytest.approx(values.mean(), abs=0.02)
    plain = replay.sample_windows(5000, 1, np.random.default_rng(0), prioritised=False)
    assert np.all(plain.weights == 1)
    assert np.bincount(plain.indices[:, 0], minlength=20).max() < 330


def test_weights_undo_the_priorities_but_not_the_balancing() -> None:
    starts = StartWeights(6)
    starts.visits[:] = [0, 0, 0, 20, 20, 20]
    starts.set_factors(np.array([0, 3]), 5.0)
    balance = np.exp(-starts.visits / 20)
    slots, importance = starts.draw(
        [(0, 6)], 40_000, np.random.default_rng(0), balanced=True, tau=20.0, prioritised=True
    )
    assert importance.mean() == pytest.approx(1, abs=0.02)
    weighted = np.bincount(slots, weights=importance, minlength=6) / len(slots)
    assert np.allclose(weighted, balance / balance.sum(), atol=0.01)


@pytest.mark.parametrize("shown", [0, 2])
@given(episodes_strategy, capacity_strategy, st.integers(1, 9))
def test_events_ahead_in_the_episode_make_a_start_more_likely(
    shown: int, episodes: list[tuple[int, str]], capacity: int, length: int
) -> None:
    replay, reference = build(episodes, capacity)
    replay.set_priority(np.arange(len(replay)), 77.0)
    replay.prioritise_events(length, 4.0, shown)
    factors = replay._starts._factors[replay._slots(np.arange(len(replay)))]
    for index, factor in enumerate(factors):
        window = reference.held[index : index + length]
        window = [record for record in window if record["episode"] == reference.held[index]["episode"]]
        counted = window[shown:]
        eventful = any(record["reward"] or record["terminated"] or record["life_lost"] for record in counted)
        assert factor == (4.0 if eventful else 1.0)


def test_the_cost_of_a_batch_does_not_grow_with_the_buffer() -> None:
    class Counting(np.ndarray):
        touched = 0

        def __getitem__(self, key: Any) -> Any:
            result = super().__getitem__(key)
            Counting.touched += np.size(result)
            return np.asarray(result)

        def __setitem__(self, key: Any, value: Any) -> None:
            Counting.touched += np.size(np.asarray(key))
            super().__setitem__(key, value)

    def touched(records: int) -> int:
        replay = Replay(records, (1, 1))
        for step in range(records + 5):
            replay.append(np.zeros((1, 1), np.uint8), 0, 0.0, False, False, False, step == 0)
        replay.set_priority([0], 2.0)
        rng = np.random.default_rng(0)
        replay.sample_windows(16, 4, rng, weights="balanced")
        for tree in replay._starts._trees.values():
            tree._nodes = tree._nodes.view(Counting)
        Counting.touched = 0
        with mock.patch.object(SumTree, "__init__", side_effect=AssertionError("a tree was rebuilt")):
            for _ in range(10):
                replay.sample_windows(16, 4, rng, weights="balanced")
        return Counting.touched

    small, large = touched(256), touched(16_384)
    assert small > 0
    assert large <= small * 2  # 14 levels instead of 8


# Sum tree


@given(st.lists(st.integers(0, 9), min_size=1, max_size=70), seed_strategy)
def test_a_sum_tree_sums_and_draws_from_any_ranges(weights: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = SumTree(np.array(weights, float))
    changed = rng.integers(len(weights), size=5)
    values = rng.integers(0, 9, size=5).astype(float)
    tree.set(changed, values)
    plain = np.array(weights, float)
    plain[changed] = values
    assert np.array_equal(tree.get(np.arange(len(weights))), plain)
    low, middle, high = np.sort(rng.integers(0, len(weights) + 1, size=3)).tolist()
    ranges = [(middle, high), (0, low)]
    inside = np.r_[middle:high, 0:low].astype(int)
    assert tree.total(ranges) == plain[inside].sum()
    if plain[inside].sum() == 0:
        return
    count = 4000
    counts = np.bincount(tree.draw(ranges, (np.arange(count) + 0.5) / count), minlength=len(weights))
    wanted = np.zeros(len(weights))
    wanted[inside] = plain[inside] / plain[inside].sum() * count
    # Evenly spaced uniforms: a slot gets its share to within one draw at either end.
    assert np.abs(counts - wanted).max() <= 1
    assert np.all(counts[plain == 0] == 0)


def test_a_tiny_weight_is_drawn_beside_a_huge_one_outside_the_range() -> None:
    tree = SumTree(np.array([1e250, 1e-250, 3e-250, 1e250]))
    slots = tree.draw([(1, 3)], (np.arange(400) + 0.5) / 400)
    assert np.bincount(slots, minlength=4).tolist() == [0, 100, 300, 0]


def test_a_uniform_next_to_one_stays_inside() -> None:
    tree = SumTree(np.array([0.1, 0.2, 0.3, 0.0, 0.0]))
    assert tree.draw([(0, 5)], np.array([np.nextafter(1.0, 0.0)])).tolist() == [2]


# Starts of dreams


@given(episodes_strategy, capacity_strategy, st.integers(1, 9), st.integers(1, 80), seed_strategy)
def test_start_contexts_stay_in_their_episode(
    episodes: list[tuple[int, str]], capacity: int, context: int, count: int, seed: int
) -> None:
    replay, reference = build(episodes, capacity)
    indices, mask, weights = replay.sample_starts(count, context, np.random.default_rng(seed))
    assert indices.shape == mask.shape == (count, context)
    assert np.all(weights == 1)
    assert mask[:, -1].all()
    for row, shown in zip(indices, mask, strict=True):
        first = reference.episode_start(int(row[-1]))
        wanted = row[-1] - np.arange(context)[::-1]
        assert row.tolist() == np.maximum(wanted, first).tolist()
        assert shown.tolist() == (wanted >= first).tolist()
    starts = indices[:, -1]
    assert len(np.unique(starts)) == (count if count <= len(replay) else len(np.unique(starts)))


def test_any_record_can_be_a_start() -> None:
    replay, _ = build([(7, "terminated"), (9, "left")], 20)
    starts = replay.sample_starts(16, 4, np.random.default_rng(0)).indices[:, -1]
    assert sorted(starts.tolist()) == list(range(16))
    many = replay.sample_starts(4000, 4, np.random.default_rng(0)).indices[:, -1]
    assert np.bincount(many).min() > 180


def test_a_share_of_the_starts_is_of_the_newest_records() -> None:
    # The ring has come round: the newest records are not its last slots.
    replay, _ = build([(30, "terminated"), (20, "left")], 40)
    rng = np.random.default_rng(0)
    draws = [replay.sample_starts(8, 4, rng, 10, 0.5).indices[:, -1] for _ in range(500)]
    counts = np.bincount(np.concatenate(draws), minlength=40)
    assert counts[:30].sum() == pytest.approx(1500, abs=120)
    assert counts[30:].min() > 170
    # Each of the newest once at most; what they cannot give is drawn from all.
    only = replay.sample_starts(30, 4, rng, 10, 1.0).indices[:, -1]
    assert sorted(only[-10:].tolist()) == list(range(30, 40))
    assert len(np.unique(only[:20])) == 20
    with pytest.raises(InvalidInputError, match="newest_share: expected 0 to 1"):
        replay.sample_starts(1, 1, rng, 10, 1.5)
    with pytest.raises(InvalidInputError, match="newest: expected at least 0"):
        replay.sample_starts(1, 1, rng, -1)
    # Fewer are held than are named, or none is meant.
    for newest in (0, 100):
        assert len(replay.sample_starts(8, 4, rng, newest, 1.0).indices) == 8


# On disk


@settings(max_examples=25)
@given(
    episodes_strategy,
    capacity_strategy,
    st.lists(st.integers(0, 40), max_size=4),
    st.integers(1, 10),
    st.sampled_from([1, 2, 256]),
    seed_strategy,
)
def test_saving_appending_and_loading_give_the_same_buffer(
    episodes: list[tuple[int, str]], capacity: int, cuts: list[int], shard: int, chunk: int, seed: int
) -> None:
    reference = Reference(episodes, capacity)
    replay, rng = Replay(capacity, FRAME_SHAPE), np.random.default_rng(seed)
    bounds = [0, *sorted(min(cut, len(reference.all)) for cut in cuts), len(reference.all)]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(replay_module, "_SHARD_RECORDS", shard),
        mock.patch.object(shards_module, "_CHUNK", chunk),
    ):
        for start, stop in pairwise(bounds):
            reference.fill(replay, start, stop)
            if len(replay):
                replay.sample_windows(5, 1, rng, weights="balanced")
            replay.save(folder)
            loaded = Replay.load(folder)
            assert_equal(loaded, replay)
            assert loaded.appended == replay.appended
            if rng.integers(2):
                replay = loaded  # what follows is appended by a resumed run
        newest = Replay.load(folder, capacity=3)
        kept = reference.fill(Replay(min(3, capacity), FRAME_SHAPE))
        every = np.arange(len(kept))
        assert np.array_equal(newest.frames_at(every, 2), kept.frames_at(every, 2))
        assert np.array_equal(newest.visits, replay.visits[-len(kept) :])


def saved_pair(folder: Path) -> Replay:
    reference = Reference([(30, "terminated"), (20, "left")], 100)
    replay = reference.fill(Replay(100, FRAME_SHAPE), 0, 25)
    replay.save(folder)
    reference.fill(replay, 25)
    replay.sample_windows(40, 3, np.random.default_rng(0))
    replay.save(folder)
    return replay


def test_a_save_appends_and_leaves_the_older_shards_alone(tmp_path: Path) -> None:
    replay = saved_pair(tmp_path)
    shards = sorted(tmp_path.glob("records-*.npz"))
    assert len(shards) == 2
    assert len(list(tmp_path.iterdir())) == 4
    stamps = [shard.stat().st_mtime_ns for shard in shards]
    replay.save(tmp_path)
    assert [shard.stat().st_mtime_ns for shard in shards] == stamps
    assert len(list(tmp_path.iterdir())) == 4


def test_shards_that_the_ring_has_left_behind_are_removed(tmp_path: Path) -> None:
    reference = Reference([(100, "left")], 20)
    replay = Replay(20, FRAME_SHAPE)
    for start in range(0, 100, 10):
        reference.fill(replay, start, start + 10)
        replay.save(tmp_path)
    assert len(list(tmp_path.glob("records-*.npz"))) == 2
    assert_equal(Replay.load(tmp_path), replay)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "other"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str, which: int) -> None:
    saved_pair(tmp_path)
    path = [*sorted(tmp_path.glob("records-*.npz")), next(tmp_path.glob("visits-*.npy"))][which]
    content = path.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "other":
        path.write_bytes(next(other for other in tmp_path.iterdir() if other != path).read_bytes())
    else:
        path.unlink()
    with pytest.raises(ReplayError, match=path.name):
        Replay.load(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}', '{"format": 1, "shards": [3]}']
)
def test_a_damaged_index_is_refused_by_name(tmp_path: Path, content: str) -> None:
    saved_pair(tmp_path)
    (tmp_path / "replay.json").write_text(content)
    with pytest.raises(ReplayError, match=r"replay\.json"):
        Replay.load(tmp_path)


def test_an_index_that_leaves_out_a_shard_is_refused(tmp_path: Path) -> None:
    saved_pair(tmp_path)
    index = shards_module.read_index(tmp_path)
    for shards in (index.shards[:1], index.shards[1:], ()):
        with mock.patch.object(replay_module, "read_index") as read:
            read.return_value = shards_module.Index(**{**vars(index), "shards": shards})
            with pytest.raises(ReplayError, match="no shard holds"):
                Replay.load(tmp_path)


def test_an_empty_folder_holds_no_replay(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no replay in"):
        Replay.load(tmp_path / "nowhere")


@pytest.mark.parametrize("crash", ["write_shard", "write_visits", "write_index"])
def test_a_crash_while_saving_leaves_the_last_save(tmp_path: Path, crash: str) -> None:
    reference = Reference([(30, "terminated"), (20, "left")], 40)
    replay = reference.fill(Replay(40, FRAME_SHAPE), 0, 25)
    replay.save(tmp_path)
    before = Replay.load(tmp_path)
    reference.fill(replay, 25)
    with mock.patch.object(replay_module, crash, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        replay.save(tmp_path)
    assert_equal(Replay.load(tmp_path), before)
    resumed = reference.fill(Replay.load(tmp_path), 25)
    resumed.save(tmp_path)
    assert_equal(Replay.load(tmp_path), replay)
    assert not list(tmp_path.glob(".*.part"))


def test_another_buffers_folder_is_not_overwritten(tmp_path: Path) -> None:
    saved_pair(tmp_path)
    other, _ = build([(50, "left")], 100)
    with pytest.raises(ReplayError, match="another replay buffer"):
        other.save(tmp_path)


def test_a_copy_can_be_saved_elsewhere(tmp_path: Path) -> None:
    replay = saved_pair(tmp_path / "one")
    replay.save(tmp_path / "two")
    assert_equal(Replay.load(tmp_path / "two"), replay)


def test_real_pong_is_small_on_disk(tmp_path: Path) -> None:
    env = make_game_env("Pong")
    replay, rng = Replay(102_400), np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    first = True
    for _ in range(2000):
        action = rng.integers(6)
        following, reward, terminated, truncated, info = env.step(action)
        replay.append(obs[0], action, reward, terminated, truncated, info["life_lost"], first)
        first = terminated or truncated
        obs = env.reset()[0] if first else following
    replay.save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / 2000 < 300
    assert_equal(Replay.load(tmp_path), replay)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity"),
        ({"capacity": 4, "frame_shape": (3,)}, "frame_shape"),
        ({"capacity": 4, "action_dtype": str}, "action_dtype"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Replay(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frame": np.zeros((3, 2), np.uint8)}, "frame"),
        ({"frame": np.zeros(FRAME_SHAPE, np.float32)}, "frame"),
        ({"action": np.zeros(2, np.int64)}, "action"),
        ({"action": 0.5}, "action"),
        ({"first": False}, "first"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    record: dict[str, Any] = {"frame": frame_of(0), "action": 1, "reward": 0.0, "terminated": True}
    record |= {"truncated": False, "life_lost": False, "first": True}
    replay = Replay(4, FRAME_SHAPE)
    replay.append(**record)
    with pytest.raises(InvalidInputError, match=message):
        replay.append(**(record | changed))
    assert len(replay) == 1


def test_requests_out_of_range_are_refused() -> None:
    replay, _ = build([(10, "left")], 20)
    rng = np.random.default_rng(0)
    for wrong in (-1, 10, [0, 10], [0.5]):
        with pytest.raises(InvalidInputError, match="indices"):
            replay.rewards_at(wrong)
        with pytest.raises(InvalidInputError, match="indices"):
            replay.frames_at(wrong, 2)
    with pytest.raises(InvalidInputError, match="stack"):
        replay.frames_at(0, 0)
    for factor in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InvalidInputError, match="factor"):
            replay.set_priority([0], factor)
        with pytest.raises(InvalidInputError, match="factor"):
            replay.prioritise_events(3, factor)
    with pytest.raises(InvalidInputError, match="length"):
        replay.prioritise_events(0, 2.0)
    with pytest.raises(InvalidInputError, match="batch_size"):
        replay.sample_windows(0, 1, rng)
    with pytest.raises(InvalidInputError, match="weights"):
        replay.sample_windows(1, 1, rng, weights="fair")
    with pytest.raises(InvalidInputError, match="tau"):
        replay.sample_windows(1, 1, rng, weights="balanced", tau=0.0)
    with pytest.raises(InvalidInputError, match="context"):
        replay.sample_starts(1, 0, rng)


def test_an_empty_buffer_serves_nothing() -> None:
    replay = Replay(4, FRAME_SHAPE)
    rng = np.random.default_rng(0)
    for request in (
        lambda: replay.sample_windows(1, 1, rng),
        lambda: replay.sample_starts(1, 1, rng),
        replay.background,
    ):
        with pytest.raises(ReplayError, match="at least 1"):
            request()
    assert replay.iter_episodes() == []
    replay.prioritise_events(3, 2.0)
