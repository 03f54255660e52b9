"""Stable-Baselines3 on dreams: the vector envs, the policy's networks and the algorithms by name.

The only file that imports SB3.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
import torch.nn.functional as F
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from dreamgym.checkpoint import Dream
from dreamgym.dreaming import DreamOptions, DreamSource
from dreamgym.envs import DreamVectorEnv
from dreamgym.errors import ConfigError
from dreamgym.models.policy import OBJECT_UNITS, TRUNKS, ObjectTrunk, embed_codes
from dreamgym.observations import ObservationKind, take_rows
from dreamgym.real_env import GameOptions, make_real_env

if TYPE_CHECKING:
    from dreamgym.world_model import WorldModel

NetworkName = Literal["paper", "light"]
Indices = int | Iterable[int] | None


class VectorEnvAdapter(VecEnv):
    """A Gymnasium vector env with SAME_STEP autoreset as SB3's ``VecEnv``.

    Infos hold, where an episode ended: ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (return ``r``,
    length ``l``, seconds ``t``), so that SB3's logs work without a Monitor. Attributes and methods belong to the batch:
    ``get_attr`` and ``env_method`` give the same value for each env, ``set_attr`` sets it for all.

    Args:
        env: the vector env, returning numpy arrays.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Take over the spaces of the env."""
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Any = None
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._began = np.full(env.num_envs, time.perf_counter())

    def reset(self) -> Any:
        """Begin all episodes; seeds and options given before are used once."""
        observation, infos = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = self._split(infos)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._began[:] = time.perf_counter()
        return observation

    def step_async(self, actions: Any) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Take the step: observations, rewards float32, dones bool and infos, all fresh."""
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        per_env: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            per_env[i] = {
                **_take_info(infos.get("final_info", {}), i),
                "terminal_observation": infos["final_obs"][i],
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": {
                    "r": round(float(self._returns[i]), 6),
                    "l": int(self._lengths[i]),
                    "t": round(time.perf_counter() - float(self._began[i]), 6),
                },
            }
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return observation, rewards, dones, per_env

    def close(self) -> None:
        """Close the vector env."""
        self.env.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset; None changes nothing (SB3's own would then read numpy's global generator)."""
        if seed is None:
            self._reset_seeds()
            return self._seeds
        return super().seed(seed)

    def get_images(self) -> Sequence[Any]:
        """One RGB image for each env."""
        return self.env.render() or ()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The batch's attribute, once for each env."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set the batch's attribute.

        Raises:
            ConfigError: indices leave an env out; the envs are one batch.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigError("set_attr: the envs are one batch, so an attribute can only be set for all of them.")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the batch's method once; its result, once for each env."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Whether envs behave as wrapped: True for ``Monitor``, since infos hold the same ``episode``."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def _split(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        return [_take_info(infos, i) for i in range(self.num_envs)]


class DreamVecEnv(VectorEnvAdapter):
    """Dreams as SB3's ``VecEnv``: ``PPO("MlpPolicy", DreamVecEnv("runs/pong", n_envs=64))``.

    SB3's global seeding does not change the dreams; ``seed=`` and ``env.seed()`` do.

    Args:
        id_or_run: ``"Dream-Pong-v0"``, a game, a run folder, a file or a loaded ``Dream``.
        n_envs: number of dreams.
        checkpoint: a run folder, a file or a loaded ``Dream``, instead of looking weights up.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        observation: ``"embedding"``, ``"codes"``, ``"objects"`` or ``"pixels"``.
        horizon: steps a dream lasts; None as the checkpoint says; ``math.inf`` for dreams without one.
        seed: of the first reset.
        render_mode: ``"rgb_array"``.
        options: see ``DreamOptions``.
    """

    def __init__(
        self,
        id_or_run: DreamSource,
        n_envs: int = 1,
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
        self.dream_env = DreamVectorEnv(
            n_envs,
            id_or_run,
            checkpoint=checkpoint,
            device=device,
            observation=observation,
            horizon=horizon,
            seed=seed,
            render_mode=render_mode,
            **options,
        )
        self.dream = self.dream_env.dream
        self.simulator = self.dream_env.simulator
        super().__init__(self.dream_env)


class RealVecEnv(VectorEnvAdapter):
    """The real game, seen through a dream's encoder, as SB3's ``VecEnv`` (see ``make_real_env``)."""

    def __init__(
        self,
        id_or_run: DreamSource,
        n_envs: int = 1,
        *,
        checkpoint: DreamSource | None = None,
        device: str = "auto",
        observation: ObservationKind = "embedding",
        latent_stack: int | None = None,
        hidden_state: bool = False,
        seed: int | None = None,
        **game_options: Unpack[GameOptions],
    ) -> None:
        """Load the dream and start the games."""
        games = make_real_env(
            id_or_run,
            n_envs,
            checkpoint=checkpoint,
            device=device,
            observation=observation,
            latent_stack=latent_stack,
            hidden_state=hidden_state,
            seed=seed,
            **game_options,
        )
        self.dream = games.dream
        super().__init__(games)


def make_sb3_env(
    id_or_run: DreamSource, n_envs: int = 1, *, real: bool = False, **settings: Any
) -> DreamVecEnv | RealVecEnv:
    """Dreams, or the real game they are of, for any algorithm of SB3.

    Args:
        id_or_run: ``"Dream-Pong-v0"``, a game, a run folder, a file or a loaded ``Dream``.
        n_envs: number of envs.
        real: the real game instead of the dream.
        settings: of ``DreamVecEnv`` or ``RealVecEnv``. Dreams' ages are staggered unless ``stagger=False``: SB3 asks
            the policy for one value after the other for all dreams that reach the horizon in the same step.

    Returns:
        The vector env; its spaces are the same for ``real=True`` and ``real=False``.

    Raises:
        ConfigError: ``num_envs`` instead of SB3's ``n_envs``.
    """
    if "num_envs" in settings:
        raise ConfigError("make_sb3_env: SB3 calls it n_envs, not num_envs.")
    if real:
        return RealVecEnv(id_or_run, n_envs, **settings)
    staggered: dict[str, Any] = {"stagger": True, **settings}
    return DreamVecEnv(id_or_run, n_envs, **staggered)


class LatentExtractor(BaseFeaturesExtractor):
    """Features of embedding observations, with the hidden state's channels beside them where it is shown.

    Args:
        observation_space: Box (channels, height, width), or a Dict of ``observation`` and ``hidden`` of that form. A
            hidden state on a coarser grid is spread over the latent's cells.
        network: ``"paper"`` (Robine et al. 2023) or ``"light"``.
    """

    def __init__(self, observation_space: gym.Space[Any], network: NetworkName) -> None:
        """Build the network for the space."""
        shapes = [cast("tuple[int, int, int]", space.shape) for space in _parts(observation_space)]
        trunk = TRUNKS[_check_network(network)](sum(shape[0] for shape in shapes), *shapes[0][1:])
        super().__init__(observation_space, trunk.out_features)
        self.trunk = trunk

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Map observations (batch, ...) to features (batch, features_dim)."""
        if isinstance(observations, dict):
            observations = _beside(observations["observation"], observations["hidden"])
        return self.trunk(observations)


class PaperPolicyExtractor(LatentExtractor):
    """The paper's policy network on embedding observations."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        """Build the network for the space."""
        super().__init__(observation_space, "paper")


class LightExtractor(LatentExtractor):
    """A network about four times smaller on embedding observations."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        """Build the network for the space."""
        super().__init__(observation_space, "light")


class CodesExtractor(BaseFeaturesExtractor):
    """Features of ``"codes"`` observations: embeds them with a frozen codebook, then works like ``LatentExtractor``.

    Args:
        observation_space: uint8 Box (height * width, stack), or a Dict of it as ``observation`` and of ``hidden``.
        codebook: (num_codes, channels) float32, see ``codebook_of``.
        grid: (height, width) of the latent.
        network: ``"paper"`` or ``"light"``.
    """

    codebook: Tensor

    def __init__(
        self, observation_space: gym.Space[Any], codebook: Any, grid: tuple[int, int], network: NetworkName = "paper"
    ) -> None:
        """Build the network for the space."""
        table = torch.as_tensor(codebook, dtype=torch.float32).clone()
        codes, *others = (cast("tuple[int, ...]", space.shape) for space in _parts(observation_space))
        channels = codes[1] * table.shape[1] + sum(shape[0] for shape in others)
        trunk = TRUNKS[_check_network(network)](channels, *grid)
        super().__init__(observation_space, trunk.out_features)
        self.trunk = trunk
        self.grid = grid
        self.register_buffer("codebook", table)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Map observations (batch, ...) to features (batch, features_dim)."""
        if not isinstance(observations, dict):
            return self.trunk.from_codes(observations, self.codebook, self.grid)
        features = embed_codes(observations["observation"], self.codebook, self.grid)
        return self.trunk(_beside(features, observations["hidden"]))


class ObjectsExtractor(BaseFeaturesExtractor):
    """Features of ``"objects"`` observations.

    Args:
        observation_space: float32 Box (features,).
        network: ``"paper"`` or ``"light"``, which has half as many units.
    """

    def __init__(self, observation_space: gym.Space[Any], network: NetworkName = "paper") -> None:
        """Build the network for the space."""
        units = OBJECT_UNITS[_check_network(network)]
        super().__init__(observation_space, units)
        (features,) = cast("tuple[int]", observation_space.shape)
        self.trunk = ObjectTrunk(features, units)

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (batch, features) to features (batch, features_dim)."""
        return self.trunk(observations)


class FeaturesARSPolicy(ARSPolicy):
    """ARS's policy behind a features extractor: its own sees flattened numbers only, and a code's number means nothing.

    Args:
        observation_space: of one env.
        action_space: of one env.
        features_extractor_class: by default SB3's own for the space (NatureCNN for images).
        features_extractor_kwargs: its arguments.
        settings: of ``ARSPolicy``.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Build the extractor and the layers after it."""
        if features_extractor_class is None:
            image = NatureCNN if is_image_space(observation_space) else FlattenExtractor
            features_extractor_class = CombinedExtractor if isinstance(observation_space, spaces.Dict) else image
        self._extractor = (features_extractor_class, features_extractor_kwargs or {})
        super().__init__(observation_space, action_space, **settings)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The extractor that was asked for, which ``ARSPolicy`` does not pass on."""
        self.features_extractor_class, self.features_extractor_kwargs = self._extractor
        return super().make_features_extractor()


def _beside(features: Tensor, hidden: Tensor) -> Tensor:
    """Features (batch, channels, height, width) and the hidden state, whose grid may be coarser, in one map."""
    return torch.cat([features, F.interpolate(hidden, features.shape[2:], mode="nearest")], dim=1)


def _parts(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """The observation's space and, where it is shown, the hidden state's."""
    return [space["observation"], space["hidden"]] if isinstance(space, spaces.Dict) else [space]


def _observation_kind(space: gym.Space[Any]) -> ObservationKind:
    """What an observation space shows, from its shape and type."""
    first = _parts(space)[0]
    if first.dtype != np.uint8:
        return "objects" if len(first.shape or ()) == 1 else "embedding"
    return "codes" if len(first.shape or ()) == 2 else "pixels"


def _check_network(name: str) -> str:
    if name not in TRUNKS:
        raise ConfigError(f"network: expected one of {', '.join(map(repr, TRUNKS))}, got {name!r}.")
    return name


def codebook_of(world_model: WorldModel) -> Tensor:
    """The embedding of every code, (num_codes, channels) float32 on the CPU."""
    codec = world_model.codec
    codes = torch.arange(codec.num_codes, device=world_model.device).reshape(-1, *[1] * len(codec.latent_shape))
    with torch.no_grad():
        features = world_model.embed(codes.expand(-1, *codec.latent_shape))
    return features.flatten(2)[:, :, 0].float().cpu()


def replace_codebook(algorithm: BaseAlgorithm, world_model: WorldModel) -> None:
    """Give a policy on ``"codes"`` observations the codebook of a refitted world model."""
    table = codebook_of(world_model)
    for module in algorithm.policy.modules():
        if isinstance(module, CodesExtractor):
            module.codebook.copy_(table)


def policy_kwargs_for(env: VecEnv, network: NetworkName = "paper", algorithm: str = "PPO") -> dict[str, Any]:
    """``policy_kwargs`` of an SB3 algorithm that plays in a dream with the paper's network or a lighter one.

    Heads are linear. Weights are initialised as torch does and Adam's eps is 1e-8, both as in the paper's code; SB3's
    own are orthogonal and 1e-5.

    Args:
        env: of ``make_sb3_env``, wrapped or not. Pixel observations get no kwargs: SB3's CNN serves them.
        network: ``"paper"`` or ``"light"``.
        algorithm: its name; actor-critic ones have an initialisation and an optimiser to set.
    """
    dream = cast(Dream, env.get_attr("dream")[0])
    kind = _observation_kind(env.observation_space)
    extractor: type[BaseFeaturesExtractor] = LightExtractor
    arguments: dict[str, Any] = {}
    if _check_network(network) == "paper":
        extractor = PaperPolicyExtractor
    if kind == "pixels":
        return {}
    if kind == "objects":
        extractor, arguments = ObjectsExtractor, {"network": network}
    if kind == "codes":
        extractor = CodesExtractor
        grid = tuple(dream.world_model.codec.latent_shape)
        arguments = {"codebook": codebook_of(dream.world_model).numpy(), "grid": grid, "network": network}
    kwargs: dict[str, Any] = {
        "features_extractor_class": extractor,
        "features_extractor_kwargs": arguments,
        "net_arch": [],
        "activation_fn": nn.LeakyReLU,
    }
    if _algorithm(algorithm) is not sb3_contrib.ARS:
        # One pass over the weights instead of eight: on a CPU a sixth of the time. ARS has no optimizer.
        kwargs["optimizer_kwargs"] = {"fused": True}
    if issubclass(_algorithm(algorithm), OnPolicyAlgorithm):
        kwargs |= {"ortho_init": False, "optimizer_kwargs": {"eps": 1e-8, "fused": True}}
    return kwargs


def _algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Every algorithm of SB3 and sb3-contrib by its name."""
    found = {**vars(stable_baselines3), **vars(sb3_contrib)}
    return {name: kind for name, kind in found.items() if inspect.isclass(kind) and issubclass(kind, BaseAlgorithm)}


def _algorithm(name: str) -> type[BaseAlgorithm]:
    known = _algorithms()
    # Dreams mask no actions, which is what this one is for.
    known.pop("MaskablePPO")
    matches = {key.lower(): kind for key, kind in known.items()}
    if name.lower() not in matches:
        raise ConfigError(f"algorithm: expected one of {', '.join(sorted(known))}, got {name!r}.")
    return matches[name.lower()]


def make_algorithm(
    name: str,
    env: VecEnv,
    seed: int | None = None,
    device: str = "auto",
    *,
    network: NetworkName = "paper",
    **kwargs: Any,
) -> BaseAlgorithm:
    """An algorithm of stable_baselines3 or sb3_contrib with a policy that fits the env's observations.

    ARS begins with drawn weights unless ``zero_policy=True``: where every layer is zero, changes of several layers
    multiply to nothing.

    Args:
        name: ``"PPO"``, ``"DQN"``, ``"A2C"``, ``"QRDQN"``, ``"TRPO"``, ``"RecurrentPPO"``, ``"ARS"``; case does
            not matter.
        env: of ``make_sb3_env``.
        seed: of the algorithm.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        network: ``"paper"`` or ``"light"``.
        kwargs: the algorithm's own; ``policy`` and ``policy_kwargs`` replace or extend what is chosen here.

    Raises:
        ConfigError: no such algorithm (the message lists them), one that cannot act in this env, or no such argument.
    """
    kind = _algorithm(name)
    family = "Cnn" if _observation_kind(env.observation_space) == "pixels" else "Mlp"
    if isinstance(env.observation_space, spaces.Dict):
        family = "MultiInput"
    recurrent = "MlpLstmPolicy" in kind.policy_aliases
    fitting: Any = f"{family}{'LstmPolicy' if recurrent else 'Policy'}"
    if kind is sb3_contrib.ARS:
        fitting = FeaturesARSPolicy
        kwargs = {"zero_policy": False, **kwargs}
    policy = kwargs.pop("policy", fitting)
    policy_kwargs = {**policy_kwargs_for(env, network, name), **kwargs.pop("policy_kwargs", {})}
    try:
        return kind(policy, env, seed=seed, device=device, policy_kwargs=policy_kwargs, **kwargs)
    except (AssertionError, TypeError) as error:
        raise ConfigError(f"{kind.__name__} cannot act in this env: {error}") from error


def _take_info(infos: dict[str, Any], index: Any) -> dict[str, Any]:
    """One env's info out of Gymnasium's vector layout (value, _mask)."""
    return {
        key: take_rows(value, index)
        for key, value in infos.items()
        if not key.startswith("_") and f"_{key}" in infos and infos[f"_{key}"][index]
    }


def lower_rate(algorithm: BaseAlgorithm, factor: float) -> None:
    """Multiply the constant learning rate of an algorithm; by 1 leaves it as it is."""
    if factor != 1:
        algorithm.learning_rate = factor * cast(float, algorithm.learning_rate)
        algorithm.lr_schedule = FloatSchedule(algorithm.learning_rate)


def policy_entropy(algorithm: BaseAlgorithm, most: int = 1024) -> float | None:
    """Mean entropy of a policy in what it was shown last.

    Args:
        algorithm: that has just learned.
        most: observations looked at, evenly spaced.

    Returns:
        Nats; None where there is none to measure: without rollouts, or with actions that are not discrete.
    """
    if not isinstance(algorithm, OnPolicyAlgorithm) or not isinstance(algorithm.action_space, spaces.Discrete):
        return None
    buffer = algorithm.rollout_buffer
    if not algorithm.num_timesteps:
        return None
    if isinstance(buffer, RecurrentRolloutBuffer | DictRolloutBuffer):
        # Not one array that a policy can be shown again: minus the logarithm of what it did is the entropy, on average.
        return -float(buffer.log_probs.mean(dtype=np.float64))
    shape = algorithm.observation_space.shape or ()
    shown = buffer.observations.reshape(-1, *shape)
    chosen = np.linspace(0, len(shown) - 1, min(len(shown), most)).astype(np.int64)
    with torch.no_grad():
        distribution = algorithm.policy.get_distribution(algorithm.policy.obs_to_tensor(shown[chosen])[0])
        entropy = distribution.entropy()
    return None if entropy is None else float(entropy.double().mean())


def last_losses(algorithm: BaseAlgorithm) -> dict[str, float]:
    """The losses that an algorithm logged last, by name; empty where it took no step or has just dumped its log."""
    found = algorithm.logger.name_to_value if algorithm.num_timesteps else {}
    return {name: float(found[name]) for name in ("train/loss", "train/value_loss") if name in found}


def is_on_policy(name: str) -> bool:
    """Whether an algorithm learns from rollouts of its own policy (PPO, A2C, TRPO, RecurrentPPO).

    Raises:
        ConfigError: no such algorithm.
    """
    return issubclass(_algorithm(name), OnPolicyAlgorithm)


def is_off_policy(name: str) -> bool:
    """Whether an algorithm learns from a replay buffer of its own (DQN, QRDQN, SAC ...).

    Raises:
        ConfigError: no such algorithm.
    """
    return issubclass(_algorithm(name), OffPolicyAlgorithm)
