"""Which parts of the recipe earn their place: each row changes one thing about a preset, all at equal wall time.

Every row is fitted to the same real experience of a finished run, measured on the same held-out episodes, and judged by
what a fresh policy, trained in its dream, scores in the real game:

    python tests/benchmarks/ablate.py --replay runs/pong --rows laptop,lstm,cold --seeds 0,1
    python tests/benchmarks/ablate.py --table

A row and seed that is measured is a line of ``--out``; run again, the command goes on with what is missing.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import tyro

from dreamgym.agent import make_agent
from dreamgym.checkpoint import Dream, StartStates, write_atomic
from dreamgym.config import RunConfig, make_config
from dreamgym.device import resolve_device
from dreamgym.episodes import split_episodes
from dreamgym.errors import ConfigError
from dreamgym.evaluate import evaluate_real
from dreamgym.fidelity import fidelity
from dreamgym.fit import FitConfig, Fitter
from dreamgym.hardware import describe_machine, matmul_rates
from dreamgym.latents import encode_replay
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.pong import ball_survival
from dreamgym.provenance import code_version
from dreamgym.real import make_game_env
from dreamgym.real_env import make_real_env
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder, derive_seed
from dreamgym.sb3 import make_sb3_env
from dreamgym.world_model import WorldModel, WorldModelConfig

Record = dict[str, Any]
Change = Callable[[RunConfig], RunConfig]
_WORLD_MODEL = ("seed", "codec", "dynamics", "fit", "bf16")


@dataclass(frozen=True)
class Args:
    """Measure rows of the ablation table, and print it."""

    replay: Path | None = None
    """run folder whose real experience every row is fitted to and measured on"""
    rows: str = "all"
    """names of rows, separated by commas"""
    seeds: str = "0,1"
    """likewise: of networks, draws, policy and real games; the experience is split once for all"""
    table: bool = False
    """only print the table of what is measured already"""
    preset: str = "laptop"
    """the recipe that the rows change"""
    codec_seconds: float = 60.0
    """wall time of the codec's updates"""
    dynamics_seconds: float = 240.0
    """wall time of the dynamics' updates"""
    policy_seconds: float = 120.0
    """wall time of the policy's training in the dream"""
    episodes: int = 8
    """real episodes that the policy is scored on"""
    starts: int = 256
    """uniform windows that fidelity is measured on"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    out: Path = Path("build/ablations.jsonl")
    """where every row and seed is written as soon as it is measured"""
    cache: Path = Path("build/ablations")
    """where fitted parts are kept for rows that share them; remove it when the code that fits has changed"""


class Row(NamedTuple):
    """One line of the table: why it is there, and what it changes."""

    why: str
    change: Change


def but(**changes: Any) -> Change:
    """The recipe but for some settings: a dict replaces fields of a part, anything else a whole setting."""

    def new(old: Any, value: Any) -> Any:
        return replace(old, **value) if isinstance(value, dict) else value

    return lambda config: replace(config, **{name: new(getattr(config, name), changes[name]) for name in changes})


_FRAME: dict[str, Any] = {"frame_size": 112, "frame_width": 80}
_WIDE_CODES = {"stages": 3, "stage_kernel": 4, "pictures": False, "quantizer": QuantizerConfig(num_codes=64)}
_PATCH_CODES = {"stages": 3, "quantizer": QuantizerConfig(num_codes=256, dead_below=0.002)}
_PUBLISHED = replace(VQVAEConfig.published(), width=16, **_FRAME)
_ONE_GRID = ResidualConfig(clock=32, joint=64, least_chance=0.05, dropout=0.0)
_NARROW = {"fine": 24, "cell_hidden": 128, "embedding": 8}
_EDGES = {"wraps": False}
_NO_STEPS = {"step_hidden": 0, "reward_first": False, "permanence": False}
_NO_MOTION = {"motion": False, **_NO_STEPS}
_WINDOWS = {"dynamics_batch_size": 8, "sequence_length": 16}
_CRITIC = {"critic_share": 0.5}
_UNSETTLED = {"settled_updates": 0, "unquantized_updates": 100, "codec_batch_size": 64}
_BALANCED = {"windows": "balanced"}
_LSTM = ConvLSTMConfig(hidden=64, kernel=3, reward_hidden=128, latent_skip=True, patch=4)
_ADAMW_RATES = {"dynamics_learning_rate": 1e-3, "reward_learning_rate": 1e-3}
_LSTM_RATES = {"dynamics_learning_rate": 3e-3, "reward_learning_rate": 3e-3}

ROWS = {
    "laptop": Row("the recipe itself", but()),
    # The codec.
    "wide-codes": Row(
        "64 codes of 8 px that see 22 px, one grid of 16 px, windows of 16 steps: near to the recipe before",
        but(
            codec={**_WIDE_CODES, "aligned": False},
            dynamics=_ONE_GRID,
            fit={**_WINDOWS, **_UNSETTLED, "surprise_settling": 0, "rare_share": 0.0, "even_share": 0.0},
        ),
    ),
    "codes8": Row("codes that see their own 8 px, 256 of them", but(codec=_PATCH_CODES, dynamics={"scale": 2})),
    "edge-grid": Row("the grid of cells where the screen's edge is", but(codec={"aligned": False}, dynamics=_EDGES)),
    "unsettled": Row("codes follow moving averages of what the encoder makes of cells", but(fit=_UNSETTLED)),
    "codes64": Row(
        "a quarter as many codes", but(codec={"quantizer": QuantizerConfig(num_codes=64, dead_below=0.002)})
    ),
    "no-pictures": Row("codes have no pictures of their own", but(codec={"pictures": False})),
    "no-foreground": Row(
        "all pixels weigh alike and the decoder knows no background: the paper's loss",
        but(codec={"foreground_weight": 0.0, "pixel_bias": False}),
    ),
    "published-codec": Row(
        "the paper's codec and codebook at this width: four stacked frames, 7x5 codes that see the whole screen",
        but(
            codec=_PUBLISHED,
            observation="codes",
            fit={**_UNSETTLED, "unquantized_updates": 0},
            dynamics={"scale": 1, **_NO_MOTION, **_EDGES},
            dream={"latent_stack": 1},
        ),
    ),
    # The dynamics.
    "lstm": Row(
        "a convolutional LSTM, as in the paper, at the rate that suits it",
        but(
            dynamics=_LSTM,
            fit={**_WINDOWS, "dynamics_optimizer": "adamw", "dynamics_batch_size": 32, **_LSTM_RATES},
        ),
    ),
    "one-grid": Row("blocks on the coarse grid alone", but(dynamics=replace(_ONE_GRID, patch=4), fit=_WINDOWS)),
    "critic": Row("a critic rejects what would not come, up to seven times", but(dynamics={"redraws": 7}, fit=_CRITIC)),
    "edges-apart": Row("no way round from one edge of the grid to the other", but(dynamics=_EDGES)),
    "no-motion": Row(
        "the dynamics are not shown where what moves goes",
        but(dynamics=_NO_MOTION),
    ),
    "cell-by-cell": Row(
        "what moves is drawn cell by cell, and the reward not told of it",
        but(dynamics=_NO_STEPS),
    ),
    "impermanence": Row(
        "things go anywhere, and are forgotten when they are hidden", but(dynamics={"permanence": False})
    ),
    "steps-apart": Row(
        "steps are foretold without the trunk, rows and columns apart, by a head that is fitted alone",
        but(dynamics={"steps_apart": True, "step_hidden": 256}, fit={"step_share": 1.5, "step_weight_decay": 0.3}),
    ),
    "coarse-rewards": Row(
        "the reward head is told what the coarse blocks know, and no more", but(dynamics={"reward_channels": 0})
    ),
    "every-code": Row("also the least likely codes are drawn", but(dynamics={"least_chance": 0.0})),
    "short-clock": Row("a clock that stops after four steps", but(dynamics={"clock": 4})),
    "memory2": Row(
        "two latents seen instead of four", but(dynamics={"memory": 2, "permanence": False}, fit={"sequence_length": 3})
    ),
    "memory8": Row("eight latents seen instead of four", but(dynamics={"memory": 8}, fit={"sequence_length": 9})),
    "narrow": Row("a quarter less of everything: more updates, cheaper ones", but(dynamics=_NARROW)),
    "fine-blocks2": Row("twice as many blocks on the fine grid", but(dynamics={"fine_blocks": 2})),
    "blocks3": Row("three times as many blocks on the coarse grid", but(dynamics={"blocks": 3})),
    # Fitting the dynamics.
    "balanced": Row("windows drawn evenly, whatever their loss, those with a reward more often", but(fit=_BALANCED)),
    "uniform": Row(
        "windows drawn uniformly, those with a reward no more often",
        but(fit={"windows": "uniform", "event_priority": 1.0}),
    ),
    "in-proportion": Row(
        "windows drawn in proportion to their loss, not to its square",
        but(fit={"surprise_power": 1.0, "surprise_limit": 8.0}),
    ),
    "no-rarity": Row(
        "windows drawn by their loss that are drawn by rarity in the recipe", but(fit={"rare_share": 0.0})
    ),
    "no-even": Row("windows drawn by their loss that are drawn evenly in the recipe", but(fit={"even_share": 0.0})),
    "loss-alone": Row("all windows drawn by their loss alone", but(fit={"rare_share": 0.0, "even_share": 0.0})),
    "rarity-alone": Row(
        "all windows drawn so that every kind of change comes as often", but(fit={"rare_share": 1.0, "even_share": 0.0})
    ),
    "surprised-by-scores": Row("what follows a reward may surprise, too", but(fit={"surprise_settling": 0})),
    "corrected": Row("rewards and ends not shifted by surprise at all", but(fit={"surprise_correction": 1.0})),
    "half-corrected": Row("rewards and ends shifted by surprise in part", but(fit={"surprise_correction": 0.7})),
    "long-windows": Row("five windows of 16 steps", but(fit={"sequence_length": 16, "dynamics_batch_size": 5})),
    "adamw": Row("AdamW for all weights", but(fit={"dynamics_optimizer": "adamw", **_ADAMW_RATES})),
    "batch128": Row("four times the batch, so fewer updates", but(fit={"dynamics_batch_size": 128})),
    "code-noise": Row("2 % of the codes that are shown to the dynamics are swapped", but(fit={"code_noise": 0.02})),
    "dropout": Row("a tenth of each block's channels dropped in training", but(dynamics={"dropout": 0.1})),
    "moved": Row(
        "frames moved up or down by up to 8 px, for codec and dynamics, the grid where the screen's edge is",
        but(codec={"aligned": False}, dynamics=_EDGES, fit={"shift": 8}),
    ),
    "self-fed": Row("the model's own draws as inputs after four true ones: the paper's", but(fit={"context_steps": 4})),
    "decay0": Row("no weight decay", but(fit={"weight_decay": 0.0})),
    "constant-rate": Row("learning rates that do not fall: the paper's", but(fit={"final_rate": 1.0})),
    # The dream.
    "cold": Row("codes drawn at temperature 0.1: nearly always the most likely ones", but(dream={"temperature": 0.1})),
    "argmax": Row("always the most likely codes: no chance in the dream", but(dream={"temperature": 0.0})),
    "stack1": Row("the policy sees the newest latent alone: no motion", but(dream={"latent_stack": 1})),
    "sampled-reward": Row("rewards drawn, not expected: the paper's", but(dream={"reward": "sampled"})),
    "horizon25": Row("dreams half as long", but(dream={"horizon": 25})),
    "newest-starts": Row("three in four dreams begin in the newest experience", but(dream={"newest_share": 0.75})),
    "horizon100": Row("dreams twice as long", but(dream={"horizon": 100})),
    # The policy.
    "paper-policy": Row("the paper's policy network, several times as large", but(network="paper")),
}


class Ablation:
    """What all rows share: the experience and its split, the preset, the machine."""

    def __init__(self, args: Args, run: RunFolder) -> None:
        self.args = args
        self.device = resolve_device(args.device)
        self.base = make_config(args.preset, run.config().game)
        if self.base.fit.interleaved:
            raise ConfigError(f"--preset: expected one that fits codec and dynamics apart, got {args.preset}.")
        self.replay, self.held_out = split_episodes(Replay.load(run.replay), np.random.default_rng(0))
        env = make_game_env(self.base.game, **self.base.codec.screen)
        self.num_actions = int(getattr(env.action_space, "n", 0))
        env.close()
        budgets = ("preset", "codec_seconds", "dynamics_seconds", "policy_seconds", "episodes", "starts")
        self.settings: Record = {
            **{name: getattr(args, name) for name in budgets},
            "replay": str(run.path.resolve()),
            "fitted_steps": len(self.replay),
            "held_out_steps": len(self.held_out),
            "held_out_episodes": len(self.held_out.iter_episodes()),
        }

    def recipe(self, name: str, seed: int) -> RunConfig:
        """All settings of a row."""
        return ROWS[name].change(replace(self.base, seed=seed))

    def measure(self, name: str, seed: int) -> Record:
        """One row with one seed: fit, compare the dream with the game, train a policy in it, play."""
        config, rates = self.recipe(name, seed), matmul_rates(self.device)
        model = self._new_model(config)
        codec = self._fit_codec(config)
        model.codec.load_state_dict(codec.pop("weights"))
        latents = codec.pop("latents")
        dynamics = self._fit_dynamics(config, model, latents)
        model.dynamics.load_state_dict(dynamics.pop("weights"))
        measured = self._fidelity(config, model)
        dream = self._dream(config, model, latents)
        agent, training = timed(lambda: self._train(config, dream))
        score, playing = timed(lambda: self._play(config, dream, agent))
        seconds = {"codec": codec["seconds"], "encoding": codec["encoding"], "dynamics": dynamics["seconds"]}
        return {
            "row": name,
            "why": ROWS[name].why,
            "seed": seed,
            "settings": self.settings,
            "recipe": _plain(config),
            **code_version(),
            "machine": f"{self.device}: {describe_machine(self.device)}",
            "matmul_gflops": rates,
            "parameters": sum(model.parameter_counts().values()),
            "updates": {"codec": codec["updates"], "dynamics": dynamics["updates"]},
            "imagined_steps": agent.num_timesteps,
            "seconds": seconds | {"policy": training, "real": playing},
            "fit": codec["report"] | dynamics["report"],
            "fidelity": measured,
            "real": score,
        }

    def _fit_codec(self, config: RunConfig) -> Record:
        """A fitted codec, and the latents of the experience."""
        plain = config.to_json()
        fields = (
            "codec_batch_size",
            "codec_learning_rate",
            "codec_warmup_learning_rate",
            "unquantized_updates",
            "settled_updates",
            "shift",
        )
        settings = {name: plain["fit"][name] for name in (*fields, "final_rate", "bf16")}

        def fit() -> Record:
            model = self._new_model(config)
            Fitter(model, config.fit).prepare_codec(self.replay)
            trying = Fitter(copy.deepcopy(model), replace(config.fit, unquantized_updates=0, settled_updates=0))

            def update(fitter: Fitter, count: int) -> Record:
                return fitter.fit_codec(self.replay, count, *_draws(config, "codec"), progress=False)

            count = updates_within(self.args.codec_seconds, lambda count: update(trying, count))
            fitter = Fitter(model, shortened(config, count))
            report, seconds = timed(lambda: update(fitter, count))
            latents, encoding = timed(lambda: torch.from_numpy(encode_replay(model, self.replay)))
            found = {"updates": count, "seconds": seconds, "encoding": encoding, "report": report}
            return {**found, "weights": model.codec.state_dict(), "latents": latents}

        return self._kept("codec", [plain["seed"], plain["codec"], settings, self.args.codec_seconds], fit)

    def _fit_dynamics(self, config: RunConfig, model: WorldModel, latents: torch.Tensor) -> Record:
        """Dynamics fitted on a codec that is."""
        plain = config.to_json()
        parts = [plain[name] for name in _WORLD_MODEL]

        def fit() -> Record:
            trying, fitter = Fitter(copy.deepcopy(model), config.fit), Fitter(model, config.fit)

            def update(fitter: Fitter, count: int) -> Record:
                # Balanced windows depend on what was drawn before: neither the trial nor another row shall count.
                self.replay.visits = np.zeros(len(self.replay), dtype=np.int64)
                draws = _draws(config, "dynamics")
                return fitter.fit_dynamics(self.replay, latents.numpy(), count, *draws, progress=False)

            count = updates_within(self.args.dynamics_seconds, lambda count: update(trying, count))
            report, seconds = timed(lambda: update(fitter, count))
            return {"updates": count, "seconds": seconds, "report": report, "weights": model.dynamics.state_dict()}

        return self._kept("dynamics", [parts, self.args.codec_seconds, self.args.dynamics_seconds], fit)

    def _fidelity(self, config: RunConfig, model: WorldModel) -> Record:
        """Dreams at the row's temperature beside the held-out game: the same windows for all rows and seeds."""
        horizon = self.base.evaluate.fidelity_horizon
        context, temperature = self.base.dream.context, config.dream.temperature
        options: Any = {"context": context, "horizon": horizon, "temperature": temperature}
        measured: Record = dict(fidelity(model, self.held_out, starts=self.args.starts, **options))
        return measured | {"ball_located": ball_survival(model, self.held_out)}

    def _dream(self, config: RunConfig, model: WorldModel, latents: torch.Tensor) -> Dream:
        rng = np.random.default_rng(derive_seed(config.seed, "starts"))
        count = min(config.dream.start_states, len(self.replay))
        share = config.dream.newest_share
        windows = self.replay.sample_starts(count, config.dream.context, rng, len(self.replay) // 4, share)
        actions = torch.as_tensor(self.replay.actions_at(windows.indices))
        valid, elapsed = torch.as_tensor(windows.mask), self.replay.elapsed_at(windows.indices[:, 0])
        starts = StartStates(latents[torch.as_tensor(windows.indices)], actions, valid, torch.as_tensor(elapsed))
        metadata = {"game": config.game, "horizon": config.dream.horizon, "temperature": config.dream.temperature}
        return Dream(model, starts, config.dream.latent_stack, metadata)

    def _train(self, config: RunConfig, dream: Dream) -> Any:
        """A fresh agent, trained until its time is over, which warming the dreams up counts towards."""
        until = time.perf_counter() + self.args.policy_seconds
        seed, kind = derive_seed(config.seed, "dream"), config.observation
        options: Any = {name: getattr(config.dream, name) for name in ("reward", "horizon_as", "stagger")}
        env = make_sb3_env(
            dream, config.dream.num_envs, device=str(self.device), observation=kind, seed=seed, **options
        )
        agent = make_agent(config, env, derive_seed(config.seed, "agent"), str(self.device))

        def go_on(*_: Any) -> bool:
            return time.perf_counter() < until

        agent.learn(10**12, callback=go_on)
        env.close()
        return agent

    def _play(self, config: RunConfig, dream: Dream, agent: Any) -> Record:
        """The real score, actions sampled."""
        episodes, kind = self.args.episodes, config.observation
        envs, options = min(config.evaluate.num_envs, episodes), config.to_json()["game_options"]
        with closing(make_real_env(dream, envs, device=str(self.device), observation=kind, **options)) as real:
            return evaluate_real(agent, real, episodes, derive_seed(config.seed, "evaluate")).as_dict()

    def _new_model(self, config: RunConfig) -> WorldModel:
        parts = {"codec": config.codec, "dynamics": config.dynamics, "bf16": config.bf16}
        settings = WorldModelConfig(config.game, self.num_actions, **cast(Any, parts))
        return WorldModel(settings, derive_seed(config.seed, "world model")).to(self.device)

    def _kept(self, kind: str, key: list[Any], fit: Callable[[], Record]) -> Record:
        """What was fitted with the same settings before, its time with it; else fit now, and keep it."""
        whole = [*key, str(self.device), self.settings["replay"], len(self.replay)]
        name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
        file = self.args.cache / f"{kind}-{name}.pt"
        if not file.is_file():
            fitted = fit()
            write_atomic(file, lambda path: torch.save(fitted, path))
        return torch.load(file, "cpu", weights_only=True)


def _plain(config: RunConfig) -> Record:
    """The settings that a row's results depend on: what is measured here knows no rounds."""
    plain = config.to_json()
    return {name: plain[name] for name in (*_WORLD_MODEL, "game", "algo", "network", "game_options", "dream", "ppo")}


def _draws(config: RunConfig, name: str) -> tuple[np.random.Generator, torch.Generator]:
    seed = derive_seed(config.seed, name)
    return np.random.default_rng(seed), torch.Generator().manual_seed(seed)


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds it takes."""
    started = time.perf_counter()
    found = act()
    return found, time.perf_counter() - started


def shortened(config: RunConfig, count: int) -> FitConfig:
    """The fit of ``count`` codec updates of which the same share as in the recipe is unquantised, and settled."""
    fit, planned = config.fit, config.codec_updates[0]
    if not fit.settled_updates:
        return fit
    shares = {name: getattr(fit, name) * count // planned for name in ("unquantized_updates", "settled_updates")}
    return replace(fit, **shares)


def updates_within(seconds: float, update: Callable[[int], object], few: int = 5) -> int:
    """How many updates fit into a time: learning rates fall by their count, which must be known beforehand.

    Args:
        seconds: the time; a twentieth of it is spent on trying.
        update: makes so many updates.
        few: updates tried at once, the first ones to warm up.
    """
    update(few)
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds / 20:
        update(few)
        done += few
    return max(1, int(seconds * done / elapsed))


_PARTS = {"seconds": ("codec", "encoding", "dynamics", "policy"), "updates": ("codec", "dynamics")}
_COLUMNS = {
    "imagined steps": ("imagined_steps", ",.0f"),
    "codes @1": ("fidelity/code_accuracy_1", ".3f"),
    "codes @25": ("fidelity/code_accuracy_25", ".3f"),
    "recall 0-10": ("fidelity/recall_0_10", ".2f"),
    "recall 15-25": ("fidelity/recall_15_25", ".2f"),
    "precision": ("fidelity/precision", ".2f"),
    "correlation": ("fidelity/reward_correlation", ".2f"),
    "dream/real lost": ("fidelity/reward_ratio_lost", ".2f"),
    "dream/real won": ("fidelity/reward_ratio_won", ".2f"),
    "ball located": ("fidelity/ball_located", ".3f"),
    "bfloat16 GFLOP/s": ("matmul_gflops/bfloat16", ",.0f"),
}
_NOTE = (
    "Preset {preset}; all fitted to the same {fitted_steps:,} real steps and measured on the same {held_out_episodes} "
    "held-out episodes ({held_out_steps:,} steps). Real score: {episodes} episodes a seed, actions sampled; mean ± its "
    "standard error over seeds (in brackets over all episodes). Rows with the same codec or world model share its very "
    "weights; its time counts in each."
)


def table(records: Sequence[Record]) -> str:
    """Markdown: a line for each row of the ablation, then what holds for all of them and what each is."""
    if not records:
        return "Nothing is measured yet."
    names = sorted({record["row"] for record in records}, key=lambda name: [*ROWS, name].index(name))
    sums = [f"{kind}: {' + '.join(parts)}" for kind, parts in _PARTS.items()]
    rows = [["recipe", "seeds", *sums, *_COLUMNS, "real score"]]
    rows.append(["---"] * len(rows[0]))
    for name in names:
        group = [record for record in records if record["row"] == name]
        sums = [" + ".join(_mean(group, f"{kind}/{part}", ",.0f") for part in _PARTS[kind]) for kind in _PARTS]
        singles = [_mean(group, path, form) for path, form in _COLUMNS.values()]
        rows.append([name, ", ".join(str(record["seed"]) for record in group), *sums, *singles, _score(group)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    machines = "; ".join(sorted({record["machine"] for record in records}))
    reasons = {record["row"]: record["why"] for record in records}
    lines += ["", f"{_NOTE.format(**records[0]['settings'])} Machine: {machines}.", ""]
    return "\n".join([*lines, *(f"- `{name}`: {reasons[name]}" for name in names)])


def _mean(group: Sequence[Record], path: str, form: str) -> str:
    """Mean over the seeds that have the number."""
    part, _, name = path.rpartition("/")
    values = [(record[part] if part else record).get(name) for record in group]
    known = [value for value in values if value is not None]
    return format(float(np.mean(known)), form) if known else "-"


def _score(group: Sequence[Record]) -> str:
    means = [record["real"]["mean"] for record in group]
    episodes = [value for record in group for value in record["real"]["episodes"]]
    return f"{np.mean(means):.1f} ± {_standard_error(means)} ({_standard_error(episodes)})"


def _standard_error(values: Sequence[float]) -> str:
    """Of the mean; a single value has none."""
    return f"{np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else "-"


def read_records(file: Path) -> list[Record]:
    """What is measured already."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def run(args: Args) -> None:
    """Measure what is missing.

    Raises:
        ConfigError: no run, an unknown row, or a file with results of other settings.
    """
    names = list(ROWS) if args.rows == "all" else args.rows.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        raise ConfigError(f"--rows: expected some of {', '.join(ROWS)}; got {', '.join(unknown)}.")
    if args.replay is None:
        raise ConfigError("--replay: expected the run folder whose experience is used, got none.")
    ablation = Ablation(args, RunFolder(args.replay))
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            recipe = _plain(ablation.recipe(name, seed))
            done = read_records(args.out)
            same = [record for record in done if (record["row"], record["seed"]) == (name, seed)]
            if any(each["settings"] != ablation.settings for each in done) or any(r["recipe"] != recipe for r in same):
                raise ConfigError(f"{args.out} holds results of other settings or recipes: choose another --out.")
            if same:
                continue
            record, seconds = timed(lambda name=name, seed=seed: ablation.measure(name, seed))
            # Read again: another process may have added to the file meanwhile.
            lines = "".join(json.dumps(each) + "\n" for each in [*read_records(args.out), record])
            write_atomic(args.out, lambda file, lines=lines: cast(Any, file.write_text(lines)))
            print(f"{name}, seed {seed}: real score {record['real']['mean']:.1f}; {seconds:.0f} s", flush=True)


def main(args: Args) -> None:
    """Measure, unless only the table is wanted; print the table."""
    if not args.table:
        run(args)
    print(table(read_records(args.out)))


if __name__ == "__main__":
    main(tyro.cli(Args))
