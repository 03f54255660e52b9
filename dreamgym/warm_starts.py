"""Real contexts from which dreams start, with the hidden state that the dynamics has after seeing them.

The paper's dreams start cold, from one frame and a zero state; training never saw such states. Here the dynamics first
runs along a few real steps (DIAMOND uses 4, delta-IRIS 5, STORM 8).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamgym.errors import ConfigError
from dreamgym.models.layers import action_vectors
from dreamgym.states import map_state, take_state, where_state

if TYPE_CHECKING:
    from dreamgym.checkpoint import StartStates
    from dreamgym.world_model import WorldModel

CACHE_LIMIT_BYTES = 512 * 2**20
"""Largest cache of warmed-up states; beyond it each reset warms its own dreams up."""

CHUNK = 16
"""Starts warmed up together. Fixed, so that a start's state never depends on which dreams asked for it."""


class WarmStarts:
    """The start states of a dream on a device, warmed up once and remembered.

    On the CPU the cache fills as starts are drawn, 16 at a time; on an accelerator it is filled at the first use, so
    that drawing never waits for the device. States of more than 512 MiB in all are not kept but computed at each reset.

    Args:
        world_model: runs along the context.
        starts: count contexts of K real steps.
        device: where the tensors live.

    Raises:
        ConfigError: there are no starts.
    """

    def __init__(self, world_model: WorldModel, starts: StartStates, device: torch.device) -> None:
        """Move the contexts to the device; nothing is warmed up yet."""
        self._world_model = world_model
        self._latents = starts.latents.to(device=device, dtype=torch.int64)
        self._actions = starts.actions.to(device)
        self._valid = starts.valid.to(device)
        self._elapsed = starts.elapsed.to(device)
        self.count, self.context = self._latents.shape[:2]
        if self.count == 0:
            raise ConfigError("starts: expected at least one start state, got none.")
        size = self.count * sum(tensor.numel() * tensor.element_size() for tensor in world_model.initial_state(1))
        self._cached = size <= CACHE_LIMIT_BYTES
        self._cold = set(range(math.ceil(self.count / CHUNK)))
        self._states: Any = None

    def stacks(self, indices: Tensor, depth: int) -> Tensor:
        """The last latents of the contexts at indices (rows,): (rows, depth, *latent_shape) int64, oldest first."""
        return self._latents[indices, self.context - depth :]

    def taken(self, indices: Tensor) -> Tensor:
        """What led to the last latents of the contexts at indices (rows,): (rows, act_size) float32.

        No action where an episode begins, but its phase.
        """
        count, before = self._world_model.num_actions, max(0, self.context - 2)
        taken = action_vectors(self._actions[indices, before], count)
        known = self._valid[indices, before] if self.context > 1 else torch.zeros_like(indices, dtype=torch.bool)
        return torch.cat([taken[:, :count] * known.unsqueeze(1), taken[:, count:]], dim=1)

    def states(self, indices: Tensor, mask: Tensor | None) -> Any:
        """The dynamics' state at the starts at indices (rows,).

        Args:
            indices: (rows,) int64.
            mask: (rows,) bool: the rows whose state will be used; the others may come back as anything. None means all.

        Returns:
            State, batch first: what the dynamics knows before it reads the start's last latent.
        """
        if not self._cached:
            return self._warm_up(indices)
        if self._cold:
            # Picking the masked rows would wait for an accelerator, where the whole cache is filled anyway.
            on_cpu = indices.device.type == "cpu"
            self._fill(indices[mask] if on_cpu and mask is not None else indices)
        return take_state(self._states, indices)

    def _fill(self, indices: Tensor) -> None:
        """Warm up the chunks that hold indices (all of them where asking which would stall the device)."""
        needed = self._cold
        if indices.device.type == "cpu":
            needed = needed & set((indices // CHUNK).tolist())
        for chunk in sorted(needed):
            rows = torch.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count), device=indices.device)
            # A last, shorter chunk is repeated to full size: kernels, and so bits, may depend on the batch size.
            state = self._warm_up(rows[torch.arange(CHUNK, device=rows.device) % len(rows)])
            if self._states is None:
                self._states = map_state(self._blank, state)
            for kept, new in zip(self._states, state, strict=True):
                kept[rows] = new[: len(rows)]
            self._cold.discard(chunk)

    def _blank(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.count, *like.shape[1:])

    def _warm_up(self, indices: Tensor) -> Any:
        """Run the dynamics along contexts from a blank state; what was before an episode leaves it untouched."""
        state = self._world_model.initial_state(len(indices), self._elapsed[indices])
        latents, actions, valid = self._latents[indices], self._actions[indices], self._valid[indices]
        for step in range(self.context - 1):
            following = self._world_model.step(latents[:, step], actions[:, step], state)[1]
            state = where_state(valid[:, step], following, state)
        return state
