"""The agent of a run: which algorithm, how it explores, and its weights on disk without a pickle being opened."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.archives import load_tensors, non_finite, open_archive
from dreamgym.checkpoint import Dream, write_atomic
from dreamgym.config import RunConfig
from dreamgym.device import resolve_device
from dreamgym.dreaming import find_dream
from dreamgym.errors import CheckpointError, ConfigError, MissingWeightsError
from dreamgym.run_folder import run_of
from dreamgym.sb3 import VectorEnvAdapter, is_off_policy, make_algorithm, make_sb3_env, replace_codebook
from dreamgym.storage import check_clock
from dreamgym.world_model import WorldModel

POLICY_FILE = "policy.zip"
_PARTS = ".pth"
_CODEBOOK = ".codebook"


def make_agent(config: RunConfig, env: VectorEnvAdapter, seed: int | None, device: str = "cpu", **settings: Any) -> Any:
    """The run's algorithm with the run's hyperparameters.

    Args:
        config: names the algorithm, its network, and PPO's hyperparameters; others take what they share.
        env: a dream or the real game, of ``make_sb3_env``.
        seed: of the algorithm, which also seeds the global generators; None leaves them alone.
        device: where it computes.
        settings: further arguments of the algorithm, ``tensorboard_log`` for one.

    Raises:
        ConfigError: no such algorithm, or it cannot act in this env.
    """
    arguments = {**_hyperparameters(config, env.num_envs), **settings}
    agent: Any = make_algorithm(config.algo, env, seed, device, network=config.network, **arguments)
    if hasattr(agent, "exploration_rate"):
        # As after learning; it begins at 0, and of a sure player's 32 games in an emulator five are different.
        agent.exploration_rate = config.off_policy.epsilon
    return agent


def _hyperparameters(config: RunConfig, num_envs: int) -> dict[str, Any]:
    """What an algorithm's own defaults do not fit: many short dreams, a budget of imagined steps a round."""
    ppo, algo = config.ppo, config.algo.lower()
    if algo in ("ppo", "recurrentppo"):
        return asdict(config.ppo)
    if algo == "trpo":
        return {name: getattr(ppo, name) for name in ("n_steps", "batch_size", "gamma", "gae_lambda")}
    if is_off_policy(algo):
        off = config.off_policy
        settings = {name: getattr(off, name) for name in ("learning_rate", "batch_size", "n_steps", "gamma")}
        if algo in ("dqn", "qrdqn"):
            settings |= {"tau": 0.005, "target_update_interval": max(off.target_every, num_envs)}
            settings |= {"exploration_initial_eps": off.epsilon, "exploration_final_eps": off.epsilon}
        return {
            **settings,
            "buffer_size": min(off.buffer_size, config.interactions + max(config.imagined_steps)),
            "learning_starts": min(1_000, min(config.imagined_steps) // 4),
            "train_freq": 1,
            "gradient_steps": off.imagined_updates,
        }
    return {"gamma": ppo.gamma}


class ExploringPolicy:
    """An algorithm's policy with more chance in it, for collecting (Robine et al. 2023, Eq. 19).

    Args:
        algorithm: of Stable-Baselines3.
        temperature: divides the logits of policies that have them.
        epsilon: chance of a uniform random action for those that have none (DQN, QR-DQN).
        seed: of the random actions.
    """

    def __init__(self, algorithm: Any, temperature: float, epsilon: float, seed: int) -> None:
        """Find out whether the policy has logits."""
        self._algorithm = algorithm
        self._temperature = temperature
        self._logits = getattr(algorithm.policy, "action_net", None)
        self._epsilon = 0.0 if self._logits is not None else epsilon
        self._rng = np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Observations with a leading axis to (actions, recurrent state), as Stable-Baselines3's ``predict``."""
        hook = None
        discrete = hasattr(self._algorithm.action_space, "n")
        if self._logits is not None and discrete and self._temperature != 1:
            hook = self._logits.register_forward_hook(self._flatten)
        try:
            actions, state = self._algorithm.predict(observation, state, episode_start, deterministic)
        finally:
            if hook is not None:
                hook.remove()
        if self._epsilon and discrete:
            chosen = self._rng.random(len(actions)) < self._epsilon
            drawn = self._rng.integers(self._algorithm.action_space.n, size=len(actions))
            actions = np.where(chosen, drawn, actions)
        return actions, state

    def _flatten(self, module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        return logits / self._temperature


def save_agent(path: Path, algorithm: Any) -> None:
    """Write Stable-Baselines3's own zip, which its ``load`` reads too.

    Raises:
        StorageError: the clock tells a year that zips do not know.
    """
    check_clock()
    # Given a file, torch would turn a full disk into an error about its own positions.
    buffer = io.BytesIO()
    algorithm.save(buffer)
    write_atomic(path, lambda temporary: cast(Any, temporary.write_bytes(buffer.getvalue())))


def load_parameters(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The tensors of a ``policy.zip``; the pickles that Stable-Baselines3 keeps beside them stay closed.

    Args:
        path: the zip.
        device: where to put the tensors.

    Returns:
        What ``algorithm.set_parameters`` takes.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        raise MissingWeightsError(f"No policy at {path}. Train one with: dreamgym train --out {path.parent} --resume")
    try:
        with open_archive(path.read_bytes()) as archive:
            names = [n for n in archive.namelist() if n.endswith(_PARTS) and not n.startswith("pytorch_variables")]
            parameters = {name.removesuffix(_PARTS): load_tensors(archive.read(name), device) for name in names}
        if not isinstance(parameters.get("policy"), dict):
            raise ValueError(f"expected a policy{_PARTS} in it that holds tensors by name, got {', '.join(names)}")
        bad = non_finite(parameters)
        if bad is not None:
            raise ValueError(f"expected finite numbers, {bad} holds others")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Restore it or train it again.") from error
    return parameters


def set_parameters(agent: Any, parameters: dict[str, Any], world_model: WorldModel) -> None:
    """Give an agent trained tensors; it looks codes up in this world model's codebook, not the old one.

    Args:
        agent: of :func:`make_agent`.
        parameters: of its ``get_parameters`` or of :func:`load_parameters`.
        world_model: whose latents it will see.
    """
    # Agents of runs that showed embeddings have the same networks without a codebook.
    books = {name: tensor for name, tensor in agent.policy.state_dict().items() if name.endswith(_CODEBOOK)}
    agent.set_parameters({**parameters, "policy": {**books, **parameters["policy"]}}, device=agent.device)
    replace_codebook(agent, world_model)


def policy_tensors(agent: Any) -> dict[str, Tensor]:
    """An agent's policy as :attr:`dreamgym.checkpoint.Dream.policy` holds it.

    Tensors that share memory are there once, codebooks not at all: they are the world model's.
    """
    state: dict[str, Tensor] = agent.policy.state_dict()
    stored = {name for name, first in _stored_names(state).items() if first == name}
    return {name: tensor for name, tensor in state.items() if name in stored and not name.endswith(_CODEBOOK)}


def _stored_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For every tensor the first name of its memory: actor and critic share a trunk, which goes by three names."""
    first: dict[Any, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        for name, tensor in state.items()
    }


def set_policy(agent: Any, policy: Mapping[str, Tensor], world_model: WorldModel) -> None:
    """The inverse of :func:`policy_tensors`, for an agent that sees the latents of this world model.

    Raises:
        RuntimeError, KeyError: the tensors are not those of this policy.
    """
    state = agent.policy.state_dict()
    stored = _stored_names(state)
    unknown = sorted(set(policy) - set(stored.values()))
    if unknown:
        raise KeyError(f"expected no tensors {', '.join(unknown)}")
    for name, tensor in policy.items():
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise KeyError(f"{name}: expected {state[name].dtype}, got {tensor.dtype}")
    books = {name: tensor for name, tensor in state.items() if name.endswith(_CODEBOOK)}
    agent.policy.load_state_dict({name: {**books, **policy}[first] for name, first in stored.items()})
    replace_codebook(agent, world_model)


def load_agent(
    id_or_run: str | Path, *, checkpoint: str | Path | None = None, device: str | torch.device = "auto"
) -> Any:
    """The agent that was trained in a dream, an algorithm of Stable-Baselines3, ready to act.

    It acts on the observations that it was trained on: those of environments that are made with
    ``observation=agent.observation`` (``"codes"`` or ``"objects"``).

    Args:
        id_or_run: a game or ``"Dream-Pong-v0"``, whose weights are looked up as :func:`resolve_checkpoint` does, a run
            folder, or an exported file.
        checkpoint: a run folder or an exported file that goes before all else.
        device: where it computes: ``"auto"``, ``"cpu"``, ``"cuda"`` ...

    Raises:
        MissingWeightsError: there is no such dream, or it came without an agent.
        CheckpointError: a file is damaged or does not fit the configuration.
        ConfigError: it is a dream of another game.
    """
    file, dream = find_dream(id_or_run, checkpoint, resolve_device(device))
    return read_agent(file, dream, str(dream.world_model.device))[1]


def read_agent(file: Path, dream: Dream, device: str = "cpu") -> tuple[RunConfig, Any]:
    """The agent that came with a dream: in the dream's own file, or beside it in its run folder.

    Args:
        file: the dream's.
        dream: what the file holds.
        device: where the agent computes.

    Returns:
        The settings of the run that trained it, and the agent.

    Raises:
        MissingWeightsError: the dream came without an agent.
        CheckpointError: a file is damaged or does not fit the configuration.
    """
    folder = run_of(file)
    if dream.policy:
        try:
            config = RunConfig.from_json(dream.metadata["config"])
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file}: the settings of its policy cannot be read: {error}") from error
        source, parameters = file, None
    elif folder is not None and (folder.path / POLICY_FILE).is_file():
        config, source = folder.config(), folder.path / POLICY_FILE
        parameters = load_parameters(source, device)
    else:
        raise MissingWeightsError(
            f"{file} is a dream but comes with no agent: expected a finished run's folder (config.json, {POLICY_FILE}) "
            "or what dreamgym export makes of one."
        )
    agent = _blank_agent(config, dream, device)
    try:
        if parameters is None:
            set_policy(agent, dream.policy, dream.world_model)
        else:
            set_parameters(agent, parameters, dream.world_model)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{source}: the policy does not fit the run's configuration: {error}") from error
    return config, agent


def _blank_agent(config: RunConfig, dream: Dream, device: str) -> Any:
    """An agent of the run's, not trained, on one dream; it leaves the global generators alone."""
    env = make_sb3_env(dream, 1, device=device, observation=config.observation)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The run's minibatches do not fit the rollouts of one env; this agent only acts.
        warnings.filterwarnings("ignore", message=".*mini-batch size", category=UserWarning)
        agent = make_agent(config, env, seed=None, device=device)
    agent.observation = config.observation
    return agent
