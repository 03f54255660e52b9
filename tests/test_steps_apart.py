"""Steps of things from what is seen of them and what was done alone, their rows and columns apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fit import MULTISCALE, SMALL, fit, pong, world_model
from test_motion import HEIGHT, WIDTH, dynamics, latent

import dreamgym.fit
from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.models.motion import REACH, STEPS
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics
from dreamgym.models.things import find_things
from dreamgym.step_fit import step_chances

APART = {"motion": True, "step_hidden": 16, "steps_apart": True}


def scores(found, actions, shown=((8, 4), (10, 7))):
    """The scores (1, STEPS + 1) of the one thing that moved so far, in which ``actions`` were taken."""
    state = found.initial_state(1)
    for place, action in zip(shown, actions, strict=True):
        prediction, state = found.step(latent(place), torch.tensor([action]), state)
    moving = found._moving(prediction.latent)
    return found._step_scores(
        prediction.latent, found._prepared(prediction.latent), moving, find_things(moving, (HEIGHT * 4, WIDTH * 4))
    )


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="steps_apart: expected False where no steps are drawn"):
        MultiscaleConfig(motion=True, steps_apart=True)
    with pytest.raises(ConfigError, match=r"steps_apart: expected at most 16 numbers of 4 actions, .* got 24"):
        MultiscaleDynamics(MultiscaleConfig(**APART, scale=2), (4, 4, 4), 8, 6)
    with pytest.raises(ConfigError, match="step_weight_decay: expected a finite number of at least 0, got -1"):
        FitConfig(step_weight_decay=-1.0)


@torch.no_grad()
def test_every_action_that_is_remembered_is_told_and_nothing_that_the_trunk_found():
    found = dynamics(**APART)
    first = scores(found, (0, 0))
    assert first.shape == (1, STEPS + 1)
    for actions in ((1, 0), (0, 2)):
        assert not torch.allclose(scores(found, actions), first)
    for part in (found.inputs, found.blocks, found.given):
        for parameter in part.parameters():
            parameter.add_(1.0)
    assert torch.equal(scores(found, (0, 0)), first)


@torch.no_grad()
def test_every_latent_that_is_remembered_is_seen():
    found = dynamics(**APART, memory=4)
    moments = [(8, 4), (8, 4), (10, 7), (12, 10)]
    first = scores(found, (0,) * 4, moments)
    for index in range(2):
        # What moved was near by, elsewhere than it had been.
        others = [(15, 8) if index == at else place for at, place in enumerate(moments)]
        assert not torch.allclose(scores(found, (0,) * 4, others), first)
    assert torch.allclose(scores(found, (0,) * 5, [(20, 20), *moments]), first, atol=1e-5)


@torch.no_grad()
def test_rows_and_columns_have_scores_of_their_own():
    found = dynamics(**APART)
    torch.nn.init.zeros_(found.step_head.change.weight)
    torch.nn.init.zeros_(found.step_head.change.bias)
    side = 2 * REACH + 1
    given = scores(found, (0, 0), ((30, 28), (32, 31)))[0, :STEPS].view(side, side)
    # In the middle, from where no step leaves the screen.
    torch.testing.assert_close(given - given[:1], (given - given[:1])[:, :1].expand(side, side), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(given[0], given[0, :1].expand(side))


def test_steps_are_fitted_by_adamw_with_a_decay_of_their_own():
    model = world_model(dynamics=replace(MULTISCALE, **APART), stages=3, sprites=True)
    config = replace(SMALL, bf16=False, dynamics_optimizer="muon", weight_decay=0.02)
    head = {id(parameter) for parameter in model.dynamics.step_head.parameters()}
    assert head
    for decay in (0.0, 0.3):
        fitter = Fitter(model, replace(config, step_weight_decay=decay))
        decays = [
            (group["weight_decay"], id(parameter) in head)
            for group in fitter.dynamics_optimizer.param_groups
            for parameter in group["params"]
        ]
        assert any(value == decay and is_head for value, is_head in decays)
        assert not any(value == 0.3 and not is_head for value, is_head in decays)
        both = [group for optimizer in fitter._dynamics_optimizers for group in optimizer.param_groups]
        assert {id(parameter) for group in both for parameter in group["params"]} >= head


FOLLOWED = {**APART, "reward_first": True, "permanence": True}


def fitted(step_share=2.0, **changes):
    model, replay = world_model(dynamics=replace(MULTISCALE, **FOLLOWED), stages=3, sprites=True), pong()
    config = replace(SMALL, bf16=False, windows="surprise", step_batch_size=16, step_share=step_share, **changes)
    fitter = Fitter(model, config)
    return model, replay, fitter, fit(fitter, replay, 60, 20)


def test_a_head_that_needs_the_trunk_is_not_fitted_alone():
    model = world_model(dynamics=replace(MULTISCALE, motion=True, step_hidden=16), stages=3, sprites=True)
    with pytest.raises(ConfigError, match="step_share: expected 0, as the head of steps needs the rest"):
        Fitter(model, replace(SMALL, step_share=1.0))
    for name in ("step_share", "step_weight_decay"):
        with pytest.raises(ConfigError, match=f"{name}: expected a finite number of at least 0, got inf"):
            FitConfig(**{name: float("inf")})
    with pytest.raises(ConfigError, match="step_batch_size and sequence_length: expected at least 1"):
        FitConfig(step_batch_size=0)


def test_fitted_alone_it_learns_and_later_updates_leave_it_alone(monkeypatch):
    heads, counts = [], []
    learn = dreamgym.fit.fit_steps

    def watched(world_model, replay, table, followed, updates, settings, generator, progress):
        counts.append(updates)
        report = learn(world_model, replay, table, followed, updates, settings, generator, progress)
        heads.append([parameter.clone() for parameter in world_model.dynamics.step_head.parameters()])
        return report

    monkeypatch.setattr(dreamgym.fit, "fit_steps", watched)
    model, replay, fitter, report = fitted()
    assert counts == [40]
    now = list(model.dynamics.step_head.parameters())
    assert all(torch.equal(*pair) for pair in zip(heads[0], now, strict=True))
    longer = fit(fitter, replay, 0, 60)
    assert counts == [40, 120] and longer["steps/nats"] < report["steps/nats"]
    again, _, _, other = fitted()
    assert other == report
    assert all(torch.equal(*pair) for pair in zip(heads[0], again.dynamics.step_head.parameters(), strict=True))


def test_every_kind_of_change_is_drawn_as_often_and_no_latent_without_its_past():
    replay = pong()
    # Of 290 latents each shows a thing that goes on; three bounce, two of them in one way.
    indices = torch.cat([torch.arange(5, 295), torch.tensor([20, 30, 40])])
    changes = torch.cat([torch.zeros(290, dtype=torch.int64), torch.tensor([7, 7, 9])])
    chances = step_chances(replay, indices, changes, memory=4)
    assert chances.shape == (300,) and torch.isclose(chances.sum(), torch.tensor(1.0), atol=1e-5)
    assert not chances[:5].any() and not chances[295:].any()
    even = 0.5 / 290 + 0.5 / 3 / 290
    expected = {10: even, 20: even + 0.5 / 6, 30: even + 0.5 / 6, 40: even + 0.5 / 3}
    for at, chance in expected.items():
        assert chances[at] == pytest.approx(chance, rel=1e-4)
    assert step_chances(replay, torch.tensor([2]), torch.tensor([0]), memory=4) is None


def test_alone_it_is_given_what_it_is_given_with_the_rest():
    model, replay, _, _ = fitted()
    dynamics = model.dynamics.eval()
    latents = model.encode(replay.frames_at(np.arange(100, 140), 1))
    actions = torch.as_tensor(replay.actions_at(np.arange(100, 140)))
    memory, count = dynamics.config.memory, 0
    with torch.no_grad():
        for at in range(memory - 1, 39):
            past = slice(at - memory + 1, at + 1)
            shown, done = model.shown(latents[past])[None], actions[past][None]
            rewards = torch.zeros(1, memory)
            prediction, _ = dynamics.sequence(shown, done, dynamics.initial_state(1), rewards)
            last = type(prediction)(*(tensor[:, -1] for tensor in prediction))
            _, steps = dynamics._stepped(last.latent, latents[at + 1][None])
            alone = dynamics.step_losses(shown, done, torch.zeros(1), torch.tensor([32]), latents[at + 1][None])
            torch.testing.assert_close(steps.sum(), alone.sum(), rtol=1e-4, atol=1e-4)
            count += len(alone)
    assert count > 100
