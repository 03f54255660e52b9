from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_dream

from dreamgym.errors import ConfigError
from dreamgym.models.codecs import VQVAE, VQVAEConfig, best_offset
from dreamgym.models.dynamics import ConvLSTM, ConvLSTMConfig, ConvLSTMState, Prediction
from dreamgym.models.layers import MapLayerNorm, embed_mostly_alike, parameter_count
from dreamgym.models.losses import continuous_bernoulli_logit
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.world_model import DYNAMICS, DynamicsConfig, WorldModel, WorldModelConfig


@pytest.mark.parametrize(("stack", "encoder", "decoder"), [(4, 2_012_160, 2_076_132), (1, 2_010_624, 2_074_593)])
def test_codecs_have_the_papers_number_of_parameters(stack, encoder, decoder):
    codec = VQVAE(VQVAEConfig.published(stack))
    assert parameter_count(codec.encoder) == encoder
    assert parameter_count(codec.decoder) == decoder
    assert codec.quantizer.codes.numel() == 4_096


def test_the_parts_of_the_dynamics_have_the_papers_number_of_parameters():
    dynamics = ConvLSTM(ConvLSTMConfig(end_head=False), (32, 6, 6), 128, 18)
    assert parameter_count(dynamics.cell_1) == 2_353_024
    assert parameter_count(dynamics.cell_2) == 3_581_824
    assert parameter_count(dynamics.latent_head) == 18_816
    assert parameter_count(dynamics.reward_head) == 598_883


@pytest.mark.parametrize(("actions", "total"), [(18, 6_552_547), (6, 6_243_427), (4, 6_191_907)])
def test_the_dynamics_have_the_papers_number_of_parameters(actions, total):
    model = WorldModel(WorldModelConfig(num_actions=actions, dynamics=ConvLSTMConfig(end_head=True)))
    counts = model.parameter_counts()
    assert counts["dynamics"] == total
    assert counts["end_head"] > 0


def tiny(**settings) -> ConvLSTM:
    torch.manual_seed(0)
    dynamics = ConvLSTM(ConvLSTMConfig(hidden=8, kernel=3, reward_hidden=16, **settings), (5, 6, 6), 128, 3)
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dynamics


@pytest.mark.parametrize(
    "settings",
    [{}, {"end_head": False}, {"latent_skip": True}, {"patch": 2}, {"patch": 2, "latent_skip": True}, {"patch": 6}],
    ids=str,
)
@torch.no_grad()
def test_stepping_and_unrolling_a_sequence_agree(settings):
    dynamics = tiny(**settings)
    features, actions = torch.randn(3, 7, 5, 6, 6), torch.randint(0, 3, (3, 7))
    whole, final = dynamics.sequence(features, actions, dynamics.initial_state(3))
    state = dynamics.initial_state(3)
    for step in range(7):
        prediction, state = dynamics.step(features[:, step], actions[:, step], state)
        for one, all_ in zip(prediction, whole, strict=True):
            assert torch.allclose(one, all_[:, step], atol=1e-5)
    for one, other in zip(state, final, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_a_window_is_the_same_however_many_of_its_inputs_are_convolved_together(at_once, monkeypatch):
    dynamics = tiny()
    # Biases that are zero would not be missed.
    for cell in (dynamics.cell_1, dynamics.cell_2):
        torch.nn.init.normal_(cell.bias)
        torch.nn.init.normal_(cell.input_norm.bias)
    features, actions = torch.randn(2, 5, 5, 6, 6), torch.randint(0, 3, (2, 5))

    def unroll():
        dynamics.zero_grad()
        prediction, state = dynamics.sequence(features, actions, dynamics.initial_state(2))
        prediction.latent.square().mean().backward()
        return [prediction.latent, *state], [weight.grad.clone() for weight in dynamics.cell_1.parameters()]

    together, gradients = unroll()
    monkeypatch.setattr("dreamgym.models.dynamics._AT_ONCE", at_once)
    parted, others = unroll()
    for one, other in zip(together + gradients, parted + others, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_gates_bias_added_within_the_norm_is_the_bias_added_to_what_comes_of_it():
    norm, maps = MapLayerNorm([4, 6, 6]), torch.randn(3, 4, 6, 6)
    torch.nn.init.normal_(norm.bias)
    shift = torch.randn(4, 1, 1)
    for each in (maps, maps.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(norm(each, shift), norm(each) + shift, atol=1e-6)


@torch.no_grad()
def test_merged_cells_are_predicted_in_their_places():
    codes, hidden = 4, 1
    dynamics = ConvLSTM(ConvLSTMConfig(hidden=hidden, kernel=1, latent_skip=True, patch=2), (codes, 4, 6), codes, 3)
    torch.nn.init.zeros_(dynamics.latent_head.weight)
    torch.nn.init.zeros_(dynamics.latent_head.bias)
    # From each code's feature in each of the four cells, behind the hidden state and the action, to the same cell.
    for row in range(4 * codes):
        dynamics.latent_head.weight[row, hidden + 3 + row] = 1
    latents = torch.randint(0, codes, (2, 3, 4, 6))
    features = torch.nn.functional.one_hot(latents, codes).float().movedim(-1, 2)
    prediction, _ = dynamics.sequence(features, torch.zeros(2, 3, dtype=torch.int64), dynamics.initial_state(2))
    assert dynamics.hidden_shape == (hidden, 2, 3)
    assert prediction.latent.shape == (2, 3, codes, 4, 6)
    assert torch.equal(prediction.latent.argmax(2), latents)


def test_cells_that_cannot_be_merged_are_refused():
    with pytest.raises(ConfigError, match="divisor of the latent's 6x6, got 4"):
        tiny(patch=4)


def test_every_kind_of_dynamics_can_be_built():
    assert set(get_args(DynamicsConfig)) == set(DYNAMICS)


@torch.no_grad()
def test_a_sequence_goes_on_from_a_state():
    dynamics = tiny()
    features, actions = torch.randn(2, 6, 5, 6, 6), torch.randint(0, 3, (2, 6))
    whole, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    _, state = dynamics.sequence(features[:, :4], actions[:, :4], dynamics.initial_state(2))
    rest, _ = dynamics.sequence(features[:, 4:], actions[:, 4:], state)
    assert torch.allclose(whole.latent[:, 4:], rest.latent, atol=1e-5)


@torch.no_grad()
def test_predictions_depend_on_nothing_later_and_on_no_other_sequence():
    dynamics = tiny()
    features, actions = torch.randn(2, 6, 5, 6, 6), torch.randint(0, 3, (2, 6))
    before, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    features[0, 3:], actions[0, 3:], features[1] = 9.0, 0, -9.0
    after, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    assert torch.equal(before.latent[0, :3], after.latent[0, :3])
    assert not torch.equal(before.latent[0, 3], after.latent[0, 3])


@torch.no_grad()
def test_predictions_depend_on_the_action_and_on_the_past():
    dynamics = tiny()
    features = torch.randn(1, 2, 5, 6, 6)
    logits = [
        dynamics.sequence(features, torch.tensor([actions]), dynamics.initial_state(1))[0].latent[0, 1]
        for actions in ([0, 0], [0, 1], [1, 0])
    ]
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_continuous_actions_enter_as_they_are():
    dynamics = tiny()
    features, state = torch.randn(1, 5, 6, 6), dynamics.initial_state(1)
    one_hot, _ = dynamics.step(features, torch.tensor([2]), state)
    vector, _ = dynamics.step(features, torch.tensor([[0.0, 0.0, 1.0]]), state)
    assert torch.equal(one_hot.latent, vector.latent)


def test_the_state_is_a_named_tuple_of_tensors_batch_first():
    dynamics = tiny()
    state = dynamics.initial_state(4)
    assert isinstance(state, ConvLSTMState)
    assert all(tensor.shape == (4, 8, 6, 6) and not tensor.any() for tensor in state)
    _, state = dynamics.step(torch.randn(4, 5, 6, 6), torch.zeros(4, dtype=torch.int64), state)
    assert isinstance(state, ConvLSTMState)
    assert dynamics.hidden(state).shape == (4, *dynamics.hidden_shape)


def test_without_an_end_head_nothing_ever_ends():
    dynamics = tiny(end_head=False)
    prediction, _ = dynamics.step(torch.randn(4, 5, 6, 6), torch.zeros(4, dtype=torch.int64), dynamics.initial_state(4))
    assert not prediction.end_probability().any()


def test_a_prediction_draws_rewards_from_its_distribution():
    rewards = torch.log(torch.tensor([[0.5, 0.2, 0.3]])).expand(20_000, 3)
    prediction = Prediction(torch.zeros(20_000, 3, 1, 1), rewards, torch.zeros(20_000))
    drawn = prediction.sample_reward(torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {-1.0, 0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(-0.2, abs=0.02)
    assert prediction.expected_reward()[0].item() == pytest.approx(-0.2)
    assert prediction.end_probability()[0].item() == 0.5


def test_the_papers_dynamics_draw_every_cell_from_its_own_scores():
    dynamics = tiny()
    chances = torch.tensor([0.1, 0.6, 0.3])
    scores = chances.log()[None, :, None, None].expand(1, 3, 6, 6)
    prediction = Prediction(scores.expand(1_000, -1, -1, -1), torch.zeros(1_000, 3), torch.zeros(1_000))
    uniforms = torch.rand(1_000, 6, 6, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(dynamics.draw_latent(prediction, uniforms).flatten()) / uniforms.numel()
    assert share.tolist() == pytest.approx(chances.tolist(), abs=0.015)
    assert torch.equal(dynamics.draw_latent(prediction, uniforms, 0.0), torch.ones(1_000, 6, 6, dtype=torch.int64))
    assert dynamics.latent_logits(prediction, torch.zeros(1_000, 6, 6, dtype=torch.int64)) is prediction.latent


def frames(count: int, stack: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, stack, 96, 96), dtype=np.uint8)


@pytest.mark.parametrize("part", ["all", "codec"])
def test_a_frame_has_one_latent_whatever_its_batch_mates_and_the_mode(part):
    model = make_tiny_dream().world_model
    batch = frames(9)
    alone = torch.cat([model.encode(batch[i : i + 1]) for i in range(9)])
    model.encode(batch)
    (model if part == "all" else model.codec).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model.encode(batch, chunk=4), alone)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stack", [1, 4])
def test_latents_images_and_features_have_the_shapes_that_the_codec_names(stack):
    model = make_tiny_dream(frame_stack=stack).world_model
    latents = model.encode(frames(3, stack))
    assert latents.shape == (3, *model.codec.latent_shape) and latents.dtype == torch.int64
    assert model.embed(latents).shape == (3, *model.codec.embedding_shape)
    images = model.decode(latents)
    assert images.shape == (3, *model.codec.frame_shape) and images.dtype == torch.uint8


@pytest.mark.parametrize(("stages", "side"), [(2, 24), (3, 12), (4, 6), (5, 3)])
@pytest.mark.parametrize("stage_kernel", [2, 4])
def test_stages_say_how_fine_a_latent_is(stages, side, stage_kernel):
    codec = VQVAE(VQVAEConfig(width=2, stages=stages, stage_kernel=stage_kernel)).train()
    assert codec.latent_shape == (side, side) and codec.embedding_shape == (32, side, side)
    _, metrics = codec.loss(torch.as_tensor(frames(2)))
    assert metrics["cell_error"].shape == metrics["indices"].shape == (2, side, side)
    latents = codec.eval().encode(torch.as_tensor(frames(2)))
    assert latents.shape == (2, side, side)
    assert codec.decode(latents).shape == (2, 1, 96, 96)


def untrained(seed=0, **settings) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(VQVAEConfig(width=4, **settings)).eval()


def test_a_cells_error_is_the_weighted_squared_error_of_what_is_decoded():
    codec = untrained(frame_stack=2, foreground_weight=20.0)
    codec.prepare(torch.full((96, 96), 100, dtype=torch.uint8))
    images = torch.as_tensor(frames(3, 2))
    _, metrics = codec.loss(images)
    errors = 21 * (codec.decode(metrics["indices"]) - images / 255).square()
    errors[(images.int() - 100).abs() <= 0.06 * 255] /= 21
    by_cell = errors.sum(dim=1).unflatten(1, (6, 16)).unflatten(3, (6, 16)).mean(dim=(2, 4))
    torch.testing.assert_close(metrics["cell_error"], by_cell)
    assert not metrics["cell_error"].requires_grad


def test_frames_need_not_be_square():
    codec = untrained(stages=3, frame_size=112, frame_width=80, frame_stack=2)
    images = torch.randint(0, 256, (3, 2, 112, 80), dtype=torch.uint8)
    assert codec.latent_shape == (14, 10) and codec.embedding_shape == (32, 14, 10)
    assert codec.frame_shape == (2, 112, 80) and codec.config.screen["size"] == codec.config.frame == (112, 80)
    latents = codec.encode(images)
    assert latents.shape == (3, 14, 10)
    assert codec.decode(latents).shape == (3, 2, 112, 80)
    loss, metrics = codec.loss(images, images.flip(0), shifts=torch.tensor([0, 4, -8]))
    assert loss.shape == () and loss.isfinite()
    assert metrics["cell_error"].shape == metrics["indices"].shape == (3, 14, 10)


def test_without_a_width_frames_are_square_and_the_screen_is_resized():
    config = VQVAEConfig(frame_size=64)
    assert config.frame == (64, 64) and config.screen["size"] == 64
    assert VQVAEConfig(frame_size=64, frame_width=64).screen["size"] == (64, 64)


def test_the_published_codec_sees_the_maximum_of_two_frames_resized_by_area():
    assert VQVAEConfig.published().screen == {"size": 96, "shrink": "area", "max_pool": True}
    assert VQVAEConfig(shrink="nearest", max_pool=False).screen == {"size": 96, "shrink": "nearest", "max_pool": False}


@pytest.mark.parametrize("width", [81, 8, -16])
def test_a_width_that_is_no_multiple_of_a_cell_is_refused(width):
    with pytest.raises(ConfigError, match=f"frame_width: expected 0 or a multiple of 16, got {width}"):
        VQVAEConfig(frame_width=width)


@pytest.mark.parametrize("stack", [1, 2])
@torch.no_grad()
def test_a_codes_picture_is_shown_in_its_own_cell(stack):
    book = QuantizerConfig(num_codes=4, embedding_dim=4)
    codec = untrained(stages=3, frame_size=32, frame_width=48, frame_stack=stack, pictures=True, quantizer=book)
    last = list(codec.decoder.children())[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    pictures = torch.rand(4, stack, 8, 8) * 0.8 + 0.1
    codec.quantizer.codes.copy_(torch.eye(4))
    codec.pictures.weight.copy_(continuous_bernoulli_logit(pictures).flatten(1).T[:, :, None, None])
    latents = torch.randint(0, 4, (3, 4, 6))
    shown = codec.decode(latents).unflatten(2, (4, 8)).unflatten(4, (6, 8))
    torch.testing.assert_close(shown.permute(0, 2, 4, 1, 3, 5), pictures[latents], atol=1e-3, rtol=0)


def bars(count, rows, columns, cell=4, size=(16, 24)):
    """Screens with one bar each that fills a cell, wherever cells can lie on a grid moved by (-rows, -columns)."""
    screens = np.zeros((count, 1, *size), np.uint8)
    rng = np.random.default_rng(0)
    for screen in screens[:, 0]:
        row, column = (rng.integers(side // cell) * cell - by for side, by in zip(size, (rows, columns), strict=True))
        there = np.zeros(size, np.uint8)
        there[:cell, :cell] = 200
        screen |= np.roll(there, (row, column), (0, 1))
    return screens


@pytest.mark.parametrize("offset", [(0, 0), (3, 2), (1, 0)])
def test_a_grid_lies_where_it_makes_the_fewest_kinds_of_cells(offset):
    assert best_offset(bars(50, *offset), 4) == offset
    assert best_offset(bars(50, 2 * offset[0], 2 * offset[1], 8, (16, 24)), 8) == (2 * offset[0], 2 * offset[1])


@torch.no_grad()
def test_an_aligned_codec_moves_the_screen_on_its_grid_and_back():
    settings = {"stages": 2, "stage_kernel": 2, "frame_size": 16, "frame_width": 24, "pictures": True}
    plain, aligned = untrained(**settings), untrained(**settings, aligned=True)
    screens = torch.as_tensor(bars(6, 3, 2))
    aligned.prepare(screens[0, 0], screens)
    plain.prepare(screens[0, 0].roll((3, 2), (0, 1)))
    aligned.prepare(screens[0, 0], torch.as_tensor(bars(6, 1, 0)))
    assert aligned.offset.tolist() == [3, 2] and torch.equal(aligned.background, screens[0, 0] / 255)
    moved = screens.roll((3, 2), (2, 3))
    latents = aligned.encode(screens)
    assert torch.equal(latents, plain.encode(moved))
    assert torch.equal(aligned.decode(latents), plain.decode(latents).roll((-3, -2), (2, 3)))
    (loss, metrics), (same, known) = aligned.loss(screens, screens.flip(0)), plain.loss(moved, moved.flip(0))
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(metrics["cell_error"], known["cell_error"])


def test_where_the_grid_lies_is_kept_with_the_weights_and_older_weights_have_none():
    aligned = untrained(frame_size=32, aligned=True)
    aligned.offset.copy_(torch.tensor([4, 8]))
    other = untrained(frame_size=32, aligned=True)
    other.load_state_dict(aligned.state_dict())
    assert other.offset.tolist() == [4, 8]
    assert "offset" not in untrained(frame_size=32).state_dict()


def test_pictures_are_counted_and_learned_with_the_decoder():
    plain, shown = (
        WorldModel(WorldModelConfig(codec=VQVAEConfig(width=4, pictures=pictures), bf16=False), seed=0)
        for pictures in (False, True)
    )
    added = shown.parameter_counts()["decoder"] - plain.parameter_counts()["decoder"]
    assert added == shown.codec.pictures.weight.numel() == 32 * 16**2
    shown.codec.loss(torch.as_tensor(frames(2)))[0].backward()
    assert shown.codec.pictures.weight.grad.any()


@pytest.mark.parametrize("value", [0, 255])
def test_the_loss_of_an_exact_black_or_white_frame_is_bounded(value):
    codec = untrained(stages=3, frame_size=32, foreground_weight=0.0, commitment_weight=0.0)
    codec.prepare(torch.full((32, 32), value, dtype=torch.uint8))
    last = list(codec.decoder.children())[-1]
    frame = torch.full((1, 1, 32, 32), value, dtype=torch.uint8)
    losses = []
    for logit in (15.0, 100.0, 255.0, 510.0, 1000.0):
        with torch.no_grad():
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
            codec.pixel_bias.fill_(logit if value else -logit)
        losses.append(codec.loss(frame)[0].item() / 32**2)
    # The best mean is half a grey level inside: a density of 510 on either side of e.
    assert losses[1] < losses[0] and losses[3] == min(losses) and losses[4] > losses[3]
    assert losses[3] == pytest.approx(-np.log(510) + 1, abs=0.01)


@pytest.mark.parametrize("stages", [3, 4])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (5, 5)])
@torch.no_grad()
def test_with_a_stage_kernel_of_two_a_code_sees_its_own_cell_and_nothing_beside_it(stages, row, column):
    codec = untrained(stages=stages, stage_kernel=2)
    cell = codec.config.cell
    before = torch.as_tensor(frames(1))
    after = before.clone()
    after[0, 0, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] ^= 255
    outputs = [codec._encoder_outputs(image.float() / 255) for image in (before, after)]
    changed = (outputs[0] != outputs[1]).any(dim=1)[0]
    expected = torch.zeros(codec.latent_shape, dtype=torch.bool)
    expected[row, column] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(
    ("settings", "pixels"),
    [
        ({"stages": 3, "stage_kernel": 2}, 8),
        ({"stages": 3}, 22),
        ({"stages": 4}, 46),
        ({"stages": 4, "residual_kernel": 3}, 110),
    ],
    ids=str,
)
def test_a_code_sees_as_many_pixels_as_is_said(settings, pixels):
    codec = untrained(frame_size=256, **settings)
    image = torch.rand(1, 1, 256, 256, requires_grad=True)
    middle = codec.latent_shape[0] // 2
    codec.encoder(image)[0, :, middle, middle].square().sum().backward()
    assert image.grad is not None
    for axis in (0, 1):
        seen = image.grad[0, 0].abs().amax(axis).nonzero()
        assert int(seen.max() - seen.min()) + 1 == pixels


def test_another_frame_size_has_another_latent():
    codec = VQVAE(VQVAEConfig(width=4, frame_size=64)).eval()
    assert codec.encode(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).shape == (2, 4, 4) == (2, *codec.latent_shape)


@pytest.mark.parametrize("width", [0, 64])
def test_the_pixel_bias_shows_the_background_before_any_training(width):
    codec = VQVAEConfig(width=4, frame_width=width, pixel_bias=True)
    background = torch.randint(0, 256, codec.frame, dtype=torch.uint8)
    model = WorldModel(WorldModelConfig(codec=codec, bf16=False), seed=0)
    last = list(model.codec.decoder.children())[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    model.codec.prepare(background)
    shown = model.decode(torch.zeros(1, *model.codec.latent_shape, dtype=torch.int64))[0, 0]
    assert torch.equal(model.codec.background, background / 255)
    # A continuous Bernoulli's mean reaches black and white only in the limit: 255 / 15 at log-odds of 15.
    inner = (background > 18) & (background < 237)
    assert (shown.int() - background.int()).abs()[inner].max() <= 1
    assert (shown.int() - background.int()).abs().max() <= 18


def scrolling(step: int) -> torch.Tensor:
    """A striped road that moves a pixel a step, so that no pixel ever rests; and a bright car that stands still."""
    road = ((torch.arange(96) + step) % 16 < 8).to(torch.uint8) * 60 + 60
    frame = road[None, :].repeat(96, 1)
    frame[40:44, 40:44] = 250
    return frame[None, None]


def test_motion_weighs_what_changed_in_a_game_that_scrolls():
    codec = VQVAE(VQVAEConfig(width=4, foreground_weight=0.0, motion_weight=20.0))
    weights = codec._pixel_weights(scrolling(5).float() / 255, scrolling(4))[0, 0]
    moved = scrolling(5)[0, 0] != scrolling(4)[0, 0]
    assert torch.equal(weights == 21, moved)
    assert torch.equal(weights == 1, ~moved)
    without = codec._pixel_weights(scrolling(5).float() / 255, None)
    assert (without == 1).all()


def test_foreground_weighs_what_differs_from_the_background():
    codec = VQVAE(VQVAEConfig(width=4, foreground_weight=20.0))
    codec.prepare(torch.full((96, 96), 100, dtype=torch.uint8))
    frame = torch.full((1, 1, 96, 96), 105, dtype=torch.uint8)
    frame[0, 0, 10, 20:23] = 130
    weights = codec._pixel_weights(frame.float() / 255, None)
    assert weights.sum().item() == 96 * 96 + 3 * 20
    assert (weights[0, 0, 10, 20:23] == 21).all()


def test_codes_pass_gradients_straight_to_the_encoder():
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(width=4, commitment_weight=0.0)).train()
    loss, metrics = codec.loss(torch.as_tensor(frames(2)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.encoder.parameters() if p.dim() > 1)
    assert metrics["vectors"].shape == (2, 6, 6, 32) and not metrics["vectors"].requires_grad


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = make_tiny_dream().world_model, make_tiny_dream().world_model
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda: VQVAEConfig(frame_size=100),
        lambda: VQVAEConfig(frame_size=72),
        lambda: VQVAEConfig(stages=0),
        lambda: VQVAEConfig(stages=6),
        lambda: VQVAEConfig(stage_kernel=3),
        lambda: VQVAEConfig(shrink="cubic"),
        lambda: VQVAEConfig(residual_kernel=2),
        lambda: ConvLSTMConfig(kernel=4),
        lambda: ConvLSTMConfig(hidden=0),
        lambda: ConvLSTMConfig(patch=0),
        lambda: WorldModelConfig(num_actions=0),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_that_are_mostly_alike_are_embedded_as_any_others(dtype):
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(9, (4, 5, 3), generator=generator)
    anything = torch.randint(9, (6, 4, 5, 3), generator=generator)
    weight = torch.randn(6, 4, 5, 3, 7, generator=generator).to(dtype)
    for share in (0.0, 0.1, 1.0):
        codes = torch.where(torch.rand(anything.shape, generator=generator) < share, anything, first)
        table = torch.randn(9, 7, generator=generator).to(dtype).requires_grad_()
        reference = table.detach().float().requires_grad_()
        shown, expected = embed_mostly_alike(codes, table), F.embedding(codes, reference)
        assert torch.equal(shown.float(), expected)
        (shown * weight).sum().backward()
        (expected * weight.float()).sum().backward()
        # Added up in full precision, and rounded once.
        torch.testing.assert_close(
            table.grad, reference.grad.to(dtype), rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-5
        )
