"""The feed-forward dynamics of both kinds: what they see, what they do not, and that one step is a window of one."""

import math

import pytest
import torch

from dreamgym.errors import ConfigError
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics
from dreamgym.models.residual import ResidualConfig, ResidualDynamics
from dreamgym.streams import sample_categorical

CHANNELS, HEIGHT, WIDTH, CODES, ACTIONS = 5, 4, 6, 7, 3
"""Features that are not square, so that no axis can be taken for another."""

KINDS = {"residual": (ResidualConfig, ResidualDynamics), "multiscale": (MultiscaleConfig, MultiscaleDynamics)}
SMALL = {
    "residual": {"memory": 3, "channels": 8, "blocks": 2, "embedding": 6, "reward_hidden": 16},
    "multiscale": {
        "memory": 3,
        "fine": 4,
        "embedding": 6,
        "channels": 8,
        "blocks": 2,
        "scale": 2,
        "cell_hidden": 8,
        "reward_hidden": 16,
    },
}
SETTINGS = {
    "residual": [
        {},
        {"memory": 1},
        {"memory": 9},
        {"patch": 1},
        {"blocks": 0},
        {"end_head": False},
        {"clock": 4},
        {"joint": 8},
    ],
    "multiscale": [
        {},
        {"memory": 1},
        {"memory": 9},
        {"scale": 1},
        {"blocks": 0, "fine_blocks": 0},
        {"reward_channels": 4},
        {"wraps": True, "reward_channels": 4},
        {"fine_blocks": 2},
        {"end_head": False},
        {"clock": 4},
        {"motion": True, "step_hidden": 8},
    ],
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def fresh(kind: str, **settings):
    """As a run begins with it."""
    torch.manual_seed(0)
    config, dynamics = KINDS[kind]
    module = dynamics(config(**{**SMALL[kind], **settings}), (CHANNELS, HEIGHT, WIDTH), CODES, ACTIONS).eval()
    if settings.get("motion"):
        sprites = (torch.rand(CODES, 4, 4) < 0.2).float()
        module.look_up(torch.randn(CODES, CHANNELS), sprites, torch.zeros(HEIGHT, WIDTH, dtype=torch.int64))
    else:
        module.look_up(torch.randn(CODES, CHANNELS))
    return module


def tiny(kind: str, **settings):
    """One in which nothing is zero."""
    dynamics = fresh(kind, **settings)
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dynamics


def window(dynamics, batch: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the dynamics take of latents, and actions."""
    actions = torch.randint(0, ACTIONS, (batch, time))
    if dynamics.takes_codes:
        return torch.randint(0, CODES, (batch, time, HEIGHT, WIDTH)), actions
    return torch.randn(batch, time, CHANNELS, HEIGHT, WIDTH), actions


def another(seen: torch.Tensor) -> torch.Tensor:
    """Other latents of the same kind."""
    return seen + 1 if seen.is_floating_point() else (seen + 1) % CODES


def assert_alike(one, other):
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)  # Products of another shape round otherwise.


@pytest.mark.parametrize(("kind", "settings"), [(kind, some) for kind in KINDS for some in SETTINGS[kind]], ids=str)
@pytest.mark.parametrize("seen_before", [0, 5])
@torch.no_grad()
def test_stepping_and_unrolling_a_sequence_agree_from_any_state(kind, settings, seen_before):
    dynamics = tiny(kind, **settings)
    state = dynamics.initial_state(3)
    for _ in range(seen_before):
        features, actions = window(dynamics, 3, 1)
        _, state = dynamics.step(features[:, 0], actions[:, 0], state)
    features, actions = window(dynamics, 3, 6)
    whole, final = dynamics.sequence(features, actions, state)
    for step in range(6):
        prediction, state = dynamics.step(features[:, step], actions[:, step], state)
        assert_alike(prediction, [tensor[:, step] for tensor in whole])
    assert_alike(state, final)


@pytest.mark.parametrize(("kind", "settings"), [(kind, some) for kind in KINDS for some in SETTINGS[kind]], ids=str)
@pytest.mark.parametrize("first", [1, 2, 4])
@torch.no_grad()
def test_a_sequence_with_known_rewards_goes_on_from_a_state(kind, settings, first):
    dynamics = tiny(kind, **settings)
    features, actions = window(dynamics, 2, 6)
    rewards = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, -1.0, 0]])
    whole, final = dynamics.sequence(features, actions, dynamics.initial_state(2), rewards)
    state = dynamics.initial_state(2)
    for part in (slice(0, first), slice(first, 6)):
        prediction, state = dynamics.sequence(features[:, part], actions[:, part], state, rewards[:, part])
        assert_alike(prediction, [tensor[:, part] for tensor in whole])
    assert_alike(state, final)


@pytest.mark.parametrize("memory", [1, 3])
@pytest.mark.parametrize("changed", ["latent", "action"])
@torch.no_grad()
def test_a_prediction_depends_on_exactly_the_last_latents_and_actions(kind, memory, changed):
    dynamics = tiny(kind, memory=memory)
    features, actions = window(dynamics, 1, 7)
    rewards = torch.zeros(1, 7)
    before, _ = dynamics.sequence(features, actions, dynamics.initial_state(1), rewards)
    for step in range(7):
        other_features, other_actions = features.clone(), actions.clone()
        if changed == "latent":
            other_features[0, step] = another(features[0, step])
        else:
            other_actions[0, step] = (actions[0, step] + 1) % ACTIONS
        after, _ = dynamics.sequence(other_features, other_actions, dynamics.initial_state(1), rewards)
        for name, one, other in zip(before._fields, before, after, strict=True):
            differs = [not torch.equal(one[0, t], other[0, t]) for t in range(7)]
            assert differs == [step <= t < step + memory for t in range(7)], (name, step)


@torch.no_grad()
def test_nothing_older_than_the_memory_is_in_the_state(kind):
    dynamics = tiny(kind, memory=3)
    features, actions = window(dynamics, 2, 5)
    features[1, 3:], actions[1, 3:] = features[0, 3:], actions[0, 3:]
    _, state = dynamics.sequence(features, actions, dynamics.initial_state(2), torch.zeros(2, 5))
    # The features made of the last step are only shown to an agent.
    for kept in state._replace(trunk=torch.zeros(2)):
        assert torch.equal(kept[0], kept[1])
    ahead, action = window(dynamics, 1, 1)
    prediction, _ = dynamics.step(ahead[:, 0].repeat_interleave(2, 0), action[:, 0].expand(2), state)
    for head in prediction:
        torch.testing.assert_close(head[0], head[1])


@torch.no_grad()
def test_predictions_do_not_depend_on_other_rows(kind):
    dynamics = tiny(kind)
    features, actions = window(dynamics, 3, 4)
    before, state_before = dynamics.sequence(features, actions, dynamics.initial_state(3))
    features[[0, 2]], actions[[0, 2]] = another(features[[0, 2]]), 0
    after, state_after = dynamics.sequence(features, actions, dynamics.initial_state(3))
    for one, other in zip([*before, *state_before], [*after, *state_after], strict=True):
        assert torch.equal(one[1], other[1])
    assert not torch.equal(before.latent[0], after.latent[0])


@torch.no_grad()
def test_a_row_that_begins_anew_among_others_is_one_that_just_began(kind):
    dynamics = tiny(kind)
    features, actions = window(dynamics, 2, 3)
    _, state = dynamics.sequence(features, actions, dynamics.initial_state(2))
    began = torch.tensor([True, False])
    blank = dynamics.initial_state(2)
    mixed = type(state)(
        *(torch.where(began.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(blank, state, strict=True))
    )
    later, more = window(dynamics, 2, 4)
    reset, _ = dynamics.sequence(later, more, mixed)
    anew, _ = dynamics.sequence(later, more, blank)
    went_on, _ = dynamics.sequence(later, more, state)
    assert torch.equal(reset.latent[0], anew.latent[0])
    assert torch.equal(reset.latent[1], went_on.latent[1])
    assert not torch.equal(went_on.latent[0], anew.latent[0])


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("residual", {"seen": (6 + ACTIONS, HEIGHT // 2, WIDTH // 2)}),
        ("multiscale", {"seen": (HEIGHT, WIDTH), "acted": (ACTIONS,)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("memory", [1, 3])
@torch.no_grad()
def test_the_state_begins_with_nothing_seen_and_is_a_named_tuple_of_tensors_batch_first(kind, seen, memory):
    dynamics = tiny(kind, memory=memory, clock=4)
    state = dynamics.initial_state(5)
    features, actions = window(dynamics, 5, 1)
    _, after = dynamics.step(features[:, 0], actions[:, 0], state)
    assert type(after) is type(state)
    assert dynamics.hidden_shape == (8, HEIGHT // 2, WIDTH // 2)
    for each in (state, after):
        shapes = {name: (5, memory - 1, *shape) for name, shape in seen.items()}
        shapes |= {"trunk": (5, *dynamics.hidden_shape), "elapsed": (5,)}
        assert {name: tensor.shape for name, tensor in each._asdict().items()} == shapes
        whole = {"elapsed", "seen"} if dynamics.takes_codes else {"elapsed"}
        assert {name for name, tensor in each._asdict().items() if tensor.dtype == torch.int64} == whole
        assert all(tensor.dtype in (torch.int64, torch.float32) for tensor in each)
    nothing = CODES if dynamics.takes_codes else 0
    assert (state.seen == nothing).all() and not state.trunk.any() and (state.elapsed == 4).all()
    assert dynamics.hidden(after).shape == (5, *dynamics.hidden_shape)
    assert dynamics.hidden(after).any()


@torch.no_grad()
def test_in_half_precision_the_state_and_the_distributions_stay_in_full(kind):
    dynamics = tiny(kind)
    features, actions = window(dynamics, 2, 3)
    latents, rewards = torch.randint(0, CODES, (2, HEIGHT, WIDTH)), torch.zeros(2, 3)
    exact, _ = dynamics.sequence(features, actions, dynamics.initial_state(2), rewards)
    expected = dynamics.latent_logits(exact._replace(latent=exact.latent[:, 2]), latents).softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        whole, state = dynamics.sequence(features[:, :2], actions[:, :2], dynamics.initial_state(2), rewards[:, :2])
        last, after = dynamics.step(features[:, 2], actions[:, 2], state)
        logits = dynamics.latent_logits(last, latents)
    assert all(t.dtype == torch.float32 for t in (*whole, *state, *last, *after, logits) if t.is_floating_point())
    assert float((logits.softmax(1) - expected).abs().mean()) < 0.02


@torch.no_grad()
def test_continuous_actions_enter_as_they_are(kind):
    dynamics = tiny(kind)
    (features, actions), state = window(dynamics, 2, 4), dynamics.initial_state(2)
    one_hot, _ = dynamics.sequence(features, actions, state)
    vectors = torch.nn.functional.one_hot(actions, ACTIONS).float()
    assert torch.equal(one_hot.latent, dynamics.sequence(features, vectors, state)[0].latent)
    stronger, _ = dynamics.sequence(features, 2 * vectors, state)
    assert not torch.allclose(one_hot.latent, stronger.latent)


@torch.no_grad()
def test_the_clock_counts_from_the_last_reward_and_stops_at_its_limit(kind):
    dynamics = tiny(kind, clock=5)
    rewards = torch.tensor([[0, 0, 1, 0, 0, -1.0], [0, 0, 0, 0, 0, 0.2], [0.9, 0, 0, 0, 0, 0]])
    started = dynamics.initial_state(3, elapsed=torch.tensor([1, 3, 100]))
    assert started.elapsed.tolist() == [1, 3, 5]
    features, actions = window(dynamics, 3, 6)
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
def test_predictions_depend_on_the_clock_up_to_its_limit(kind):
    dynamics = tiny(kind, clock=5)
    features, actions = window(dynamics, 1, 1)
    logits = [
        dynamics.step(features[:, 0], actions[:, 0], dynamics.initial_state(1, elapsed=torch.tensor([elapsed])))[0]
        for elapsed in range(8)
    ]
    distinct = {tuple(prediction.latent.flatten().tolist()) for prediction in logits}
    assert len(distinct) == 6
    unknown, _ = dynamics.step(features[:, 0], actions[:, 0], dynamics.initial_state(1))
    assert torch.equal(unknown.latent, logits[5].latent)


@torch.no_grad()
def test_what_is_predicted_sets_a_dreams_clock_back(kind):
    dynamics = tiny(kind, clock=9)
    features, actions = window(dynamics, 2, 1)
    bias = dynamics.reward_head[-1].bias
    for surely, elapsed in ((1, [4, 10]), (2, [0, 0]), (0, [0, 0])):
        bias.copy_(torch.full((3,), -50.0).index_fill(0, torch.tensor(surely), 50.0))
        started = dynamics.initial_state(2, elapsed=torch.tensor([3, 9]))
        state = dynamics.step(features[:, 0], actions[:, 0], started)[1]
        assert state.elapsed.tolist() == [min(steps, 9) for steps in elapsed]


@torch.no_grad()
def test_a_reward_that_was_drawn_sets_the_clock_whatever_was_likely(kind):
    dynamics = tiny(kind, clock=9)
    features, actions = window(dynamics, 4, 1)
    dynamics.reward_head[-1].bias.copy_(torch.tensor([50.0, -50.0, -50.0]))
    before = dynamics.initial_state(4, elapsed=torch.tensor([3, 3, 9, 9]))
    after = dynamics.step(features[:, 0], actions[:, 0], before)[1]
    told = dynamics.told_reward(before, after, torch.tensor([True, False, True, False]))
    assert after.elapsed.tolist() == [0, 0, 0, 0] and told.elapsed.tolist() == [0, 4, 0, 9]
    assert torch.equal(told.trunk, after.trunk)


@torch.no_grad()
def test_true_rewards_go_before_predicted_ones(kind):
    dynamics = tiny(kind, clock=9)
    features, actions = window(dynamics, 2, 4)
    started = dynamics.initial_state(2, elapsed=torch.tensor([3, 9]))
    given, _ = dynamics.sequence(features, actions, started, torch.zeros(2, 4))
    other, _ = dynamics.sequence(features, actions, started, torch.ones(2, 4))
    assert torch.equal(given.latent[:, 0], other.latent[:, 0])
    assert not torch.allclose(given.latent[:, 1], other.latent[:, 1])


@torch.no_grad()
def test_without_an_end_head_nothing_ever_ends(kind):
    dynamics = tiny(kind, end_head=False)
    prediction, _ = dynamics.sequence(*window(dynamics, 2, 3), dynamics.initial_state(2))
    assert prediction.end_logit.shape == (2, 3) and not prediction.end_probability().any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "settings"), [("residual", {}), ("residual", {"joint": 8}), ("multiscale", {})], ids=str
)
@torch.no_grad()
def test_the_latent_that_is_drawn_is_what_the_scores_given_its_own_cells_say(kind, settings, temperature):
    dynamics = tiny(kind, **settings)
    prediction, _ = dynamics.sequence(*window(dynamics, 3, 1), dynamics.initial_state(3))
    prediction = prediction._replace(latent=prediction.latent[:, 0])
    uniforms = torch.rand(3, HEIGHT, WIDTH)
    drawn = dynamics.draw_latent(prediction, uniforms, temperature)
    assert drawn.shape == (3, HEIGHT, WIDTH) and drawn.dtype == torch.int64
    scores = dynamics.latent_logits(prediction, drawn)
    assert scores.shape == (3, CODES, HEIGHT, WIDTH)
    assert torch.equal(sample_categorical(scores, uniforms, temperature), drawn)


@torch.no_grad()
def test_the_blocks_begin_as_the_identity_and_nothing_is_held_likely_before_training(kind):
    dynamics = fresh(kind, blocks=3)
    trunk = torch.randn(2, 8, 2, 3)
    assert torch.equal(dynamics.blocks(trunk), trunk)
    prediction, _ = dynamics.sequence(*window(dynamics, 8, 4), dynamics.initial_state(8))
    logits = dynamics.latent_logits(prediction, torch.randint(0, CODES, (8, 4, HEIGHT, WIDTH)))
    log_chances = logits.log_softmax(2)
    entropy = -(log_chances.exp() * log_chances).sum(2)
    if kind == "multiscale":
        # Its gate holds no change likely, and where it cannot rule one out, no code is.
        gate = prediction.latent[:, :, -2]
        assert gate.sigmoid().max() < 0.05
        entropy = entropy[gate > dynamics.latent_head.threshold]
    assert entropy.mean() > 0.9 * math.log(CODES)


def test_gradients_reach_every_weight_once_the_blocks_have_left_the_identity(kind):
    dynamics = tiny(kind)
    prediction, _ = dynamics.sequence(*window(dynamics, 2, 4), dynamics.initial_state(2))
    loss = dynamics.latent_loss(prediction, torch.randint(0, CODES, (2, 4, HEIGHT, WIDTH)))
    assert loss.shape == (2, 4)
    sum(head.square().sum() for head in (loss, *prediction[1:])).backward()
    assert [name for name, weight in dynamics.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("setting", ["dropout", "reward_dropout"])
def test_dropout_is_for_training_alone(kind, setting):
    off = {"dropout": 0.0, "reward_dropout": 0.0}
    dynamics = tiny(kind, **{**off, setting: 0.5})
    features, actions = window(dynamics, 6, 4)

    def predict():
        with torch.no_grad():
            return dynamics.sequence(features, actions, dynamics.initial_state(6), torch.zeros(6, 4))[0]

    still = predict()
    assert_alike(predict(), still)
    dynamics.train()
    noisy = predict()
    assert not torch.allclose(noisy.reward_logits, still.reward_logits)
    assert torch.allclose(noisy.latent, still.latent, atol=1e-5) == (setting == "reward_dropout")


@pytest.mark.parametrize("setting", ["dropout", "reward_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_to_drop_out_of_range_is_refused(kind, setting, value):
    with pytest.raises(ConfigError, match=f"^{setting}: expected at least 0 and less than 1"):
        KINDS[kind][0](**{setting: value})
