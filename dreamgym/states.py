"""States of dynamics models, whatever they hold: NamedTuples of tensors, batch first, handled row by row."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

S = TypeVar("S", bound=tuple[Tensor, ...])


def map_state(function: Callable[..., Tensor], *states: S) -> S:
    """Apply a function to the corresponding tensors of states of one kind."""
    kind = cast(Callable[..., Any], type(states[0]))
    return cast(S, kind(*(function(*tensors) for tensors in zip(*states, strict=True))))


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of new where mask (rows,) holds, of old elsewhere; both (rows, ...)."""
    return torch.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def where_state(mask: Tensor, new: S, old: S) -> S:
    """Rows of the new state where mask (rows,) holds, of the old one elsewhere."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return where_rows(mask, new, old)

    return map_state(choose, new, old)


def take_state(state: S, indices: Tensor) -> S:
    """Rows of a state at indices (rows,) int64, copied."""

    def take(tensor: Tensor) -> Tensor:
        return tensor[indices.to(tensor.device)]

    return map_state(take, state)
