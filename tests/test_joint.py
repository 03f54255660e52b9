"""Cells drawn in turn: each sees exactly the groups before it, and what is drawn is what the scores say."""

import pytest
import torch

from dreamgym.errors import ConfigError
from dreamgym.models.joint import ORDER, JointLatentHead, draw_codes, drop_unlikely
from dreamgym.models.residual import ResidualConfig, ResidualDynamics
from dreamgym.streams import sample_categorical

CHANNELS, CODES = 32, 5
GRIDS = [(4, 6), (5, 5), (2, 3)]


def head(least_chance: float = 0.0) -> JointLatentHead:
    """One in which what a cell sees matters."""
    torch.manual_seed(0)
    module = JointLatentHead(CHANNELS, CODES, least_chance).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def group_of(row: int, column: int) -> int:
    return ORDER.index((row % 2, column % 2))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_a_cell_sees_its_neighbours_of_earlier_groups_and_no_others(grid):
    module, features, latents = head(), torch.randn(1, CHANNELS, *grid), torch.randint(0, CODES, (1, *grid))
    before = module.logits(features, latents)
    assert before.shape == (1, CODES, *grid) and before.dtype == torch.float32
    for row in range(grid[0]):
        for column in range(grid[1]):
            other = latents.clone()
            other[0, row, column] = (latents[0, row, column] + 1) % CODES
            differs = (module.logits(features, other) != before).any(dim=1)[0]
            for i in range(grid[0]):
                for j in range(grid[1]):
                    beside = max(abs(i - row), abs(j - column)) == 1
                    assert bool(differs[i, j]) == (beside and group_of(i, j) > group_of(row, column)), (row, column)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_what_is_drawn_is_what_the_scores_given_the_drawn_cells_say(grid, temperature):
    module, features, uniforms = head(), torch.randn(3, CHANNELS, *grid), torch.rand(3, *grid)
    drawn = module.draw(features, uniforms, temperature)
    assert drawn.dtype == torch.int64
    assert torch.equal(sample_categorical(module.logits(features, drawn), uniforms, temperature), drawn)


@torch.no_grad()
def test_the_chances_of_all_latents_sum_to_one():
    module, features = head(), torch.randn(1, CHANNELS, 2, 2)
    every = torch.cartesian_prod(*[torch.arange(CODES)] * 4).view(-1, 2, 2)
    log_chances = module.logits(features.expand(len(every), -1, -1, -1), every).log_softmax(dim=1)
    total = log_chances.gather(1, every[:, None]).sum(dim=(1, 2, 3)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)
    # And they are the frequencies of what is drawn.
    rows = 40_000
    drawn = module.draw(features.expand(rows, -1, -1, -1), torch.rand(rows, 2, 2), 1.0)
    chances = log_chances.gather(1, every[:, None]).sum(dim=(1, 2, 3)).exp()
    found = (drawn.flatten(1) @ torch.tensor([CODES**3, CODES**2, CODES, 1])).bincount(minlength=CODES**4) / rows
    assert (found - chances).abs().sum() < 0.1


@torch.no_grad()
def test_codes_far_less_likely_than_the_likeliest_are_not_drawn():
    module = head(least_chance=0.5)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    module.scores.bias.copy_(torch.tensor([0.4, 0.21, 0.19, 0.15, 0.05]).log())
    drawn = module.draw(torch.zeros(500, CHANNELS, 4, 4), torch.rand(500, 4, 4), 1.0)
    share = torch.bincount(drawn.flatten(), minlength=CODES) / drawn.numel()
    assert share.tolist() == pytest.approx([0.4 / 0.61, 0.21 / 0.61, 0, 0, 0], abs=0.03)
    # How likely a latent is does not know of it.
    scores = module.logits(torch.zeros(1, CHANNELS, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    assert scores.softmax(1)[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.21, 0.19, 0.15, 0.05])


@pytest.mark.parametrize("least_chance", [0.0, 0.05])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_looking_only_at_the_uncertain_cells_draws_the_same_codes(temperature, least_chance):
    generator = torch.Generator().manual_seed(0)
    # From cells with one likely code to cells with many.
    scores = torch.randn(6, 20, 20, 16, generator=generator) * torch.linspace(0.1, 12, 20)[:, None, None]
    uniforms = torch.rand(6, 20, 20, generator=generator)
    drawn = draw_codes(scores, uniforms, temperature, least_chance)
    expected = sample_categorical(drop_unlikely(scores.movedim(-1, 1), least_chance), uniforms, temperature)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, expected)
    assert len(drawn.unique()) == 16


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("offset", [0.0, 60.0, 1000.0])
def test_rare_codes_are_drawn_where_scores_are_large(offset, temperature):
    generator = torch.Generator().manual_seed(0)
    scores = offset + temperature * torch.randn(20, 20, 20, 4, generator=generator) * 4
    near = 1e-4 * torch.rand(20, 20, 20, generator=generator)
    uniforms = torch.where(torch.rand(20, 20, 20, generator=generator) < 0.5, near, 1 - 1e-7 - near)
    expected = sample_categorical(scores.movedim(-1, 1), uniforms, temperature)
    assert torch.equal(draw_codes(scores, uniforms, temperature, 0.0), expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_not_taken_for_certain(broken):
    scores = torch.zeros(1, 1, 2, 3)
    scores[0, 0, 1, 1] = broken
    drawn = draw_codes(scores, torch.full((1, 1, 2), 0.5), 1.0, 0.0)
    assert drawn.tolist() == [[[1, 3]]]


def test_a_thing_that_is_in_one_of_two_cells_is_always_in_one():
    """What the paper's head cannot say: two cells, of which exactly one shows the thing."""
    torch.manual_seed(0)
    dynamics = ResidualDynamics(ResidualConfig(channels=8, blocks=0, patch=1, joint=8), (2, 2, 2), 2, 1)
    state, features = dynamics.initial_state(64), torch.zeros(64, 2, 2, 2)
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=0.05)
    for _ in range(300):
        side = torch.rand(64) < 0.5
        latents = torch.zeros(64, 2, 2, dtype=torch.int64)
        latents[:, 0, 0], latents[:, 0, 1] = side.long(), 1 - side.long()
        prediction, _ = dynamics.step(features, torch.zeros(64, dtype=torch.int64), state)
        loss = torch.nn.functional.cross_entropy(dynamics.latent_logits(prediction, latents), latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = dynamics.draw_latent(prediction, torch.rand(64, 2, 2))
    assert (drawn[:, 0].sum(dim=1) == 1).all()
    assert 10 < drawn[:, 0, 0].sum() < 54
    assert not drawn[:, 1].any()


def test_a_latent_too_small_for_groups_is_refused():
    with pytest.raises(ConfigError, match="joint: expected latents of at least 2x2 cells, got 1x4"):
        ResidualDynamics(ResidualConfig(patch=1, joint=8), (2, 1, 4), 2, 1)


@torch.no_grad()
def test_over_a_window_the_scores_are_those_of_every_step():
    torch.manual_seed(0)
    dynamics = ResidualDynamics(ResidualConfig(channels=8, blocks=1, joint=8), (3, 4, 4), CODES, 2).eval()
    features, actions = torch.randn(2, 3, 3, 4, 4), torch.zeros(2, 3, dtype=torch.int64)
    latents = torch.randint(0, CODES, (2, 3, 4, 4))
    prediction, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    whole = dynamics.latent_logits(prediction, latents)
    assert whole.shape == (2, 3, CODES, 4, 4)
    for step in range(3):
        one = prediction._replace(latent=prediction.latent[:, step])
        torch.testing.assert_close(dynamics.latent_logits(one, latents[:, step]), whole[:, step])
