"""A real game that a person plays, which can go back to any of its moments and hand them on to a dream."""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dreamgym.checkpoint import Dream, StartStates
from dreamgym.models.losses import NO_REWARD, reward_classes
from dreamgym.play_keys import game_keys
from dreamgym.real import make_game_env

Frames = npt.NDArray[np.uint8]


class GameMoment(NamedTuple):
    """A moment of a real game: how it is come to again.

    Attributes:
        seed: of the reset.
        actions: those taken since.
    """

    seed: int
    actions: tuple[int, ...]


class _Record(NamedTuple):
    """What the game showed in a step, and for how many steps before there had been no reward."""

    frames: Frames
    elapsed: int


class PlayedGame:
    """One real game, seen as the dream's codec sees it.

    A game is a function of its seed and the actions, and so goes back to a moment by playing it again: thousands of
    steps a second in ALE, and no game has to offer more for it.

    Args:
        dream: of the game.

    Raises:
        UnknownGameError: no such game.
    """

    def __init__(self, dream: Dream) -> None:
        """Make the game; :meth:`begin` begins it."""
        model = dream.world_model
        codec = model.config.codec
        self._model = model
        self._game = make_game_env(model.config.game, stack=codec.frame_stack, **codec.screen)
        self.keys = game_keys(self._game, model.num_actions)
        self._context = dream.starts.latents.shape[1]
        self._records: deque[_Record] = deque(maxlen=self._context)
        self._seed = self._phase = 0
        self._actions: list[int] = []

    @property
    def picture(self) -> Frames:
        """The newest frame, uint8 (height, width)."""
        return self._records[-1].frames[-1]

    def begin(self, seed: int) -> None:
        """Begin an episode."""
        frames, info = self._game.reset(seed=seed)
        self._phase = int(info.get("phase", 0))
        self._seed, self._actions = seed, []
        self._records.clear()
        self._records.append(_Record(frames, 0))

    def step(self, action: int) -> tuple[float, bool]:
        """Take a step.

        Returns:
            The game's own reward, and whether the episode ended.
        """
        frames, reward, terminated, truncated, _ = self._game.step(action)
        rewarded = int(reward_classes(torch.tensor(float(reward)))) != NO_REWARD
        self._records.append(_Record(frames, 0 if rewarded else self._records[-1].elapsed + 1))
        self._actions.append(action)
        return float(reward), terminated or truncated

    def moment(self) -> GameMoment:
        """This moment."""
        return GameMoment(self._seed, tuple(self._actions))

    def go_to(self, moment: GameMoment) -> None:
        """Play the game again from its beginning to a moment."""
        self.begin(moment.seed)
        for action in moment.actions:
            self.step(action)

    def starts(self) -> StartStates:
        """One start state for dreams: this moment, and what led to it."""
        records, missing = list(self._records), self._context - len(self._records)
        codes = self._model.encode(np.stack([record.frames for record in records])).to(torch.uint8)
        latents = torch.cat([codes[:1].expand(missing, *codes.shape[1:]), codes])
        taken = self._actions[-(len(records) - 1) :] if len(records) > 1 else []
        digits = self._model.phase_digits(self._phase)
        actions = self._model.acts(torch.tensor([0] * missing + taken + [0], device=digits.device), digits)
        valid = torch.arange(self._context) >= missing
        elapsed = torch.tensor([records[0].elapsed])
        return StartStates(latents[None], actions[None], valid[None], elapsed)

    def close(self) -> None:
        """Close the game."""
        self._game.close()
