"""Dynamics: features and action to the distributions of the next latent, the reward and the end.

The default is the two-cell convolutional LSTM of Robine et al. 2023, Sect. 3.2.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.errors import ConfigError
from dreamgym.models.layers import MapLayerNorm, one_hot_planes
from dreamgym.models.losses import code_log_probability, latent_cross_entropy
from dreamgym.models.map_conv import MapConv
from dreamgym.streams import sample_categorical

_AT_ONCE = 128
"""Inputs convolved together on a CPU: what more of them come to does not stay in its caches."""


class Prediction(NamedTuple):
    """Distributions at one step (leading axis batch) or over a window (leading axes batch, time).

    Attributes:
        latent: (..., channels, height, width), what the latent head made of the step. Where cells are drawn
            independently these are the scores U of Robine et al. 2023, Eq. 15, and channels the codes; else what a head
            that draws them in turn needs. :meth:`Dynamics.draw_latent` and :meth:`Dynamics.latent_logits` know which.
        reward_logits: (..., 3), the scores V of Eq. 16 for rewards -1, 0, 1.
        end_logit: (...,), log-odds that the episode ends with this step.
    """

    latent: Tensor
    reward_logits: Tensor
    end_logit: Tensor

    def expected_reward(self) -> Tensor:
        """Mean of the reward's distribution, (...,) float32 in [-1, 1]."""
        chances = torch.softmax(self.reward_logits.float(), dim=-1)
        return chances[..., 2] - chances[..., 0]

    def sample_reward(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw of the reward, (...,) float32 in {-1, 0, 1}."""
        chances = torch.softmax(self.reward_logits.float(), dim=-1)
        return torch.multinomial(chances.flatten(0, -2), 1, generator=generator).view(chances.shape[:-1]).float() - 1

    def end_probability(self) -> Tensor:
        """Chance that the episode ends with this step, (...,) float32."""
        return torch.sigmoid(self.end_logit.float())


class Dynamics(Protocol):
    """What everything above the networks knows of a dynamics model. State is a NamedTuple of tensors, batch first."""

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the hidden features h_t."""
        ...

    @property
    def looks_back(self) -> int:
        """Steps at the start of a window that are only shown in training, with :meth:`remember`; 0 for none."""
        ...

    @property
    def takes_codes(self) -> bool:
        """Whether "features" are the latents themselves, (..., height, width) int64, and :meth:`look_up` tells more."""
        ...

    def look_up(
        self,
        codebook: Tensor,
        sprites: Tensor | None = None,
        rest: Tensor | None = None,
        origin: Tensor | None = None,
    ) -> None:
        """Take what the codec's codes are, before latents are shown and drawn; only where ``takes_codes``.

        :meth:`dreamgym.world_model.WorldModel.shown` does so whenever it shows latents.

        Args:
            codebook: (num_codes, channels), their embeddings.
            sprites: (num_codes, cell, cell), their looks, see :class:`dreamgym.models.codecs.VQVAE`; None: unknown.
            rest: (height, width) int64, the codes of the background; None: unknown.
            origin: (2,) int64, the pixel of the grid where the screen begins; None: they begin together.
        """
        ...

    def remember(self, features: Tensor, actions: Tensor, state: Any, rewards: Tensor) -> Any:
        """The state after a window (batch, time, ...), predicting nothing; only where ``looks_back`` is not 0."""
        ...

    def initial_state(self, batch: int, device: torch.device | None = None, elapsed: Tensor | None = None) -> Any:
        """The state before the first step, ``elapsed`` (batch,) int64 steps after the last reward; None: unknown."""
        ...

    def step(self, features: Tensor, action: Tensor, state: Any) -> tuple[Prediction, Any]:
        """Features (batch, channels, height, width), or latents, and actions (batch,) to prediction and next state."""
        ...

    def sequence(
        self, features: Tensor, actions: Tensor, state: Any, rewards: Tensor | None = None, ends: Tensor | None = None
    ) -> tuple[Prediction, Any]:
        """The same for (batch, time, ...), with the true features, rewards and ends of every step given."""
        ...

    def told_reward(self, before: Any, after: Any, rewarded: Tensor) -> Any:
        """The state ``after`` a step from ``before``, where a dream has drawn whether there was a reward.

        Without it a state only knows what was likely.

        Args:
            before: the state that the step began with.
            after: what :meth:`step` made of it.
            rewarded: (batch,) bool.
        """
        ...

    def given_reward(self, prediction: Prediction, rewards: Tensor) -> Prediction:
        """The prediction of a step whose reward (batch,) int64 in {-1, 0, 1} is known, where the latent goes by it."""
        ...

    def latent_logits(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Scores of the next latent's codes, cell by cell, where the next latent is ``latents``.

        Args:
            prediction: of one step or of a window.
            latents: (..., height, width) int64. A model that draws cells in turn shows each the cells before it.

        Returns:
            (..., codes, height, width) float32. A model that draws more than cells has told them what that came to.
        """
        ...

    def latent_log_probability(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Log-chances (..., height, width) whose sum is at most that of the next latents (..., height, width) int64."""
        ...

    def latent_loss(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """What the latent head is fitted by: (...,) nats, where the next latents are (..., height, width) int64."""
        ...

    def draw_latent(self, prediction: Prediction, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw the next latent of one step.

        Args:
            prediction: of one step.
            uniforms: (batch, height, width) float32 in [0, 1), one a cell.
            temperature: divides the scores; 0 takes the most likely code of every cell.

        Returns:
            (batch, height, width) int64.
        """
        ...

    def hidden(self, state: Any) -> Tensor:
        """H of a state, (batch, channels, height, width) float32, as a policy may see it."""
        ...


@dataclass(frozen=True)
class ConvLSTMConfig:
    """Settings of the ConvLSTM.

    Attributes:
        hidden: channels of each cell (the paper's is 128).
        kernel: side of the gates' convolutions.
        reward_hidden: units of the reward head's linear layer (the paper's is 512).
        end_head: whether the end of the episode is predicted (not in the paper, its own future work).
        latent_skip: whether the latent head also sees the current features: most cells keep their code.
        patch: side of the square of latent cells that is one cell of the LSTM: 2 runs a 12x12 latent on a 6x6 grid,
            with the features of four cells side by side in its channels.
    """

    hidden: int = 128
    kernel: int = 5
    reward_hidden: int = 512
    end_head: bool = True
    latent_skip: bool = False
    patch: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.hidden < 1 or self.reward_hidden < 1 or self.patch < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                "hidden, reward_hidden and patch must be at least 1 and kernel odd, got "
                f"{self.hidden}, {self.reward_hidden}, {self.patch} and {self.kernel}."
            )


class CellState(NamedTuple):
    """Output h and memory c of one cell, each (batch, hidden, height, width) float32."""

    output: Tensor
    memory: Tensor


class ConvLSTMState(NamedTuple):
    """State of the two cells, each tensor (batch, hidden, height, width) float32."""

    output_1: Tensor
    memory_1: Tensor
    output_2: Tensor
    memory_2: Tensor


class ConvLSTMCell(nn.Module):
    """A convolutional LSTM cell with layer norms and peepholes (Shi et al. 2015; Ba et al. 2016, Appendix).

    Input-to-gates and hidden-to-gates convolutions have their own LayerNorm and no bias; there is one bias per gate
    channel; input and forget gates see the memory, the output gate sees the new memory; the forget gate starts open.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int, height: int, width: int) -> None:
        """Build the cell."""
        super().__init__()
        self.input_conv = MapConv(inputs, 4 * hidden, kernel, height, width)
        self.hidden_conv = MapConv(hidden, 4 * hidden, kernel, height, width)
        self.input_norm = MapLayerNorm([4 * hidden, height, width])
        self.hidden_norm = MapLayerNorm([4 * hidden, height, width])
        self.bias = nn.Parameter(torch.zeros(4 * hidden, 1, 1))
        self.peepholes = nn.Parameter(torch.zeros(3, hidden, 1, 1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def input_gates(self, inputs: Tensor, batch: int) -> Iterator[Tensor]:
        """The inputs' share of the gates, step by step, for several steps at once where there are few inputs in one.

        Args:
            inputs: (time * batch, inputs, height, width), time first.
            batch: of a step.

        Returns:
            For each step (batch, 4 hidden, height, width) float32.
        """
        prepared = self.input_conv.prepare()
        steps = max(1, _AT_ONCE // batch) if inputs.device.type == "cpu" else len(inputs)
        for part in inputs.split(steps * batch):
            yield from self.input_norm(self.input_conv(part, prepared), self.bias).split(batch)

    def advance(self, input_gates: Tensor, state: CellState, prepared: Tensor) -> CellState:
        """One step, given :meth:`input_gates` of its input and the prepared weights of ``hidden_conv``."""
        gates = input_gates + self.hidden_norm(self.hidden_conv(state.output, prepared))
        entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
        peep_entry, peep_forget, peep_exit = self.peepholes.unbind()
        entry = torch.sigmoid(entry + peep_entry * state.memory)
        forget = torch.sigmoid(forget + peep_forget * state.memory + 1)
        memory = forget * state.memory + entry * torch.tanh(candidate)
        output = torch.sigmoid(exit_ + peep_exit * memory) * torch.tanh(memory)
        return CellState(output, memory)

    def unroll(self, inputs: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """Several steps whose inputs are known: their gates in few convolutions, and the recurrence.

        Args:
            inputs: (time * batch, inputs, height, width), time first, so that a step is one block of memory.
            state: before the first step.

        Returns:
            (outputs (time * batch, hidden, height, width), state after the last step).
        """
        batch = len(state.memory)
        outputs: list[Tensor] = []
        prepared = self.hidden_conv.prepare()
        for step_gates in self.input_gates(inputs, batch):
            state = self.advance(step_gates, state, prepared)
            outputs.append(state.output)
        return torch.cat(outputs), state


class RewardHead(nn.Sequential):
    """Conv 1x1 -> LayerNorm -> LeakyReLU -> two linear layers (Robine et al. 2023, Fig. 5, top)."""

    def __init__(self, inputs: int, height: int, width: int, hidden: int, outputs: int, channels: int = 32) -> None:
        """Build the head: (batch, inputs, height, width) to (batch, outputs)."""
        super().__init__(
            nn.Conv2d(inputs, channels, 1),
            MapLayerNorm([channels, height, width]),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, outputs),
        )


class ConvLSTM(nn.Module):
    """The recurrent dynamics p(h_t | z_t, a_t, h_{t-1}) with its latent, reward and end heads (Eq. 13-17, Fig. 5)."""

    def __init__(
        self, config: ConvLSTMConfig, embedding_shape: tuple[int, int, int], num_codes: int, num_actions: int
    ) -> None:
        """Build the network for features of ``embedding_shape``, ``num_codes`` codes and ``num_actions`` actions."""
        super().__init__()
        self.config = config
        self.num_actions = num_actions
        channels, height, width = embedding_shape
        if height % config.patch or width % config.patch:
            raise ConfigError(f"patch: expected a divisor of the latent's {height}x{width}, got {config.patch}.")
        self._height, self._width = height // config.patch, width // config.patch
        channels *= config.patch**2
        hidden, kernel, size = config.hidden, config.kernel, (self._height, self._width)
        self.cell_1 = ConvLSTMCell(channels + num_actions, hidden, kernel, *size)
        self.cell_2 = ConvLSTMCell(hidden + num_actions, hidden, kernel, *size)
        trunk = hidden + num_actions
        self.latent_head = nn.Conv2d(trunk + channels * config.latent_skip, num_codes * config.patch**2, 1)
        self.reward_head = RewardHead(trunk, *size, config.reward_hidden, 3)
        self.end_head = RewardHead(trunk, *size, 64, 1, channels=8) if config.end_head else None

    looks_back = 0
    takes_codes = False

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(hidden, height, width)."""
        return self.config.hidden, self._height, self._width

    def initial_state(
        self, batch: int, device: torch.device | None = None, elapsed: Tensor | None = None
    ) -> ConvLSTMState:
        """All zeros, for ``batch`` sequences; the paper's model is not told how long ago the last reward was."""
        device = device or self.latent_head.weight.device
        return ConvLSTMState(*(torch.zeros(batch, *self.hidden_shape, device=device) for _ in range(4)))

    def hidden(self, state: ConvLSTMState) -> Tensor:
        """H of the second cell, (batch, hidden, height, width)."""
        return state.output_2

    def told_reward(self, before: ConvLSTMState, after: ConvLSTMState, rewarded: Tensor) -> ConvLSTMState:
        """The state as it is: it keeps no account of rewards."""
        return after

    def given_reward(self, prediction: Prediction, rewards: Tensor) -> Prediction:
        """The prediction as it is: the latent does not go by the reward."""
        return prediction

    def step(self, features: Tensor, action: Tensor, state: ConvLSTMState) -> tuple[Prediction, ConvLSTMState]:
        """One step: a sequence of length one.

        Args:
            features: (batch, channels, height, width), the embedding of z_t.
            action: (batch,) int64, or (batch, num_actions) float32 if continuous.
            state: h_{t-1}.

        Returns:
            (prediction of z_{t+1}, r_t and d_t, state h_t).
        """
        prediction, state = self.sequence(features[:, None], action[:, None], state)
        return Prediction(*(tensor[:, 0] for tensor in prediction)), state

    def sequence(
        self,
        features: Tensor,
        actions: Tensor,
        state: ConvLSTMState,
        rewards: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> tuple[Prediction, ConvLSTMState]:
        """Predict every step of a window from the true features and actions up to it.

        Args:
            features: (batch, time, channels, height, width).
            actions: (batch, time) int64, or (batch, time, num_actions) float32.
            state: before the first step.
            rewards: (batch, time), part of the seam; this model does not feed them back.
            ends: (batch, time) bool, likewise.

        Returns:
            (prediction with leading axes (batch, time), state after the last step).
        """
        batch, time = features.shape[:2]
        maps = F.pixel_unshuffle(features.transpose(0, 1).flatten(0, 1), self.config.patch)
        maps = maps.contiguous(memory_format=torch.channels_last)
        planes = one_hot_planes(actions.transpose(0, 1).flatten(0, 1), self.num_actions, self._height, self._width)
        first, state_1 = self.cell_1.unroll(torch.cat([maps, planes], dim=1), CellState(state.output_1, state.memory_1))
        second, state_2 = self.cell_2.unroll(
            torch.cat([first, planes], dim=1), CellState(state.output_2, state.memory_2)
        )
        trunk = torch.cat([second, planes], dim=1)
        latent_inputs = torch.cat([trunk, maps], dim=1) if self.config.latent_skip else trunk
        latent_logits = F.pixel_shuffle(self.latent_head(latent_inputs), self.config.patch)
        heads = latent_logits, self.reward_head(trunk), self._end_logits(trunk)
        prediction = Prediction(*(head.float().unflatten(0, (time, batch)).transpose(0, 1) for head in heads))
        return prediction, ConvLSTMState(*state_1, *state_2)

    def latent_logits(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """The scores U (Eq. 15): every cell is drawn independently."""
        return prediction.latent

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
        """Cross-entropy of the cells' codes (Eq. 14-15): (...,) nats."""
        return latent_cross_entropy(self.latent_logits(prediction, latents), latents)

    def draw_latent(self, prediction: Prediction, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw every cell of the next latent on its own."""
        return sample_categorical(prediction.latent, uniforms, temperature)

    def _end_logits(self, trunk: Tensor) -> Tensor:
        if self.end_head is None:
            # Eq. 17: the model itself never ends an episode, only the horizon does.
            return torch.full((len(trunk),), -torch.inf, device=trunk.device)
        return self.end_head(trunk)[:, 0]
