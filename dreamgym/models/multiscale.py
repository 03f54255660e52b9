"""Dynamics on two grids: what moves is followed on the latent's own grid, what it means is decided on a coarse one.

A ball flies in the same way wherever it is, and a network that is the same at every cell (a convolution on the latent's
own grid) learns that from all places at once. :mod:`dreamgym.models.residual` works on cells of 16 pixels only: inside
them every place is learned anew. Here residual blocks with few channels run on the fine grid, and after them some with
many channels on a coarse grid, which sees far and knows actions, time and place; what they found goes back to the fine
grid, as in a U-Net (Ronneberger et al. 2015) with two levels, and from there to the few cells that may change
(:mod:`dreamgym.models.candidates`). What is drawn there a critic may reject (:mod:`dreamgym.models.critic`). Like the
others it is shown the last few latents and carries nothing else but the clock of :mod:`dreamgym.models.residual`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.errors import ConfigError
from dreamgym.models.candidates import CandidateHead
from dreamgym.models.critic import Critic, critic_loss
from dreamgym.models.dynamics import Prediction, RewardHead
from dreamgym.models.layers import Conv3x3, embed_mostly_alike, side_by_side
from dreamgym.models.losses import NO_REWARD, code_log_probability, reward_classes
from dreamgym.models.motion import (
    STEPS,
    Moving,
    carry,
    find_hidden,
    find_moving,
    going_on,
    hidden_at,
    join,
    next_step,
)
from dreamgym.models.movers import StepHead, StepReward, leaving
from dreamgym.models.permanence import WAYS, may_go, went
from dreamgym.models.places import likely_codes
from dreamgym.models.residual import REWARDED, ResidualBlock, one_by_one, steps_since
from dreamgym.models.things import Things, find_things
from dreamgym.replay import LONGEST_ELAPSED
from dreamgym.streams import anew

REWARDS = 3
"""Classes of a reward: -1, 0 and 1."""

_CHUNK = 512
"""Steps of experience that are looked at at once."""


@dataclass(frozen=True)
class MultiscaleConfig:
    """Settings of the dynamics on two grids.

    Attributes:
        memory: latents and actions seen, the newest included.
        fine: channels on the latent's own grid.
        fine_blocks: residual blocks there.
        embedding: channels in which one latent is shown.
        channels: on the coarse grid.
        blocks: residual blocks there.
        scale: side of the square of latent cells that is one cell of the coarse grid.
        wraps: whether cells at opposite edges are neighbours: an aligned codec, whose grid begins inside the screen,
            shows what crosses an edge of its grid at the other one.
        motion: whether the latent is shown, too, that would come next if all that moves went on
            (:mod:`dreamgym.models.motion`).
        step_hidden: units of the layers that see one thing: with ``motion`` a step is drawn for each,
            and the reward is told of them (:mod:`dreamgym.models.movers`); 0 draws what moves cell by cell.
        seen_places: whether a code is hardly ever drawn but where it, a cell beside it or several of its row or column
            had it in real experience (:mod:`dreamgym.models.places`).
        reward_first: whether the latent is drawn given the step's reward, which is drawn first: a ball that leaves the
            screen and the point that it is worth then come together.
        permanence: whether things go only where things went in real experience, and one that goes without a reward is
            known for one more step, in which it may be back (:mod:`dreamgym.models.permanence`).
        steps_apart: whether a thing's step is foretold from what all latents show around it, from the others and from
            what was done alone, not from what the trunk found, and its rows and columns apart: what few examples show
            of bounces is then not learned by heart.
        clock: largest number of steps since the last reward that is told from larger ones.
        cell_hidden: units of the layers that see one cell which may change.
        least_change: chance of a change from which a cell is looked at; all others keep their code.
        least_chance: no code is drawn whose chance, at temperature 1, is less than this share of the likeliest one's.
        redraws: times that a latent is drawn again, at most, which the critic rejects; 0 has no critic.
        critic_hidden: units of the critic's layers.
        reward_channels: channels on the coarse grid in which the reward head alone is told of the fine one; 0 leaves it
            what the coarse blocks know.
        reward_hidden: units of the reward head's linear layer.
        end_head: whether the end of the episode is predicted.
        coarse_dropout: share of the latents whose fine grid is not told what the coarse one found, in training: what
            can be seen near by, a ball that meets a paddle, is then not learned by heart for every place.
        dropout: share of channels that a block does not add, in training.
        reward_dropout: share of channels that the reward head does not see, in training.
    """

    memory: int = 4
    fine: int = 32
    fine_blocks: int = 1
    embedding: int = 16
    channels: int = 96
    blocks: int = 2
    scale: int = 4
    wraps: bool = False
    motion: bool = False
    step_hidden: int = 0
    seen_places: bool = False
    reward_first: bool = False
    permanence: bool = False
    steps_apart: bool = False
    clock: int = 32
    cell_hidden: int = 128
    least_change: float = 0.001
    least_chance: float = 0.0
    redraws: int = 0
    critic_hidden: int = 64
    reward_channels: int = 0
    reward_hidden: int = 128
    end_head: bool = True
    coarse_dropout: float = 0.0
    dropout: float = 0.0
    reward_dropout: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in (
            "memory",
            "fine",
            "embedding",
            "channels",
            "scale",
            "cell_hidden",
            "critic_hidden",
            "reward_hidden",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        for name in ("fine_blocks", "blocks", "redraws", "reward_channels", "step_hidden"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}.")
        if self.redraws and self.memory < 2:
            raise ConfigError(f"memory: expected at least 2 where there are redraws, got {self.memory}.")
        if self.motion and self.memory < 2:
            raise ConfigError(f"memory: expected at least 2 where what moves is followed, got {self.memory}.")
        if self.step_hidden and not self.motion:
            raise ConfigError("step_hidden: expected 0 where what moves is not followed; set motion=True.")
        if self.reward_first and not self.step_hidden:
            raise ConfigError("reward_first: expected False where no steps are drawn; set it so, or step_hidden.")
        if self.steps_apart and not self.step_hidden:
            raise ConfigError("steps_apart: expected False where no steps are drawn; set it so, or step_hidden.")
        if self.permanence and not self.reward_first:
            raise ConfigError("permanence: expected False where rewards are not drawn first; set reward_first=True.")
        if self.permanence and self.memory < 3:
            raise ConfigError(f"memory: expected at least 3 where things are known to be hidden, got {self.memory}.")
        if not 1 <= self.clock <= LONGEST_ELAPSED:
            # No longer time is ever seen in training.
            raise ConfigError(f"clock: expected 1 to {LONGEST_ELAPSED}, got {self.clock}.")
        for name in ("coarse_dropout", "dropout", "reward_dropout", "least_chance"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)}.")
        if not 0 < self.least_change < 1:
            raise ConfigError(f"least_change: expected more than 0 and less than 1, got {self.least_change}.")


class MultiscaleState(NamedTuple):
    """What was seen and done before the newest latent, and what was made of it."""

    seen: Tensor
    """(batch, memory - 1, height, width) int64, latents, oldest first; ``num_codes`` where nothing was seen yet."""
    acted: Tensor
    """(batch, memory - 1, actions) float32: the actions taken there, one-hot if discrete."""
    trunk: Tensor
    """(batch, channels, coarse height, coarse width) float32: the last step's coarse features, before its heads."""
    elapsed: Tensor
    """(batch,) int64: steps since the last reward, ``clock`` for that many or more."""


class MultiscaleDynamics(nn.Module):
    """p(z_{t+1}, r_t, d_t | z_{t-k+1..t}, a_{t-k+1..t}) with k = ``memory``."""

    went: Tensor | None
    goes: Tensor | None
    codebook: Tensor
    """(num_codes + 1, depth): the codec's codes, on one scale, and zeros for what was not seen."""

    takes_codes = True

    def __init__(
        self,
        config: MultiscaleConfig,
        embedding_shape: tuple[int, int, int],
        num_codes: int,
        num_actions: int,
        cell: int = 4,
    ) -> None:
        """Build the network.

        Args:
            config: its settings.
            embedding_shape: (depth, height, width) of a latent's features.
            num_codes: codes of a cell.
            num_actions: size of the action set, or length of an action vector.
            cell: side of a latent cell in pixels.
        """
        super().__init__()
        self.config = config
        self.num_actions = num_actions
        depth, self._height, self._width = embedding_shape
        fine, channels, scale = config.fine, config.channels, config.scale
        if self._height % scale or self._width % scale:
            raise ConfigError(
                f"scale: expected a divisor of the latent's {self._height}x{self._width}, got {config.scale}."
            )
        self._coarse = self._height // scale, self._width // scale
        self.register_buffer("codebook", torch.zeros(num_codes + 1, depth), persistent=False)
        self.embed = nn.Linear(depth, config.embedding)
        if config.wraps and (self._height % 2 or self._width % 2):
            # Neighbours across the edge would be drawn at once.
            raise ConfigError(f"wraps: expected a latent of even height and width, got {self._height}x{self._width}.")
        self.register_buffer("sprites", torch.zeros(num_codes, 1, 1), persistent=False)
        self.register_buffer("rest", torch.zeros(self._height, self._width, dtype=torch.int64), persistent=False)
        self.register_buffer("origin", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.inputs = Conv3x3((config.memory + config.motion) * config.embedding, fine, config.wraps)
        # What was done and what time it is, for every cell alike.
        self.given = nn.Linear(config.memory * num_actions, fine + channels, bias=False)
        self.clock = nn.Embedding(config.clock + 1, fine + channels)
        self.position = nn.Parameter(torch.zeros(1, channels, *self._coarse))
        self.before = self._blocks(fine, config.fine_blocks)
        self.down = nn.Conv2d(fine, channels, scale, stride=scale)
        self.blocks = self._blocks(channels, config.blocks)
        self.up = nn.Conv2d(channels, fine * scale**2, 1)
        everywhere = torch.ones(self._height, self._width, num_codes, dtype=torch.bool)
        self.latent_head = CandidateHead(
            fine,
            num_codes,
            depth,
            config.cell_hidden,
            config.least_change,
            config.least_chance,
            wraps=config.wraps,
            motion=config.motion,
            places=everywhere if config.seen_places else None,
            rewards=REWARDS if config.reward_first else 0,
        )
        self._cell, self._pixels = cell, (self._height * cell, self._width * cell)
        size, hidden, rewards = self._pixels, config.step_hidden, REWARDS if config.reward_first else 0
        # What was done is told in the first cells of a map.
        self._done = config.memory * num_actions if config.steps_apart else 0
        # Which way a paddle turns is told by more than its last step.
        self._earlier = config.memory - 2 if config.steps_apart else 0
        if self._done > self._height * self._width:
            raise ConfigError(
                f"steps_apart: expected at most {self._height * self._width} numbers of {config.memory} actions, one "
                f"for each cell of a latent, got {self._done}."
            )
        self.step_head = (
            StepHead(
                fine,
                size,
                hidden,
                dropout=0.5 if config.steps_apart else 0.3,
                wraps=config.wraps,
                rewards=rewards,
                permanence=config.permanence,
                actions=self._done,
                memory=2 + self._earlier,
            )
            if hidden
            else None
        )
        # Where things went in real experience, and where they may go.
        nowhere = torch.zeros(self._height, self._width, WAYS, dtype=torch.bool) if config.permanence else None
        self.register_buffer("went", nowhere)
        self.register_buffer("goes", None if nowhere is None else ~nowhere)
        self.critic = (
            Critic(self._height, self._width, depth, scale, config.critic_hidden, wraps=config.wraps)
            if config.redraws
            else None
        )
        # Where exactly a thing is decides on a reward, and matters little for the latents that the trunk is fitted by.
        reward_channels = config.reward_channels
        self.reward_down = nn.Conv2d(fine, reward_channels, scale, stride=scale) if reward_channels else None
        self.reward_steps = StepReward(size) if hidden else None
        self.reward_dropout = nn.Dropout2d(config.reward_dropout)
        self.reward_head = RewardHead(channels + reward_channels, *self._coarse, config.reward_hidden, 3)
        self.end_head = RewardHead(channels, *self._coarse, 64, 1, channels=8) if config.end_head else None
        nn.init.normal_(self.clock.weight, std=0.02)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _blocks(self, channels: int, count: int) -> nn.Sequential:
        return nn.Sequential(*(ResidualBlock(channels, self.config.dropout, self.config.wraps) for _ in range(count)))

    def look_up(
        self,
        codebook: Tensor,
        sprites: Tensor | None = None,
        rest: Tensor | None = None,
        origin: Tensor | None = None,
    ) -> None:
        """Take the codec's codes (num_codes, depth), so that what looks alike is alike from the start."""
        if sprites is not None and rest is not None:
            self.sprites, self.rest = sprites, rest
        if origin is not None:
            self.origin = origin.clamp(min=0)
        centred = codebook - codebook.mean(dim=0)
        scaled = centred / centred.std(dim=0).mean().clamp(min=1e-6)
        # A new tensor: gradients of what was computed before still need the old one.
        self.codebook = F.pad(scaled, (0, 0, 0, 1))

    def learn_places(self, seen: Tensor, rest: Tensor) -> None:
        """Take which codes each cell ever had, where ``seen_places`` asks for it.

        Args:
            seen: (height, width, num_codes) bool.
            rest: (height, width) int64, the codes of the background.
        """
        if self.latent_head.places is not None:
            device = self.latent_head.places.device
            self.latent_head.places = likely_codes(seen.to(device), rest.to(device), self.config.wraps)

    @torch.no_grad()
    def learn_going(self, latents: Tensor, rewards: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Take where things went in real experience, besides where they are known to, where ``permanence`` asks for it.

        Args:
            latents: (steps, height, width) int64, one after the other.
            rewards: (steps,).
            begins: (steps,) bool, whether an episode begins there.

        Returns:
            Of all things that were followed: the index (things,) int64 of the latent from which they made a step, and
            which change (things,) int64 it was of the step before.
        """
        rewarded = reward_classes(rewards) != NO_REWARD
        follows = ~begins.to(rewarded.device)
        # Those that were, and are followed, in the same episode.
        now = (follows[1:-2] & follows[2:-1] & follows[3:]).nonzero()[:, 0] + 2
        found: list[tuple[Tensor, Tensor]] = []
        for at in now.split(_CHUNK):
            oldest, older, newest, following = (latents[at + step] for step in (-2, -1, 0, 1))
            moving = find_moving(older, newest, *self._looks)
            hidden = None
            if self.config.permanence:
                gone = find_hidden(oldest, older, newest, moving, *self._looks)
                paid = rewarded[at - 1] | rewarded[at - 2]
                hidden = hidden_at(older, self._hidden_steps(older, gone, paid), *self._looks)
            joined, number, things = self._followed(moving, hidden, older, newest, following)
            if things is None:
                continue
            if self.went is not None:
                paid = rewarded[at] | rewarded[at - 1]
                went(joined, things, paid, number == STEPS, self.went, self._cell)
            first = things.cell[: things.number]
            found.append((at[joined.cells[first, 0]], joined.step[first] * (STEPS + 1) + number[first]))
        if self.went is not None:
            self.goes = likely_codes(self.went, self.rest, self.config.wraps)
        if not found:
            none = torch.zeros(0, dtype=torch.int64, device=latents.device)
            return none, none
        indices, changes = zip(*found, strict=True)
        return torch.cat(indices), torch.cat(changes)

    def step_losses(
        self, latents: Tensor, actions: Tensor, rewards: Tensor, elapsed: Tensor, following: Tensor
    ) -> Tensor:
        """What the head of steps is fitted by alone, where it needs nothing of the trunk (``steps_apart``).

        Args:
            latents: (batch, memory, height, width) int64, z_{t-k+1..t}.
            actions: (batch, memory) int64, or (batch, memory, num_actions) float32: those taken there.
            rewards: (batch,), r_t.
            elapsed: (batch,) int64, steps from the last reward to z_t.
            following: (batch, height, width) int64, z_{t+1}.

        Returns:
            (things,) nats of the steps that they made.
        """
        older, newest = latents[:, -2], latents[:, -1]
        with torch.no_grad():
            moving, hidden = find_moving(older, newest, *self._looks), None
            if self.config.permanence:
                gone = find_hidden(latents[:, -3], older, newest, moving, *self._looks)
                hidden = self._hidden_steps(older, gone, elapsed <= 1)
            classes = reward_classes(rewards) if self.config.reward_first else None
            told = self._told(classes, elapsed == 0, hidden, self._taken(actions).flatten(1), latents.movedim(1, -1))
            latent = side_by_side([older[:, None], moving.steps(newest)[:, None], *told, newest[:, None]]).float()
            joined, number, things = self._followed(moving, self._hidden(latent), older, newest, following)
        if things is None:
            return torch.zeros(0, device=latents.device)
        scores = self._step_scores(latent, self._prepared(latent), joined, things)
        return F.cross_entropy(scores, number[things.cell[: things.number]], reduction="none")

    @property
    def looks_back(self) -> int:
        """Steps before the newest latent that are shown with it."""
        return self.config.memory - 1

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the coarse features."""
        return self.config.channels, *self._coarse

    def initial_state(
        self, batch: int, device: torch.device | None = None, elapsed: Tensor | None = None
    ) -> MultiscaleState:
        """Nothing seen yet, for ``batch`` sequences; ``elapsed`` (batch,) steps since the last reward, else unknown."""
        device = device or self.embed.weight.device
        config = self.config
        longest = torch.full((batch,), config.clock, device=device)
        return MultiscaleState(
            torch.full((batch, config.memory - 1, self._height, self._width), len(self.codebook) - 1, device=device),
            torch.zeros(batch, config.memory - 1, self.num_actions, device=device),
            torch.zeros(batch, *self.hidden_shape, device=device),
            longest if elapsed is None else torch.minimum(elapsed.to(longest), longest),
        )

    def hidden(self, state: MultiscaleState) -> Tensor:
        """The coarse features at the last step, (batch, channels, height, width)."""
        return state.trunk

    def step(self, features: Tensor, action: Tensor, state: MultiscaleState) -> tuple[Prediction, MultiscaleState]:
        """One step: a sequence of length one.

        Args:
            features: (batch, height, width) int64, z_t itself.
            action: (batch,) int64, or (batch, num_actions) float32 if continuous.
            state: what was seen before.

        Returns:
            (prediction of z_{t+1}, r_t and d_t, state after this step).
        """
        prediction, state = self.sequence(features[:, None], action[:, None], state)
        return Prediction(*(tensor[:, 0] for tensor in prediction)), state

    def sequence(
        self,
        features: Tensor,
        actions: Tensor,
        state: MultiscaleState,
        rewards: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> tuple[Prediction, MultiscaleState]:
        """Predict every step of a window from the true latents and actions up to it.

        Args:
            features: (batch, time, height, width) int64, the latents themselves.
            actions: (batch, time) int64, or (batch, time, num_actions) float32.
            state: before the first step.
            rewards: (batch, time), which set the clock back; without them the predicted ones do.
            ends: (batch, time) bool, part of the seam; this model does not feed them back.

        Returns:
            (prediction with leading axes (batch, time), state after the last step).
        """
        batch, time = features.shape[:2]
        if rewards is None and time > 1:
            return one_by_one(self.sequence, features, actions, state)
        config = self.config
        rewarded = None if rewards is None else reward_classes(rewards) != NO_REWARD
        elapsed = steps_since(state.elapsed, rewarded, time, config.clock)
        seen, acted = self._take_in(features, actions, state)
        # (batch * time, height, width, memory): the newest codes of every cell.
        codes = seen.unfold(1, config.memory, 1).flatten(0, 1)
        older, newest = (codes[..., -2], codes[..., -1]) if config.memory > 1 else (None, codes[..., -1])
        moving, moved, views, hidden = None, None, codes, None
        if config.motion and older is not None:
            with torch.autocast(codes.device.type, enabled=False):
                moving = find_moving(older, newest, *self._looks)
                if config.permanence:
                    found = find_hidden(codes[..., -3], older, newest, moving, *self._looks)
                    hidden = self._hidden_steps(older, found, elapsed[:, :time].flatten() <= 1)
                moved = self._carry(newest, moving, going_on(moving))
            views = torch.cat([codes, moved[..., None]], dim=-1)
        shown = embed_mostly_alike(views, self.embed(self.codebook)).flatten(3).permute(0, 3, 1, 2)
        done = acted.unfold(1, config.memory, 1).transpose(2, 3).flatten(0, 1).flatten(1)
        given = self.given(done) + self.clock(elapsed[:, :time].flatten())
        given = given[:, :, None, None]
        fine = self.inputs(shown)
        fine = self.before(fine + given[:, : config.fine].to(fine.dtype))
        found_fine = [F.relu(self.reward_down(F.relu(fine)))] if self.reward_down is not None else []
        trunk = F.relu(self.blocks(self.down(F.relu(fine)) + self.position + given[:, config.fine :]))
        back = _spread(self.up(trunk), config.scale)
        if self.training and config.coarse_dropout:
            kept = torch.rand(len(back), 1, 1, 1, device=back.device) >= config.coarse_dropout
            back = back * kept.to(back.dtype)
        fine = F.relu(fine + back)
        parts = [self.latent_head.prepare(fine, newest, None if self.step_head else moved).float()]
        if self.step_head is not None and moving is not None:
            parts = [moving.steps(newest)[:, None].float(), *parts]
        if self._keeps_older and older is not None:
            parts = [older[:, None].float(), *parts]
        reward = self.reward_head(self.reward_dropout(torch.cat([trunk, *found_fine], dim=1)))
        if self.reward_steps is not None and moving is not None and len(moving.cells):
            reward = reward + self.reward_steps(moving, find_things(moving, self._pixels), len(reward))
        classes = None
        if config.reward_first:
            # The true one, or what is likeliest until one was drawn.
            classes = reward.argmax(dim=1) if rewards is None else reward_classes(rewards).flatten()
        others = self._told(classes, elapsed[:, :time].flatten() == 0, hidden, done, codes)
        parts = [*parts[:2], *others, *parts[2:]]
        latent = side_by_side(parts)
        heads = latent, reward.float(), self._end_logits(trunk).float()
        prediction = Prediction(*(head.unflatten(0, (batch, time)) for head in heads))
        if rewards is None:
            chances = torch.softmax(prediction.reward_logits.detach(), dim=-1)
            elapsed = steps_since(state.elapsed, 1 - chances[..., NO_REWARD] > REWARDED, time, config.clock)
        last = trunk.unflatten(0, (batch, time))[:, -1].float()
        return prediction, MultiscaleState(seen[:, time:], acted[:, time:], last, elapsed[:, time])

    def told_reward(self, before: MultiscaleState, after: MultiscaleState, rewarded: Tensor) -> MultiscaleState:
        """The state after a step whose reward, (batch,) bool, was drawn and not only foretold: it sets the clock."""
        elapsed = steps_since(before.elapsed, rewarded[:, None], 1, self.config.clock)
        return after._replace(elapsed=elapsed[:, 1])

    def given_reward(self, prediction: Prediction, rewards: Tensor) -> Prediction:
        """The prediction of a step whose reward was drawn, (batch,) int64 in {-1, 0, 1}: the latent goes by it."""
        if not self.config.reward_first:
            return prediction
        latent = prediction.latent.clone()
        before = latent[:, 2].div(REWARDS, rounding_mode="floor")
        latent[:, 2] = (rewards + NO_REWARD)[:, None, None] + REWARDS * before
        return prediction._replace(latent=latent)

    def remember(self, features: Tensor, actions: Tensor, state: MultiscaleState, rewards: Tensor) -> MultiscaleState:
        """The state after a window, as :meth:`sequence` leaves it but for ``trunk``, without predicting anything."""
        kept, time = self.looks_back, features.shape[1]
        seen, acted = self._take_in(features, actions, state)
        elapsed = steps_since(state.elapsed, reward_classes(rewards) != NO_REWARD, time, self.config.clock)
        last = slice(seen.shape[1] - kept, None)
        return MultiscaleState(seen[:, last], acted[:, last], state.trunk, elapsed[:, time])

    def _told(
        self, classes: Tensor | None, paid: Tensor, hidden: Tensor | None, done: Tensor, codes: Tensor
    ) -> list[Tensor]:
        """Maps (batch, 1, height, width) of what a prediction's latent is told besides.

        The reward's classes (batch,), and whether there was one in the step before, ``paid`` (batch,) bool; the steps
        of what is hidden (batch, height, width); what was done (batch, numbers), in the first cells of a map; of the
        latents seen, ``codes`` (batch, height, width, memory), those before z_{t-1}, newest first.
        """
        size, maps = (self._height, self._width), list[Tensor]()
        if classes is not None:
            maps.append((classes + REWARDS * paid)[:, None, None, None].expand(-1, 1, *size).float())
        if hidden is not None:
            maps.append(hidden[:, None].float())
        if self._done:
            filled = F.pad(done.float(), (0, size[0] * size[1] - self._done))
            maps.append(filled.view(-1, 1, *size))
        maps += [codes[:, None, ..., -3 - step].float() for step in range(self._earlier)]
        return maps

    def _taken(self, actions: Tensor) -> Tensor:
        return actions if actions.is_floating_point() else F.one_hot(actions, self.num_actions)

    def _take_in(self, codes: Tensor, actions: Tensor, state: MultiscaleState) -> tuple[Tensor, Tensor]:
        """A window after what the state remembers: codes (batch, memory - 1 + time, height, width), actions alike."""
        taken = self._taken(actions)
        seen = torch.cat([state.seen, codes], dim=1)
        return seen, torch.cat([state.acted, taken.to(state.acted.dtype)], dim=1)

    def _end_logits(self, trunk: Tensor) -> Tensor:
        if self.end_head is None:
            return torch.full((len(trunk),), -torch.inf, device=trunk.device)
        return self.end_head(trunk)[:, 0]

    def latent_logits(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Scores (..., codes, height, width) of the next latent's cells; ``latents`` shows what was drawn before.

        Of what the head draws: the critic, which only knows whole latents, has no part in them, nor have the chances
        of the steps that things made (:meth:`latent_log_probability` has).
        """
        following = latents.flatten(0, -3)
        latent = prediction.latent.flatten(0, -4)
        prepared, _ = self._stepped(latent, following, losses=False)
        flat = self.latent_head.logits(prepared, following, self._codes, self._rewarded(latent))
        return flat.unflatten(0, latents.shape[:-2])

    def latent_log_probability(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """Log-chances (..., height, width) of cells; a thing's step counts in the first of the cells that show it.

        Their sum is that of the latent and of the steps that lead to it; others may lead to the same one.
        """
        following, latent = latents.flatten(0, -3), prediction.latent.flatten(0, -4)
        prepared, steps = self._stepped(latent, following)
        scores = self.latent_head.logits(prepared, following, self._codes, self._rewarded(latent))
        return (code_log_probability(scores, following) - steps).unflatten(0, latents.shape[:-2])

    def latent_loss(self, prediction: Prediction, latents: Tensor) -> Tensor:
        """What the latent head is fitted by, (...) nats, where (..., height, width) came."""
        following, latent = latents.flatten(0, -3), prediction.latent.flatten(0, -4)
        prepared, steps = self._stepped(latent, following)
        flat = self.latent_head.loss(prepared, following, self._codes, self._rewarded(latent))
        flat = flat + steps.sum(dim=(1, 2))
        return flat.unflatten(0, latents.shape[:-2])

    def draw_latent(
        self, prediction: Prediction, uniforms: Tensor, temperature: float = 1.0, every: bool | None = None
    ) -> Tensor:
        """Draw the next latent (batch, height, width), anew where the critic rejects it; of none kept, the best.

        ``every`` draws all anew and takes what it needs, as None does on an accelerator: the latents are the same.
        """
        drawn = self._draw(prediction.latent, uniforms, temperature)
        if self.critic is None or temperature == 0:
            return drawn
        ratio = self._judge(prediction.latent, drawn)
        chance = anew(uniforms[:, 0, 0], self.config.redraws + 1)
        rejected, tried = chance.log() > ratio, 0
        # To know which were rejected is to wait for an accelerator.
        every = drawn.device.type != "cpu" if every is None else every
        while tried < self.config.redraws:
            rows = torch.arange(len(drawn), device=drawn.device) if every else rejected.nonzero()[:, 0]
            if len(rows) == 0:
                break
            # One more, then two at once, then four: few are rejected often, and a small draw costs as much as a large.
            times = range(tried + 1, min(2 * tried + 1, self.config.redraws) + 1)
            several = len(times), 1, 1, 1
            numbers = torch.cat([anew(uniforms[rows], time) for time in times])
            given = prediction.latent[rows].repeat(several)
            others = self._draw(given, numbers, temperature, every)
            theirs = self._judge(given, others).view(len(times), -1)
            kept = torch.stack([anew(chance[rows], time) for time in times]).log() <= theirs
            # The first that is kept, else the best.
            order = torch.arange(len(times), 0, -1, device=drawn.device)[:, None]
            chosen = torch.where(kept.any(dim=0), (kept * order).argmax(dim=0), theirs.argmax(dim=0))
            best = theirs.gather(0, chosen[None])[0]
            better = rejected[rows] & (kept.any(dim=0) | (best > ratio[rows]))
            found = others.unflatten(0, (len(times), -1))[chosen, torch.arange(len(rows), device=drawn.device)]
            drawn = drawn.index_copy(0, rows, torch.where(better[:, None, None], found, drawn[rows]))
            ratio = ratio.index_copy(0, rows, torch.where(better, best, ratio[rows]))
            rejected = rejected.index_copy(0, rows, rejected[rows] & ~kept.any(dim=0))
            tried = times[-1]
        return drawn

    def critic_loss(
        self, prediction: Prediction, uniforms: Tensor, latents: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critic is fitted by: to tell from what the head draws the (batch, height, width) that came."""
        with torch.no_grad():
            drawn = self._draw(prediction.latent, uniforms, 1.0)
        return critic_loss(self._judge(prediction.latent, latents), self._judge(prediction.latent, drawn))

    def _judge(self, latent: Tensor, drawn: Tensor) -> Tensor:
        """The critic's log-ratio, (batch,), of latents drawn from a prediction's ``latent``."""
        assert self.critic is not None
        return self.critic(latent[:, 0].long(), latent[:, -1].long(), drawn, self._codes)

    def _draw(self, latent: Tensor, uniforms: Tensor, temperature: float, every: bool | None = None) -> Tensor:
        """Draw a latent from a prediction's: the steps of all things, then the cells that may change."""
        prepared = self._prepared(latent)
        if self.step_head is not None:
            newest, moving = latent[:, -1].long(), self._moving(latent)
            if (hidden := self._hidden(latent)) is not None:
                moving, _ = join(moving, hidden)
            number = moving.step
            if len(moving.cells):
                things = find_things(moving, self._pixels)
                scores = self._step_scores(latent, prepared, moving, things)
                if (goes := self._goes(latent, moving, things)) is not None:
                    # Where nothing that was seen is likely, what was never seen would be as likely as the rest.
                    never = torch.cat([leaving(things, self.origin, self._pixels), ~goes[:, None]], dim=1)
                    scores = scores.masked_fill(never[: things.number], -torch.inf)
                least = self.config.least_chance
                number = self.step_head.draw(scores, moving, things, uniforms, temperature, least)
            prepared = self.latent_head.tell(prepared, self._carry(newest, moving, number), self._rewarded(latent))
        return self.latent_head.draw(prepared, uniforms, temperature, self._codes, every, self._rewarded(latent))

    def _stepped(self, latent: Tensor, following: Tensor, losses: bool = True) -> tuple[Tensor, Tensor]:
        """What the latent head is given where ``following`` came: every thing has made the step that it made.

        And the steps' cross-entropies, (batch, height, width), in the first of the cells that show a thing.
        """
        prepared = self._prepared(latent)
        steps = torch.zeros(following.shape, device=latent.device)
        if self.step_head is None:
            return prepared, steps
        newest = latent[:, -1].long()
        with torch.autocast(latent.device.type, enabled=False), torch.no_grad():
            moving, number, things = self._followed(
                self._moving(latent), self._hidden(latent), latent[:, 0].long(), newest, following
            )
            carried = self._carry(newest, moving, number)
        if losses and things is not None:
            first = things.cell[: things.number]
            each = F.cross_entropy(self._step_scores(latent, prepared, moving, things), number[first], reduction="none")
            # What is hidden may have been in a cell where now something else is.
            steps = steps.index_put(tuple(moving.cells[first].T), each, accumulate=True)
        return self.latent_head.tell(prepared, carried, self._rewarded(latent)), steps

    def _step_scores(self, latent: Tensor, prepared: Tensor, moving: Moving, things: Things) -> Tensor:
        """The step head's scores of all things in a prediction's latent, of which ``prepared`` is a part."""
        assert self.step_head is not None
        given, latents = prepared[:, : self.config.fine], [latent[:, -1], latent[:, 0]]
        if self._done:
            at = 2 + self.config.reward_first + self.config.permanence
            given = latent[:, at].flatten(1)[:, : self._done]
            latents += latent[:, at + 1 : at + 1 + self._earlier].unbind(1)
        rewarded, goes = self._rewarded(latent), self._goes(latent, moving, things)
        seen = [each.long() for each in latents]
        return self.step_head(given, moving, things, seen, self.sprites, self.rest, self.origin, rewarded, goes)

    def _moving(self, latent: Tensor) -> Moving:
        """What moves in a prediction's latent, which knows the steps."""
        older, steps, newest = latent[:, 0].long(), latent[:, 1], latent[:, -1].long()
        return find_moving(older, newest, *self._looks, steps)

    def _goes(self, latent: Tensor, moving: Moving, things: Things) -> Tensor | None:
        """Which things of a prediction's latent may go, (number + filling,) bool; None: all of them."""
        rewarded = self._rewarded(latent)
        if self.goes is None or rewarded is None:
            return None
        paid = (rewarded != NO_REWARD) | (latent[:, 2, 0, 0] >= REWARDS)
        return may_go(moving, things, paid, self.goes, self._cell)

    def _hidden(self, latent: Tensor) -> Moving | None:
        """What a prediction's latent knows to be hidden."""
        if not self.config.permanence:
            return None
        return hidden_at(latent[:, 0].long(), latent[:, 3].long(), *self._looks)

    @staticmethod
    def _hidden_steps(older: Tensor, hidden: Moving, paid: Tensor) -> Tensor:
        """The steps of what is hidden as a map like z_{t-1}, -1 where nothing is; nothing is that was ``paid`` for."""
        kept = ~paid[hidden.cells[:, 0]]
        return torch.full_like(older, -1).index_put(tuple(hidden.cells[kept].T), hidden.step[kept])

    def _followed(
        self, moving: Moving, hidden: Moving | None, older: Tensor, newest: Tensor, following: Tensor
    ) -> tuple[Moving, Tensor, Things | None]:
        """What moves and what is hidden, the steps (count,) that led to where ``following`` shows it, and the things.

        None where there is nothing.
        """
        number = next_step(moving, newest, following, *self._looks)
        if hidden is not None:
            moving, order = join(moving, hidden)
            number = torch.cat([number, next_step(hidden, older, following, *self._looks)])[order]
        if len(moving.cells) == 0:
            return moving, number, None
        things = find_things(moving, self._pixels)
        # What is found on the other side of the screen's edge is something else.
        out = F.pad(leaving(things, self.origin, self._pixels), (0, 1))[things.thing, number]
        return moving, torch.where(out, STEPS, number), things

    def _carry(self, newest: Tensor, moving: Moving, number: Tensor) -> Tensor:
        places = self.latent_head.places
        return carry(newest, moving, number, self.sprites, self.rest, self.origin, places)

    @property
    def _keeps_older(self) -> bool:
        """Whether a prediction's latent begins with z_{t-1}."""
        return self.critic is not None or self.step_head is not None

    def _prepared(self, latent: Tensor) -> Tensor:
        """What the latent head is given of a prediction's latent: not z_{t-1}, the steps to z_t, nor what is told."""
        config, steps = self.config, self.step_head is not None
        told = config.reward_first + config.permanence + config.steps_apart + self._earlier
        return latent[:, self._keeps_older + steps + told :]

    def _rewarded(self, latent: Tensor) -> Tensor | None:
        """The class (batch,) of the reward that a prediction's latent is given."""
        return latent[:, 2, 0, 0].long() % REWARDS if self.config.reward_first else None

    @property
    def _looks(self) -> tuple[Tensor, Tensor, bool]:
        """What codes look like, the background's codes, and whether opposite edges are neighbours."""
        return self.sprites, self.rest, self.config.wraps

    @property
    def _codes(self) -> Tensor:
        return self.codebook[:-1]


def _spread(outputs: Tensor, side: int) -> Tensor:
    """(count, channels * side^2, h, w) to (count, channels, h * side, w * side), channels last in memory."""
    rows = outputs.permute(0, 2, 3, 1).unflatten(-1, (side, side, -1))
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
