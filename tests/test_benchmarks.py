"""The benchmarks: they measure what they say and leave numbers that later runs can be compared with."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.config import make_config
from dreamgym.errors import ConfigError
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder
from dreamgym.world_model import WorldModel, WorldModelConfig


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the benchmarks' folder as a module, which finds those beside it."""
    folder = Path(__file__).parent / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_prints_and_writes_a_rate_for_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("bench", monkeypatch)
    out = tmp_path / "bench.json"
    bench.main(
        bench.Args(
            preset="smoke",
            full="smoke",
            device="cpu",
            envs=(1, 4),
            batch=2,
            records=(300, 600),
            lengths=(1, 2),
            widths=(2, 4),
            seconds=0.001,
            rounds=1,
            steps=300,
            out=out,
        )
    )
    measured = json.loads(out.read_text())
    assert set(measured["matmul_gflops"]) == {"float32", "bfloat16"}
    parts = (
        "real game",
        "dream, 1 ",
        "dream, 4 ",
        "played",
        "encode",
        "decode",
        "codec training",
        "dynamics training",
        "windows drawn, surprise, of 600",
        "SB3 rollouts",
        "simulator and policy alone",
        "SB3 updates",
        "full-size dream, 4 ",
        "full-size dynamics training, 2 x 16",
        "the paper's training of the dynamics, 4 x 11",
        "the paper's collecting",
    )
    for part in parts:
        found = next(rate for name, rate in measured["rates"].items() if name.startswith(part))
        assert found["rate"] > 0 and found["memory"] > 0
        assert (found["gflops"] > 0) == (found["share"] > 0) == (not part.startswith(("real", "windows")))
    ratios = measured["ratios"]
    for grows in ("step in dreams", "windows, uniform, in records", "steps of a window", "hidden channels"):
        assert any(name.startswith("exponent") and name.find(grows) > 0 for name in ratios)
    assert ratios["full-size dynamics training, by the paper's"] > 0
    printed = capsys.readouterr().out
    assert "device cpu" in printed
    assert all(name in printed for name in [*measured["rates"], *ratios])


def test_dreams_are_stepped_as_a_preset_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    workloads = load("workloads", monkeypatch)
    smoke, paper = make_config("smoke"), make_config("paper")
    # The paper's dreams begin with one latent, and show one.
    config = replace(smoke, dream=replace(paper.dream, start_states=16))
    bench = workloads.Bench(config, torch.device("cpu"), 300)
    steps = bench.dream_steps(2)
    bench.closing.close()
    assert steps.act().latents.shape == (2, 1, 6, 6)
    assert steps.operations == bench.dream_steps(1).operations > 0


def test_operations_are_counted_from_the_model_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = load("measures", monkeypatch)

    class Nothing(torch.nn.Conv2d):
        """A convolution that is not computed at all."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input.new_zeros(len(input), self.out_channels, *input.shape[2:])

    layers = Nothing(2, 3, 5, padding=2), torch.nn.Flatten(), torch.nn.Linear(3 * 36, 7)
    model, maps = torch.nn.Sequential(*layers), torch.zeros(4, 2, 6, 6)
    written = measures.written_operations(model, lambda: model(maps))
    assert written == 2 * 4 * (36 * 3 * 2 * 25 + 108 * 7)
    watch = measures.Stopwatch(torch.device("cpu"), 0.0, rounds=1)
    counted, told = watch.measure(
        measures.Workload("counted", 4, lambda: model(maps)),
        measures.Workload("told", 4, lambda: model(maps), operations=written / 4),
    )
    assert counted.gflops == pytest.approx(2 * 108 * 7 * counted.rate / 1e9)
    assert told.gflops == pytest.approx(written / 4 * told.rate / 1e9)
    assert watch.results == [counted, told]


def test_a_rate_is_the_median_of_rounds_in_which_all_take_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = load("measures", monkeypatch)
    clock, done = 0.0, list[str]()

    def work(name: str, costs: list[float]) -> None:
        nonlocal clock
        done.append(name)
        clock += costs.pop(0)

    monkeypatch.setattr(measures.time, "perf_counter", lambda: clock)
    # The first call counts operations, and warms up.
    slow, fast = [9.0, 4.0, 1.0, 2.0], [9.0, 1.0, 0.5, 0.25]
    watch = measures.Stopwatch(torch.device("cpu"), 0.0)
    monkeypatch.setattr(watch, "_products", measures.Workload("products", 1, lambda: work("", [1.0])))
    found = watch.measure(
        measures.Workload("slow", 8, lambda: work("slow", slow)),
        measures.Workload("fast", 8, lambda: work("fast", fast)),
    )
    assert [each.rate for each in found] == [4.0, 16.0]
    assert [name for name in done if name] == ["slow", "fast"] * 4


def test_an_exponent_is_the_power_with_which_a_time_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = load("measures", monkeypatch)
    assert measures.exponent([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert measures.exponent([1, 4], [3.0, 6.0]) == pytest.approx(0.5)
    assert measures.exponent([1, 4, 16], [5.0, 5.0, 5.0]) == pytest.approx(0.0)


class Drift(gym.Env[np.ndarray, int]):
    """A dot that is pushed left or right until it leaves: a point is won on one side and lost on the other."""

    observation_space = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def show(self) -> np.ndarray:
        image = np.full((96, 96, 3), 80, np.uint8)
        image[44:48, self.place : self.place + 4] = 200
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(40, 52)), 0
        return self.show(), {}

    def step(self, action):
        self.place += 4 * (int(action) - 1) + int(self.np_random.integers(-4, 5))
        self.steps += 1
        reward = float(self.place > 70) - float(self.place < 20)
        self.place = int(np.clip(self.place, 0, 92))
        return self.show(), reward, reward != 0, self.steps >= 100, {}


gym.register("DriftToy-v0", entry_point=Drift)


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """A run folder with a dozen short games."""
    run, env, replay = RunFolder(tmp_path / "run"), Drift(), Replay(10_000)
    rng = np.random.default_rng(0)
    for episode in range(12):
        (image, _), over, first = env.reset(seed=episode), False, True
        while not over:
            action = int(rng.integers(3))
            seen = image[..., 0]
            image, reward, ended, cut, _ = env.step(action)
            replay.append(seen, action, reward, ended, cut, False, first)
            over, first = ended or cut, False
    run.begin(replace(make_config("smoke"), game="DriftToy-v0"), resume=False)
    replay.save(run.replay)
    return run.path


def test_ablations_are_measured_once_at_the_same_wall_time_and_tabled(
    played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ablate = load("ablate", monkeypatch)
    monkeypatch.setattr(ablate, "matmul_rates", lambda device: {"float32": 1.0, "bfloat16": 2.0})
    args = ablate.Args(
        replay=played,
        rows="laptop,uniform",
        seeds="0",
        preset="smoke",
        codec_seconds=0.5,
        dynamics_seconds=0.5,
        policy_seconds=0.5,
        episodes=2,
        starts=16,
        device="cpu",
        out=tmp_path / "found.jsonl",
        cache=tmp_path / "cache",
    )
    ablate.main(args)
    records = ablate.read_records(args.out)
    plain, uniform = records
    assert [(record["row"], record["seed"]) for record in records] == [("laptop", 0), ("uniform", 0)]
    for record in records:
        assert record["updates"]["codec"] > 0 and record["updates"]["dynamics"] > 0 and record["imagined_steps"] > 0
        assert all(seconds > 0 for seconds in record["seconds"].values())
        assert 0 <= record["fidelity"]["code_accuracy_1"] <= 1
        assert len(record["real"]["episodes"]) == 2
        assert record["machine"].startswith("cpu: ") and record["matmul_gflops"]["bfloat16"] == 2.0
    assert plain["settings"] == uniform["settings"] and plain["settings"]["held_out_episodes"] == 8
    assert plain["recipe"]["fit"].pop("event_priority") != uniform["recipe"]["fit"].pop("event_priority") == 1.0
    assert plain["recipe"] == uniform["recipe"]
    # One codec for both, with its time in both.
    for name in ("codec", "encoding"):
        assert plain["seconds"][name] == uniform["seconds"][name]
    assert plain["seconds"]["dynamics"] != uniform["seconds"]["dynamics"]
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith(("| laptop | 0 |", "| uniform | 0 |"))] == shown[4:6]

    written = args.out.read_bytes()
    monkeypatch.setattr(ablate.Ablation, "measure", lambda *_: pytest.fail("measured again"))
    ablate.main(args)
    ablate.main(replace(args, replay=None, table=True))
    assert args.out.read_bytes() == written
    assert capsys.readouterr().out.splitlines() == 2 * shown[2:]
    with pytest.raises(ConfigError, match="other settings"):
        ablate.main(replace(args, policy_seconds=1.0))
    with pytest.raises(ConfigError, match="expected some of laptop, "):
        ablate.main(replace(args, rows="laptop,nothing"))
    with pytest.raises(ConfigError, match="fits codec and dynamics apart, got paper"):
        ablate.main(replace(args, preset="paper"))


def test_every_row_of_the_ablation_changes_the_recipe_into_one_that_can_be_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ablate, laptop = load("ablate", monkeypatch), make_config("laptop")
    recipes = {name: row.change(laptop) for name, row in ablate.ROWS.items()}
    for recipe in recipes.values():
        WorldModel(WorldModelConfig("Pong", 6, codec=recipe.codec, dynamics=recipe.dynamics), seed=0)
    different = list({json.dumps(recipe.to_json()): name for name, recipe in recipes.items()}.values())
    assert recipes["laptop"] == laptop
    assert different == list(recipes)


def test_a_shorter_fit_of_the_codec_is_shorter_in_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ablate, laptop = load("ablate", monkeypatch), make_config("laptop")
    planned = laptop.codec_updates[0]
    assert ablate.shortened(laptop, planned) == laptop.fit
    half = ablate.shortened(laptop, planned // 2)
    assert half.settled_updates == laptop.fit.settled_updates // 2
    assert half.unquantized_updates == laptop.fit.unquantized_updates // 2
    assert ablate.shortened(laptop, 1).settled_updates == 0
    unsettled = ablate.ROWS["unsettled"].change(laptop)
    assert ablate.shortened(unsettled, 3) == unsettled.fit


def test_updates_are_counted_into_a_time_by_what_they_cost_after_the_first_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ablate = load("ablate", monkeypatch)
    clock, cost = 0.0, 1.0

    def update(count: int) -> None:
        nonlocal clock, cost
        clock += cost * count
        cost = 0.25

    monkeypatch.setattr(ablate.time, "perf_counter", lambda: clock)
    assert ablate.updates_within(60.0, update) == 240
    assert ablate.updates_within(0.01, update) == 1


def test_the_ablation_table_gives_means_and_standard_errors_over_seeds_and_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ablate = load("ablate", monkeypatch)

    def record(row: str, seed: int, episodes: list[float], recall: float | None) -> dict[str, object]:
        return {
            "row": row,
            "why": "because",
            "seed": seed,
            "settings": {
                "preset": "laptop",
                "fitted_steps": 9000,
                "held_out_steps": 1000,
                "held_out_episodes": 8,
                "episodes": 4,
            },
            "machine": "a computer",
            "matmul_gflops": {"bfloat16": 1000.0},
            "updates": {"codec": 700, "dynamics": 1200},
            "imagined_steps": 300_000,
            "seconds": {"codec": 60.2, "encoding": 20.0, "dynamics": 239.0, "policy": 120.4},
            "fidelity": {"recall_0_10": recall},
            "real": {"mean": float(np.mean(episodes)), "episodes": episodes},
        }

    lines = ablate.table(
        [
            record("warm", 0, [-21.0, -19.0], 0.5),
            record("laptop", 0, [-12.0, -8.0], 0.9),
            record("laptop", 1, [-15.0, -13.0], 0.8),
        ]
    ).splitlines()
    head, laptop, warm = ([cell.strip() for cell in lines[at].strip("|").split("|")] for at in (0, 2, 3))
    cells = dict(zip(head, laptop, strict=True))
    assert cells["recipe"] == "laptop" and cells["seeds"] == "0, 1"
    assert cells["seconds: codec + encoding + dynamics + policy"] == "60 + 20 + 239 + 120"
    assert cells["updates: codec + dynamics"] == "700 + 1,200"
    assert cells["recall 0-10"] == "0.85" and cells["precision"] == "-"
    # Means -10 and -14; the four episodes have a standard deviation of 2.94.
    assert cells["real score"] == "-12.0 ± 2.0 (1.5)"
    assert warm[0] == "warm" and warm[-1] == "-20.0 ± - (1.0)"
    assert "9,000 real steps" in lines[5] and "a computer" in lines[5]
    assert lines[-2:] == ["- `laptop`: because", "- `warm`: because"]


def test_balls_that_are_gone_are_followed_to_a_point_back_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    vanish = load("vanish", monkeypatch)
    seen, rewards = np.zeros((40, 4), dtype=bool), np.zeros((40, 4))
    seen[:10] = True
    rewards[13, 0] = -1.0
    seen[18:, 1] = True
    # Game 2 has neither; in game 3 the ball was hidden for two steps, and is gone too late to be followed.
    seen[:, 3] = True
    seen[15:17, 3] = seen[36:, 3] = False
    found = vanish.fates(seen, rewards)
    assert (found.paid, found.back, found.neither) == (1, 1, 1) and found.unpaid == pytest.approx(2 / 3)


def test_balls_are_followed_in_held_out_play_of_pong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish = load("vanish", monkeypatch)
    codec = make_config("laptop").codec
    config = WorldModelConfig(game="Pong", num_actions=6, codec=codec, dynamics=make_config("laptop").dynamics)
    held_out = Replay(200, codec.frame)
    rng = np.random.default_rng(0)
    for step in range(120):
        frame = np.full(codec.frame, 87, dtype=np.uint8)
        frame[40:42, 20 + step % 40] = 236
        held_out.append(frame, int(rng.integers(6)), 0.0, False, step == 119, False, step == 0)
    world_model = WorldModel(config, seed=0)
    world_model.codec.prepare(torch.full(codec.frame, 87, dtype=torch.uint8), torch.zeros(1, 1, *codec.frame).byte())
    found = vanish.follow(world_model, held_out, vanish.Args(run=tmp_path, dreams=4, steps=20))
    assert set(found) == {"game", "dream"} and 0 <= found["dream"].seen <= 1


def test_what_was_asked_of_a_graphics_card_is_told_with_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = load("gpu_report", monkeypatch)
    bench = {
        "machine": "NVIDIA H200, torch",
        "matmul_gflops": {"bfloat16": 700e3},
        "rates": {
            "full-size dream, 256 at once": {"rate": 90_000.0, "gflops": 40e3},
            "full-size dream, 4,096 at once": {"rate": 510_000.0, "gflops": 200e3},
            "full-size dream, float32, 256 at once": {"rate": 1e6, "gflops": 4.0},
            "full-size dynamics training, 1024 x 16": {"rate": 1e5, "gflops": 0.2 * 989e3},
        },
    }
    (tmp_path / "run").mkdir()
    for name, facts in (("bench", bench), ("plan", {"seconds": 1_200.0}), ("run/progress", {"seconds": 1_300.0})):
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    report.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(": met") for line in lines[1:]] == [True, False, True, True]
    assert "510,000.00" in lines[1] and "0.20" in lines[2] and "20.00" in lines[3] and "1.08" in lines[4]
    assert report.peak({**bench, "machine": "a computer"}) == 700e3


def stand_in(folder: Path, script: str) -> Path:
    """A Python that writes down what it is asked to run, and does what the script says instead."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\necho "$*" >> "{folder}/asked"\n{script}\n')
    path.chmod(0o755)
    return path


def run_gpu(folder: Path, script: str, *arguments: str) -> tuple[int, list[str]]:
    """Status of ``gpu.sh`` with a stand-in for Python, and what it asked that for."""
    environment = {
        **os.environ,
        "PYTHON": str(stand_in(folder, script)),
        "OUT": str(folder / "out"),
        "LIMIT": "100",
        "PRESET": "smoke",
        "DEVICE": "cpu",
    }
    script_path = Path(__file__).parent / "benchmarks" / "gpu.sh"
    done = subprocess.run([script_path, *arguments], env=environment, capture_output=True, timeout=60)
    asked = folder / "asked"
    return done.returncode, asked.read_text().splitlines() if asked.exists() else []


def test_the_gpu_script_does_its_parts_in_turn_and_goes_on_where_it_was(tmp_path: Path) -> None:
    # The run is stopped twice by the limit of a part, and gets further each time.
    script = f"""
    case "$*" in *" train "*)
        mkdir -p {tmp_path}/out/run; touch {tmp_path}/out/run/config.json
        echo x >> {tmp_path}/out/run/progress.json
        [ $(wc -l < {tmp_path}/out/run/progress.json) = 3 ] || exit 143;;
    esac"""
    for part in ("pytest", "bench.py", "plan"):
        status, asked = run_gpu(tmp_path, script, "next")
        assert status == 75 and part in asked[-1]
    status, asked = run_gpu(tmp_path, script)
    assert status == 0
    trained = [line for line in asked if " train " in line]
    assert ["--resume" in line for line in trained] == [False, True, True]
    assert all("--preset smoke" in line and "--device cpu" in line for line in trained)
    assert "gpu_report.py" in asked[-1]
    assert len(run_gpu(tmp_path, script)[1]) == len(asked) + 1


def test_the_gpu_script_stops_where_a_part_fails_or_gets_nowhere(tmp_path: Path) -> None:
    status, asked = run_gpu(tmp_path, 'case "$*" in *bench.py*) exit 3;; esac')
    assert status == 3 and "bench.py" in asked[-1]
    # Time runs out, and no phase of the run is finished.
    status, asked = run_gpu(tmp_path, 'case "$*" in *" train "*) exit 124;; esac')
    assert status == 1 and " train " in asked[-1]
