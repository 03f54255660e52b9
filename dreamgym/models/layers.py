"""Building blocks shared by the networks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the map's size.

    Args:
        inputs: channels.
        outputs: channels.
        wraps: whether cells at opposite edges are neighbours, instead of zeros lying beyond the edge.
    """

    def __init__(self, inputs: int, outputs: int, wraps: bool = False) -> None:
        """Build the layer."""
        super().__init__(inputs, outputs, 3, padding=1)
        self.wraps = wraps

    def forward(self, input: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height, width)."""
        if not self.wraps:
            return super().forward(input)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            # Half the memory to copy; the convolution would do so after the copy.
            input = input.to(torch.get_autocast_dtype(device))
        return F.conv2d(_WrapAround.apply(input), self.weight, self.bias)


class _WrapAround(torch.autograd.Function):
    """One cell of the opposite edge on every side, channels last, in one copy.

    F.pad(mode="circular") forgets the order of the memory, and two concatenations take longer than the convolution.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, channels, height + 2, width + 2)."""
        batch, channels, height, width = maps.shape
        shape = batch, channels, height + 2, width + 2
        padded = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
        padded[:, :, 1:-1, 1:-1] = maps
        padded[:, :, 0, 1:-1] = maps[:, :, -1]
        padded[:, :, -1, 1:-1] = maps[:, :, 0]
        padded[..., 0] = padded[..., -2]
        padded[..., -1] = padded[..., 1]
        return padded

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """The gradient of every cell and of its copies."""
        (gradient,) = grad_outputs
        inside = gradient[:, :, 1:-1, 1:-1].clone(memory_format=torch.channels_last)
        for edge, opposite in ((0, -1), (-1, 0)):
            inside[..., edge] += gradient[:, :, 1:-1, opposite]
            inside[:, :, edge] += gradient[:, :, opposite, 1:-1]
            inside[:, :, edge, 0] += gradient[:, :, opposite, -1]
            inside[:, :, edge, -1] += gradient[:, :, opposite, 0]
        return inside


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Maps (batch, channels, height, width) in one, channels last in memory.

    ``torch.cat`` does not know the order of maps of one channel, and goes by it.
    """
    return torch.cat([each.permute(0, 2, 3, 1) for each in maps], dim=-1).permute(0, 3, 1, 2)


def embed_mostly_alike(codes: Tensor, table: Tensor) -> Tensor:
    """``F.embedding`` of maps that show nearly the same in most cells, as those of one game do.

    On a CPU its gradient is added up in full precision, over whole maps; only cells that differ from the first map are
    looked at one by one.

    Args:
        codes: (batch, ...) int64.
        table: (codes, depth).

    Returns:
        (batch, ..., depth).
    """
    if codes.device.type != "cpu" or not torch.is_grad_enabled():
        # To count what differs is to wait for an accelerator.
        return F.embedding(codes, table.float() if torch.is_grad_enabled() else table)
    return _EmbedMostlyAlike.apply(codes, table)


class _EmbedMostlyAlike(torch.autograd.Function):
    """See :func:`embed_mostly_alike`."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, table: Tensor) -> Tensor:
        """Look the codes up."""
        ctx.save_for_backward(codes)
        ctx.rows = len(table)
        return F.embedding(codes, table)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        """The gradient of the table."""
        (gradient,), (codes,) = grad_outputs, ctx.saved_tensors
        gradient, codes = gradient.flatten(1, -2), codes.flatten(1)
        other = (codes != codes[:1]).nonzero()
        theirs = gradient[tuple(other.T)].float()
        # As if all maps were the first one, and then what others differ in is moved to the codes that are there.
        places = torch.zeros(gradient.shape[1:])
        for each in gradient:
            # All at once they would be copied in full precision first.
            places += each
        places.index_add_(0, other[:, 1], -theirs)
        table = places.new_zeros(ctx.rows, gradient.shape[-1]).index_add(0, codes[0], places)
        return None, table.index_add(0, codes[tuple(other.T)], theirs).to(gradient.dtype)


class ResidualBlock(nn.Module):
    """Conv -> norm -> ReLU -> Conv 1x1 -> norm, plus the input (Robine et al. 2023, Fig. 4).

    Args:
        channels: of the input and the output.
        kernel: side of the first convolution's kernel; 1 keeps the receptive field as it is.
        normalised: BatchNorm after each convolution (then without bias), as in the encoder; False for the decoder.
    """

    def __init__(self, channels: int, kernel: int = 3, *, normalised: bool) -> None:
        """Build the block."""
        super().__init__()
        bias = not normalised
        self.first = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias)
        self.first_norm = nn.BatchNorm2d(channels) if normalised else nn.Identity()
        self.second = nn.Conv2d(channels, channels, 1, bias=bias)
        self.second_norm = nn.BatchNorm2d(channels) if normalised else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        hidden = F.relu(self.first_norm(self.first(inputs)))
        return inputs + self.second_norm(self.second(hidden))


class MapLayerNorm(nn.LayerNorm):
    """LayerNorm over (channels, height, width) that always computes in float32, whatever autocast says.

    A channels-last map is normalised as it lies in memory, without the two copies that torch's own would make.
    """

    def forward(self, input: Tensor, shift: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input: (batch, channels, height, width).
            shift: (channels, 1, 1), added to the bias: to the result it would be a pass over all of it.

        Returns:
            The same shape, float32.
        """
        with torch.autocast(input.device.type, enabled=False):
            bias = self.bias if shift is None else self.bias + shift
            if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
                return F.layer_norm(input.float(), self.normalized_shape, self.weight, bias, self.eps)
            rows = input.float().permute(0, 2, 3, 1)
            weight, bias = self.weight.permute(1, 2, 0), bias.permute(1, 2, 0)
            return F.layer_norm(rows, rows.shape[1:], weight, bias, self.eps).permute(0, 3, 1, 2)


def one_hot_planes(actions: Tensor, num_actions: int, height: int, width: int) -> Tensor:
    """One-hot actions repeated over the cells (Robine et al. 2023, Sect. 3.2.2).

    Args:
        actions: (batch,) int64 for a discrete action, (batch, num_actions) float for a continuous one.
        num_actions: number of actions, or length of the action vector.
        height: of the map.
        width: of the map.

    Returns:
        (batch, num_actions, height, width) float32, channels last.
    """
    vectors = action_vectors(actions, num_actions)
    return vectors[:, :, None, None].expand(-1, -1, height, width).contiguous(memory_format=torch.channels_last)


def action_vectors(actions: Tensor, num_actions: int) -> Tensor:
    """Actions as numbers.

    Args:
        actions: (...) int64 for discrete actions, (..., num_actions) float for continuous ones.
        num_actions: number of actions, or length of the action vector.

    Returns:
        (..., num_actions) float32: one-hot for a discrete action.
    """
    return actions.float() if actions.is_floating_point() else F.one_hot(actions, num_actions).float()


def parameter_count(module: nn.Module | None) -> int:
    """Trainable numbers of a module; 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)
