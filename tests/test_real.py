import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from dreamgym.errors import InvalidActionError, InvalidInputError, UnknownGameError
from dreamgym.real import AtariGameVectorEnv, flicker, game_names, make_game_env, make_game_vector_env, resolve_game
from dreamgym.screens import Shrink


class Painter(gym.Env[np.ndarray, Any]):
    """Images that depend on the step, the action and the seed; a life is lost at step 3, the last at step 6."""

    def __init__(self, channels: int | None = 3, continuous: bool = False, render_mode: str | None = None) -> None:
        shape = (30, 40) if channels is None else (30, 40, channels)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32) if continuous else gym.spaces.Discrete(3)
        self.render_mode = render_mode

    def _image(self, action: Any) -> np.ndarray:
        image = self.np_random.integers(0, 200, self.observation_space.shape).astype(np.uint8)
        return image + np.uint8(np.sum(action) * 10 + self.age)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.age = 0
        return self._image(0), {"lives": 2}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.age += 1
        self.last_action = action
        return self._image(action), 1.5, self.age == 6, False, {"lives": 2 - self.age // 3}


@pytest.fixture(scope="module", autouse=True)
def painters() -> Iterator[None]:
    ids = {"TinyRGB-v0": {}, "TinyGrey-v0": {"channels": None}, "TinyOne-v0": {"channels": 1}}
    ids |= {"TinyContinuous-v0": {"continuous": True}, "TinyLimited-v0": {}}
    for name, kwargs in ids.items():
        limit = 4 if "Limited" in name else None
        gym.register(name, entry_point=Painter, kwargs=kwargs, max_episode_steps=limit)
    yield
    for name in ids:
        del gym.registry[name]


def play(env: gym.Env[Any, Any], actions: np.ndarray, seed: int) -> list[Any]:
    """Everything that one env gives for a list of actions, reset when an episode ends."""
    obs, info = env.reset(seed=seed)
    steps: list[Any] = [(obs, info["lives"], info["life_lost"])]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        steps.append((obs, reward, terminated, truncated, info["lives"], info["life_lost"]))
        if terminated or truncated:
            obs, info = env.reset()
            steps.append((obs, info["lives"], info["life_lost"]))
    return steps


def play_vector(env: VectorEnv, actions: np.ndarray, seed: int) -> list[list[Any]]:
    """The same from a vector env: one such list for each game."""
    obs, info = env.reset(seed=seed)
    steps: list[list[Any]] = [[(obs[i], info["lives"][i], info["life_lost"][i])] for i in range(env.num_envs)]
    for row in actions:
        obs, reward, terminated, truncated, info = env.step(row)
        for i, game in enumerate(steps):
            ended = terminated[i] or truncated[i]
            seen = info["final_obs"][i] if ended else obs[i]
            about = info["final_info"] if ended else info
            game.append((seen, reward[i], terminated[i], truncated[i], about["lives"][i], about["life_lost"][i]))
            if ended:
                assert info["_final_obs"][i]
                assert info["_final_info"][i]
                game.append((obs[i], info["lives"][i], info["life_lost"][i]))
            elif "final_obs" in info:
                assert info["final_obs"][i] is None
    return steps


def assert_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for step, (one, other) in enumerate(zip(left, right, strict=True)):
        assert np.array_equal(one[0], other[0]), f"frames differ at {step}"
        assert [float(x) for x in one[1:]] == [float(x) for x in other[1:]], f"step {step}"


def random_actions(game: str, steps: int, seed: int = 0) -> np.ndarray:
    env = make_game_env(game)
    count = int(env.action_space.n)
    return np.random.default_rng(seed).integers(count, size=steps)


# Names


def test_game_names_are_the_ale_games_in_camel_case() -> None:
    names = game_names()
    assert {"Pong", "Breakout", "SpaceInvaders", "MsPacman", "Zaxxon"} <= set(names)
    assert len(names) >= 100
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("Pong", "Pong"),
        ("pong", "Pong"),
        ("ALE/Pong-v5", "Pong"),
        ("PongNoFrameskip-v4", "Pong"),
        ("space_invaders", "SpaceInvaders"),
        ("Space Invaders", "SpaceInvaders"),
        ("CarRacing-v3", "CarRacing-v3"),
        ("TinyRGB-v0", "TinyRGB-v0"),
    ],
)
def test_a_game_is_found_by_any_of_its_names(name: str, game: str) -> None:
    assert resolve_game(name) == game


@pytest.mark.parametrize(
    ("name", "near"), [("Pnog", "Pong"), ("ALE/Breakot-v5", "Breakout"), ("CarRacng-v3", "CarRacing-v3")]
)
def test_an_unknown_game_lists_the_nearest_names(name: str, near: str) -> None:
    with pytest.raises(UnknownGameError, match=near):
        make_game_env(name)
    with pytest.raises(UnknownGameError, match=near):
        make_game_vector_env(name, 2)


@pytest.mark.parametrize("name", ["", "qqqqqqqqqq", "ale_py:qqqqqqqqqq"])
def test_a_name_near_to_nothing_lists_the_games(name: str) -> None:
    with pytest.raises(UnknownGameError, match=r"Pong.*SpaceInvaders"):
        resolve_game(name)


@pytest.mark.parametrize("module", ["nosuchmodule", "os.nosuchmodule", ".relative"])
def test_a_module_that_cannot_be_imported_is_named(module: str) -> None:
    with pytest.raises(
        UnknownGameError, match=rf"'{re.escape(module)}', which cannot be imported .*python -m dreamgym"
    ):
        resolve_game(f"{module}:Game-v0")


def test_a_game_of_a_module_is_found_and_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_a_game.py").write_text(
        "import gymnasium\ngymnasium.register('ModuleGame-v0', entry_point=gymnasium.spec('TinyRGB-v0').entry_point)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "module_of_a_game:ModuleGame-v0"
    assert resolve_game(name) == name
    assert make_game_env(name).reset(seed=0)[0].shape == (1, 96, 96)
    assert resolve_game("ale_py:ALE/Pong-v5") == "Pong"


# ALE games


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("name", ["Pong", "TinyContinuous-v0"])
def test_the_env_passes_gymnasiums_own_check(name: str) -> None:
    check_env(make_game_env(name, stack=2), skip_render_check=True)


def test_observations_are_stacked_grey_frames_and_actions_the_minimal_set() -> None:
    env = make_game_env("Pong", stack=4)
    assert env.observation_space == gym.spaces.Box(0, 255, (4, 96, 96), np.uint8)
    assert env.action_space == gym.spaces.Discrete(6)
    first, info = env.reset(seed=3)
    assert env.observation_space.contains(first)
    assert all(np.array_equal(frame, first[0]) for frame in first)
    assert info["lives"] == 0
    assert info["life_lost"] is False
    second, reward, terminated, truncated, _ = env.step(np.int64(2))
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    third = env.step(3)[0]
    assert np.array_equal(third[:3], second[1:])
    assert np.array_equal(third[:2], first[2:])


def test_a_step_is_four_emulator_frames() -> None:
    env = make_game_env("Pong", noop_max=0)
    env.reset(seed=0)
    assert env.step(0)[4]["episode_frame_number"] == 4
    env = make_game_env("Pong", noop_max=0, frame_skip=2)
    env.reset(seed=0)
    assert env.step(0)[4]["episode_frame_number"] == 2


def test_episodes_start_after_up_to_thirty_no_ops() -> None:
    env = make_game_env("Pong")
    env.reset(seed=0)
    counts = {env.reset()[1]["episode_frame_number"] for _ in range(40)}
    assert min(counts) >= 1
    assert max(counts) <= 30
    assert len(counts) > 10


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_seed_determines_the_game(sticky: float) -> None:
    actions = random_actions("Breakout", 150)
    runs = [play(make_game_env("Breakout", sticky_actions=sticky), actions, seed) for seed in (7, 7, 8)]
    assert_same(runs[0], runs[1])
    assert any(not np.array_equal(one[0], other[0]) for one, other in zip(runs[0], runs[2], strict=False))
    env = make_game_env("Breakout", sticky_actions=sticky)
    assert_same(play(env, actions, 7), runs[0])
    assert_same(play(env, actions, 7), runs[0])


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_seed_determines_the_vector_games(sticky: float) -> None:
    actions = random_actions("Breakout", 150).reshape(50, 3)
    runs = []
    for seed in (7, 7, 8):
        env = make_game_vector_env("Breakout", 3, sticky_actions=sticky)
        runs.append(play_vector(env, actions, seed))
        env.close()
    for one, other in zip(runs[0], runs[1], strict=True):
        assert_same(one, other)
    # Games are seeded one after the other: game 1 of seed 7 and game 0 of seed 8 begin alike.
    assert np.array_equal(runs[0][1][0][0], runs[2][0][0][0])


@pytest.mark.parametrize(
    ("game", "settings"),
    [
        ("Pong", {"stack": 4, "max_episode_steps": 60}),
        ("Breakout", {}),
        ("Breakout", {"stack": 3, "frame_skip": 2, "size": 64}),
        ("Breakout", {"frame_skip": 1, "max_episode_steps": 100}),
        ("Breakout", {"stack": 2, "size": (112, 80), "max_episode_steps": 100}),
        ("Pong", {"stack": 2, "size": (75, 60), "max_episode_steps": 60}),
        ("MsPacman", {"max_episode_steps": 150}),
        ("Breakout", {"size": (112, 80), "shrink": "nearest", "max_pool": False, "max_episode_steps": 100}),
        ("MsPacman", {"stack": 2, "shrink": "nearest", "max_episode_steps": 60}),
        ("Pong", {"size": (112, 80), "shrink": "row", "max_pool": False, "max_episode_steps": 60}),
        ("Pong", {"size": (112, 80), "shrink": "brightest", "max_pool": False, "max_episode_steps": 60}),
        ("Pong", {"size": 84, "max_pool": False, "max_episode_steps": 60}),
    ],
)
def test_the_vector_form_gives_the_single_forms_pixels(game: str, settings: dict[str, Any]) -> None:
    actions = random_actions(game, 500).reshape(250, 2)
    env = make_game_vector_env(game, 2, noop_max=0, **settings)
    assert isinstance(env, AtariGameVectorEnv)
    games = play_vector(env, actions, seed=5)
    env.close()
    for index in range(2):
        single = make_game_env(game, noop_max=0, **settings)
        assert env.single_observation_space == single.observation_space
        assert env.single_action_space == single.action_space
        assert_same(play(single, actions[:, index], seed=5 + index), games[index])


def frames_and_screens(env: gym.Env[Any, Any], actions: np.ndarray) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """What each step shows, and the four emulator frames it was made of."""
    ale = env.unwrapped.ale
    legal = ale.getMinimalActionSet()
    for action in actions:
        before = ale.cloneSystemState()
        frame = env.step(action)[0][-1]
        ale.restoreSystemState(before)
        screens = []
        for _ in range(4):
            ale.act(legal[action])
            screens.append(ale.getScreenGrayscale())
        yield frame, screens


def test_a_frame_of_half_the_screen_is_the_mean_of_every_four_pixels_and_black_below() -> None:
    env = make_game_env("Pong", stack=2, size=(112, 80))
    assert env.observation_space == gym.spaces.Box(0, 255, (2, 112, 80), np.uint8)
    first, _ = env.reset(seed=0)
    assert first.shape == (2, 112, 80) and np.array_equal(first[0], first[1])
    for frame, screens in frames_and_screens(env, random_actions("Pong", 60)):
        # Things that flicker are shown in one of two screens.
        newest = np.maximum(screens[2], screens[3]).astype(np.float64)
        halved = newest.reshape(105, 2, 80, 2).mean(axis=(1, 3))
        assert np.array_equal(frame[:105], np.floor(halved + 0.5))
        assert not frame[105:].any()
    assert len(np.unique(frame[:105])) > 4


@pytest.mark.parametrize("max_pool", [False, True])
def test_of_a_screen_one_pixel_in_four_and_the_last_emulator_frame_alone_can_be_shown(max_pool: bool) -> None:
    env = make_game_env("Pong", size=(112, 80), shrink="nearest", max_pool=max_pool)
    env.reset(seed=0)
    differed = 0
    for frame, screens in frames_and_screens(env, random_actions("Pong", 60)):
        shown = np.maximum(screens[2], screens[3]) if max_pool else screens[3]
        assert np.array_equal(frame[:105], shown[::2, ::2]) and not frame[105:].any()
        differed += not np.array_equal(screens[2], screens[3])
    assert differed > 10


def test_of_a_screen_the_means_of_every_second_row_can_be_shown() -> None:
    env = make_game_env("Pong", size=(112, 80), shrink="row", max_pool=False)
    env.reset(seed=0)
    for frame, screens in frames_and_screens(env, random_actions("Pong", 60)):
        pairs = screens[3][::2].reshape(105, 80, 2).astype(np.float64)
        assert np.array_equal(frame[:105], np.floor(pairs.mean(-1) + 0.5)) and not frame[105:].any()
    assert len(np.unique(frame[:105])) > 4


def test_of_a_screen_the_brightest_of_every_second_row_can_be_shown() -> None:
    env = make_game_env("Pong", size=(112, 80), shrink="brightest", max_pool=False)
    env.reset(seed=0)
    levels: set[int] = set()
    for frame, screens in frames_and_screens(env, random_actions("Pong", 60)):
        assert np.array_equal(frame[:105], screens[3][::2].reshape(105, 80, 2).max(-1)) and not frame[105:].any()
        levels |= set(frame[:105].ravel()) - set(screens[3].ravel())
    assert not levels, "a thing is as bright as on the screen"


@pytest.mark.parametrize("shrink", ["row", "brightest"])
@pytest.mark.parametrize("size", [96, 300])
def test_rows_are_shown_at_sizes_that_no_whole_number_of_columns_makes(size: int, shrink: Shrink) -> None:
    env = make_game_env("Pong", size=size, shrink=shrink, max_pool=False)
    env.reset(seed=0)
    for frame, screens in frames_and_screens(env, random_actions("Pong", 20)):
        rows = screens[3][np.arange(size) * 210 // size].astype(np.float64)
        edges = [*(np.arange(size) * 160 // size), 160]
        columns = [rows[:, a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
        shown = [part.max(1) if shrink == "brightest" else np.floor(part.mean(1) + 0.5) for part in columns]
        assert np.array_equal(frame, np.stack(shown, axis=1))


def sticky_seed() -> int:
    """A seed whose emulator seed is positive, the only kind that ale-py's vector form takes."""
    return next(seed for seed in range(99) if int(np.random.SeedSequence(seed).generate_state(2)[1]) < 2**31)


def test_sticky_actions_are_the_same_in_both_forms_and_change_the_game() -> None:
    seed, actions = sticky_seed(), random_actions("Breakout", 300)
    env = make_game_vector_env("Breakout", 1, noop_max=0, sticky_actions=0.25)
    games = play_vector(env, actions[:, None], seed)
    env.close()
    sticky = play(make_game_env("Breakout", noop_max=0, sticky_actions=0.25), actions, seed)
    assert_same(sticky, games[0])
    plain = play(make_game_env("Breakout", noop_max=0), actions, seed)
    assert any(not np.array_equal(one[0], other[0]) for one, other in zip(sticky, plain, strict=False))


def test_a_lost_life_is_reported_and_does_not_end_the_episode() -> None:
    steps = play(make_game_env("Breakout"), random_actions("Breakout", 400), seed=1)
    lives, lost_mid_episode = 5, 0
    for step in steps:
        if len(step) == 3:
            assert (step[1], step[2]) == (5, False)
            lives = 5
            continue
        _, _, terminated, _, now, lost = step
        assert lost == (now < lives)
        assert terminated == (now == 0)
        lost_mid_episode += lost and not terminated
        lives = now
    assert lost_mid_episode >= 4
    assert any(step[2] for step in steps if len(step) > 3)


def test_the_vector_form_reports_the_life_that_ended_an_episode() -> None:
    env = make_game_vector_env("Breakout", 2)
    env.reset(seed=0)
    for row in random_actions("Breakout", 1200).reshape(-1, 2):
        *_, terminated, _, info = env.step(row)
        if terminated.any():
            break
    ended = int(np.flatnonzero(terminated)[0])
    assert info["final_info"]["life_lost"][ended]
    assert info["final_info"]["lives"][ended] == 0
    assert info["lives"][ended] == 5
    assert not info["life_lost"][ended]
    env.close()


def test_the_step_limit_truncates_and_does_not_terminate() -> None:
    for step in play(make_game_env("Pong", max_episode_steps=5), np.zeros(12, np.int64), seed=0):
        assert len(step) == 3 or not step[2]
    env = make_game_env("Pong", max_episode_steps=5)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]


def test_all_games_ending_in_one_step_give_an_object_array_of_final_observations() -> None:
    env = make_game_vector_env("Pong", 3, max_episode_steps=20)
    env.reset(seed=0)
    for _ in range(20):
        obs, _, terminated, truncated, info = env.step(np.full(3, 2))
    assert truncated.all()
    assert not terminated.any()
    assert info["final_obs"].shape == (3,)
    assert info["final_obs"].dtype == object
    assert all(final.shape == (1, 96, 96) for final in info["final_obs"])
    assert not np.array_equal(info["final_obs"][0], obs[0])
    env.close()


def test_a_reset_mask_leaves_the_other_games_as_they_are() -> None:
    env = make_game_vector_env("Pong", 3, stack=2)
    env.reset(seed=0)
    for _ in range(30):
        before = env.step(np.full(3, 2))[0]
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])
    assert np.array_equal(after[1, 0], after[1, 1])
    unchanged, _ = env.reset(options={"reset_mask": np.zeros(3, np.bool_)})
    assert np.array_equal(unchanged, after)
    with pytest.raises(InvalidInputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, np.bool_)})
    with pytest.raises(InvalidInputError, match="seeds"):
        env.reset(seed=[1, 2])
    env.close()


def test_a_mask_before_the_first_reset_is_refused() -> None:
    env = make_game_vector_env("Pong", 2)
    with pytest.raises(InvalidInputError, match="first"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.close()


def test_observation_buffers_are_never_reused() -> None:
    single, vector = make_game_env("Pong", stack=2), make_game_vector_env("Pong", 2, stack=2)
    single.reset(seed=0)
    vector.reset(seed=0)
    for _ in range(5):
        seen, seen_by_all = single.step(0)[0], vector.step(np.zeros(2, np.int64))[0]
        kept, kept_by_all = seen.copy(), seen_by_all.copy()
        single.step(2)
        vector.step(np.full(2, 2))
        assert np.array_equal(seen, kept)
        assert np.array_equal(seen_by_all, kept_by_all)
    vector.close()


def test_vector_envs_do_not_share_their_metadata() -> None:
    env = make_game_vector_env("Pong", 1)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert "autoreset_mode" not in VectorEnv.metadata
    env.close()


def test_the_games_own_screen_can_be_rendered() -> None:
    env = make_game_env("Pong", render_mode="rgb_array")
    env.reset(seed=0)
    assert np.asarray(env.render()).shape == (210, 160, 3)
    vector = make_game_vector_env("Pong", 2, render_mode="rgb_array")
    vector.reset(seed=0)
    screens = vector.render()
    assert screens is not None
    assert len(screens) == 2
    vector.close()


@pytest.mark.parametrize("action", [6, -1, 1.5, "left", np.array([1, 2])])
def test_a_wrong_action_is_refused(action: Any) -> None:
    env = make_game_env("Pong")
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="expected"):
        env.step(action)


@pytest.mark.parametrize("actions", [[0, 6], [-1, 0], [0.5, 0.0], [0], [[0, 0]]])
def test_wrong_vector_actions_are_refused(actions: Any) -> None:
    env = make_game_vector_env("Pong", 2)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="expected"):
        env.step(np.array(actions))
    env.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"stack": 0},
        {"sticky_actions": 1.5},
        {"noop_max": -1},
        {"size": 0},
        {"frame_skip": 0},
        {"max_episode_steps": 0},
        {"size": (112, 0)},
        {"size": (-1, 80)},
        {"size": (112,)},
        # A screen that is one line high would be less than a column wide.
        {"size": (1, 100)},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    message = f"^{next(iter(wrong))}: expected"
    with pytest.raises(InvalidInputError, match=message):
        make_game_env("Pong", **wrong)
    with pytest.raises(InvalidInputError, match=message):
        make_game_vector_env("Pong", 2, **wrong)


def test_no_games_at_all_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="num_envs"):
        make_game_vector_env("Pong", 0)


# Any other image environment


@pytest.mark.parametrize("name", ["TinyRGB-v0", "TinyGrey-v0", "TinyOne-v0"])
def test_any_image_env_is_seen_grey_resized_and_stacked(name: str) -> None:
    env, plain = make_game_env(name, stack=2, size=20), gym.make(name)
    obs, info = env.reset(seed=4)
    image, _ = plain.reset(seed=4)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if name == "TinyRGB-v0" else image.reshape(30, 40)
    expected = cv2.resize(grey, (20, 20), interpolation=cv2.INTER_AREA)
    assert env.observation_space.contains(obs)
    assert np.array_equal(obs, np.stack([expected, expected]))
    assert info["lives"] == 2
    rewards, lost = zip(*[(step[1], step[4]["life_lost"]) for step in (env.step(1) for _ in range(6))], strict=True)
    assert rewards == (1.5,) * 6
    assert lost == (False, False, True, False, False, True)


@pytest.mark.parametrize(
    ("size", "shrink"), [((20, 20), 2), ((15, 20), 2), ((30, 39), 2), ((10, 40), 3), ((30, 40), 1), ((50, 60), 1)]
)
def test_a_screen_is_shrunk_by_the_least_whole_number_that_fits_and_put_into_the_upper_left_corner(
    size: tuple[int, int], shrink: int
) -> None:
    env, plain = make_game_env("TinyGrey-v0", stack=2, size=size), gym.make("TinyGrey-v0")
    obs, _ = env.reset(seed=4)
    image, _ = plain.reset(seed=4)
    for _ in range(3):
        height, width = 30 // shrink, 40 // shrink
        expected = np.zeros(size, np.uint8)
        expected[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        assert obs.shape == (2, *size) and np.array_equal(obs[-1], expected)
        obs, image = env.step(1)[0], plain.step(1)[0]


def test_continuous_actions_pass_through() -> None:
    env = make_game_env("TinyContinuous-v0")
    assert env.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    env.reset(seed=0)
    action = np.array([0.25, -0.5], np.float32)
    env.step(action)
    assert np.array_equal(env.unwrapped.last_action, action)


def test_the_shorter_of_two_step_limits_holds() -> None:
    def length(name: str, limit: int) -> int:
        env = make_game_env(name, max_episode_steps=limit)
        env.reset(seed=0)
        return next(age for age in range(1, 10) if any(env.step(0)[2:4]))

    assert length("TinyLimited-v0", 100) == 4
    assert length("TinyLimited-v0", 2) == 2
    assert length("TinyRGB-v0", 3) == 3
    assert length("TinyRGB-v0", 100) == 6


def test_the_vector_form_of_any_image_env_equals_the_single_form() -> None:
    actions = np.random.default_rng(0).integers(3, size=(20, 2))
    env = make_game_vector_env("TinyRGB-v0", 2, stack=2)
    assert isinstance(env, SyncVectorEnv)
    games = play_vector(env, actions, seed=3)
    env.close()
    for index in range(2):
        assert_same(play(make_game_env("TinyRGB-v0", stack=2), actions[:, index], seed=3 + index), games[index])


def test_sticky_actions_hold_for_any_env_and_follow_the_seed() -> None:
    def taken(seed: int) -> list[int]:
        env = make_game_env("TinyRGB-v0", sticky_actions=0.5)
        actions: list[int] = []
        for episode in range(5):
            env.reset(seed=seed + episode)
            for step in range(6):
                env.step(step % 3)
                actions.append(int(env.unwrapped.last_action))
        return actions

    assert taken(0) == taken(0)
    assert taken(0) != [0, 1, 2, 0, 1, 2] * 5


def test_an_env_without_images_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="uint8 images"):
        make_game_env("CartPole-v1")


def test_a_game_whose_package_is_missing_says_which():
    def missing(*_args, **_settings):
        raise gym.error.DependencyNotInstalled("Box2D is not installed")

    gym.register("Boxed-v0", entry_point=missing)
    try:
        with pytest.raises(InvalidInputError, match="Box2D"):
            make_game_env("Boxed-v0")
    finally:
        gym.registry.pop("Boxed-v0")


def test_games_that_draw_things_in_every_second_frame_are_told_from_others() -> None:
    assert flicker("MsPacman") > 5 > flicker("Pong")
    assert flicker("MsPacman") == flicker("MsPacman") != flicker("MsPacman", seed=1)
    assert flicker("CartPole-v1") == 0
