"""Any order of calls: the replay beside a list, and the vector env beside one env a dream."""

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_tiny_dream
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dreamgym import DreamVectorEnv
from dreamgym.replay import Replay

SHAPE = (4, 4)


class ReplayMachine(RuleBasedStateMachine):
    """A replay that is appended to, drawn from, saved, loaded and copied says what a list says."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())

    @initialize(capacity=st.integers(1, 12))
    def begin(self, capacity: int) -> None:
        self.capacity, self.replay = capacity, Replay(capacity, SHAPE)
        self.records: list[tuple[int, int, float, bool, bool, bool, bool]] = []
        self.visits: list[int] = []
        self.fresh, self.saved = True, 0

    @rule(
        pixel=st.integers(0, 255),
        action=st.integers(0, 5),
        reward=st.sampled_from([-1.0, 0.0, 1.0]),
        end=st.sampled_from(["goes on", "goes on", "terminated", "truncated"]),
        anew=st.booleans(),
    )
    def append(self, pixel: int, action: int, reward: float, end: str, anew: bool) -> None:
        first = self.fresh or anew
        record = (pixel, action, reward, end == "terminated", end == "truncated", False, first)
        self.replay.append(np.full(SHAPE, pixel, np.uint8), *record[1:])
        self.records = [*self.records, record][-self.capacity :]
        self.visits = [*self.visits, 0][-self.capacity :]
        self.fresh = end != "goes on"

    @precondition(lambda self: self.records)
    @rule(seed=st.integers(0, 2**16), length=st.integers(1, 4), balanced=st.booleans())
    def draw(self, seed: int, length: int, balanced: bool) -> None:
        if length > len(self.records):
            return
        windows = self.replay.sample_windows(
            3, length, np.random.default_rng(seed), weights="balanced" if balanced else "uniform"
        )
        for start in windows.indices[:, 0]:
            self.visits[start] += 1
        for indices, mask in zip(windows.indices, windows.mask, strict=True):
            begins = [self.records[index][-1] for index in indices]
            begins[0] = False
            assert mask.tolist() == [not any(begins[: n + 1]) for n in range(length)]

    @precondition(lambda self: self.records)
    @rule()
    def save_and_go_on(self) -> None:
        self.replay.save(self.home / "replay")

    @precondition(lambda self: (self.home / "replay").exists())
    @rule()
    def load_what_was_just_saved(self) -> None:
        self.replay.save(self.home / "replay")
        self.replay = Replay.load(self.home / "replay")

    @invariant()
    def it_says_what_the_list_says(self) -> None:
        if not hasattr(self, "records"):
            return
        every = np.arange(len(self.records))
        assert len(self.replay) == len(every)
        columns = [
            self.replay.frames_at(every)[..., 0, 0, 0].tolist() if len(every) else [],
            self.replay.actions_at(every).tolist(),
            self.replay.rewards_at(every).tolist(),
            self.replay.terminated_at(every).tolist(),
            self.replay.truncated_at(every).tolist(),
            self.replay.life_lost_at(every).tolist(),
            self.replay.first_at(every).tolist(),
        ]
        assert list(zip(*columns, strict=True)) == self.records
        assert self.replay.visits.tolist() == self.visits
        starts = [n for n, record in enumerate(self.records) if record[-1] or n == 0]
        assert self.replay.iter_episodes() == list(pairwise([*starts, len(every)]))

    def teardown(self) -> None:
        shutil.rmtree(self.home)


class VectorEnvMachine(RuleBasedStateMachine):
    """Dreams that are stepped and reset in any order count their own ages, and never touch each other."""

    dream = make_tiny_dream()
    horizon = 4

    @initialize(disabled=st.booleans(), num_envs=st.integers(1, 4))
    def begin(self, disabled: bool, num_envs: int) -> None:
        self.disabled, self.num_envs = disabled, num_envs
        self.env: Any = DreamVectorEnv(
            num_envs,
            checkpoint=self.dream,
            device="cpu",
            observation="codes",
            horizon=self.horizon,
            seed=1,
            autoreset_mode="Disabled" if disabled else "SameStep",
        )
        self.shown = self.env.reset()[0]
        self.ages = [0] * num_envs
        self.over = [False] * num_envs

    @precondition(lambda self: not any(self.over))
    @rule(action=st.integers(0, 5))
    def step(self, action: int) -> None:
        before = self.shown
        actions = (np.arange(self.num_envs) + action) % 6
        self.shown, rewards, terminated, truncated, infos = self.env.step(actions)
        self.ages = [age + 1 for age in self.ages]
        ended = [age == self.horizon for age in self.ages]
        assert truncated.tolist() == ended and not terminated.any()
        assert np.isfinite(rewards).all() and (np.abs(rewards) <= 1).all()
        if self.disabled:
            self.over = ended
        else:
            assert ("final_obs" in infos) == any(ended)
            self.ages = [0 if over else age for age, over in zip(self.ages, ended, strict=True)]
        # What was shown before is not written over.
        assert before is not self.shown and not np.shares_memory(before, self.shown)

    @rule(data=st.data())
    def reset_some(self, data: st.DataObject) -> None:
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=self.num_envs, max_size=self.num_envs)))
        if not mask.any():
            return
        before = self.shown
        self.shown = self.env.reset(options={"reset_mask": mask})[0]
        assert np.array_equal(self.shown[~mask], before[~mask])
        self.ages = [0 if chosen else age for age, chosen in zip(self.ages, mask, strict=True)]
        self.over = [over and not chosen for over, chosen in zip(self.over, mask, strict=True)]

    @rule(seed=st.integers(0, 9))
    def reset_all(self, seed: int) -> None:
        self.shown = self.env.reset(seed=seed)[0]
        assert np.array_equal(self.env.reset(seed=seed)[0], self.shown)
        self.ages, self.over = [0] * self.num_envs, [False] * self.num_envs

    @invariant()
    def ages_and_observations_are_as_they_should_be(self) -> None:
        if not hasattr(self, "env"):
            return
        assert self.env.simulator.age.tolist() == self.ages
        assert self.env.observation_space.contains(self.shown)

    def teardown(self) -> None:
        if hasattr(self, "env"):
            self.env.close()


few = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
TestReplay = ReplayMachine.TestCase
TestReplay.settings = few
TestVectorEnv = VectorEnvMachine.TestCase
TestVectorEnv.settings = few
