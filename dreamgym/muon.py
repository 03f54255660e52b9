"""Muon: momentum whose every matrix is made orthogonal before it becomes a step.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/.
``torch.optim.Muon`` takes matrices alone and one at a time; most weights here are convolutions, several of one shape.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from dreamgym.errors import ConfigError

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic iteration: its slope at zero is large, so singular values end near one, not at it."""

_SMALL = 2_400_000
"""Products of fewer multiplications take a CPU less time in float32: to prepare them in bfloat16 takes longer."""

SMALLEST_SIDE = 9
"""Weights with fewer rows or columns, a head's last layer for one, are left to another optimiser."""


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Set all singular values of every matrix to about one, by a Newton-Schulz iteration.

    Args:
        matrices: (count, rows, columns).
        steps: of the iteration.
        dtype: of its products, but of small ones on a CPU; bfloat16 is precise enough for a step's direction.

    Returns:
        (count, rows, columns), of the dtype of ``matrices``: nearly U V^T where a matrix is U S V^T.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    small = x.device.type == "cpu" and x.shape[-2] ** 2 * x.shape[-1] < _SMALL
    x = x if small else x.to(dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        # a x + (b gram + c gram^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether Muon is for this weight: a linear or convolution weight with many rows and many columns."""
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= SMALLEST_SIDE


class Muon(torch.optim.Optimizer):
    """Steps of equal size in all directions of a weight matrix; a convolution is the matrix (out, in x kernel).

    Args:
        params: weights of two dimensions or more, or groups of them.
        lr: spectral norm of a step, times the square root of rows over columns where there are more rows.
        momentum: of the running mean of gradients; Nesterov's form.
        weight_decay: decoupled: a step shrinks weights by lr times it.
        dtype: of the products.

    Raises:
        ConfigError: a parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Check the parameters."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ConfigError(f"Muon: expected weights of 2 dimensions or more, got {tuple(parameter.shape)}.")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; weights without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: defaultdict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moved = self._momentum(parameter, parameter.grad, group["momentum"]).flatten(1)
                    alike[moved.shape[0], moved.shape[1]].append((parameter, moved))
            for (rows, columns), members in alike.items():
                steps = orthogonalize(torch.stack([moved for _, moved in members]), dtype=self._dtype)
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step.reshape(parameter.shape), alpha=size)
        return loss

    def _momentum(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)
