"""What a policy sees: one way of turning latents into observations, for the dream and for the real game alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dreamgym.errors import ConfigError
from dreamgym.objects import FEATURES, MOST_OBJECTS, ObjectFinder

if TYPE_CHECKING:
    from dreamgym.world_model import WorldModel

ObservationKind = Literal["embedding", "codes", "objects", "pixels"]
KINDS: tuple[ObservationKind, ...] = ("embedding", "codes", "objects", "pixels")
RENDER_SIZE = 384

Observation = Tensor | dict[str, Tensor]
"""A batch of observations on the device: a tensor, or {"observation", "hidden"} when the hidden state is shown."""


class ObservationBuilder:
    """Builds observations from the last ``latent_stack`` latents, and their space.

    =============  ==========================================  ===================================================
    kind           one observation                             what it is
    =============  ==========================================  ===================================================
    ``embedding``  float32 (stack * channels, height, width)   the codes' embeddings, oldest latent first
    ``codes``      uint8 (height * width, stack)               the indices themselves: 128 times fewer bytes
    ``objects``    float32 (8 * 11 + act size,)                places and last steps of what moves before the
                                                               background, what was done last, one-hot, and the phase
    ``pixels``     uint8 (stack * frame channels, H, W)        the decoded frames, for ``CnnPolicy``
    =============  ==========================================  ===================================================

    What was done last need not show yet (Pong's paddles move in every second emulator frame), and with ``"objects"`` an
    agent is told it. Codes, embeddings and pixels leave it to be seen from how things move.

    With ``hidden_state`` the space is a Dict: ``observation`` as above and ``hidden`` float32 (hidden channels, height,
    width), what the dynamics knew before the newest latent.

    Args:
        world_model: embeds and decodes.
        kind: ``"embedding"``, ``"codes"``, ``"objects"`` (see :class:`dreamgym.objects.ObjectFinder`) or ``"pixels"``.
        latent_stack: how many latents are shown.
        hidden_state: whether the dynamics' hidden state is shown as well.

    Raises:
        ConfigError: no such kind, more codes than a byte holds, or objects that the codec does not know or
            that are to be shown beside a hidden state.
    """

    def __init__(self, world_model: WorldModel, kind: ObservationKind, latent_stack: int, hidden_state: bool) -> None:
        """Work out the space."""
        if kind not in KINDS:
            raise ConfigError(f"observation: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
        self.world_model = world_model
        self.kind: ObservationKind = kind
        self.latent_stack = latent_stack
        self.hidden_state = hidden_state
        if kind == "objects" and hidden_state:
            raise ConfigError(
                "observation 'objects' has no grid to show a hidden state on: expected hidden_state=False."
            )
        self._objects = ObjectFinder(world_model.codec) if kind == "objects" else None
        latents = self._latent_space()
        self.space: spaces.Space[Any] = latents
        if hidden_state:
            hidden = spaces.Box(-np.inf, np.inf, tuple(world_model.dynamics.hidden_shape), np.float32)
            self.space = spaces.Dict({"observation": latents, "hidden": hidden})

    def _latent_space(self) -> spaces.Box:
        codec = self.world_model.codec
        if self.kind == "embedding":
            channels, *grid = codec.embedding_shape
            return spaces.Box(-np.inf, np.inf, (self.latent_stack * channels, *grid), np.float32)
        if self.kind == "objects":
            size = MOST_OBJECTS * FEATURES + self.world_model.act_size
            return spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if self.kind == "codes":
            if codec.num_codes > 256:
                raise ConfigError(f"observation 'codes' holds at most 256 codes in a byte, got {codec.num_codes}.")
            return spaces.Box(0, codec.num_codes - 1, (math.prod(codec.latent_shape), self.latent_stack), np.uint8)
        channels, *size = codec.frame_shape
        return spaces.Box(0, 255, (self.latent_stack * channels, *size), np.uint8)

    @torch.no_grad()
    def build(self, latents: Tensor, hidden: Tensor | None = None, taken: Tensor | None = None) -> Observation:
        """Build a batch of observations in fresh tensors.

        Args:
            latents: (batch, latent_stack, *latent_shape) int64, newest last.
            hidden: (batch, hidden channels, height, width); read only with ``hidden_state``.
            taken: (batch, act_size) float32, what was done last, zeros where an episode begins, and the digits of its
                phase (:meth:`dreamgym.world_model.WorldModel.acts`); read only for ``"objects"``. None: nothing yet.

        Returns:
            Observations (batch, ...), as the space says.
        """
        shown = self._show(latents, taken)
        if not self.hidden_state:
            return shown
        assert hidden is not None
        return {"observation": shown, "hidden": hidden.float().clone()}

    def _show(self, latents: Tensor, taken: Tensor | None) -> Tensor:
        batch, stack = latents.shape[:2]
        if self._objects is not None:
            found = torch.from_numpy(self._objects.find(latents)).to(latents.device).flatten(1)
            return torch.cat([found, found.new_zeros(batch, self.world_model.act_size) if taken is None else taken], 1)
        if self.kind == "codes":
            return latents.reshape(batch, stack, -1).transpose(1, 2).contiguous().to(torch.uint8)
        translate = self.world_model.embed if self.kind == "embedding" else self.world_model.decode
        images = translate(latents.flatten(0, 1))
        if self.kind == "embedding":
            images = images.float()
        return images.reshape(batch, stack * images.shape[1], *images.shape[2:]).contiguous()


def to_numpy(observation: Observation) -> Any:
    """Observations as numpy arrays of their own memory."""
    if isinstance(observation, dict):
        return {key: value.cpu().numpy() for key, value in observation.items()}
    return observation.cpu().numpy()


def take_rows(observation: Any, rows: Any) -> Any:
    """Rows of a batch of observations (arrays or tensors, plain or in a dict)."""
    if isinstance(observation, dict):
        return {key: value[rows] for key, value in observation.items()}
    return observation[rows]


def put_rows(observation: Any, rows: Any, values: Any) -> None:
    """Overwrite rows of a batch of observations in place."""
    if isinstance(observation, dict):
        for key, value in observation.items():
            value[rows] = values[key]
    else:
        observation[rows] = values


def objects_at(num_envs: int, rows: npt.NDArray[np.int64], batch: Any) -> npt.NDArray[np.object_]:
    """Gymnasium's ``final_obs``: an object array (num_envs,) with the batch's items at rows and None elsewhere."""
    objects = np.empty(num_envs, dtype=object)
    for position, row in enumerate(rows):
        objects[row] = take_rows(batch, position)
    return objects


def render_latents(world_model: WorldModel, latents: Tensor) -> list[npt.NDArray[np.uint8]]:
    """Decode latents to pictures people can look at: the newest frame of each, grey, upscaled.

    Args:
        world_model: decodes.
        latents: (batch, *latent_shape) int64.

    Returns:
        One uint8 RGB image (384, 384, 3) for each (for frames of 96 x 96).
    """
    frames = world_model.decode(latents)[:, -1].cpu().numpy()
    scale = max(1, round(RENDER_SIZE / frames.shape[-1]))
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    return list(np.repeat(large[..., None], 3, axis=-1))
