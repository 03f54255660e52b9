"""The feed-forward dynamics: what they see, what they do not, and that one step is a window of one."""

import math

import pytest
import torch

from dreamgym.errors import ConfigError
from dreamgym.models.dynamics import parameter_count
from dreamgym.models.residual import ResidualConfig, ResidualDynamics, ResidualState
from dreamgym.world_model import WorldModel, WorldModelConfig

CHANNELS, HEIGHT, WIDTH, CODES, ACTIONS = 5, 4, 6, 7, 3
"""Features that are not square, so that no axis can be taken for another."""


def fresh(**settings) -> ResidualDynamics:
    """As a run begins with it."""
    torch.manual_seed(0)
    config = ResidualConfig(
        **{"memory": 3, "channels": 8, "blocks": 2, "embedding": 6, "reward_hidden": 16, **settings}
    )
    return ResidualDynamics(config, (CHANNELS, HEIGHT, WIDTH), CODES, ACTIONS).eval()


def tiny(**settings) -> ResidualDynamics:
    """One in which nothing is zero."""
    dynamics = fresh(**settings)
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dynamics


def window(batch: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, time, CHANNELS, HEIGHT, WIDTH), torch.randint(0, ACTIONS, (batch, time))


def assert_alike(one, other):
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)  # Products of another shape round otherwise.


@pytest.mark.parametrize(
    "settings",
    [{}, {"memory": 1}, {"memory": 9}, {"patch": 1}, {"blocks": 0}, {"end_head": False}, {"clock": 4}, {"joint": 8}],
    ids=str,
)
@pytest.mark.parametrize("seen_before", [0, 5])
@torch.no_grad()
def test_stepping_and_unrolling_a_sequence_agree_from_any_state(settings, seen_before):
    dynamics = tiny(**settings)
    state = dynamics.initial_state(3)
    for _ in range(seen_before):
        features, actions = window(3, 1)
        _, state = dynamics.step(features[:, 0], actions[:, 0], state)
    features, actions = window(3, 6)
    whole, final = dynamics.sequence(features, actions, state)
    for step in range(6):
        prediction, state = dynamics.step(features[:, step], actions[:, step], state)
        assert_alike(prediction, [tensor[:, step] for tensor in whole])
    assert_alike(state, final)


@pytest.mark.parametrize("first", [1, 2, 4])
@torch.no_grad()
def test_a_sequence_goes_on_from_a_state(first):
    dynamics = tiny(memory=4)
    features, actions = window(2, 6)
    whole, final = dynamics.sequence(features, actions, dynamics.initial_state(2))
    _, state = dynamics.sequence(features[:, :first], actions[:, :first], dynamics.initial_state(2))
    rest, last = dynamics.sequence(features[:, first:], actions[:, first:], state)
    assert_alike(rest, [tensor[:, first:] for tensor in whole])
    assert_alike(last, final)


@pytest.mark.parametrize("memory", [1, 3])
@pytest.mark.parametrize("changed", ["latent", "action"])
@torch.no_grad()
def test_a_prediction_depends_on_exactly_the_last_latents_and_actions(memory, changed):
    dynamics = tiny(memory=memory)
    features, actions = window(1, 7)
    before, _ = dynamics.sequence(features, actions, dynamics.initial_state(1))
    for step in range(7):
        other_features, other_actions = features.clone(), actions.clone()
        if changed == "latent":
            other_features[0, step] += 1
        else:
            other_actions[0, step] = (actions[0, step] + 1) % ACTIONS
        after, _ = dynamics.sequence(other_features, other_actions, dynamics.initial_state(1))
        for name, one, other in zip(before._fields, before, after, strict=True):
            differs = [not torch.equal(one[0, t], other[0, t]) for t in range(7)]
            assert differs == [step <= t < step + memory for t in range(7)], (name, step)


@torch.no_grad()
def test_nothing_older_than_the_memory_is_in_the_state():
    dynamics = tiny(memory=3)
    features, actions = window(2, 5)
    features[1, 3:], actions[1, 3:] = features[0, 3:], actions[0, 3:]
    _, state = dynamics.sequence(features, actions, dynamics.initial_state(2))
    assert torch.equal(state.seen[0], state.seen[1])
    ahead, action = window(1, 1)
    prediction, _ = dynamics.step(ahead[:, 0].expand(2, -1, -1, -1), action[:, 0].expand(2), state)
    for head in prediction:
        torch.testing.assert_close(head[0], head[1])


@torch.no_grad()
def test_predictions_do_not_depend_on_other_rows():
    dynamics = tiny()
    features, actions = window(3, 4)
    before, state_before = dynamics.sequence(features, actions, dynamics.initial_state(3))
    features[[0, 2]], actions[[0, 2]] = 9.0, 0
    after, state_after = dynamics.sequence(features, actions, dynamics.initial_state(3))
    for one, other in zip([*before, *state_before], [*after, *state_after], strict=True):
        assert torch.equal(one[1], other[1])
    assert not torch.equal(before.latent[0], after.latent[0])


@torch.no_grad()
def test_a_row_that_begins_anew_among_others_is_one_that_just_began():
    dynamics = tiny()
    features, actions = window(2, 3)
    _, state = dynamics.sequence(features, actions, dynamics.initial_state(2))
    began = torch.tensor([True, False])
    blank = dynamics.initial_state(2)
    mixed = ResidualState(
        *(torch.where(began.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(blank, state, strict=True))
    )
    later, more = window(2, 4)
    reset, _ = dynamics.sequence(later, more, mixed)
    anew, _ = dynamics.sequence(later, more, blank)
    went_on, _ = dynamics.sequence(later, more, state)
    assert torch.equal(reset.latent[0], anew.latent[0])
    assert torch.equal(reset.latent[1], went_on.latent[1])
    assert not torch.equal(went_on.latent[0], anew.latent[0])


@pytest.mark.parametrize("memory", [1, 3])
@torch.no_grad()
def test_the_state_begins_with_zeros_and_is_a_named_tuple_of_tensors_batch_first(memory):
    dynamics = tiny(memory=memory)
    state = dynamics.initial_state(4)
    assert isinstance(state, ResidualState)
    assert state.seen.shape == (4, memory - 1, 6 + ACTIONS, HEIGHT // 2, WIDTH // 2)
    assert all(len(tensor) == 4 and not tensor.any() for tensor in state)
    assert [tensor.dtype for tensor in state] == [torch.float32, torch.float32, torch.int64]
    features, actions = window(4, 1)
    _, after = dynamics.step(features[:, 0], actions[:, 0], state)
    assert isinstance(after, ResidualState)
    assert [tensor.shape for tensor in after] == [tensor.shape for tensor in state]
    assert dynamics.hidden(after).shape == (4, *dynamics.hidden_shape) == (4, 8, HEIGHT // 2, WIDTH // 2)
    assert dynamics.hidden(after).any()


@torch.no_grad()
def test_in_half_precision_the_state_and_the_distributions_stay_in_full():
    dynamics = tiny()
    features, actions = window(2, 3)
    exact, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        whole, state = dynamics.sequence(features[:, :2], actions[:, :2], dynamics.initial_state(2))
        last, after = dynamics.step(features[:, 2], actions[:, 2], state)
    assert all(t.dtype == torch.float32 for t in (*whole, *state, *last, *after) if t.is_floating_point())
    chances, expected = last.latent.softmax(1), exact.latent[:, 2].softmax(1)
    assert float((chances - expected).abs().mean()) < 0.02


@torch.no_grad()
def test_every_cell_is_predicted_in_its_place():
    dynamics = fresh(memory=1, blocks=0, channels=1, embedding=4 * CHANNELS)
    for layer in (dynamics.embed, dynamics.latent_head):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    # What the four cells of a patch show goes side by side into the patch's channels, and from there to the same cells.
    for code in range(CHANNELS):
        for cell in range(4):
            dynamics.embed.weight[4 * code + cell, code, cell // 2, cell % 2] = 1
            dynamics.latent_head.weight[cell * CODES + code, 1 + 4 * code + cell] = 1
    latents = torch.randint(0, CHANNELS, (2, 3, HEIGHT, WIDTH))
    features = torch.nn.functional.one_hot(latents, CHANNELS).float().movedim(-1, 2)
    prediction, _ = dynamics.sequence(features, torch.zeros(2, 3, dtype=torch.int64), dynamics.initial_state(2))
    assert prediction.latent.shape == (2, 3, CODES, HEIGHT, WIDTH)
    assert torch.equal(prediction.latent.argmax(2), latents)


@pytest.mark.parametrize("patch", [3, 4, 5])
def test_a_patch_that_does_not_divide_the_grid_is_refused(patch):
    with pytest.raises(ConfigError, match=rf"divisor of the latent's {HEIGHT}x{WIDTH}, got {patch}"):
        fresh(patch=patch)


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 0},
        {"channels": 0},
        {"embedding": 0},
        {"patch": 0},
        {"reward_hidden": 0},
        {"blocks": -1},
        {"clock": -1},
        {"clock": 129},
        {"joint": -1},
        {"least_chance": 1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ResidualConfig(**settings)


@torch.no_grad()
def test_continuous_actions_enter_as_they_are():
    dynamics = tiny()
    features, state = torch.randn(2, 4, CHANNELS, HEIGHT, WIDTH), dynamics.initial_state(2)
    actions = torch.randint(0, ACTIONS, (2, 4))
    one_hot, _ = dynamics.sequence(features, actions, state)
    vectors = torch.nn.functional.one_hot(actions, ACTIONS).float()
    assert torch.equal(one_hot.latent, dynamics.sequence(features, vectors, state)[0].latent)
    stronger, _ = dynamics.sequence(features, 2 * vectors, state)
    assert not torch.allclose(one_hot.latent, stronger.latent)


@torch.no_grad()
def test_the_clock_counts_from_the_last_reward_and_stops_at_its_limit():
    dynamics = tiny(clock=5)
    rewards = torch.tensor([[0, 0, 1, 0, 0, -1.0], [0, 0, 0, 0, 0, 0.2], [0.9, 0, 0, 0, 0, 0]])
    started = dynamics.initial_state(3, elapsed=torch.tensor([1, 3, 100]))
    assert started.elapsed.tolist() == [1, 3, 5]
    features, actions = window(3, 6)
    seen = []
    for time in range(1, 7):
        state = dynamics.sequence(features[:, :time], actions[:, :time], started, rewards[:, :time])[1]
        seen.append(state.elapsed.tolist())
    assert [list(row) for row in zip(*seen, strict=True)] == [
        [2, 3, 0, 1, 2, 0],
        [4, 5, 5, 5, 5, 5],
        [0, 1, 2, 3, 4, 5],
    ]


@torch.no_grad()
def test_predictions_depend_on_the_clock_up_to_its_limit():
    dynamics = tiny(clock=5)
    features, actions = window(1, 1)
    logits = [
        dynamics.step(features[:, 0], actions[:, 0], dynamics.initial_state(1, elapsed=torch.tensor([elapsed])))[0]
        for elapsed in range(8)
    ]
    distinct = {tuple(prediction.latent.flatten().tolist()) for prediction in logits}
    assert len(distinct) == 6
    unknown, _ = dynamics.step(features[:, 0], actions[:, 0], dynamics.initial_state(1))
    assert torch.equal(unknown.latent, logits[5].latent)


@torch.no_grad()
def test_what_is_predicted_sets_a_dreams_clock_back():
    dynamics = tiny(clock=9)
    features, actions = window(2, 1)
    bias = dynamics.reward_head[-1].bias
    for surely, elapsed in ((1, [4, 10]), (2, [0, 0]), (0, [0, 0])):
        bias.copy_(torch.full((3,), -50.0).index_fill(0, torch.tensor(surely), 50.0))
        started = dynamics.initial_state(2, elapsed=torch.tensor([3, 9]))
        state = dynamics.step(features[:, 0], actions[:, 0], started)[1]
        assert state.elapsed.tolist() == [min(steps, 9) for steps in elapsed]


@torch.no_grad()
def test_true_rewards_go_before_predicted_ones():
    dynamics = tiny(clock=9)
    features, actions = window(2, 4)
    started = dynamics.initial_state(2, elapsed=torch.tensor([3, 9]))
    given, _ = dynamics.sequence(features, actions, started, torch.zeros(2, 4))
    other, _ = dynamics.sequence(features, actions, started, torch.ones(2, 4))
    assert torch.equal(given.latent[:, 0], other.latent[:, 0])
    assert not torch.allclose(given.latent[:, 1], other.latent[:, 1])


@torch.no_grad()
def test_without_an_end_head_nothing_ever_ends():
    dynamics = tiny(end_head=False)
    prediction, _ = dynamics.sequence(*window(2, 3), dynamics.initial_state(2))
    assert prediction.end_logit.shape == (2, 3) and not prediction.end_probability().any()


@torch.no_grad()
def test_the_blocks_begin_as_the_identity_and_nothing_is_held_likely_before_training():
    dynamics = fresh(blocks=3)
    trunk = torch.randn(2, 8, 2, 3)
    assert torch.equal(dynamics.blocks(trunk), trunk)
    prediction, _ = dynamics.sequence(*window(8, 4), dynamics.initial_state(8))
    log_chances = prediction.latent.log_softmax(2)
    entropy = -(log_chances.exp() * log_chances).sum(2).mean()
    assert entropy > 0.9 * math.log(CODES)


def test_gradients_reach_every_weight_once_the_blocks_have_left_the_identity():
    dynamics = tiny()
    prediction, _ = dynamics.sequence(*window(2, 4), dynamics.initial_state(2))
    sum(head.square().sum() for head in prediction).backward()
    assert [name for name, weight in dynamics.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_the_default_dynamics_are_less_than_a_quarter_of_the_papers():
    dynamics = ResidualDynamics(ResidualConfig(), (32, 12, 12), 64, 6)
    assert parameter_count(dynamics.embed) == 32 * 64 * 4 + 64
    assert parameter_count(dynamics.inputs) == 4 * (64 + 6) * 128 * 9 + 128
    assert parameter_count(dynamics.blocks) == 3 * 2 * (128 * 128 * 9 + 128)
    assert parameter_count(dynamics.latent_head) == (128 + 64) * 4 * 64 + 4 * 64
    total = parameter_count(dynamics) - parameter_count(dynamics.end_head)
    papers = WorldModel(WorldModelConfig()).parameter_counts()["dynamics"]
    assert total == 1_420_259 < papers / 4


@pytest.mark.parametrize("setting", ["dropout", "reward_dropout"])
def test_dropout_is_for_training_alone(setting):
    off = {"dropout": 0.0, "reward_dropout": 0.0}
    dynamics = tiny(**{**off, setting: 0.5})
    features, actions = window(6, 4)

    def predict():
        with torch.no_grad():
            return dynamics.sequence(features, actions, dynamics.initial_state(6))[0]

    still = predict()
    assert_alike(predict(), still)
    dynamics.train()
    noisy = predict()
    assert not torch.allclose(noisy.reward_logits, still.reward_logits)
    assert torch.allclose(noisy.latent, still.latent, atol=1e-5) == (setting == "reward_dropout")


@pytest.mark.parametrize("setting", ["dropout", "reward_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_to_drop_out_of_range_is_refused(setting, value):
    with pytest.raises(ConfigError, match=f"^{setting}: expected at least 0 and less than 1"):
        ResidualConfig(**{setting: value})
