"""What ``gpu.sh`` measured, beside what was asked of it: ``python tests/benchmarks/gpu_report.py build/gpu``."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEAKS = {"H200": 989e3, "H100": 989e3, "A100": 312e3}
"""Dense bfloat16 GFLOP/s by a part of the card's name, from the makers' data sheets (SXM forms)."""

_STEPS = 500_000
"""Dream steps a second asked for at 4,096 full-size dreams."""

_SHARE = 0.25
"""Of the card's peak asked for in training the full-size dynamics."""

_MINUTES = 30.0
"""Asked for of a run of the preset ``gpu``, in its plan."""


@dataclass(frozen=True)
class Target:
    """A number that was asked for.

    Attributes:
        name: of what.
        measured: how it came out.
        wanted: the bound.
        least: whether the bound is the least; else it is the most.
    """

    name: str
    measured: float
    wanted: float
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether it came out as asked for."""
        return self.measured >= self.wanted if self.least else self.measured <= self.wanted

    def line(self) -> str:
        """For people."""
        bound = "at least" if self.least else "at most"
        return f"{self.name:<64}{self.measured:>14,.2f}  {bound} {self.wanted:,.2f}: {'met' if self.met else 'not met'}"


def peak(bench: dict[str, Any]) -> float:
    """Dense bfloat16 GFLOP/s of the machine: its maker's number, or where that is not known what it was seen at."""
    known = [rate for name, rate in PEAKS.items() if name in bench["machine"]]
    return known[0] if known else bench["matmul_gflops"]["bfloat16"]


def targets(bench: dict[str, Any], plan: dict[str, Any], taken: float) -> list[Target]:
    """What was asked for.

    Args:
        bench: of ``bench.py --parts full``.
        plan: of ``dreamgym plan --json``.
        taken: seconds that the run took.
    """
    fast = re.compile(r"full-size dream, [\d,]+ at once")
    most = max(rate["rate"] for name, rate in bench["rates"].items() if fast.fullmatch(name))
    training = next(rate for name, rate in bench["rates"].items() if name.startswith("full-size dynamics training"))
    return [
        Target("full-size dream steps a second", most, _STEPS),
        Target("dynamics training by dense bfloat16 peak", training["gflops"] / peak(bench), _SHARE),
        Target("minutes that the run was planned to take", plan["seconds"] / 60, _MINUTES, least=False),
        Target("minutes that it took, by those planned", taken / plan["seconds"], 1.25, least=False),
    ]


def main(folder: Path) -> None:
    """Print the targets of a folder that ``gpu.sh`` has filled."""
    bench, plan, progress = (
        json.loads((folder / name).read_text()) for name in ("bench.json", "plan.json", "run/progress.json")
    )
    print(f"{bench['machine']}; peak counted as {peak(bench):,.0f} GFLOP/s")
    for target in targets(bench, plan, progress["seconds"]):
        print(target.line())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
