"""The table of recipes: its rows, what keeps them, what it refuses, and that it trains as the recipes do."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_agents import AGENTS, load

import dreamgym
from dreamgym.checkpoint import load_dream
from dreamgym.evaluate import Score
from dreamgym.sb3 import FeaturesARSPolicy

TABLE = load("table")
SMALL = {
    "ppo": {"n_envs": 8, "n_timesteps": 200, "policy": "MlpPolicy", "network": "light", "n_steps": 5, "batch_size": 40},
    "a2c": {"n_envs": 8, "n_timesteps": 200, "policy": "MlpPolicy", "network": "light"},
    "ars": {"n_envs": 8, "n_timesteps": 200, "policy": "dreamgym.sb3.FeaturesARSPolicy", "n_delta": 1, "n_top": 1},
}
TEXT = f"Before.\n\n{TABLE.BEGIN}\nold\n{TABLE.END}\n\nAfter.\n"
RECIPES = [*TABLE.ALGORITHMS]


class Stop(Exception):
    """What was looked for was seen."""


def write_hyperparams(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump({recipe: {"Dream-Pong-v0": one} for recipe, one in settings.items()}))
    return file


def command(folder: Path, run: Path, **changed: object) -> list[str]:
    """Arguments for a table of seconds."""
    options = {
        "dream": run,
        "only": "ppo,a2c",
        "minutes": 0.02,
        "episodes": 2,
        "device": "cpu",
        "out": folder / "table.json",
        "hyperparams": write_hyperparams(folder / "small.yml", SMALL),
        **changed,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def made(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a table with two rows, that of PPO and that of A2C, whose games were cut short."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "README.md").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamgym.make_real_env", partial(dreamgym.make_real_env, max_episode_steps=100))
        patch.setattr(TABLE, "random_score", partial(TABLE.random_score, max_episode_steps=100))
        assert TABLE.run(command(folder, smoke_run, readme=folder / "README.md")) == 0
    return folder


@pytest.fixture
def begun(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    for file in made.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    return tmp_path


def test_a_row_holds_the_score_and_all_facts_that_it_says_nothing_without(made: Path) -> None:
    table = json.loads((made / "table.json").read_text())
    assert (table["minutes"], table["episodes"], table["seed"]) == (0.02, 2, 0)
    assert table["dream"]["preset"] == "smoke" and len(table["dream"]["sha256"]) == 64
    assert len(table["random"]["episodes"]) == 2
    assert list(table["rows"]) == ["ppo", "a2c"]
    for recipe, row in table["rows"].items():
        assert len(row["score"]["episodes"]) == 2
        assert row["score"]["low"] <= row["score"]["mean"] <= row["score"]["high"]
        assert row["imagined_steps"] > 0 and 0.02 <= row["minutes"] < 1
        assert row["hyperparameters"] == SMALL[recipe]
        assert {"machine", "matmul_gflops", "date", "version", "commit", "device", "above_random"} <= set(row)


def test_the_table_stands_in_markdown_and_between_the_marks_of_the_readme(made: Path) -> None:
    text = (made / "table.md").read_text()
    head, _, *rows = text.splitlines()[:4]
    assert head.startswith("| algorithm | real score, 2 episodes | 95 % interval | random |")
    assert {row.split(" | ")[0] for row in rows} == {"| PPO", "| A2C"}
    scores = [float(row.split("**")[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "0.02 min in " in text and "smoke, 900 real steps" in text
    assert (made / "README.md").read_text() == TEXT.replace("old", text.strip())


def test_finished_rows_are_kept_and_missing_ones_are_added(
    begun: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((begun / "table.json").read_text())
    row = {**before["rows"]["ppo"], "algorithm": "ARS", "machine": "another machine"}
    trained: list[str] = []

    def measure(recipe: str, *_: Any) -> dict[str, Any]:
        trained.append(recipe)
        return row

    monkeypatch.setattr(TABLE, "measure", measure)
    monkeypatch.setattr(TABLE, "random_score", None)
    assert TABLE.run(command(begun, smoke_run, only="ppo,ars", readme=begun / "README.md")) == 0
    after = json.loads((begun / "table.json").read_text())
    assert trained == ["ars"]
    assert "ppo: kept" in capsys.readouterr().out
    assert after == {**before, "rows": {**before["rows"], "ars": row}}
    readme = (begun / "README.md").read_text()
    assert "ARS on another machine" in readme and "PPO, A2C on " in readme
    assert readme.startswith("Before.") and readme.endswith("After.\n") and readme.count("| algorithm |") == 1


def test_a_row_that_another_call_finished_in_the_meantime_is_kept(
    begun: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = begun / "table.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, "rows": {"ppo": table["rows"]["ppo"]}}))

    def measure(*_: Any) -> dict[str, Any]:
        file.write_text(json.dumps(table))
        return table["rows"]["ppo"]

    monkeypatch.setattr(TABLE, "measure", measure)
    assert TABLE.run(command(begun, smoke_run, only="ars")) == 0
    assert set(json.loads(file.read_text())["rows"]) == {"ppo", "a2c", "ars"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"only": "ppo,sac"}, "only: expected some of ppo,a2c,dqn,qrdqn,trpo,recurrent_ppo,ars, got sac."),
        ({"minutes": 0}, "minutes: expected more than 0, got 0"),
        ({"minutes": "nan"}, "minutes: expected more than 0, got nan"),
        ({"episodes": 0}, "episodes: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"out": "table.txt"}, "out: expected a file ending in .json"),
        ({"dream": "runs/none"}, "runs/none"),
        ({"readme": "none.md"}, "readme: expected a file with the marks"),
        ({"hyperparams": "none.yml"}, "hyperparams: expected YAML at none.yml"),
        ({"device": "tpu"}, "tpu"),
        ({"only": "dqn"}, "hyperparams: expected dqn: Dream-Pong-v0:"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    changed: dict[str, object],
    message: str,
    tmp_path: Path,
    smoke_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TABLE, "random_score", None)
    assert TABLE.run(command(tmp_path, smoke_run, **changed)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: [", "expected YAML"),
        ("- ppo", "expected ppo: Dream-Pong-v0:"),
        ("ppo: {Dream-Pong-v0: {n_envs: 8}}", "KeyError 'n_timesteps'"),
        ("ppo: {Dream-Pong-v0: {n_envs: 8, n_timesteps: many}}", "expected ppo: Dream-Pong-v0:"),
        ("ppo: {Dream-Pong-v0: {n_envs: 8, n_timesteps: 9, learning_rate: lin_2.5e-4}}", "expected constants"),
        ("ppo: {Dream-Pong-v0: {n_envs: 8, n_timesteps: 9, policy: dreamgym.sb3.None}}", "policy: expected a class"),
    ],
)
def test_hyperparameters_that_cannot_be_used_are_refused(
    text: str, message: str, tmp_path: Path, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yml").write_text(text)
    assert TABLE.run(command(tmp_path, smoke_run, only="ppo", hyperparams=tmp_path / "bad.yml")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no marks", TABLE.END + TABLE.BEGIN, TABLE.BEGIN, TEXT + TEXT])
def test_a_readme_without_its_two_marks_is_refused_and_left_as_it_is(
    text: str, begun: Path, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun / "README.md").write_text(text)
    assert TABLE.run(command(begun, smoke_run, readme=begun / "README.md")) == 2
    assert "each once" in capsys.readouterr().err
    assert (begun / "README.md").read_text() == text


@pytest.mark.parametrize(("changed", "name"), [({"minutes": 3}, "minutes"), ({"episodes": 3}, "episodes")])
def test_rows_that_could_not_be_compared_do_not_come_into_one_table(
    changed: dict[str, object], name: str, begun: Path, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (begun / "table.json").read_text()
    assert TABLE.run(command(begun, smoke_run, **changed)) == 2
    assert f"all need one {name}: expected" in capsys.readouterr().err
    assert (begun / "table.json").read_text() == before


@pytest.mark.parametrize("text", ["", "[]", '{"rows": {}}'])
def test_a_damaged_table_is_refused_and_left_as_it_is(
    text: str, begun: Path, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun / "table.json").write_text(text)
    assert TABLE.run(command(begun, smoke_run)) == 2
    assert "is damaged" in capsys.readouterr().err
    assert (begun / "table.json").read_text() == text


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    begun: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TABLE, "measure", measure)
    assert TABLE.run(command(begun, smoke_run, only="ars")) == 130
    assert "The same command goes on" in capsys.readouterr().err


def test_standard_errors_are_of_the_difference_of_two_means() -> None:
    score, other = Score.of([1, 3], [9, 9]), Score.of([-4, -2, 0], [9, 9, 9])
    # Squared standard errors: 2 / 2 and 4 / 3.
    assert TABLE.standard_errors_above(score, other) == pytest.approx(4 / (1 + 4 / 3) ** 0.5)
    assert TABLE.standard_errors_above(Score.of([1], [9]), other) is None
    assert TABLE.standard_errors_above(Score.of([1, 1], [9, 9]), Score.of([0, 0], [9, 9])) is None


class Untrained:
    """Stands for an algorithm that is to be trained."""

    device = "cpu"
    num_timesteps = 0

    def learn(self, *_: Any, **__: Any) -> None:
        raise Stop


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_with_the_hyperparameters_of_the_file(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a recipe and the table pass on, as long as nobody sets an option, is the same."""
    agent, seen = load(recipe), []

    def make_env(dream: Any, n_envs: int, **settings: Any) -> None:
        seen.append({"dream": dream, "n_envs": n_envs, "stagger": True, **settings})

    def make_algorithm(name: str, env: None, seed: int, device: str, **settings: Any) -> Untrained:
        seen.append({"name": name, "seed": seed, "device": device, **settings})
        return Untrained()

    monkeypatch.setattr("dreamgym.make_sb3_env", make_env)
    for module in (agent, TABLE):
        monkeypatch.setattr(module, "make_algorithm", make_algorithm)
    settings = TABLE.read_hyperparams(AGENTS / "hyperparams.yml", recipe, "Dream-Pong-v0")
    policy = settings.pop("policy")
    with pytest.raises(Stop):
        agent.main(agent.Args())
    with pytest.raises(Stop):
        TABLE.train(recipe, settings, "Dream-Pong-v0", TABLE.Args(minutes=float("inf")))
    assert seen[:2] == seen[2:]
    assert f"up to {settings['n_timesteps']:,} imagined steps" in capsys.readouterr().out
    assert policy == {"recurrent_ppo": "MlpLstmPolicy", "ars": FeaturesARSPolicy}.get(recipe, "MlpPolicy")


def test_the_steps_of_ars_are_those_that_its_dreams_took(smoke_run: Path) -> None:
    settings = {"n_envs": 4, "n_timesteps": 1, "network": "light", "n_delta": 1, "n_top": 1, "n_eval_episodes": 4}
    _, played, _ = TABLE.train("ars", settings, load_dream(smoke_run), TABLE.Args(minutes=float("inf"), device="cpu"))
    # Two candidates, each in four dreams of ten steps; one that the game ends is shorter.
    assert 40 < played <= 80


def test_the_file_has_the_hyperparameters_of_every_recipe_and_no_others() -> None:
    known = yaml.safe_load((AGENTS / "hyperparams.yml").read_text(encoding="utf-8"))
    assert list(known) == RECIPES
    assert {path.stem for path in AGENTS.glob("*.py")} == {*RECIPES, "cleanrl_ppo", "table"}
