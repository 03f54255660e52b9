"""A short form of ``make soak``: a little of each kind of ill-treatment, with runs of a toy game."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/statm").exists(), reason="needs fork and /proc")
def test_a_little_of_each_ill_treatment_is_survived():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.soak", "--short", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split() for line in done.stdout.splitlines()[-5:]]
    assert [row[0] for row in table] == ["kills", "faults", "mutations", "cycles", "dreams"]
    assert all(row[1] == row[2] and row[3:] == ["0", "0"] for row in table), done.stdout
