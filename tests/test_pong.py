from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dreamgym.errors import InvalidInputError
from dreamgym.pong import FIELDS, ball_located, ball_survival, find_spots, shows_ball
from dreamgym.real import make_game_env
from dreamgym.replay import Replay

IN_FRAME = {96: ((0.4536, 5.55), (0.596, 28.9)), (112, 80): ((0.5, 6.25), (0.5, 24.5))}
"""Frame pixels to a screen line or column as the machine's memory counts them, and from where, at each size."""


@pytest.fixture(scope="module", params=IN_FRAME, ids=str)
def played(request):
    """Frames of random play, and where the machine's memory says that the ball is (row and column; row 0: nowhere)."""
    env = make_game_env("Pong", size=request.param)
    random = np.random.default_rng(0)
    frame, _ = env.reset(seed=0)
    frames, memory = [], []
    for _ in range(700):
        frames.append(frame[-1])
        ram = env.unwrapped.ale.getRAM()
        memory.append((int(ram[54]), int(ram[49])))
        frame, _, terminated, truncated, _ = env.step(int(random.integers(6)))
        assert not (terminated or truncated)
    rows, columns = np.array(memory, dtype=np.float64).T
    (scale_down, above), (scale_across, left) = IN_FRAME[request.param]
    return np.stack(frames), np.where(rows > 0, scale_down * rows - above, 0), scale_across * columns - left


def within(frames, rows, columns, top, bottom, left, right):
    """Where the ball is at least so many pixels inside the field."""
    down, across = FIELDS[frames.shape[1:]]
    inside_rows = (rows > down.start + top) & (rows < down.stop - bottom)
    return inside_rows & (columns > across.start + left) & (columns < across.stop - right)


def test_the_ball_is_found_where_the_machine_says_it_is(played):
    frames, rows, columns = played
    background = np.median(frames, axis=0).astype(np.uint8)

    shown = shows_ball(frames, background)
    spots, _ = find_spots(frames[shown], background)

    assert shown.sum() > 200
    assert (rows[shown] > 0).all()
    assert np.abs(spots[:, 0] - rows[shown]).max() < 2
    assert np.abs(spots[:, 1] - columns[shown]).max() < 2.5


def test_no_ball_in_the_middle_of_the_field_is_missed(played):
    frames, rows, columns = played
    background = np.median(frames, axis=0).astype(np.uint8)

    middle = within(frames, rows, columns, 2, 3, 2, 3)

    assert middle.sum() > 200
    assert shows_ball(frames, background)[middle].all()


def test_a_screen_that_is_another_colour_shows_no_ball(played):
    frames, _, _ = played
    background = np.median(frames, axis=0).astype(np.uint8)

    assert not shows_ball(np.full_like(frames[:1], 200), background).any()


def test_what_hardly_stands_out_does_not_pull_a_spot_towards_it(played):
    frames, rows, columns = played
    background = np.median(frames, axis=0).astype(np.uint8)
    clear = frames[within(frames, rows, columns, 4, 5, 4, 8)]
    haze = np.where(clear < background + 10, background + 10, clear).astype(np.uint8)

    assert np.array_equal(find_spots(haze, background)[0], find_spots(clear, background)[0])


class Painter:
    """A codec whose reconstruction is made from the frame by a function."""

    def __init__(self, paint):
        self.paint = paint

    def encode(self, frames):
        return torch.as_tensor(frames)

    def decode(self, latent):
        return torch.as_tensor(self.paint(latent.numpy()))


def decoy(frames):
    painted = frames.copy()
    painted[:, :, 50:53, 40:43] = 255
    return painted


@pytest.mark.parametrize(
    ("paint", "expected"),
    [
        (lambda frames: frames, 1.0),
        (lambda frames: np.roll(frames, 2, axis=3), 1.0),
        (lambda frames: np.roll(frames, 3, axis=3), 0.0),
        (lambda frames: np.repeat(np.median(frames, axis=0, keepdims=True).astype(np.uint8), len(frames), axis=0), 0.0),
        (decoy, 0.0),
    ],
    ids=["same", "two pixels off", "three pixels off", "a grey field", "something brighter elsewhere"],
)
def test_the_ball_counts_as_located_within_two_and_a_half_pixels(played, paint, expected):
    frames, rows, columns = played
    # Away from the edges, so that shifting the frame keeps the ball in the field, and from the decoy.
    inside = within(frames, rows, columns, 4, 5, 4, 8) & (np.hypot(rows - 51, columns - 41) > 8)
    background = np.median(frames, axis=0).astype(np.uint8)

    found = ball_located(Painter(paint), frames[inside][:, None], background)

    assert found == pytest.approx(expected, abs=0.02)


def test_the_background_is_taken_from_the_frames_when_none_is_given(played):
    frames, _, _ = played

    assert ball_located(Painter(lambda frames: frames), frames[:, None]) == 1.0


def test_the_newest_frame_of_a_stack_counts(played):
    frames, _, _ = played
    stacks = np.stack([np.zeros_like(frames), frames], axis=1)

    assert ball_located(Painter(lambda frames: frames), stacks) == 1.0


def test_frames_without_a_ball_are_refused(played):
    frames, _, _ = played

    with pytest.raises(InvalidInputError, match="show a ball"):
        ball_located(Painter(lambda frames: frames), np.repeat(frames[:1, None], 5, axis=0))


def test_frames_of_another_size_are_refused():
    with pytest.raises(InvalidInputError, match="96"):
        ball_located(Painter(lambda frames: frames), np.zeros((2, 1, 64, 64), np.uint8))
    with pytest.raises(InvalidInputError, match="96"):
        find_spots(np.zeros((2, 64, 64), np.uint8), np.zeros((64, 64), np.uint8))
    with pytest.raises(InvalidInputError, match="96"):
        find_spots(np.zeros((2, 112, 80), np.uint8), np.zeros((96, 96), np.uint8))


class Model(Painter):
    """The same with what a world model says of itself; decoding a stack gives its newest frame's ball back."""

    def __init__(self, game="Pong", stack=1, frame=(96, 96)):
        super().__init__(lambda frames: frames)
        self.config, self.frame_stack = SimpleNamespace(game=game), stack
        self.codec = SimpleNamespace(frame_shape=(stack, *frame))


@pytest.mark.parametrize("stack", [1, 4])
def test_a_balls_survival_is_measured_on_experience_in_the_codecs_own_stacks(played, stack):
    frames, _, _ = played
    replay = Replay(len(frames), frames.shape[1:])
    for step, frame in enumerate(frames):
        replay.append(frame, 0, 0.0, False, False, False, step == 0)

    assert ball_survival(Model(stack=stack, frame=frames.shape[1:]), replay, frames=100) == 1.0


@pytest.mark.parametrize("model", [Model(game="Breakout"), Model(frame=(64, 64)), Model(frame=(96, 80))])
def test_where_there_is_no_ball_to_look_for_its_survival_is_not_measured(model):
    assert ball_survival(model, Replay(1)) is None


def test_experience_without_a_ball_tells_nothing_of_its_survival():
    replay = Replay(3)
    for step in range(3):
        replay.append(np.full((96, 96), 80, np.uint8), 0, 0.0, False, False, False, step == 0)

    assert ball_survival(Model(), replay) is None
