"""Codes are drawn only near where they were seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fit import MULTISCALE, SMALL, fit, pong, world_model

from dreamgym.errors import ConfigError
from dreamgym.fit import Fitter
from dreamgym.models import places
from dreamgym.models.candidates import CandidateHead
from dreamgym.models.motion import STEPS, Moving, carry, step_number
from dreamgym.models.multiscale import MultiscaleDynamics
from dreamgym.models.places import UNSEEN, likely_codes, seen_codes

PLACED = replace(MULTISCALE, seen_places=True)
CODES = 5


def test_every_code_that_a_cell_ever_had_is_seen_in_it(monkeypatch):
    monkeypatch.setattr(places, "_CHUNK", 3)
    latents = np.random.default_rng(0).integers(0, 4, (10, 3, 2)).astype(np.uint8)
    seen = seen_codes(latents, CODES)
    assert seen.shape == (3, 2, CODES) and seen.dtype == torch.bool
    for row in range(3):
        for column in range(2):
            expected = sorted(set(latents[:, row, column].tolist()))
            assert seen[row, column].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("wraps", [True, False])
def test_a_code_is_drawn_in_the_nine_cells_around_where_it_was_seen(wraps):
    seen = torch.zeros(6, 8, CODES, dtype=torch.bool)
    seen[0, 4, 2] = True
    found = likely_codes(seen, torch.arange(48).view(6, 8), wraps)
    rows, columns = found[..., 2].nonzero().unbind(1)
    assert set(rows.tolist()) == ({5, 0, 1} if wraps else {0, 1}) and set(columns.tolist()) == {3, 4, 5}
    assert found.sum() == found[..., 2].sum() == (9 if wraps else 6)


def test_a_code_of_three_cells_of_a_line_is_drawn_in_all_of_the_line_that_have_their_background():
    seen = torch.zeros(12, 10, CODES, dtype=torch.bool)
    rest = torch.zeros(12, 10, dtype=torch.int64)
    rest[9:] = 1
    seen[[0, 3, 6], 4, 2] = True
    seen[[0, 3], 8, 1] = True
    found = likely_codes(seen, rest, False)
    assert found[:9, 4, 2].all() and not found[9:].any()
    # Two are not enough, and a line is one cell wide.
    assert found[..., 1].sum() == (2 + 3) * 3 and found[..., 2].sum() == (2 + 3 + 3) * 3 + 1
    # The same of rows.
    turned = likely_codes(seen.transpose(0, 1), rest.T, False)
    assert torch.equal(turned, found.transpose(0, 1))


@torch.no_grad()
def test_of_scores_those_of_codes_that_were_not_seen_are_less_and_they_are_not_drawn():
    torch.manual_seed(0)
    drawn = torch.rand(4, 6, CODES) < 0.5
    drawn[..., 1] = True
    free, bound = (CandidateHead(3, CODES, 4, 16, 0.01, 0.05, places=where) for where in (None, drawn))
    for name, parameter in free.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        dict(bound.named_parameters())[name].copy_(parameter)
    latents = torch.randint(0, CODES, (64, 4, 6))
    prepared = free.prepare(torch.randn(64, 3, 4, 6), latents)
    # Every cell may change.
    prepared[:, -2] = 1.0
    codebook = torch.randn(CODES, 4)
    less = free.logits(prepared, latents, codebook) - bound.logits(prepared, latents, codebook)
    torch.testing.assert_close(less, UNSEEN * (~drawn).float().movedim(-1, 0)[None].expand_as(less))
    row, column = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    for head, always in ((free, False), (bound, True)):
        found = head.draw(prepared, torch.rand(64, 4, 6), 1.0, codebook)
        assert bool(drawn[row, column, found].all()) == always


def test_what_moves_is_shown_by_codes_that_were_seen_there_or_not_at_all():
    _, ball, bar = pictures = torch.zeros(3, 4, 4)
    ball[1:3, 1], bar[:, 1] = 1.0, 1.0
    newest, rest = torch.tensor([[[1, 0, 0, 0]]]), torch.zeros(1, 4, dtype=torch.int64)
    moving = Moving(
        torch.tensor([[0, 0, 0]]), ball[None], torch.tensor([STEPS]), torch.tensor([0]), torch.tensor([False])
    )
    number, origin = step_number(torch.tensor([[0, 4]])), torch.zeros(2, dtype=torch.int64)
    drawn = torch.ones(1, 4, 3, dtype=torch.bool)
    for allowed, expected in (([0, 1, 2], 1), ([0, 2], 2), ([0], 0)):
        drawn[0, 1] = torch.zeros(3, dtype=torch.bool).index_fill(0, torch.tensor(allowed), True)
        assert carry(newest, moving, number, pictures, rest, origin, drawn).tolist() == [[[0, expected, 0, 0]]]
    # In a cell in which nothing was ever seen the nearest of all is shown.
    drawn[0, 1] = False
    assert carry(newest, moving, number, pictures, rest, origin, drawn).tolist() == [[[0, 1, 0, 0]]]


def test_a_fit_learns_where_codes_are_seen_and_a_state_dict_keeps_it():
    model, replay = world_model(dynamics=PLACED, stages=3), pong()
    assert model.dynamics.latent_head.places.all()
    fitter = Fitter(model, replace(SMALL, bf16=False))
    fit(fitter, replay, 5, 2)
    latents = fitter._latents.of(replay)
    learned = model.dynamics.latent_head.places
    expected = likely_codes(seen_codes(latents, model.codec.num_codes), model.codec.rest, False)
    assert torch.equal(learned, expected) and not learned.all()
    other = world_model(dynamics=PLACED, stages=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.dynamics.latent_head.places, learned)
    without = world_model(dynamics=MULTISCALE, stages=3)
    assert isinstance(without.dynamics, MultiscaleDynamics) and without.dynamics.latent_head.places is None
    assert not any("places" in name for name in without.state_dict())


@pytest.mark.parametrize("changes", [{"interleaved": True}, {"shift": 4, "shift_step": 4}])
def test_where_the_frames_fitted_to_are_others_places_are_refused(changes):
    with pytest.raises(ConfigError, match="seen_places: expected False"):
        Fitter(world_model(dynamics=PLACED, stages=3), replace(SMALL, **changes))
