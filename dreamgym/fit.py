"""Fitting a world model to real experience (Robine et al. 2023, Sect. 3.3.2), with each departure a named switch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamgym.acts import real_acts
from dreamgym.changes import change_rarity
from dreamgym.device import bf16_is_faster
from dreamgym.errors import CheckpointError, ConfigError, InvalidInputError
from dreamgym.hiding import hide_things
from dreamgym.latents import LatentCache
from dreamgym.models.dynamics import Prediction
from dreamgym.models.layers import MapLayerNorm
from dreamgym.models.losses import (
    NO_REWARD,
    end_cross_entropy,
    masked_mean,
    reward_cross_entropy,
)
from dreamgym.models.multiscale import MultiscaleDynamics
from dreamgym.models.places import seen_codes
from dreamgym.muon import Muon, is_matrix
from dreamgym.replay import LONGEST_ELAPSED, Replay, Windows
from dreamgym.shifts import draw_shifts, moved_latents, shift_rows
from dreamgym.step_fit import StepFit, fit_steps
from dreamgym.surprise import SurpriseWindows
from dreamgym.terminal import progress_bar
from dreamgym.updates import Report, Tracker, parameter_group, seeded_dropout, set_rate
from dreamgym.world_model import WorldModel

RewardChances = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Chances of a reward in real steps that brought one, and in steps that brought none, each in [0, 1]."""

_SHIFTED_FRAMES, _SHIFTED_WINDOWS = 0.5, 0.75
"""Shares of the codec's frames and of the dynamics' windows that are moved, where ``shift`` is set."""


_SETTLING_FRAMES = 8_000
"""Frames at most, evenly spaced, among whose cells the codes are chosen."""

_ALIGNING_FRAMES = 4_000
"""Frames at most, evenly spaced, that tell an aligned codec where its grid is to lie."""

_AT_ONCE = 64
"""Frames looked at together there."""


@dataclass(frozen=True)
class FitConfig:
    """How a world model is fitted. The defaults are the default recipe; ``published()`` is the paper's.

    Attributes:
        codec_batch_size: frames in a codec update.
        codec_learning_rate: of Adam, at the start of a round.
        codec_warmup_learning_rate: the same in the first round, when the codec starts from nothing.
        unquantized_updates: first codec updates of a run without quantisation.
        settled_updates: last codec updates of a fit in which only the decoder learns, after the codes have been chosen
            anew from what the encoder makes of all experience; 0 leaves the codes to their moving averages.
        critic_share: critic updates for each dynamics update, where the dynamics have a critic. They come first, on
            experience that the dynamics were not fitted to; in a first fit, or where latents are new, after a fifth of
            the dynamics updates.
        critic_learning_rate: of Adam, at the start of a round.
        dynamics_batch_size: windows in a dynamics or critic update.
        sequence_length: steps in a window, those included that some dynamics are only shown (``looks_back``).
        dynamics_optimizer: "adamw", or "muon" for the weight matrices with AdamW for what is left and the reward head.
        dynamics_learning_rate: of AdamW, at the start of a round.
        reward_learning_rate: of the reward head.
        muon_learning_rate: of Muon, at the start of a round.
        final_rate: learning rates fall along a half cosine to this share of their start within a round; 1 is constant.
        weight_decay: of the dynamics' convolution and linear weights.
        step_share: updates of the head of steps alone, before those of the dynamics, for each of these, which then
            leave it as it is; only with ``dynamics.steps_apart``. 0 fits it with the rest.
        step_batch_size: latents from which an update of that head alone takes things.
        step_weight_decay: of that head's weights, which AdamW then fits whatever the optimiser; 0 treats them as the
            others, or lets them be where the head is fitted alone.
        gradient_clip: largest norm of the dynamics' gradient; 0 does not clip.
        context_steps: true latents at a window's start, after which the model's own samples are its input;
            0 uses the true ones throughout.
        code_noise: mean share of the codes shown to the dynamics that are swapped for those of another step of the
            batch in the same cell; every window has its own share, drawn evenly from 0 to twice this.
        hidden_share: share of the dynamics' windows that do not show something which is there
            (:mod:`dreamgym.hiding`); only for a codec with sprites.
        shift: rows by which frames are moved up or down at most (:mod:`dreamgym.shifts`), drawn for half of the codec's
            frames and three in four of the dynamics' windows; 0 moves none.
        shift_step: the dynamics' windows are moved by multiples of so many rows, a divisor of the codec's cell: every
            frame is encoded cell / shift_step times.
        reward_weight: of the reward's cross-entropy, relative to the latent's summed over its cells.
        end_weight: of the end's cross-entropy, likewise.
        life_loss_ends: whether a lost life counts as an end.
        windows: how windows are drawn: "uniform", "balanced" (softmax(-visits / tau)), "surprise" (in proportion to
            their loss when last seen) or "epoch" (each once).
        balance_tau: tau of balanced sampling.
        surprise_limit: a window's loss, or rarity, counts as at most so many times the mean of all, and as at least
            1 / this of it.
        surprise_power: of the loss in proportion to which windows are drawn.
        surprise_settling: steps after a reward, or an episode's start, whose losses and rarity count as the mean of the
            others' at most.
        rare_share: share of the windows by surprise that are drawn, instead, so that every kind of change (a code that
            becomes another) is shown as often.
        even_share: share of the windows by surprise that are drawn evenly instead, so that no weight is above 1 / this.
        surprise_correction: exponent of the importance weights that take the shift by surprise from rewards and ends
            again: 1 for all of it, 0 for none.
        event_priority: how much more often uniform and balanced windows are drawn if they hold a reward or an end, with
            weights that correct it.
        interleaved: fit codec and dynamics alternately, encoding each batch anew, as the paper does; False fits the
            codec first and then the dynamics on latents encoded once.
        bf16: matrix products of training in bfloat16.
    """

    codec_batch_size: int = 64
    codec_learning_rate: float = 5e-4
    codec_warmup_learning_rate: float = 1e-3
    unquantized_updates: int = 100
    settled_updates: int = 0
    critic_share: float = 0.0
    critic_learning_rate: float = 2e-3
    dynamics_batch_size: int = 64
    sequence_length: int = 16
    dynamics_optimizer: Literal["adamw", "muon"] = "adamw"
    dynamics_learning_rate: float = 3e-3
    reward_learning_rate: float = 3e-3
    muon_learning_rate: float = 0.02
    final_rate: float = 0.1
    weight_decay: float = 0.02
    step_batch_size: int = 64
    step_share: float = 0.0
    step_weight_decay: float = 0.0
    gradient_clip: float = 100.0
    context_steps: int = 0
    code_noise: float = 0.0
    hidden_share: float = 0.0
    shift: int = 0
    shift_step: int = 2
    reward_weight: float = 1.0
    end_weight: float = 1.0
    life_loss_ends: bool = True
    windows: Literal["uniform", "balanced", "surprise", "epoch"] = "uniform"
    balance_tau: float = 20.0
    surprise_limit: float = 8.0
    surprise_power: float = 1.0
    surprise_settling: int = 0
    rare_share: float = 0.0
    even_share: float = 0.0
    surprise_correction: float = 1.0
    event_priority: float = 4.0
    interleaved: bool = False
    bf16: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.windows not in ("uniform", "balanced", "surprise", "epoch"):
            raise ConfigError(f"windows: expected 'uniform', 'balanced', 'surprise' or 'epoch', got {self.windows!r}.")
        if self.dynamics_optimizer not in ("adamw", "muon"):
            raise ConfigError(f"dynamics_optimizer: expected 'adamw' or 'muon', got {self.dynamics_optimizer!r}.")
        names = "codec_batch_size", "dynamics_batch_size", "step_batch_size", "sequence_length"
        if min(getattr(self, name) for name in names) < 1:
            raise ConfigError(f"{', '.join(names[:-1])} and {names[-1]}: expected at least 1.")
        for name in ("step_share", "step_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}.")
        if self.surprise_power <= 0 or not 0 <= self.surprise_correction <= 1:
            raise ConfigError(
                "surprise_power: expected more than 0; surprise_correction: expected 0 to 1; "
                f"got {self.surprise_power} and {self.surprise_correction}."
            )
        if not 0 <= self.surprise_settling <= LONGEST_ELAPSED:
            raise ConfigError(f"surprise_settling: expected 0 to {LONGEST_ELAPSED}, got {self.surprise_settling}.")
        if not 0 <= self.rare_share <= 1 or (self.rare_share and self.interleaved):
            raise ConfigError(
                "rare_share: expected 0 to 1, and 0 where codec and dynamics are fitted interleaved, "
                f"got {self.rare_share}."
            )
        if not (self.even_share >= 0 and self.rare_share + self.even_share <= 1):
            raise ConfigError(
                "even_share: expected at least 0, and at most 1 together with rare_share, "
                f"got {self.even_share} and {self.rare_share}."
            )
        if self.critic_share < 0:
            raise ConfigError(f"critic_share: expected at least 0, got {self.critic_share}.")
        if self.shift < 0:
            raise ConfigError(f"shift: expected at least 0, got {self.shift}.")
        if self.shift and not 1 <= self.shift_step <= self.shift:
            raise ConfigError(f"shift_step: expected 1 to shift={self.shift}, got {self.shift_step}.")
        if self.settled_updates < 0 or (self.settled_updates and self.interleaved):
            raise ConfigError(
                "settled_updates: expected at least 0, and 0 where codec and dynamics are fitted interleaved, "
                f"got {self.settled_updates}."
            )
        if self.critic_share and self.interleaved:
            raise ConfigError("critic_share: expected 0 where codec and dynamics are fitted interleaved.")
        if self.shift and self.interleaved:
            raise ConfigError("shift: expected 0 where codec and dynamics are fitted interleaved.")
        if not 0 <= self.code_noise <= 0.5:
            raise ConfigError(f"code_noise: expected 0 to 0.5, got {self.code_noise}.")
        if not 0 <= self.hidden_share <= 1:
            raise ConfigError(f"hidden_share: expected 0 to 1, got {self.hidden_share}.")
        if self.hidden_share and self.shift:
            # What is hidden shows the background, which moves with the frame.
            raise ConfigError("hidden_share: expected 0 where frames are moved; set shift=0.")
        if min(self.event_priority, self.surprise_limit) < 1 or not 0 < self.final_rate <= 1 or self.balance_tau <= 0:
            raise ConfigError(
                "expected event_priority and surprise_limit of at least 1, final_rate in (0, 1], balance_tau above 0."
            )

    @classmethod
    def published(cls) -> "FitConfig":
        """The paper's optimisation (Table 5), with its mask and its encoding mode put right."""
        return cls(
            codec_batch_size=40,
            codec_learning_rate=1e-4,
            codec_warmup_learning_rate=1e-3,
            unquantized_updates=0,
            dynamics_batch_size=4,
            sequence_length=11,
            dynamics_learning_rate=5e-4,
            reward_learning_rate=1e-3,
            final_rate=1.0,
            weight_decay=0.0,
            gradient_clip=0.0,
            context_steps=4,
            reward_weight=1e-6,
            end_weight=0.0,
            life_loss_ends=False,
            windows="epoch",
            event_priority=1.0,
            interleaved=True,
            bf16=False,
        )


class Fitter:
    """Owns the optimisers of a world model from round to round.

    Args:
        world_model: fitted in place.
        config: how.

    Attributes:
        rate: what all learning rates are multiplied by, for a fit that went wrong without; no part of the state.
    """

    def __init__(self, world_model: WorldModel, config: FitConfig) -> None:
        """Build the optimisers."""
        self.world_model = world_model
        self.config = config
        self.rate = 1.0
        self.codec_optimizer = torch.optim.Adam(
            world_model.codec.parameters(), lr=config.codec_learning_rate, fused=True
        )
        matrices, groups = _dynamics_groups(world_model.dynamics, config)
        self.dynamics_optimizer = torch.optim.AdamW(groups, fused=True)
        fast = config.bf16 and bf16_is_faster(world_model.device.type)
        precision = torch.bfloat16 if fast else torch.float32
        self.matrix_optimizer = Muon(matrices, dtype=precision) if matrices else None
        apart = isinstance(world_model.dynamics, MultiscaleDynamics) and world_model.dynamics.config.steps_apart
        if config.step_share and not apart:
            raise ConfigError(
                "step_share: expected 0, as the head of steps needs the rest of the dynamics, got "
                f"{config.step_share}; set dynamics.steps_apart=True."
            )
        critic = getattr(world_model.dynamics, "critic", None)
        if (critic is None) != (config.critic_share == 0):
            raise ConfigError(
                f"critic_share: expected {'0' if critic is None else 'more than 0'}, as the dynamics have "
                f"{'no' if critic is None else 'a'} critic, got {config.critic_share}."
            )
        self.critic_optimizer = None if critic is None else torch.optim.Adam(critic.parameters(), fused=True)
        self.codec_updates = 0
        self.dynamics_updates = 0
        self._fitted_to = 0
        self._latents = LatentCache(world_model)
        if config.sequence_length <= world_model.dynamics.looks_back:
            raise ConfigError(
                f"sequence_length: expected more than the {world_model.dynamics.looks_back} steps that dynamics are "
                f"only shown, got {config.sequence_length}."
            )
        cell = world_model.config.codec.cell
        if _knows_places(world_model) and (config.interleaved or config.shift):
            raise ConfigError(
                "seen_places: expected False where codec and dynamics are fitted interleaved, or to frames moved up "
                "and down: where codes are seen is told before a fit, of the frames as they are."
            )
        if config.hidden_share and not world_model.config.codec.sprites:
            raise ConfigError(
                "hidden_share: expected 0 where the codes of the background are not known; set codec.sprites=True."
            )
        if config.interleaved and world_model.config.codec.sprites:
            raise ConfigError(
                "interleaved: expected False where codes have sprites, which are measured between two fits."
            )
        if config.shift and world_model.config.codec.aligned:
            # Latents moved by whole cells would bring what was rolled round the screen's edge into the picture.
            raise ConfigError("shift: expected 0 where the codec is aligned; set codec.aligned=False to move frames.")
        if config.shift and cell % config.shift_step:
            raise ConfigError(
                f"shift_step: expected a divisor of the codec's cell, {cell} px, got {config.shift_step}."
            )
        phases = range(config.shift_step, cell, config.shift_step) if config.shift else ()
        self._moved_latents = [LatentCache(world_model, rows) for rows in phases]
        self._surprise = SurpriseWindows(
            config.surprise_limit,
            config.surprise_power,
            config.surprise_settling,
            config.rare_share,
            config.even_share,
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimiser states and counters; the weights are the world model's own."""
        return {
            "codec_optimizer": self.codec_optimizer.state_dict(),
            "dynamics_optimizer": self.dynamics_optimizer.state_dict(),
            "matrix_optimizer": self.matrix_optimizer.state_dict() if self.matrix_optimizer else {},
            "critic_optimizer": self.critic_optimizer.state_dict() if self.critic_optimizer else {},
            "fitted_to": self._fitted_to,
            "codec_updates": self.codec_updates,
            "dynamics_updates": self.dynamics_updates,
            "losses": torch.from_numpy(self._surprise.losses),
            "first_loss": self._surprise.first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave.

        Raises:
            CheckpointError: an earlier version gave it, which fitted other weights by other optimisers.
        """
        try:
            self.codec_optimizer.load_state_dict(state["codec_optimizer"])
            self.dynamics_optimizer.load_state_dict(state["dynamics_optimizer"])
            if self.matrix_optimizer:
                self.matrix_optimizer.load_state_dict(state["matrix_optimizer"])
            if self.critic_optimizer:
                self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"The optimisers of this run are of another version of dreamgym ({error}). Go on with the version that "
                "began it, or begin anew; its dream opens as before."
            ) from error
        self._fitted_to = state.get("fitted_to", 0)
        self.codec_updates = state["codec_updates"]
        self.dynamics_updates = state.get("dynamics_updates", 0)
        self._surprise.restore(state.get("losses", torch.zeros(0)).cpu().numpy(), state.get("first_loss", 0))
        self._forget_latents()

    def fit(
        self,
        replay: Replay,
        codec_updates: int,
        dynamics_updates: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        *,
        progress: bool = True,
    ) -> Report:
        """Fit codec and dynamics to the experience so far.

        Args:
            replay: real experience.
            codec_updates: number of codec updates.
            dynamics_updates: number of dynamics updates.
            rng: draws frames and windows.
            generator: draws sampled latents and re-seeded codes; on the CPU.
            progress: show a progress bar.

        Returns:
            Losses and accuracies, means over the last tenth of the updates; with windows by surprise, unless
            interleaved, also ``dynamics/surprise``: the loss of the latents of new experience before it is fitted to.

        Raises:
            InvalidInputError: the replay holds fewer steps than a window needs.
        """
        if len(replay) <= self.config.sequence_length:
            raise InvalidInputError(
                f"replay: expected more than sequence_length={self.config.sequence_length} steps, got {len(replay)}."
            )
        if self.codec_updates == 0:
            self.prepare_codec(replay)
        if self.config.interleaved:
            return self._fit_interleaved(replay, codec_updates, dynamics_updates, rng, generator, progress)
        report = self.fit_codec(replay, codec_updates, rng, generator, progress=progress) if codec_updates else {}
        latents = self._latents.of(replay)
        if self.world_model.config.codec.objects:
            follows = np.ones(len(replay), dtype=np.bool_)
            follows[[start for start, _ in replay.iter_episodes()]] = False
            self.world_model.codec.learn_objects(latents, follows)
        return report | self.fit_dynamics(replay, latents, dynamics_updates, rng, generator, progress=progress)

    def prepare_codec(self, replay: Replay) -> None:
        """Show the codec, before its first fit, what the experience looks like."""
        model, frames = self.world_model, None
        if model.config.codec.aligned:
            chosen = np.linspace(0, len(replay) - 1, min(len(replay), _ALIGNING_FRAMES)).astype(np.int64)
            frames = torch.from_numpy(replay.frames_at(chosen, model.frame_stack))
        model.codec.prepare(torch.as_tensor(replay.background(), device=model.device), frames)

    def fit_codec(
        self,
        replay: Replay,
        updates: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        *,
        progress: bool = True,
    ) -> Report:
        """Fit the codec alone; the first updates of a run are not quantised, then the codebook is seeded.

        With ``settled_updates`` the last ones fit the decoder to codes that are chosen anew; where none are left
        between them and the unquantised ones, the codebook is seeded by that alone.
        """
        tracker = Tracker(updates)
        start = self.config.codec_warmup_learning_rate if self.codec_updates == 0 else self.config.codec_learning_rate
        free = max(0, updates - self.config.settled_updates)
        for update in progress_bar(range(updates), name="codec", unit="update", wanted=progress):
            set_rate(self.codec_optimizer, self.rate * start, update / updates, self.config.final_rate)
            if update == free:
                self.world_model.codec.settle(self._every_kind_of_frame(replay), generator)
            tracker.add(update, self._codec_update(replay, rng, generator, settled=update >= free))
        self.world_model.codec.requires_grad_(True)
        if self.world_model.config.codec.sprites:
            self.world_model.codec.learn_sprites(self._every_kind_of_frame(replay))
        self._surprise.forget()
        self._fitted_to = 0
        return tracker.report("codec/")

    def fit_dynamics(
        self,
        replay: Replay,
        latents: npt.NDArray[np.uint8],
        updates: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        *,
        progress: bool = True,
    ) -> Report:
        """Fit the dynamics alone, on latents (steps, height, width) uint8 of the whole replay."""
        tracker = Tracker(updates)
        if places := _knows_places(self.world_model):
            # First: what was not seen where it is would be a surprise of its own.
            codec = self.world_model.codec
            places.learn_places(seen_codes(latents, codec.num_codes), codec.rest)
        table = torch.as_tensor(latents)
        followed = self._learn_going(replay, table)
        moved_tables = self._moved_tables(replay, table) if self.config.shift else None
        device = self.world_model.device
        before = self._measure_surprise(replay, table, generator) if self.config.windows == "surprise" else {}
        stepping = {}
        if followed is not None:
            count = round(self.config.step_share * updates)
            stepping = fit_steps(self.world_model, replay, table, followed, count, self._step_fit, generator, progress)
        draw = self._window_source(replay, rng, latents)
        judged: Report = {}
        # The first dynamics of all have seen nothing: what they draw says nothing of what later ones will.
        unseen, ready = (self._fitted_to, 0) if 0 < self._fitted_to <= replay.appended else (0, updates // 5)
        for update in progress_bar(range(updates), name="dynamics", unit="update", wanted=progress):
            if update == ready and self.critic_optimizer:
                judged = self._fit_critic(
                    replay, table, unseen, math.ceil(self.config.critic_share * updates), generator
                )
            self._set_dynamics_rates(update / updates)
            windows = draw()
            if moved_tables is None:
                batch, moved = table[torch.as_tensor(windows.indices)], None
            else:
                batch, moved = self._shifted(moved_tables, windows, generator)
            batch = batch.to(device, non_blocking=True).long()
            judging = tracker.keeps(update)
            tracker.add(update, self._dynamics_update(replay, windows, batch, generator, moved, accuracy=judging))
        if updates:
            self._fitted_to = replay.appended
        return before | stepping | judged | tracker.report("dynamics/")

    def _learn_going(self, replay: Replay, table: Tensor) -> tuple[Tensor, Tensor] | None:
        """Show the dynamics where things went in what is new of the latents (steps, height, width).

        Returns:
            What :meth:`MultiscaleDynamics.learn_going` does, of all latents, where the head of steps is fitted alone.
        """
        dynamics = self.world_model.dynamics
        alone = self.config.step_share > 0
        if not isinstance(dynamics, MultiscaleDynamics) or not (dynamics.config.permanence or alone):
            return None
        known = self._fitted_to if self._fitted_to <= replay.appended and not alone else 0
        # What follows the last of those that are known was not known.
        first = max(0, known - (replay.appended - len(replay)) - 3)
        indices = np.arange(first, len(replay))
        device = self.world_model.device
        # The codec may have been fitted since the dynamics were shown what its codes look like.
        latents = self.world_model.shown(table[first:].to(device, torch.int64))
        found = dynamics.learn_going(
            latents,
            torch.as_tensor(replay.rewards_at(indices), device=device),
            torch.as_tensor(replay.first_at(indices), device=device),
        )
        return found if alone else None

    @property
    def _step_fit(self) -> StepFit:
        config = self.config
        rate = self.rate * config.dynamics_learning_rate
        return StepFit(config.step_batch_size, rate, config.final_rate, config.step_weight_decay)

    def _fit_critic(
        self, replay: Replay, latents: Tensor, unseen: int, updates: int, generator: torch.Generator
    ) -> Report:
        """Fit the critic to what the dynamics, as they are, draw after moments from record ``unseen`` on."""
        config, model, optimizer = self.config, self.world_model, self.critic_optimizer
        assert optimizer is not None
        back, device = model.dynamics.looks_back, model.device
        starts = np.arange(max(0, unseen - (replay.appended - len(replay))), len(replay) - back - 1)
        windows = replay.windows_from(starts, back + 2)
        starts = starts[windows.mask.all(axis=1)]
        tracker = Tracker(updates)
        if len(starts) == 0:
            return {}
        for update in range(updates):
            set_rate(optimizer, self.rate * config.critic_learning_rate, update / updates, config.final_rate)
            # Drawn by how badly they were foretold, latents would be told from those drawn by being unlikely.
            chosen = torch.randint(len(starts), (config.dynamics_batch_size,), generator=generator).numpy()
            windows = replay.windows_from(starts[chosen], back + 2)
            batch = latents[torch.as_tensor(windows.indices)].to(device, non_blocking=True).long()
            with torch.no_grad(), model.mixed_precision(config.bf16):
                given = _given(model, replay, windows.indices[:, :-1], config)
                prediction = _roll(model, batch[:, :-1], *given, back, 0, generator)
            last = Prediction(*(tensor[:, -1] for tensor in prediction))
            uniforms = torch.rand(len(batch), *batch.shape[2:], generator=generator).to(device)
            with model.mixed_precision(config.bf16):
                loss, metrics = model.dynamics.critic_loss(last, uniforms, batch[:, -1])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.dynamics.critic.parameters(), 1.0)
            optimizer.step()
            tracker.add(update, metrics)
        return tracker.report("critic/")

    def _moved_tables(self, replay: Replay, latents: Tensor) -> Tensor:
        """(phases, records, height, width) uint8: the latents given, then those of frames moved within a cell."""
        return torch.stack([latents, *(torch.as_tensor(cache.of(replay)) for cache in self._moved_latents)])

    def _shifted(
        self, tables: Tensor, windows: Windows, generator: torch.Generator
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """The windows' latents, most of them of frames moved up or down, and which windows these are.

        (batch, time, height, width) uint8 and (batch,) bool.
        """
        config, cell = self.config, self.world_model.config.codec.cell
        shifts = draw_shifts(len(windows.indices), config.shift, _SHIFTED_WINDOWS, generator, step=cell // len(tables))
        return moved_latents(tables, torch.as_tensor(windows.indices), shifts, cell), (shifts != 0).numpy()

    def _measure_surprise(self, replay: Replay, latents: Tensor, generator: torch.Generator) -> Report:
        """How badly records that were never fitted to are predicted: what their windows are drawn by at first."""
        first, length = self._surprise.follow(replay), self.config.sequence_length
        if first == len(replay) or not self.dynamics_updates:
            return {}
        new = np.arange(max(0, first - length), len(replay))
        # The first steps of a window are only shown.
        stride = length - self.world_model.dynamics.looks_back
        # Nothing behind an episode's end can be predicted from before it.
        starts = np.unique(np.append(new[::stride], new[replay.first_at(new)]).clip(max=len(replay) - 1 - length))
        for chosen in np.array_split(starts, math.ceil(len(starts) / self.config.dynamics_batch_size)):
            windows = replay.windows_from(chosen, length + 1)
            batch = latents[torch.as_tensor(windows.indices)].to(self.world_model.device).long()
            with torch.no_grad(), self.world_model.mixed_precision(self.config.bf16):
                _, metrics = dynamics_loss(
                    self.world_model, replay, windows, batch, self.config, generator, accuracy=False
                )
            self._surprise.update(windows, metrics["latent_steps"].cpu().numpy())
        found = self._surprise.losses[first:]
        found = found[np.isfinite(found)]
        return {"dynamics/surprise": float(found.mean())} if len(found) else {}

    def _fit_interleaved(
        self,
        replay: Replay,
        codec_updates: int,
        dynamics_updates: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        progress: bool,
    ) -> Report:
        """The paper's order: codec updates evenly among dynamics updates, those in excess as a warm-up before."""
        warmup = max(0, codec_updates - dynamics_updates // 2)
        warm = self.fit_codec(replay, warmup, rng, generator, progress=progress) if warmup else {}
        every = max(1, round(dynamics_updates / max(1, codec_updates - warmup)))
        codec, dynamics = Tracker(codec_updates - warmup), Tracker(dynamics_updates)
        draw, done = self._window_source(replay, rng), 0
        for update in progress_bar(range(dynamics_updates), name="world model", unit="update", wanted=progress):
            self._set_dynamics_rates(update / dynamics_updates)
            if update % every == 0 and done < codec_updates - warmup:
                start = self.config.codec_learning_rate
                set_rate(self.codec_optimizer, self.rate * start, update / dynamics_updates, self.config.final_rate)
                codec.add(done, self._codec_update(replay, rng, generator))
                done += 1
            windows = draw()
            frames = replay.frames_at(windows.indices.ravel(), self.world_model.frame_stack)
            latents = self.world_model.encode(frames).unflatten(0, windows.indices.shape)
            judging = dynamics.keeps(update)
            dynamics.add(update, self._dynamics_update(replay, windows, latents, generator, accuracy=judging))
        return warm | codec.report("codec/") | dynamics.report("dynamics/")

    def _every_kind_of_frame(self, replay: Replay) -> Iterator[Tensor]:
        """Batches of frames, evenly spaced over the experience, on the model's device."""
        chosen = np.linspace(0, len(replay) - 1, min(len(replay), _SETTLING_FRAMES)).astype(np.int64)
        for indices in np.array_split(chosen, math.ceil(len(chosen) / _AT_ONCE)):
            yield torch.as_tensor(replay.frames_at(indices, self.world_model.frame_stack)).to(self.world_model.device)

    def _codec_update(
        self, replay: Replay, rng: np.random.Generator, generator: torch.Generator, *, settled: bool = False
    ) -> dict[str, Tensor]:
        config, codec, device = self.config, self.world_model.codec, self.world_model.device
        indices = rng.integers(len(replay), size=config.codec_batch_size)
        frames = torch.as_tensor(replay.frames_at(indices, self.world_model.frame_stack)).to(device)
        shifts = draw_shifts(len(indices), config.shift, _SHIFTED_FRAMES, generator) if config.shift else None
        before = None
        if self.world_model.config.codec.motion_weight:
            earlier = np.where(replay.first_at(indices) | (indices == 0), indices, indices - 1)
            before = torch.as_tensor(replay.frames_at(earlier, self.world_model.frame_stack)).to(device)
        if shifts is not None:
            frames = shift_rows(frames, shifts)
            before = None if before is None else shift_rows(before, shifts)
        quantized = settled or self.codec_updates >= config.unquantized_updates
        if not settled and config.unquantized_updates and self.codec_updates == config.unquantized_updates:
            codec.eval()
            with torch.no_grad():
                codec.seed_codebook(frames, generator)
        codec.train()
        if settled:
            codec.fix_codes()
        with self.world_model.mixed_precision(config.bf16):
            loss, metrics = codec.loss(frames, before, quantized=quantized, shifts=shifts)
        self.codec_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.codec_optimizer.step()
        if not settled:
            codec.update(metrics, generator)
        codec.eval()
        self._forget_latents()
        self.codec_updates += 1
        return _scalars(metrics)

    def _dynamics_update(
        self,
        replay: Replay,
        windows: Windows,
        latents: Tensor,
        generator: torch.Generator,
        moved: npt.NDArray[np.bool_] | None = None,
        *,
        accuracy: bool,
    ) -> dict[str, Tensor]:
        config = self.config
        shown = latents[:, :-1]
        if config.hidden_share:
            shown, hidden = hide_things(shown, self.world_model.codec.rest, config.hidden_share, generator)
            moved = hidden.numpy() if moved is None else moved | hidden.numpy()
        self.world_model.dynamics.train()
        if config.step_share and isinstance(self.world_model.dynamics, MultiscaleDynamics):
            # Fitted before, alone.
            assert self.world_model.dynamics.step_head is not None
            self.world_model.dynamics.step_head.eval()
        with seeded_dropout(self.world_model.device, generator), self.world_model.mixed_precision(config.bf16):
            loss, metrics = dynamics_loss(
                self.world_model, replay, windows, latents, config, generator, shown=shown, accuracy=accuracy
            )
        self.world_model.dynamics.zero_grad(set_to_none=True)
        loss.backward()
        if config.gradient_clip:
            nn.utils.clip_grad_norm_(self.world_model.dynamics.parameters(), config.gradient_clip)
        for optimizer in self._dynamics_optimizers:
            optimizer.step()
        self.world_model.dynamics.eval()
        self.dynamics_updates += 1
        if config.windows == "surprise":
            # The loss of a moved window, or of one with something hidden, says little of the records as they are.
            kept = slice(None) if moved is None else ~moved
            as_it_is = Windows(windows.indices[kept], windows.mask[kept], windows.weights[kept])
            self._surprise.update(as_it_is, metrics["latent_steps"].cpu().numpy()[kept])
        return _scalars(metrics)

    def latents(self, replay: Replay) -> npt.NDArray[np.uint8]:
        """Latents of all records, (n, height, width) uint8, each encoded once for as long as the codec stays."""
        return self._latents.of(replay)

    def _forget_latents(self) -> None:
        for cache in (self._latents, *self._moved_latents):
            cache.forget()

    @property
    def dynamics_steps(self) -> int:
        """Steps of real experience that all dynamics updates so far were shown and predicted."""
        length = self.config.sequence_length - self.world_model.dynamics.looks_back
        return self.dynamics_updates * self.config.dynamics_batch_size * length

    @property
    def _dynamics_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.dynamics_optimizer, *([self.matrix_optimizer] if self.matrix_optimizer else [])]

    def _set_dynamics_rates(self, done: float) -> None:
        for optimizer in self._dynamics_optimizers:
            set_rate(optimizer, self.rate, done, self.config.final_rate)

    def _window_source(
        self, replay: Replay, rng: np.random.Generator, latents: npt.NDArray[np.uint8] | None = None
    ) -> Callable[[], Windows]:
        """A function that draws the next batch of windows, one step longer than a sequence for the last targets.

        What is rare is told by the latents of the whole replay, where it counts.
        """
        config = self.config
        length = config.sequence_length + 1
        kind = config.windows
        shown = self.world_model.dynamics.looks_back
        if kind == "epoch":
            batches = _epochs(replay, config.dynamics_batch_size, length, rng, shown)
            return lambda: next(batches)
        if kind == "surprise":
            self._surprise.follow(replay)
            if config.rare_share and latents is not None:
                self._surprise.rate(change_rarity(latents, replay.first_at(np.arange(len(replay)))))
            return lambda: self._surprise.draw(replay, config.dynamics_batch_size, length, rng, shown)
        prioritised = config.event_priority > 1
        if prioritised:
            replay.prioritise_events(length - 1, config.event_priority, shown)
        return lambda: replay.sample_windows(
            config.dynamics_batch_size,
            length,
            rng,
            weights=kind,
            tau=config.balance_tau,
            prioritised=prioritised,
        )


def dynamics_loss(
    world_model: WorldModel,
    replay: Replay,
    windows: Windows,
    latents: Tensor,
    config: FitConfig,
    generator: torch.Generator | None = None,
    *,
    shown: Tensor | None = None,
    accuracy: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of a batch of windows under the dynamics (Robine et al. 2023, Eq. 13-16).

    What the latent contributes is the dynamics' own ``latent_loss``: with a gate that of the gate besides.

    Args:
        world_model: whose dynamics.
        replay: where rewards, actions and ends are read.
        windows: (batch, time + 1) records; the last one only gives the last target.
        latents: (batch, time + 1, height, width) int64, their latents, on the model's device.
        config: weights and the number of context steps.
        generator: draws the model's own latents after the context, and swapped codes; on the CPU.
        shown: (batch, time, height, width) int64, what the dynamics are shown instead of all latents but the last.
        accuracy: measure that, too: for dynamics that look at few cells it costs more than their loss.

    Returns:
        (scalar, metrics as detached scalars, and ``latent_steps``: each step's loss, (batch, time), nats, detached;
        0 where the target does not count, NaN where it was only shown).
    """
    device = world_model.device
    inputs = windows.indices[:, :-1]
    # A dream begins with a context: what would be learned without one, guessing how things move, is of no use there.
    back = world_model.dynamics.looks_back
    mask = torch.as_tensor(windows.mask, device=device)
    valid, next_valid = mask[:, back:-1], mask[:, back + 1 :]
    weights = torch.as_tensor(windows.weights, device=device, dtype=torch.float32)
    if config.windows == "surprise":
        weights = weights**config.surprise_correction
    actions, rewards, ends, elapsed = _given(world_model, replay, inputs, config)
    shown = latents[:, :-1] if shown is None else shown
    shown = swap_codes(shown, config.code_noise, generator) if config.code_noise else shown
    prediction = _roll(world_model, shown, actions, rewards, ends, elapsed, back, config.context_steps, generator)
    rewards, ends = rewards[:, back:], ends[:, back:]
    targets = latents[:, back + 1 :]
    latent_steps = world_model.dynamics.latent_loss(prediction, targets)
    # Windows by surprise are drawn so as to shift this loss, and this loss alone.
    latent = masked_mean(latent_steps, next_valid, None if config.windows == "surprise" else weights)
    reward = masked_mean(reward_cross_entropy(prediction.reward_logits, rewards), valid, weights)
    loss = latent + config.reward_weight * reward
    metrics = {"latent": latent.detach(), "reward": reward.detach(), "latent_steps": latent_steps.detach() * next_valid}
    metrics["latent_steps"] = F.pad(metrics["latent_steps"], (back, 0), value=torch.nan)
    if world_model.config.dynamics.end_head:
        end = masked_mean(end_cross_entropy(prediction.end_logit, ends), valid, weights)
        loss = loss + config.end_weight * end
        metrics["end"] = end.detach()
    if accuracy:
        # Some windows are enough for a number that is only looked at, but one alone may hold no step that counts.
        some = slice(0, max(8, len(targets) // 8))
        with torch.no_grad():
            few = Prediction(*(tensor[some] for tensor in prediction))
            hits = world_model.dynamics.latent_logits(few, targets[some]).argmax(dim=2) == targets[some]
        metrics["accuracy"] = masked_mean(hits.float().mean(dim=(2, 3)), next_valid[some])
    return loss, metrics


def reward_chances(world_model: WorldModel, replay: Replay, config: FitConfig, most: int = 64) -> RewardChances:
    """How likely the dynamics call a reward, of either sign, in real steps that brought one and in others.

    Nothing is drawn and no visit is counted: steps are evenly spaced among those with a window's steps of the same
    episode up to them.

    Args:
        world_model: whose dynamics.
        replay: real experience.
        config: the windows' length, and what counts as an end.
        most: steps of each kind.

    Returns:
        Chances in those that brought one and in the others, each (at most ``most``,); empty where there are none.
    """
    length, back = config.sequence_length, world_model.dynamics.looks_back
    last = np.arange(length - 1, len(replay))
    rewarded = np.rint(np.clip(replay.rewards_at(last), -1, 1)) != 0
    parts: list[npt.NDArray[np.float32]] = []
    for kind in (rewarded, ~rewarded):
        starts = last[kind] - (length - 1)
        starts = starts[replay.windows_from(starts, length).mask[:, -1]]
        starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), most)).astype(np.int64)]
        if len(starts) == 0:
            parts.append(np.zeros(0, np.float32))
            continue
        indices = replay.windows_from(starts, length).indices
        latents = world_model.encode(replay.frames_at(indices.ravel(), world_model.frame_stack))
        with torch.no_grad():
            latents = latents.unflatten(0, indices.shape)
            prediction = _roll(world_model, latents, *_given(world_model, replay, indices, config), back, 0, None)
        chances = torch.softmax(prediction.reward_logits[:, -1].float(), dim=-1)
        parts.append((chances[:, NO_REWARD - 1] + chances[:, NO_REWARD + 1]).cpu().numpy())
    return parts[0], parts[1]


def _given(
    world_model: WorldModel, replay: Replay, records: npt.NDArray[np.int64], config: FitConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Actions, rewards, ends (batch, time) of records, and (batch,) steps from the last reward to the first of them."""
    ended = replay.terminated_at(records)
    if config.life_loss_ends:
        ended = ended | replay.life_lost_at(records)
    device = world_model.device
    return (
        real_acts(world_model, replay, records),
        torch.as_tensor(replay.rewards_at(records), device=device, dtype=torch.float32),
        torch.as_tensor(ended, device=device),
        torch.as_tensor(replay.elapsed_at(records[:, 0]), device=device),
    )


def swap_codes(latents: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Latents with wrong codes among them, as a dream's own are: the dynamics learn not to trust every cell.

    Args:
        latents: (batch, time, height, width) int64.
        share: mean share of the codes that are swapped; each window's is drawn evenly from 0 to twice this.
        generator: of the draws, on the CPU.

    Returns:
        The same shape; a swapped code is that of another step, of any window, in the same cell.
    """
    batch, time = latents.shape[:2]
    shares = 2 * share * torch.rand(batch, 1, 1, 1, generator=generator)
    swapped = torch.rand(latents.shape, generator=generator) < shares
    others = torch.randperm(batch * time, generator=generator)
    wrong = latents.flatten(0, 1)[others.to(latents.device)].view_as(latents)
    return torch.where(swapped.to(latents.device), wrong, latents)


def _roll(
    world_model: WorldModel,
    latents: Tensor,
    actions: Tensor,
    rewards: Tensor,
    ends: Tensor,
    elapsed: Tensor,
    back: int,
    context_steps: int,
    generator: torch.Generator | None,
) -> Prediction:
    """Predictions of a window but for its first ``back`` steps, which are only shown.

    Teacher-forced, or on the model's own samples after ``context_steps``.
    """
    batch, time = latents.shape[:2]
    dynamics = world_model.dynamics
    forced = time if context_steps == 0 else min(max(context_steps, back + 1), time)
    features = world_model.shown(latents[:, :forced].flatten(0, 1)).unflatten(0, (batch, forced))
    state = dynamics.initial_state(batch, world_model.device, elapsed)
    if back:
        state = dynamics.remember(features[:, :back], actions[:, :back], state, rewards[:, :back])
    known = slice(back, forced)
    prediction, state = dynamics.sequence(
        features[:, known], actions[:, known], state, rewards[:, known], ends[:, known]
    )
    parts = [prediction]
    for step in range(forced, time):
        with torch.no_grad():
            last = Prediction(*(tensor[:, -1] for tensor in parts[-1]))
            uniforms = torch.rand(batch, *latents.shape[2:], generator=generator).to(world_model.device)
            sampled = dynamics.draw_latent(last, uniforms)
        prediction, state = dynamics.step(world_model.shown(sampled), actions[:, step], state)
        parts.append(Prediction(*(tensor[:, None] for tensor in prediction)))
    return Prediction(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))


def _epochs(
    replay: Replay, batch_size: int, length: int, rng: np.random.Generator, shown: int = 0
) -> Iterator[Windows]:
    """Windows whose targets tile the replay, each once an epoch in random order, with a random offset (Sect. 3.3.2)."""
    stride = length - 1 - shown
    while True:
        offset = int(rng.integers(min(stride, len(replay) - length + 1)))
        starts = rng.permutation(np.arange(offset, len(replay) - length + 1, stride))
        for i in range(0, len(starts), batch_size):
            yield replay.windows_from(starts[i : i + batch_size], length)


def _dynamics_groups(dynamics: nn.Module, config: FitConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parameter groups of Muon and of AdamW; the critic has its own optimiser, and so has what is fitted alone.

    Weights of products decay, norms and biases do not; the reward head is always AdamW's, at its own rate.
    """
    muon: list[nn.Parameter] = []
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for module_name, module in dynamics.named_modules():
        part = module_name.partition(".")[0]
        if part == "critic" or (part == "step_head" and config.step_share):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            decays = name == "weight" and not isinstance(module, MapLayerNorm)
            is_reward = module_name.startswith("reward_")
            is_step = config.step_weight_decay > 0 and module_name.startswith("step_head")
            # Rewards are rare: steps of one size, whatever the gradient, would mostly follow those without.
            rare = is_reward or is_step
            if config.dynamics_optimizer == "muon" and decays and is_matrix(parameter) and not rare:
                muon.append(parameter)
                continue
            groups.setdefault((is_reward, decays, is_step), []).append(parameter)
    rest = [
        parameter_group(
            parameters,
            config.reward_learning_rate if is_reward else config.dynamics_learning_rate,
            (config.step_weight_decay if is_step else config.weight_decay) if decays else 0.0,
        )
        for (is_reward, decays, is_step), parameters in groups.items()
    ]
    return [parameter_group(muon, config.muon_learning_rate, config.weight_decay)] if muon else [], rest


def _scalars(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in metrics.items() if value.dim() == 0}


def _knows_places(world_model: WorldModel) -> MultiscaleDynamics | None:
    """The dynamics, if they draw codes only where they were seen."""
    dynamics = world_model.dynamics
    return dynamics if isinstance(dynamics, MultiscaleDynamics) and dynamics.config.seen_places else None
