"""What playing is, whatever shows it: keys go in, pictures and numbers come out.

A window and a browser drive the same session (:mod:`dreamgym.play_window`, :mod:`dreamgym.play_web`). Every dream in it
branches off from a moment of the real game, so that the game can be played from the same moment.
"""

from collections import deque
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dreamgym.checkpoint import Dream
from dreamgym.errors import ConfigError, InvalidInputError
from dreamgym.models.dynamics import Prediction
from dreamgym.play_keys import NOTHING
from dreamgym.played_game import GameMoment, PlayedGame
from dreamgym.simulator import DreamSimulator, DreamState

Place = Literal["dream", "game"]

COMMANDS = {"reset": "r", "pause": "p", "step": "n", "save": "m", "fork": "f", "switch": "x"}
"""What else a player can do, and the key for it, unless the game has that key."""

OPENING = 48
"""Most steps that a game is played at random before a person takes over."""

RECENT = 15
"""Steps, a second of the game, whose uncertainty is averaged."""


class View(NamedTuple):
    """What there is to see.

    Attributes:
        picture: uint8 (height, width), as the codec sees the game or draws the dream.
        place: whether this is the dream or the real game.
        step: since the episode began.
        reward: of the last step: expected and in [-1, 1] in the dream, the game's own in the game.
        total: sum of those since the person took over.
        uncertainty: nats a step in the last second of the dream: how unlikely the latents were that were drawn, in the
            mean the entropy of what the dream thought possible; None in the real game and before the first step.
        action: what was done last.
        paused: whether it goes on by single steps only.
        saved: whether a moment is saved.
        message: what happened last.
    """

    picture: npt.NDArray[np.uint8]
    place: Place
    step: int
    reward: float
    total: float
    uncertainty: float | None
    action: str
    paused: bool
    saved: bool
    message: str


class _Played(NamedTuple):
    """A moment of the real game, and what a player had come to in it."""

    game: GameMoment
    step: int
    total: float


class _Dreamt(NamedTuple):
    """A moment of a dream, and the one of the game that it branched off from."""

    branch: _Played
    state: DreamState
    step: int
    total: float


class PlaySession:
    """A dream and its real game in the hands of one person.

    Args:
        dream: with discrete actions.
        horizon: steps after which an episode in the dream ends; None lets it go on until the dream ends it.
        seed: of the games, of their openings and of the dreams.

    Raises:
        ConfigError: actions are continuous.
        UnknownGameError: there is no such game.
    """

    def __init__(self, dream: Dream, *, horizon: int | None = None, seed: int = 0) -> None:
        """Begin in the dream."""
        if dream.world_model.config.continuous:
            raise ConfigError(
                "play: expected a game with discrete actions; this one's are continuous, keys cannot say them."
            )
        self.name = dream.world_model.config.game
        self._dream, self._horizon = dream, horizon
        self._random = np.random.default_rng(seed)
        self._seed = seed
        self._game = PlayedGame(dream)
        self.keys = self._game.keys
        self._own_keys = frozenset[str]().union(*self.keys.actions)
        self.commands = {name: "" if key in self._own_keys else key for name, key in COMMANDS.items()}
        self._place: Place = "dream"
        self._saved: _Played | _Dreamt | None = None
        self._held: set[str] = set()
        self._tapped: set[str] = set()
        self._paused = self._single = self._changed = False
        self._last_action = NOTHING
        self._uncertainty: deque[float] = deque(maxlen=RECENT)
        self._reset()

    def press(self, key: str) -> None:
        """A key goes down: it counts for the next step at least. One that is a command's is obeyed at once.

        Args:
            key: the character that it types; others than the game's and the commands' do nothing.
        """
        for command, its_key in self.commands.items():
            if key == its_key:
                self.do(command)
        if key in self._own_keys:
            self._held.add(key)
            self._tapped.add(key)

    def release(self, key: str) -> None:
        """A key goes up."""
        self._held.discard(key)

    def release_all(self) -> None:
        """Nobody holds anything any more."""
        self._held.clear()
        self._tapped.clear()

    def do(self, command: str) -> None:
        """Obey a command.

        ``reset`` begins anew where one is, ``pause`` stops and goes on, ``step`` takes one step and pauses, ``save``
        keeps this moment, ``fork`` goes back to it, in a dream with other chance, and ``switch`` goes from the dream to
        the moment of the game that it branched off from, or from the game into a dream that branches off there.

        Raises:
            InvalidInputError: there is no such command.
        """
        if command not in COMMANDS:
            raise InvalidInputError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}.")
        acts = (self._reset, self._pause, self._step_once, self._save, self._fork, self._switch)
        dict(zip(COMMANDS, acts, strict=True))[command]()
        self._changed = True

    def tick(self) -> bool:
        """Let one frame's time pass: take a step unless it is paused.

        Returns:
            Whether there is something new to see since the last tick.
        """
        if self._single or not self._paused:
            self._single = False
            self._step()
            self._changed = True
        changed, self._changed = self._changed, False
        return changed

    def view(self) -> View:
        """What there is to see now."""
        picture = self._game.picture
        if self._place == "dream":
            picture = self._dream.world_model.decode(self._simulator.latents[:, -1])[0, -1].cpu().numpy()
        return View(
            picture,
            self._place,
            self._age,
            self._reward,
            self._total,
            float(np.mean(self._uncertainty)) if self._uncertainty and self._place == "dream" else None,
            self.keys.meanings[self._last_action],
            self._paused,
            self._saved is not None,
            self._message,
        )

    def close(self) -> None:
        """Close the game."""
        self._game.close()

    def _step(self) -> None:
        action = self.keys.action(self._held | self._tapped)
        self._tapped.clear()
        self._last_action = action
        if self._place == "dream":
            result = self._simulator.step(torch.tensor([action], device=self._simulator.device))
            self._reward, ended = float(result.reward[0]), bool(result.terminated[0] | result.truncated[0])
        else:
            self._reward, ended = self._game.step(action)
        self._age += 1
        self._total += self._reward
        if ended:
            before = f"The episode ended after {self._age} steps with {self._total:+.2f}."
            self._reset()
            self._message = f"{before} {self._message}"

    def _reset(self) -> None:
        """Play the game at random for a while, and hand it, or a dream of it, over."""
        self._game.begin(self._seed)
        self._seed += 1
        for _ in range(int(self._random.integers(self._dream.starts.latents.shape[1], OPENING + 1))):
            if self._game.step(int(self._random.integers(self._dream.world_model.num_actions)))[1]:
                self._game.begin(self._seed)
                self._seed += 1
        moment = _Played(self._game.moment(), 0, 0.0)
        if self._place == "dream":
            self._branch_off(moment)
        else:
            self._play(moment)
        self._message = (
            f"{self._where()}, from a new moment: game {moment.game.seed}, {len(moment.game.actions)} steps in."
        )

    def _pause(self) -> None:
        self._paused = not self._paused
        self._message = "Paused." if self._paused else "Going on."

    def _step_once(self) -> None:
        self._paused = self._single = True
        self._message = "Paused, one step on."

    def _save(self) -> None:
        if self._place == "game":
            self._saved = _Played(self._game.moment(), self._age, self._total)
        else:
            self._saved = _Dreamt(self._branch, self._simulator.state(), self._age, self._total)
        self._message = f"Saved: step {self._age} in the {self._place}."

    def _fork(self) -> None:
        if self._saved is None:
            self._message = "Nothing is saved yet: save a moment, then fork it."
        elif isinstance(self._saved, _Played):
            self._play(self._saved)
            self._message = f"Back at the saved step {self._age} of the game."
        else:
            self._dream_on(self._saved)
            self._message = f"Back at the saved step {self._age} of the dream, which now goes on with other chance."

    def _switch(self) -> None:
        if self._place == "dream":
            self._play(self._branch)
            self._message = f"{self._where()}, at step {self._age}, where the dream branched off."
        else:
            self._branch_off(_Played(self._game.moment(), self._age, self._total))
            self._message = f"{self._where()}, which branches off at step {self._age} of the game."

    def _where(self) -> str:
        return "In the dream" if self._place == "dream" else "In the real game"

    def _play(self, moment: _Played) -> None:
        """Go to a moment of the game."""
        if self._game.moment() != moment.game:
            self._game.go_to(moment.game)
        self._arrive("game", moment)

    def _branch_off(self, moment: _Played) -> None:
        """Dream on from the moment where the game is."""
        self._branch = moment
        self._simulator = DreamSimulator(
            self._dream.world_model,
            self._game.starts(),
            num_envs=1,
            horizon=self._horizon,
            latent_stack=1,
            temperature=self._dream.temperature,
            seed=self._draw_seed(),
            watch=self._watch,
        )
        self._simulator.reset()
        self._arrive("dream", moment)

    def _dream_on(self, moment: _Dreamt) -> None:
        """Go to a moment of a dream, with other chance from there on."""
        self._branch = moment.branch
        self._simulator.set_state(moment.state)
        self._simulator.seed(self._draw_seed())
        self._arrive("dream", moment)

    def _arrive(self, place: Place, moment: _Played | _Dreamt) -> None:
        self._place, self._age, self._total, self._reward = place, moment.step, moment.total, 0.0
        self._uncertainty.clear()

    def _draw_seed(self) -> int:
        return int(self._random.integers(2**63))

    def _watch(self, prediction: Prediction, latents: Tensor) -> None:
        """Keep how unlikely a step of the dream was."""
        likely = self._dream.world_model.latent_log_probability(prediction, latents)
        self._uncertainty.append(-float(likely.sum()))
