"""What was really done, as the dynamics are told it."""

import numpy.typing as npt
import torch
from torch import Tensor

from dreamgym.replay import Replay
from dreamgym.world_model import WorldModel


def real_acts(world_model: WorldModel, replay: Replay, indices: npt.ArrayLike) -> Tensor:
    """Actions of records, with their phases where the world model is told them.

    Args:
        world_model: whose dynamics, and device.
        replay: real experience.
        indices: (...) of records.

    Returns:
        (...) int64, (..., num_actions) float32 if continuous, or (..., act_size) float32 with phases.
    """
    actions = torch.as_tensor(replay.actions_at(indices), device=world_model.device)
    return world_model.acts(actions, world_model.phase_digits(replay.phase_at(indices)))
