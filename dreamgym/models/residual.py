"""Feed-forward dynamics: a residual network on the last few latents and actions, all steps of a window at once.

What the ConvLSTM of Robine et al. 2023 (Sect. 3.2.2) has to remember, this network is shown: DIAMOND (Alonso et al.
2024) and SimPLe (Kaiser et al. 2020) condition on the last four frames in the same way. Nothing is carried from step to
step but these latents and a clock, so a window is one batch of independent steps: large matrix products instead of a
long chain of small ones.

The clock counts the steps since the last reward. What a game does next often depends on nothing else: Pong serves 16
steps after a point, when the last four frames show the same empty field as 12 steps before. Without it the chance of a
serve hardly grows with time, and at a low temperature most dreams see no ball after the first point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.errors import ConfigError
from dreamgym.models.dynamics import Prediction, RewardHead
from dreamgym.models.joint import JointLatentHead, drop_unlikely
from dreamgym.models.layers import Conv3x3, one_hot_planes
from dreamgym.models.losses import NO_REWARD, code_log_probability, latent_cross_entropy, reward_classes
from dreamgym.replay import LONGEST_ELAPSED
from dreamgym.streams import sample_categorical

REWARDED = 0.3
"""Chance of a reward from which the clock is set back where no reward is given or drawn.

Below one half: a point's chance may spread over steps."""


@dataclass(frozen=True)
class ResidualConfig:
    """Settings of the feed-forward dynamics.

    Attributes:
        memory: latents and actions seen, the newest included.
        channels: of the residual blocks.
        blocks: residual blocks of two 3x3 convolutions.
        embedding: channels in which one latent is shown to the blocks.
        patch: side of the square of latent cells that becomes one cell of the blocks' grid: 2 runs a 12x12 latent on
            6x6.
        clock: largest number of steps since the last reward that is told from larger ones; 0 shows no clock.
        joint: channels of the head that draws a latent's cells in turn (:mod:`dreamgym.models.joint`); 0 draws every
            cell on its own.
        least_chance: no code is drawn whose chance, at temperature 1, is less than this share of the likeliest one's:
            of 144 cells a step, one in seven steps gets what happens once in a thousand draws.
        reward_hidden: units of the reward head's linear layer.
        end_head: whether the end of the episode is predicted.
        dropout: share of channels that a block does not add, in training.
        reward_dropout: share of channels that the reward head does not see, in training: rewards are few.
    """

    memory: int = 4
    channels: int = 128
    blocks: int = 3
    embedding: int = 64
    patch: int = 2
    clock: int = 0
    joint: int = 0
    least_chance: float = 0.0
    reward_hidden: int = 128
    end_head: bool = True
    dropout: float = 0.1
    reward_dropout: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("memory", "channels", "embedding", "patch", "reward_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if min(self.blocks, self.clock, self.joint) < 0:
            raise ConfigError(
                f"blocks, clock and joint: expected at least 0, got {self.blocks}, {self.clock} and {self.joint}."
            )
        if self.clock > LONGEST_ELAPSED:
            # No longer time is ever seen in training.
            raise ConfigError(f"clock: expected at most {LONGEST_ELAPSED}, got {self.clock}.")
        for name in ("dropout", "reward_dropout", "least_chance"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)}.")


class ResidualState(NamedTuple):
    """What was seen before the newest latent, and what was made of it."""

    seen: Tensor
    """(batch, memory - 1, embedding + actions, height, width) float32, oldest first; zeros before the first step."""
    trunk: Tensor
    """(batch, channels, height, width) float32: the last step's features, before its heads."""
    elapsed: Tensor
    """(batch,) int64: steps since the last reward, ``clock`` for that many or more."""


class ResidualBlock(nn.Module):
    """ReLU -> Conv 3x3 -> ReLU -> Conv 3x3, plus the input; the block begins as the identity (He et al. 2016).

    In training, whole channels of what it adds are dropped (Tompson et al. 2015).
    """

    def __init__(self, channels: int, dropout: float, wraps: bool = False) -> None:
        """Build the block."""
        super().__init__()
        self.first = Conv3x3(channels, channels, wraps)
        self.second = Conv3x3(channels, channels, wraps)
        # Without norms a deep sum starts tame if every term starts at zero (Zhang et al. 2019, Fixup).
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        return inputs + self.dropout(self.second(F.relu(self.first(F.relu(inputs)))))


def steps_since(before: Tensor, rewarded: Tensor | None, time: int, longest: int) -> Tensor:
    """A dream's clock over a window.

    Args:
        before: (batch,) int64, steps since the last reward at its beginning.
        rewarded: (batch, time) bool, whether a step brings one; None where none does.
        time: steps of the window.
        longest: largest number told.

    Returns:
        (batch, time + 1) int64: before every step and after the last.
    """
    steps = torch.arange(time + 1, device=before.device)
    elapsed = before[:, None] + steps
    if rewarded is not None:
        # The last step before each at which there was a reward, counted from 1; 0 where there was none.
        last = (rewarded * steps[1:]).cummax(dim=1).values
        last = F.pad(last, (1, 0))
        elapsed = torch.where(last > 0, steps - last, elapsed)
    return elapsed.clamp(max=longest)


def one_by_one(
    sequence: Callable[[Tensor, Tensor, Any], tuple[Prediction, Any]], features: Tensor, actions: Tensor, state: Any
) -> tuple[Prediction, Any]:
    """A window whose rewards are not known: every step's clock depends on what was predicted before it."""
    parts: list[Prediction] = []
    for step in range(features.shape[1]):
        prediction, state = sequence(features[:, step : step + 1], actions[:, step : step + 1], state)
        parts.append(prediction)
    return Prediction(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))), state


class ResidualDynamics(nn.Module):
    """p(z_{t+1}, r_t, d_t | z_{t-k+1..t}, a_{t-k+1..t}) with k = ``memory``; the heads are those of the ConvLSTM."""

    def __init__(
        self, config: ResidualConfig, embedding_shape: tuple[int, int, int], num_codes: int, num_actions: int
    ) -> None:
        """Build the network for features of ``embedding_shape``, ``num_codes`` codes and ``num_actions`` actions."""
        super().__init__()
        self.config = config
        self.num_actions = num_actions
        channels, height, width = embedding_shape
        if height % config.patch or width % config.patch:
            raise ConfigError(f"patch: expected a divisor of the latent's {height}x{width}, got {config.patch}.")
        if config.joint and min(height, width) < 2:
            raise ConfigError(f"joint: expected latents of at least 2x2 cells, got {height}x{width}.")
        self._height, self._width = height // config.patch, width // config.patch
        self.embed = nn.Conv2d(channels, config.embedding, config.patch, stride=config.patch)
        self.inputs = nn.Conv2d(config.memory * (config.embedding + num_actions), config.channels, 3, padding=1)
        self.clock = nn.Linear(config.clock + 1, config.channels, bias=False) if config.clock else None
        self.blocks = nn.Sequential(*(ResidualBlock(config.channels, config.dropout) for _ in range(config.blocks)))
        # Most cells keep their code: the latent head sees the newest latent besides the trunk.
        outputs = config.joint or num_codes
        self.latent_head = nn.Conv2d(config.channels + config.embedding, outputs * config.patch**2, 1)
        # Cells drawn in turn are drawn from features, all others from scores.
        self.joint = JointLatentHead(config.joint, num_codes, config.least_chance) if config.joint else None
        self.reward_dropout = nn.Dropout2d(config.reward_dropout)
        self.reward_head = RewardHead(config.channels, self._height, self._width, config.reward_hidden, 3)
        self.end_head = (
            RewardHead(config.channels, self._height, self._width, 64, 1, channels=8) if config.end_head else None
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    looks_back = 0
    takes_codes = False

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the trunk's features."""
        return self.config.channels, self._height, self._width

    def initial_state(
        self, batch: int, device: torch.device | None = None, elapsed: Tensor | None = None
    ) -> ResidualState:
        """Nothing seen yet, for ``batch`` sequences; ``elapsed`` (batch,) steps since the last reward, else unknown."""
        device = device or self.latent_head.weight.device
        longest = torch.full((batch,), self.config.clock, device=device)
        shown = self.config.embedding + self.num_actions
        seen = torch.zeros(batch, self.config.memory - 1, shown, self._height, self._width, device=device)
        since = longest if elapsed is None else torch.minimum(elapsed.to(longest), longest)
        return ResidualState(seen, torch.zeros(batch, *self.hidden_shape, device=device), since)

    def hidden(self, state: ResidualState) -> Tensor:
        """The trunk's features at the last step, (batch, channels, height, width)."""
        return state.trunk

    def step(self, features: Tensor, action: Tensor, state: ResidualState) -> tuple[Prediction, ResidualState]:
        """One step: a sequence of length one.

        Args:
            features: (batch, channels, height, width), the embedding of z_t.
            action: (batch,) int64, or (batch, num_actions) float32 if continuous.
            state: what was seen before.

        Returns:
            (prediction of z_{t+1}, r_t and d_t, state after this step).
        """
        prediction, state = self.sequence(features[:, None], action[:, None], state)
        return Prediction(*(tensor[:, 0] for tensor in prediction)), state

    def told_reward(self, before: ResidualState, after: ResidualState, rewarded: Tensor) -> ResidualState:
        """The state after a step whose reward, (batch,) bool, was drawn and not only foretold: it sets the clock."""
        elapsed = steps_since(before.elapsed, rewarded[:, None], 1, self.config.clock)
        return after._replace(elapsed=elapsed[:, 1])

    def given_reward(self, prediction: Prediction, rewards: Tensor) -> Prediction:
        """The prediction as it is: the latent does not go by the reward."""
        return prediction

    def sequence(
        self,
        features: Tensor,
        actions: Tensor,
        state: ResidualState,
        rewards: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> tuple[Prediction, ResidualState]:
        """Predict every step of a window from the true features and actions up to it.

        Args:
            features: (batch, time, channels, height, width).
            actions: (batch, time) int64, or (batch, time, num_actions) float32.
            state: before the first step.
            rewards: (batch, time), which set the clock back; without them the predicted ones do.
            ends: (batch, time) bool, part of the seam; this model does not feed them back.

        Returns:
            (prediction with leading axes (batch, time), state after the last step).
        """
        batch, time = features.shape[:2]
        if rewards is None and self.clock is not None and time > 1:
            return one_by_one(self.sequence, features, actions, state)
        rewarded = None if rewards is None else reward_classes(rewards) != NO_REWARD
        elapsed = steps_since(state.elapsed, rewarded, time, self.config.clock)
        embedded = self.embed(features.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        planes = one_hot_planes(actions.flatten(0, 1), self.num_actions, self._height, self._width)
        # Channels last from here on: (batch, time, height, width, channels).
        new = torch.cat([embedded, planes.to(embedded.dtype)], dim=1).permute(0, 2, 3, 1).unflatten(0, (batch, time))
        seen = torch.cat([state.seen.permute(0, 1, 3, 4, 2).to(new.dtype), new], dim=1)
        shown = torch.cat([seen[:, lag : lag + time] for lag in range(self.config.memory)], dim=-1)
        inputs = self.inputs(shown.flatten(0, 1).permute(0, 3, 1, 2))
        if self.clock is not None:
            since = F.embedding(elapsed[:, :time].flatten(), self.clock.weight.T)
            inputs = inputs + since.to(inputs.dtype)[:, :, None, None]
        trunk = F.relu(self.blocks(inputs))
        latent = self._latent_outputs(torch.cat([trunk, embedded], dim=1))
        heads = latent, self.reward_head(self.reward_dropout(trunk)).float(), self._end_logits(trunk).float()
        prediction = Prediction(*(head.unflatten(0, (batch, time)) for head in heads))
        kept = seen[:, time:].permute(0, 1, 4, 2, 3).float()
        if rewards is None:
            chances = torch.softmax(prediction.reward_logits.detach(), dim=-1)
            elapsed = steps_since(state.elapsed, 1 - chances[..., NO_REWARD] > REWARDED, time, self.config.clock)
        return prediction, ResidualState(kept, trunk.unflatten(0, (batch, time))[:, -1].float(), elapsed[:, time])

    def _latent_outputs(self, inputs: Tensor) -> Tensor:
        """(count, channels, grid) to (count, outputs, height, width), a cell's outputs side by side in memory."""
        side = self.config.patch
        rows = self.latent_head(inputs).permute(0, 2, 3, 1).unflatten(-1, (side, side, -1))
        return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1).float()

    def latent_logits(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Scores (..., codes, height, width) of the next latent's cells; ``latents`` shows the groups drawn before."""
        if self.joint is None:
            return prediction.latent
        flat = self.joint.logits(prediction.latent.flatten(0, -4), latents.flatten(0, -3))
        return flat.unflatten(0, latents.shape[:-2])

    def look_up(
        self,
        codebook: Tensor,
        sprites: Tensor | None = None,
        rest: Tensor | None = None,
        origin: Tensor | None = None,
    ) -> None:
        """Nothing: features are taken."""

    def latent_log_probability(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Log-chances (..., height, width) of the cells' codes."""
        return code_log_probability(self.latent_logits(prediction, latents), latents)

    def latent_loss(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Cross-entropy of the cells' codes: (...,) nats."""
        return latent_cross_entropy(self.latent_logits(prediction, latents), latents)

    def draw_latent(self, prediction: Prediction, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw the next latent (batch, height, width)."""
        if self.joint is None:
            return sample_categorical(drop_unlikely(prediction.latent, self.config.least_chance), uniforms, temperature)
        return self.joint.draw(prediction.latent, uniforms, temperature)

    def _end_logits(self, trunk: Tensor) -> Tensor:
        if self.end_head is None:
            return torch.full((len(trunk),), -torch.inf, device=trunk.device)
        return self.end_head(trunk)[:, 0]
