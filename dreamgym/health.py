"""Training gone wrong, and how it is told: each sign is a pure function of figures, a plain sentence or None.

Nothing here draws from a generator or changes a weight: a run in which nothing is wrong is what it would be without.
"""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dreamgym.archives import non_finite
from dreamgym.errors import SickRunError
from dreamgym.fit import Fitter, Report, RewardChances, reward_chances
from dreamgym.models.losses import FIRMEST_LOGIT
from dreamgym.replay import Replay
from dreamgym.sb3 import last_losses, policy_entropy
from dreamgym.world_model import WorldModel, WorldModelConfig

LOWER_RATE = 0.3
"""What the learning rate of a phase is multiplied by when it is done again: one step on the usual 1, 3, 10 scale."""

_GUESSES = 10.0
"""An even guess costs the logarithm of the number of choices, and networks that have just been drawn cost about as
much, tiny ones after three updates 2.4 times that; those that have seen few rewards may be sure of them and wrong."""

_GROWTH, _GROWN = 10.0, 0.02
"""A fit on the same codes exploded where it ends at so many times the loss of the one before, and at this share of an
even guess at least. From fit to fit runs of Pong went up and down by a tenth; a loss near nothing may well triple."""

_BUSY_ENTROPY = 0.5
"""Share of the least entropy that codes must have to tell cells with something in them from those without. Where 1
cell in 30 has, a perplexity of 1.16 tells them and 1.08 is the floor; runs of Pong have 2.7, one single code has 1."""

_LOOKED_AT = 256
"""Frames, evenly spaced over the experience, in which cells with something in them are counted."""

_SAME = 1e-4
"""Chances of a reward that spread by no more than this share of their mean are one number. Heads that have just been
drawn spread by some percent, those of one single chance by what float32 rounds, 1e-7."""

_FEWEST_REWARDS, _REWARDS_SHOWN = 20, 1_000
"""Rewards in the experience, and how often the dynamics were shown one, from which on a head must know of them."""

_ODDS = 1.5
"""How much likelier, as odds, it must call a reward where there was one than where there was none. A first fit of Pong
has over 100."""

_ENTROPY = 0.01
"""Least share of the entropy of chance. Policies of Pong and Boxing stay above a third of it; one that is sure of every
move but one in a hundred is at a twenty-fifth (six actions), but one in a thousand at a two-hundredth."""

_EPISODES = 5
"""Episodes from which on a score's interval says something."""


# The five signs.


def exploded_loss(losses: Report, limits: Mapping[str, float]) -> str | None:
    """A loss that is no number, or beyond its limit.

    Args:
        losses: figures by name, any unit.
        limits: the largest that is still told from a loss which blew up, for some of the names.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"{name} ended at {value}, where a finite number was expected: it exploded."
        if value > limits.get(name, math.inf):
            return (
                f"{name} ended at {value:.4g}, where at most {limits[name]:.4g} was expected; beyond, it is worse than "
                "a guess or many times what it was: it exploded."
            )
    return None


def dead_codebook(perplexity: float, busy: float) -> str | None:
    """Codes that do not even tell the cells with something in them from those without.

    Args:
        perplexity: of the codes of real frames, in [1, codes].
        busy: share of the cells of real frames that have something in them, in [0, 1].
    """
    # Of cells that all have something in them no two need be alike.
    share = min(busy, 0.5)
    entropy = 0.0 if share == 0 else -share * math.log(share) - (1 - share) * math.log1p(-share)
    floor = math.exp(_BUSY_ENTROPY * entropy)
    if perplexity >= floor:
        return None
    return (
        f"The codebook's perplexity is {perplexity:.3f}, where at least {floor:.3f} was expected, as {busy:.1%} of the "
        "cells of real frames have something in them: nearly all of them have one code, and the codebook is dead."
    )


def deaf_reward_head(chances: RewardChances, rewards: int, shown: float) -> str | None:
    """A reward head that says the same whatever comes, though there are rewards to be learned.

    Args:
        chances: of a reward, by the head, in real steps with and without one.
        rewards: steps of the experience that brought one.
        shown: how often the dynamics were shown such a step.
    """
    rewarded, others = chances
    if not len(rewarded) or not len(others):
        return None
    every = np.concatenate([rewarded, others]).astype(np.float64)
    told = float(_odds(rewarded) / _odds(others))
    is_one_number = every.std() <= _SAME * every.mean()
    must_know = rewards >= _FEWEST_REWARDS and shown >= _REWARDS_SHOWN
    if not is_one_number and not (must_know and told < _ODDS):
        return None
    return (
        f"The reward head gives a reward a chance of {rewarded.mean():.4f} where there was one ({len(rewarded)} real "
        f"steps) and of {others.mean():.4f} where there was none ({len(others)}); {_ODDS} times the odds at least were "
        "expected. It predicts a constant, and the dream would pay whatever is done in it."
    )


def collapsed_policy(entropy: float, num_actions: int) -> str | None:
    """A policy that leaves nothing to chance any more, and so finds nothing new.

    Args:
        entropy: mean over what the policy was shown last, nats.
        num_actions: how many actions there are.
    """
    floor = _ENTROPY * math.log(num_actions)
    if entropy >= floor:
        return None
    return (
        f"The policy's entropy is {entropy:.4f} nats, where at least {floor:.4f} was expected ({_ENTROPY:.0%} of that "
        f"of {num_actions} actions by chance): it does the same in every try, and its exploration has collapsed."
    )


def below_random(real: Mapping[str, Any], random: Mapping[str, Any]) -> str | None:
    """A real score that is surely less than that of random actions.

    Args:
        real: mean, low and high ends of the 95 % interval, and episodes, as of :meth:`dreamgym.evaluate.Score.as_dict`.
        random: the same of random actions.
    """
    if min(len(real["episodes"]), len(random["episodes"])) < _EPISODES or real["high"] >= random["low"]:
        return None
    said, chance = (f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" for score in (real, random))
    return (
        f"The real score is {said}, where more than that of random actions was expected, {chance}: what the policy "
        "learned in the dream is worse than nothing in the game."
    )


# The figures that they need.


def sick_fit(fitter: Fitter, replay: Replay, report: Report, before: Report) -> str | None:
    """What went wrong in a fit that has just ended; None if nothing did.

    Args:
        fitter: with its world model.
        replay: what was fitted to.
        report: of :meth:`Fitter.fit`.
        before: of the fit before; empty if there was none.
    """
    found = [exploded_loss(report, loss_limits(fitter.world_model.config, report, before))]
    if "codec/perplexity" in report:
        found.append(dead_codebook(report["codec/perplexity"], busy_share(fitter.world_model, replay)))
    if "dynamics/reward" in report:
        rewards = replay.rewards_at(np.arange(len(replay)))
        count = int(np.count_nonzero(np.rint(np.clip(rewards, -1, 1))))
        shown = fitter.dynamics_steps * count / len(replay)
        found.append(deaf_reward_head(reward_chances(fitter.world_model, replay, fitter.config), count, shown))
    return _together(found)


def sick_agent(agent: Any, gamma: float) -> str | None:
    """What went wrong in an agent that has just learned; None if nothing did, or if it took no step.

    Args:
        agent: an algorithm of Stable-Baselines3. One that keeps a replay buffer of its own has no entropy to look at.
        gamma: its discount.
    """
    # Rewards are at most 1: no return is above 1 / (1 - gamma), and no two are further apart than twice that.
    limits = {} if gamma == 1 else {"train/value_loss": (2 / (1 - gamma)) ** 2}
    found = [exploded_loss(last_losses(agent), limits)]
    entropy = policy_entropy(agent)
    if entropy is not None:
        found.append(collapsed_policy(entropy, int(agent.action_space.n)))
    return _together(found)


def loss_limits(config: WorldModelConfig, report: Report, before: Report) -> dict[str, float]:
    """Beyond what a fit's losses have blown up, by name.

    Args:
        config: of the world model.
        report: of the fit, for what was fitted in it.
        before: of the fit before; empty if there was none.
    """
    codec = config.codec
    cells = math.prod(codec.frame) // codec.cell**2
    guess = cells * math.log(codec.quantizer.num_codes)
    limits = {
        # Where the background is as firm as can be and another thing stands in every pixel.
        "codec/reconstruction": codec.frame_stack
        * math.prod(codec.frame)
        * FIRMEST_LOGIT
        * (1 + codec.foreground_weight + codec.motion_weight),
        "dynamics/latent": _GUESSES * guess,
        "dynamics/reward": _GUESSES * math.log(3),
        "dynamics/end": _GUESSES * math.log(2),
    }
    # New codes have to be learned anew.
    if "dynamics/latent" in before and "codec/reconstruction" not in report:
        grown = max(_GROWTH * before["dynamics/latent"], _GROWN * guess)
        limits["dynamics/latent"] = min(limits["dynamics/latent"], grown)
    return limits


def busy_share(world_model: WorldModel, replay: Replay) -> float:
    """Share of the cells of real frames in which a pixel differs from the background, in [0, 1]."""
    codec = world_model.codec
    chosen = np.linspace(0, len(replay) - 1, min(len(replay), _LOOKED_AT)).astype(np.int64)
    frames = torch.as_tensor(replay.frames_at(chosen))[:, -1:].float() / 255
    differs = (frames - codec.background.cpu()).abs() > codec.config.foreground_threshold
    return float(F.max_pool2d(differs.float(), codec.config.cell).mean())


@contextmanager
def finite_weights(weights: Callable[[], Any]) -> Generator[None]:
    """Learning after which, or in whose error, weights are looked at.

    Args:
        weights: gives the tensors, in nested containers.

    Raises:
        SickRunError: some are no numbers; what draws from them may have failed before.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if complaint := _not_finite(weights()):
            raise SickRunError(complaint) from error
        raise
    if complaint := _not_finite(weights()):
        raise SickRunError(complaint)


def _not_finite(weights: Any) -> str | None:
    name = non_finite(weights)
    return name and f"The weights {name} hold NaN or infinity, where finite numbers were expected: the loss exploded."


def _odds(chances: npt.NDArray[np.float32]) -> np.float64:
    mean = chances.mean(dtype=np.float64).clip(1e-12, 1 - 1e-12)
    return mean / (1 - mean)


def _together(found: list[str | None]) -> str | None:
    return " ".join(sentence for sentence in found if sentence) or None
