import itertools

import pytest
import torch

import dreamgym.hardware
from dreamgym.hardware import describe_machine, matmul_rates


@pytest.fixture
def multiplied(monkeypatch):
    """Types and sides of the products that are made."""
    made = set()
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right: made.add((left.dtype, *left.shape)) or product(left, right))
    return made


@pytest.mark.parametrize(("size", "small"), [(300, 256), (64, 64)])
def test_where_bfloat16_is_emulated_only_small_matrices_are_multiplied_in_it(monkeypatch, multiplied, size, small):
    monkeypatch.setattr(dreamgym.hardware, "bf16_is_faster", lambda kind: False)
    rates = matmul_rates(torch.device("cpu"), size=size, seconds=0.0)
    assert multiplied == {(torch.float32, size, size), (torch.bfloat16, small, small)}
    assert set(rates) == {"float32", "bfloat16"} and min(rates.values()) > 0


def test_where_bfloat16_is_faster_both_types_multiply_the_same_matrices(monkeypatch, multiplied):
    monkeypatch.setattr(dreamgym.hardware, "bf16_is_faster", lambda kind: True)
    matmul_rates(torch.device("cpu"), size=300, seconds=0.0)
    assert multiplied == {(torch.float32, 300, 300), (torch.bfloat16, 300, 300)}


def test_a_rate_is_operations_over_time(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(dreamgym.hardware.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(dreamgym.hardware, "bf16_is_faster", lambda kind: False)
    rates = matmul_rates(torch.device("cpu"), size=300, seconds=3.0)
    # Two products in three seconds.
    assert rates["float32"] == pytest.approx(2 * 300**3 * 2 / 3 / 1e9)
    assert rates["bfloat16"] == pytest.approx(2 * 256**3 * 2 / 3 / 1e9)


def test_a_machine_is_described_in_one_line():
    line = describe_machine(torch.device("cpu"))
    assert "\n" not in line and f"torch {torch.__version__}" in line
