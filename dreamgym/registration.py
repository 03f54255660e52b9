"""The ids ``Dream-<Game>-v0``: registered by name only, so that importing dreamgym does not load torch."""

import re
from typing import Any

import gymnasium as gym

_PATTERN = re.compile(r"^ALE/(?P<game>\w+)-v5$")


def dream_id(game: str) -> str:
    """The id of a game's dream: "Pong" -> "Dream-Pong-v0"."""
    return f"Dream-{game}-v0"


def register_envs() -> None:
    """Register ``Dream-<Game>-v0`` for every ALE game, with an entry point for one env and one for many.

    A misspelt id gets Gymnasium's own suggestion: ``Dream-Pnog-v0`` ... "Did you mean: `Dream-Pong`?".
    """
    import ale_py

    gym.register_envs(ale_py)
    games = [match["game"] for match in map(_PATTERN.match, tuple(gym.registry)) if match]
    for game in games:
        if dream_id(game) not in gym.registry:
            kwargs: dict[str, Any] = {"game": game}
            gym.register(
                id=dream_id(game),
                entry_point="dreamgym.envs:DreamEnv",
                vector_entry_point="dreamgym.envs:DreamVectorEnv",
                kwargs=kwargs,
            )
