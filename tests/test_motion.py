"""What has just moved is drawn again as far behind, whatever the place and the speed."""

import numpy as np
import pytest
import torch

from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.models.motion import (
    REACH,
    STEPS,
    Moving,
    carry,
    find_moving,
    going_on,
    next_step,
    step_number,
    step_pixels,
)
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.world_model import WorldModel, WorldModelConfig

SIDE, HEIGHT, WIDTH = 4, 14, 16


def all_sprites():
    """Sprites of every part that a cell can show of a ball of 2 x 1 pixels; code 0 shows nothing."""
    kinds = {bytes(SIDE * SIDE): 0}
    pictures = [np.zeros((SIDE, SIDE), np.uint8)]
    for row in range(-1, SIDE):
        for column in range(SIDE):
            picture = np.zeros((SIDE, SIDE), np.uint8)
            picture[max(0, row) : row + 2, column] = 1
            if picture.tobytes() not in kinds:
                kinds[picture.tobytes()] = len(pictures)
                pictures.append(picture)
    return torch.from_numpy(np.stack(pictures)).float(), kinds


SPRITES, KINDS = all_sprites()
REST = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)


def latent(*balls):
    """The codes of a field with balls at (row, column) in pixels, their upper ends; edges are joined."""
    frame = np.zeros((HEIGHT * SIDE, WIDTH * SIDE), np.uint8)
    for row, column in balls:
        for down in (0, 1):
            frame[(row + down) % frame.shape[0], column % frame.shape[1]] = 1
    cells = frame.reshape(HEIGHT, SIDE, WIDTH, SIDE).transpose(0, 2, 1, 3)
    codes = [[KINDS[np.ascontiguousarray(cells[i, j]).tobytes()] for j in range(WIDTH)] for i in range(HEIGHT)]
    return torch.tensor(codes)[None]


ORIGIN = torch.zeros(2, dtype=torch.int64)


def after(older, newest, wraps=True, origin=ORIGIN, sprites=SPRITES, rest=REST):
    moving = find_moving(older, newest, sprites, rest, wraps)
    return carry(newest, moving, going_on(moving), sprites, rest, origin)


@pytest.mark.parametrize("step", [(0, 1), (2, 0), (-2, 3), (4, -4), (5, 6), (-REACH, REACH)])
def test_a_ball_goes_on_at_its_speed_from_every_place_in_a_cell(step):
    for row in range(28, 32):
        for column in range(14, 18):
            places = [(row + k * step[0], column + k * step[1]) for k in range(3)]
            older, newest, expected = (latent(place) for place in places)
            assert torch.equal(after(older, newest), expected), places[0]


def test_balls_go_their_own_ways_and_batches_do_not_mix():
    older = torch.cat([latent((8, 4), (30, 20)), latent((20, 20))])
    newest = torch.cat([latent((10, 7), (27, 16)), latent((20, 20))])
    expected = torch.cat([latent((12, 10), (24, 12)), latent((20, 20))])
    assert torch.equal(after(older, newest), expected)
    assert torch.equal(after(older[:1], newest[:1]), expected[:1])


def test_what_rests_and_what_has_just_come_stay_where_they_are():
    still = latent((8, 4))
    assert torch.equal(after(still, still), still)
    assert torch.equal(after(latent(), still), still)
    # Too far to be the same thing.
    assert torch.equal(after(latent((8, 4 + 3 * REACH)), still), still)
    assert torch.equal(after(still, latent()), latent())


def test_a_ball_is_not_found_in_the_paddle_that_it_was_near():
    """A ball that leaves with a point is gone, although there is a paddle within its reach that is half as bright."""
    _, ball, bar = pictures = torch.zeros(3, SIDE, SIDE)
    ball[1:3, 1], bar[:, 1] = 0.6, 0.25
    rest = torch.zeros(1, 6, dtype=torch.int64)
    newest, following = torch.tensor([[[1, 0, 2, 0, 0, 0]]]), torch.tensor([[[0, 0, 2, 0, 0, 0]]])
    moving = find_moving(newest, newest, pictures, rest, True)
    number = next_step(moving, newest, following, pictures, rest, True)
    assert number.tolist() == [STEPS, STEPS // 2]
    # Nor is the paddle found in the ball.
    number = next_step(moving, newest, torch.tensor([[[0, 1, 0, 0, 0, 0]]]), pictures, rest, True)
    assert step_pixels(number[:1]).tolist() == [[0, SIDE]] and number[1] == STEPS


def test_a_latent_that_was_not_seen_moves_nothing():
    unseen = torch.full((1, HEIGHT, WIDTH), len(SPRITES))
    assert torch.equal(after(unseen, latent((8, 4))), latent((8, 4)))


def test_nothing_crosses_the_edge_of_the_screen_wherever_the_grid_begins():
    older, newest = latent((10, WIDTH * SIDE - 6)), latent((10, WIDTH * SIDE - 2))
    for wraps in (True, False):
        assert torch.equal(after(older, newest, wraps), latent())
    # The screen begins inside the grid: what is beyond the grid's edge is at its other end.
    inside = torch.tensor([0, 3])
    assert torch.equal(after(older, newest, origin=inside), latent((10, 2)))
    older, newest = latent((10, 0)), latent((10, 2))
    assert torch.equal(after(older, newest, origin=inside), latent())
    # Found again across the edge of the grid only where that is none of the screen's.
    older, newest = latent((10, WIDTH * SIDE - 2)), latent((10, 2))
    assert torch.equal(after(older, newest, wraps=False), newest)
    assert torch.equal(after(older, newest, origin=torch.tensor([0, 12])), latent((10, 6)))


def test_where_something_leaves_the_background_is_seen_again():
    rest = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH) % 2 * (len(SPRITES) + 1)
    sprites = torch.cat([SPRITES, torch.zeros(2, SIDE, SIDE)])
    older = torch.where(latent((8, 4)) == 0, rest, latent((8, 4)))
    newest = torch.where(latent((10, 9)) == 0, rest, latent((10, 9)))
    expected = torch.where(latent((12, 14)) == 0, rest, latent((12, 14)))
    assert torch.equal(after(older, newest, sprites=sprites, rest=rest), expected)


def test_of_codes_that_show_a_part_that_with_the_ball_is_drawn():
    """A code that shows all of a dim wall is nearer in the mean of the pixels, and the ball is gone."""
    _, ball, wall, both = pictures = torch.zeros(4, SIDE, SIDE)
    ball[1:3, 1] = 1.0
    wall[:] = 0.35
    both[:, :2] = 0.35
    both[1:3, 1] = 1.0
    newest = torch.tensor([[[1, 2, 0, 0]]])
    moving = Moving(
        torch.tensor([[0, 0, 0]]), ball[None], torch.tensor([STEPS]), torch.tensor([0]), torch.tensor([False])
    )
    number = step_number(torch.tensor([[0, SIDE]]))
    drawn = carry(newest, moving, number, pictures, torch.zeros(1, 4, dtype=torch.int64), ORIGIN)
    assert drawn.tolist() == [[[0, 3, 0, 0]]]


def test_a_codec_measures_what_its_codes_show(monkeypatch):
    codec = VQVAE(VQVAEConfig(frame_size=32, stages=2, width=2, sprites=True, quantizer=QuantizerConfig(num_codes=4)))
    frames = torch.full((2, 1, 32, 32), 51, dtype=torch.uint8)
    codec.prepare(frames[0, 0])
    frames[0, 0, 4:8, 8:12] = 153
    frames[1, 0, 4:8, 8:12] = 102
    codes = torch.zeros(2, 8, 8, dtype=torch.int64)
    codes[:, 1, 2] = 3
    monkeypatch.setattr(codec, "encode", lambda shown: codes[: len(shown)])
    codec.learn_sprites([frames])
    # The mean of 153 and 102.
    assert torch.allclose(codec.sprites[3], torch.full((4, 4), 0.5), atol=1e-6)
    # Code 0 is all the rest, background of 51, and codes 1 and 2 are nowhere.
    assert torch.allclose(codec.sprites[0], torch.full((4, 4), 0.2), atol=1e-6)
    assert not codec.sprites[1:3].any()
    assert torch.equal(codec.rest, codes[0])
    assert {"sprites", "rest"} <= set(codec.state_dict())
    assert "sprites" not in VQVAE(VQVAEConfig(frame_size=32)).state_dict()


def dynamics(**changes):
    config = MultiscaleConfig(fine=8, channels=8, embedding=4, scale=2, cell_hidden=16, wraps=True, **changes)
    torch.manual_seed(0)
    found = MultiscaleDynamics(config, (4, HEIGHT, WIDTH), len(SPRITES), 3).eval()
    found.look_up(torch.randn(len(SPRITES), 4), SPRITES, REST)
    return found


@torch.no_grad()
def test_what_codes_look_like_is_drawn_before_the_background():
    codec = VQVAE(VQVAEConfig(frame_size=32, stages=2, width=2, sprites=True, quantizer=QuantizerConfig(num_codes=4)))
    codec.eval()
    codec.background.copy_(torch.rand(32, 32, generator=torch.Generator().manual_seed(0)))
    latents = torch.zeros(1, 8, 8, dtype=torch.int64)
    before = codec.decode(latents)
    codec.sprites[1] = 0.75
    codec.sprites[2, 1, 3] = -2
    codec.rest[0, 0] = 3
    assert not torch.equal(codec.decode(latents), before)
    assert torch.equal(codec.decode(codec.rest[None])[0, 0], codec.background)
    latents[0, 2, 5], latents[0, 3, 0] = 1, 2
    expected = codec.background.clone()
    expected[8:12, 20:24] = (expected[8:12, 20:24] + 0.75).clamp(max=1)
    expected[13, 3] = 0
    assert torch.equal(codec.decode(latents)[0, 0], expected)


def test_dynamics_that_have_learned_nothing_yet_let_a_ball_fly_on():
    found = dynamics(motion=True, least_change=0.01)
    state = found.initial_state(1)
    state = found.step(latent((8, 4)), torch.zeros(1, dtype=torch.int64), state)[1]
    prediction, _ = found.step(latent((10, 7)), torch.zeros(1, dtype=torch.int64), state)
    chances = torch.softmax(found.latent_logits(prediction, latent((12, 10))), dim=1)
    likely = chances.gather(1, latent((12, 10))[:, None])[:, 0]
    changes = latent((12, 10)) != latent((10, 7))
    blind = dynamics(least_change=0.01)
    state = blind.step(latent((8, 4)), torch.zeros(1, dtype=torch.int64), blind.initial_state(1))[1]
    prediction, _ = blind.step(latent((10, 7)), torch.zeros(1, dtype=torch.int64), state)
    chances = torch.softmax(blind.latent_logits(prediction, latent((12, 10))), dim=1)
    assert (likely[changes] > 3 * chances.gather(1, latent((12, 10))[:, None])[:, 0][changes]).all()


@torch.no_grad()
def test_steps_and_sequences_agree_where_what_moves_is_followed():
    found = dynamics(motion=True)
    path = torch.cat([latent((8 + 2 * k, 4 + 3 * k)) for k in range(5)])[None]
    actions, rewards = torch.randint(0, 3, (1, 5)), torch.zeros(1, 5)
    # No reward is foretold, so that the clock goes on in both.
    found.reward_head[-1].bias.copy_(torch.tensor([0.0, 20.0, 0.0]))
    whole, _ = found.sequence(path, actions, found.initial_state(1), rewards)
    state = found.initial_state(1)
    for k in range(5):
        one, state = found.step(path[:, k], actions[:, k], state)
        assert torch.allclose(one.latent, whole.latent[:, k], atol=1e-5)


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ConfigError, match=r"codec\.sprites=True"):
        WorldModelConfig(dynamics=MultiscaleConfig(motion=True))
    with pytest.raises(ConfigError, match="memory"):
        MultiscaleConfig(memory=1, motion=True)
    with pytest.raises(ConfigError, match="frame_stack"):
        VQVAEConfig(frame_stack=4, sprites=True)
    model = WorldModel(WorldModelConfig(codec=VQVAEConfig(frame_stack=1, frame_size=32, width=2, sprites=True)))
    with pytest.raises(ConfigError, match="interleaved"):
        Fitter(model, FitConfig(interleaved=True))
