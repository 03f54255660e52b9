"""A run as one frozen dataclass, composed from the configurations that live beside what they configure; presets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

from dreamgym.checkpoint import config_from_dict, config_to_dict, type_name
from dreamgym.errors import CheckpointError, ConfigError
from dreamgym.fit import FitConfig
from dreamgym.json_files import fits
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.real import resolve_game
from dreamgym.world_model import MOST_PHASE_BITS, DynamicsConfig


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, got {value}.")


@dataclass(frozen=True)
class GameConfig:
    """The real game beyond its name.

    Attributes:
        sticky_actions: chance that the game repeats the last action.
        noop_max: an episode begins with up to this many no-ops.
    """

    sticky_actions: float = 0.0
    noop_max: int = 30

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.sticky_actions <= 1 or self.noop_max < 0:
            raise ConfigError(
                "sticky_actions: expected 0 to 1; noop_max: expected at least 0; "
                f"got {self.sticky_actions} and {self.noop_max}."
            )


@dataclass(frozen=True)
class CollectConfig:
    """How real experience is collected (Robine et al. 2023, Sect. 3.3.1).

    Attributes:
        first_steps: steps in the first round: imported ones (``data``), then random ones.
        steps: steps in each later round.
        temperature: divides the policy's logits (Eq. 19).
        epsilon: chance of a uniform random action, for policies without logits (DQN, QR-DQN).
        learn_from: the round, counted from 0, from which on the agent plays as it is and learns from these real steps,
            too (Dyna, Sutton 1991); 0: from dreams alone, as the paper's does.
        learn_steps: steps in each of those rounds; 0: as in the others.
        learn_every: real steps that it learns from at once; 0: as many as imagined ones. Algorithms that keep a replay
            buffer of their own learn after each (``off_policy.real_updates``).
    """

    first_steps: int = 12_800
    steps: int = 6_400
    temperature: float = 1.5
    epsilon: float = 0.1
    learn_from: int = 0
    learn_steps: int = 0
    learn_every: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(1, steps=self.steps)
        _at_least(0, learn_from=self.learn_from, learn_steps=self.learn_steps, learn_every=self.learn_every)
        if self.temperature <= 0 or not 0 <= self.epsilon <= 1:
            raise ConfigError(
                "temperature: expected more than 0; epsilon: expected 0 to 1; "
                f"got {self.temperature} and {self.epsilon}."
            )


@dataclass(frozen=True)
class DreamConfig:
    """The dream that a policy trains in.

    Attributes:
        num_envs: dreams stepped at once.
        horizon: steps after which a dream is over.
        late_horizon: the same in the second half of the rounds; 0: as in the first. One that has learned little learns
            more where dreams begin anywhere, one that plays well in the moments that its own play leads to.
        horizon_as: "truncation" (the value goes on) or "termination" (the paper's).
        latent_stack: most recent latents that an observation shows.
        context: real steps that warm the hidden state up before a dream starts, the start itself included; 1 is cold.
        reward: "expected" or "sampled".
        temperature: of the next latent's distribution.
        start_states: real moments a round's dreams may start from.
        newest_share: share of them that is drawn from the round's own experience, which is what the policy gets into
            now, as far as there are as many; the dream of a finished run, which other policies are trained in, has none
            such.
        late_newest_share: the same in the second half of the rounds.
        stagger: spread the first ages over the horizon, so that not all dreams end in one step.
    """

    num_envs: int = 64
    horizon: int = 25
    late_horizon: int = 0
    horizon_as: Literal["truncation", "termination"] = "truncation"
    latent_stack: int = 4
    context: int = 8
    reward: Literal["expected", "sampled"] = "expected"
    temperature: float = 1.0
    start_states: int = 2048
    newest_share: float = 0.0
    late_newest_share: float = 0.0
    stagger: bool = True

    def __post_init__(self) -> None:
        """Check the numbers that are used late."""
        for name in ("newest_share", "late_newest_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}.")
        _at_least(1, context=self.context, start_states=self.start_states, num_envs=self.num_envs, horizon=self.horizon)
        _at_least(0, late_horizon=self.late_horizon)


@dataclass(frozen=True)
class PPOConfig:
    """Stable-Baselines3's PPO as the paper uses it (its Table 5; ``vf_coef`` as that code halves the loss twice).

    Attributes:
        n_steps: imagined steps of each dream between updates.
        batch_size: of a minibatch.
        n_epochs: passes over the rollout.
        learning_rate: of Adam.
        gamma: discount.
        gae_lambda: of the advantage estimate.
        clip_range: of the likelihood ratio.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value loss.
        max_grad_norm: gradient clipping.
    """

    n_steps: int = 25
    batch_size: int = 320
    n_epochs: int = 4
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.1
    ent_coef: float = 0.01
    vf_coef: float = 0.25
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(1, n_steps=self.n_steps, batch_size=self.batch_size, n_epochs=self.n_epochs)
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "clip_range", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a finite number of more than 0, got {getattr(self, name)}.")


@dataclass(frozen=True)
class OffPolicyConfig:
    """Algorithms that learn from a replay buffer of their own (DQN, QR-DQN; SAC, TQC ... where actions are numbers).

    Their buffer begins with all real experience, random play included, in dreams and in the game.

    Attributes:
        learning_rate: of Adam.
        batch_size: of an update.
        n_steps: rewards that are summed before the value of what follows (Sutton 1988).
        gamma: discount.
        real_updates: after each real step that they learn from.
        imagined_updates: after each step of all dreams.
        target_every: steps from one small change of the target network (0.5 %) to the next, for DQN and QR-DQN.
        epsilon: chance of a uniform random action while learning, for DQN and QR-DQN.
        buffer_size: transitions that are kept at most; the oldest go first.
    """

    learning_rate: float = 3e-4
    batch_size: int = 64
    n_steps: int = 3
    gamma: float = 0.98
    real_updates: int = 1
    imagined_updates: int = 16
    target_every: int = 8
    epsilon: float = 0.02
    buffer_size: int = 500_000

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(1, batch_size=self.batch_size, n_steps=self.n_steps, buffer_size=self.buffer_size)
        _at_least(1, real_updates=self.real_updates, imagined_updates=self.imagined_updates)
        _at_least(1, target_every=self.target_every)
        for name in ("gamma", "epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate: expected a finite number of more than 0, got {self.learning_rate}.")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured after a round.

    Attributes:
        every: rounds from one measurement of the real score to the next; the last round's is always measured. Fidelity
            is measured after every round, in between on the episodes held out before.
        episodes: real episodes of such a measurement.
        final_episodes: real episodes after the last round: the score.
        num_envs: games played side by side.
        dream_episodes: dreams played for the dream's return.
        record_episodes: least number of real episodes of each measurement that are held out: kept, raw, and never
            fitted to; more are where less than 5 % of the run's real episodes would be. 0 keeps none.
        fidelity_episodes: newest held-out episodes that the dream's fidelity is measured on.
        fidelity_horizon: steps that the dream is left to itself there.
        fidelity_starts: windows of them, drawn uniformly; up to 5/8 as many are drawn for the events they hold.
    """

    every: int = 1
    episodes: int = 8
    final_episodes: int = 32
    num_envs: int = 32
    dream_episodes: int = 64
    record_episodes: int = 4
    fidelity_episodes: int = 8
    fidelity_horizon: int = 25
    fidelity_starts: int = 128

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = {name: value for name, value in vars(self).items() if name != "record_episodes"}
        _at_least(1, **counts)
        _at_least(0, record_episodes=self.record_episodes)


@dataclass(frozen=True)
class RunConfig:
    """One run: collect -> fit -> train -> evaluate, for a number of rounds.

    Schedules are tuples with one entry a round; the last entry stands for all rounds after it.

    Attributes:
        game: an ALE game's name or the id of any Gymnasium image environment.
        preset: where the other settings come from.
        seed: names every random stream of the run.
        algo: any algorithm of stable_baselines3 or sb3_contrib.
        network: the policy's: "paper" or "light".
        observation: what the agent sees: "codes", all of a latent, 128 times smaller than their embeddings, which its
            own first layer looks up; or "objects", places and steps of what moves (needs ``codec.objects``).
        rounds: how many.
        data: a folder that ``dreamgym data import`` wrote: its steps count as real steps of the first round, in place
            of as many random ones. Empty: all are played.
        codec_updates: per round.
        dynamics_updates: per round.
        imagined_steps: per round, environment steps inside the dream.
        fresh_agent: rounds, counted from 0, whose agent begins to train from nothing. What the first dreams taught, it
            has to unlearn (the primacy bias, Nikishin et al. 2022).
        codec: settings of the codec.
        dynamics: settings of the dynamics.
        game_options: the real game.
        collect: real experience.
        fit: fitting the world model.
        dream: the dream.
        ppo: hyperparameters of PPO; other algorithms take of these what they share.
        off_policy: hyperparameters of algorithms that keep a replay buffer of their own.
        evaluate: what is measured.
        bf16: bfloat16 products when dreaming.
        phase_bits: see :class:`dreamgym.world_model.WorldModelConfig`.
    """

    game: str = "Pong"
    preset: str = "laptop"
    seed: int = 0
    algo: str = "PPO"
    network: Literal["paper", "light"] = "paper"
    observation: Literal["codes", "objects"] = "codes"
    rounds: int = 15
    data: str = ""
    codec_updates: tuple[int, ...] = (750, 200)
    dynamics_updates: tuple[int, ...] = (500,)
    imagined_steps: tuple[int, ...] = (100_000,)
    fresh_agent: tuple[int, ...] = ()
    codec: VQVAEConfig = field(default_factory=VQVAEConfig)
    dynamics: DynamicsConfig = field(default_factory=ConvLSTMConfig)
    game_options: GameConfig = field(default_factory=GameConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    bf16: bool = True
    phase_bits: int = 0

    def __post_init__(self) -> None:
        """Check the types, and what no part can check alone."""
        for name, hint in get_type_hints(type(self)).items():
            value: Any = getattr(self, name)
            if not (is_dataclass(value) and isinstance(value, hint)) and not fits(value, hint):
                raise ConfigError(f"{name}: expected {type_name(hint)}, got {value!r}.")
        _at_least(1, rounds=self.rounds)
        _at_least(0, seed=self.seed)
        for name in ("codec_updates", "dynamics_updates", "imagined_steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 0:
                raise ConfigError(f"{name}: expected at least one number, none negative, got {getattr(self, name)}.")
        if self.fresh_agent and min(self.fresh_agent) < 1:
            raise ConfigError(f"fresh_agent: expected rounds after the first, which is 0, got {self.fresh_agent}.")
        if not 0 <= self.phase_bits <= MOST_PHASE_BITS:
            raise ConfigError(f"phase_bits: expected 0 to {MOST_PHASE_BITS}, got {self.phase_bits}.")
        if self.observation == "objects" and not self.codec.objects:
            raise ConfigError("observation: expected 'codes' where the codec knows no objects; set codec.objects=True.")
        if 0 < self.codec_updates[0] <= self.fit.settled_updates:
            # The encoder of the first round would never learn.
            raise ConfigError(
                f"codec_updates: expected more than fit.settled_updates={self.fit.settled_updates} in the first round, "
                f"or 0, got {self.codec_updates[0]}."
            )
        if self.collect.first_steps <= self.fit.sequence_length:
            raise ConfigError(
                f"collect.first_steps: expected more than fit.sequence_length={self.fit.sequence_length}, "
                f"got {self.collect.first_steps}."
            )

    @property
    def interactions(self) -> int:
        """Real steps of the whole run."""
        return self.interactions_by(self.rounds - 1)

    def learns_in_game(self, index: int) -> bool:
        """Whether a round's agent learns from the real steps that it collects."""
        return 0 < self.collect.learn_from <= index

    def collected(self, index: int) -> int:
        """Real steps of a round."""
        collect = self.collect
        if index == 0:
            return collect.first_steps
        return collect.learn_steps if self.learns_in_game(index) and collect.learn_steps else collect.steps

    def interactions_by(self, index: int) -> int:
        """Real steps by the end of a round's collecting."""
        collect = self.collect
        # Rounds after the first whose agent only plays, and those whose agent learns.
        learning = max(0, index + 1 - collect.learn_from) if collect.learn_from else 0
        learned = learning * (collect.learn_steps or collect.steps)
        return collect.first_steps + (index - learning) * collect.steps + learned

    def is_late(self, index: int) -> bool:
        """Whether a round is in the second half of them, of all that the configuration names by now."""
        return index >= self.rounds / 2

    def newest_share(self, index: int) -> float:
        """Share of a round's dreams that begin in its own experience."""
        return self.dream.late_newest_share if self.is_late(index) else self.dream.newest_share

    def to_json(self) -> dict[str, Any]:
        """Nested plain values, as written to ``config.json``."""
        return config_to_dict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: unknown fields or values out of range.
        """
        try:
            return config_from_dict(cls, values)
        except CheckpointError as error:
            raise ConfigError(f"config.json: {error}") from error


def per_round(schedule: Sequence[int], index: int) -> int:
    """Entry of a schedule for a round, counted from 0; the last entry stands for all later rounds."""
    return schedule[min(index, len(schedule) - 1)]


def _smoke() -> RunConfig:
    """The whole line in seconds, for tests: it learns nothing worth having."""
    return RunConfig(
        preset="smoke",
        network="light",
        rounds=2,
        codec_updates=(30, 10),
        dynamics_updates=(20, 10),
        imagined_steps=(800,),
        codec=VQVAEConfig(width=4),
        dynamics=ConvLSTMConfig(hidden=8, reward_hidden=32),
        collect=CollectConfig(first_steps=600, steps=300),
        fit=FitConfig(codec_batch_size=16, dynamics_batch_size=16, sequence_length=8, unquantized_updates=10),
        dream=DreamConfig(num_envs=16, horizon=10, start_states=128),
        ppo=PPOConfig(n_steps=25, batch_size=200),
        evaluate=EvaluateConfig(
            episodes=1,
            final_episodes=2,
            num_envs=2,
            dream_episodes=16,
            record_episodes=1,
            fidelity_horizon=10,
            fidelity_starts=32,
        ),
    )


def _quick() -> RunConfig:
    """A dream with a ball in it, in minutes."""
    laptop = _laptop()
    return replace(
        laptop,
        preset="quick",
        # There is no time to learn in the game.
        algo="PPO",
        rounds=2,
        codec_updates=(500, 0),
        dynamics_updates=(800, 500),
        imagined_steps=(50_000,),
        collect=CollectConfig(first_steps=6_000, steps=3_000),
        fit=replace(laptop.fit, unquantized_updates=200, settled_updates=300),
        evaluate=EvaluateConfig(),
    )


def _laptop() -> RunConfig:
    """A sitting on two cores: small networks, a light policy."""
    return RunConfig(
        preset="laptop",
        network="light",
        observation="objects",
        # From nothing it learns in 20,000 steps of the game what PPO learns in 100,000: it remembers.
        algo="DQN",
        rounds=3,
        # A refit renames codes, and dynamics and policy have to learn them anew: fidelity fell over the rounds.
        codec_updates=(700, 0),
        # A returned ball is few of many steps, and learned only if it is shown often.
        dynamics_updates=(200, 2_500, 2_000),
        # Of random play no dream learns what happens where a ball is returned. After a dream of the first lesson the
        # second one began at -1, without at -10.
        imagined_steps=(0, 200_000, 0),
        # The screen at half its size, in codes that see their own 4 px: what moves keeps its codes or has few of them.
        codec=VQVAEConfig(
            frame_size=112,
            frame_width=80,
            # One pixel of four of one emulator frame: what moves has a fifth of the pictures of means and maxima.
            shrink="nearest",
            max_pool=False,
            width=16,
            stages=2,
            stage_kernel=2,
            pictures=True,
            sprites=True,
            objects=True,
            # Where the screen's edge is, many codes show a paddle and a ball together.
            aligned=True,
            quantizer=QuantizerConfig(num_codes=256, dead_below=0.002),
        ),
        dynamics=MultiscaleConfig(
            fine=32,
            channels=64,
            blocks=1,
            cell_hidden=192,
            least_chance=0.05,
            wraps=True,
            # At a place inside a cell and a speed that were hardly seen a ball was lost one time in ten.
            motion=True,
            # Where it bounces, and where it is not sure, it goes somewhere.
            step_hidden=128,
            # Once in a thousand steps half of a paddle flew away, and never came back.
            seen_places=True,
            # One ball in four left the screen without a point, and some came back after theirs.
            reward_first=True,
            # One ball in six was gone without a point, at walls, paddles and edges, and no other was served.
            permanence=True,
            # A ball is worth a point in one column of cells and not in the next.
            reward_channels=32,
            coarse_dropout=0.5,
        ),
        # Random play shows the codec nearly all that is ever drawn, and no policy anything.
        collect=CollectConfig(first_steps=12_800, learn_from=1, learn_steps=44_800),
        # What is rare and fitted badly, returned balls at first, is what the policy has to learn from.
        fit=FitConfig(
            # Each kind of cell its own code, once the encoder has seen enough of them.
            codec_batch_size=32,
            unquantized_updates=250,
            settled_updates=450,
            dynamics_optimizer="muon",
            # Three steps shown and two predicted: as many different moments as the batch can hold.
            dynamics_batch_size=32,
            sequence_length=5,
            dynamics_learning_rate=2e-3,
            reward_learning_rate=2e-3,
            final_rate=0.05,
            windows="surprise",
            surprise_limit=64.0,
            surprise_power=2.0,
            surprise_settling=10,
            rare_share=0.5,
            even_share=0.25,
            surprise_correction=0.0,
        ),
        dream=DreamConfig(horizon=50, start_states=1024),
        ppo=PPOConfig(learning_rate=6e-4),
        evaluate=EvaluateConfig(every=2),
    )


def _gpu() -> RunConfig:
    """The recipe of ``laptop`` in larger networks and with the paper's number of rounds, for a graphics card."""
    laptop = _laptop()
    return replace(
        laptop,
        preset="gpu",
        algo="PPO",
        rounds=15,
        codec_updates=(4_000, 0),
        dynamics_updates=(4_000, 2_500),
        imagined_steps=(1_000_000,),
        codec=replace(laptop.codec, width=32, quantizer=replace(laptop.codec.quantizer, num_codes=256)),
        dynamics=replace(
            laptop.dynamics,
            fine=64,
            fine_blocks=2,
            embedding=32,
            channels=256,
            blocks=2,
            reward_hidden=512,
            cell_hidden=512,
        ),
        collect=CollectConfig(),
        fit=replace(laptop.fit, codec_batch_size=128, unquantized_updates=3_550, dynamics_batch_size=1_024),
        # What a policy that plays gets into is in what it has just done: dreams begin there, and last as long as they
        # are true. One that knew nothing learned more from short ones that began anywhere.
        dream=replace(laptop.dream, num_envs=512, late_horizon=200, late_newest_share=1.0, start_states=6400),
        ppo=PPOConfig(n_steps=25, batch_size=1_600),
    )


_PAPER_EPOCHS = (140, 32, 24, 20, 16, 14, 12, 11, 10, 9, 8, 8, 7, 7, 6)
_PAPER_MINIBATCHES = (1000,) * 7 + (2000,) + (1000,) * 3 + (2000, 1000, 1000, 3000)


def _paper() -> RunConfig:
    """The published networks, losses and schedule (Table 5), for comparison."""
    collect = CollectConfig()
    steps = [collect.first_steps + i * collect.steps for i in range(15)]
    dynamics = tuple(epochs * (count // (11 * 4)) for epochs, count in zip(_PAPER_EPOCHS, steps, strict=True))
    warmup = 50 * (collect.first_steps // 40)
    codec = tuple(updates // (2 if i < 2 else 3) + (warmup if i == 0 else 0) for i, updates in enumerate(dynamics))
    return RunConfig(
        preset="paper",
        rounds=15,
        codec_updates=codec,
        dynamics_updates=dynamics,
        imagined_steps=tuple(minibatches * 16 * 50 for minibatches in _PAPER_MINIBATCHES),
        codec=VQVAEConfig.published(),
        dynamics=ConvLSTMConfig(end_head=False),
        collect=collect,
        fit=FitConfig.published(),
        dream=DreamConfig(
            num_envs=16,
            horizon=50,
            horizon_as="termination",
            latent_stack=1,
            context=1,
            reward="sampled",
            start_states=102_400,
            stagger=False,
        ),
        ppo=PPOConfig(n_steps=50, batch_size=256),
        evaluate=EvaluateConfig(episodes=32, final_episodes=32, fidelity_horizon=50),
        bf16=False,
    )


PRESETS = {"smoke": _smoke, "quick": _quick, "laptop": _laptop, "gpu": _gpu, "paper": _paper}
"""What builds each preset's configuration."""


def make_config(preset: str = "laptop", game: str = "Pong", seed: int = 0, **overrides: Any) -> RunConfig:
    """A preset for a game, with single settings replaced.

    Args:
        preset: one of :data:`PRESETS`.
        game: any spelling that :func:`dreamgym.real.resolve_game` takes.
        seed: of the run.
        overrides: fields of :class:`RunConfig`.

    Raises:
        ConfigError: no such preset or field.
        UnknownGameError: no such game.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}.")
    known = [part.name for part in fields(RunConfig)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name}: no such setting of a run, expected some of {', '.join(known)}.")
    return replace(PRESETS[preset](), game=resolve_game(game), seed=seed, **overrides)
