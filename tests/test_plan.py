"""A plan counts what a run would do, and measures what each costs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgym.checkpoint import load_dream
from dreamgym.cli import main
from dreamgym.config import OffPolicyConfig, make_config
from dreamgym.latents import encode_replay
from dreamgym.plan import Cost, Plan, _counts, _Probe, count_operations, plan
from dreamgym.run_folder import RunFolder


def small(**changes):
    config = make_config("smoke", "Pong", 0)
    return replace(config, dynamics=replace(config.dynamics, hidden=4), **changes)


def test_a_plan_counts_what_the_presets_do():
    counts = _counts(make_config("laptop", "Pong", 0))
    assert (counts["collected"], counts["learned"]) == (0, 2 * 44_800)
    assert counts["codec"] == 700
    # The codec is fitted once: each frame is encoded once.
    assert counts["encoded"] == 102_400
    # 1,024 moments of eight frames after each fit and before each training, at two scores and at the end.
    assert counts["starts"] == (2 * 3 + 2 + 1) * 8_192
    assert counts["held_out"] == 8
    assert counts["dynamics"] == 200 + 2_500 + 2_000
    assert counts["imagined"] == 200_000
    # Scored after the second and the third round.
    assert counts["episodes"] == 8 + 32
    smoke = _counts(make_config("smoke", "Pong", 0))
    assert smoke["encoded"] == 600 + 900
    assert _counts(make_config("paper", "Pong", 0))["encoded"] == 0


def test_what_a_run_takes_is_the_sum_of_what_its_parts_take():
    costs = (Cost("fit", "updates", 10, 0.5, 2e9), Cost("fit", "frames", 0, 1.0, 1.0), Cost("train", "steps", 4, 0.25))
    found = Plan("a machine", {"float32": 100.0}, costs, 2e9, 3e7)
    assert found.seconds == 6.0
    facts = found.as_dict()
    assert facts["phases"] == {"fit": {"seconds": 5.0, "flop": 2e10}, "train": {"seconds": 1.0, "flop": 0.0}}
    assert json.loads(json.dumps(facts))["seconds"] == 6.0
    table = found.table()
    assert "memory 2.0 GB, disk 0.03 GB" in table and "updates" in table
    # Nothing is said of what a run has none of.
    assert "frames" not in table


def test_every_part_of_a_run_is_measured():
    found = plan(small(), torch.device("cpu"), seconds=0.2)
    assert {cost.phase for cost in found.costs} == {"collect", "fit", "train", "evaluate"}
    assert all(cost.seconds_each > 0 for cost in found.costs)
    # The agent does not learn in the game here.
    assert [cost.unit for cost in found.costs if not cost.count] == ["real steps it learns from"]
    counted = {(cost.phase, cost.unit) for cost in found.costs if cost.flop}
    assert {("fit", "updates of the dynamics"), ("fit", "frames encoded"), ("train", "imagined steps")} <= counted
    assert found.memory > 1e8 and found.disk > 1e5


def test_what_is_measured_moves():
    probe = _Probe(make_config("laptop", "Pong", 0), torch.device("cpu"))
    probe.collect(0.1)
    probe.codec(0.1)
    latents = encode_replay(probe.model, probe.replay)
    assert len(np.unique(latents)) > 10
    assert (latents[1:] != latents[:-1]).sum() > len(latents)


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": replace(make_config("smoke", "Pong", 0).fit, interleaved=True)},
        {"algo": "DQN", "off_policy": OffPolicyConfig(imagined_updates=1)},
    ],
)
def test_other_schedules_and_algorithms_are_planned(changes):
    found = plan(small(**changes), torch.device("cpu"), seconds=0.1)
    assert found.seconds > 0


def test_the_disk_of_a_plan_is_near_what_a_run_leaves(smoke_run):
    folder = RunFolder(smoke_run)
    found = plan(folder.config(), torch.device("cpu"), seconds=0.2)
    parts = (folder.replay, folder.held_out, folder.checkpoints)
    taken = sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file())
    taken += sum(file.stat().st_size for file in folder.path.iterdir() if file.suffix in (".zip", ".safetensors"))
    assert 0.5 < found.disk / taken < 2


def test_the_command_prints_json_and_refuses_no_time(capsys):
    assert main(["plan", "--preset", "smoke", "--seconds", "0.5", "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["seconds"] > 0 and facts["costs"][0]["count"] == 600
    assert main(["plan", "--preset", "smoke", "--seconds", "0"]) == 2
    assert "more than 0" in capsys.readouterr().err


def test_a_finished_run_is_counted_on_its_own_networks_which_stay_as_they_are(smoke_run):
    folder, model = RunFolder(smoke_run), load_dream(smoke_run).world_model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = count_operations(folder.config(), model, folder.load_held_out(1_000, 1))
    assert set(found) == {"collect", "fit", "train", "evaluate"} and all(found.values())
    assert found["train"] > found["evaluate"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
