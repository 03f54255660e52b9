"""All recipes for the same minutes in one dream, then in the real game, as a table: ``python agents/table.py``.

A row is written as soon as it is finished, and kept with its facts by all later calls:

    python agents/table.py --minutes 10 --only ppo,a2c
    python agents/table.py --minutes 10 --readme README.md

The hyperparameters are those of ``hyperparams.yml``, which are the recipes' own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import tyro
from stable_baselines3.common.base_class import BaseAlgorithm

import dreamgym
from dreamgym.checkpoint import Dream, write_text
from dreamgym.cli import FAULT, INTERRUPTED, USER_ERROR
from dreamgym.device import resolve_device
from dreamgym.dreaming import find_dream
from dreamgym.errors import ConfigError, DreamgymError, InvalidInputError
from dreamgym.evaluate import Score, evaluate_real, random_score
from dreamgym.hardware import describe_machine, matmul_rates
from dreamgym.interrupts import stops_on_signals
from dreamgym.json_files import parse_json
from dreamgym.provenance import code_version
from dreamgym.sb3 import make_algorithm

HERE = Path(__file__).parent

ALGORITHMS = {
    "ppo": "PPO",
    "a2c": "A2C",
    "dqn": "DQN",
    "qrdqn": "QRDQN",
    "trpo": "TRPO",
    "recurrent_ppo": "RecurrentPPO",
    "ars": "ARS",
}
"""What Stable-Baselines3 calls the algorithm of each recipe."""

SEEN = "codes"
"""What an agent sees, where its hyperparameters do not say."""

BEGIN, END = "<!-- agents/table.py: begin -->", "<!-- agents/table.py: end -->"
"""What the table is put between."""

Facts = dict[str, Any]
"""Plain JSON."""


@dataclass
class Args:
    """Train each algorithm for the same time in a dream, score it in the real game, and write a table of it."""

    dream: str = "Dream-Pong-v0"
    """id of a dream, run folder or file"""
    only: str = ""
    """recipes to train, with commas between them, such as ppo,a2c; by default all that have no row yet"""
    minutes: float = 10
    """wall time to train each for; inf: the n_timesteps of hyperparams.yml instead"""
    episodes: int = 32
    """real episodes to score each with, and random actions"""
    seed: int = 0
    """of the dreams, of the algorithms and of the games"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    out: Path = HERE / "table.json"
    """the table as JSON; as Markdown it is written beside it (.md)"""
    readme: Path | None = None
    """a file to put the table into, too, between its two marks"""
    hyperparams: Path = HERE / "hyperparams.yml"
    """by algorithm and environment, as the RL Zoo names them"""


def read_hyperparams(file: Path, recipe: str, environment: str) -> Facts:
    """Read one algorithm's hyperparameters.

    Args:
        file: YAML: recipe, environment, hyperparameters.
        recipe: one of :data:`ALGORITHMS`.
        environment: the dream's id.

    Returns:
        ``n_envs``, ``n_timesteps`` and what :func:`dreamgym.sb3.make_algorithm` takes.

    Raises:
        ConfigError: no such file, no YAML, no such entry, one without ``n_envs`` or ``n_timesteps``, or a schedule.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError("agents/table.py needs PyYAML: pip install 'dreamgym[agents]'.") from error
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = dict(known[recipe][environment])
        settings |= {name: int(settings[name]) for name in ("n_envs", "n_timesteps")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"hyperparams: expected YAML at {file}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"hyperparams: expected {recipe}: {environment}: with n_envs, n_timesteps and the algorithm's own in "
            f"{file}, got {type(error).__name__} {error}."
        ) from error
    schedules = [name for name, value in settings.items() if str(value).startswith("lin_")]
    if schedules:
        raise ConfigError(f"hyperparams: expected constants, as time ends training; {file} has lin_ for {schedules}.")
    policy = settings.get("policy")
    if isinstance(policy, str) and "." in policy:
        module, _, name = policy.rpartition(".")
        try:
            settings["policy"] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"hyperparams: policy: expected a class, {policy} is none: {error}.") from error
    return settings


def train(recipe: str, settings: Mapping[str, Any], dream: Dream, args: Args) -> tuple[BaseAlgorithm, int, float]:
    """Train an algorithm from nothing.

    Args:
        recipe: one of :data:`ALGORITHMS`.
        settings: of :func:`read_hyperparams`.
        dream: to train in.
        args: seed, device and minutes.

    Returns:
        The algorithm, the imagined steps and the seconds that it trained for.

    Raises:
        ConfigError: the algorithm has no such hyperparameter.
    """
    given = dict(settings)
    num_envs, steps = given.pop("n_envs"), given.pop("n_timesteps")
    observation = given.pop("observation", SEEN)
    staged: dict[str, Any] = {"observation": observation, "device": args.device, "seed": args.seed}
    # ARS's candidates play whole dreams: those of one age end together.
    env = dreamgym.make_sb3_env(dream, num_envs, stagger=recipe != "ars", **staged)
    model = make_algorithm(ALGORITHMS[recipe], env, args.seed, args.device, **given)
    steps = steps if args.minutes == math.inf else 10**9
    began = time.monotonic()
    limit = began + 60 * args.minutes
    if recipe == "ars":
        played = 0
        # It does not stop when its callback says so: each call makes one update.
        while played < steps and time.monotonic() < limit:
            model.learn(1, reset_num_timesteps=False)
            # It counts the step of each dream as one of all.
            played = model.num_timesteps // num_envs
    else:
        model.learn(steps, callback=lambda *_: time.monotonic() < limit, progress_bar=sys.stderr.isatty())
        played = model.num_timesteps
    return model, played, time.monotonic() - began


def measure(recipe: str, settings: Mapping[str, Any], dream: Dream, args: Args, random: Score) -> Facts:
    """Train an algorithm and score it in the real game.

    Args:
        recipe: one of :data:`ALGORITHMS`.
        settings: of :func:`read_hyperparams`.
        dream: to train in.
        args: what the command was given.
        random: random actions' score.

    Returns:
        The row.

    Raises:
        ConfigError: the algorithm has no such hyperparameter.
    """
    place = resolve_device(args.device)
    rates = matmul_rates(place)
    model, played, seconds = train(recipe, settings, dream, args)
    seen = settings.get("observation", SEEN)
    real = dreamgym.make_real_env(dream, min(8, args.episodes), observation=seen, device=args.device)
    try:
        score = evaluate_real(model, real, args.episodes, args.seed, progress=True)
    finally:
        real.close()
    return {
        "algorithm": ALGORITHMS[recipe],
        "score": score.as_dict(),
        "above_random": standard_errors_above(score, random),
        "imagined_steps": played,
        "minutes": seconds / 60,
        "hyperparameters": {name: getattr(value, "__name__", value) for name, value in settings.items()},
        "device": str(place),
        "machine": describe_machine(place),
        "matmul_gflops": rates,
        "date": datetime.now(UTC).date().isoformat(),
        **code_version(),
    }


def standard_errors_above(score: Score, other: Score) -> float | None:
    """By how many standard errors of the difference one mean lies above another (Welch 1947).

    Args:
        score: the one.
        other: the other.

    Returns:
        Standard errors; None where a score has one episode or no episodes differ.
    """
    if min(len(score.episodes), len(other.episodes)) < 2:
        return None
    variance = sum(one.std**2 / (len(one.episodes) - 1) for one in (score, other))
    return (score.mean - other.mean) / math.sqrt(variance) if variance else None


def read_table(file: Path, conditions: Facts) -> Facts:
    """Read a table that was begun before, or begin one.

    Args:
        file: the JSON, there or not.
        conditions: what all rows have to share: dream, minutes, episodes, seed.

    Returns:
        The conditions, ``random`` (None at first) and ``rows`` by recipe.

    Raises:
        ConfigError: the file is damaged, or was made under other conditions.
    """
    if not file.exists():
        return {**conditions, "random": None, "rows": {}}
    try:
        table = cast(Facts, parse_json(file.read_text(encoding="utf-8")))
        found = {name: table[name] for name in conditions}
        markdown(table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"out: {file} is damaged ({type(error).__name__} {error}): restore it, or pass another --out."
        ) from error
    for name, value in conditions.items():
        if found[name] != value:
            raise ConfigError(
                f"out: rows are compared, so all need one {name}: expected {found[name]!r}, as {file} has it, got "
                f"{value!r}. Pass another --out to begin a new table."
            )
    return table


def markdown(table: Facts) -> str:
    """Lay a table out, the best score first.

    Args:
        table: of :func:`read_table`.

    Returns:
        A table in Markdown and a paragraph that says how it was made.

    Raises:
        KeyError: a row lacks a fact.
    """
    rows = sorted(table["rows"].values(), key=lambda row: -row["score"]["mean"])
    lines = [
        f"| algorithm | real score, {table['episodes']} episodes | 95 % interval | random | above it, standard errors "
        "| imagined steps | minutes | GFLOP/s | date | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    machines: dict[str, list[str]] = {}
    for row in rows:
        score, rates, above = row["score"], row["matmul_gflops"], row["above_random"]
        commit, dash, changed = str(row["commit"] or row["version"]).partition("-")
        cells = (
            row["algorithm"],
            f"**{score['mean']:.1f}**",
            f"{score['low']:.1f} to {score['high']:.1f}",
            f"{table['random']['mean']:.1f}",
            "-" if above is None else f"{above:.1f}",
            f"{row['imagined_steps']:,}",
            f"{row['minutes']:.1f}",
            f"{rates['float32']:,.0f}, {rates['bfloat16']:,.0f}",
            row["date"],
            f"{commit[:7]}{dash}{changed}",
        )
        lines.append(f"| {' | '.join(cells)} |")
        machines.setdefault(row["machine"], []).append(row["algorithm"])
    dream = table["dream"]
    limit = "the steps" if table["minutes"] is None else f"{table['minutes']:g} min"
    places = "; ".join(f"{', '.join(names)} on {machine}" for machine, names in machines.items())
    if len(machines) == 1:
        places = f"on {next(iter(machines))}"
    steps = f"{dream['interactions']:,} real steps"
    text = (
        f"*Each from nothing, {limit} in {dream['name']} ({dream['preset']}, {steps}), seed {table['seed']}, with the "
        f"hyperparameters of `agents/hyperparams.yml`, by `agents/table.py`; {places}. GFLOP/s: products of 2048^3 in "
        "float32 and in bfloat16, just before.*"
    )
    return "\n".join([*lines, "", text]) if rows else ""


def put_into(file: Path, text: str) -> None:
    """Replace what stands between the two marks of a file.

    Args:
        file: has a line :data:`BEGIN` and after it a line :data:`END`.
        text: to stand between them.

    Raises:
        InvalidInputError: the file is not there, or does not have each mark once and in this order.
    """
    if not file.is_file():
        raise InvalidInputError(f"readme: expected a file with the marks {BEGIN} and {END}, {file} is none.")
    before, begin, rest = (content := file.read_text(encoding="utf-8")).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or content.count(BEGIN) + content.count(END) != 2:
        raise InvalidInputError(f"readme: expected {BEGIN} and after it {END} in {file}, each once.")
    write_text(file, f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(args: Args) -> Facts:
    """Train what has no row yet, and write the table.

    Args:
        args: what the command was given.

    Returns:
        The table.

    Raises:
        InvalidInputError: an unknown recipe, or a number outside its range.
        ConfigError: hyperparameters or a table that cannot be used.
        MissingWeightsError: there is no such dream.
    """
    recipes = [name for name in args.only.split(",") if name] or list(ALGORITHMS)
    unknown = [name for name in recipes if name not in ALGORITHMS]
    if unknown:
        raise InvalidInputError(f"only: expected some of {','.join(ALGORITHMS)}, got {','.join(unknown)}.")
    if not args.minutes > 0:
        raise InvalidInputError(f"minutes: expected more than 0, got {args.minutes}.")
    for name, value, least in (("episodes", args.episodes, 1), ("seed", args.seed, 0)):
        if value < least:
            raise InvalidInputError(f"{name}: expected at least {least}, got {value}.")
    if args.out.suffix != ".json":
        raise InvalidInputError(f"out: expected a file ending in .json, got {args.out}.")
    file, dream = find_dream(args.dream, device=resolve_device(args.device))
    game = dream.world_model.config.game
    settings = {name: read_hyperparams(args.hyperparams, name, f"Dream-{game}-v0") for name in recipes}
    conditions = {
        "dream": {
            "name": args.dream,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "preset": dream.metadata.get("preset"),
            "interactions": dream.metadata.get("interactions", 0),
        },
        "minutes": None if args.minutes == math.inf else args.minutes,
        "episodes": args.episodes,
        "seed": args.seed,
    }
    table = read_table(args.out, conditions)
    if args.readme is not None:
        # Hours later would be late to learn that it has no marks.
        put_into(args.readme, markdown(table))
    if table["random"] is None:
        table["random"] = random_score(game, args.episodes, args.seed).as_dict()
    random = Score.of(table["random"]["episodes"], table["random"]["lengths"])
    for recipe in recipes:
        if recipe in table["rows"]:
            print(f"{recipe}: kept, of {table['rows'][recipe]['date']}")
            continue
        print(f"{recipe}: training on {resolve_device(args.device)}")
        row = measure(recipe, settings[recipe], dream, args, random)
        # Another call may have finished other rows in the meantime.
        table = {**read_table(args.out, conditions), "random": table["random"]}
        table["rows"][recipe] = row
        write_text(args.out, json.dumps(table, indent=1) + "\n")
        print(
            f"{recipe}: real score {row['score']['mean']:.1f} (95 % {row['score']['low']:.1f} to "
            f"{row['score']['high']:.1f}), random {random.mean:.1f}; {row['imagined_steps']:,} imagined steps in "
            f"{row['minutes']:.1f} min"
        )
    text = markdown(table)
    write_text(args.out.with_suffix(".md"), text + "\n")
    if args.readme is not None:
        put_into(args.readme, text)
    return table


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; errors become one message.

    Args:
        arguments: those after the script's name; None takes them from the command line.

    Returns:
        The exit status: 0, 2 after an error of the user's, 1 where a file fails, 130 after Ctrl-C.
    """
    args = tyro.cli(Args, args=arguments)
    try:
        with stops_on_signals():
            main(args)
    except DreamgymError as error:
        print(f"table: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(f"table: {error}", file=sys.stderr)
        return FAULT
    except KeyboardInterrupt as interrupt:
        print("\nInterrupted. The same command goes on with the row that is missing.", file=sys.stderr)
        return INTERRUPTED + getattr(interrupt, "number", 2)
    return 0


if __name__ == "__main__":
    sys.exit(run())
