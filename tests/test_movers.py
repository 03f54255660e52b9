"""Of all steps that a thing could make one is drawn, for all its cells together."""

import pytest
import torch
from test_motion import HEIGHT, REST, SIDE, SPRITES, WIDTH, dynamics, latent

from dreamgym.errors import ConfigError
from dreamgym.models.motion import REACH, STEPS, carry, find_moving, next_step, step_number, step_pixels
from dreamgym.models.movers import StepReward
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.models.things import find_things

PIXELS = HEIGHT * SIDE, WIDTH * SIDE
STILL = step_number(torch.zeros(2, dtype=torch.int64))


def number(down, right):
    return int(step_number(torch.tensor([down, right])))


def moving(older, newest):
    return find_moving(older, newest, SPRITES, REST, True)


def test_steps_have_numbers():
    every = torch.arange(STEPS)
    assert torch.equal(step_number(step_pixels(every)), every)
    assert int(STILL) == STEPS // 2
    assert step_pixels(torch.tensor(0)).tolist() == [-REACH, -REACH]


def test_the_cells_of_one_ball_are_one_thing_and_of_two_balls_two():
    # The first lies in two cells of a column.
    found = moving(latent((9, 4), (30, 20)), latent((11, 7), (28, 16)))
    things = find_things(found, PIXELS)
    assert len(found.cells) == 3 and things.number == 2
    assert things.thing.tolist() == [0, 0, 1] and things.cell[:2].tolist() == [0, 2]
    # Balls are two pixels high.
    assert things.centre[:2].tolist() == [[12, 7], [29, 16]] and things.mass[:2].tolist() == [2, 2]
    assert found.step.tolist() == [number(2, 3)] * 2 + [number(-2, -4)]


def test_what_touches_is_one_thing_if_it_is_as_bright():
    sprites = torch.cat([SPRITES, 0.4 * SPRITES])
    # In cells that touch at a corner.
    older, newest = latent((6, 6), (12, 13)), latent((8, 8), (14, 15))
    assert find_things(moving(older, newest), PIXELS).number == 1
    dim = (newest == latent((14, 15))) & (newest != 0)
    found = find_moving(older, torch.where(dim, newest + len(SPRITES), newest), sprites, REST, True)
    assert find_things(found, PIXELS).number == 2


BARS = torch.ones(SIDE, SIDE).triu()[:, :, None].expand(-1, -1, SIDE)
BARS = torch.cat([torch.zeros(1, SIDE, SIDE), BARS, 1 - BARS[1:]])
"""Codes 1 to 4 show the lower rows of a cell, four to one of them, and codes 5 to 7 the upper one, two, three."""


def bar(top, column=3, height=9):
    """A bar as wide as a cell, from row ``top`` of pixels on."""
    rows = torch.zeros(HEIGHT * SIDE)
    rows[top : top + height] = 1
    codes = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    for row, part in enumerate(rows.view(HEIGHT, SIDE)):
        codes[0, row, column] = next(k for k, sprite in enumerate(BARS) if torch.equal(sprite[:, 0], part))
    return codes


@pytest.mark.parametrize("step", [3, -3, 0, 7])
def test_a_bar_that_slides_along_itself_is_followed_and_moved_whole(step):
    older, newest, following = bar(14), bar(17), bar(17 + step)
    found = find_moving(older, newest, BARS, REST, True)
    assert find_things(found, PIXELS).number == 1 and set(found.step.tolist()) == {number(3, 0)}
    steps = next_step(found, newest, following, BARS, REST, True)
    assert set(steps.tolist()) == {number(step, 0)}
    assert torch.equal(carry(newest, found, steps, BARS, REST, torch.zeros(2, dtype=torch.int64)), following)


def test_what_rests_is_a_thing_too_and_can_begin_to_move():
    found = find_moving(bar(17), bar(17), BARS, REST, True)
    assert set(found.step.tolist()) == {int(STILL)}
    assert set(next_step(found, bar(17), bar(14), BARS, REST, True).tolist()) == {number(-3, 0)}


def test_of_a_crowded_latent_only_what_changes_is_followed():
    full = torch.ones(1, HEIGHT, WIDTH, dtype=torch.int64)
    changed = full.clone()
    changed[0, 2, 3] = 4
    assert not len(find_moving(full, full, BARS, REST, True).cells)
    assert find_moving(full, changed, BARS, REST, True).cells.tolist() == [[0, 2, 3]]


def test_a_darker_thing_in_the_same_cell_stays_behind():
    # Code 1 shows a ball beside a wall, 2 the wall alone, 3 a ball alone.
    sprites = torch.zeros(4, SIDE, SIDE)
    sprites[1:3, :, 0] = 0.2
    sprites[1::2, 1, 3] = 0.8
    newest = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    newest[0, 4, 4] = 1
    found = find_moving(newest, newest, sprites, REST, True)
    steps = torch.full_like(found.step, number(0, SIDE))
    expected = torch.zeros_like(newest)
    expected[0, 4, 4], expected[0, 4, 5] = 2, 3
    assert torch.equal(carry(newest, found, steps, sprites, REST, torch.zeros(2, dtype=torch.int64)), expected)


def test_a_ball_on_both_sides_of_an_edge_of_the_grid_is_one_thing():
    last = HEIGHT * SIDE - 1
    found = moving(latent((last - 2, 8)), latent((last, 10)))
    things = find_things(found, PIXELS)
    assert len(found.cells) == 2 and things.number == 1 and things.centre[0].tolist() in ([last, 10], [0, 10])


def test_of_steps_along_a_bar_the_shortest_is_taken():
    # Code 1 + k shows a line down its whole cell in column k.
    sprites = torch.cat([torch.zeros(1, SIDE, SIDE), torch.eye(SIDE)[:, None].expand(SIDE, SIDE, SIDE)])
    bars = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.int64)
    bars[0, 2:7, 3], bars[1, 2:7, 4] = 1, 3
    found = find_moving(bars[:1], bars[1:], sprites, REST, True)
    things = find_things(found, PIXELS)
    assert set(found.step.tolist()) == {number(0, 6)} and things.number == 1
    assert torch.equal(found.thing[found.thing], found.thing)
    assert torch.equal(next_step(found, bars[1:], bars[1:], sprites, REST, True), torch.full((5,), int(STILL)))


def test_what_was_found_once_is_not_looked_for_again():
    older, newest = latent((9, 4), (30, 20)), latent((11, 7), (28, 16))
    found = moving(older, newest)
    again = find_moving(older, newest, SPRITES, REST, True, found.steps(newest))
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


@pytest.mark.parametrize("step", [(1, 2), (-3, 0), (0, 0), (REACH, -REACH)])
def test_the_step_that_a_thing_makes_is_found_and_made(step):
    older, newest, following = latent((9, 14)), latent((14, 20)), latent((14 + step[0], 20 + step[1]))
    found = moving(older, newest)
    steps = next_step(found, newest, following, SPRITES, REST, True)
    assert steps.tolist() == [number(*step)] * len(found.cells)
    assert torch.equal(carry(newest, found, steps, SPRITES, REST, torch.zeros(2, dtype=torch.int64)), following)


def test_what_is_gone_is_taken_away():
    newest = latent((14, 10))
    found = moving(latent((9, 4)), newest)
    steps = next_step(found, newest, latent(), SPRITES, REST, True)
    assert (steps == STEPS).all()
    assert torch.equal(carry(newest, found, steps, SPRITES, REST, torch.zeros(2, dtype=torch.int64)), latent())


def predicted(found, *places):
    """What dynamics foretell after balls at these places, one after the other."""
    with torch.no_grad():
        state, prediction = found.initial_state(1), None
        for place in places:
            prediction, state = found.step(latent(place), torch.zeros(1, dtype=torch.int64), state)
    return prediction


@torch.no_grad()
def test_a_ball_goes_somewhere_whatever_was_learned_of_its_cells():
    found = dynamics(motion=True, step_hidden=16)
    for parameter in (*found.step_head.parameters(), *found.inputs.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    # Never gone; and nothing but the steps changes a cell.
    found.step_head.steps.bias[STEPS] = -1e9
    torch.nn.init.zeros_(found.latent_head.gate.weight)
    torch.nn.init.constant_(found.latent_head.gate.bias, -30.0)
    torch.nn.init.zeros_(found.latent_head.gate_onward.weight)
    torch.nn.init.constant_(found.latent_head.gate_onward.bias, 60.0)
    for head in (found.latent_head.scores, found.latent_head.likeness):
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(found.latent_head.go_on.weight)
    torch.nn.init.constant_(found.latent_head.go_on.bias, 60.0)
    prediction = predicted(found, (17, 12), (19, 15))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        drawn = found.draw_latent(prediction, torch.rand(1, HEIGHT, WIDTH, generator=generator))
        pixels = SPRITES[drawn[0]].transpose(1, 2).reshape(HEIGHT * SIDE, WIDTH * SIDE)
        rows, columns = pixels.nonzero().T
        # A ball, whole, and in one place: two pixels, one above the other.
        assert len(rows) == 2 and int(rows[1] - rows[0]) == 1 and columns[0] == columns[1]
        seen.add((int(rows[0]) - 19, int(columns[0]) - 15))
    assert len(seen) > 10 and all(max(map(abs, step)) <= REACH for step in seen)


@torch.no_grad()
def test_steps_count_in_the_chance_of_a_latent_and_in_the_loss():
    found = dynamics(motion=True, step_hidden=16)
    prediction = predicted(found, (17, 12), (19, 15))
    on, aside = (found.latent_log_probability(prediction, latent(place)).sum() for place in ((21, 18), (14, 13)))
    assert on > aside
    losses = [found.latent_loss(prediction, latent(place)) for place in ((21, 18), (14, 13))]
    assert losses[0] < losses[1]
    before = losses[1].clone()
    found.step_head.steps.bias[number(-5, -2)] += 5
    assert found.latent_loss(prediction, latent((14, 13))) < before - 2


def test_dynamics_learn_that_a_ball_bounces_at_a_place_that_they_were_not_shown():
    torch.manual_seed(0)
    found = dynamics(motion=True, step_hidden=32).train()
    optimizer = torch.optim.Adam(found.parameters(), 1e-2)

    def paths(rows):
        """Three latents each: towards the wall at column 24, on it, and away from it again, for several speeds."""
        cases = [(row, 24 - speed, 24, 24 - speed) for row in rows for speed in (2, 3, 4, 5)]
        return [torch.cat([latent((row, case[1 + k])) for row, *case in [(c[0], *c) for c in cases]]) for k in range(3)]

    older, newest, following = paths(range(4, 34, 3))
    shown, rewards = torch.stack([older, newest], dim=1), torch.zeros(len(older), 2)
    actions = rewards.long()
    for _ in range(60):
        prediction, _ = found.sequence(shown, actions, found.initial_state(len(older)), rewards)
        last = type(prediction)(*(tensor[:, 1:] for tensor in prediction))
        loss = found.latent_loss(last, following[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found.eval()
    older, newest, following = paths(range(5, 33, 3))
    with torch.no_grad():
        state = found.initial_state(len(older))
        for seen in (older, newest):
            prediction, state = found.step(seen, torch.zeros(len(older), dtype=torch.int64), state)
        drawn = found.draw_latent(prediction, torch.rand(older.shape), 0.0)
    assert (drawn == following).all(dim=(1, 2)).float().mean() > 0.8


@torch.no_grad()
def test_a_reward_is_told_by_the_place_of_a_thing():
    head = StepReward((HEIGHT * SIDE, WIDTH * SIDE)).eval()
    torch.nn.init.normal_(head.scores.weight)
    found = moving(torch.cat([latent((9, 4))] * 3), torch.cat([latent((11, 7)), latent((11, 9)), latent()]))
    scores = head(found, find_things(found, PIXELS), 3)
    assert scores.shape == (3, 3) and not torch.allclose(scores[0], scores[1], atol=1e-3)
    assert not scores[2].any()


def test_steps_of_what_is_not_followed_are_refused():
    with pytest.raises(ConfigError, match="motion=True"):
        MultiscaleConfig(step_hidden=8)
    with pytest.raises(ConfigError, match="step_hidden: expected at least 0"):
        MultiscaleConfig(motion=True, step_hidden=-1)
