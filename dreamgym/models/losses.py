"""Losses and the densities behind them: pure functions of tensors.

Source: Robine et al. 2023, Sect. 3.2.1 (continuous Bernoulli likelihood) and Eq. 14-16 (latent and reward heads);
Loaiza-Ganem and Cunningham 2019 for the continuous Bernoulli itself.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NO_REWARD = 1
"""The class of a reward of zero, see :func:`reward_classes`."""

FIRMEST_LOGIT = 15.0
"""Log-odds beyond which the pixels of an image are not told apart."""

_SMALL_LOGIT = 0.05
"""Below this the closed forms lose digits to cancellation and the series are exact to float32."""


def _away_from_zero(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(is_small, logits with the small ones replaced by 1)``, so that no branch of a `where` makes a NaN."""
    small = logits.abs() < _SMALL_LOGIT
    return small, torch.where(small, torch.ones_like(logits), logits)


def continuous_bernoulli_log_normaliser(logits: Tensor) -> Tensor:
    """Log of the normalising constant C(l) = l / tanh(l / 2) of a continuous Bernoulli.

    Written in the logit: through ``atanh`` of probabilities the gradient is NaN where the logit saturates.

    Args:
        logits: any shape, log-odds.

    Returns:
        Same shape; log 2 + l^2 / 12 near zero.
    """
    small, safe = _away_from_zero(logits)
    exact = torch.log(safe / torch.tanh(safe / 2))
    return torch.where(small, math.log(2.0) + logits.square() / 12, exact)


def continuous_bernoulli_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of grey values under continuous Bernoullis, element by element.

    Args:
        logits: any shape, log-odds.
        targets: same shape, grey values in [0, 1].

    Returns:
        Same shape, nats.
    """
    return F.softplus(logits) - targets * logits - continuous_bernoulli_log_normaliser(logits)


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Mean of a continuous Bernoulli, sigmoid(l) / tanh(l / 2) - 1 / l: what a decoded pixel shows.

    Args:
        logits: any shape, log-odds.

    Returns:
        Same shape, grey values in (0, 1); 1/2 + l / 12 near zero.
    """
    small, safe = _away_from_zero(logits)
    exact = torch.sigmoid(safe) / torch.tanh(safe / 2) - 1 / safe
    return torch.where(small, 0.5 + logits / 12, exact)


def continuous_bernoulli_logit(mean: Tensor, limit: float = FIRMEST_LOGIT) -> Tensor:
    """Inverse of :func:`continuous_bernoulli_mean` by bisection.

    Args:
        mean: any shape, grey values in [0, 1].
        limit: the largest magnitude returned, log-odds.

    Returns:
        Same shape, log-odds in [-limit, limit].
    """
    low = torch.full_like(mean, -limit)
    high = torch.full_like(mean, limit)
    for _ in range(40):
        middle = (low + high) / 2
        above = continuous_bernoulli_mean(middle) > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def masked_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the valid steps of a batch of windows.

    Args:
        values: (batch, time), any unit.
        mask: (batch, time) bool, True where a step counts.
        weights: (batch,), importance weights of the windows; None for equal ones.

    Returns:
        Scalar; 0 if no step counts.
    """
    share = mask.to(values.dtype)
    counted = share if weights is None else share * weights[:, None]
    return (values * counted).sum() / share.sum().clamp(min=1.0)


def latent_cross_entropy(logits: Tensor, latents: Tensor) -> Tensor:
    """Cross-entropy of the next latent, summed over its cells (Robine et al. 2023, Eq. 14-15).

    Args:
        logits: (..., codes, height, width).
        latents: (..., height, width) int64, the codes that came.

    Returns:
        (...,), nats.
    """
    # One row a cell: heads that draw cells in turn hold the scores like that, and any other order would copy them.
    rows = logits.movedim(-3, -1)
    losses = F.cross_entropy(rows.reshape(-1, rows.shape[-1]), latents.reshape(-1), reduction="none")
    return losses.view(latents.shape).sum(dim=(-2, -1))


def reward_classes(rewards: Tensor) -> Tensor:
    """Clip rewards to [-1, 1], round, and shift to the classes {0, 1, 2} (Robine et al. 2023, Sect. 3.2.2).

    Args:
        rewards: any shape, raw rewards of the game.

    Returns:
        Same shape, int64.
    """
    return rewards.clamp(-1, 1).round().long() + NO_REWARD


def reward_cross_entropy(logits: Tensor, rewards: Tensor) -> Tensor:
    """Cross-entropy of the reward's class (Robine et al. 2023, Eq. 16).

    Args:
        logits: (batch, time, 3).
        rewards: (batch, time), raw rewards.

    Returns:
        (batch, time), nats.
    """
    classes = reward_classes(rewards).flatten()
    return F.cross_entropy(logits.flatten(0, 1), classes, reduction="none").unflatten(0, rewards.shape)


def end_cross_entropy(logits: Tensor, ends: Tensor) -> Tensor:
    """Binary cross-entropy of the episode's end, the d_t of Robine et al. 2023, Eq. 13.

    Args:
        logits: (batch, time), log-odds of an end.
        ends: (batch, time) bool.

    Returns:
        (batch, time), nats.
    """
    return F.binary_cross_entropy_with_logits(logits, ends.to(logits.dtype), reduction="none")


def code_log_probability(logits: Tensor, latents: Tensor) -> Tensor:
    """How likely given codes are.

    Args:
        logits: (..., codes, height, width).
        latents: (..., height, width) int64.

    Returns:
        Natural logarithm of the probability, (..., height, width) float32, at most 0.
    """
    return torch.log_softmax(logits.float(), dim=-3).gather(-3, latents.unsqueeze(-3)).squeeze(-3)
