"""Dreams on a model hub: what is pushed and pulled, with huggingface_hub's own client and a hub on this machine."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from conftest import make_tiny_dream
from hub_stand_in import TOKEN, Hub, serve_hub
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

import dreamgym.commands
import dreamgym.export
import dreamgym.hub
from dreamgym.checkpoint import load_dream, save_dream
from dreamgym.cli import main
from dreamgym.errors import CheckpointError, ConfigError, HubError, InvalidInputError
from dreamgym.hub import pull_dream, push_page, write_page
from dreamgym.json_files import sealed, unsealed
from dreamgym.video import write_image

REPO = "somebody/pong-dream"
NOWHERE = "http://127.0.0.1:9"  # the port of a service that discards what it is sent, and that nobody runs
SCORE = {"mean": -5.25, "low": -7.5, "high": -2.75, "episodes": [-5.5, -5.0]}


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client knows no hub but the one that a test tells it, and keeps what it fetches in the test's folder."""
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The other way to send large files needs a service beside the hub.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def dream_file(tmp_path: Path) -> Path:
    dream = make_tiny_dream()
    dream.metadata |= {"preset": "smoke", "seed": 7, "interactions": 900, "score": SCORE}
    dream.policy = {"some.weight": torch.arange(6.0)}
    return save_dream(tmp_path / "Pong.safetensors", dream)


@pytest.fixture
def pushed(hub: Hub, dream_file: Path, tmp_path: Path) -> str:
    """The commit of a dream that was pushed."""
    picture = write_image(tmp_path / "a.png", torch.zeros(4, 4, 3, dtype=torch.uint8).numpy())
    commit = push_page(write_page(tmp_path / "page", dream_file, REPO, picture=picture), REPO).commit
    hub.requests.clear()
    return commit


def held(hub: Hub) -> dict[str, bytes]:
    return hub.commits[REPO][hub.branches[REPO]["main"]]


# Round trip


def test_what_is_pulled_is_what_was_pushed_bit_for_bit(pushed: str, dream_file: Path) -> None:
    pulled = pull_dream(REPO, pushed)
    assert pulled.file.read_bytes() == dream_file.read_bytes()
    before, after = load_dream(dream_file), load_dream(pulled.file)
    for name, tensor in before.world_model.state_dict().items():
        assert torch.equal(tensor, after.world_model.state_dict()[name]), name
    assert all(map(torch.equal, before.starts, after.starts))
    assert before.metadata == after.metadata and torch.equal(before.policy["some.weight"], after.policy["some.weight"])


def test_a_run_goes_to_the_hub_and_comes_back_as_it_is_exported(
    hub: Hub, smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dreamgym.export, "_FRAMES", 64)  # how close the file is to the run is tested elsewhere
    assert main(["push", str(smoke_run), REPO, "--device", "cpu"]) == 0
    commit = hub.branches[REPO]["main"]
    assert f"dreamgym pull {REPO} --revision {commit}" in capsys.readouterr().out
    assert set(held(hub)) == {"README.md", "dream.json", "Pong.safetensors", "imagined_beside_real.png"}
    assert held(hub)["imagined_beside_real.png"].startswith(b"\x89PNG")
    assert main(["pull", REPO, "--out", "again.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert f"main is {commit}" in printed and "again.safetensors" in printed
    assert Path("again.safetensors").read_bytes() == held(hub)["Pong.safetensors"]
    run, pulled = load_dream(smoke_run), load_dream("again.safetensors")
    assert len(pulled.policy) > 0 and pulled.metadata["score"] == run.metadata["score"]
    for name, tensor in run.world_model.state_dict().items():
        assert torch.equal(pulled.world_model.state_dict()[name], tensor) or torch.equal(
            pulled.world_model.state_dict()[name], tensor.half().float()
        ), name


def test_a_pulled_file_is_a_checkpoint(pushed: str) -> None:
    env = gym.make("Dream-Pong-v0", checkpoint=str(pull_dream(REPO).file))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_small_files_may_come_as_regular_ones(hub: Hub, dream_file: Path, tmp_path: Path) -> None:
    hub.lfs = (".none",)
    commit = push_page(write_page(tmp_path / "page", dream_file, REPO), REPO).commit
    assert not hub.objects and pull_dream(REPO, commit).file.read_bytes() == dream_file.read_bytes()


def test_large_files_go_and_come_where_the_hub_says_without_the_token(hub: Hub, pushed: str, dream_file: Path) -> None:
    assert hashlib.sha256(dream_file.read_bytes()).hexdigest() in hub.objects
    pull_dream(REPO)
    assert hub.tokens_in_store == [None]


def test_a_branch_of_its_own(hub: Hub, dream_file: Path, tmp_path: Path) -> None:
    done = push_page(write_page(tmp_path / "page", dream_file, REPO), REPO, branch="better")
    assert hub.branches[REPO]["better"] == done.commit != hub.branches[REPO]["main"]
    assert pull_dream(REPO, "better").commit == done.commit


# The page


def test_the_card_says_what_it_is_and_how_to_load_it(pushed: str, hub: Hub) -> None:
    card = ModelCard(held(hub)["README.md"].decode())
    about, body = card.data, card.text
    assert (about.license, about.library_name) == ("mit", "dreamgym")
    assert {"dreamgym", "world-model", "Pong"} <= set(about.tags)
    (result,) = about.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("mean_reward", SCORE["mean"], "Pong")
    expected = (
        "**Score in the real game: -5.25** (95 % -7.50 to -2.75, mean of 2 episodes, seed 7",
        "(imagined_beside_real.png)",
        f"dreamgym pull {REPO} --revision",
        'gym.make("Dream-Pong-v0", checkpoint="Pong.safetensors")',
        "| preset | smoke |",
        "| real steps | 900 |",
        "Licence: mit.",
    )
    assert [words for words in expected if words not in body] == []


def test_the_facts_are_sealed_and_name_the_file_and_its_hash(pushed: str, hub: Hub, dream_file: Path) -> None:
    facts = unsealed(json.loads(held(hub)["dream.json"]))
    assert (facts["file"], facts["game"], facts["preset"], facts["seed"]) == ("Pong.safetensors", "Pong", "smoke", 7)
    assert facts["file_sha256"] == hashlib.sha256(dream_file.read_bytes()).hexdigest()
    assert facts["score"] == SCORE and facts["bytes"] == dream_file.stat().st_size


def test_a_card_without_a_score_says_so(tmp_path: Path) -> None:
    file = save_dream(tmp_path / "Pong.safetensors", make_tiny_dream())
    write_page(tmp_path / "page", file, REPO)
    text = (tmp_path / "page" / "README.md").read_text()
    assert "No score in the real game was recorded." in text and "model-index" not in text
    assert "imagined_beside_real.png" not in text


def test_a_strangers_words_stay_words(tmp_path: Path) -> None:
    dream = make_tiny_dream()
    dream.metadata |= {"preset": "<script>`|\n# Heading", "command": "```\n[link](http://a.b)"}
    write_page(tmp_path / "page", save_dream(tmp_path / "Pong.safetensors", dream), REPO)
    text = (tmp_path / "page" / "README.md").read_text()
    assert "<script>" not in text and "\n# Heading" not in text and "[link]" not in text


def test_a_page_may_be_looked_at_before_it_is_sent(hub: Hub, dream_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dream = load_dream(dream_file)
    dream.policy = {}
    save_dream(dream_file, dream)
    monkeypatch.setattr(dreamgym.commands, "NEW_PLAY", 60)  # a file comes without real play: it is played anew
    assert main(["push", str(dream_file), REPO, "--out", "page", "--device", "cpu"]) == 0
    assert {file.name for file in Path("page").iterdir()} == {
        "README.md",
        "dream.json",
        "Pong.safetensors",
        "imagined_beside_real.png",
    }
    assert Path("page/Pong.safetensors").read_bytes() == dream_file.read_bytes()
    assert hub.requests == []


# Pinned, and only what is needed


def test_only_the_facts_and_the_dream_are_fetched(hub: Hub, pushed: str) -> None:
    hub.commit(REPO, {"policy.pkl": b"cposix\nsystem\n", "config.json": b"{}", "other.safetensors": b"none"})
    pulled = pull_dream(REPO)
    assert hub.fetched() == {"dream.json", "Pong.safetensors"}
    assert {file.name for file in pulled.file.parent.iterdir()} == {"dream.json", "Pong.safetensors"}


def test_a_commit_stays_what_it_is_when_its_branch_goes_on(hub: Hub, pushed: str, dream_file: Path) -> None:
    dream = load_dream(dream_file)
    dream.metadata["seed"] = 8
    second = write_page(Path("second"), save_dream(Path("Pong.safetensors"), dream), REPO)
    push_page(second, REPO)
    assert pull_dream(REPO, pushed).facts["seed"] == 7
    newest = pull_dream(REPO)
    assert newest.facts["seed"] == 8 and newest.commit == hub.branches[REPO]["main"] != pushed
    assert newest.revision == "main"


def test_json_names_the_commit_and_the_file(pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", REPO, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["revision"], printed["commit"]) == ("main", pushed)
    assert Path(printed["file"]).is_file() and printed["facts"]["game"] == "Pong"


# Without network


@pytest.mark.parametrize("revision", ["main", None])
def test_what_was_pulled_once_needs_no_network(
    pushed: str, revision: str | None, dream_file: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    pull_dream(REPO)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pulled = pull_dream(REPO, revision or pushed)
    assert pulled.commit == pushed and pulled.file.read_bytes() == dream_file.read_bytes()
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_leaves_the_cache(pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pull_dream(REPO)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert pull_dream(REPO).commit == pushed


@pytest.mark.parametrize("revision", ["main", "0" * 40])
@pytest.mark.parametrize("offline", [True, False])
def test_neither_network_nor_cache_is_said(
    revision: str, offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert main(["pull", REPO, "--revision", revision]) == 1
    message = capsys.readouterr().err
    assert REPO in message and ("cannot be reached" in message or "expected to reach the hub" in message)


# What goes wrong


def refused(kind: type[Exception], said: str, **settings: Any) -> None:
    with pytest.raises(kind) as caught:
        pull_dream(REPO, **settings)
    assert said in str(caught.value)


def test_a_repository_that_is_not_there(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    refused(InvalidInputError, "expected a repository on the hub that you may use, found none")
    assert main(["pull", REPO]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_a_revision_that_is_not_there(pushed: str) -> None:
    refused(InvalidInputError, "expected one of its commits, branches or tags, got 'nightly'", revision="nightly")
    refused(InvalidInputError, "expected one of its commits", revision="0" * 40)


@pytest.mark.parametrize("name", ["a/b/c", "..", "a b", "-x"])
def test_a_name_that_no_repository_has(hub: Hub, name: str) -> None:
    with pytest.raises(InvalidInputError, match="expected a name such as owner/name"):
        pull_dream(name)


def test_a_repository_of_something_else(hub: Hub) -> None:
    hub.commit(REPO, {"model.safetensors": b"none"})
    refused(InvalidInputError, "expected a repository that 'dreamgym push' wrote, got no file dream.json")


@pytest.mark.parametrize("name", ["Pong.safetensors", "dream.json"])
def test_other_bytes_than_announced_are_refused_and_forgotten(hub: Hub, pushed: str, name: str) -> None:
    hub.altered = {name}
    refused(HubError, f"expected {name} with the hash")
    hub.altered = set()
    assert pull_dream(REPO).commit == pushed  # what was wrong is not in the cache any more


def test_a_damaged_cache_is_noticed_and_mended(pushed: str, dream_file: Path) -> None:
    cached = pull_dream(REPO).file.resolve()
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    refused(CheckpointError, "It was removed from the cache")
    assert pull_dream(REPO).file.read_bytes() == dream_file.read_bytes()


def change_facts(hub: Hub, **changes: Any) -> None:
    facts = unsealed(json.loads(held(hub)["dream.json"]))
    hub.commit(REPO, {"dream.json": json.dumps(sealed({**facts, **changes})).encode()})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "../../outside.safetensors"}, "got a file called"),
        ({"file": "dream.safetensors"}, "got a file called"),
        ({"file": "policy.zip"}, "got a file called"),
        ({"file": 3}, "dream.json without file"),
        ({"bytes": 20_000_000}, "expected a dream of at most 10 MB, got 20.0 MB"),
        ({"bytes": 10}, "expected Pong.safetensors of at most 10 bytes"),
        ({"bytes": -1}, "expected a dream of at most"),
        ({"format": 2}, "use a newer dreamgym"),
    ],
)
def test_facts_that_ask_for_something_else_are_refused(
    hub: Hub, pushed: str, changes: dict[str, Any], said: str
) -> None:
    change_facts(hub, **changes)
    refused(InvalidInputError, said)
    assert hub.fetched() <= {"dream.json"}


def test_a_file_that_the_facts_do_not_mean(hub: Hub, pushed: str) -> None:
    change_facts(hub, file_sha256="0" * 64)
    refused(CheckpointError, "expected Pong.safetensors with the sha256 " + "0" * 64)


def test_a_file_that_is_no_dream_is_not_handed_out(hub: Hub, pushed: str, tmp_path: Path) -> None:
    junk = b"\x80\x04cposix\nsystem\n"
    hub.commit(REPO, {"Pong.safetensors": junk})
    change_facts(hub, bytes=len(junk), file_sha256=hashlib.sha256(junk).hexdigest())
    refused(CheckpointError, "is no safetensors file", out=tmp_path / "here.safetensors")
    assert not (tmp_path / "here.safetensors").exists()


def test_facts_that_are_none(hub: Hub, pushed: str) -> None:
    hub.commit(REPO, {"dream.json": b"[1, 2"})
    refused(InvalidInputError, "got dream.json: ")
    hub.commit(REPO, {"dream.json": b'{"a": "' + b" " * 2**20 + b'"}'})
    refused(InvalidInputError, "expected dream.json of at most 1,048,576 bytes")


def test_a_hub_that_is_out_of_order(hub: Hub, pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.status = 500
    assert main(["pull", REPO]) == 1
    assert "somebody/pong-dream" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["hf_other", None])
def test_pushing_needs_a_token_that_may(
    hub: Hub, dream_file: Path, token: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    files = write_page(tmp_path / "page", dream_file, REPO)
    with pytest.raises(InvalidInputError, match="hf auth login"):
        push_page(files, REPO)
    assert hub.branches == {}


def test_what_cannot_be_pushed(hub: Hub, dream_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="licence: expected the hub's name of one"):
        write_page(tmp_path / "page", dream_file, REPO, licence="My own!")
    with pytest.raises(ConfigError, match=r"out: expected a file name that ends in \.safetensors"):
        pull_dream(REPO, out=Path("dream.zip"))
    with pytest.raises(ConfigError, match=r"and is not dream\.safetensors"):
        pull_dream(REPO, out=Path("dream.safetensors"))
    assert hub.requests == []


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, dream_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        dreamgym.hub.importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else found(name)
    )
    assert main(["pull", REPO]) == 2
    assert "pip install 'dreamgym[hub]'" in capsys.readouterr().err
    assert main(["push", str(dream_file), REPO]) == 2
    assert "pip install 'dreamgym[hub]'" in capsys.readouterr().err
