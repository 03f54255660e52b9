import math

import numpy as np
import pytest
import torch
from scipy import integrate

from dreamgym.models.losses import (
    continuous_bernoulli_log_normaliser,
    continuous_bernoulli_logit,
    continuous_bernoulli_mean,
    continuous_bernoulli_nll,
    end_cross_entropy,
    latent_cross_entropy,
    masked_mean,
    reward_classes,
    reward_cross_entropy,
)

LOGITS = [-40.0, -12.0, -3.0, -0.3, -0.051, -0.049, -0.01, 0.0, 1e-4, 0.04, 0.06, 0.7, 5.0, 20.0, 60.0]


def test_the_continuous_bernoulli_density_integrates_to_one():
    for logit in (-15.0, -3.0, -0.3, -0.04, 0.0, 0.03, 0.2, 2.0, 15.0):

        def density(x, logit=logit):
            value = torch.tensor(x, dtype=torch.float64)
            return math.exp(-continuous_bernoulli_nll(torch.tensor(logit, dtype=torch.float64), value).item())

        assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-6)


def test_the_normaliser_is_that_of_the_probability_form():
    probability = np.array([1e-4, 0.02, 0.3, 0.45, 0.55, 0.8, 0.999])
    expected = np.log(2 * np.arctanh(1 - 2 * probability) / (1 - 2 * probability))
    logits = torch.from_numpy(np.log(probability / (1 - probability)))
    assert continuous_bernoulli_log_normaliser(logits).numpy() == pytest.approx(expected, rel=1e-9)


def test_the_mean_is_that_of_the_density():
    for logit in (-15.0, -3.0, -0.3, -0.04, 0.0, 0.03, 0.2, 2.0, 15.0):

        def moment(x, logit=logit):
            value, exact = torch.tensor(x, dtype=torch.float64), torch.tensor(logit, dtype=torch.float64)
            return x * math.exp(-continuous_bernoulli_nll(exact, value).item())

        mean = continuous_bernoulli_mean(torch.tensor(logit, dtype=torch.float64)).item()
        assert mean == pytest.approx(integrate.quad(moment, 0, 1)[0], abs=1e-6)


def test_the_series_near_zero_meets_the_closed_form_in_float32():
    for function in (continuous_bernoulli_log_normaliser, continuous_bernoulli_mean):
        below, above = function(torch.tensor([0.05 - 1e-6, 0.05 + 1e-6])).tolist()
        assert below == pytest.approx(above, abs=5e-6)


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_losses_and_gradients_are_finite_at_saturated_and_vanishing_logits(target):
    logits = torch.tensor([*LOGITS, -500.0, 500.0], requires_grad=True)
    loss = continuous_bernoulli_nll(logits, torch.full_like(logits, target))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_the_gradient_of_the_loss_is_mean_minus_target():
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    continuous_bernoulli_nll(logits, torch.full_like(logits, 0.3)).sum().backward()
    expected = continuous_bernoulli_mean(logits.detach()) - 0.3
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-5)


def test_the_logit_of_a_grey_value_decodes_to_it_again():
    greys = torch.arange(256) / 255
    decoded = continuous_bernoulli_mean(continuous_bernoulli_logit(greys, limit=300.0))
    assert (decoded - greys).abs().max() < 1 / 255


def test_logits_of_black_and_white_stay_within_the_limit():
    assert continuous_bernoulli_logit(torch.tensor([0.0, 1.0]), limit=15.0).abs().max() <= 15.0


def test_masked_mean_counts_valid_steps_only_and_weighs_windows():
    values = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(2.0)
    assert masked_mean(values, mask, torch.tensor([2.0, 0.5])).item() == pytest.approx((2 + 4 + 1.5) / 3)
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


def test_the_latent_loss_is_summed_over_cells():
    logits = torch.zeros(2, 3, 128, 6, 6)
    losses = latent_cross_entropy(logits, torch.zeros(2, 3, 6, 6, dtype=torch.int64))
    assert losses.shape == (2, 3)
    assert losses[0, 0].item() == pytest.approx(36 * math.log(128), rel=1e-6)


def test_rewards_are_clipped_and_rounded_to_three_classes():
    rewards = torch.tensor([-7.0, -1.0, -0.4, 0.0, 0.4, 1.0, 200.0])
    assert reward_classes(rewards).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_reward_and_end_losses_are_those_of_their_distributions():
    logits = torch.log(torch.tensor([[[0.2, 0.5, 0.3]]]))
    assert reward_cross_entropy(logits, torch.tensor([[9.0]])).item() == pytest.approx(-math.log(0.3))
    odds = torch.log(torch.tensor([[0.1 / 0.9, 0.1 / 0.9]]))
    ends = end_cross_entropy(odds, torch.tensor([[True, False]]))
    assert ends[0].tolist() == pytest.approx([-math.log(0.1), -math.log(0.9)])
