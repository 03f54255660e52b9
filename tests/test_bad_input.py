"""What a user can get wrong, and what the message says about it: what was expected, what came, and the way out."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_tiny_dream
from gymnasium import spaces

import dreamgym
from dreamgym.checkpoint import Dream, load_dream, save_dream
from dreamgym.cli import main
from dreamgym.config import PPOConfig, RunConfig, make_config
from dreamgym.device import resolve_device
from dreamgym.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    DreamgymError,
    InvalidActionError,
    InvalidInputError,
    MissingWeightsError,
    ReplayError,
    UnknownGameError,
)
from dreamgym.evaluate import RandomPolicy, Score, evaluate_dream, evaluate_real, random_score
from dreamgym.export import export_dream
from dreamgym.fidelity import fidelity
from dreamgym.replay import Replay
from dreamgym.sb3 import make_algorithm
from dreamgym.video import compare_rollouts

SIX = spaces.Discrete(6)
NAN = float("nan")


class Ready:
    """What the rows below are about: a dream in memory, its run folder, and short ways to make things of it."""

    def __init__(self, dream: Dream, run: Path) -> None:
        self.dream = dream
        self.run = run
        self.model = dream.world_model

    def one(self, **settings: Any) -> dreamgym.DreamEnv:
        """A single dream that has begun."""
        env = dreamgym.DreamEnv(checkpoint=self.dream, device="cpu", **settings)
        env.reset(seed=0)
        return env

    def three(self, **settings: Any) -> dreamgym.DreamVectorEnv:
        """Three dreams that have begun."""
        env = dreamgym.DreamVectorEnv(3, checkpoint=self.dream, device="cpu", **settings)
        env.reset(seed=0)
        return env

    def simulator(self, **settings: Any) -> dreamgym.DreamSimulator:
        """Three dreams without an adapter, begun."""
        simulator = dreamgym.DreamSimulator(self.model, self.dream.starts, **{"num_envs": 3, "seed": 0, **settings})
        simulator.reset()
        return simulator

    def sb3(self, **settings: Any) -> Any:
        """A dream as SB3 takes it."""
        return dreamgym.make_sb3_env(self.dream, 2, device="cpu", **settings)

    def replay(self, records: int = 12) -> Replay:
        """One episode that goes on."""
        replay = Replay(50)
        for step in range(records):
            replay.append(np.zeros((96, 96), np.uint8), 0, 0.0, False, False, False, step == 0)
        return replay

    def record(self, **changes: Any) -> None:
        """Append one more record."""
        values = {
            "frame": np.zeros((96, 96), np.uint8),
            "action": 1,
            "reward": 0.0,
            "terminated": False,
            "truncated": False,
            "life_lost": False,
            "first": False,
        }
        self.replay().append(**{**values, **changes})


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ready:
    """In a folder of its own, in which there are no runs but one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    dream = make_tiny_dream()
    save_dream(tmp_path / "pong", dream)
    (tmp_path / "broken.safetensors").write_bytes(b"no dream")
    return Ready(dream, tmp_path / "pong")


RNG = np.random.default_rng(0)

CALLS: list[tuple[type[DreamgymError], str, Callable[[Ready], Any]]] = [
    # Actions of a single dream.
    (InvalidActionError, "expected shape (), got (2,)", lambda r: r.one().step([1, 2])),
    (InvalidActionError, "expected integers of shape (), got 1.5", lambda r: r.one().step(1.5)),
    (InvalidActionError, "expected integers of shape (), got nan", lambda r: r.one().step(NAN)),
    (InvalidActionError, "expected integers of shape (), got None", lambda r: r.one().step(None)),
    (InvalidActionError, "expected integers of shape (), got 'up'", lambda r: r.one().step("up")),
    (InvalidActionError, "expected integers in Discrete(6), got 6", lambda r: r.one().step(6)),
    (InvalidActionError, "expected integers of shape (), got True", lambda r: r.one().step(True)),
    (InvalidActionError, "expected integers, got torch.float32", lambda r: r.one().step(torch.tensor(1.5))),
    (InvalidInputError, "has not begun: call reset()", lambda r: dreamgym.DreamEnv(checkpoint=r.dream).step(0)),
    # Of many.
    (InvalidActionError, "expected shape (3,), got (4,)", lambda r: r.three().step(np.zeros(4, int))),
    (
        InvalidActionError,
        "integers of shape (3,), got array([ 0., nan",
        lambda r: r.three().step(np.array([0, NAN, 1])),
    ),
    (
        InvalidActionError,
        "expected integers of shape (3,), got [[1], [2, 3]",
        lambda r: r.three().step([[1], [2, 3], 1]),
    ),
    (InvalidActionError, "Discrete(6), got [0, -1, 1]", lambda r: r.three().step(np.array([0, -1, 1]))),
    (InvalidActionError, "got torch.complex64", lambda r: r.three().step(torch.zeros(3, dtype=torch.complex64))),
    (InvalidActionError, "expected a torch tensor, got ndarray: pass torch", lambda r: r.simulator().step(np.zeros(3))),
    (InvalidActionError, "integers in [0, 6), got [99, 99, 99]", lambda r: r.simulator().step(torch.full((3,), 99))),
    (InvalidActionError, "expected shape (2,), got (5,)", lambda r: r.sb3().step(np.zeros(5, int))),
    # Settings of dreams.
    (
        ConfigError,
        "num_envs: expected an integer of at least 1, got 0",
        lambda r: dreamgym.DreamVectorEnv(0, checkpoint=r.dream),
    ),
    (ConfigError, "num_envs: expected an integer of at least 1, got 2.5", lambda r: r.simulator(num_envs=2.5)),
    (ConfigError, "num_envs: expected an integer of at least 1, got None", lambda r: r.simulator(num_envs=None)),
    (ConfigError, "num_envs: expected an integer of at least 1, got 0", lambda r: dreamgym.make_sb3_env(r.run, 0)),
    (ConfigError, "as there is memory for, got 1,000,000,000,000; take fewer", lambda r: r.simulator(num_envs=10**12)),
    (ConfigError, "SB3 calls it n_envs, not num_envs", lambda r: dreamgym.make_sb3_env(r.run, num_envs=2)),
    (ConfigError, "expected a positive number of steps, math.inf or None, got -1", lambda r: r.one(horizon=-1)),
    (ConfigError, "math.inf or None, got 2.5", lambda r: r.one(horizon=2.5)),
    (ConfigError, "math.inf or None, got nan", lambda r: r.one(horizon=NAN)),
    (ConfigError, "math.inf or None, got 'ten'", lambda r: r.one(horizon="ten")),
    (ConfigError, "horizon: expected an integer of at least 1, got inf", lambda r: r.simulator(horizon=math.inf)),
    (ConfigError, "horizon: expected an integer of at least 1, got -1", lambda r: r.three(max_episode_steps=-1)),
    (
        ConfigError,
        "expected one of 'embedding', 'codes', 'objects', 'pixels', got 'screen'",
        lambda r: r.one(observation="screen"),
    ),
    (ConfigError, "expected None or 'rgb_array', got 'human'", lambda r: r.one(render_mode="human")),
    (ConfigError, "latent_stack: expected an integer of at least 1, got 0", lambda r: r.one(latent_stack=0)),
    (ConfigError, "latent_stack: expected at most 8, the context of the start", lambda r: r.one(latent_stack=9)),
    (ConfigError, "reward: expected one of 'expected', 'sampled', got 'guessed'", lambda r: r.one(reward="guessed")),
    (ConfigError, "temperature: expected a finite number of at least 0, got -1", lambda r: r.one(temperature=-1)),
    (ConfigError, "temperature: expected a finite number of at least 0, got 'hot'", lambda r: r.one(temperature="hot")),
    (ConfigError, "horizon_as: expected one of 'truncation', 'termination'", lambda r: r.one(horizon_as="done")),
    (ConfigError, "array: expected 'numpy' or 'torch', got 'jax'", lambda r: r.three(array="jax")),
    (ConfigError, "expected SAME_STEP or DISABLED, got None", lambda r: r.three(autoreset_mode=None)),
    (ConfigError, "horizn: dreams have no such setting", lambda r: r.one(horizn=5)),
    (ConfigError, "did you mean stagger?", lambda r: r.sb3(staggered=True)),
    (InvalidInputError, "seed: expected a whole number of at least 0, or None, got -1", lambda r: r.one(seed=-1)),
    (InvalidInputError, "seed: expected a whole number of at least 0, or None, got 'a'", lambda r: r.one(seed="a")),
    (DeviceError, "expected 'auto', 'cpu', 'cuda' or 'cuda:<index>', got 3.5", lambda r: resolve_device(3.5)),
    # Which dream.
    (ConfigError, "Which dream? Pass a game or an id", lambda r: dreamgym.DreamEnv(device="cpu")),
    (ConfigError, "the path of a run or file, or a Dream, got 7", lambda r: dreamgym.DreamEnv(checkpoint=7)),
    (ConfigError, "expected a dream of Krull", lambda r: dreamgym.DreamEnv("Krull", checkpoint=r.run)),
    (UnknownGameError, "did you mean Pong", lambda r: dreamgym.make_sb3_env("Dream-Pnog-v0")),
    (
        MissingWeightsError,
        "Train one with: dreamgym train --game Zaxxon",
        lambda r: gym.make("dreamgym:Dream-Zaxxon-v0"),
    ),
    (MissingWeightsError, "no dream.safetensors there", lambda r: dreamgym.load("no/such/run")),
    (MissingWeightsError, "expected a finished run's folder", lambda r: dreamgym.load_agent(r.run)),
    (CheckpointError, "Restore it or train it again", lambda r: load_dream("broken.safetensors")),
    (ConfigError, "expected a run folder", lambda r: export_dream(r.run)),
    (ConfigError, "megabytes: expected more than 0, got -1", lambda r: export_dream(r.run, megabytes=-1)),
    # Resets.
    (InvalidInputError, "seed: expected a whole number of at least 0", lambda r: r.one().reset(seed=-5)),
    (InvalidInputError, "or None, got 1.5", lambda r: r.three().reset(seed=1.5)),
    (InvalidInputError, "expected indices in [0, 40), got [40]", lambda r: r.one().reset(options={"start": 40})),
    (InvalidInputError, "expected an index in [0, 40)", lambda r: r.one().reset(options={"start": "x"})),
    (InvalidInputError, "got 1.5", lambda r: r.one().reset(options={"start": 1.5})),
    (InvalidInputError, "one for each dream, got [1, 2]", lambda r: r.three().reset(options={"start": [1, 2]})),
    (InvalidInputError, "a DreamState, as state() gives it, got 7", lambda r: r.one().reset(options={"state": 7})),
    (InvalidInputError, "expected a dict such as {'start': 0}, got [1]", lambda r: r.one().reset(options=[1])),
    (InvalidInputError, "expected a dict such as {'start': 0}, got [1]", lambda r: r.three().reset(options=[1])),
    (InvalidInputError, "excludes 'reset_mask' and 'start'", lambda r: r.one().reset(options={"state": 1, "start": 2})),
    (
        InvalidInputError,
        "expected an array of dtype bool, got [True, False, True]",
        lambda r: r.three().reset(options={"reset_mask": [True, False, True]}),
    ),
    (
        InvalidInputError,
        "expected latents of shape (3, 4, 6, 6), got (1, 4, 6, 6)",
        lambda r: r.three().reset(options={"state": r.one().simulator.state()}),
    ),
    # Encoding and decoding.
    (InvalidInputError, "expected uint8 (batch, 1, 96, 96)", lambda r: r.model.encode(np.zeros((2, 96, 96), np.uint8))),
    (InvalidInputError, "got torch.uint8 (2, 3, 96, 96)", lambda r: r.model.encode(np.zeros((2, 3, 96, 96), np.uint8))),
    (InvalidInputError, "got torch.uint8 (2, 1, 84, 84)", lambda r: r.model.encode(np.zeros((2, 1, 84, 84), np.uint8))),
    (InvalidInputError, "got torch.float32 (2, 1, 96, 96)", lambda r: r.model.encode(torch.zeros(2, 1, 96, 96))),
    (
        InvalidInputError,
        "expected an int64 tensor (batch, 6, 6), got torch.float32",
        lambda r: r.model.decode(torch.zeros(2, 6, 6)),
    ),
    (InvalidInputError, "got torch.int64 (2, 5, 5)", lambda r: r.model.decode(torch.zeros(2, 5, 5, dtype=torch.int64))),
    (InvalidInputError, ", got ndarray", lambda r: r.model.decode(np.zeros((2, 6, 6), np.int64))),
    (InvalidInputError, ", got 999 to 999", lambda r: r.model.decode(torch.full((2, 6, 6), 999))),
    (InvalidInputError, ", got -1 to -1", lambda r: r.model.decode(torch.full((2, 6, 6), -1))),
    (
        InvalidInputError,
        "actions: expected 2, one for each latent, got 3",
        lambda r: r.model.step(
            torch.zeros(2, 6, 6, dtype=torch.int64), torch.zeros(3).long(), r.model.initial_state(2)
        ),
    ),
    # The replay buffer.
    (InvalidInputError, "capacity: expected at least 1 record, got 0", lambda r: Replay(0)),
    (InvalidInputError, "capacity: expected a whole number of records, got 'x'", lambda r: Replay("x")),
    (InvalidInputError, "as there is memory for, got 100,000,000,000,000; take fewer", lambda r: Replay(10**14)),
    (InvalidInputError, "frame_shape: expected (height, width), got (96,)", lambda r: Replay(5, (96,))),
    (InvalidInputError, "expected an integer or floating type, got 'U3'", lambda r: Replay(5, action_dtype="U3")),
    (InvalidInputError, "got uint8 (84, 84)", lambda r: r.record(frame=np.zeros((84, 84), np.uint8))),
    (InvalidInputError, "frame: expected uint8 (96, 96), got float64", lambda r: r.record(frame=np.zeros((96, 96)))),
    (InvalidInputError, "action: expected int64 (), got float64 ()", lambda r: r.record(action=1.5)),
    (InvalidInputError, "reward: expected a finite number, got nan", lambda r: r.record(reward=NAN)),
    (InvalidInputError, "indices: expected integers in [0, 12), got [12]", lambda r: r.replay().frames_at([12])),
    (InvalidInputError, "indices: expected integers in [0, 12), got [1.0]", lambda r: r.replay().frames_at([1.0])),
    (InvalidInputError, "stack: expected at least 1, got 0", lambda r: r.replay().frames_at([1], 0)),
    (InvalidInputError, "such as np.random.default_rng(0), got 7", lambda r: r.replay().sample_windows(2, 3, 7)),
    (InvalidInputError, "such as np.random.default_rng(0), got None", lambda r: r.replay().sample_starts(2, 3, None)),
    (
        InvalidInputError,
        "expected 'uniform' or 'balanced'",
        lambda r: r.replay().sample_windows(2, 3, RNG, weights="odd"),
    ),
    (ReplayError, "at least 30 records, it has 12", lambda r: r.replay().sample_windows(2, 30, RNG)),
    (ReplayError, "expected replay.json there, as Replay.save writes it", lambda r: Replay.load("nowhere")),
    # Measuring.
    (
        InvalidInputError,
        "episodes: expected at least 1, got 0",
        lambda r: evaluate_dream(RandomPolicy(SIX, 0), r.three(), 0),
    ),
    (
        InvalidInputError,
        "seed: expected at least 0, got -1",
        lambda r: evaluate_dream(RandomPolicy(SIX, 0), r.three(), 3, -1),
    ),
    (InvalidInputError, "policy: expected one with predict()", lambda r: evaluate_dream(None, r.three(), 3)),
    (
        InvalidInputError,
        "expected SAME_STEP autoreset, got None",
        lambda r: evaluate_dream(RandomPolicy(SIX, 0), r.one(), 3),
    ),
    (
        InvalidInputError,
        "expected a dream with a horizon",
        lambda r: evaluate_dream(RandomPolicy(SIX, 0), r.three(horizon=math.inf), 3),
    ),
    (
        InvalidInputError,
        "pass record=Replay(...) to keep them in",
        lambda r: evaluate_real(RandomPolicy(SIX, 0), r.three(), 2, record_episodes=1),
    ),
    (
        InvalidActionError,
        "in Discrete(6)",
        lambda r: evaluate_dream(RandomPolicy(spaces.Discrete(99), 0), r.three(), 30),
    ),
    (
        InvalidInputError,
        "expected Discrete or Box, got MultiBinary(3)",
        lambda r: RandomPolicy(spaces.MultiBinary(3), 0),
    ),
    (InvalidInputError, "at least one episode and a length for each, got 0 and 0", lambda r: Score.of([], [])),
    (InvalidInputError, "num_envs: expected at least 1, got 0", lambda r: random_score("Pong", num_envs=0)),
    (ReplayError, "expected held-out episodes of at least 8 steps", lambda r: fidelity(r.model, Replay(5))),
    (InvalidInputError, "horizon: expected at least 1, got 0", lambda r: fidelity(r.model, r.replay(), horizon=0)),
    (InvalidInputError, "got an empty replay", lambda r: compare_rollouts(r.dream, Replay(5))),
    (
        InvalidInputError,
        "(0 to 11) that another one of its episode follows, got 50",
        lambda r: compare_rollouts(r.dream, r.replay(), start=50),
    ),
    # Settings of runs.
    (ConfigError, "expected one of smoke, quick, laptop, gpu, paper, got 'huge'", lambda r: make_config("huge")),
    (ConfigError, "colour: no such setting of a run, expected some of game, preset", lambda r: make_config(colour=3)),
    (ConfigError, "rounds: expected int, got 2.5", lambda r: make_config(rounds=2.5)),
    (ConfigError, "seed: expected int, got 'a'", lambda r: make_config(seed="a")),
    (ConfigError, "imagined_steps: expected tuple[int, ...], got 5", lambda r: make_config(imagined_steps=5)),
    (ConfigError, "imagined_steps: expected at least one number", lambda r: make_config(imagined_steps=())),
    (ConfigError, "network: expected 'paper' or 'light', got 'huge'", lambda r: make_config(network="huge")),
    (ConfigError, "dream: expected DreamConfig, got {'horizon': 3}", lambda r: make_config(dream={"horizon": 3})),
    (ConfigError, "bf16: expected bool, got 'yes'", lambda r: make_config(bf16="yes")),
    (
        ConfigError,
        "learning_rate: expected a finite number of more than 0, got -1",
        lambda r: PPOConfig(learning_rate=-1),
    ),
    (ConfigError, "gamma: expected 0 to 1, got 2", lambda r: PPOConfig(gamma=2)),
    (ConfigError, "RunConfig: expected an object with fields, got [1]", lambda r: RunConfig.from_json([1])),
    (ConfigError, "RunConfig.rounds: expected int, got '3'", lambda r: RunConfig.from_json({"rounds": "3"})),
    (
        ConfigError,
        "num_actions: expected at most 4,096, got 1,000,000",
        lambda r: dataclasses.replace(r.model.config, num_actions=10**6),
    ),
    # Algorithms and the real game.
    (ConfigError, "expected one of A2C, ARS, CrossQ", lambda r: make_algorithm("PPPO", r.sb3(), 0, "cpu")),
    (
        ConfigError,
        "network: expected one of 'paper', 'light'",
        lambda r: make_algorithm("PPO", r.sb3(), 0, network="huge"),
    ),
    (ConfigError, "only supports", lambda r: make_algorithm("SAC", r.sb3(), 0, "cpu")),
    (InvalidInputError, "num_envs: expected at least 1, got 0", lambda r: dreamgym.make_real_env(r.dream, 0)),
    (
        InvalidInputError,
        "expected a probability in [0, 1], got 2",
        lambda r: dreamgym.make_real_env(r.dream, sticky_actions=2),
    ),
    (ConfigError, "did you mean sticky_actions?", lambda r: dreamgym.make_real_env(r.dream, sticky_action=0.5)),
    (
        ConfigError,
        "horizon: real games have no such setting",
        lambda r: dreamgym.make_sb3_env(r.run, real=True, horizon=5),
    ),
]


@pytest.mark.parametrize(
    ("error", "text", "call"), CALLS, ids=[f"{number}: {text[:40]}" for number, (_, text, _) in enumerate(CALLS)]
)
def test_a_call_that_cannot_be_right_says_what_would_be(
    ready: Ready, error: type[DreamgymError], text: str, call: Callable[[Ready], Any]
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call(ready)


SMOKE = ("train", "--preset", "smoke", "--device", "cpu", "--out", "run")

LINES: list[tuple[int, str, tuple[str, ...]]] = [
    (2, "imagined_steps: expected at least one number, none negative, got (-5,)", (*SMOKE, "--imagined-steps", "-5")),
    (2, "algorithm: expected one of A2C, ARS", (*SMOKE, "--algo", "PPPO")),
    (2, "seed: expected at least 0, got -1", (*SMOKE, "--seed", "-1")),
    (2, "dynamics.hidden: expected at most 4,096, got 100,000", (*SMOKE, "--dynamics.hidden", "100000")),
    (2, "latent_stack: expected at most 8, the context of the start states", (*SMOKE, "--dream.latent-stack", "9")),
    (2, "temperature: expected a finite number of at least 0, got nan", (*SMOKE, "--dream.temperature", "nan")),
    (2, "collect.first_steps: expected more than fit.sequence_length=8", (*SMOKE, "--collect.first-steps", "3")),
    (2, "horizon: expected at least 1, got 0", (*SMOKE, "--dream.horizon", "0")),
    (2, "learning_rate: expected a finite number of more than 0, got -1", (*SMOKE, "--ppo.learning-rate", "-1")),
    (2, "stages: expected 1 to 5, got 9", (*SMOKE, "--codec.stages", "9")),
    (2, "Expected one of ('uniform', 'balanced', 'surprise', 'epoch')", (*SMOKE, "--fit.windows", "odd")),
    (2, "--rounds INT", (*SMOKE, "--rounds", "2.5")),
    (2, "Unrecognized options: --colour", (*SMOKE, "--colour", "3")),
    (
        1,
        "broken.safetensors/run: expected to read and write the run's files, got Not a directory",
        (*SMOKE[:-1], "broken.safetensors/run"),
    ),
    (2, "seconds: expected more than 0, got nan", ("plan", "--preset", "smoke", "--seconds", "nan")),
    (2, "expected a run folder, or an id of which there is a run", ("export", "pong")),
    (2, "starts: expected at least 1, got 0", ("export", "pong", "--starts", "0")),
    (2, "megabytes: expected more than 0, got -1", ("export", "pong", "--megabytes", "-1")),
    (2, "steps: expected at least 1, got 0", ("compare", "pong", "--out", "x.png", "--steps", "0")),
    (2, "a video (.mp4 or .gif) or a strip of frames (.png)", ("compare", "pong")),
    (2, "horizon: expected at least 0, got -1", ("play", "pong", "--horizon", "-1")),
    (2, "zoom: expected a finite number of more than 0, got nan", ("play", "pong", "--zoom", "nan")),
    (2, "damaged or is no safetensors file", ("info", "broken.safetensors")),
    (2, "Train one with: dreamgym train --game GAME", ("info", ".")),
    (2, "num_actions: expected at most 4,096, got 5,000", ("info", "--preset", "smoke", "--actions", "5000")),
    (2, "num_envs: expected at least 1, got 0", ("evaluate", "pong", "--num-envs", "0")),
    (2, "dream_episodes: expected at least 1, got 0", ("evaluate", "pong", "--dream-episodes", "0")),
    (2, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'", ("evaluate", "pong", "--device", "gpu")),
    (2, "comes with no agent: expected a finished run's folder", ("evaluate", "pong", "--device", "cpu")),
]


@pytest.mark.parametrize(("status", "text", "arguments"), LINES, ids=[" ".join(line[-1]) for line in LINES])
def test_a_command_that_cannot_be_right_says_what_would_be_without_a_traceback(
    ready: Ready, capsys: pytest.CaptureFixture[str], status: int, text: str, arguments: tuple[str, ...]
) -> None:
    try:
        ended = main(arguments)
    except SystemExit as end:
        ended = end.code
    # The parser's own messages are broken into the lines of a box.
    printed = " ".join(capsys.readouterr().err.replace("│", " ").replace("|", " ").split())
    assert text in printed
    assert ended == status and "Traceback" not in printed
    assert not Path("run").exists() or not Path("run", "config.json").exists()


@pytest.mark.parametrize(
    "arguments", [("info", "broken.safetensors", "--debug"), ("--debug", "info", "broken.safetensors")]
)
def test_with_debug_the_same_error_comes_with_its_traceback(
    ready: Ready, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "checkpoint.py" in printed
    assert printed.splitlines()[-1].startswith("dreamgym info: broken.safetensors is damaged")
