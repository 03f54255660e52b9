"""Moved frames: what is moved where, and that codec and dynamics are fitted to them."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym import fit
from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.replay import Replay
from dreamgym.shifts import draw_shifts, shift_rows


def test_rows_move_down_or_up_and_the_outermost_fills_the_gap():
    images = torch.arange(5, dtype=torch.uint8)[None, None, :, None].expand(4, 2, 5, 3)
    moved = shift_rows(images, torch.tensor([0, 2, -1, 9]))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert moved[:, 1, :, 2].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [1, 2, 3, 4, 4], [0, 0, 0, 0, 0]]


def test_shifts_are_drawn_evenly_from_both_sides_for_a_share_of_the_images():
    shifts = draw_shifts(40_000, 3, 0.7, torch.Generator().manual_seed(0))
    share = torch.bincount(shifts + 3, minlength=7) / len(shifts)
    assert share.tolist() == pytest.approx([0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1], abs=0.01)


def test_the_codecs_background_moves_with_the_frames():
    background = torch.randint(0, 256, (1, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([0, 5, -3])
    moved = shift_rows(background.expand(3, 1, -1, -1), shifts)

    def losses(weight):
        torch.manual_seed(0)
        codec = VQVAE(VQVAEConfig(width=4, foreground_weight=weight)).eval()
        codec.prepare(background[0])
        return codec.loss(moved, shifts=shifts)[0], codec.loss(moved)[0]

    with torch.no_grad():
        (told, untold), (even, _) = losses(20.0), losses(0.0)
    assert torch.equal(told, even), "nothing is foreground in a background that was moved"
    assert untold > told


def recorded(steps: int = 60) -> Replay:
    replay, rng = Replay(steps, frame_shape=(96, 96)), np.random.default_rng(0)
    for step in range(steps):
        frame = rng.integers(0, 256, (96, 96), dtype=np.uint8)
        replay.append(frame, step % 6, 0.0, False, False, False, step == 0)
    return replay


def test_the_dynamics_are_fitted_to_latents_of_moved_frames(monkeypatch):
    world_model, replay = make_tiny_dream().world_model, recorded()
    fitter = Fitter(world_model, FitConfig(dynamics_batch_size=3, sequence_length=4, shift=8))
    shifts, seen = torch.tensor([0, 8, -5]), []
    monkeypatch.setattr(fit, "draw_shifts", lambda *_: shifts)
    original = fit.dynamics_loss

    def watched(model, replay, windows, latents, *rest):
        seen.append((windows.indices, latents.clone()))
        return original(model, replay, windows, latents, *rest)

    monkeypatch.setattr(fit, "dynamics_loss", watched)
    table = np.full((len(replay), *world_model.codec.latent_shape), 7, np.uint8)
    fitter.fit_dynamics(replay, table, 1, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
    ((indices, latents),) = seen
    assert (latents[0] == 7).all(), "what is not moved is looked up"
    for row in (1, 2):
        frames = torch.as_tensor(replay.frames_at(indices[row], 1))
        assert torch.equal(latents[row], world_model.encode(shift_rows(frames, shifts[row].expand(len(frames)))))


def test_a_moved_window_does_not_say_how_surprising_its_records_are(monkeypatch):
    world_model, replay = make_tiny_dream().world_model, recorded()
    config = FitConfig(dynamics_batch_size=2, sequence_length=4, shift=8, windows="surprise")
    fitter, drawn = Fitter(world_model, config), []
    monkeypatch.setattr(fit, "draw_shifts", lambda *_: torch.tensor([0, 8]))
    original = fitter._shifted

    def watched(replay, windows, *rest):
        drawn.append(windows.indices)
        return original(replay, windows, *rest)

    monkeypatch.setattr(fitter, "_shifted", watched)
    table = np.zeros((len(replay), *world_model.codec.latent_shape), np.uint8)
    fitter.fit_dynamics(replay, table, 1, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
    known = np.flatnonzero(~np.isnan(fitter._surprise.losses))
    assert known.tolist() == drawn[0][0, 1:].tolist()


def test_the_codec_is_fitted_to_moved_frames(monkeypatch):
    world_model, replay, seen = make_tiny_dream().world_model, recorded(), []
    fitter = Fitter(world_model, FitConfig(codec_batch_size=4, unquantized_updates=0, shift=8))
    monkeypatch.setattr(fit, "draw_shifts", lambda *_: torch.tensor([8, 0, -8, 3]))
    original = world_model.codec.loss

    def watched(frames, before, **options):
        seen.append((frames, options["shifts"]))
        return original(frames, before, **options)

    monkeypatch.setattr(world_model.codec, "loss", watched)
    fitter.fit_codec(replay, 1, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
    ((frames, shifts),) = seen
    drawn = np.random.default_rng(0).integers(len(replay), size=4)
    assert shifts.tolist() == [8, 0, -8, 3]
    assert torch.equal(frames, shift_rows(torch.as_tensor(replay.frames_at(drawn, 1)), shifts))


@pytest.mark.parametrize("settings", [{"shift": -1}, {"shift": 4, "interleaved": True}], ids=str)
def test_shifts_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="shift: expected"):
        FitConfig(**settings)
