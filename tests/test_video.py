from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dreamgym.errors import InvalidInputError
from dreamgym.replay import Replay
from dreamgym.video import compare_rollouts, side_by_side, strip, write_image, write_video


def moving(time=6, height=8, width=10):
    """Grey frames in which one bright pixel moves."""
    frames = np.full((time, height, width), 60, np.uint8)
    frames[np.arange(time), 3, np.arange(time)] = 250
    return frames


class Counter:
    """A world model of a game whose frame shows the number of the step; it dreams that number times the action."""

    frame_stack = 1
    device = torch.device("cpu")

    def __init__(self):
        self.warmed_up_by = []
        self.drawn_at = set()

    def encode(self, frames):
        return torch.as_tensor(frames)[:, -1].long()

    def decode(self, latent):
        return latent.to(torch.uint8)[:, None]

    def acts(self, actions, digits):
        return actions

    def phase_digits(self, phases):
        return phases

    def initial_state(self, batch, elapsed=None):
        return torch.zeros(batch)

    def step(self, latent, action, state):
        self.warmed_up_by.append(int(latent.flatten()[0]))

        return SimpleNamespace(
            next=latent + action[:, None, None],
            expected_reward=lambda: action / 4,
            end_probability=lambda: torch.zeros(len(action)),
        ), state

    def draw_reward(self, prediction, uniforms, before, after):
        return torch.zeros(len(uniforms), dtype=torch.int64), after

    def draw_latent(self, prediction, uniforms, temperature=1.0, rewards=None):
        assert uniforms.shape == prediction.next.shape
        self.drawn_at.add(temperature)
        return prediction.next


@pytest.fixture
def recorded():
    """Two episodes of ten steps; the frame shows the step, the action is one."""
    replay = Replay(20, frame_shape=(4, 4))
    for step in range(20):
        frame = np.full((4, 4), step, np.uint8)
        replay.append(frame, 1, float(step % 10 == 7), step % 10 == 9, False, False, step % 10 == 0)
    return replay


@pytest.fixture
def dream():
    starts = SimpleNamespace(latents=np.zeros((1, 3, 4, 4), np.uint8))
    return SimpleNamespace(world_model=Counter(), starts=starts, temperature=0.5)


def test_the_dream_and_the_game_start_alike_and_are_given_the_same_actions(dream, recorded):
    comparison = compare_rollouts(dream, recorded, start=14, horizon=4)

    assert comparison.real[:, 0, 0].tolist() == [14, 15, 16, 17, 18]
    assert comparison.dream[:, 0, 0].tolist() == [14, 15, 16, 17, 18]
    assert comparison.real_rewards.tolist() == [0, 0, 0, 0, 1]
    assert comparison.dream_rewards.tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert np.array_equal(comparison.real_latents, comparison.dream_latents)
    assert dream.world_model.warmed_up_by[:3] == [12, 13, 14]


def test_the_dream_is_drawn_at_its_own_temperature(dream, recorded):
    compare_rollouts(dream, recorded, start=14, horizon=4)

    assert dream.world_model.drawn_at == {dream.temperature} == {0.5}


def test_a_comparison_stays_in_its_episode(dream, recorded):
    comparison = compare_rollouts(dream, recorded, start=10, horizon=50)

    assert comparison.real[:, 0, 0].tolist() == list(range(10, 20))
    assert dream.world_model.warmed_up_by[0] == 10


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_start_has_its_context_and_its_horizon_in_one_episode(dream, recorded, seed):
    first = compare_rollouts(dream, recorded, horizon=4, seed=seed)

    assert len(first.real) == len(first.dream) == 5
    assert 2 <= first.real[0, 0, 0] % 10 <= 5
    assert np.array_equal(first.real, compare_rollouts(dream, recorded, horizon=4, seed=seed).real)


def test_a_drawn_start_has_the_longest_future_when_none_is_long_enough(dream, recorded):
    assert len(compare_rollouts(dream, recorded, horizon=50).real) == 8


@pytest.mark.parametrize("start", [-1, 9, 19, 20])
def test_a_start_with_nothing_behind_it_is_refused(dream, recorded, start):
    with pytest.raises(InvalidInputError, match="start"):
        compare_rollouts(dream, recorded, start=start)


def test_a_comparison_needs_a_horizon_and_experience(dream, recorded):
    with pytest.raises(InvalidInputError, match="horizon"):
        compare_rollouts(dream, recorded, horizon=0)
    with pytest.raises(InvalidInputError, match="replay"):
        compare_rollouts(dream, Replay(4, frame_shape=(4, 4)))


def test_real_dream_and_difference_stand_side_by_side():
    real = moving()
    dream = real.copy()
    dream[:, 5, 5] = 90

    picture = side_by_side(real, dream, scale=4)

    assert picture.shape == (6, 8 * 4 + 2 * 22, 3 * 40 + 2 * 4, 3)
    panels = picture[:, 22:-22]
    assert np.array_equal(panels[:, ::4, :40:4, 0], real)
    assert np.array_equal(panels[:, ::4, 44:84:4, 1], dream)
    assert np.array_equal(panels[:, ::4, 88::4, 2], np.abs(real.astype(int) - dream))


def test_a_reward_is_written_below_its_frame_in_its_colour():
    rewards = np.array([0, 1, -1, 0, 0, 0], np.float32)

    below = side_by_side(moving(width=60), moving(width=60), real_rewards=rewards, dream_rewards=rewards)[:, -22:]

    for panel in (slice(0, 240), slice(244, 484)):
        red, green = below[:, :, panel, 0].max((1, 2)).astype(int), below[:, :, panel, 1].max((1, 2)).astype(int)
        assert (green - red > 60).tolist() == [False, True, False, False, False, False]
        assert (red - green > 60).tolist() == [False, False, True, False, False, False]


def test_colour_frames_keep_their_colours():
    colour = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)

    assert np.array_equal(side_by_side(colour, colour, scale=1)[:, 22:-22, :8], colour)


def test_a_strip_shows_real_above_dream():
    real, dream = moving(), 255 - moving()

    picture = strip(real, dream, steps=[0, 2, 5], scale=1)

    assert picture.shape == (22 + 2 * 8 + 2 * 4, 3 * 10 + 2 * 4, 3)
    assert np.array_equal(picture[22:30, 14:24, 0], real[2])
    assert np.array_equal(picture[34:42, 28:38, 0], dream[5])


def test_a_long_strip_goes_on_below():
    real, dream = moving(), 255 - moving()

    picture = strip(real, dream, columns=4, scale=1)

    assert picture.shape == (2 * 46, 4 * 10 + 3 * 4, 3)
    assert np.array_equal(picture[46 + 22 : 46 + 30, 14:24, 0], real[5])


@pytest.mark.parametrize("options", [{"steps": [6]}, {"steps": []}, {"columns": 0}, {"scale": 0}])
def test_a_strip_of_nothing_is_refused(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        strip(moving(), moving(), **options)


@pytest.mark.parametrize("draw", [side_by_side, strip])
def test_frames_that_are_no_pictures_or_differ_in_shape_are_refused(draw):
    with pytest.raises(InvalidInputError, match="real"):
        draw(moving().astype(np.float32), moving())
    with pytest.raises(InvalidInputError, match="dream"):
        draw(moving(), moving(time=5))


def test_rewards_of_another_length_are_refused():
    with pytest.raises(InvalidInputError, match="dream_rewards"):
        side_by_side(moving(), moving(), dream_rewards=np.zeros(5, np.float32))


def test_an_mp4_holds_the_frames(tmp_path):
    frames = side_by_side(moving(height=24, width=24), moving(height=24, width=24))

    path = write_video(tmp_path / "new" / "video.mp4", frames, fps=10)

    video = cv2.VideoCapture(str(path))
    read = []
    while (frame := video.read())[0]:
        read.append(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB))
    assert video.get(cv2.CAP_PROP_FPS) == 10
    assert len(read) == len(frames)
    assert np.abs(np.stack(read).astype(int) - frames).mean() < 12
    assert [file.name for file in path.parent.iterdir()] == ["video.mp4"]


def test_a_gif_holds_the_frames(tmp_path):
    frames = np.repeat(moving()[..., None], 3, axis=-1)

    with Image.open(write_video(tmp_path / "video.gif", frames)) as gif:
        assert gif.n_frames == len(frames)
        assert np.array_equal(np.array(gif.convert("RGB")), frames[0])


def test_a_video_needs_rgb_frames_a_rate_and_a_known_ending(tmp_path):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InvalidInputError, match="frames"):
        write_video(tmp_path / "video.mp4", moving())
    with pytest.raises(InvalidInputError, match="fps"):
        write_video(tmp_path / "video.mp4", frames, fps=0)
    with pytest.raises(InvalidInputError, match="ending in"):
        write_video(tmp_path / "video.avi", frames)


def test_a_picture_is_written_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)

    with Image.open(write_image(tmp_path / "new" / "image.png", image)) as read:
        assert np.array_equal(np.array(read), image)
    with pytest.raises(InvalidInputError, match="png"):
        write_image(tmp_path / "image.jpg", image)
    with pytest.raises(InvalidInputError, match="image"):
        write_image(tmp_path / "image.png", image[..., 0])
