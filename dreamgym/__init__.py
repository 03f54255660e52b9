"""dreamgym: a learned simulator that you can ``gym.make``.

Importing it registers ``Dream-<Game>-v0`` for every ALE game, and ``Dream-v0`` for any checkpoint, and does not import
torch; what needs torch is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dreamgym.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    DreamgymError,
    InvalidActionError,
    InvalidInputError,
    MissingWeightsError,
    ReplayError,
    UnknownGameError,
)
from dreamgym.registration import register_envs

if TYPE_CHECKING:
    from dreamgym.agent import load_agent
    from dreamgym.checkpoint import load
    from dreamgym.envs import DreamEnv, DreamVectorEnv
    from dreamgym.real_env import make_real_env
    from dreamgym.sb3 import DreamVecEnv, make_sb3_env
    from dreamgym.simulator import DreamSimulator

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "DreamEnv",
    "DreamSimulator",
    "DreamVecEnv",
    "DreamVectorEnv",
    "DreamgymError",
    "InvalidActionError",
    "InvalidInputError",
    "MissingWeightsError",
    "ReplayError",
    "UnknownGameError",
    "__version__",
    "load",
    "load_agent",
    "make_real_env",
    "make_sb3_env",
    "register_envs",
]

_LAZY = {
    "DreamEnv": "dreamgym.envs",
    "DreamSimulator": "dreamgym.simulator",
    "DreamVecEnv": "dreamgym.sb3",
    "DreamVectorEnv": "dreamgym.envs",
    "load": "dreamgym.checkpoint",
    "load_agent": "dreamgym.agent",
    "make_real_env": "dreamgym.real_env",
    "make_sb3_env": "dreamgym.sb3",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dreamgym' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted(__all__)


register_envs()
