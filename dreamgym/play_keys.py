"""Which keys mean which action of a game."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

NOTHING = 0
"""The action where no key is held, or where keys contradict each other."""

_LEFT_TO_RIGHT = "awsd"
"""Keys that mean directions in ALE's games, as they lie; the others follow."""


class PlayKeys(NamedTuple):
    """The keys of a game.

    Attributes:
        actions: the action of each set of keys that are held together; a key is the character it types.
        meanings: what the actions are called.
    """

    actions: dict[frozenset[str], int]
    meanings: list[str]

    @property
    def single(self) -> dict[str, str]:
        """What each key is called, left ones first: its action where it has one of its own, else the key itself."""
        known = {key for held, action in self.actions.items() if action != NOTHING for key in held}
        keys = sorted(known, key=lambda key: (f"{_LEFT_TO_RIGHT}{key}".index(key), key))
        own = {key: self.actions.get(frozenset([key])) for key in keys}
        return {key: key_name(key) if act is None else self.meanings[act] for key, act in own.items()}

    def action(self, held: Collection[str]) -> int:
        """The action of the most of the held keys that mean one; ``NOTHING`` where as many mean another one.

        Args:
            held: characters; those that are not the game's count for nothing.
        """
        within = {keys: action for keys, action in self.actions.items() if keys <= frozenset(held)}
        most = max(map(len, within), default=0)
        best = {action for keys, action in within.items() if len(keys) == most}
        return best.pop() if len(best) == 1 else NOTHING

    def words(self) -> str:
        """One line that says which keys do what."""
        named = (("+".join(sorted(map(key_name, held))), self.meanings[act]) for held, act in self.actions.items())
        return ", ".join(f"{keys} = {meaning}" for keys, meaning in named)


def key_name(key: str) -> str:
    """What a key is called."""
    return "space" if key == " " else key


def game_keys(game: gym.Env[Any, Any], num_actions: int) -> PlayKeys:
    """The game's own keys, else the digits.

    Args:
        game: a real game, with ``get_keys_to_action`` and ``get_action_meanings`` where it has keys.
        num_actions: how many actions there are.
    """
    try:
        own: Mapping[Any, int] = game.get_wrapper_attr("get_keys_to_action")()
        meanings: Sequence[str] = game.get_wrapper_attr("get_action_meanings")()
    except AttributeError:
        digits = {frozenset([str(action)]): action for action in range(min(10, num_actions))}
        return PlayKeys(digits, [f"action {action}" for action in range(num_actions)])
    return PlayKeys({_held(keys): int(action) for keys, action in own.items()}, list(meanings))


def _held(keys: Any) -> frozenset[str]:
    """Keys as Gymnasium spells them: characters or their numbers, one or a row of them."""
    row = (keys,) if isinstance(keys, int) else keys
    return frozenset(chr(key) if isinstance(key, int) else str(key) for key in row)
