"""The policy's network, as pure torch: the adapters of any library of algorithms are built on it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Trunk(nn.Module):
    """A body that begins with a 1x1 convolution of the features.

    Args:
        out_features: width of the last layer.
        body: its layers, the first of them the convolution.
    """

    def __init__(self, out_features: int, *body: nn.Module) -> None:
        """Take the layers."""
        super().__init__()
        self.out_features = out_features
        self.body = nn.Sequential(*body)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (batch, in_channels, height, width) float32 to (batch, out_features) float32."""
        return self.body(features)

    def from_codes(self, codes: torch.Tensor, codebook: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The same from stacked codes: a 1x1 convolution of an embedding is a look-up in a small table.

        Most cells of most observations show the same background. On a CPU what all cells of the first observation come
        to is looked up once, and of the others only those that differ from it: the same up to rounding.

        Args:
            codes: (batch, height * width, stack), any number type, indices of codes, oldest latent first.
            codebook: (num_codes, channels) float32; ``in_channels`` is stack * channels.
            grid: (height, width) of the latent.

        Returns:
            (batch, out_features) float32.
        """
        batch, cells, stack = _check_codes(codes, grid)
        first = self.body[0]
        assert isinstance(first, nn.Conv2d)
        weight = first.weight.flatten(1).unflatten(1, (stack, codebook.shape[1]))
        tables = torch.einsum("nc,osc->sno", codebook, weight)
        if codes.device.type != "cpu":
            # Counting what differs would wait for the device.
            every = codes.long()
            maps = sum(
                (F.embedding(every[..., k], tables[k]) for k in range(1, stack)), F.embedding(every[..., 0], tables[0])
            )
            maps = maps if first.bias is None else maps + first.bias
            return self.body[1:](maps.view(batch, *grid, -1).permute(0, 3, 1, 2))
        first_codes = codes[0].long()
        base = sum((F.embedding(first_codes[:, k], tables[k]) for k in range(1, stack)), tables[0][first_codes[:, 0]])
        if first.bias is not None:
            base = base + first.bias
        rows, places, lags = (codes != codes[:1]).nonzero(as_tuple=True)
        flat = tables.flatten(0, 1)
        here, there = (
            lags * len(codebook) + values for values in (codes[rows, places, lags].long(), first_codes[places, lags])
        )
        differences = F.embedding(here, flat) - F.embedding(there, flat)
        maps = base.repeat(batch, 1).index_add(0, rows * cells + places, differences.to(base.dtype))
        return self.body[1:](maps.view(batch, *grid, -1).permute(0, 3, 1, 2))


class PaperTrunk(Trunk):
    """The convolutional body of the paper's policy (Robine et al. 2023, Sect. 3.3 and appendix).

    Conv 1x1 -> 64, LayerNorm, LeakyReLU; Conv 5x5 -> 64, LayerNorm, LeakyReLU (both without bias); Linear -> 512,
    LeakyReLU. The layer norms go over channels, height and width. Weights are initialised as torch does, like the
    paper's.

    Args:
        in_channels: channels of the features: embedding width x latent stack (+ hidden channels).
        height: rows of the latent grid, 6 by default.
        width: columns of the latent grid, 6 by default.
        out_features: width of the last layer.
    """

    def __init__(self, in_channels: int, height: int = 6, width: int = 6, out_features: int = 512) -> None:
        """Build the layers."""
        super().__init__(
            out_features,
            nn.Conv2d(in_channels, 64, kernel_size=1, bias=False),
            nn.LayerNorm([64, height, width]),
            nn.LeakyReLU(),
            nn.Conv2d(64, 64, kernel_size=5, padding=2, bias=False),
            nn.LayerNorm([64, height, width]),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(64 * height * width, out_features),
            nn.LeakyReLU(),
        )


class LightTrunk(Trunk):
    """A smaller body, for machines without a GPU: Conv 1x1 -> channels, LeakyReLU, Linear -> 256, LeakyReLU.

    It has 32 channels on a grid of 6x6 and as many fewer on a larger one as keep the linear layer at about twice that
    size: 16 on 12x12.

    Args:
        in_channels: channels of the features: embedding width x latent stack (+ hidden channels).
        height: rows of the latent grid, 6 by default.
        width: columns of the latent grid, 6 by default.
        out_features: width of the last layer.
    """

    def __init__(self, in_channels: int, height: int = 6, width: int = 6, out_features: int = 256) -> None:
        """Build the layers."""
        channels = max(4, min(32, 2304 // (height * width)))
        super().__init__(
            out_features,
            nn.Conv2d(in_channels, channels, kernel_size=1),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(channels * height * width, out_features),
            nn.LeakyReLU(),
        )


class ObjectTrunk(nn.Sequential):
    """A body for observations of objects: two linear layers of so many units, each with a LeakyReLU.

    Args:
        features: numbers of an observation.
        out_features: width of both layers.
    """

    def __init__(self, features: int, out_features: int = 256) -> None:
        """Build the layers."""
        super().__init__(
            nn.Linear(features, out_features),
            nn.LeakyReLU(),
            nn.Linear(out_features, out_features),
            nn.LeakyReLU(),
        )


OBJECT_UNITS = {"paper": 512, "light": 256}
"""Units of an :class:`ObjectTrunk` by the network's name, as many as the last layer of that network has."""

TRUNKS: dict[str, Callable[..., PaperTrunk | LightTrunk]] = {"paper": PaperTrunk, "light": LightTrunk}


class PolicyNetwork(nn.Module):
    """A trunk with linear action and value heads (Robine et al. 2023).

    The paper's trunk with 32 channels and 18 actions has 1,303,571 parameters in all.

    Args:
        in_channels: channels of the features.
        num_actions: number of discrete actions.
        trunk: ``"paper"`` or ``"light"``.
        grid: (height, width) of the features.
    """

    def __init__(
        self, in_channels: int, num_actions: int, trunk: str = "paper", grid: tuple[int, int] = (6, 6)
    ) -> None:
        """Build the trunk and the heads."""
        super().__init__()
        self.trunk = TRUNKS[trunk](in_channels, *grid)
        self.action = nn.Linear(self.trunk.out_features, num_actions)
        self.value = nn.Linear(self.trunk.out_features, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (batch, in_channels, *grid) to action logits (batch, num_actions) and values (batch,)."""
        hidden = self.trunk(features)
        return self.action(hidden), self.value(hidden).squeeze(-1)


def embed_codes(codes: torch.Tensor, codebook: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Look up stacked codes: the inverse of showing a policy indices instead of embeddings.

    Args:
        codes: (batch, height * width, stack), any number type, indices of codes, oldest latent first.
        codebook: (num_codes, channels) float32.
        grid: (height, width) of the latent.

    Returns:
        Features (batch, stack * channels, height, width) float32, the same as the ``"embedding"`` observation.
    """
    batch, _, stack = _check_codes(codes, grid)
    embedded = codebook[codes.long()]
    return embedded.permute(0, 2, 3, 1).reshape(batch, stack * codebook.shape[1], *grid)


def _check_codes(codes: torch.Tensor, grid: tuple[int, int]) -> tuple[int, ...]:
    if codes.dim() != 3 or codes.shape[1] != math.prod(grid):
        raise ValueError(f"codes: expected (batch, {math.prod(grid)}, stack), got {tuple(codes.shape)}.")
    return tuple(codes.shape)
