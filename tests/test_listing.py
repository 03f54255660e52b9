"""``dreamgym list``: what dreams are here, and which of them ids open."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny_dream

from dreamgym.checkpoint import DREAM_FILE, SHIPPED, load_dream, resolve_checkpoint, save_dream
from dreamgym.cli import main
from dreamgym.run_folder import RunFolder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """The dreams that are listed, by file."""
    assert main(["list", *arguments, "--json"]) == 0
    return {one["file"]: one for one in json.loads(capsys.readouterr().out)["dreams"]}


def put(file: Path, age: float = 0.0, **metadata: Any) -> Path:
    """A tiny dream at a place, written so many seconds ago."""
    dream = make_tiny_dream()
    dream.metadata.update(metadata)
    save_dream(file, dream)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_the_newest_finished_run_below_home_is_the_one_that_the_id_opens(home, capsys):
    new = put(home / "new" / DREAM_FILE)
    old = put(home / "deep" / "old" / DREAM_FILE, age=60)
    begun = put(home / "begun" / DREAM_FILE, age=-60, finished=False)
    single = put(home / "Pong.safetensors", age=-60)
    found = listed(capsys)
    assert {file: one["id"] for file, one in found.items() if one["source"] != "package"} == {
        str(new): "Dream-Pong-v0",
        str(old): None,
        str(begun): None,
        str(single): None,
    }
    assert resolve_checkpoint("Dream-Pong-v0") == new
    assert (found[str(begun)]["finished"], found[str(new)]["finished"]) == (False, True)
    assert (found[str(single)]["source"], found[str(new)]["source"]) == ("file", "run")


def test_what_comes_with_the_package_is_listed_and_opened_where_there_is_no_run(home, capsys):
    shipped = SHIPPED / "Pong.safetensors"
    (one,) = listed(capsys).values()
    about = load_dream(shipped).metadata
    assert (one["file"], one["source"], one["id"]) == (str(shipped), "package", "Dream-Pong-v0")
    assert (one["preset"], one["seed"], one["interactions"]) == ("laptop", about["seed"], about["interactions"])
    assert one["score"] == {name: about["scores"][-1][name] for name in one["score"]}
    assert one["bytes"] == shipped.stat().st_size
    assert one["finished"] and one["error"] is None


def test_a_run_is_listed_with_its_preset_seed_steps_and_last_score(smoke_run, home, capsys):
    run = shutil.copytree(smoke_run, home / "smoke")
    one = listed(capsys, str(home))[str(run / DREAM_FILE)]
    last = [entry for entry in RunFolder(run).log() if "real" in entry][-1]["real"]
    assert (one["game"], one["preset"], one["seed"], one["interactions"]) == ("Pong", "smoke", 0, 900)
    assert (one["score"]["mean"], one["score"]["low"], one["score"]["high"]) == (
        last["mean"],
        last["low"],
        last["high"],
    )
    assert (one["score"]["episodes"], one["score"]["interactions"], one["finished"]) == (2, 900, True)
    assert main(["list", str(home)]) == 0
    titles, row = capsys.readouterr().out.splitlines()
    assert titles.split()[:3] == ["id", "game", "preset"]
    assert all(text in row for text in ("Dream-Pong-v0", "smoke", " 900 ", f"{last['mean']:.2f} (", str(run)))


def test_damaged_files_are_named_with_what_is_wrong_and_the_others_are_listed(home, capsys):
    good = put(home / "good" / DREAM_FILE, age=60)
    cut = put(home / "cut" / DREAM_FILE)
    cut.write_bytes(cut.read_bytes()[:-100])
    other = home / "other.safetensors"
    other.write_text("no dream at all")
    flipped = put(home / "flipped" / DREAM_FILE)
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    found = listed(capsys, str(home))
    assert found[str(good)]["error"] is None
    for file in (cut, other, flipped):
        assert str(file) in found[str(file)]["error"]
        assert "Restore it or train it again" in found[str(file)]["error"]
    # Its header is whole, so the id opens it, and fails.
    assert found[str(flipped)]["id"] == "Dream-Pong-v0"
    assert main(["list", str(home)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("damaged") >= 3 and "not those that were saved" in printed


def test_runs_behind_links_are_found_by_list_and_by_id_and_links_in_circles_end(home, tmp_path, capsys):
    put(tmp_path / "disk" / "pong" / DREAM_FILE)
    (home / "linked").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "back").symlink_to(home, target_is_directory=True)
    (file,) = listed(capsys, str(home))
    assert Path(file).samefile(tmp_path / "disk" / "pong" / DREAM_FILE)
    assert resolve_checkpoint("Dream-Pong-v0") == Path(file)


def test_files_that_are_being_written_or_belong_to_the_system_are_left_out(home, capsys):
    put(home / "pong" / DREAM_FILE)
    for name in (".dream-123.safetensors", "._dream.safetensors"):
        (home / "pong" / name).write_bytes(b"half")
    assert list(listed(capsys, str(home))) == [str(home / "pong" / DREAM_FILE)]


def test_no_dreams_is_said_and_no_folder_is_the_users_error(home, capsys):
    assert main(["list", str(home)]) == 0
    assert "dreamgym train" in capsys.readouterr().out
    assert listed(capsys, str(home)) == {}
    assert main(["list", str(home / "none")]) == 2
    assert "DIR: expected a folder" in capsys.readouterr().err
