"""What the other things on the screen say of a thing."""

import torch
from test_motion import HEIGHT, REST, SIDE, SPRITES, WIDTH, latent

from dreamgym.models.motion import find_moving
from dreamgym.models.relations import Relations, pairs
from dreamgym.models.things import find_things

SIZE = HEIGHT * SIDE, WIDTH * SIDE
ORIGIN = torch.zeros(2, dtype=torch.int64)


def told(relations, *latents):
    """What the things of latents, seen for the first time, are told."""
    newest = torch.cat(latents)
    found = find_moving(torch.full_like(newest, len(SPRITES)), newest, SPRITES, REST, True)
    things = find_things(found, SIZE)
    with torch.no_grad():
        return relations(found, things, ORIGIN)[: things.number]


def test_a_thing_is_told_of_the_others_on_its_own_screen_only():
    torch.manual_seed(0)
    relations = Relations(SIZE, 8)
    alone, both = latent((8, 4)), latent((8, 4), (30, 20))
    assert not told(relations, alone).any()
    together = told(relations, alone, both, alone)
    assert together.shape == (4, 8)
    assert not together[[0, 3]].any() and together[1:3].any(dim=1).all()
    # As bits too: what a dream draws does not depend on the dreams beside it.
    assert torch.equal(together[1:3], told(relations, both))
    assert not torch.allclose(together[1], told(relations, latent((8, 4), (29, 20)))[0], atol=1e-4)


def test_others_come_in_no_order():
    torch.manual_seed(0)
    relations = Relations(SIZE, 8)
    three = told(relations, latent((8, 4), (20, 20), (30, 8)))
    sums = [told(relations, latent((8, 4), place))[0] for place in ((20, 20), (30, 8))]
    assert torch.allclose(three[0], sums[0] + sums[1], atol=1e-5)


def test_of_many_things_the_heaviest_are_told_of():
    batch = torch.tensor([0] * 20 + [1] * 2 + [3])
    mass = torch.arange(23.0)
    one, other = pairs(batch, mass)
    assert (batch[one] == batch[other]).all() and (one != other).all()
    for thing in range(20):
        heaviest = set(range(4, 20)) - {thing}
        assert set(other[one == thing].tolist()) == heaviest
    assert other[one == 20].tolist() == [21] and other[one == 21].tolist() == [20]
    assert 22 not in one
    assert pairs(batch[:0], mass[:0])[0].shape == (0,)
