import numpy as np
import pytest

from dreamgym.changes import change_rarity
from dreamgym.errors import InvalidInputError


def latents(*frames):
    return np.array(frames, np.uint8).reshape(len(frames), 1, -1)


def test_every_kind_of_change_has_the_same_share():
    # 0 becomes 1 three times, 1 becomes 0 twice, 1 becomes 5 once; nothing comes before the first record.
    shown = latents([0, 0], [1, 1], [0, 0], [1, 0], [5, 0])
    shares = change_rarity(shown, np.array([True, False, False, False, False]))
    assert np.allclose(shares, np.array([0, 2 / 3, 1, 1 / 3, 1]) / 3 * 5)


def test_nothing_changes_on_the_way_to_another_episode():
    shown = latents([0], [1], [7], [7])
    assert np.allclose(change_rarity(shown, np.array([True, False, True, False])), [0, 4, 0, 0])


def test_experience_that_never_changes_is_all_as_rare():
    assert np.array_equal(change_rarity(np.zeros((3, 2, 2), np.uint8), np.zeros(3, bool)), np.ones(3))
    assert change_rarity(np.zeros((0, 2, 2), np.uint8), np.zeros(0, bool)).shape == (0,)


def test_many_records_are_counted_as_few_are(monkeypatch):
    rng = np.random.default_rng(0)
    shown, first = rng.integers(0, 5, (50, 3, 4), dtype=np.uint8), rng.random(50) < 0.1
    whole = change_rarity(shown, first)
    monkeypatch.setattr("dreamgym.changes._AT_ONCE", 7)
    assert np.allclose(change_rarity(shown, first), whole)
    assert whole.mean() == pytest.approx(1)


@pytest.mark.parametrize(("shape", "flags"), [((3, 2), 3), ((3, 2, 2), 2)])
def test_latents_without_their_flags_are_refused(shape, flags):
    with pytest.raises(InvalidInputError, match=r"expected \(records, height, width\)"):
        change_rarity(np.zeros(shape, np.uint8), np.zeros(flags, bool))
