"""Dreams as Gymnasium environments: one (``gym.make``) or many stepped at once (``gym.make_vec``)."""

from __future__ import annotations

from typing import Any, Literal, Unpack, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dreamgym.dreaming import Dreaming, DreamOptions, DreamSource, check_actions, check_seed
from dreamgym.errors import ConfigError, InvalidInputError
from dreamgym.observations import ObservationKind, objects_at, put_rows, render_latents, take_rows, to_numpy

RENDER_FPS = 15
"""Steps a second of the games: 60 frames a second, every fourth shown."""

BoolArray = npt.NDArray[np.bool_]


class DreamEnv(gym.Env[Any, Any]):
    """One dream as a Gymnasium environment: ``gym.make("Dream-Pong-v0")``.

    Observations as in ``ObservationBuilder``; actions are the game's own; rewards are in [-1, 1] (the game's reward,
    clipped). ``terminated`` is the predicted end of the game, ``truncated`` the dream's horizon. The info of ``reset``
    and of the last step holds ``start`` (which real context the dream began with) and ``age`` (steps since then).

    ``reset(options={"start": i})`` begins with context i, ``reset(options={"state": env.unwrapped.simulator.state()})``
    goes on from a saved state.

    Args:
        game: a game or an id, whose weights are looked up, or what ``checkpoint`` takes.
        checkpoint: a run folder, a file or a loaded ``Dream``, instead of looking weights up.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        observation: ``"embedding"``, ``"codes"``, ``"objects"`` or ``"pixels"``.
        horizon: steps a dream lasts; None as the checkpoint says; ``math.inf`` for dreams without one.
        seed: of the first reset; None draws one from the operating system.
        render_mode: ``"rgb_array"`` decodes the newest latent to uint8 (384, 384, 3).
        options: see ``DreamOptions``.

    Raises:
        MissingWeightsError: no weights; the message says where they were looked for and how to train them.
        ConfigError: a setting is outside its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(
        self,
        game: DreamSource | None = None,
        *,
        checkpoint: DreamSource | None = None,
        device: str = "auto",
        observation: ObservationKind = "embedding",
        horizon: float | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
        **options: Unpack[DreamOptions],
    ) -> None:
        """Load the dream."""
        _check_render_mode(render_mode)
        self._dreaming = Dreaming(1, game, checkpoint, device, observation, horizon, None, seed, **options)
        self.dream = self._dreaming.dream
        self.simulator = self._dreaming.simulator
        self.observation_space = self._dreaming.builder.space
        self.action_space = self._dreaming.action_space
        self.render_mode = render_mode
        self._not_ready: str | None = "has not begun"
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a dream; a seed makes it and all that follow repeatable."""
        check_seed(seed)
        super().reset(seed=seed)
        self._dreaming.restart(seed, options or {}, None)
        self._not_ready = None
        return self._observe(), self._episode()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class."""
        if self._not_ready is not None:
            raise InvalidInputError(f"The dream {self._not_ready}: call reset() before step().")
        result = self.simulator.step(check_actions(action, self.action_space, ()).unsqueeze(0))
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        ended = terminated or truncated
        if ended:
            self._not_ready = "has ended"
        return self._observe(), float(result.reward[0]), terminated, truncated, self._episode() if ended else {}

    def render(self) -> Any:
        """The newest latent in the game's look, uint8 (384, 384, 3); None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array': pass it to gym.make.")
            return None
        return render_latents(self.dream.world_model, self.simulator.latents[:, -1])[0]

    def close(self) -> None:
        """End the dream; only ``reset`` goes on from here. Nothing else is held that would have to be released."""
        self._not_ready = "is closed"

    def _observe(self) -> Any:
        return take_rows(to_numpy(self._dreaming.observe()), 0)

    def _episode(self) -> dict[str, Any]:
        return {"start": int(self.simulator.start[0]), "age": int(self.simulator.age[0])}


class DreamVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """Many dreams in one batch as a Gymnasium ``VectorEnv``: ``gym.make_vec("Dream-Pong-v0", num_envs=1024)``.

    Under SAME_STEP (default) a dream that ends starts anew within the step: the observation is the new dream's first,
    and ``infos["final_obs"]`` holds the old one's last where ``infos["_final_obs"]`` says so, ``infos["final_info"]``
    its ``start`` and ``age``. Under DISABLED, reset with ``options={"reset_mask": bool array (num_envs,)}``.

    With ``array="torch"`` everything is a tensor on the device and nothing waits for it: ``final_obs`` is then always
    there, a batch of all observations before the resets, valid where ``_final_obs``; under DISABLED, dreams that ended
    and were not reset go on; and actions on an accelerator are not checked for their range.

    Args:
        num_envs: number of dreams.
        game: a game or an id, whose weights are looked up, or what ``checkpoint`` takes.
        checkpoint: a run folder, a file or a loaded ``Dream``, instead of looking weights up.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        observation: ``"embedding"``, ``"codes"``, ``"objects"`` or ``"pixels"``, see ``ObservationBuilder``.
        horizon: steps a dream lasts; None as the checkpoint says; ``math.inf`` for dreams without one.
        seed: of the first reset; None draws one from the operating system.
        render_mode: ``"rgb_array"``: ``render()`` gives a tuple of uint8 (384, 384, 3).
        array: ``"numpy"`` or ``"torch"``.
        autoreset_mode: SAME_STEP or DISABLED, or their names.
        max_episode_steps: an upper limit to the horizon.
        options: see ``DreamOptions``.

    Raises:
        MissingWeightsError: no weights; the message says where they were looked for and how to train them.
        ConfigError: a setting is outside its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        game: DreamSource | None = None,
        *,
        checkpoint: DreamSource | None = None,
        device: str = "auto",
        observation: ObservationKind = "embedding",
        horizon: float | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
        array: Literal["numpy", "torch"] = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        **options: Unpack[DreamOptions],
    ) -> None:
        """Load the dream."""
        _check_render_mode(render_mode)
        if array not in ("numpy", "torch"):
            raise ConfigError(f"array: expected 'numpy' or 'torch', got {array!r}.")
        self._dreaming = Dreaming(
            num_envs, game, checkpoint, device, observation, horizon, max_episode_steps, seed, **options
        )
        self.dream = self._dreaming.dream
        self.simulator = self._dreaming.simulator
        self.num_envs = num_envs
        self.array = array
        self.render_mode = render_mode
        self.autoreset_mode = resolve_autoreset(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._dreaming.builder.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = self._dreaming.action_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended: BoolArray = np.ones(num_envs, dtype=np.bool_)
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start dreams anew: all, or those of ``options["reset_mask"]``.

        Args:
            seed: restarts the random streams of the dreams concerned; dream i's depends on the seed and i only.
            options: ``reset_mask``: bool (num_envs,), at least one True; ``start``: index or indices of the real
                contexts to begin with; ``state``: a ``DreamState`` to go on from.

        Returns:
            The observations of all dreams, and infos: ``start`` and ``age`` of the dreams that began.

        Raises:
            InvalidInputError: the mask is not as above, or the env is closed.
        """
        self._check_open()
        check_seed(seed)
        super().reset(seed=seed)
        options = {} if options is None else options
        mask = (
            None
            if not isinstance(cast(Any, options), dict) or options.get("reset_mask") is None
            else self._check_mask(options["reset_mask"])
        )
        self._dreaming.restart(seed, options, mask)
        began = torch.ones(self.num_envs, dtype=torch.bool, device=self.simulator.device) if mask is None else mask
        if self.array == "numpy":
            self._ended = self._ended & ~began.cpu().numpy()
        return self._export(self._dreaming.observe()), self._episodes(began)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one step in every dream; see the class.

        Args:
            actions: (num_envs,) integers, array or tensor.

        Returns:
            Observations, rewards float32 (num_envs,), terminated and truncated bool (num_envs,), infos: all fresh.

        Raises:
            InvalidActionError: actions of the wrong shape, type or range.
            InvalidInputError: the env is closed, or a dream that ended was not reset.
        """
        self._check_open()
        valid = check_actions(actions, self.single_action_space, (self.num_envs,))
        if self.array == "numpy" and self._ended.any():
            raise InvalidInputError(
                f"Dreams {np.flatnonzero(self._ended).tolist()} have not begun or have ended: call reset(), "
                "with options={'reset_mask': mask} for some of them."
            )
        result = self.simulator.step(valid)
        ended = result.terminated | result.truncated
        observation = self._dreaming.observe()
        finish = self._finish_numpy if self.array == "numpy" else self._finish_torch
        observation, infos = finish(observation, ended)
        return (
            observation,
            self._export(result.reward),
            self._export(result.terminated),
            self._export(result.truncated),
            infos,
        )

    def render(self) -> tuple[Any, ...] | None:
        """The newest latents in the game's look: a tuple of uint8 (384, 384, 3); None without a render mode."""
        self._check_open()
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array': pass it to gym.make_vec.")
            return None
        return tuple(render_latents(self.dream.world_model, self.simulator.latents[:, -1]))

    def _finish_numpy(self, observation: Any, ended_on_device: torch.Tensor) -> tuple[Any, dict[str, Any]]:
        """Move observations to the host and, where dreams ended, do what the autoreset mode says."""
        arrays, ended = to_numpy(observation), cast(BoolArray, ended_on_device.cpu().numpy())
        if not ended.any():
            return arrays, {}
        if self.autoreset_mode is AutoresetMode.DISABLED:
            self._ended = ended
            return arrays, self._episodes(ended_on_device)
        rows = np.flatnonzero(ended)
        final = objects_at(self.num_envs, rows, take_rows(arrays, rows))
        infos = {"final_obs": final, "_final_obs": ended, "final_info": self._episodes(ended_on_device)}
        infos["_final_info"] = ended.copy()
        self.simulator.reset(ended_on_device)
        put_rows(arrays, rows, to_numpy(self._dreaming.observe(torch.as_tensor(rows, device=self.simulator.device))))
        return arrays, {**infos, **self._episodes(ended_on_device)}

    def _finish_torch(self, observation: Any, ended: torch.Tensor) -> tuple[Any, dict[str, Any]]:
        """The same without asking the device whether any dream ended."""
        if self.autoreset_mode is AutoresetMode.DISABLED:
            return observation, self._episodes(ended)
        infos = {"final_obs": observation, "_final_obs": ended, "final_info": self._episodes(ended)}
        infos["_final_info"] = ended.clone()
        self.simulator.reset(ended)
        return self._dreaming.observe(), {**infos, **self._episodes(ended)}

    def _episodes(self, mask: torch.Tensor) -> dict[str, Any]:
        """Where the masked dreams began and how old they are, in Gymnasium's layout (value, _mask)."""
        start, age = self.simulator.start * mask, self.simulator.age * mask
        return {
            "start": self._export(start),
            "_start": self._export(mask.clone()),
            "age": self._export(age),
            "_age": self._export(mask.clone()),
        }

    def _export(self, value: Any) -> Any:
        return to_numpy(value) if self.array == "numpy" else value

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidInputError("The dreams are closed: make new ones.")

    def _check_mask(self, mask: Any) -> torch.Tensor:
        if not isinstance(mask, torch.Tensor):
            if not isinstance(mask, np.ndarray) or cast("npt.NDArray[Any]", mask).dtype != np.bool_:
                raise InvalidInputError(f"options['reset_mask']: expected an array of dtype bool, got {mask!r}.")
            mask = torch.from_numpy(cast(BoolArray, mask).copy())
        if tuple(mask.shape) != (self.num_envs,) or mask.dtype != torch.bool:
            raise InvalidInputError(
                f"options['reset_mask']: expected bool of shape ({self.num_envs},), "
                f"got {mask.dtype} of {tuple(mask.shape)}."
            )
        if mask.device.type == "cpu" and not bool(mask.any()):
            raise InvalidInputError("options['reset_mask']: expected at least one True.")
        return mask.to(self.simulator.device)


def resolve_autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    """SAME_STEP or DISABLED, from the mode or its name ("SameStep", "SAME_STEP", ...).

    Raises:
        ConfigError: another mode; NEXT_STEP would spend a step of the whole batch on each reset.
    """
    names = {"samestep": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
    name = mode.value if isinstance(mode, AutoresetMode) else str(mode)
    key = name.replace("_", "").lower()
    if key not in names:
        raise ConfigError(f"autoreset_mode: expected SAME_STEP or DISABLED, got {mode!r}.")
    return names[key]


def _check_render_mode(mode: str | None) -> None:
    if mode not in (None, "rgb_array"):
        raise ConfigError(f"render_mode: expected None or 'rgb_array', got {mode!r}.")
