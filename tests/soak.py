"""Runs and dreams under ill-treatment, at random from a seed: killed, starved of disk, opened a thousand times.

``python -m tests.soak`` does all of it for ``--minutes``, one part alone by its name and ``--count``:

- ``kills``: SIGKILL at random instants of a run, which is resumed until it ends as one that was left alone, bit for bit
- ``faults``: a full disk, a read-only folder, a clock that runs backwards, two processes at once, Ctrl-C and SIGTERM
- ``mutations``: damaged and hostile files (``tests/mutations.py``)
- ``cycles``: environments made, stepped and closed; memory, threads and open files must not grow
- ``dreams``: steps of many dreams; memory must not grow, and nothing may stop being a number

One table at the end: tried, survived, lost (work that was finished and had to be done again), wrong (all else).
"""

import argparse
import gc
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym.config
from dreamgym.checkpoint import save_dream
from dreamgym.cli import main as dreamgym_main
from dreamgym.envs import DreamVectorEnv
from dreamgym.real_env import make_real_env
from dreamgym.run_folder import PHASES, RunFolder
from dreamgym.run_lock import LOCK_FILE
from dreamgym.sb3 import make_sb3_env
from dreamgym.simulator import DreamSimulator
from tests.conftest import make_tiny_dream
from tests.test_loop import contents, leave_out_pictures, tiny

ROOT = Path(__file__).parents[1]

RUNS = {
    "smoke": ("--preset", "smoke"),
    "tiny": ("--preset", "tiny", "--game", "WalkToy-v0"),
}
"""What is trained: the smallest preset, or a toy game in a second or two."""

MEGABYTES = 20
"""Most that memory may grow."""

STOP_SECONDS = 5
"""Longest from a signal to the end of a run."""

LONGEST = 3600
"""Seconds until a run counts as hanging."""

Rng = np.random.Generator
More = Callable[[int], bool]
"""Whether to go on after so many."""


class Count:
    """What came of one part.

    Attributes:
        tried, survived, lost, wrong: how many.
        said: what went wrong, and what was measured.
    """

    def __init__(self) -> None:
        self.tried = self.survived = self.lost = self.wrong = 0
        self.said: list[str] = []

    def add(self, result: str, tried: int = 1, why: str = "") -> None:
        self.tried += tried
        setattr(self, result, getattr(self, result) + tried)
        if why:
            self.said.append(f"{result}: {why}")


# Runs in processes of their own.


class Process:
    """``dreamgym train`` in a fork of this process, in which everything is imported already."""

    def __init__(self, run: str, folder: Path, prepare: Callable[[], None] = lambda: None) -> None:
        # Not beside the folder, whose disk may be full or closed.
        number, name = tempfile.mkstemp(prefix="soak-", suffix=".txt")
        os.close(number)
        self._log = Path(name)
        self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            self._play(run, folder, prepare)

    def _play(self, run: str, folder: Path, prepare: Callable[[], None]) -> None:
        status = 70
        try:
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            prepare()
            if run == "tiny":
                dreamgym.config.PRESETS["tiny"] = tiny
                leave_out_pictures(pytest.MonkeyPatch())
            status = dreamgym_main(["train", *RUNS[run], "--device", "cpu", "--out", str(folder), "--resume"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = LONGEST) -> int | None:
        """The exit status, negative after a signal; None where it runs on for longer."""
        until = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return None
            else:
                time.sleep(0.005)
        return self._status

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def output(self) -> str:
        """What it printed, on one line."""
        return re.sub(r"\s+", " ", self._log.read_text(errors="replace")) if self._log.exists() else ""


class Undisturbed(NamedTuple):
    """A run that was left alone, and the seconds that it took."""

    run: str
    home: Path
    seconds: float
    expected: dict[str, Any]


def undisturbed(run: str, home: Path) -> Undisturbed:
    """Play a run and leave it alone."""
    began = time.monotonic()
    process = Process(run, home / "undisturbed")
    if process.wait() != 0:
        raise RuntimeError(f"the run that was left alone ended with {process.wait()}: {process.output()}")
    return Undisturbed(run, home, time.monotonic() - began, contents(home / "undisturbed"))


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What of two runs is not the same to the bit."""
    return [name for name in expected if found.get(name) != expected[name]]


def place(folder: Path) -> tuple[int, int]:
    """How far a run has come: round and phase."""
    progress = RunFolder(folder).progress()
    return progress.round, PHASES.index(progress.phase)


def finish(alone: Undisturbed, folder: Path) -> str:
    """Resume a run to its end; what is not as it should be, or nothing."""
    process = Process(alone.run, folder)
    status = process.wait()
    if status != 0:
        return f"{folder.name} ended with {status}: {process.output()[-500:]}"
    different = differences(contents(folder), alone.expected)
    return f"{folder.name}: not as undisturbed: {', '.join(different)}" if different else ""


def kills(more: More, rng: Rng, alone: Undisturbed) -> Count:
    """Kill runs at random instants, each again and again until it is through."""
    count, number = Count(), 0
    while more(count.tried):
        folder, here, lost = alone.home / f"killed-{number}", 0, ""
        number += 1
        before = (0, 0)
        while more(count.tried + here):
            process = Process(alone.run, folder)
            if process.wait(float(rng.uniform(0, alone.seconds))) is not None:
                break
            process.send(signal.SIGKILL)
            process.wait()
            here += 1
            after = place(folder)
            if after < before:
                lost = f"{folder.name} was in {before} and is in {after}"
            before = max(before, after)
        wrong = finish(alone, folder)
        count.add("wrong" if wrong else "lost" if lost else "survived", here, wrong or lost)
        if not wrong:
            shutil.rmtree(folder, ignore_errors=True)
    return count


# Faults. Each begins a run, lets something happen to it, resumes it, and says what is not as it should be.


def _expect(process: Process, statuses: tuple[int, ...], *words: str) -> str:
    """What is not as it should be in how a process ended."""
    status, output = process.wait(), process.output()
    missing = [word for word in words if word not in output]
    if status not in statuses or missing or "Traceback" in output:
        return f"exit status {status}, without {missing}: {output[-500:]}"
    return ""


def _some(rng: Rng, alone: Undisturbed, folder: Path) -> None:
    """Play some of a run, and kill it."""
    process = Process(alone.run, folder)
    if process.wait(float(rng.uniform(0.2, 0.8)) * alone.seconds) is None:
        process.send(signal.SIGKILL)
        process.wait()


@contextmanager
def _disk(place: Path, size: str) -> Iterator[None]:
    """A disk of some size; only root can make one."""
    place.mkdir()
    _command("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        _command("umount", str(place))
        place.rmdir()


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def full_disk(rng: Rng, alone: Undisturbed, home: Path) -> str:
    """A disk that is full in the midst: a small one where that can be made, else a limit on the size of files."""
    folder = home / "disk" / "run"
    words = ("expected room for the run's files", "--resume")
    share = float(rng.uniform(0.1, 0.8))
    if os.geteuid() != 0:
        largest = max(file.stat().st_size for file in (alone.home / "undisturbed").rglob("*") if file.is_file())
        limit = int(share * largest)
        process = Process(
            alone.run, folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        )
        return _expect(process, (1,), *words) or finish(alone, folder)
    with _disk(home / "disk", f"{max(16, int(share * _size(alone.home / 'undisturbed') / 1024))}k"):
        process = Process(alone.run, folder)
        wrong = _expect(process, (1,), *words)
        _command("mount", "-o", "remount,size=1g", str(home / "disk"))
        return wrong or finish(alone, folder)


def read_only(rng: Rng, alone: Undisturbed, home: Path) -> str:
    """A disk that can only be read, in the midst of a run."""
    folder = home / "disk" / "run"
    if os.geteuid() != 0:
        _some(rng, alone, folder)
        (folder / LOCK_FILE).chmod(0o400)
        folder.chmod(0o500)
        wrong = _expect(Process(alone.run, folder), (1,), "expected a folder that can be written", "--resume")
        folder.chmod(0o700)
        (folder / LOCK_FILE).chmod(0o600)
        return wrong or finish(alone, folder)
    with _disk(home / "disk", "1g"):
        _some(rng, alone, folder)
        _command("mount", "-o", "remount,ro", str(home / "disk"))
        wrong = _expect(Process(alone.run, folder), (1,), "expected a folder that can be written", "--resume")
        _command("mount", "-o", "remount,rw", str(home / "disk"))
        return wrong or finish(alone, folder)


def clock_set_back(rng: Rng, alone: Undisturbed, home: Path) -> str:
    """A clock of which every look is hours before the last."""
    folder, now = home / "run", int(time.time())
    step = int(rng.integers(60, 10**5))

    def backwards() -> None:
        looks = iter(range(now, 10**9 // 2, -1))

        def earlier() -> float:
            return float(now - step * (now - next(looks)) % (now - 10**9 // 2))

        time.time = earlier
        time.time_ns = lambda: int(earlier() * 1e9)

    _some(rng, alone, folder)
    return _expect(Process(alone.run, folder, backwards), (0,)) or finish(alone, folder)


def two_at_once(rng: Rng, alone: Undisturbed, home: Path) -> str:
    """A second process on a run that one works on."""
    folder = home / "run"
    first = Process(alone.run, folder)
    while first.wait(0.01) is None and not ((folder / LOCK_FILE).is_file() and (folder / LOCK_FILE).stat().st_size):
        pass
    first.wait(float(rng.uniform(0, 0.3)) * alone.seconds)
    second = Process(alone.run, home / "run")
    wrong = _expect(second, (2,), f"process {first.pid} on")
    if first.wait() != 0:
        wrong = wrong or f"the first ended with {first.wait()}"
    return wrong or finish(alone, folder)


def _stopped(number: int) -> Callable[[Rng, Undisturbed, Path], str]:
    def stopped(rng: Rng, alone: Undisturbed, home: Path) -> str:
        folder = home / "run"
        process = Process(alone.run, folder)
        process.wait(float(rng.uniform(0.05, 0.9)) * alone.seconds)
        process.send(number)
        began = time.monotonic()
        wrong = _expect(process, (128 + number,), "Interrupted.")
        seconds = time.monotonic() - began
        if not wrong and seconds > STOP_SECONDS:
            wrong = f"{seconds:.1f} s until the end"
        if not wrong and (folder / "config.json").exists() and "--resume --device cpu" not in process.output():
            wrong = f"without the command to resume: {process.output()[-500:]}"
        return wrong or finish(alone, folder)

    return stopped


FAULTS: dict[str, Callable[[Rng, Undisturbed, Path], str]] = {
    "full disk": full_disk,
    "read-only": read_only,
    "clock set back": clock_set_back,
    "two at once": two_at_once,
    "Ctrl-C": _stopped(signal.SIGINT),
    "SIGTERM": _stopped(signal.SIGTERM),
}


def faults(more: More, rng: Rng, alone: Undisturbed) -> Count:
    """Every fault in turn, the last round of them to its end."""
    count = Count()
    while more(count.tried):
        for name, fault in FAULTS.items():
            home = alone.home / f"fault-{count.tried}"
            home.mkdir()
            try:
                wrong = fault(rng, alone, home)
            except Exception as error:
                wrong = "".join(traceback.format_exception_only(error)).strip()
            count.add("wrong" if wrong else "survived", 1, f"{name}: {wrong}" if wrong else "")
            if not wrong:
                shutil.rmtree(home, ignore_errors=True)
    return count


# Files, environments, dreams.


def mutations(more: More, rng: Rng, batch: int) -> Count:
    """Damaged and hostile files, in processes whose memory is limited."""
    count = Count()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while more(count.tried):
        seed = int(rng.integers(2**31))
        command = [sys.executable, "-W", "ignore", "-m", "tests.mutations", str(batch), str(seed)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("all ")]
        if not lines:
            count.add("wrong", batch, f"seeds from {seed}: {done.stderr[-500:]}")
            continue
        _, refused, identical, wrong = map(int, lines[0])
        count.add("survived", refused + identical)
        count.add("wrong", wrong, done.stdout if wrong else "")
    return count


class Held(NamedTuple):
    """What this process holds: megabytes, threads, open files."""

    megabytes: float
    threads: int
    files: int


def held() -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    size = pages * resource.getpagesize() / 2**20
    return Held(size, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


def _grown(before: Held, after: Held) -> str:
    grown = [
        f"{name} {a:.0f} -> {b:.0f}"
        for name, a, b in zip(Held._fields[1:], before[1:], after[1:], strict=True)
        if b > a
    ]
    if after.megabytes - before.megabytes > MEGABYTES:
        grown.append(f"megabytes {before.megabytes:.0f} -> {after.megabytes:.0f}")
    return ", ".join(grown)


def cycles(more: More, rng: Rng, home: Path) -> Count:
    """Environments of every kind, made, stepped and closed."""
    dream = save_dream(home / "cycles", make_tiny_dream())
    makers: list[Callable[[], Any]] = [
        lambda: gym.make("Dream-Pong-v0", checkpoint=str(dream), device="cpu", render_mode="rgb_array"),
        lambda: gym.make_vec("Dream-Pong-v0", num_envs=4, checkpoint=str(dream), device="cpu"),
        lambda: DreamVectorEnv(4, checkpoint=dream, device="cpu", array="torch", observation="codes"),
        lambda: make_sb3_env(str(dream), 4, device="cpu"),
        lambda: make_real_env(str(dream), num_envs=2, device="cpu"),
    ]
    count, before = Count(), None
    # What is made once and kept, caches and the threads of libraries, is there after each kind was made twice.
    warm = 2 * len(makers)
    while more(count.tried):
        maker = count.tried % len(makers) if count.tried < warm else int(rng.integers(len(makers)))
        env = makers[maker]()
        env.reset()
        actions = env.action_space.sample()
        batch = getattr(env, "num_envs", None)
        if batch is not None and np.shape(actions) == ():
            actions = np.full(batch, actions)
        for _ in range(3):
            env.step(torch.as_tensor(actions) if getattr(env, "array", "") == "torch" else actions)
        env.close()
        del env
        count.add("survived")
        if count.tried == warm:
            before = held()
    after = held()
    if before is not None:
        if grown := _grown(before, after):
            count.add("wrong", 0, f"cycles: {grown}")
            count.wrong, count.survived = count.tried, 0
        count.said.append(f"cycles: {before.megabytes:.0f} -> {after.megabytes:.0f} MB, {after.threads} threads, ")
        count.said[-1] += f"{after.files} files"
    return count


def dreams(more: More, rng: Rng, num_envs: int) -> Count:
    """Steps of many dreams: numbers all along, and no more memory at the end than after the first hundred."""
    dream = make_tiny_dream()
    simulator = DreamSimulator(
        dream.world_model, dream.starts, num_envs=num_envs, horizon=200, seed=int(rng.integers(2**31)), device="cpu"
    )
    draw = torch.Generator().manual_seed(int(rng.integers(2**31)))
    simulator.reset()
    count, before, began = Count(), None, time.monotonic()
    steps = 0
    while more(count.tried):
        result = simulator.step(torch.randint(0, 6, (num_envs,), generator=draw))
        steps += 1
        good = bool(torch.isfinite(result.reward).all()) and bool((result.reward.abs() <= 1).all())
        good &= bool((result.latents >= 0).all()) and bool((result.latents < 256).all())
        if steps % 100 == 0:
            good &= bool(torch.isfinite(simulator.hidden()).all())
        count.add("survived" if good else "wrong", num_envs, "" if good else f"step {steps}: a number out of range")
        ended = result.terminated | result.truncated
        # Staggered by hand: after the first horizon all would end together.
        ended |= torch.rand(num_envs, generator=draw) < 0.005
        simulator.reset(ended)
        if steps == 10:
            before = held()
    after = held()
    rate = count.tried / (time.monotonic() - began)
    if before is not None:
        if grown := _grown(before, after):
            count.survived, count.wrong = 0, count.tried
            count.said.append(f"wrong: dreams: {grown}")
        size = f"{before.megabytes:.0f} -> {after.megabytes:.0f} MB"
        count.said.append(f"dreams: {num_envs} at once, {rate:,.0f} steps a second, {size}")
    return count


# All of it.


SHARES = {"kills": 0.45, "faults": 0.25, "mutations": 0.1, "cycles": 0.1, "dreams": 0.1}
"""Of the minutes."""

SHORT = {"kills": 2, "faults": 1, "mutations": 40, "cycles": 20, "dreams": 20_000}
"""How many of each in the short form, whose runs are of a toy game."""


def _until(count: int | None, seconds: float) -> More:
    """So many, or for so long; one at least."""
    if count is not None:
        return lambda done: done < count
    end = time.monotonic() + seconds
    return lambda done: done == 0 or time.monotonic() < end


def soak(parts: list[str], counts: dict[str, int], minutes: float, seed: int, run: str, num_envs: int) -> int:
    """Do some parts and print the table.

    Args:
        parts: names of :data:`SHARES`, in that order.
        counts: how many of a part; those that are not there go by time.
        minutes: for all parts together.
        seed: of everything that is drawn.
        run: one of :data:`RUNS`.
        num_envs: dreams stepped at once.

    Returns:
        1 if something was lost or wrong, else 0.
    """
    print(f"seed {seed}, {run} runs, {', '.join(parts)}", flush=True)
    # Forks of a process with threads can hang: there are none until the last fork.
    torch.set_num_threads(1)
    whole = sum(SHARES[part] for part in parts)
    counted: dict[str, Count] = {}
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    # Processes write what they print here, too.
    tempfile.tempdir = str(home)
    alone = undisturbed(run, home) if {"kills", "faults"} & set(parts) else None
    for number, part in enumerate(SHARES):
        if part not in parts:
            continue
        more = _until(counts.get(part), minutes * 60 * SHARES[part] / whole)
        rng, began = np.random.default_rng([seed, number]), time.monotonic()
        if part in ("kills", "faults"):
            assert alone is not None
            counted[part] = (kills if part == "kills" else faults)(more, rng, alone)
        elif part == "mutations":
            counted[part] = mutations(more, rng, min(counts.get(part, 500), 500))
        elif part == "cycles":
            counted[part] = cycles(more, rng, home)
        else:
            counted[part] = dreams(more, rng, num_envs)
        print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
    for count in counted.values():
        print("\n".join(count.said), end="\n" if count.said else "")
    print(f"{'part':<12}{'tried':>12}{'survived':>12}{'lost':>8}{'wrong':>8}")
    for part, c in counted.items():
        print(f"{part:<12}{c.tried:>12,}{c.survived:>12,}{c.lost:>8,}{c.wrong:>8,}")
    failed = any(c.lost or c.wrong for c in counted.values())
    if failed:
        print(f"Again: python -m tests.soak {' '.join(parts)} --seed {seed}. What is left of it: {home}")
    else:
        shutil.rmtree(home, ignore_errors=True)
    return int(failed)


def main(arguments: list[str]) -> int:
    """Read the command line and soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(SHARES)}; all by default")
    parser.add_argument("--count", type=int, help="how many of each part, instead of minutes")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together")
    parser.add_argument("--seed", type=int, help="of everything that is drawn")
    parser.add_argument("--run", choices=RUNS, default="smoke", help="what is trained")
    parser.add_argument("--num-envs", type=int, default=4096, help="dreams stepped at once")
    parser.add_argument("--short", action="store_true", help="a little of each, with the toy game")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(SHARES):
        parser.error(f"expected parts of {', '.join(SHARES)}, got {', '.join(sorted(unknown))}")
    if (given.count is not None and given.count < 1) or not 0 < given.minutes < math.inf:
        parser.error("expected a count of at least 1, and minutes above 0")
    parts = [part for part in SHARES if part in given.parts or not given.parts]
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if given.seed is None else given.seed
    if given.short:
        return soak(parts, SHORT, given.minutes, seed, "tiny", 256)
    counts = {} if given.count is None else dict.fromkeys(parts, given.count)
    return soak(parts, counts, given.minutes, seed, given.run, given.num_envs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
