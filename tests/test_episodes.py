import numpy as np
import pytest

from dreamgym.episodes import join_episodes, split_episodes
from dreamgym.errors import ReplayError
from dreamgym.replay import Replay

LENGTHS = (5, 3, 8, 4, 6, 7, 2, 9, 5, 4, 3, 6)


def filled(lengths=LENGTHS, capacity=100):
    """Episodes whose frames count the records; the last one has not ended."""
    replay = Replay(capacity, (2, 2))
    for episode, length in enumerate(lengths):
        for step in range(length):
            last = step == length - 1 and episode < len(lengths) - 1
            number = replay.appended
            frame = np.full((2, 2), number, np.uint8)
            replay.append(
                frame, number % 4, number / 2, last and number % 2 == 0, last and number % 2 == 1, last, not step
            )
    return replay


def records(replay, start=0, stop=None):
    every = np.arange(start, len(replay) if stop is None else stop)
    parts = ("frames_at", "actions_at", "rewards_at", "terminated_at", "truncated_at", "life_lost_at", "first_at")
    columns = [getattr(replay, part)(every).reshape(len(every), -1) for part in parts]
    return list(map(bytes, np.concatenate(columns, axis=1, dtype=np.float64)))


def episodes(replay):
    return [tuple(records(replay, *span)) for span in replay.iter_episodes()]


def test_every_episode_is_on_one_side_whole_and_in_the_old_order():
    replay = filled()
    fitted, held_out = split_episodes(replay, np.random.default_rng(0), share=0.25, least=1)
    everything = episodes(replay)
    assert len(fitted.iter_episodes()) == 9 and len(held_out.iter_episodes()) == 3
    for part in (fitted, held_out):
        kept = set(episodes(part))
        assert episodes(part) == [episode for episode in everything if episode in kept]
    assert sorted(episodes(fitted) + episodes(held_out)) == sorted(everything)


def test_held_out_episodes_are_spread_over_the_experience():
    everything = episodes(filled())
    for seed in range(20):
        _, held_out = split_episodes(filled(), np.random.default_rng(seed), least=4)
        assert [everything.index(episode) // 3 for episode in episodes(held_out)] == [0, 1, 2, 3]


def test_a_seed_always_splits_alike_and_another_one_otherwise():
    first, again, other = (split_episodes(filled(), np.random.default_rng(seed), least=4)[1] for seed in (0, 0, 1))
    assert episodes(first) == episodes(again) != episodes(other)


@pytest.mark.parametrize("lengths", [(), (5,), LENGTHS[:8]])
def test_too_few_episodes_to_hold_some_out_are_refused(lengths):
    with pytest.raises(ReplayError, match=f"more than 8 episodes to hold 8 out, got {len(lengths)}"):
        split_episodes(filled(lengths), np.random.default_rng(0))


def test_what_is_left_of_an_overwritten_episode_is_an_episode():
    replay = filled(capacity=50)
    whole = [(replay, *span) for span in replay.iter_episodes()]
    joined = join_episodes(whole, 50)
    assert [span[1:] for span in whole] == joined.iter_episodes()
    assert joined.frames_at(np.arange(50)).tobytes() == replay.frames_at(np.arange(50)).tobytes()
