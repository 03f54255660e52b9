"""Cells that may change, drawn in turn: each sees what is known by then, and what is drawn is what the scores say."""

import pytest
import torch

from dreamgym.models.candidates import GROUPS, CandidateHead
from dreamgym.streams import sample_categorical

CHANNELS, CODES, DEPTH = 3, 5, 4
GRIDS = [(4, 6), (5, 5), (2, 3), (1, 4)]
TURNS = ((0, 2), (3, 1))


def head(least_chance: float = 0.0) -> CandidateHead:
    """One in which what a cell sees matters, and in which all cells are candidates."""
    torch.manual_seed(0)
    module = CandidateHead(CHANNELS, CODES, DEPTH, 16, 0.01, least_chance).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def seen(module: CandidateHead, batch: int, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prediction in which every cell is a candidate, the latent it was made of, and a codebook."""
    latents = torch.randint(0, CODES, (batch, *grid))
    prepared = module.prepare(torch.randn(batch, CHANNELS, *grid), latents)
    prepared[:, -2] = 1.0
    return prepared, latents, torch.randn(CODES, DEPTH)


def turn_of(row: int, column: int) -> int:
    return TURNS[row % 2][column % 2]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_a_candidate_sees_the_candidates_before_it_within_two_cells(grid):
    module = head()
    prepared, _, codebook = seen(module, 1, grid)
    latents = torch.randint(0, CODES, (1, *grid))
    before = module.logits(prepared, latents, codebook)
    assert before.shape == (1, CODES, *grid) and before.dtype == torch.float32
    for row in range(grid[0]):
        for column in range(grid[1]):
            other = latents.clone()
            other[0, row, column] = (latents[0, row, column] + 1) % CODES
            differs = (module.logits(prepared, other, codebook) != before).any(dim=1)[0]
            for i in range(grid[0]):
                for j in range(grid[1]):
                    near = max(abs(i - row), abs(j - column)) <= 2
                    assert bool(differs[i, j]) == (near and turn_of(i, j) > turn_of(row, column)), (row, column, i, j)


@torch.no_grad()
def test_where_the_grid_wraps_a_candidate_sees_those_at_the_other_edge():
    torch.manual_seed(0)
    module = CandidateHead(CHANNELS, CODES, DEPTH, 16, 0.01, 0.0, wraps=True).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prepared, latents, codebook = seen(module, 1, (8, 6))
    other = latents.clone()
    other[0, 0, 0] = (latents[0, 0, 0] + 1) % CODES
    scores = [module.logits(prepared, shown, codebook) for shown in (latents, other)]
    differs = (scores[0] != scores[1]).any(dim=1)[0]
    for i in range(8):
        for j in range(6):
            near = min(i, 8 - i) <= 2 and min(j, 6 - j) <= 2
            assert bool(differs[i, j]) == (near and turn_of(i, j) > 0), (i, j)


@torch.no_grad()
def test_a_candidate_sees_the_cells_around_it_that_stay():
    module = head()
    prepared, current, codebook = seen(module, 1, (5, 5))
    prepared[:, -2] = -20.0
    prepared[0, -2, 2, 2] = 1.0
    before = module.logits(prepared, current, codebook)[0, :, 2, 2]
    for cell in ((0, 0), (1, 2), (2, 3), (4, 4)):
        other = current.clone()
        other[0, *cell] = (current[0, *cell] + 1) % CODES
        assert not torch.equal(module.logits(prepared, other, codebook)[0, :, 2, 2], before)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_what_is_drawn_is_what_the_scores_given_the_drawn_cells_say(grid, temperature):
    module = head()
    prepared, _, codebook = seen(module, 3, grid)
    uniforms = torch.rand(3, *grid)
    drawn = module.draw(prepared, uniforms, temperature, codebook)
    assert drawn.dtype == torch.int64
    assert torch.equal(sample_categorical(module.logits(prepared, drawn, codebook), uniforms, temperature), drawn)


@torch.no_grad()
def test_only_candidates_change_and_each_dream_draws_as_if_it_were_alone():
    module = head()
    prepared, current, codebook = seen(module, 6, (8, 8))
    prepared[:, -2] = torch.where(torch.rand(6, 8, 8) < 0.3, 0.0, -9.0)
    uniforms = torch.rand(6, 8, 8)
    drawn = module.draw(prepared, uniforms, 1.0, codebook)
    stays = prepared[:, -2] < -5
    assert torch.equal(drawn[stays], current[stays]) and not torch.equal(drawn, current)
    for row in range(6):
        alone = module.draw(prepared[row : row + 1], uniforms[row : row + 1], 1.0, codebook)
        assert torch.equal(alone[0], drawn[row])
    prepared[:, -2] = -9.0
    assert torch.equal(module.draw(prepared, uniforms, 1.0, codebook), current)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
@torch.no_grad()
def test_scores_are_the_same_to_the_bit_however_many_cells_others_draw(count, monkeypatch):
    module = CandidateHead(32, 128, 32, 192, 0.01, 0.0).eval()
    latents, codebook = torch.randint(0, 128, (2, 28, 20)), torch.randn(128, 32)
    prepared = module.prepare(torch.randn(2, 32, 28, 20), latents)
    prepared[:, -2] = -9.0
    prepared[0, -2, torch.arange(count), 0] = 1.0
    scored: list[torch.Tensor] = []
    original = CandidateHead._scores

    def watched(self, own, latents, turns, cells, *others):
        scores = original(self, own, latents, turns, cells, *others)
        scored.append(scores[cells[:, 0] == 0])
        return scores

    monkeypatch.setattr(CandidateHead, "_scores", watched)
    module.draw(prepared, torch.rand(2, 28, 20), 0.0, codebook)
    alone = [scores[: (count + 1) // 2] for scores in scored]
    scored.clear()
    prepared[1, -2] = 1.0
    module.draw(prepared, torch.rand(2, 28, 20), 0.0, codebook)
    drawn = [scores for scores in scored if len(scores)]
    for one, other in zip(alone, drawn, strict=True):
        rows = min(len(one), len(other))
        assert torch.equal(one[:rows], other[:rows])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@torch.no_grad()
def test_on_an_accelerator_scores_of_all_cells_draw_the_same_latents(temperature):
    module = head()
    prepared, _, codebook = seen(module, 6, (7, 8))
    prepared[:, -2] = torch.where(torch.rand(6, 7, 8) < 0.3, 0.0, -9.0)
    uniforms = torch.rand(6, 7, 8)
    drawn = module.draw(prepared, uniforms, temperature, codebook)
    assert torch.equal(module.draw(prepared, uniforms, temperature, codebook, every=True), drawn)


@torch.no_grad()
def test_the_chances_of_all_latents_sum_to_one():
    module = head()
    prepared, _, codebook = seen(module, 1, (2, 2))
    prepared[0, -2, 0, 1] = -6.0
    every = torch.cartesian_prod(*[torch.arange(CODES)] * 4).view(-1, 2, 2)
    scores = module.logits(prepared.expand(len(every), -1, -1, -1), every, codebook)
    total = scores.log_softmax(dim=1).gather(1, every[:, None]).sum(dim=(1, 2, 3)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)
    # A cell that is no candidate changes with the gate's chance.
    stays = scores.softmax(dim=1)[0, int(prepared[0, -1, 0, 1]), 0, 1]
    assert stays.item() == pytest.approx(torch.sigmoid(torch.tensor(6.0)).item(), abs=1e-6)


def test_the_loss_is_that_of_the_gate_and_of_the_candidates_codes():
    module = head()
    prepared, current, codebook = seen(module, 2, (4, 4))
    prepared = prepared.detach()
    came = current.clone()
    came[0, 1, 1] = (came[0, 1, 1] + 1) % CODES
    loss = module.loss(prepared, came, codebook)
    codes = torch.nn.functional.cross_entropy(module.logits(prepared, came, codebook), came, reduction="none")
    changed = (came != current).float()
    gates = torch.nn.functional.binary_cross_entropy_with_logits(prepared[:, -2], changed, reduction="none")
    torch.testing.assert_close(loss, (codes + gates).sum(dim=(1, 2)))
    # A cell that changed is fitted to, whatever the gate held of it; where nothing may change, nothing is fitted to.
    prepared[:, -2] = -9.0
    surprised, still = module.loss(prepared, came, codebook).tolist()
    assert surprised > 9 and still == pytest.approx(16 * 1.23e-4, rel=1e-2)
    surprise = module.loss(prepared, came, codebook).sum()
    surprise.backward()
    assert module.scores.weight.grad is not None and module.scores.weight.grad.any()


@torch.no_grad()
def test_while_the_gate_lets_too_many_in_the_likeliest_are_fitted_to():
    module = head()
    prepared, current, codebook = seen(module, 2, (12, 12))
    prepared[:, -2] = torch.rand(2, 12, 12)
    prepared[0, -2] += 2.0
    gates = torch.nn.functional.softplus(prepared[:, -2]).sum(dim=(1, 2))
    fitted = module.loss(prepared, current, codebook) - gates
    # 48 a latent in the mean: 96 of the first one's 144 cells.
    assert fitted[0] > 0.5 * 96 and fitted[1].abs() < 1e-3


@torch.no_grad()
def test_codes_far_less_likely_than_the_likeliest_are_not_drawn():
    module = head(least_chance=0.5)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    module.scores.bias.copy_(torch.tensor([0.4, 0.21, 0.19, 0.15, 0.05]).log())
    prepared, _, codebook = seen(module, 500, (4, 4))
    drawn = module.draw(prepared, torch.rand(500, 4, 4), 1.0, codebook)
    share = torch.bincount(drawn.flatten(), minlength=CODES) / drawn.numel()
    assert share.tolist() == pytest.approx([0.4 / 0.61, 0.21 / 0.61, 0, 0, 0], abs=0.03)
    # How likely a latent is does not know of it.
    scores = module.logits(prepared[:1], torch.zeros(1, 4, 4, dtype=torch.int64), codebook)
    assert scores.softmax(1)[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.21, 0.19, 0.15, 0.05])


@torch.no_grad()
def test_what_is_no_number_is_not_taken_for_certain():
    module = head()
    prepared, _, codebook = seen(module, 1, (2, 2))
    prepared[:, -2] = -9.0
    prepared[0, :-1, 0, 0] = torch.nan
    assert module.draw(prepared, torch.full((1, 2, 2), 0.5), 1.0, codebook)[0, 0, 0] == CODES


def test_a_thing_that_is_in_one_of_two_cells_is_always_in_one():
    """What the paper's head cannot say: two cells, of which exactly one shows the thing."""
    torch.manual_seed(0)
    module = CandidateHead(CHANNELS, 2, DEPTH, 16, 0.01, 0.05)
    features, current, codebook = torch.zeros(64, CHANNELS, 2, 2), torch.zeros(64, 2, 2).long(), torch.randn(2, DEPTH)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(600):
        side = torch.rand(64) < 0.5
        came = torch.zeros(64, 2, 2, dtype=torch.int64)
        came[:, 0, 0], came[:, 0, 1] = side.long(), 1 - side.long()
        loss = module.loss(module.prepare(features, current), came, codebook).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = module.draw(module.prepare(features, current), torch.rand(64, 2, 2), 1.0, codebook)
    assert (drawn[:, 0].sum(dim=1) == 1).all()
    assert 10 < drawn[:, 0, 0].sum() < 54
    assert not drawn[:, 1].any()


def test_every_cell_has_a_turn():
    assert sorted(turn for row in TURNS for turn in row) == list(range(GROUPS))
