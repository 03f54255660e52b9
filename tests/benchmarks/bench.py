"""How fast this machine is and how fast the dream is on it: ``make bench``.

Every number is a rate in items a second, beside the machine's rate of matrix products in the same moments, by which
times are compared. Networks have random weights, which cost the same as trained ones; experience is a short random
game.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import growth
import measures
import paper_shape
import torch
import tyro
from measures import Result, Stopwatch
from workloads import Bench

from dreamgym.config import PRESETS, make_config
from dreamgym.device import resolve_device
from dreamgym.fit import FitConfig
from dreamgym.hardware import describe_machine, matmul_rates

PARTS = ("preset", "full", "paper", "growth")


@dataclass(frozen=True)
class Args:
    """Measure the speed of this machine and of the dream on it."""

    preset: str = "laptop"
    """whose networks and batch sizes: smoke, quick, laptop, gpu or paper"""
    full: str = "paper"
    """preset of the full-size networks that are measured in bfloat16, and in float32 as the paper fits them"""
    parts: tuple[str, ...] = PARTS
    """some of preset, full, paper and growth"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    envs: tuple[int, ...] = (1, 16, 64, 256, 1024, 4096)
    """numbers of dreams stepped at once"""
    batch: int = 128
    """windows in an update of the full-size dynamics"""
    records: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """sizes of the replay that windows are drawn from"""
    lengths: tuple[int, ...] = (2, 4, 8, 16)
    """steps of a window"""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """hidden channels"""
    seconds: float = 0.5
    """least time spent on each number in a round"""
    rounds: int = 3
    """times that each is measured; the median is told"""
    steps: int = 1_000
    """real steps of experience"""
    out: Path = Path("build/bench.json")
    """where the numbers go as JSON"""


def measure_preset(watch: Stopwatch, bench: Bench, args: Args) -> dict[str, float]:
    """Everything that a run of the preset does; returns exponents and ratios."""
    watch.measure(bench.real_game())
    dreams = [watch.measure(bench.dream_steps(envs))[0] for envs in args.envs]
    watch.measure(bench.played())
    watch.measure(bench.encode(), bench.decode())
    # Before anything is fitted: in a dream of half learned codes far more cells change.
    rollouts, alone, _ = watch.measure(*bench.agent())
    watch.measure(bench.codec_training())
    (update,) = watch.measure(bench.dynamics_training())
    found = {"SB3 rollouts by simulator and policy alone": measures.ratio(rollouts, alone)}
    if len(dreams) > 1:
        found["exponent of a step in dreams at once"] = growth.dreams(dreams, args.envs)
    return found | _drawing(watch, bench, args, update)


def _drawing(watch: Stopwatch, bench: Bench, args: Args, update: Result) -> dict[str, float]:
    """Drawing windows: exponents, and shares of an update of the dynamics by how many records there are."""
    fit = bench.config.fit
    batch = fit.dynamics_batch_size
    length = fit.sequence_length + 1
    exponents, drawn = growth.replay(watch, bench, args.records, batch, length)
    seconds = update.seconds * batch * (fit.sequence_length - bench.model.dynamics.looks_back)
    found = {f"exponent of drawing windows, {kind}, in records": power for kind, power in exponents.items()}
    for size, results in drawn.items():
        shares = zip(exponents, (result.seconds / seconds for result in results), strict=True)
        found |= {f"drawing windows of {size:,} records, {kind}, by an update": share for kind, share in shares}
    return found


def measure_full(watch: Stopwatch, args: Args) -> dict[str, float]:
    """The full-size dynamics in bfloat16 beside float32, and its training beside the paper's; returns ratios."""
    config = make_config(args.full)
    plain = Bench(config, watch.device, args.steps, bf16=False)
    fast = Bench(config, watch.device, args.steps, bf16=True)
    steps = {envs: watch.measure(fast.dream_steps(envs, "full-size dream"))[0] for envs in args.envs}
    middle = 256 if 256 in args.envs else max(args.envs)
    both = watch.measure(
        fast.dream_steps(middle, "full-size dream again"), plain.dream_steps(middle, "full-size dream, float32")
    )
    fit = replace(FitConfig(), dynamics_batch_size=args.batch)
    trained = watch.measure(
        fast.dynamics_training(fit, "full-size dynamics training", updates=1), paper_shape.training(plain)
    )
    found = {f"full-size step of {middle} dreams, by float32": measures.ratio(*both)}
    found["full-size dynamics training, by the paper's"] = measures.ratio(*trained)
    if 16 in steps:
        found[f"full-size step of {middle} dreams by 16, an item"] = measures.ratio(steps[middle], steps[16])
    if len(steps) > 1:
        found["exponent of a full-size step in dreams at once"] = growth.dreams(list(steps.values()), args.envs)
    plain.closing.close()
    fast.closing.close()
    return found


def measure_paper(watch: Stopwatch, args: Args) -> None:
    """The rest of the paper's schedule: training with its codec updates, one game, 16 dreams."""
    bench = Bench(make_config(args.full), watch.device, args.steps, bf16=False)
    watch.measure(paper_shape.training(bench, with_codec=True))
    watch.measure(paper_shape.playing(bench))
    watch.measure(bench.dream_steps(16, "the paper's dream, float32"))
    watch.measure(bench.encode("the paper's encode, float32"), bench.decode("the paper's decode, float32"))
    bench.closing.close()


def measure_growth(watch: Stopwatch, args: Args) -> dict[str, float]:
    """Exponents of the paper's dynamics in length and width."""
    widest = max(args.widths)
    return {
        "exponent of an update in steps of a window": growth.lengths(watch, args.lengths, 16, widest // 2),
        "exponent of a step in hidden channels": growth.widths(watch, args.widths, 64),
    }


def main(args: Args) -> None:
    """Measure, print a table, write the JSON."""
    device = resolve_device(args.device)
    machine, matmul = describe_machine(device), matmul_rates(device)
    print(f"device {device}: {machine}\npreset {args.preset} of {', '.join(PRESETS)}; full-size as {args.full}")
    for name, value in matmul.items():
        print(f"{f'matrix product 2048^3, {name}':<58}{value:>12,.0f} GFLOP/s")
    watch = Stopwatch(device, args.seconds, args.rounds)
    print(measures.heading())
    ratios: dict[str, float] = {}
    if "preset" in args.parts:
        bench = Bench(make_config(args.preset), device, args.steps)
        ratios |= measure_preset(watch, bench, args)
        bench.closing.close()
    if "full" in args.parts:
        ratios |= measure_full(watch, args)
    if "paper" in args.parts:
        measure_paper(watch, args)
    if "growth" in args.parts:
        ratios |= measure_growth(watch, args)
    for name, value in ratios.items():
        print(f"{name:<70}{value:>9.3f}")
    facts: dict[str, Any] = {"machine": machine, "device": str(device), "preset": args.preset, "full": args.full}
    facts |= {"threads": torch.get_num_threads(), "matmul_gflops": matmul, "ratios": ratios}
    measures.write(args.out, facts, watch.results)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
