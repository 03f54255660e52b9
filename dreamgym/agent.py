"""The agent of a run: which algorithm, how it explores, and its weights on disk without a pickle being opened."""

import io
import pickle
import warnings
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.checkpoint import Dream, load_dream, write_atomic
from dreamgym.config import RunConfig
from dreamgym.errors import CheckpointError, MissingWeightsError
from dreamgym.sb3 import VectorEnvAdapter, is_off_policy, make_algorithm, make_sb3_env, replace_codebook
from dreamgym.world_model import WorldModel

POLICY_FILE = "policy.zip"
_PARTS = ".pth"


def observation_kind(algo: str) -> Literal["embedding", "codes"]:
    """What a run's agent sees: embeddings, or for algorithms that keep a replay buffer the 100 times smaller codes."""
    return "codes" if is_off_policy(algo) else "embedding"


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
    arguments = {**_hyperparameters(config), **settings}
    return make_algorithm(config.algo, env, seed, device, network=config.network, **arguments)


def _hyperparameters(config: RunConfig) -> dict[str, Any]:
    """What an algorithm's own defaults do not fit: many short dreams, a budget of imagined steps a round."""
    ppo, algo = config.ppo, config.algo.lower()
    if algo in ("ppo", "recurrentppo"):
        return asdict(config.ppo)
    if algo == "trpo":
        return {name: getattr(ppo, name) for name in ("n_steps", "batch_size", "gamma", "gae_lambda")}
    if is_off_policy(algo):
        # One vector step brings num_envs transitions: the usual 4 env steps an update would hardly learn from them.
        return {
            "buffer_size": 100_000,
            "learning_starts": min(1_000, min(config.imagined_steps) // 4),
            "batch_size": 128,
            "train_freq": 1,
            "gradient_steps": 4,
            "gamma": ppo.gamma,
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
    """Write Stable-Baselines3's own zip, which its ``load`` reads too."""
    write_atomic(path, lambda temporary: algorithm.save(temporary))


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
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(_PARTS) and not n.startswith("pytorch_variables")]
            return {
                name.removesuffix(_PARTS): torch.load(io.BytesIO(archive.read(name)), device, weights_only=True)
                for name in names
            }
    except (
        zipfile.BadZipFile,
        zlib.error,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Restore it or train it again.") from error


def set_parameters(agent: Any, parameters: dict[str, Any], world_model: WorldModel) -> None:
    """Give an agent trained tensors; one that sees codes looks them up in this world model's codebook, not the old one.

    Args:
        agent: of :func:`make_agent`.
        parameters: of its ``get_parameters`` or of :func:`load_parameters`.
        world_model: whose latents it will see.
    """
    agent.set_parameters(parameters, device=agent.device)
    replace_codebook(agent, world_model)


def load_agent(run: Path, config: RunConfig, dream: Dream | None = None, device: str = "cpu") -> Any:
    """The trained agent of a run, ready to act on the observations that :func:`observation_kind` names.

    Args:
        run: the run folder.
        config: the run's.
        dream: the run's dream, if it is loaded already.
        device: where it computes.

    Raises:
        MissingWeightsError: the run has no policy or no dream yet.
        CheckpointError: a file is damaged or does not fit the configuration.
    """
    parameters = load_parameters(run / POLICY_FILE, device)
    dream = dream or load_dream(run, device)
    env = make_sb3_env(dream, 1, device=device, observation=observation_kind(config.algo))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The run's minibatches do not fit the rollouts of one env; this agent only acts.
        warnings.filterwarnings("ignore", message=".*mini-batch size", category=UserWarning)
        agent = make_agent(config, env, seed=None, device=device)
    try:
        set_parameters(agent, parameters, dream.world_model)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{run / POLICY_FILE} does not fit the run's configuration: {error}") from error
    return agent
