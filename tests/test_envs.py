"""What the Gymnasium environments promise, single and vectorised, by id and by class."""

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_tiny_dream
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import dreamgym
from dreamgym import DreamEnv, DreamVectorEnv, make_sb3_env
from dreamgym.checkpoint import Dream
from dreamgym.dreaming import dream_action_space, resolve_horizon
from dreamgym.envs import resolve_autoreset
from dreamgym.errors import (
    ConfigError,
    DeviceError,
    InvalidActionError,
    InvalidInputError,
    MissingWeightsError,
    UnknownGameError,
)

KINDS = ("embedding", "codes", "pixels")


def actions_of(step: int, num_envs: int) -> np.ndarray[Any, Any]:
    return (np.arange(num_envs) + step) % 6


def vector_env(dream: Dream | Path, num_envs: int = 4, **settings: Any) -> DreamVectorEnv:
    return DreamVectorEnv(num_envs, checkpoint=dream, **{"device": "cpu", "seed": 3, **settings})


# Checkers


@pytest.mark.parametrize("hidden_state", [False, True])
@pytest.mark.parametrize("observation", KINDS)
def test_both_env_checkers_accept_the_env(tiny_run: Path, observation: str, hidden_state: bool) -> None:
    settings: dict[str, Any] = {"checkpoint": tiny_run, "device": "cpu", "render_mode": "rgb_array"}
    settings |= {"observation": observation, "hidden_state": hidden_state}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*")
        check_env(gym.make("Dream-Pong-v0", **settings).unwrapped)
        warnings.simplefilter("ignore")  # SB3 takes every three-dimensional observation for an image
        check_env_sb3(gym.make("Dream-Pong-v0", **settings).unwrapped, skip_render_check=False)


@pytest.mark.parametrize("hidden_state", [False, True])
@pytest.mark.parametrize("observation", KINDS)
def test_observations_lie_in_the_declared_spaces(tiny_dream: Dream, observation: str, hidden_state: bool) -> None:
    env = vector_env(tiny_dream, observation=observation, hidden_state=hidden_state, horizon=2)
    observations = [env.reset()[0], *(env.step(actions_of(step, 4))[0] for step in range(3))]
    assert all(env.observation_space.contains(observation) for observation in observations)
    expected = {"embedding": ((128, 6, 6), "float32"), "codes": ((36, 4), "uint8"), "pixels": ((4, 96, 96), "uint8")}
    space = env.single_observation_space["observation"] if hidden_state else env.single_observation_space
    assert (space.shape, space.dtype) == expected[observation]


def test_a_codec_of_four_frames_shows_one_latent() -> None:
    env = vector_env(make_tiny_dream(frame_stack=4, latent_stack=1), observation="pixels")
    assert env.single_observation_space.shape == (4, 96, 96)
    assert env.reset()[0].shape == (4, 4, 96, 96)
    assert vector_env(make_tiny_dream(latent_stack=2), latent_stack=1).single_observation_space.shape == (32, 6, 6)


def test_embeddings_are_stacked_oldest_first(tiny_dream: Dream) -> None:
    env = vector_env(tiny_dream)
    observation, _ = env.reset()
    newest = tiny_dream.world_model.embed(env.simulator.latents[:, -1])
    assert np.array_equal(observation[:, -32:], newest.detach().numpy())
    after = env.step(actions_of(0, 4))[0]
    assert np.array_equal(after[:, :-32], observation[:, 32:])


# Equivalence


def test_single_vector_and_sb3_envs_dream_the_same_with_one_seed(tiny_dream: Dream) -> None:
    single = gym.make("Dream-Pong-v0", checkpoint=tiny_dream, device="cpu", observation="codes", horizon=6)
    vector = vector_env(tiny_dream, num_envs=3, seed=None, observation="codes", horizon=6)
    sb3 = make_sb3_env(tiny_dream, 3, device="cpu", observation="codes", horizon=6, stagger=False)
    sb3.seed(11)
    first, info = single.reset(seed=11)
    firsts, infos = vector.reset(seed=11)
    assert np.array_equal(first, firsts[0])
    assert np.array_equal(firsts, sb3.reset())
    assert info["start"] == infos["start"][0] == sb3.reset_infos[0]["start"]
    for step in range(15):
        actions = actions_of(step, 3)
        observation, reward, terminated, truncated, info = single.step(int(actions[0]))
        observations, rewards, terminations, truncations, infos = vector.step(actions)
        seen, received, dones, sb3_infos = sb3.step(actions)
        assert (terminated, truncated) == (terminations[0], truncations[0])
        assert math.isclose(reward, rewards[0], abs_tol=1e-5)
        assert np.array_equal(rewards, received)
        assert np.array_equal(terminations | truncations, dones)
        if truncated:
            assert np.array_equal(observation, infos["final_obs"][0])
            assert np.array_equal(observation, sb3_infos[0]["terminal_observation"])
            observation, _ = single.reset()
        assert np.array_equal(observation, observations[0])
        assert np.array_equal(observations, seen)


@pytest.mark.parametrize("hidden_state", [False, True])
def test_autoreset_is_exactly_gymnasiums_same_step(hidden_state: bool) -> None:
    dream = make_tiny_dream(end_logit=-1.5)
    settings: dict[str, Any] = {"checkpoint": dream, "device": "cpu", "horizon": 4, "hidden_state": hidden_state}
    theirs = SyncVectorEnv([lambda: DreamEnv(**settings)], autoreset_mode=AutoresetMode.SAME_STEP)
    ours = vector_env(dream, num_envs=1, seed=None, horizon=4, hidden_state=hidden_state)
    assert data_equivalence(ours.reset(seed=8), theirs.reset(seed=8), exact=True)
    ends = {"terminated": 0, "truncated": 0}
    for step in range(30):
        our, their = ours.step(np.array([step % 6])), theirs.step(np.array([step % 6]))
        assert data_equivalence(our[0], their[0], exact=True)
        assert float(our[1][0]) == float(their[1][0])
        assert data_equivalence(our[2:4], their[2:4], exact=True)
        assert our[4].keys() == their[4].keys()
        for key in their[4]:
            if key != "final_obs":
                assert data_equivalence(our[4][key], their[4][key], exact=True), key
            else:
                assert data_equivalence(our[4][key][0], their[4][key][0], exact=True)
        ends["terminated"] += int(our[2][0])
        ends["truncated"] += int(our[3][0])
    assert min(ends.values()) > 0


def test_torch_and_numpy_envs_dream_the_same(tiny_dream: Dream) -> None:
    arrays, tensors = vector_env(tiny_dream, horizon=3), vector_env(tiny_dream, horizon=3, array="torch")
    assert np.array_equal(arrays.reset()[0], tensors.reset()[0].numpy())
    for step in range(7):
        actions = actions_of(step, 4)
        expected, actual = arrays.step(actions), tensors.step(torch.from_numpy(actions))
        assert all(isinstance(value, torch.Tensor) for value in actual[:4])
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(expected[:4], actual[:4], strict=True))
        ended = actual[4]["_final_obs"].numpy()
        assert np.array_equal(ended, expected[2] | expected[3])
        for row in np.flatnonzero(ended):
            assert np.array_equal(expected[4]["final_obs"][row], actual[4]["final_obs"][row].numpy())
            assert expected[4]["final_info"]["start"][row] == actual[4]["final_info"]["start"][row]


# Autoreset


def test_all_dreams_may_end_in_one_step(tiny_dream: Dream) -> None:
    same_step = vector_env(tiny_dream, horizon=2)
    disabled = vector_env(tiny_dream, horizon=2, autoreset_mode="disabled")
    same_step.reset()
    disabled.reset()
    for step in range(2):
        observation, _, terminated, truncated, infos = same_step.step(actions_of(step, 4))
        last = disabled.step(actions_of(step, 4))[0]
    assert truncated.all()
    assert not terminated.any()
    assert infos["final_obs"].dtype == object
    assert infos["final_obs"].shape == (4,)
    assert infos["_final_obs"].tolist() == [True] * 4
    assert np.array_equal(np.stack(list(infos["final_obs"])), last)
    assert infos["final_info"]["age"].tolist() == [2] * 4
    assert infos["age"].tolist() == [0] * 4
    assert np.array_equal(observation, disabled.reset(options={"reset_mask": np.ones(4, dtype=np.bool_)})[0])


def test_only_dreams_that_ended_begin_anew(tiny_dream: Dream) -> None:
    env = vector_env(tiny_dream, num_envs=20, horizon=5, stagger=True)
    ages = env.reset()[1]["age"].copy()
    for step in range(12):
        truncated, infos = env.step(actions_of(step, 20))[3:]
        ages += 1
        assert np.array_equal(truncated, ages == 5)
        assert [item is not None for item in infos.get("final_obs", [None] * 20)] == truncated.tolist()
        ages[truncated] = 0
        assert np.array_equal(env.simulator.age.numpy(), ages)


def test_with_autoreset_disabled_dreams_are_reset_by_mask(tiny_dream: Dream) -> None:
    env = vector_env(tiny_dream, horizon=2, autoreset_mode=AutoresetMode.DISABLED)
    env.reset()
    env.step(actions_of(0, 4))
    mask = np.array([True, False, False, False])
    options = {"reset_mask": mask}
    _, infos = env.reset(options=options)
    assert options.keys() == {"reset_mask"}  # wrappers look at it afterwards
    assert infos["_start"].tolist() == mask.tolist()
    _, _, _, truncated, infos = env.step(actions_of(1, 4))
    assert truncated.tolist() == [False, True, True, True]
    assert "final_obs" not in infos
    assert infos["_age"].tolist() == [False, True, True, True]
    with pytest.raises(InvalidInputError, match=r"Dreams \[1, 2, 3\] have not begun or have ended"):
        env.step(actions_of(2, 4))
    observation, _ = env.reset(options={"reset_mask": ~mask})
    assert env.simulator.age.tolist() == [1, 0, 0, 0]
    assert np.array_equal(env.step(actions_of(2, 4))[0][:, :-32], observation[:, 32:])


def test_a_masked_reset_with_a_seed_repeats_those_dreams_only(tiny_dream: Dream) -> None:
    env = vector_env(tiny_dream, observation="codes", horizon=math.inf, autoreset_mode="DISABLED")
    env.reset(seed=1)
    first = [env.step(actions_of(step, 4))[0] for step in range(3)]
    mask = np.array([False, True, False, True])
    env.reset(seed=1, options={"reset_mask": mask})
    again = [env.step(actions_of(step, 4))[0] for step in range(3)]
    assert all(np.array_equal(a[mask], b[mask]) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a[row], b[row]) for a, b in zip(first, again, strict=True) for row in (0, 2))


def test_an_end_and_the_horizon_are_told_apart() -> None:
    for end_logit, expected in ((50.0, (True, False)), (-50.0, (False, True))):
        env = DreamEnv(checkpoint=make_tiny_dream(end_logit=end_logit), device="cpu", horizon=1)
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step(0)
        assert (terminated, truncated) == expected
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert info["age"] == 1


@pytest.mark.parametrize("array", ["numpy", "torch"])
@pytest.mark.parametrize("observation", KINDS)
def test_what_was_returned_is_never_overwritten(tiny_dream: Dream, observation: str, array: str) -> None:
    env = vector_env(tiny_dream, observation=observation, array=array, horizon=3, hidden_state=True, stagger=True)

    def flat(result: Any) -> list[Any]:
        return [*result[0].values(), *result[1:4]] if len(result) == 5 else [*result[0].values()]

    results = [flat(env.reset())]
    copies = [[value.copy() if array == "numpy" else value.clone() for value in results[0]]]
    for step in range(8):
        results.append(flat(env.step(actions_of(step, 4))))
        copies.append([value.copy() if array == "numpy" else value.clone() for value in results[-1]])
    for result, copy in zip(results, copies, strict=True):
        assert all(bool((a == b).all()) for a, b in zip(result, copy, strict=True))


def test_returned_arrays_may_be_written_to(tiny_dream: Dream) -> None:
    env, untouched = vector_env(tiny_dream), vector_env(tiny_dream)
    env.reset()[0][:] = 0
    untouched.reset()
    for step in range(3):
        result, expected = env.step(actions_of(step, 4)), untouched.step(actions_of(step, 4))
        assert all(np.array_equal(a, b) for a, b in zip(result[:4], expected[:4], strict=True))
        for value in result[:4]:
            value[:] = 1


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_gymnasiums_episode_statistics_can_be_recorded(tiny_dream: Dream, mode: AutoresetMode) -> None:
    plain = vector_env(tiny_dream, horizon=3, autoreset_mode=mode)
    env = RecordEpisodeStatistics(vector_env(tiny_dream, horizon=3, autoreset_mode=mode))
    plain.reset()
    env.reset()
    rewards = np.stack([plain.step(actions_of(step, 4))[1] for step in range(3)])
    for step in range(3):
        infos = env.step(actions_of(step, 4))[-1]
    assert infos["episode"]["l"].tolist() == [3] * 4
    assert np.allclose(infos["episode"]["r"], rewards.sum(axis=0))


# Options


def test_horizon_settings_mean_what_they_say() -> None:
    assert resolve_horizon(None, {"horizon": 7}) == 7
    assert resolve_horizon(None, {}) == 25
    assert resolve_horizon(None, {"horizon": None}) is None
    assert resolve_horizon(math.inf, {"horizon": 7}) is None
    assert resolve_horizon(9, {"horizon": 7}) == 9
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="horizon: expected a positive number of steps"):
            resolve_horizon(wrong, {})


def test_make_vec_limits_the_horizon_to_max_episode_steps(tiny_run: Path) -> None:
    env: Any = gym.make_vec("Dream-Pong-v0", 2, checkpoint=tiny_run, device="cpu", max_episode_steps=4)
    assert env.simulator.horizon == 4
    assert env.spec.id == "Dream-Pong-v0"
    env = gym.make_vec("Dream-Pong-v0", 2, checkpoint=tiny_run, device="cpu", max_episode_steps=99)
    assert env.simulator.horizon == 25


def test_every_dream_option_reaches_the_simulator(tiny_run: Path) -> None:
    settings: dict[str, Any] = {"latent_stack": 2, "hidden_state": True, "reward": "sampled", "temperature": 0.5}
    settings |= {"horizon_as": "termination", "stagger": True, "horizon": 9}
    for env in (
        gym.make("Dream-Pong-v0", checkpoint=tiny_run, device="cpu", **settings).unwrapped,
        gym.make_vec("Dream-Pong-v0", 3, checkpoint=tiny_run, device="cpu", **settings),
    ):
        simulator = getattr(env, "simulator")  # noqa: B009
        seen = (simulator.latent_stack, simulator.reward_mode, simulator.temperature, simulator.horizon_as)
        assert seen == (2, "sampled", 0.5, "termination")
        assert (simulator.stagger, simulator.horizon) == (True, 9)
        assert "hidden" in env.reset()[0]


@pytest.mark.parametrize(
    ("metadata", "asked", "expected"),
    [
        ({}, {}, 1.0),
        ({"temperature": 0.1}, {}, 0.1),
        ({"temperature": 0.0}, {}, 0.0),
        ({"temperature": 0.1}, {"temperature": None}, 0.1),
        ({"temperature": 0.1}, {"temperature": 0.7}, 0.7),
        ({"temperature": 0.1}, {"temperature": 0.0}, 0.0),
    ],
)
def test_dreams_are_drawn_at_the_checkpoints_temperature_unless_told_otherwise(
    tiny_dream: Dream, metadata: dict[str, float], asked: dict[str, Any], expected: float
) -> None:
    tiny_dream.metadata |= metadata
    for env in (
        DreamEnv(checkpoint=tiny_dream, device="cpu", **asked),
        vector_env(tiny_dream, **asked),
        make_sb3_env(tiny_dream, 2, device="cpu", **asked),
    ):
        assert getattr(env, "simulator").temperature == expected  # noqa: B009


def test_a_dream_without_warmth_is_the_same_whatever_its_seed(tiny_dream: Dream) -> None:
    def rollout(temperature: float, seed: int) -> Any:
        tiny_dream.metadata["temperature"] = temperature
        env = vector_env(tiny_dream, observation="codes", seed=seed)
        env.reset(options={"start": 5})
        return np.stack([env.step(actions_of(step, 4))[0] for step in range(4)])

    assert np.array_equal(rollout(0.0, 1), rollout(0.0, 2))
    assert not np.array_equal(rollout(1.0, 1), rollout(1.0, 2))


def test_a_start_and_a_state_can_be_chosen(tiny_dream: Dream) -> None:
    env = DreamEnv(checkpoint=tiny_dream, device="cpu", observation="codes")
    observation, info = env.reset(options={"start": 17})
    assert info == {"start": 17, "age": 0}
    assert np.array_equal(observation, tiny_dream.starts.latents[17, -4:].flatten(1).T.numpy())
    saved = env.simulator.state()
    first = env.step(2)[0]
    env.reset(seed=1)
    assert np.array_equal(env.reset(options={"state": saved})[0], observation)
    assert np.array_equal(env.step(2)[0], first)
    env.reset(seed=5, options={"state": saved})
    assert not np.array_equal(env.step(2)[0], first)
    with pytest.raises(InvalidInputError, match="'state' sets all dreams"):
        env.reset(options={"state": saved, "start": 3})


def test_the_seed_of_the_constructor_is_that_of_the_first_reset(tiny_dream: Dream) -> None:
    given = DreamEnv(checkpoint=tiny_dream, device="cpu", seed=4)
    later = DreamEnv(checkpoint=tiny_dream, device="cpu")
    assert np.array_equal(given.reset()[0], later.reset(seed=4)[0])
    assert given.np_random_seed == later.np_random_seed == 4


def test_rendering_shows_the_newest_frame_enlarged(tiny_dream: Dream) -> None:
    env = vector_env(tiny_dream, num_envs=2, observation="pixels", render_mode="rgb_array")
    observation, _ = env.reset()
    frames = env.render()
    assert frames is not None
    assert [(frame.shape, frame.dtype) for frame in frames] == [((384, 384, 3), np.uint8)] * 2
    assert np.abs(frames[1][::4, ::4, 2].astype(int) - observation[1, -1]).max() <= 1
    single = DreamEnv(checkpoint=tiny_dream, device="cpu", render_mode="rgb_array")
    single.reset()
    assert single.render().shape == (384, 384, 3)


def test_rendering_without_a_render_mode_warns(tiny_dream: Dream) -> None:
    single, vector = DreamEnv(checkpoint=tiny_dream, device="cpu"), vector_env(tiny_dream)
    for env in (single, vector):
        env.reset()
        with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
            assert env.render() is None


def test_continuous_actions_are_vectors_within_their_bounds(tiny_dream: Dream) -> None:
    config = tiny_dream.world_model.config
    object.__setattr__(config, "continuous", True)
    tiny_dream.metadata |= {"action_low": [-1.0, 0, 0, 0, 0, 0], "action_high": 1.0}
    tiny_dream.starts = tiny_dream.starts._replace(actions=torch.rand(40, 8, 6))
    space = dream_action_space(tiny_dream)
    assert isinstance(space, gym.spaces.Box)
    assert space.low.tolist() == [-1.0, 0, 0, 0, 0, 0]
    env = vector_env(tiny_dream)
    env.reset()
    assert env.step(env.action_space.sample())[0].shape == (4, 128, 6, 6)
    with pytest.raises(InvalidActionError, match="expected numbers in Box"):
        env.step(np.full((4, 6), 2.0))
    single = DreamEnv(checkpoint=tiny_dream, device="cpu")
    single.reset()
    assert single.step(np.zeros(6, dtype=np.float32))[0].shape == (128, 6, 6)


# Ids


def test_every_ale_game_has_an_id_with_both_entry_points() -> None:
    games = [spec.name for spec in gym.registry.values() if spec.namespace == "ALE" and spec.version == 5]
    assert len(games) > 100
    for game in games:
        spec = gym.spec(f"Dream-{game}-v0")
        assert (spec.entry_point, spec.vector_entry_point) == ("dreamgym.envs:DreamEnv", "dreamgym.envs:DreamVectorEnv")


def test_importing_registers_the_ids_without_loading_torch() -> None:
    code = (
        "import sys, gymnasium as gym, dreamgym\n"
        "assert 'torch' not in sys.modules and 'stable_baselines3' not in sys.modules\n"
        "assert dreamgym.DreamgymError and gym.spec('Dream-SpaceInvaders-v0') and dreamgym.__version__\n"
        "assert 'make_sb3_env' in dir(dreamgym)\n"
        "assert dreamgym.DreamSimulator and 'torch' in sys.modules and 'stable_baselines3' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_prefix_registers_the_ids(tiny_run: Path) -> None:
    code = f"import gymnasium; gymnasium.make('dreamgym:Dream-Pong-v0', checkpoint={str(tiny_run)!r}).reset()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_others_are_not() -> None:
    assert all(getattr(dreamgym, name) is not None for name in dreamgym.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(dreamgym, "nonsense")  # noqa: B009


def test_the_newest_run_is_found_by_id(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGYM_HOME", str(tiny_run.parent))
    assert isinstance(gym.make("Dream-Pong-v0", device="cpu").unwrapped, DreamEnv)
    assert gym.make_vec("Dream-Pong-v0", 3, device="cpu").num_envs == 3
    assert DreamEnv("Pong", device="cpu").dream.metadata["game"] == "Pong"
    assert DreamEnv(tiny_run, device="cpu").dream.metadata["game"] == "Pong"


def test_a_misspelt_id_suggests_the_game() -> None:
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `Dream-Pong`"):
        gym.make("Dream-Pnog-v0")
    with pytest.raises(UnknownGameError, match="Pong"):
        DreamVectorEnv(2, "Dream-Pnog-v0")


def test_missing_weights_say_where_they_were_looked_for_and_how_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path))
    for make in (gym.make, gym.make_vec):
        with pytest.raises(MissingWeightsError) as caught:
            make("Dream-Zaxxon-v0")
        assert str(tmp_path) in str(caught.value)
        assert "dreamgym train --game Zaxxon" in str(caught.value)
    with pytest.raises(MissingWeightsError, match="nowhere"):
        gym.make("Dream-Pong-v0", checkpoint=tmp_path / "nowhere")


# Errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_an_error(tiny_run: Path) -> None:
    with pytest.raises(DeviceError, match="no CUDA"):
        gym.make("Dream-Pong-v0", checkpoint=tiny_run, device="cuda")
    with pytest.raises(DeviceError, match="expected 'auto', 'cpu'"):
        gym.make_vec("Dream-Pong-v0", 2, checkpoint=tiny_run, device="gpu")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (6, r"expected integers in Discrete\(6\), got 6"),
        (-1, r"expected integers in Discrete\(6\), got -1"),
        (1.0, r"expected integers of shape \(\), got 1.0"),
        ([1, 2], r"expected shape \(\), got \(2,\)"),
        ("left", "expected integers"),
    ],
)
def test_a_wrong_action_is_refused(tiny_dream: Dream, action: Any, message: str) -> None:
    env = DreamEnv(checkpoint=tiny_dream, device="cpu")
    env.reset()
    with pytest.raises(InvalidActionError, match=message):
        env.step(action)


@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_wrong_batches_of_actions_are_refused(tiny_dream: Dream, array: str) -> None:
    env = vector_env(tiny_dream, array=array)
    env.reset()
    for actions in (np.zeros(3, int), np.zeros((4, 1), int), np.zeros(4), np.full(4, 6)):
        with pytest.raises(InvalidActionError):
            env.step(actions if array == "numpy" else torch.from_numpy(actions))


def test_actions_of_any_integer_type_are_taken(tiny_dream: Dream) -> None:
    env = DreamEnv(checkpoint=tiny_dream, device="cpu")
    env.reset()
    for action in (1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)):
        env.step(action)
    assert env.simulator.age.tolist() == [5]


@pytest.mark.parametrize(
    "mask",
    [np.ones(4), np.ones(3, dtype=np.bool_), np.zeros(4, dtype=np.bool_), [True] * 4, torch.ones(4)],
)
def test_wrong_reset_masks_are_refused(tiny_dream: Dream, mask: Any) -> None:
    env = vector_env(tiny_dream)
    env.reset()
    with pytest.raises(InvalidInputError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


def test_steps_out_of_turn_are_refused(tiny_dream: Dream) -> None:
    env = DreamEnv(checkpoint=tiny_dream, device="cpu", horizon=1)
    with pytest.raises(InvalidInputError, match=r"has not begun: call reset\(\)"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(InvalidInputError, match=r"has ended: call reset\(\)"):
        env.step(0)
    with pytest.raises(InvalidInputError, match="have not begun"):
        vector_env(tiny_dream).step(np.zeros(4, int))


def test_a_closed_env_says_so(tiny_dream: Dream) -> None:
    single, vector = DreamEnv(checkpoint=tiny_dream, device="cpu"), vector_env(tiny_dream)
    for env in (single, vector):
        env.reset()
        env.close()
    with pytest.raises(InvalidInputError, match="is closed"):
        single.step(0)
    for call in (vector.reset, vector.render, lambda: vector.step(np.zeros(4, int))):
        with pytest.raises(InvalidInputError, match="are closed"):
            call()
    single.reset()  # as the checkers do
    single.step(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"observation": "latents"},
            "observation: expected one of 'embedding', 'codes', 'objects', 'pixels', got 'latents'",
        ),
        ({"render_mode": "ansi"}, "render_mode: expected None or 'rgb_array'"),
        ({"array": "jax"}, "array: expected 'numpy' or 'torch'"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP}, "autoreset_mode: expected SAME_STEP or DISABLED"),
        ({"horizon": 0}, "horizon"),
        ({"num_envs": 0}, "num_envs"),
        ({"checkpoint": None}, "Which dream"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_dream: Dream, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DreamVectorEnv(**{"num_envs": 2, "checkpoint": tiny_dream, "device": "cpu", **settings})


def test_autoreset_modes_are_taken_by_name_and_kept_with_the_instance(tiny_dream: Dream) -> None:
    for name in ("SAME_STEP", "SameStep", AutoresetMode.SAME_STEP):
        assert resolve_autoreset(name) is AutoresetMode.SAME_STEP
    env = vector_env(tiny_dream, autoreset_mode="Disabled")
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert "autoreset_mode" not in DreamVectorEnv.metadata
    assert "autoreset_mode" not in gym.vector.VectorEnv.metadata


def test_a_checkpoint_of_another_game_is_refused(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="Dream-Pong-v0"):
        gym.make("Dream-Breakout-v0", checkpoint=str(tiny_run), device="cpu")
