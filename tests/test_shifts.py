"""Moved frames: what is moved where, and that codec and dynamics are fitted to them."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym import fit
from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.latents import LatentCache, encode_replay
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.replay import Replay
from dreamgym.shifts import draw_shifts, moved_latents, shift_rows


def test_rows_move_down_or_up_and_the_outermost_fills_the_gap():
    images = torch.arange(5, dtype=torch.uint8)[None, None, :, None].expand(4, 2, 5, 3)
    moved = shift_rows(images, torch.tensor([0, 2, -1, 9]))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert moved[:, 1, :, 2].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [1, 2, 3, 4, 4], [0, 0, 0, 0, 0]]


def test_shifts_are_drawn_evenly_from_both_sides_for_a_share_of_the_images():
    shifts = draw_shifts(40_000, 3, 0.7, torch.Generator().manual_seed(0))
    share = torch.bincount(shifts + 3, minlength=7) / len(shifts)
    by_step = draw_shifts(1_000, 8, 1.0, torch.Generator().manual_seed(0), step=3)
    assert set(by_step.tolist()) == {-6, -3, 0, 3, 6}
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
    shifts, seen = torch.tensor([0, 8, -6]), []
    monkeypatch.setattr(fit, "draw_shifts", lambda *_, step: shifts)
    original = fit.dynamics_loss

    def watched(model, replay, windows, latents, *rest, **options):
        seen.append((windows.indices, latents.clone()))
        return original(model, replay, windows, latents, *rest, **options)

    monkeypatch.setattr(fit, "dynamics_loss", watched)
    table = np.full((len(replay), *world_model.codec.latent_shape), 7, np.uint8)
    fitter.fit_dynamics(replay, table, 1, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
    ((indices, latents),) = seen
    assert (latents[0] == 7).all(), "what is not moved is looked up"

    def encoded(row: int, rows: int) -> torch.Tensor:
        frames = torch.as_tensor(replay.frames_at(indices[row], 1))
        return world_model.encode(shift_rows(frames, torch.full((len(frames),), rows)))

    assert torch.equal(latents[1], encoded(1, 8))
    # Six rows up are ten rows down and a cell of 16 up.
    assert torch.equal(latents[2, :, :-1], encoded(2, 10)[:, 1:])
    assert (latents[2, :, -1] == 7).all(), "what is left open is as the frame was"


def test_moving_a_latent_by_cells_is_moving_its_frame():
    codec = VQVAE(VQVAEConfig(width=4, stages=3)).eval()
    frames = torch.randint(0, 256, (4, 1, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tables = torch.stack([codec.encode(shift_rows(frames, torch.full((4,), rows))) for rows in (0, 2, 4, 6)])
    for rows in (-8, -6, -2, 0, 2, 4, 8):
        moved = moved_latents(tables.to(torch.uint8), torch.arange(4)[:, None], torch.full((4,), rows), cell=8)
        expected = codec.encode(shift_rows(frames, torch.full((4,), rows)))
        # At the edges the encoder sees its padding, and what fills the gap.
        assert torch.equal(moved[:, 0, 2:-2], expected[:, 2:-2]), rows


@pytest.mark.parametrize("rows", [-6, -4, -2])
def test_what_moves_up_from_the_lowest_rows_is_seen_once(rows):
    frame = torch.zeros(1, 1, 96, 96)
    frame[..., 84:88, 40] = 1
    cells = [shift_rows(frame, torch.tensor([down])) for down in (0, 2, 4, 6)]
    tables = torch.stack([torch.nn.functional.max_pool2d(image, 8)[:, 0] for image in cells]).to(torch.uint8)
    moved = moved_latents(tables, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([rows]), cell=8)
    expected = torch.nn.functional.max_pool2d(shift_rows(frame, torch.tensor([rows])), 8).to(torch.uint8)
    assert torch.equal(moved, expected)


def test_moved_latents_are_forgotten_with_the_codec_that_gave_them():
    world_model, replay = make_tiny_dream().world_model, recorded()
    fitter = Fitter(world_model, FitConfig(dynamics_batch_size=2, sequence_length=4, shift=8, shift_step=8))
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for _ in range(2):
        fitter.fit(replay, 2, 1, rng, generator, progress=False)
        (moved,) = fitter._moved_latents
        assert np.array_equal(moved.of(replay), encode_replay(world_model, replay, rows=8))


def test_a_grown_replay_is_encoded_moved_as_well():
    world_model, replay = make_tiny_dream().world_model, recorded(80)
    cache = LatentCache(world_model, rows=6)
    half = Replay(80, frame_shape=(96, 96))
    for step in range(80):
        half.append(replay.frames_at(np.array([step]), 1)[0, 0], 0, 0.0, False, False, False, step == 0)
        if step == 39:
            cache.of(half)
    frames = torch.as_tensor(replay.frames_at(np.arange(80), 1))
    expected = world_model.encode(shift_rows(frames, torch.full((80,), 6)))
    assert torch.equal(torch.as_tensor(cache.of(half)).long(), expected)


def test_a_moved_window_does_not_say_how_surprising_its_records_are(monkeypatch):
    world_model, replay = make_tiny_dream().world_model, recorded()
    config = FitConfig(dynamics_batch_size=2, sequence_length=4, shift=8, windows="surprise")
    fitter, drawn = Fitter(world_model, config), []
    monkeypatch.setattr(fit, "draw_shifts", lambda *_, step: torch.tensor([0, 8]))
    original = fitter._shifted

    def watched(tables, windows, *rest):
        drawn.append(windows.indices)
        return original(tables, windows, *rest)

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


@pytest.mark.parametrize(
    "settings", [{"shift": -1}, {"shift": 4, "interleaved": True}, {"shift": 2, "shift_step": 4}], ids=str
)
def test_shifts_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=r"shift(_step)?: expected"):
        FitConfig(**settings)


def test_a_step_that_does_not_divide_the_codecs_cell_is_refused():
    with pytest.raises(ConfigError, match="divisor of the codec's cell, 16 px, got 3"):
        Fitter(make_tiny_dream().world_model, FitConfig(shift=6, shift_step=3))
