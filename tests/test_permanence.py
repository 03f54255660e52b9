"""What is gone without a reward is only hidden, and things go where things went."""

from dataclasses import replace

import pytest
import torch
from test_fit import MULTISCALE, SMALL, fit, pong, world_model
from test_motion import HEIGHT, ORIGIN, REST, SPRITES, WIDTH, dynamics, latent

from dreamgym.errors import ConfigError
from dreamgym.fit import Fitter
from dreamgym.models.motion import STEPS, carry, find_hidden, find_moving, hidden_at, join, step_number
from dreamgym.models.movers import StepHead
from dreamgym.models.multiscale import REWARDS, MultiscaleConfig, MultiscaleDynamics
from dreamgym.models.permanence import WAYS, Way, may_go, went
from dreamgym.models.things import find_things

SIZE = HEIGHT * 4, WIDTH * 4
PERMANENT = {"motion": True, "step_hidden": 16, "reward_first": True, "permanence": True}


def step(found, shown, state, reward=0, done=0):
    """One step of latents (batch, height, width) in which a reward is drawn: its prediction and the state after it."""
    action, rewards = torch.full((len(shown),), done), torch.full((len(shown),), reward)
    prediction, after = found.step(shown, action, state)
    return found.given_reward(prediction, rewards), found.told_reward(state, after, rewards != 0)


def hidden(oldest, older, newest):
    moving = find_moving(older, newest, SPRITES, REST, True)
    return moving, find_hidden(oldest, older, newest, moving, SPRITES, REST, True)


def test_a_thing_has_to_be_seen_in_three_latents_and_paid_for_to_be_known_as_hidden():
    with pytest.raises(ConfigError, match="permanence: expected False where rewards are not drawn first"):
        MultiscaleConfig(motion=True, step_hidden=16, permanence=True)
    with pytest.raises(ConfigError, match="memory: expected at least 3 where things are known to be hidden, got 2"):
        MultiscaleConfig(memory=2, **PERMANENT)


def test_what_is_gone_is_found_where_it_was_with_twice_its_step():
    moving, found = hidden(latent((8, 4)), latent((10, 7)), latent())
    assert len(moving.cells) == 0 and found.hidden.all()
    assert found.cells.tolist() == [[0, 2, 1]] and found.step.tolist() == [int(step_number(torch.tensor([4, 6])))]
    # Of what had just come no step is known, and a fast one's is as long as steps are.
    assert hidden(latent(), latent((10, 7)), latent())[1].step.tolist() == [STEPS]
    fast = hidden(latent((8, 4)), latent((8, 12)), latent())[1]
    assert fast.step.tolist() == [int(step_number(torch.tensor([0, 12])))]


def test_what_is_still_there_or_has_come_elsewhere_is_not_hidden():
    for newest in (latent((10, 7)), latent((12, 10)), latent((40, 40))):
        assert len(hidden(latent((8, 4)), latent((10, 7)), newest)[1].cells) == 0
    # One of two, each in its own latent.
    older = torch.cat([latent((10, 7), (40, 40)), latent((20, 20))])
    newest = torch.cat([latent((40, 42)), latent((20, 20))])
    moving, found = hidden(older, older, newest)
    assert found.cells.tolist() == [[0, 2, 1]]
    both, order = join(moving, found)
    assert both.cells[:, 0].tolist() == sorted(both.cells[:, 0].tolist())
    assert both.hidden.sum() == 1 and both.thing[both.hidden].tolist() == both.hidden.nonzero()[:, 0].tolist()
    assert torch.equal(torch.cat([moving.step, found.step])[order], both.step)
    assert all(both.thing[first] == first for first in both.thing)


def test_a_hidden_thing_comes_back_and_takes_nothing_away():
    other = latent((10, 30))
    moving, found = hidden(latent((4, 4), (10, 30)), latent((2, 7), (10, 30)), other)
    both, _ = join(moving, found)
    stays = torch.full_like(both.step, STEPS // 2)
    back = torch.where(both.hidden, step_number(torch.tensor([2, 6])), stays)
    expected = latent((4, 13), (10, 30))
    assert torch.equal(carry(other, both, back, SPRITES, REST, ORIGIN), expected)
    assert torch.equal(carry(other, both, torch.where(both.hidden, STEPS, stays), SPRITES, REST, ORIGIN), other)
    # Where it was is one of the steps, too.
    assert torch.equal(carry(other, both, stays, SPRITES, REST, ORIGIN), latent((2, 7), (10, 30)))


def test_its_steps_as_a_map_say_all_of_it():
    oldest, older = latent((8, 4), (30, 30)), latent((10, 7), (30, 33))
    _, found = hidden(oldest, older, latent())
    steps = torch.full_like(older, -1).index_put(tuple(found.cells.T), found.step)
    for here, there in zip(hidden_at(older, steps, SPRITES, REST, True), found, strict=True):
        assert torch.equal(here, there)
    assert len(hidden_at(older, torch.full_like(older, -1), SPRITES, REST, True).cells) == 0


def test_things_may_go_where_things_went_in_the_same_way():
    moving = find_moving(latent((8, 4), (40, 40)), latent((10, 7), (40, 42)), SPRITES, REST, True)
    moving, _ = join(moving, hidden(latent((20, 20)), latent((20, 22)), latent())[1])
    things = find_things(moving, SIZE)
    places = torch.zeros(HEIGHT, WIDTH, WAYS, dtype=torch.bool)
    gone = moving.cells[:, 1] != 10
    for paid in (False, True):
        went(moving, things, torch.tensor([paid]), gone, places, 4)
        which = Way.PAID if paid else Way.UNPAID
        assert places.nonzero().tolist() == sorted([[2, 1, which], [5, 5, Way.HIDDEN]])
        allowed = may_go(moving, things, torch.tensor([paid]), places, 4)[: things.number]
        assert allowed.tolist() == [True, False, True]
        other = may_go(moving, things, torch.tensor([not paid]), places, 4)[: things.number]
        assert other.tolist() == [False, False, True]
        places[2, 1] = False


def test_experience_teaches_where_things_go():
    found = dynamics(**PERMANENT)
    assert found.goes.all()
    # Along a wall a ball is gone for one step; over an edge it is gone with a point; and an episode ends with one.
    wall = [(12, 1), (8, 4), (4, 7), None, (4, 13), (8, 16)]
    edge = [(8, 52), (8, 55), (8, 58), (8, 61), None, None]
    rows = [*wall, *edge, (30, 30), (30, 32), (30, 34), None]
    latents = torch.cat([latent(*([] if place is None else [place])) for place in rows])
    rewards, begins = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    rewards[9], begins[[0, 6, 12, 15]] = 1.0, True
    found.learn_going(latents, rewards, begins)
    assert found.went.nonzero().tolist() == [[1, 1, Way.UNPAID], [2, 15, Way.PAID]]
    assert found.goes[0:3, 0:3, Way.UNPAID].all() and not found.goes[8, 7].any()
    # More experience adds to it.
    begins[15] = False
    found.learn_going(latents[12:], rewards[12:], begins[12:])
    assert found.went.nonzero().tolist() == [[1, 1, Way.UNPAID], [2, 15, Way.PAID], [7, 8, Way.UNPAID]]
    other = dynamics(**PERMANENT)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.goes, found.goes) and torch.equal(other.went, found.went)


@torch.no_grad()
def test_nothing_goes_where_nothing_went_and_what_is_hidden_is_back(monkeypatch):
    torch.manual_seed(0)
    found = dynamics(**PERMANENT)
    # Whatever the networks say, all would go.
    found.step_head.steps.bias[STEPS] = 50.0
    made, draw = [], StepHead.draw

    def watched(scores, moving, things, *given):
        made.append((moving, things, draw(scores, moving, things, *given)))
        return made[-1][-1]

    monkeypatch.setattr(StepHead, "draw", staticmethod(watched))
    ball = latent((8, 4)), latent((10, 7))
    for seen, hidden_there in ((ball, False), ((*ball, latent()), True)):
        for may in (False, True):
            found.goes = torch.full_like(found.goes, may)
            state = found.initial_state(64)
            for shown in seen:
                told, state = step(found, shown.expand(64, -1, -1), state)
            found.draw_latent(told, torch.rand(64, HEIGHT, WIDTH))
            moving, things, number = made.pop()
            assert things.number == 64 and (moving.hidden == hidden_there).all()
            assert ((number == STEPS) == may).all()
            # It could be foretold, if it came all the same.
            scores = found._step_scores(told.latent, found._prepared(told.latent), moving, things)
            assert torch.isfinite(scores).all()


@torch.no_grad()
def test_what_a_point_was_paid_for_is_not_hidden():
    found = dynamics(**PERMANENT)
    shown = latent((8, 4)), latent((10, 7)), latent()
    for reward, known in ((0, 1), (1, 0), (-1, 0)):
        for at in (0, 1):
            state = found.initial_state(1)
            for time, seen in enumerate(shown):
                prediction, state = step(found, seen, state, reward * (time == at))
            assert len(found._hidden(prediction.latent).cells) == known
            # Of the step before the latent knows, too.
            assert bool(prediction.latent[0, 2, 0, 0] >= REWARDS) == (at == 1 and reward != 0)
            assert found._rewarded(prediction.latent).tolist() == [1]


@pytest.mark.parametrize("apart", [False, True])
@torch.no_grad()
def test_one_step_and_a_window_agree_on_what_is_hidden(apart):
    torch.manual_seed(0)
    found = dynamics(**PERMANENT, steps_apart=apart)
    for told in (found.step_head.rewarded.weight, found.step_head.hidden):
        torch.nn.init.normal_(told)
    shown = torch.cat([latent((9, 4)), latent((7, 7)), latent(), latent((7, 13))])[None]
    actions, rewards = torch.tensor([[0, 2, 1, 0]]), torch.zeros(1, 4)
    whole, _ = found.sequence(shown, actions, found.initial_state(1), rewards)
    state = found.initial_state(1)
    for time in range(3):
        one, state = step(found, shown[:, time], state, done=int(actions[0, time]))
        there = type(whole)(*(tensor[:, time] for tensor in whole))
        following = shown[:, time + 1]
        chances = [found.latent_log_probability(prediction, following).sum() for prediction in (there, one)]
        torch.testing.assert_close(*chances, rtol=1e-4, atol=1e-4)


def test_a_hidden_ball_is_learned_to_be_back():
    torch.manual_seed(0)
    found = dynamics(**{**PERMANENT, "step_hidden": 32}).train()
    optimizer = torch.optim.Adam(found.parameters(), 1e-2)
    columns = range(8, 44, 3)
    # Down from a wall that hides it.
    frames = [[latent((4, at)), latent((1, at + 3)), latent(), latent((1, at + 9))] for at in columns]
    shown = torch.stack([torch.cat(each[:3]) for each in frames])
    following = torch.cat([each[3] for each in frames])
    count = len(shown)
    rewards, actions = torch.zeros(count, 3), torch.zeros(count, 3, dtype=torch.int64)
    for _ in range(60):
        prediction, _ = found.sequence(shown, actions, found.initial_state(count), rewards)
        last = type(prediction)(*(tensor[:, 2:] for tensor in prediction))
        loss = found.latent_loss(last, following[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found.eval()
    with torch.no_grad():
        state = found.initial_state(count)
        for time in range(3):
            prediction, state = step(found, shown[:, time], state)
        drawn = found.draw_latent(prediction, torch.rand(count, HEIGHT, WIDTH))
    assert (drawn == following).all(dim=(1, 2)).float().mean() > 0.8


def test_a_fit_learns_where_things_go_once(monkeypatch):
    changes = {"motion": True, "step_hidden": 16, "reward_first": True, "permanence": True, "seen_places": True}
    model, replay = world_model(dynamics=replace(MULTISCALE, **changes), stages=3, sprites=True), pong()
    taught = []
    learn = MultiscaleDynamics.learn_going

    def watched(self, latents, rewards, begins):
        # What codes look like is known by then.
        assert torch.equal(self.sprites, model.codec.sprites) and bool(self.sprites.any())
        taught.append((len(latents), bool(begins[0])))
        learn(self, latents, rewards, begins)

    monkeypatch.setattr(MultiscaleDynamics, "learn_going", watched)
    fitter = Fitter(model, replace(SMALL, bf16=False, windows="surprise"))
    fit(fitter, replay, 5, 2)
    fit(fitter, replay, 0, 2)
    # The second time there was nothing new but what followed the last steps.
    assert taught == [(len(replay), True), (3, False)]
