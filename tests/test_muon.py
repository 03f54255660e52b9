import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dreamgym.fit
import dreamgym.muon
from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.muon import Muon, is_matrix, orthogonalize
from dreamgym.replay import Replay
from dreamgym.world_model import DynamicsConfig, WorldModel, WorldModelConfig

CONFIG = FitConfig(
    codec_batch_size=8, dynamics_batch_size=4, sequence_length=5, unquantized_updates=2, dynamics_optimizer="muon"
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 20, 50), (1, 50, 20), (2, 16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one_and_directions_stay(shape, dtype):
    matrices = draw(*shape) * 1e-3
    made = orthogonalize(matrices, dtype=dtype)
    assert made.shape == matrices.shape
    assert made.dtype == torch.float32
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    mapped = u.mT @ made @ vh.mT
    values = torch.diagonal(mapped, dim1=-2, dim2=-1)
    large = s > 0.1 * s.max()
    assert bool(((values > 0.6) & (values < 1.3))[large].all())
    assert (mapped - torch.diag_embed(values)).abs().max() < (0.01 if dtype == torch.float32 else 0.2)


def test_a_step_has_the_size_of_the_rate_whatever_the_gradient_s():
    moves = []
    for scale in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(12, 30))
        optimizer = Muon([weight], lr=0.5)
        weight.grad = draw(12, 30) * scale
        optimizer.step()
        moves.append(weight.detach().clone())
    torch.testing.assert_close(*moves, rtol=1e-3, atol=1e-3)
    assert 0.3 < torch.linalg.matrix_norm(moves[0], 2) < 0.65


def test_momentum_decay_and_the_factor_of_tall_matrices():
    weight = nn.Parameter(draw(40, 10, seed=1))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    first, second = draw(40, 10, seed=2), draw(40, 10, seed=3)
    mean = torch.zeros(40, 10)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        step = orthogonalize((0.1 * gradient + 0.9 * mean)[None])[0]
        before = before * (1 - 0.1 * 0.5) - 0.1 * 2 * step
    torch.testing.assert_close(weight.detach(), before)


def test_convolutions_of_one_shape_step_as_if_they_were_alone_in_either_memory_format():
    weights = [nn.Parameter(draw(16, 12, 3, 3, seed=seed)) for seed in range(3)]
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)
    alone = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    together = Muon(weights, lr=0.1)
    single = [Muon([weight], lr=0.1) for weight in alone]
    for index, (weight, flat) in enumerate(zip(weights, alone, strict=True)):
        gradient = draw(16, 12, 3, 3, seed=10 + index)
        weight.grad, flat.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    together.step()
    for optimizer in single:
        optimizer.step()
    for weight, flat in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight.detach().flatten(1), flat.detach())


def test_weights_without_gradient_stay_and_vectors_are_refused():
    weight, idle = nn.Parameter(draw(10, 10)), nn.Parameter(draw(10, 10, seed=1))
    kept = idle.detach().clone()
    optimizer = Muon([weight, idle])
    loss = optimizer.step(lambda: weight.square().sum().backward() or 7.0)
    assert loss == 7.0
    assert torch.equal(idle.detach(), kept)
    with pytest.raises(ConfigError, match=r"2 dimensions or more, got \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))])
    assert [is_matrix(nn.Parameter(torch.zeros(*s))) for s in [(9, 9), (8, 90), (9, 1, 3, 3), (9,), (9, 8)]] == [
        True,
        False,
        True,
        False,
        False,
    ]


def experience(steps: int = 60) -> Replay:
    replay, rng = Replay(steps, (32, 32)), np.random.default_rng(0)
    for step in range(steps):
        frame = np.full((32, 32), 90, np.uint8)
        frame[step % 28 : step % 28 + 3, 10:13] = 220
        replay.append(frame, int(rng.integers(3)), float(rng.integers(-1, 2)), False, False, False, step == 0)
    return replay


def new_model(dynamics: DynamicsConfig) -> WorldModel:
    config = WorldModelConfig(
        game="Pong", num_actions=3, continuous=False, codec=VQVAEConfig(width=2, frame_size=32), dynamics=dynamics
    )
    return WorldModel(config, seed=0)


KINDS = [
    ResidualConfig(channels=16, blocks=1, embedding=12, patch=2, reward_hidden=16),
    ConvLSTMConfig(hidden=12, kernel=3, reward_hidden=16),
    MultiscaleConfig(fine=12, embedding=12, channels=16, blocks=1, scale=2, cell_hidden=12, reward_hidden=16),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_one_optimiser_and_the_matrices_have_muon(kind):
    model = new_model(kind)
    fitter = Fitter(model, CONFIG)
    assert fitter.matrix_optimizer is not None
    names = {id(parameter): name for name, parameter in model.dynamics.named_parameters()}
    muon = {names[id(p)] for group in fitter.matrix_optimizer.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in fitter.dynamics_optimizer.param_groups for p in group["params"]}
    assert not muon & rest
    assert muon | rest == set(names.values())
    assert all(name.endswith("weight") for name in muon)
    assert "reward_head.4.weight" in rest and not any(name.startswith("reward_") for name in muon)
    assert any(name.startswith("latent_head.") for name in muon)
    assert Fitter(model, replace(CONFIG, dynamics_optimizer="adamw")).matrix_optimizer is None


@pytest.mark.parametrize(("wanted", "faster"), [(True, True), (True, False), (False, True)])
def test_products_are_in_bfloat16_where_that_is_wanted_and_faster(monkeypatch, wanted, faster):
    monkeypatch.setattr(dreamgym.fit, "bf16_is_faster", lambda kind: faster)
    types = set()
    monkeypatch.setattr(
        dreamgym.muon, "orthogonalize", lambda matrices, dtype: types.add(dtype) or orthogonalize(matrices, dtype=dtype)
    )
    fitter = Fitter(new_model(KINDS[0]), replace(CONFIG, bf16=wanted))
    generator = torch.Generator().manual_seed(0)
    fitter.fit(experience(), 0, 1, np.random.default_rng(0), generator, progress=False)
    assert types == {torch.bfloat16 if wanted and faster else torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitter_that_was_saved_goes_on_to_the_same_weights(kind):
    def fit(fitter: Fitter, updates: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        fitter.fit(experience(), 0, updates, np.random.default_rng(seed), generator, progress=False)

    first = Fitter(new_model(kind), CONFIG)
    fit(first, 3, 0)
    saved_model, saved = copy.deepcopy((first.world_model.state_dict(), first.state_dict()))
    other = Fitter(new_model(kind), CONFIG)
    other.world_model.load_state_dict(saved_model)
    other.load_state_dict(saved)
    for fitter in (first, other):
        fit(fitter, 3, 1)
    for a, b in zip(first.world_model.state_dict().values(), other.world_model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_directions_of_small_gradients_are_learned_as_fast_as_others():
    inputs = draw(256, 24) * torch.logspace(0, -2, 24)
    targets = inputs @ draw(24, 16, seed=1)
    losses = []
    for kind in (Muon, torch.optim.SGD):
        weight = nn.Parameter(torch.zeros(16, 24))
        optimizer = kind([weight], lr=0.05)
        for _ in range(150):
            loss = (inputs @ weight.mT - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.5 * losses[1]


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ConfigError, match="expected 'adamw' or 'muon', got 'adam'"):
        FitConfig(dynamics_optimizer="adam")  # type: ignore[arg-type]
