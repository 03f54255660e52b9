"""Agents are shown what moves before the background, each object always in the same row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym.errors import ConfigError
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.objects import FEATURES, MOST_OBJECTS, ObjectFinder, find_parts, learn_kinds
from dreamgym.observations import ObservationBuilder
from dreamgym.replay import Replay
from dreamgym.transitions import real_transitions

HEIGHT, WIDTH, CELL = 48, 32, 4
LEFT, RIGHT, BALL, SIGN = 0.3, 0.3, 0.8, 0.3
STEPS = 400


def movie(steps=STEPS, ball=True, sign=True, moving=True):
    """Two bars that go up and down on their columns, a ball that flies, a sign that never moves: (steps, H, W)."""
    frames = np.zeros((steps, HEIGHT, WIDTH), np.float32)
    places = {"left": [], "right": [], "ball": []}
    rng = np.random.default_rng(0)
    y, x, dy, dx, left, right = 20, 15, 1, 2, 10, 30
    for frame in frames:
        if moving:
            left, right = (int(np.clip(v + rng.integers(-3, 4), 8, HEIGHT - 7)) for v in (left, right))
            dy, dx = dy if 7 < y + dy < HEIGHT - 3 else -dy, dx if 5 < x + dx < WIDTH - 6 else -dx
            y, x = y + dy, x + dx
        frame[left : left + 6, 2:4] = LEFT
        frame[right : right + 6, 28:30] = RIGHT
        if ball:
            frame[y : y + 2, x] = BALL
        if sign:
            frame[1:5, 10:12] = SIGN
        for name, place in (("left", (left + 2.5, 2.5)), ("right", (right + 2.5, 28.5)), ("ball", (y + 0.5, x))):
            places[name].append(place)
    return frames, {name: np.array(place) for name, place in places.items()}


def cells(frames):
    """(steps, H, W) to cells (steps, height, width, 16)."""
    grid = frames.reshape(len(frames), HEIGHT // CELL, CELL, WIDTH // CELL, CELL)
    return grid.transpose(0, 1, 3, 2, 4).reshape(len(frames), HEIGHT // CELL, WIDTH // CELL, CELL * CELL)


def encoded(frames):
    """A codec with a code for every kind of cell, the background's first, and the frames' latents."""
    empty = np.zeros((1, HEIGHT, WIDTH), np.float32)
    every = cells(np.concatenate([empty, frames]))
    kinds, codes = np.unique(every.reshape(-1, CELL * CELL), axis=0, return_inverse=True)
    codes = codes.reshape(every.shape[:3])
    config = SimpleNamespace(frame=(HEIGHT, WIDTH), cell=CELL, objects=True)
    codec = SimpleNamespace(
        config=config, sprites=torch.from_numpy(kinds.reshape(-1, CELL, CELL)), rest=torch.from_numpy(codes[0])
    )
    return codec, codes[1:]


def learned(frames, episodes=1):
    """A codec that has learned the objects of frames, and their latents."""
    codec, codes = encoded(frames)
    follows = np.arange(len(codes)) % (len(codes) // episodes) > 0
    kinds = learn_kinds(find_parts(codec, codes), follows)
    codec.looks, codec.slots = torch.from_numpy(kinds.looks), torch.from_numpy(kinds.slots)
    return codec, codes


def stacks(codes, stack=4):
    """The newest stack of latents after every step but the first ones."""
    index = np.arange(stack - 1, len(codes))[:, None] + np.arange(1 - stack, 1)
    return torch.from_numpy(codes[index])


def box_of(observation, codec):
    """Row and column of the centre, height and width in pixels, (batch, objects, 4)."""
    slots = codec.slots.numpy()
    return observation[..., 1:5] * slots[:, 5:] + slots[:, 1:5]


def row_of(observation, codec, place):
    """The row of an object that was seen at places (batch, 2) all the time."""
    away = np.abs(box_of(observation, codec)[..., :2] - place[:, None]).max(axis=(0, 2))
    assert away.min() < 0.01, away
    return int(away.argmin())


@pytest.fixture(scope="module")
def game():
    frames, places = movie()
    codec, codes = learned(frames)
    return ObjectFinder(codec).find(stacks(codes)), codec, {name: place[3:] for name, place in places.items()}


def test_every_object_keeps_its_row_and_what_never_moves_has_none(game):
    found, codec, places = game
    assert found.shape == (STEPS - 3, MOST_OBJECTS, FEATURES) and found.dtype == np.float32
    rows = {row_of(found, codec, place) for place in places.values()}
    assert len(rows) == 3
    others = [row for row in range(MOST_OBJECTS) if row not in rows]
    assert not found[:, others].any()


def test_sizes_and_steps_are_in_pixels(game):
    found, codec, places = game
    for name, (height, width) in {"left": (6, 2), "right": (6, 2), "ball": (2, 1)}.items():
        row = row_of(found, codec, places[name])
        seen = found[:, row]
        assert (seen[:, 0] == 1).all()
        np.testing.assert_allclose(
            box_of(found, codec)[:, row, 2:], np.broadcast_to((height, width), (len(seen), 2)), atol=1e-4
        )
        steps = np.diff(places[name], axis=0)
        for age in range(3):
            np.testing.assert_allclose(seen[3:, 5 + 2 * age : 7 + 2 * age] * 4, steps[2 - age : len(steps) - age])


def test_objects_alike_do_not_swap_however_near_they_come():
    frames, places = movie()
    codec, codes = learned(frames)
    found, rows = ObjectFinder(codec).find(stacks(codes)), {}
    for name in ("left", "right"):
        rows[name] = row_of(found, codec, places[name][3:])
    # Only the left bar is there, and then at the height where the right one was most.
    alone = np.zeros((4, HEIGHT, WIDTH), np.float32)
    top = round(places["right"][:, 0].mean())
    alone[:, top : top + 6, 2:4] = LEFT
    ours, known = encoded(np.concatenate([frames, alone]))
    ours.looks, ours.slots = codec.looks, codec.slots
    seen = ObjectFinder(ours).find(stacks(known[-4:]))[0, :, 0]
    assert seen[rows["left"]] == 1 and seen[rows["right"]] == 0


def test_what_is_not_to_be_seen_is_zeros_and_steps_across_it_too():
    frames, places = movie()
    codec, codes = learned(frames)
    row = row_of(ObjectFinder(codec).find(stacks(codes)), codec, places["ball"][3:])
    without, _ = movie(ball=False)
    hidden = frames[:8].copy()
    hidden[5] = without[5]
    ours, known = encoded(np.concatenate([frames, hidden]))
    ours.looks, ours.slots = codec.looks, codec.slots
    seen = ObjectFinder(ours).find(stacks(known[-8:]))[:, row]
    assert seen[:, 0].tolist() == [1, 1, 0, 1, 1]
    assert not seen[2].any()
    assert not seen[3, 5:9].any() and seen[3, 9:].any()
    assert seen[4, 5:7].any() and not seen[4, 7:].any()


def test_a_large_thing_is_one_object_though_its_edge_is_blurred_and_shreds_lie_about_it():
    frames, rng = np.zeros((200, HEIGHT, WIDTH), np.float32), np.random.default_rng(0)
    for frame in frames:
        # On the codec's grid, so that its codes are few.
        top, left = CELL * rng.integers(1, HEIGHT // CELL - 3), CELL * rng.integers(1, WIDTH // CELL - 3)
        frame[top : top + 8, left : left + 8] = 0.2
        frame[top + 1 : top + 7, left + 1 : left + 7] = 0.4
        frame[top - 2, left + 1] = -0.3
        frame[top + 9, left + 6] = 0.3
    codec, codes = learned(frames)
    assert (codec.slots[:, 0] >= 0).sum() == 1
    found = ObjectFinder(codec).find(stacks(codes))
    assert (found[:, 0, 0] == 1).all()
    np.testing.assert_allclose(codec.slots[0, 3:5], 8, atol=0.1)


def test_what_touches_is_told_apart_by_its_brightness():
    frames, _ = movie()
    codec, _ = learned(frames)
    touching = np.zeros((1, HEIGHT, WIDTH), np.float32)
    touching[0, 20:26, 2:4], touching[0, 22:24, 4] = LEFT, BALL
    ours, known = encoded(np.concatenate([frames, touching]))
    ours.looks, ours.slots = codec.looks, codec.slots
    found = ObjectFinder(ours).find(torch.from_numpy(known[-1:, None]))[0]
    places = box_of(found, codec)[found[:, 0] == 1, :2]
    assert sorted(map(tuple, places.round(1).tolist())) == [(22.5, 2.5), (22.5, 4.0)]


def test_fewer_latents_have_fewer_steps(game):
    frames, _ = movie()
    codec, codes = learned(frames)
    one, two = (ObjectFinder(codec).find(stacks(codes, stack)[-10:]) for stack in (1, 2))
    assert not one[..., 5:].any() and not two[..., 7:].any()
    np.testing.assert_array_equal(two[..., :7], game[0][-10:, :, :7])
    np.testing.assert_array_equal(one[..., :5], game[0][-10:, :, :5])


def test_one_batch_or_many_are_the_same(game):
    frames, _ = movie()
    codec, codes = learned(frames)
    finder, shown = ObjectFinder(codec), stacks(codes)
    np.testing.assert_array_equal(np.concatenate([finder.find(one[None]) for one in shown[:50]]), game[0][:50])


def test_where_nothing_moves_there_is_nothing():
    frames, _ = movie(40, moving=False)
    codec, codes = learned(frames)
    assert (codec.slots[:, 0] == -1).all()
    assert not ObjectFinder(codec).find(stacks(codes)).any()


def test_a_sign_that_changes_does_not_move():
    """A score's figures: as bright as the bars, of different sizes, always in the same place."""
    frames, places = movie(sign=False)
    for step, frame in enumerate(frames):
        figure = step // 15 % 3
        frame[1 : 5 - figure, 10 : 12 + figure] = SIGN
    codec, codes = learned(frames)
    assert (codec.slots[:, 0] >= 0).sum() == 3
    found = ObjectFinder(codec).find(stacks(codes))
    rows = {name: row_of(found, codec, place[3:]) for name, place in places.items()}
    assert len(set(rows.values())) == 3
    # Nor is it taken for a bar that is gone.
    gone = frames[-4:].copy()
    gone[:, :, 2:4] = 0
    ours, known = encoded(np.concatenate([frames, gone]))
    ours.looks, ours.slots = codec.looks, codec.slots
    seen = ObjectFinder(ours).find(stacks(known[-4:]))[0, :, 0]
    assert seen[rows["left"]] == 0 and seen[rows["right"]] == 1


def test_of_more_objects_than_there_are_rows_the_first_are_followed():
    rng, frames = np.random.default_rng(0), np.zeros((100, HEIGHT, WIDTH), np.float32)
    for frame in frames:
        for column in range(0, WIDTH, 3):
            row = int(rng.integers(4, HEIGHT - 4))
            frame[row : row + 2, column : column + 2] = BALL
    codec, codes = learned(frames)
    assert (codec.slots[:, 0] >= 0).all()
    assert ObjectFinder(codec).find(stacks(codes))[..., 0].mean() > 0.9


def test_before_the_first_fit_nothing_is_seen(recwarn):
    codec = VQVAE(small(objects=True))
    latents = torch.randint(0, codec.num_codes, (3, 4, *codec.latent_shape))
    assert not ObjectFinder(codec).find(latents).any()
    assert not recwarn.list


def test_an_end_of_an_episode_is_no_step():
    """A thing that stands still, elsewhere in every episode, does not move."""
    frames = np.zeros((60, HEIGHT, WIDTH), np.float32)
    for step, frame in enumerate(frames):
        top = 4 + 8 * (step // 15)
        frame[top : top + 4, 8:12] = BALL
    assert (learned(frames, episodes=4)[0].slots[:, 0] == -1).all()


def small(**settings):
    return VQVAEConfig(
        frame_size=HEIGHT, frame_width=WIDTH, width=4, stages=2, stage_kernel=2, sprites=True, **settings
    )


def test_a_codec_learns_its_objects_once():
    frames, _ = movie()
    known, codes = encoded(frames)
    codec = VQVAE(small(objects=True))
    codec.sprites[: len(known.sprites)] = known.sprites
    codec.rest.copy_(known.rest)
    follows = np.arange(STEPS) > 0
    codec.learn_objects(codes.astype(np.uint8), follows)
    slots = codec.slots.clone()
    assert (slots[:, 0] >= 0).sum() == 3
    other = np.roll(codes, 1, axis=2).astype(np.uint8)
    codec.learn_objects(other, follows)
    assert torch.equal(codec.slots, slots)
    again = VQVAE(small(objects=True))
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.slots, slots) and torch.equal(again.looks, codec.looks)


def test_codecs_from_before_have_no_objects_in_their_files():
    assert not {"looks", "slots"} & set(VQVAE(small()).state_dict())


def test_objects_need_sprites_and_a_codec_that_knows_them():
    with pytest.raises(ConfigError, match="set sprites=True"):
        VQVAEConfig(objects=True)
    dream = make_tiny_dream()
    with pytest.raises(ConfigError, match=r"expected codec.objects=True.*Show 'codes'"):
        ObservationBuilder(dream.world_model, "objects", 4, hidden_state=False)


def test_real_experience_is_remembered_as_objects():
    frames, _ = movie(30)
    codec, codes = learned(frames)
    replay = Replay(30, (4, 4))
    for index in range(30):
        replay.append(np.zeros((4, 4), np.uint8), index % 3, 0.0, index == 19, False, False, index in (0, 20))
    model = make_tiny_dream().world_model
    builder = SimpleNamespace(
        kind="objects",
        world_model=model,
        build=lambda latents, taken: torch.cat(
            [torch.from_numpy(ObjectFinder(codec).find(latents)).flatten(1), taken], 1
        ),
    )
    past = real_transitions(codes.astype(np.uint8), replay, 4, False, builder)  # pyright: ignore[reportArgumentType]
    size = MOST_OBJECTS * FEATURES
    assert past.observations.shape == (29, size + model.num_actions)
    found = ObjectFinder(codec).find(stacks(codes[:20])).reshape(-1, size)
    np.testing.assert_array_equal(past.observations[3:19, :size], found[:16])
    np.testing.assert_array_equal(past.observations[1:20, size:], np.eye(model.num_actions)[past.actions[:19]])
    np.testing.assert_array_equal(past.next_observations[:19], past.observations[1:20])
    # The first of an episode has nothing before it.
    firsts = past.observations[[0, 20]]
    assert not firsts[:, :size].reshape(2, MOST_OBJECTS, FEATURES)[..., 5:].any() and not firsts[:, size:].any()
