"""Real steps to Minari and back, with Minari itself on both sides, and runs that begin from what was imported."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

import dreamgym.loop
import dreamgym.minari_data
from dreamgym.cli import main
from dreamgym.config import RunConfig, make_config
from dreamgym.errors import ConfigError, InvalidInputError, ReplayError
from dreamgym.imported import DATA_FILE, Experience, read_facts
from dreamgym.json_files import sealed, unsealed
from dreamgym.loop import game_actions, train
from dreamgym.minari_data import export_dataset, import_dataset
from dreamgym.provenance import provenance
from dreamgym.real import as_frame, make_game_env
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder

SIX = spaces.Discrete(6)
COLUMNS = ("actions_at", "rewards_at", "terminated_at", "truncated_at", "life_lost_at", "first_at")


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Minari's own folder, and the one of runs, are the test's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def some_steps() -> Replay:
    """Episodes that terminate, are truncated, are left without an end, and go on; with lost lives."""
    rng, replay = np.random.default_rng(0), Replay(200, (96, 96))
    for length, end in ((5, "terminated"), (1, "truncated"), (7, "left"), (4, "truncated"), (3, "open")):
        for step in range(length):
            last = step == length - 1
            replay.append(
                rng.integers(0, 256, (96, 96), dtype=np.uint8),
                int(rng.integers(6)),
                float(np.float32(rng.normal())),
                last and end == "terminated",
                last and end == "truncated",
                step == 2,
                step == 0,
            )
    return replay


def a_run(path: Path, replay: Replay, **settings: Any) -> Path:
    """A run's folder as it is after its first collecting, killed then."""
    folder = RunFolder(path)
    folder.begin(make_config("smoke", **settings), resume=False)
    replay.save(folder.replay)
    return path


def assert_same(left: Replay, right: Replay) -> None:
    every = np.arange(len(left))
    assert len(left) == len(right)
    assert np.array_equal(left.frames_at(every), right.frames_at(every))
    for name in COLUMNS:
        one, other = getattr(left, name)(every), getattr(right, name)(every)
        assert one.dtype == other.dtype and np.array_equal(one, other), name
    assert left.iter_episodes() == right.iter_episodes()


# Round trip


def test_what_is_exported_and_imported_is_the_same_record_by_record() -> None:
    replay = some_steps()
    done = export_dataset(a_run(Path("run"), replay), Path("set"))
    assert (done.episodes, done.steps, done.unfinished, done.left_out) == (5, 20, 2, 0)
    facts = import_dataset("set", Path("data"))
    assert (facts.game, facts.actions, facts.steps, facts.episodes) == ("Pong", 6, 20, 5)
    assert_same(replay, Experience("data").replay)


def test_a_real_run_goes_there_and_back(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export", str(smoke_run), "--out", "set", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 900
    assert main(["data", "import", "set", "--out", "data", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["game"], printed["steps"], printed["environment"]) == ("Pong", 900, "ALE/Pong-v5")
    assert_same(Replay.load(smoke_run / "replay"), Experience("data").replay)


# What Minari reads


def test_minari_finds_the_dataset_by_its_id() -> None:
    replay = some_steps()
    done = export_dataset(a_run(Path("run"), replay))
    assert done.dataset == "dreamgym/pong-smoke-seed0-v0"
    assert list(minari.list_local_datasets()) == [done.dataset]
    dataset = minari.load_dataset(done.dataset)
    assert (dataset.total_episodes, dataset.total_steps) == (5, 20)
    assert dataset.observation_space == spaces.Box(0, 255, (96, 96), np.uint8)
    assert dataset.action_space == SIX
    first, second, left, _, opened = dataset.iterate_episodes()
    assert np.array_equal(first.observations[:-1], replay.frames_at(np.arange(5))[:, 0])
    # There is no frame after the last step: the one before stands there once more.
    assert np.array_equal(first.observations[-1], first.observations[-2])
    assert first.rewards.dtype == np.float32 and np.array_equal(first.rewards, replay.rewards_at(np.arange(5)))
    assert first.terminations.tolist() == [False] * 4 + [True] and not first.truncations.any()
    assert second.truncations.tolist() == [True] and not second.infos["unfinished"].any()
    assert first.infos["life_lost"].tolist() == [False, False, False, True, False, False]
    for cut in (left, opened):
        assert cut.truncations[-1] and cut.infos["unfinished"][-1] and not cut.terminations.any()


def test_the_dataset_says_what_it_is_of() -> None:
    done = export_dataset(a_run(Path("run"), some_steps(), seed=3), Path("set"))
    metadata = minari.MinariDataset(done.folder / "data").storage.metadata
    about = metadata["dreamgym"]
    assert (about["game"], about["preset"], about["seed"], about["frame_skip"]) == ("Pong", "smoke", 3, 4)
    assert (about["version"], about["screen"]) == (
        dreamgym.__version__,
        {"size": 96, "shrink": "area", "max_pool": True},
    )
    assert metadata["jpeg_encoding"] is False and metadata["algorithm_name"] == "PPO"


def test_minari_makes_the_games_environment_from_it() -> None:
    env = minari.MinariDataset(
        export_dataset(a_run(Path("run"), some_steps()), Path("set")).folder / "data"
    ).recover_environment()
    assert env.spec is not None and env.spec.id == "ALE/Pong-v5" and env.spec.kwargs["frameskip"] == 4
    assert env.action_space == SIX
    env.close()


# Datasets of others


def a_dataset(
    name: str = "others/game-v0",
    *,
    observations: spaces.Space[Any] | None = None,
    actions: spaces.Space[Any] = SIX,
    episodes: list[EpisodeBuffer] | None = None,
    env: str | None = "ALE/Pong-v5",
    jpeg: bool = False,
) -> str:
    """A dataset that Minari itself wrote; returns its id."""
    space = observations or spaces.Box(0, 255, (40, 40, 3), np.uint8)
    given = [an_episode(space)] if episodes is None else episodes
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            name, given, env=env, observation_space=space, action_space=actions, jpeg_encoding=jpeg
        )
    return name


def an_episode(space: Any, steps: int = 4, **changes: Any) -> EpisodeBuffer:
    rng = np.random.default_rng(1)
    values: dict[str, Any] = {
        "observations": rng.integers(0, 256, (steps + 1, *space.shape)).astype(space.dtype),
        "actions": np.arange(steps, dtype=np.int64) % 6,
        "rewards": np.arange(steps, dtype=np.float64),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, np.bool_),
    }
    return EpisodeBuffer(**{**values, **changes})


@pytest.mark.parametrize("shape", [(48, 40), (1, 48, 40), (48, 40, 1), (48, 40, 3)])
def test_images_of_every_layout_become_grey_screens(shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    episode = an_episode(space)
    a_dataset(observations=space, episodes=[episode])
    facts = import_dataset("others/game-v0", Path("data"))
    assert (facts.game, facts.screen, facts.environment) == ("Pong", None, "ALE/Pong-v5")
    replay, screens = Experience("data").replay, np.asarray(episode.observations)[:4]
    assert replay.frame_shape == (48, 40) and replay.iter_episodes() == [(0, 4)]
    if shape[-1] != 3:
        assert np.array_equal(replay.frames_at(np.arange(4))[:, 0], screens.reshape(4, 48, 40))
    assert replay.rewards_at(np.arange(4)).tolist() == [0, 1, 2, 3] and replay.terminated_at(3)


def test_colours_turn_grey_as_the_real_games_do() -> None:
    """The screens of Pong itself, through a dataset, are what a run that plays Pong sees."""
    game = make_game_env("Pong", noop_max=0, max_pool=False)
    screens, seen = [], [game.reset(seed=0)[0][-1]]
    screens.append(game.unwrapped.ale.getScreenRGB())
    for action in (2, 3, 2, 0):
        seen.append(game.step(action)[0][-1])
        screens.append(game.unwrapped.ale.getScreenRGB())
    game.close()
    space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
    a_dataset(observations=space, episodes=[an_episode(space, observations=np.stack(screens))])
    import_dataset("others/game-v0", Path("data"))
    config = make_config("smoke")
    replay = Replay(10)
    Experience("data").append_to(replay, {**config.codec.screen, "max_pool": False})
    shown = replay.frames_at(np.arange(4))[:, 0].astype(int)
    assert np.abs(shown - np.stack(seen[:4])).max() <= 1  # the emulator rounds its grey values in its own way


def test_lives_in_infos_tell_lost_ones() -> None:
    space = spaces.Box(0, 255, (40, 40), np.uint8)
    infos = {"lives": np.array([3, 3, 2, 2, 1])}
    a_dataset(observations=space, episodes=[an_episode(space, infos=infos)])
    import_dataset("others/game-v0", Path("data"))
    assert Experience("data").replay.life_lost_at(np.arange(4)).tolist() == [False, True, False, True]


def test_jpegs_are_read_too() -> None:
    a_dataset(jpeg=True)
    assert import_dataset("others/game-v0", Path("data")).steps == 4


BOX = spaces.Box(0, 255, (40, 40), np.uint8)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"observations": spaces.Box(-1, 1, (4,), np.float32)}, "expected observations of one image"),
        ({"observations": spaces.Box(0, 1, (40, 40), np.float32)}, "expected observations of one image"),
        ({"observations": spaces.Box(0, 255, (4, 84, 84), np.uint8)}, "expected observations of one image"),
        ({"actions": spaces.Box(-1, 1, (2,), np.float32)}, "expected discrete actions counted from 0"),
        ({"actions": spaces.Discrete(6, start=1)}, "expected discrete actions counted from 0"),
        ({"episodes": []}, "expected at least one step, got none"),
        ({"env": None}, "expected a dataset that names a known game"),
        ({"actions": spaces.Discrete(3)}, "episode 0: expected actions in [0, 3), got 0 to 3"),
        (
            {"observations": BOX, "episodes": [an_episode(BOX, rewards=np.array([0, np.nan, 0, 0]))]},
            "episode 0: expected finite rewards",
        ),
        (
            {"observations": BOX, "episodes": [an_episode(BOX, terminations=np.array([False, True, False, True]))]},
            "expected an end at the last step only",
        ),
        (
            {"observations": BOX, "episodes": [an_episode(BOX, actions=np.zeros((4, 2), np.int64))]},
            "expected actions of 4 steps, got int64 (4, 2)",
        ),
        (
            {"observations": BOX, "episodes": [an_episode(BOX, observations=np.zeros((5, 8, 8), np.uint8))]},
            "expected observations uint8 ('4 or 5', 40, 40)",
        ),
    ],
)
def test_what_no_run_can_begin_from_is_refused(settings: dict[str, Any], said: str) -> None:
    a_dataset(**settings)
    with pytest.raises(InvalidInputError) as caught:
        import_dataset("others/game-v0", Path("data"))
    assert said in str(caught.value)
    assert not Path("data").exists() and not list(Path().glob(".data*"))


def test_what_is_no_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "nobody/nothing-v0", "--out", "data"]) == 2
    assert "expected the folder of a Minari dataset" in capsys.readouterr().err
    a_dataset()
    folder = Path("datasets/others/game-v0/data")
    (folder / "main_data.hdf5").write_bytes(b"damaged")
    with pytest.raises(InvalidInputError, match="expected episodes that Minari can read"):
        import_dataset("others/game-v0", Path("data"))
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="expected a Minari dataset with its spaces"):
        import_dataset("others/game-v0", Path("data"))


def test_a_dataset_makes_no_environment_and_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari makes the environment that a dataset names where its spaces are missing; that would import any module."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    a_dataset()
    file = Path("datasets/others/game-v0/data/metadata.json")
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"]) | {"id": "trap:Env-v0", "entry_point": "trap:Env"}
    file.write_text(json.dumps({**metadata, "env_spec": json.dumps(spec)}))
    with pytest.raises(InvalidInputError, match="names a known game, it says 'trap:Env-v0'"):
        import_dataset("others/game-v0", Path("data"))
    del metadata["observation_space"]
    file.write_text(json.dumps({**metadata, "env_spec": json.dumps(spec)}))
    with pytest.raises(InvalidInputError, match="expected a Minari dataset with its spaces"):
        import_dataset("others/game-v0", Path("data"), game="Pong")


def test_nothing_is_overwritten() -> None:
    run = a_run(Path("run"), some_steps())
    export_dataset(run, Path("set"))
    with pytest.raises(ConfigError, match="expected a folder that is not there yet"):
        export_dataset(run, Path("set"))
    Path("data").mkdir()
    with pytest.raises(ConfigError, match="expected a folder that is not there yet"):
        import_dataset("set", Path("data"))


def test_what_cannot_be_exported() -> None:
    run = a_run(Path("run"), some_steps())
    with pytest.raises(ConfigError, match=r"dataset: expected an id such as dreamgym/pong-v0, got '\.\./pong-v0'"):
        export_dataset(run, dataset="../pong-v0")
    shutil.rmtree(run / "replay")
    with pytest.raises(ReplayError):
        export_dataset(run, Path("set"))
    assert not Path("set").exists()


def test_without_minari_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        dreamgym.minari_data.importlib.util, "find_spec", lambda name: None if name == "minari" else found(name)
    )
    assert main(["data", "import", "some/set-v0", "--out", "data"]) == 2
    assert "pip install 'dreamgym[minari]'" in capsys.readouterr().err


# Runs that begin from it


class Stopped(Exception):
    """What ends a run after its first collecting."""


@pytest.fixture
def only_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, index: int) -> None:
        raise Stopped

    monkeypatch.setattr(dreamgym.loop._Run, "_fit", stop)
    # How fast the machine is takes longer to find out than all the rest.
    monkeypatch.setattr(dreamgym.loop, "matmul_rates", lambda device: {"float32": 1.0, "bfloat16": 1.0})


def imported(replay: Replay) -> str:
    export_dataset(a_run(Path("source"), replay), Path("set"))
    import_dataset("set", Path("data"))
    return "data"


def begun(config: RunConfig, folder: Path, *, resume: bool = False) -> Replay:
    with pytest.raises(Stopped):
        train(config, folder, device="cpu", progress=False, resume=resume)
    return Replay.load(folder / "replay")


def short(**settings: Any) -> RunConfig:
    config = make_config("smoke", **settings)
    return dataclasses.replace(config, collect=dataclasses.replace(config.collect, first_steps=60))


@pytest.mark.usefixtures("only_collects")
def test_a_runs_first_steps_are_the_imported_ones_then_random_play() -> None:
    source = some_steps()
    config = short(data=imported(source))
    replay = begun(config, Path("run"))
    assert len(replay) == config.collect.first_steps == 60
    every = np.arange(20)
    assert np.array_equal(replay.frames_at(every), source.frames_at(every))
    for name in COLUMNS:
        assert np.array_equal(getattr(replay, name)(every), getattr(source, name)(every)), name
    assert replay.first_at(20)  # the episode that was open is left without an end
    (entry,) = RunFolder("run").log()
    assert (entry["interactions"], entry["data"]["steps"], entry["data"]["dataset"]) == (
        60,
        20,
        "dreamgym/pong-smoke-seed0-v0",
    )
    facts = provenance(RunFolder("run"))
    assert facts["data"] == json.loads(json.dumps(dataclasses.asdict(read_facts(Path("data")))))
    assert "--data data" in facts["command"]


@pytest.mark.usefixtures("only_collects")
def test_such_a_run_can_be_stopped_anywhere_and_goes_on_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = short(data=imported(some_steps()))
    whole = begun(config, Path("whole"))
    finish = RunFolder.finish_phase

    def fail(*arguments: Any) -> None:
        raise Stopped

    monkeypatch.setattr(RunFolder, "finish_phase", fail)  # stopped when all is saved and nothing counted
    begun(config, Path("run"))
    assert RunFolder("run").progress().round == 0 and RunFolder("run").progress().phase == "collect"
    monkeypatch.setattr(RunFolder, "finish_phase", finish)
    assert_same(whole, begun(config, Path("run"), resume=True))
    assert RunFolder("run").log()[0]["data"]["steps"] == 20
    # Once that is counted the data is not needed any more.
    shutil.rmtree("data")
    assert_same(whole, begun(config, Path("run"), resume=True))


@pytest.mark.usefixtures("only_collects")
def test_nothing_is_played_where_all_first_steps_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    config = short(data=imported(some_steps()))
    config = dataclasses.replace(config, collect=dataclasses.replace(config.collect, first_steps=20))
    monkeypatch.setattr(dreamgym.loop._Run, "_play_game", lambda *_: pytest.fail("the game was played"))
    assert len(begun(config, Path("run"))) == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"game": "Breakout"}, "expected experience of Breakout, data is of Pong"),
        ({"codec": {"shrink": "nearest"}}, "expected frames that show the screen as the run does"),
        ({"collect": {"first_steps": 19}}, "Add --collect.first-steps 20 or more"),
    ],
)
def test_data_that_does_not_fit_the_run_is_refused_before_it_begins(settings: dict[str, Any], said: str) -> None:
    config = short(data=imported(some_steps()))
    for name, value in settings.items():
        new = dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = dataclasses.replace(config, **{name: new})
    with pytest.raises(ConfigError) as caught:
        train(config, "run", device="cpu", progress=False)
    assert said in str(caught.value)
    assert not RunFolder("run").config_file.exists()


def test_other_actions_than_the_games_are_refused() -> None:
    a_dataset(actions=spaces.Discrete(18))
    import_dataset("others/game-v0", Path("data"))
    config = short(data="data")
    with pytest.raises(ConfigError, match=r"expected experience with the actions of Pong, Discrete\(6\)"):
        Experience("data").check(config, game_actions(config))


def test_changed_or_missing_data_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(imported(some_steps()))
    facts = unsealed(json.loads((data / DATA_FILE).read_text()))
    (data / DATA_FILE).write_text(json.dumps(sealed({**facts, "steps": 21})))
    with pytest.raises(ReplayError, match="expected 21 records, got 20"):
        Experience(data)
    (data / DATA_FILE).write_text(json.dumps({**facts, "steps": 21, "sha256": "0"}))
    with pytest.raises(ReplayError, match="expected a folder that 'dreamgym data import' wrote"):
        Experience(data)
    (data / DATA_FILE).write_text(json.dumps(sealed(facts)))
    Experience(data)
    (data / "replay" / "replay.json").write_text("{}")
    with pytest.raises(ReplayError, match="expected the records that were imported"):
        Experience(data)
    assert main(["train", "--preset", "smoke", "--data", "nothing", "--out", "run", "--device", "cpu"]) == 2
    assert "expected a folder that 'dreamgym data import' wrote" in capsys.readouterr().err


def test_a_frame_of_a_smaller_screen_is_black_beside_it() -> None:
    frame = as_frame(np.full((50, 40), 7, np.uint8), (32, 24), "nearest")
    assert frame.shape == (32, 24) and (frame[:25, :20] == 7).all() and not frame[25:].any() and not frame[:, 20:].any()
