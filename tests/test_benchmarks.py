"""The benchmark: it measures what it says and leaves numbers that later runs can be compared with."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "benchmarks" / "bench.py"


def test_the_benchmark_prints_and_writes_a_rate_for_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench", bench)
    spec.loader.exec_module(bench)
    out = tmp_path / "bench.json"
    bench.main(bench.Args(preset="smoke", device="cpu", envs=(1, 4), seconds=0.01, steps=300, out=out))
    measured = json.loads(out.read_text())
    assert set(measured["matmul_gflops"]) == {"float32", "bfloat16"}
    parts = ("real game", "dream, 1 ", "dream, 4 ", "encode", "decode", "codec training", "dynamics training", "PPO in")
    for part in parts:
        assert next(rate for name, rate in measured["rates"].items() if name.startswith(part)) > 0
    printed = capsys.readouterr().out
    assert "device cpu" in printed
    assert all(name in printed for name in measured["rates"])
