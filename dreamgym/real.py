"""The real games: ALE by name, any other Gymnasium image environment by id, all seen through one preprocessing.

The preprocessing is the one of the paper (Robine et al. 2023, Sect. 4 and App. A): minimal action set, each action
repeated for four frames, the pixelwise maximum of the last two of them, grey, resized by area to 96 x 96, up to thirty
no-ops after a reset, no FIRE press, no sticky actions, raw rewards, and a lost life that is reported but does not end
the episode. What a frame shows of a screen can be chosen: its size, how it is made smaller, and whether the last
emulator frame alone is looked at.
"""

import difflib
import importlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, SupportsIndex, cast

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import AtariPreprocessing, StickyAction

from dreamgym.errors import InvalidActionError, InvalidInputError, UnknownGameError
from dreamgym.screens import SHRINKS, SHRINKS_NAMED, Shrink

gym.register_envs(ale_py)
# What AtariEnv does too, but after the first emulator has printed its banner.
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

Frames = npt.NDArray[np.uint8]
Info = dict[str, Any]

_ALE_ENTRY_POINT = "ale_py.env:AtariEnv"
# The vector form's own limit would end an episode between two frames of one step; ours counts steps.
_NO_FRAME_LIMIT = 2**31 - 1


def game_names() -> list[str]:
    """The names of all ALE games that have an ``ALE/<Name>-v5`` id, sorted, e.g. ``"Pong"`` or ``"SpaceInvaders"``."""
    return sorted(spec.name for spec in gym.registry.values() if spec.namespace == "ALE" and spec.version == 5)


def resolve_game(name: str) -> str:
    """Find the game that a name or id means.

    Args:
        name: an ALE game in any spelling (``"Pong"``, ``"pong"``, ``"space_invaders"``), an ALE id (``"ALE/Pong-v5"``,
            ``"PongNoFrameskip-v4"``), or the id of any other registered environment, also as ``"module:id"``.

    Returns:
        The CamelCase name of an ALE game, or the id of another environment as it was given.

    Raises:
        UnknownGameError: nothing of that name is registered, and the message lists the nearest names; or the module
            cannot be imported.
    """
    games = {_simplified(game): game for game in game_names()}
    if _simplified(name) in games:
        return games[_simplified(name)]
    module, _, plain = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except (ImportError, TypeError) as error:
        raise UnknownGameError(
            f"unknown game {name!r}: expected before the colon a module that registers {plain!r}, got {module!r}, "
            f"which cannot be imported ({error}). Run `python -m dreamgym` in the folder of a module of your own."
        ) from error
    try:
        spec = gym.spec(plain)
    except (gym.error.Error, TypeError) as error:
        others = {_simplified(key): key for key, spec in gym.registry.items() if spec.entry_point != _ALE_ENTRY_POINT}
        wanted = _simplified(re.sub(r"^ale/|-v\d+$", "", name.lower()))
        candidates = others | games
        nearest = [candidates[key] for key in difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.5)]
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"ALE games are {', '.join(games.values())}."
        raise UnknownGameError(
            f"unknown game {name!r}: expected the name of an ALE game or a registered Gymnasium id; {hint}"
        ) from error
    if spec.entry_point == _ALE_ENTRY_POINT:
        return games[_simplified(str(spec.kwargs["game"]))]
    return name


def _simplified(name: str) -> str:
    return re.sub(r"[^a-z0-9:]", "", name.lower())


def _rom_name(game: str) -> str:
    return str(gym.spec(f"ALE/{game}-v5").kwargs["game"])


@dataclass(frozen=True)
class _Preprocessing:
    """What turns a game's screens and steps into observations and transitions."""

    stack: int
    sticky_actions: float
    noop_max: int
    size: int | tuple[int, int]
    shrink: Shrink
    max_pool: bool
    frame_skip: int
    max_episode_steps: int

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple) and len(self.size) != 2:
            raise InvalidInputError(f"size: expected pixels, or (height, width), got {self.size!r}.")
        if self.shrink not in SHRINKS:
            raise InvalidInputError(f"shrink: expected {SHRINKS_NAMED}, got {self.shrink!r}.")
        height, width = self.frame
        named = {name: getattr(self, name) for name in ("stack", "noop_max", "frame_skip", "max_episode_steps")}
        for name, value in (named | {"size": min(height, width)}).items():
            least = 0 if name == "noop_max" else 1
            if value < least:
                raise InvalidInputError(f"{name}: expected an integer of at least {least}, got {value!r}.")
        if not 0.0 <= self.sticky_actions <= 1.0:
            raise InvalidInputError(f"sticky_actions: expected a probability in [0, 1], got {self.sticky_actions!r}.")

    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 255, self.observation_shape, np.uint8)

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) of a frame."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        return (self.stack, *self.frame)

    def shown(self, screen: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a screen of (height, width) takes of a frame; below and beside it the frame is black."""
        if not isinstance(self.size, tuple):
            return self.frame
        shrink = max(-(-side // limit) for side, limit in zip(screen, self.frame, strict=True))
        if shrink > min(screen):
            raise InvalidInputError(f"size: expected a frame that shows a screen of {screen}, got {self.size}.")
        return screen[0] // shrink, screen[1] // shrink

    def emulated(self, screen: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what is asked of an emulator with this screen: it shrinks by area."""
        return self.shown(screen) if self.shrink == "area" else screen

    def shrunk(self, screens: Frames) -> Frames:
        """Grey screens (..., height, width), made as small as they are shown; by area one, (height, width)."""
        sides = cast("tuple[int, int]", screens.shape[-2:])
        shown = self.shown(sides)
        if sides == shown:
            return screens
        if self.shrink != "area":
            rows, columns = (np.arange(new) * old // new for new, old in zip(shown, sides, strict=True))
            if self.shrink == "nearest":
                return screens[..., rows[:, None], columns]
            if self.shrink == "brightest":
                return _brightest_columns(screens[..., rows, :], columns)
            return _column_means(screens[..., rows, :], columns)
        return cast("Frames", cv2.resize(screens, shown[::-1], interpolation=cv2.INTER_AREA))


def as_frame(screen: Frames, size: int | tuple[int, int] = 96, shrink: Shrink = "area") -> Frames:
    """A grey screen as an observation's frame shows it: what :func:`make_game_env` does with the game's own.

    Args:
        screen: uint8 (height, width).
        size: see :func:`make_game_env`.
        shrink: see :func:`make_game_env`.

    Returns:
        uint8 (height, width) of the size.

    Raises:
        InvalidInputError: a size or way to shrink that cannot be.
    """
    settings = _Preprocessing(1, 0.0, 0, size, shrink, max_pool=True, frame_skip=1, max_episode_steps=1)
    small = settings.shrunk(screen)
    frame = np.zeros(settings.frame, np.uint8)
    frame[: small.shape[0], : small.shape[1]] = small
    return frame


def _column_means(rows: Frames, begins: npt.NDArray[np.intp]) -> Frames:
    """Means, rounded, of the columns from each begin to the next of rows (..., width)."""
    counts = np.diff(begins, append=rows.shape[-1])
    if _alike(counts):
        sums = rows[..., :: counts[0]].astype(np.uint16)
        for column in range(1, counts[0]):
            sums += rows[..., column :: counts[0]]
    else:
        sums = np.add.reduceat(rows, begins, axis=-1, dtype=np.uint16)
    # Where a frame is wider than the screen a column stands for itself more than once.
    counts = np.maximum(counts, 1).astype(np.uint16)
    return ((sums + counts // 2) // counts).astype(np.uint8)


def _brightest_columns(rows: Frames, begins: npt.NDArray[np.intp]) -> Frames:
    """The brightest of the columns from each begin to the next of rows (..., width)."""
    counts = np.diff(begins, append=rows.shape[-1])
    if not _alike(counts):
        return cast("Frames", np.maximum.reduceat(rows, begins, axis=-1))
    brightest = rows[..., :: counts[0]].copy()
    for column in range(1, counts[0]):
        np.maximum(brightest, rows[..., column :: counts[0]], out=brightest)
    return brightest


def _alike(counts: npt.NDArray[np.intp]) -> bool:
    """Whether as many columns are put together everywhere: a slice for each is faster than going over a short axis."""
    return len(counts) > 0 and bool((counts == counts[0]).all()) and counts[0] > 0


def make_game_env(
    game: str,
    *,
    stack: int = 1,
    sticky_actions: float = 0.0,
    noop_max: int = 30,
    size: int | tuple[int, int] = 96,
    shrink: Shrink = "area",
    max_pool: bool = True,
    frame_skip: int = 4,
    max_episode_steps: int = 27_000,
    render_mode: str | None = None,
) -> gym.Env[Frames, Any]:
    """Make one real game.

    Observations are uint8 ``(stack, height, width)``, 0..255, grey, newest frame last; after a reset the first frame
    fills the whole stack. Rewards are raw. ``info["lives"]`` (int) and ``info["life_lost"]`` (bool) come with every
    reset and step; a lost life does not end the episode. ``reset(seed=s)`` makes the whole game after it a function of
    ``s`` and the actions.

    Args:
        game: see `resolve_game`. Environments other than ALE's must show RGB or grey uint8 images; they keep their own
            actions (discrete or continuous) and their own time step: `frame_skip` and `noop_max` are for ALE games
            only.
        stack: frames in an observation.
        sticky_actions: probability that the previous action is repeated instead of the one chosen, drawn for each
            emulator frame in ALE games (Machado et al. 2018) and for each step elsewhere.
        noop_max: up to this many emulator frames of no-op after a reset, the number drawn uniformly from 1 to
            `noop_max`.
        size: side of an observation in pixels, onto which the screen is resized by area (the paper's 96). Or (height,
            width): every side of the screen is divided by the same whole number, the smallest that makes it fit, and
            what is left below and beside it is black. Where that leaves no rest what moves keeps its shape, as games
            move things by whole pixels: (112, 80) shows 210 x 160 pixels at half their size.
        shrink: how a screen is made smaller: every pixel the mean of what it stands for ("area", the paper's), or one
            pixel of it ("nearest"): what moves then looks the same wherever it is, but what is thinner than the step
            between two pixels can vanish; or the mean of one row of it ("row"): the same of rows alone, so that a thing
            on odd columns looks another than one on even columns; or the brightest of one row of it ("brightest"): as
            "row", but nothing changes its brightness, by which a thing is known, only its width.
        max_pool: whether a frame shows the pixelwise maximum of the last two emulator frames, which games need that
            draw some things in every second frame only, or the last alone, which has fewer shapes. ALE games only.
        frame_skip: emulator frames a step.
        max_episode_steps: steps after which an episode is truncated; an environment's own limit holds if it is shorter.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``: the game's own screen.

    Raises:
        UnknownGameError: no such game.
        InvalidInputError: an argument out of range, or an environment that shows no images.
    """
    settings = _Preprocessing(stack, sticky_actions, noop_max, size, shrink, max_pool, frame_skip, max_episode_steps)
    return _make_single(resolve_game(game), settings, render_mode)


def make_game_vector_env(
    game: str,
    num_envs: int,
    *,
    stack: int = 1,
    sticky_actions: float = 0.0,
    noop_max: int = 30,
    size: int | tuple[int, int] = 96,
    shrink: Shrink = "area",
    max_pool: bool = True,
    frame_skip: int = 4,
    max_episode_steps: int = 27_000,
    render_mode: str | None = None,
) -> VectorEnv[Frames, Any, npt.NDArray[Any]]:
    """Make several real games that are stepped together: the same observations, rewards and infos as `make_game_env`.

    Autoreset is SAME_STEP: where an episode ended, the observation is the next episode's first, and
    ``info["final_obs"]`` (object array, masked by ``info["_final_obs"]``) and ``info["final_info"]`` hold what the
    episode ended with. ALE games run in ale-py's own threaded vector environment, whose frames are identical; its
    no-ops are drawn from 0 to `noop_max` and by another generator, so one seed starts other episodes there than in the
    single form.

    Args:
        game: see `make_game_env`, also for the arguments that are not named here.
        num_envs: number of games; a seed ``s`` at reset gives them ``s, s + 1, ...``.
        stack: frames in an observation.
        sticky_actions: probability of repeating the previous action.
        noop_max: most no-ops after a reset.
        size: see `make_game_env`.
        shrink: see `make_game_env`.
        max_pool: see `make_game_env`.
        frame_skip: emulator frames a step.
        max_episode_steps: steps after which an episode is truncated.
        render_mode: with a render mode, games are stepped one after the other: the threaded form cannot draw.

    Raises:
        UnknownGameError: no such game.
        InvalidInputError: an argument out of range, or an environment that shows no images.
    """
    if num_envs < 1:
        raise InvalidInputError(f"num_envs: expected at least 1, got {num_envs!r}.")
    settings = _Preprocessing(stack, sticky_actions, noop_max, size, shrink, max_pool, frame_skip, max_episode_steps)
    name = resolve_game(game)
    if name in game_names() and render_mode is None:
        return AtariGameVectorEnv(_rom_name(name), num_envs, settings)
    make = partial(_make_single, name, settings, render_mode)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def _make_single(name: str, settings: _Preprocessing, render_mode: str | None) -> gym.Env[Frames, Any]:
    if name in game_names():
        atari = gym.make(
            f"ALE/{name}-v5",
            frameskip=1,
            repeat_action_probability=settings.sticky_actions,
            max_num_frames_per_episode=0,
            render_mode=render_mode,
            disable_env_checker=True,
        )
        height, width = settings.emulated(_screen(atari))
        screens = AtariPreprocessing(
            atari, noop_max=settings.noop_max, frame_skip=settings.frame_skip, screen_size=(width, height)
        )
        game = cast("gym.Env[Any, Any]", screens)
        return ImageGame(game if settings.max_pool else _LastFrame(game), settings)
    limit = gym.spec(name.rpartition(":")[2]).max_episode_steps
    steps = settings.max_episode_steps if limit is None else min(limit, settings.max_episode_steps)
    try:
        env = gym.make(name, max_episode_steps=steps, render_mode=render_mode, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        raise InvalidInputError(f"{name} needs a package that is not installed: {error}") from error
    return ImageGame(StickyAction(env, settings.sticky_actions) if settings.sticky_actions > 0 else env, settings)


class ImageGame(gym.Wrapper[Frames, Any, Any, Any], RecordConstructorArgs):
    """An image environment in grey, resized and stacked frames, with lives and a step limit; see `make_game_env`."""

    def __init__(self, env: gym.Env[Any, Any], settings: _Preprocessing) -> None:
        """Wrap an environment whose observations are uint8 images: (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            InvalidInputError: its observations are something else.
        """
        RecordConstructorArgs.__init__(self, settings=settings)
        gym.Wrapper.__init__(self, env)
        space = env.observation_space
        shape = space.shape or ()
        if space.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
            env.close()
            raise InvalidInputError(
                f"expected an environment with uint8 images (H, W), (H, W, 1) or (H, W, 3), got {space}; "
                "gymnasium's AddRenderObservation turns what an environment draws into its observation."
            )
        self.observation_space = cast("spaces.Space[Frames]", settings.observation_space())
        self._settings = settings
        self._max_episode_steps = settings.max_episode_steps
        self._frames = np.zeros(settings.observation_shape, np.uint8)
        self._age = 0
        self._lives = 0
        self._phase = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, Info]:
        """Begin an episode; the first frame fills the stack."""
        screen, info = self.env.reset(seed=seed, options=options)
        self._show(screen)
        self._frames[:] = self._frames[-1]
        self._age = 0
        self._lives = int(info.get("lives", 0))
        self._phase = int(info.get("episode_frame_number", 0)) % self._settings.frame_skip
        return self._frames.copy(), {**info, "lives": self._lives, "life_lost": False, "phase": self._phase}

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, Info]:
        """Take one step; see `make_game_env` for what comes back.

        Raises:
            InvalidActionError: the action is not in the action space.
        """
        screen, reward, terminated, truncated, info = self.env.step(self._checked(action))
        self._frames[:-1] = self._frames[1:]
        self._show(screen)
        self._age += 1
        lives = int(info.get("lives", 0))
        life_lost, self._lives = lives < self._lives, lives
        truncated = bool(truncated) or (self._age >= self._max_episode_steps and not terminated)
        info = {**info, "lives": lives, "life_lost": life_lost, "phase": self._phase}
        return self._frames.copy(), float(reward), bool(terminated), truncated, info

    def _checked(self, action: Any) -> Any:
        space = self.action_space
        if not isinstance(space, spaces.Discrete):
            return action
        try:
            index = operator.index(cast(SupportsIndex, action))
        except TypeError as error:
            raise InvalidActionError(f"expected an integer action, got {action!r}.") from error
        if not int(space.start) <= index < int(space.start + space.n):
            raise InvalidActionError(f"expected an action of {space}, got {index}.")
        return index

    def _show(self, screen: Frames) -> None:
        """Put a screen in grey into the newest frame."""
        grey = cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY) if screen.ndim == 3 and screen.shape[2] == 3 else screen
        small = self._settings.shrunk(cast("Frames", grey.reshape(grey.shape[:2])))
        height, width = small.shape
        self._frames[-1, :height, :width] = small


class _LastFrame(gym.ObservationWrapper[Frames, Any, Frames]):
    """An ALE game that shows the newest emulator frame instead of the maximum of two."""

    def observation(self, observation: Frames) -> Frames:
        """The emulator's screen in grey, (height, width)."""
        return cast("Any", self.unwrapped).ale.getScreenGrayscale()


def _screen(env: gym.Env[Any, Any]) -> tuple[int, int]:
    """(height, width) of what an environment shows."""
    height, width = cast("tuple[int, ...]", env.observation_space.shape)[:2]
    return height, width


@cache
def _rom_screen(rom: str) -> tuple[int, int]:
    """(height, width) of a ROM's screen."""
    emulator = ale_py.ALEInterface()
    emulator.loadROM(str(roms.get_rom_path(rom)))
    return emulator.getScreenDims()


def flicker(game: str, frames: int = 600, seed: int = 0) -> float:
    """How much of an ALE game is drawn in every second emulator frame only, under random play.

    Where each step is an even number of emulator frames, such things are always or never in the last of them.

    Args:
        game: see `resolve_game`.
        frames: emulator frames looked at.
        seed: of the game and the actions.

    Returns:
        Pixels a frame that alternate between two values over four frames, in the mean; 0 for games that are not ALE's.

    Raises:
        UnknownGameError: no such game.
    """
    name = resolve_game(game)
    if name not in game_names():
        return 0.0
    emulator, random = ale_py.ALEInterface(), np.random.default_rng(seed)
    emulator.setInt("random_seed", seed)
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(str(roms.get_rom_path(_rom_name(name))))
    actions, screens, blinking = emulator.getMinimalActionSet(), [], 0
    action = actions[0]
    for frame in range(frames):
        if emulator.game_over():
            emulator.reset_game()
        if frame % 4 == 0:
            action = actions[random.integers(len(actions))]
        emulator.act(action)
        screens = [*screens[-3:], emulator.getScreenGrayscale()]
        if len(screens) == 4:
            one, other, again, newest = screens
            blinking += int(((one == again) & (other == newest) & (again != newest)).sum())
    return blinking / max(1, frames)


class _OwnMetadata(AtariVectorEnv):
    # AtariVectorEnv writes its autoreset mode into the metadata it inherits, which all vector environments share.
    metadata: dict[str, Any] = {}  # noqa: RUF012


class AtariGameVectorEnv(VectorEnv[Frames, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """ALE games in ale-py's threaded emulators, with SAME_STEP autoreset; see `make_game_vector_env`.

    The emulators are reset here, by mask, as soon as an episode has ended: ale-py's own SAME_STEP hides the lives that
    an episode ended with, and its frame stacks begin with black frames.
    """

    def __init__(self, rom: str, num_envs: int, settings: _Preprocessing) -> None:
        """Start `num_envs` emulators of one ROM (snake_case name)."""
        screen = _rom_screen(rom)
        self._settings = settings
        self._shown, emulated = settings.shown(screen), settings.emulated(screen)
        self._games = _OwnMetadata(
            rom,
            num_envs,
            max_num_frames_per_episode=_NO_FRAME_LIMIT,
            repeat_action_probability=settings.sticky_actions,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=emulated[0],
            img_width=emulated[1],
            maxpool=settings.max_pool,
            stack_num=1,
            frameskip=settings.frame_skip,
            noop_max=settings.noop_max,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = settings.observation_space()
        actions = cast("spaces.Discrete", self._games.single_action_space)
        self.single_action_space = actions
        self.observation_space = cast("spaces.Box", batch_space(self.single_observation_space, num_envs))
        self.action_space = cast("spaces.MultiDiscrete", batch_space(self.single_action_space, num_envs))
        self._num_actions = int(actions.n)
        self._max_episode_steps = settings.max_episode_steps
        self._frames = np.zeros((num_envs, *settings.observation_shape), np.uint8)
        self._ages = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int64)
        self._phases = np.zeros(num_envs, np.int64)
        self._started = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, Info]:
        """Begin new episodes in all games, or in those of ``options["reset_mask"]`` (bool, (num_envs,)).

        Args:
            seed: ``s`` seeds the games with ``s, s + 1, ...``; a sequence gives one seed (or None) to each game.
            options: ``{"reset_mask": mask}`` leaves the other games as they are.

        Raises:
            InvalidInputError: a mask or a seed sequence of the wrong shape, or a mask before the first reset.
        """
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise InvalidInputError(f"reset_mask: expected bool ({self.num_envs},), got {mask.dtype} {mask.shape}.")
            if not self._started:
                raise InvalidInputError("reset_mask: expected a reset of all games first.")
        seeds = [seed + index for index in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise InvalidInputError(f"seed: expected {self.num_envs} seeds, got {len(seeds)}.")
        self._reset_games(mask, seeds)
        self._started = True
        return self._frames.copy(), self._info(np.zeros(self.num_envs, np.bool_))

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Frames, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Info]:
        """Step every game; where an episode ends, reset that game at once.

        Args:
            actions: integers (num_envs,).

        Returns:
            observations uint8 (num_envs, stack, height, width), rewards float64, terminated and truncated bool
            (num_envs,), and
            infos: ``lives`` and ``life_lost`` (num_envs,); ``final_obs`` and ``final_info`` where an episode ended.

        Raises:
            InvalidActionError: actions of the wrong shape, type or range.
        """
        screens, rewards, terminated, _, info = self._games.step(self._checked(actions))
        self._frames[:, :-1] = self._frames[:, 1:]
        height, width = self._shown
        self._frames[:, -1, :height, :width] = self._settings.shrunk(screens[:, 0])
        self._ages += 1
        lives = info["lives"].astype(np.int64)
        life_lost, self._lives = lives < self._lives, lives.copy()
        terminated = terminated.astype(np.bool_)
        truncated = (self._ages >= self._max_episode_steps) & ~terminated
        ended = terminated | truncated
        final: Info = {}
        if ended.any():
            final_obs = np.empty(self.num_envs, dtype=object)
            for index in np.flatnonzero(ended):
                final_obs[index] = self._frames[index].copy()
            final_info = {"lives": lives, "_lives": ended, "life_lost": life_lost & ended, "_life_lost": ended}
            final = {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            self._reset_games(ended, None)
        infos = self._info(life_lost & ~ended) | final
        return self._frames.copy(), rewards.astype(np.float64), terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the emulators' threads."""
        if hasattr(self, "_games"):
            del self._games

    def _reset_games(self, mask: npt.NDArray[np.bool_], seeds: Sequence[int | None] | None) -> None:
        if not mask.any():
            return
        given = [None] * self.num_envs if seeds is None else seeds
        chosen = np.array([_emulator_seed(seed) for seed, wanted in zip(given, mask, strict=True) if wanted])
        screens, info = self._games.reset(seed=chosen, options={"reset_mask": mask} if self._started else None)
        height, width = self._shown
        self._frames[mask, :, :height, :width] = self._settings.shrunk(screens[mask])
        self._ages[mask] = 0
        self._lives[mask] = info["lives"][mask]
        self._phases[mask] = info["episode_frame_number"][mask] % self._settings.frame_skip

    def _info(self, life_lost: npt.NDArray[np.bool_]) -> Info:
        every = np.ones(self.num_envs, np.bool_)
        infos: Info = {"lives": self._lives.copy(), "life_lost": life_lost, "phase": self._phases.copy()}
        return infos | {f"_{name}": every.copy() for name in infos}

    def _checked(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        actions = np.asarray(actions)
        count = self._num_actions
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise InvalidActionError(
                f"expected integer actions ({self.num_envs},), got {actions.dtype} {actions.shape}."
            )
        if actions.min() < 0 or actions.max() >= count:
            raise InvalidActionError(f"expected actions in [0, {count}), got {actions.min()}..{actions.max()}.")
        return actions.astype(np.int64)


def _emulator_seed(seed: int | None) -> int:
    """The emulator's seed as the single form derives it, without the sign: ale-py takes a negative one for none."""
    return -1 if seed is None else int(np.random.SeedSequence(seed).generate_state(2)[1]) & 0x7FFFFFFF
