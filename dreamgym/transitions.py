"""Real experience as the transitions that a replay buffer of Stable-Baselines3 keeps.

An algorithm that learns from a buffer of its own can learn from everything that was ever played, random play included,
and from dreams and the game at once (Dyna, Sutton 1991).
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dreamgym.acts import real_acts
from dreamgym.models.layers import action_vectors
from dreamgym.observations import ObservationBuilder, to_numpy
from dreamgym.replay import Replay

_TOGETHER = 1_024
"""Stacks of latents that are turned into observations in one piece, for the memory it takes."""


class Transitions(NamedTuple):
    """Steps of experience, in order: n of them.

    Attributes:
        observations: (n, cells, stack) uint8 codes, oldest latent first; or (n, features) float32 of objects.
        next_observations: the same after the step; where an episode ended, the last that was shown.
        actions: (n, ...).
        rewards: (n,) float32.
        terminated: (n,) bool: the episode ended, and nothing is worth anything after it.
        broken: (n,) bool: what follows in memory does not follow in the game, though something may.
    """

    observations: npt.NDArray[Any]
    next_observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    broken: npt.NDArray[np.bool_]


def real_transitions(
    latents: npt.NDArray[np.uint8],
    replay: Replay,
    latent_stack: int,
    life_loss_ends: bool,
    builder: ObservationBuilder | None = None,
) -> Transitions:
    """What was really played, as agents see it in dreams: rewards by their sign, no stack across two episodes.

    The last step of an episode that is still open is left out: what came of it is not recorded yet.

    Args:
        latents: (n, height, width) uint8, of every record.
        replay: the records.
        latent_stack: latents that an observation shows.
        life_loss_ends: whether a lost life counts as an end.
        builder: from latents to observations; None shows codes.
    """
    spans = replay.iter_episodes()
    starts = np.concatenate([np.full(stop - start, start) for start, stop in spans] or [np.empty(0, np.int64)])
    steps = np.arange(len(starts))
    past = np.maximum(steps[:, None] + np.arange(1 - latent_stack, 1), starts[:, None])
    observations = _observe(latents, past, builder, replay, starts)
    last = np.zeros(len(steps), dtype=np.bool_)
    last[[stop - 1 for _, stop in spans]] = True
    lost = replay.life_lost_at(steps) if life_loss_ends else np.zeros(len(steps), dtype=np.bool_)
    terminated, truncated = replay.terminated_at(steps) | lost, replay.truncated_at(steps)
    whole = ~last | terminated | truncated
    following = np.where(last, steps, steps + 1)
    return Transitions(
        np.ascontiguousarray(observations[whole]),
        np.ascontiguousarray(observations[following[whole]]),
        replay.actions_at(steps[whole]),
        np.sign(replay.rewards_at(steps[whole])),
        terminated[whole],
        # An open episode's last step is gone, so that the one before it has nothing after it.
        ((last | np.append((last & ~whole)[1:], False)) & ~terminated)[whole],
    )


def _observe(
    latents: npt.NDArray[np.uint8],
    past: npt.NDArray[np.int64],
    builder: ObservationBuilder | None,
    replay: Replay,
    starts: npt.NDArray[np.int64],
) -> npt.NDArray[Any]:
    """Observations of stacks of latents, given by their indices (n, stack), in episodes that began at starts (n,)."""
    if builder is None or builder.kind == "codes":
        return latents.reshape(len(latents), math.prod(latents.shape[1:]))[past].transpose(0, 2, 1)
    device = builder.world_model.device
    pieces = np.array_split(past, max(1, len(past) // _TOGETHER))
    shown: list[npt.NDArray[Any]] = []
    for piece in pieces:
        now = piece[:, -1]
        count = builder.world_model.num_actions
        taken = action_vectors(real_acts(builder.world_model, replay, np.maximum(now - 1, starts[now])), count)
        taken[torch.from_numpy(now == starts[now]).to(device), :count] = 0
        shown.append(to_numpy(builder.build(torch.from_numpy(latents[piece]).long().to(device), taken=taken)))
    return np.concatenate(shown)


def remember(buffer: Any, transitions: Transitions) -> int:
    """Put transitions at the beginning of an empty replay buffer, as if its envs had played one stretch of them each.

    Args:
        buffer: Stable-Baselines3's ``ReplayBuffer``, or one built on it.
        transitions: the newest are kept where the buffer has no room for all.

    Returns:
        How many it holds now: a multiple of its envs.
    """
    envs = buffer.n_envs
    rows = min(len(transitions.rewards) // envs, buffer.buffer_size)
    if not rows:
        return 0
    broken = transitions.broken.copy()
    columns: dict[str, npt.NDArray[Any]] = {
        "observations": transitions.observations,
        "next_observations": transitions.next_observations,
        "actions": transitions.actions,
        "rewards": transitions.rewards,
        "dones": transitions.terminated | broken,
        "timeouts": broken,
    }
    for name, values in columns.items():
        target = getattr(buffer, name)
        stretches = values[len(values) - rows * envs :].reshape(envs, rows, *values.shape[1:])
        target[:rows] = stretches.swapaxes(0, 1).reshape(rows, *target.shape[1:])
    # Each stretch goes on in another env's.
    cut = buffer.dones[rows - 1] == 0
    buffer.timeouts[rows - 1, cut] = 1
    buffer.dones[rows - 1, cut] = 1
    buffer.pos = rows % buffer.buffer_size
    buffer.full = rows == buffer.buffer_size
    return rows * envs
