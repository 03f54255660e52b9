"""What the dynamics draw and the critic rejects is drawn again, and the critic learns what never comes."""

import math
from dataclasses import replace

import pytest
import torch
from test_feed_forward import CODES, HEIGHT, WIDTH, tiny, window

from dreamgym.errors import ConfigError
from dreamgym.models.critic import Critic, critic_loss
from dreamgym.models.multiscale import MultiscaleDynamics


def critic(height=12, width=16, codes=5, depth=3, **settings) -> tuple[Critic, torch.Tensor]:
    """One in which nothing is zero, and a codebook."""
    torch.manual_seed(0)
    module = Critic(height, width, depth, 4, 8, **settings)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module, torch.randn(codes, depth)


def predicted(dynamics: MultiscaleDynamics, batch: int):
    """A prediction, with a gate that is open at half of the cells."""
    latents, actions = window(dynamics, batch, 2)
    state = dynamics.initial_state(batch)
    _, state = dynamics.step(latents[:, 0], actions[:, 0], state)
    prediction, _ = dynamics.step(latents[:, 1], actions[:, 1], state)
    shape = (batch, HEIGHT, WIDTH)
    gate = torch.where(torch.rand(shape) < 0.5, 10.0, -20.0)
    latent = torch.cat([prediction.latent[:, :-2], gate[:, None], prediction.latent[:, -1:]], dim=1)
    return prediction._replace(latent=latent), latents, torch.rand(shape)


@torch.no_grad()
def test_only_what_changes_is_judged_and_in_the_same_square_alike():
    module, codebook = critic()
    still = torch.zeros(3, 12, 16, dtype=torch.int64)
    drawn = still.clone()
    drawn[1, 5, 9] = 2
    drawn[2, 6, 10] = 2
    ratio = module(still, still, drawn, codebook)
    assert ratio[1] != ratio[0]
    torch.testing.assert_close(ratio[1], ratio[2])
    other = still.clone()
    other[:, 5, 9] = 4
    # The same difference is another one where something moved before, and where it is elsewhere.
    assert not torch.isclose(module(other, still, drawn, codebook)[1], ratio[1])
    drawn[2] = still[2]
    drawn[2, 9, 2] = 2
    assert not torch.isclose(module(still, still, drawn, codebook)[2], ratio[1])


@torch.no_grad()
def test_a_ratio_does_not_depend_on_the_others_it_is_computed_with():
    module, codebook = critic()
    older, newest, drawn = torch.randint(0, 5, (3, 9, 12, 16))
    older[:, 2:] = newest[:, 2:] = drawn[:, 2:]
    together = module(older, newest, drawn, codebook)
    for i in range(9):
        assert torch.equal(module(older[i : i + 1], newest[i : i + 1], drawn[i : i + 1], codebook), together[i : i + 1])


@torch.no_grad()
def test_on_an_accelerator_all_cells_come_to_the_same_ratio_and_what_was_never_seen_has_not_changed():
    module, codebook = critic()
    older, newest, drawn = torch.randint(0, 5, (3, 5, 12, 16))
    ratio = module(older, newest, drawn, codebook)
    torch.testing.assert_close(module(older, newest, drawn, codebook, everywhere=True), ratio)
    unseen = torch.full_like(older, 5)
    assert torch.isfinite(module(unseen, newest, newest, codebook)).all()
    torch.testing.assert_close(module(unseen, newest, newest, codebook), module(newest, newest, newest, codebook))


def test_a_critic_learns_what_never_comes():
    module, codebook = critic()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    background = torch.zeros(32, 12, 16, dtype=torch.int64)

    def ball(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        shown = background.clone()
        shown[torch.arange(32), row, column] = 3
        return shown

    for _ in range(200):
        row, column = torch.randint(1, 11, (2, 32), generator=generator)
        older, newest, came = (ball(row, column + step) for step in range(3))
        gone = torch.rand(32, generator=generator)[:, None, None] < 0.5
        drawn = torch.where(gone, background, came)
        ratios = [module(older, newest, latents, codebook) for latents in (came, drawn, background)]
        loss, metrics = critic_loss(*ratios[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # It comes always, and is drawn half of the time.
    torch.testing.assert_close(ratios[0].exp().mean(), torch.tensor(2.0), atol=0.5, rtol=0)
    assert ratios[2].max() < -3
    assert metrics["came"] == 1 and 0.2 < metrics["drawn"] < 0.8


@torch.no_grad()
def test_latents_are_kept_in_proportion_to_the_ratio(monkeypatch):
    dynamics = tiny("multiscale", redraws=50)
    prediction, _, _ = predicted(dynamics, 1)
    cell = tuple((prediction.latent[0, -2] > 0).nonzero()[0])
    count = 4_000
    many = prediction._replace(latent=prediction.latent.expand(count, -1, -1, -1))
    uniforms = torch.rand(count, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))

    def shares(ratio: float, code: int) -> torch.Tensor:
        def judge(older, newest, drawn, codebook):
            return torch.where(drawn[:, cell[0], cell[1]] == code, ratio, 0.0)

        monkeypatch.setattr(dynamics.critic, "forward", judge)
        drawn = dynamics.draw_latent(many, uniforms, 20.0)[:, cell[0], cell[1]]
        return torch.bincount(drawn, minlength=CODES) / count

    even = shares(0.0, 0)
    second = int(even.argsort(descending=True)[1])
    assert even[second] > 0.05
    expected = even * torch.where(torch.arange(CODES) == second, 0.3, 1.0)
    torch.testing.assert_close(shares(math.log(0.3), second), expected / expected.sum(), atol=0.03, rtol=0)
    assert shares(-50.0, second)[second] == 0


@torch.no_grad()
def test_of_none_that_is_kept_the_best_is_drawn(monkeypatch):
    dynamics = tiny("multiscale", redraws=6)
    prediction, _, uniforms = predicted(dynamics, 64)
    seen = []

    def judge(older, newest, drawn, codebook):
        ratio = -50 - drawn.float().mean(dim=(1, 2))
        seen.append(ratio)
        return ratio

    monkeypatch.setattr(dynamics.critic, "forward", judge)
    chosen = dynamics.draw_latent(prediction, uniforms)
    # At once one, one more, two and the last three.
    assert [len(ratio) // 64 for ratio in seen] == [1, 1, 2, 3]
    best = torch.cat(seen).view(7, 64).max(dim=0).values
    torch.testing.assert_close(-50 - chosen.float().mean(dim=(1, 2)), best)


@torch.no_grad()
def test_each_dream_is_drawn_again_as_if_it_were_alone():
    dynamics = tiny("multiscale", redraws=3)
    prediction, _, uniforms = predicted(dynamics, 40)
    # Rejected as often as not.
    dynamics.critic.score.bias.sub_(
        dynamics._judge(prediction.latent, dynamics.draw_latent(prediction, uniforms)).mean()
    )
    plain = dynamics.latent_head.draw(prediction.latent[:, 1:], uniforms, 1.0, dynamics.codebook[:-1])
    together = dynamics.draw_latent(prediction, uniforms)
    assert 3 < (plain != together).flatten(1).any(dim=1).sum() < 37
    for i in range(40):
        alone = type(prediction)(*(tensor[i : i + 1] for tensor in prediction))
        assert torch.equal(dynamics.draw_latent(alone, uniforms[i : i + 1]), together[i : i + 1])
    assert torch.equal(dynamics.draw_latent(prediction, uniforms, every=True), together)


@torch.no_grad()
def test_the_likeliest_latent_is_not_drawn_again():
    dynamics = tiny("multiscale", redraws=3)
    prediction, _, uniforms = predicted(dynamics, 8)
    plain = dynamics.latent_head.draw(prediction.latent[:, 1:], uniforms, 0.0, dynamics.codebook[:-1])
    assert torch.equal(dynamics.draw_latent(prediction, uniforms, 0.0), plain)


@torch.no_grad()
def test_the_critic_has_no_part_in_likelihoods():
    dynamics = tiny("multiscale", redraws=3)
    prediction, latents, _ = predicted(dynamics, 4)
    loss = dynamics.latent_loss(prediction, latents[:, 1])
    for parameter in dynamics.critic.parameters():
        parameter.zero_()
    assert torch.equal(dynamics.latent_loss(prediction, latents[:, 1]), loss)


@pytest.mark.parametrize("settings", [{"redraws": -1}, {"critic_hidden": 0}, {"redraws": 1, "memory": 1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="expected at least"):
        replace(tiny("multiscale").config, **settings)
