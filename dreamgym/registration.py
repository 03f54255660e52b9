"""The ids ``Dream-<Game>-v0`` and ``Dream-v0``: registered by name only, so importing dreamgym does not load torch."""

import re
from typing import Any

import gymnasium as gym

_PATTERN = re.compile(r"^ALE/(?P<game>\w+)-v5$")

ANY_DREAM = "Dream-v0"
"""The id of whichever dream ``checkpoint=`` or ``game=`` names: games that are not ALE's have no id of their own."""


def dream_id(game: str) -> str:
    """The id of a game's dream: "Pong" -> "Dream-Pong-v0"."""
    return f"Dream-{game}-v0"


def register_envs() -> None:
    """Register ``Dream-<Game>-v0`` for every ALE game and ``Dream-v0``, with entry points for one env and for many.

    A misspelt id gets Gymnasium's own suggestion: ``Dream-Pnog-v0`` ... "Did you mean: `Dream-Pong`?".
    """
    import ale_py

    gym.register_envs(ale_py)
    ids: dict[str, dict[str, Any]] = {ANY_DREAM: {}}
    ids |= {dream_id(match["game"]): {"game": match["game"]} for match in map(_PATTERN.match, gym.registry) if match}
    for name, kwargs in ids.items():
        if name not in gym.registry:
            gym.register(
                id=name,
                entry_point="dreamgym.envs:DreamEnv",
                vector_entry_point="dreamgym.envs:DreamVectorEnv",
                kwargs=kwargs,
            )
