"""What a frame shows of a game's screen: words that the codec's settings and the real game share."""

from typing import Literal, TypedDict, get_args

Shrink = Literal["area", "nearest", "row", "brightest"]
"""How a screen is made smaller: each pixel the mean of those it stands for, or one of them, or of one row of them the
mean or the brightest."""

SHRINKS: tuple[str, ...] = get_args(Shrink)
SHRINKS_NAMED = ", ".join(repr(name) for name in SHRINKS[:-1]) + f" or {SHRINKS[-1]!r}"


class Screen(TypedDict):
    """Arguments of :func:`dreamgym.real.make_game_env`."""

    size: int | tuple[int, int]
    shrink: Shrink
    max_pool: bool
