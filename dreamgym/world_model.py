"""The world model: a codec and a dynamics model that fit each other (Robine et al. 2023, Table 1)."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dreamgym.device import bf16_is_faster
from dreamgym.errors import ConfigError, InvalidInputError
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.models.dynamics import ConvLSTM, ConvLSTMConfig, Prediction
from dreamgym.models.layers import action_vectors, parameter_count
from dreamgym.models.losses import NO_REWARD
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics
from dreamgym.models.residual import ResidualConfig, ResidualDynamics
from dreamgym.streams import sample_categorical

DynamicsConfig = ConvLSTMConfig | ResidualConfig | MultiscaleConfig
"""Settings of any dynamics; a new one is named here and in :data:`DYNAMICS`."""

DYNAMICS: dict[type[Any], type[Any]] = {
    ConvLSTMConfig: ConvLSTM,
    ResidualConfig: ResidualDynamics,
    MultiscaleConfig: MultiscaleDynamics,
}
"""What builds the dynamics of each kind of settings."""

CODECS: dict[type[VQVAEConfig], type[Any]] = {VQVAEConfig: VQVAE}
"""What builds the codec of each kind of settings.

A new one (a class with the names of :class:`dreamgym.models.codecs.Codec`) is named here, from wherever it is, with a
subclass of ``VQVAEConfig`` for its settings. Files that hold it are read once it is named.
"""

MOST_PHASE_BITS = 8
"""Of a phase, which a replay keeps in a byte."""

LARGEST = 4096
"""Largest whole number in a world model's configuration; the widest network fitted so far has 512 of anything."""


@dataclass(frozen=True)
class WorldModelConfig:
    """What a world model is, enough to build it before its weights are loaded.

    Attributes:
        game: the real environment it was made for, as :func:`dreamgym.real.resolve_game` spells it.
        num_actions: size of the discrete action set, or length of a continuous action vector.
        continuous: whether actions are vectors.
        codec: settings of the codec; its ``frame_stack`` is the observation's.
        dynamics: settings of the dynamics.
        bf16: whether inference computes its matrix products in bfloat16.
        phase_bits: binary digits of the phase that the dynamics and an agent of ``"objects"`` are told: how many
            emulator frames were waited before an episode's first step, modulo those of a step. A game that moves things
            in every second frame only looks the same in both phases and goes on differently. 0: neither is told.
    """

    game: str = "Pong"
    num_actions: int = 6
    continuous: bool = False
    codec: VQVAEConfig = field(default_factory=VQVAEConfig)
    dynamics: DynamicsConfig = field(default_factory=ConvLSTMConfig)
    bf16: bool = True
    phase_bits: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if type(self.codec) not in CODECS:
            raise ConfigError(
                f"codec: expected settings named in dreamgym.world_model.CODECS, got {type(self.codec).__name__}; "
                f"add CODECS[{type(self.codec).__name__}] = the codec's class."
            )
        if self.num_actions < 1:
            raise ConfigError(f"num_actions: expected at least 1, got {self.num_actions}.")
        if not 0 <= self.phase_bits <= MOST_PHASE_BITS:
            raise ConfigError(f"phase_bits: expected 0 to {MOST_PHASE_BITS}, got {self.phase_bits}.")
        if getattr(self.dynamics, "wraps", False) and not self.codec.aligned:
            # The edges of the screen are no neighbours.
            raise ConfigError("dynamics.wraps: expected False where the codec is not aligned; set codec.aligned=True.")
        if getattr(self.dynamics, "motion", False) and not self.codec.sprites:
            raise ConfigError("dynamics.motion: expected False where codes have no sprites; set codec.sprites=True.")
        _check_sizes(self)


def _check_sizes(config: Any, prefix: str = "") -> None:
    """No whole number of a configuration, nested ones included, may be larger than any network needs."""
    for part in fields(config):
        name, value = f"{prefix}{part.name}", getattr(config, part.name)
        if is_dataclass(value):
            _check_sizes(value, f"{name}.")
        elif isinstance(value, int) and value > LARGEST:
            raise ConfigError(f"{name}: expected at most {LARGEST:,}, got {value:,}.")


class WorldModel(nn.Module):
    """Codec and dynamics, with inference that needs no knowledge of either.

    Args:
        config: what to build.
        seed: of the random weights; None draws them from torch's global generator.
    """

    def __init__(self, config: WorldModelConfig, seed: int | None = None) -> None:
        """Build the networks with random weights."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            # Of another codec nobody asks for more than Codec has, as long as its settings do not ask for that.
            self.codec: VQVAE = CODECS[type(config.codec)](config.codec)
            sides = {"cell": config.codec.cell} if isinstance(config.dynamics, MultiscaleConfig) else {}
            self.dynamics = DYNAMICS[type(config.dynamics)](
                config.dynamics, self.codec.embedding_shape, self.codec.num_codes, self.act_size, **sides
            )
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def num_actions(self) -> int:
        """Size of the action set, or length of the action vector."""
        return self.config.num_actions

    @property
    def act_size(self) -> int:
        """Length of an action as the dynamics and agents are told it, phase included."""
        return self.config.num_actions + self.config.phase_bits

    def acts(self, actions: Tensor, digits: Tensor) -> Tensor:
        """Actions as the dynamics are told them.

        Args:
            actions: (...) int64, or (..., num_actions) float32 if continuous.
            digits: (..., phase_bits) float32, see :meth:`phase_digits`.

        Returns:
            The actions where no phase is told, else (..., act_size) float32.
        """
        if not self.config.phase_bits:
            return actions
        vectors = action_vectors(actions, self.num_actions)
        return torch.cat([vectors, digits.expand(*vectors.shape[:-1], -1)], dim=-1)

    def phase_digits(self, phases: npt.ArrayLike | Tensor) -> Tensor:
        """Binary digits (..., phase_bits) float32 of phases (...), the lowest first."""
        phases = torch.as_tensor(phases, device=self.device).long()
        return (phases.unsqueeze(-1) >> torch.arange(self.config.phase_bits, device=self.device) & 1).float()

    @property
    def frame_stack(self) -> int:
        """Frames stacked in one observation of the codec."""
        return self.config.codec.frame_stack

    @contextmanager
    def inference(self) -> Generator[None]:
        """No gradients, running statistics, and bfloat16 products if the configuration says so."""
        if self.training or self.codec.training or self.dynamics.training:
            self.eval()
        with torch.no_grad(), self.mixed_precision(self.config.bf16):
            yield

    def mixed_precision(self, wanted: bool) -> torch.autocast:
        """Matrix products in bfloat16 where that is wanted and faster on this machine."""
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=wanted and bf16_is_faster(kind))

    def encode(self, frames: npt.NDArray[np.uint8] | Tensor, chunk: int = 256) -> Tensor:
        """p(z_t | s_t), always in float32 and with running statistics, so that a frame has one latent.

        Args:
            frames: (batch, C, H, W) uint8.
            chunk: frames encoded at once.

        Returns:
            (batch, height, width) int64 on the model's device.

        Raises:
            InvalidInputError: frames of another shape or type.
        """
        tensor = torch.as_tensor(frames)
        if tuple(tensor.shape[1:]) != tuple(self.codec.frame_shape) or tensor.dtype != torch.uint8:
            raise InvalidInputError(
                f"frames: expected uint8 (batch, {', '.join(map(str, self.codec.frame_shape))}), got {tensor.dtype} "
                f"{tuple(tensor.shape)}."
            )
        with self.inference(), torch.autocast(self.device.type, enabled=False):
            return torch.cat([self.codec.encode(part.to(self.device)) for part in tensor.split(chunk)])

    def embed(self, latents: Tensor) -> Tensor:
        """Latents (batch, height, width) to features float32 (batch, channels, height, width)."""
        return self.codec.embed(latents)

    def shown(self, latents: Tensor) -> Tensor:
        """Latents (batch, height, width) as the dynamics take them: themselves, or their features, as of ``embed``."""
        if not self.dynamics.takes_codes:
            return self.codec.embed(latents)
        self.dynamics.look_up(self.codec.quantizer.codes, self.codec.sprites, self.codec.rest, self.codec.offset)
        return latents

    def decode(self, latents: Tensor, chunk: int = 256) -> Tensor:
        """Mean of p(s_t | z_t) as an image.

        Args:
            latents: (batch, height, width) int64.
            chunk: frames decoded at once.

        Returns:
            (batch, C, H, W) uint8 on the model's device.

        Raises:
            InvalidInputError: latents of another shape or type or, on the CPU, codes that there are not.
        """
        self._check_latents(latents)
        with self.inference():
            parts = [self.codec.decode(part).mul(255).round().to(torch.uint8) for part in latents.split(chunk)]
        return torch.cat(parts)

    def _check_latents(self, latents: Any) -> None:
        expected = f"expected an int64 tensor (batch, {', '.join(map(str, self.codec.latent_shape))})"
        if not isinstance(latents, Tensor):
            raise InvalidInputError(f"latents: {expected}, got {type(latents).__name__}.")
        if tuple(latents.shape[1:]) != tuple(self.codec.latent_shape) or latents.dtype != torch.int64:
            raise InvalidInputError(f"latents: {expected}, got {latents.dtype} {tuple(latents.shape)}.")
        if latents.device.type == "cpu" and latents.numel():
            low, high = int(latents.min()), int(latents.max())
            if low < 0 or high >= self.codec.num_codes:
                raise InvalidInputError(f"latents: expected codes in [0, {self.codec.num_codes}), got {low} to {high}.")

    def initial_state(self, batch: int, elapsed: Tensor | None = None) -> Any:
        """The dynamics' state before the first step of ``batch`` sequences.

        Args:
            batch: how many.
            elapsed: (batch,) int64, steps from the last reward, or the episode's start, to the first latent; None where
                it is not known.
        """
        return self.dynamics.initial_state(batch, self.device, elapsed)

    def step(self, latents: Tensor, actions: Tensor, state: Any) -> tuple[Prediction, Any]:
        """One imagined step (Robine et al. 2023, Eq. 13).

        Args:
            latents: (batch, height, width) int64, z_t.
            actions: (batch,) int64 or (batch, num_actions) float32, a_t; with a phase see :meth:`acts`.
            state: h_{t-1}.

        Returns:
            (distributions of z_{t+1}, r_t and d_t, state h_t).

        Raises:
            InvalidInputError: not one action for each latent.
        """
        if len(latents) != len(actions):
            raise InvalidInputError(f"actions: expected {len(latents)}, one for each latent, got {len(actions)}.")
        with self.inference():
            return self.dynamics.step(self.shown(latents), actions, state)

    def draw_latent(
        self, prediction: Prediction, uniforms: Tensor, temperature: float = 1.0, rewards: Tensor | None = None
    ) -> Tensor:
        """Draw z_{t+1} from a step's prediction (Eq. 15).

        Args:
            prediction: of :meth:`step`.
            uniforms: (batch, height, width) float32 in [0, 1), one a cell.
            temperature: divides the scores; 0 takes the most likely code of every cell.
            rewards: (batch,) int64 in {-1, 0, 1}, of :meth:`draw_reward` for the same step; None takes the likeliest
                where the latent goes by the reward.

        Returns:
            (batch, height, width) int64.
        """
        with self.inference():
            if rewards is not None:
                prediction = self.dynamics.given_reward(prediction, rewards)
            return self.dynamics.draw_latent(prediction, uniforms, temperature)

    def draw_reward(self, prediction: Prediction, uniforms: Tensor, before: Any, after: Any) -> tuple[Tensor, Any]:
        """Draw r_t from a step's prediction (Eq. 16), and tell the dynamics.

        A point whose chance spreads over steps would otherwise be paid in each of them: nothing says that it is over.

        Args:
            prediction: of :meth:`step`.
            uniforms: (batch,) float32 in [0, 1).
            before: the state that the step was given.
            after: the state that came of it.

        Returns:
            (rewards (batch,) int64 in {-1, 0, 1}, the state with them).
        """
        rewards = sample_categorical(prediction.reward_logits, uniforms) - NO_REWARD
        return rewards, self.dynamics.told_reward(before, after, rewards != 0)

    def latent_log_probability(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """How likely given next latents are, cell by cell, at temperature 1.

        Args:
            prediction: of one step or of a window.
            latents: (..., height, width) int64.

        Returns:
            Natural logarithm of the probability, (..., height, width) float32, at most 0.
        """
        with self.inference():
            return self.dynamics.latent_log_probability(prediction, latents)

    def hidden(self, state: Any) -> Tensor:
        """H of a state as a policy may see it, (batch, channels, height, width) float32."""
        return self.dynamics.hidden(state).float()

    def parameter_counts(self) -> dict[str, int]:
        """Numbers learned by part (the codebook's by moving averages); ``dynamics`` is without the end head."""
        end_head = parameter_count(self.dynamics.end_head)
        return {
            **self.codec.parameter_counts(),
            "dynamics": parameter_count(self.dynamics) - end_head,
            "end_head": end_head,
        }
