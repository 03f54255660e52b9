"""The documentation: it builds, its examples run, its links lead somewhere, and the citation says what it must."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_loop import leave_out_pictures

import dreamgym
from dreamgym import world_model
from dreamgym.checkpoint import load_dream
from dreamgym.cli import COMMANDS
from dreamgym.errors import CheckpointError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    *(ROOT / "tests").rglob("*.md"),
]


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


def run(code: str, name: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": name}
    exec(compile(code, name, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write into the current folder, and find no run but those of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))


# The codec has a test of its own, below, and games that are not Atari's have theirs in test_plugs.py.
ELSEWHERE = {"write_your_own_codec.md", "any_env.md"}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if code_of(page) and page.name not in ELSEWHERE],
    ids=lambda page: page.stem,
)
def test_the_examples_of_a_page_run(page: Path, smoke_run: Path):
    code = code_of(page)
    if page.stem == "train_in_a_dream":
        # Its networks are small.
        assert '"Dream-Pong-v0"' in code
        code = code.replace('"Dream-Pong-v0"', repr(str(smoke_run)))
    run(code, page.stem)


def test_a_codec_of_ones_own_goes_through_the_whole_loop_and_into_a_file(monkeypatch):
    leave_out_pictures(monkeypatch)
    monkeypatch.setattr(world_model, "CODECS", dict(world_model.CODECS))
    monkeypatch.setattr("dreamgym.checkpoint.CODECS", world_model.CODECS)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    names = run(code_of(DOCS / "write_your_own_codec.md"), "own")
    dream = load_dream("runs/fsq")
    assert type(dream.world_model.codec) is names["FSQ"]
    assert dream.world_model.config.codec == names["FSQConfig"]()
    latents = dream.starts.latents[:8, -1].long()
    assert len(latents.unique()) > 1
    assert (dream.world_model.codec.embed(latents).diff(dim=0) != 0).any()
    # In a program that has not named it:
    del world_model.CODECS[names["FSQConfig"]]
    with pytest.raises(CheckpointError, match=r"expected kind VQVAEConfig, got 'FSQConfig'.*must be named"):
        load_dream("runs/fsq")
    with pytest.raises(dreamgym.ConfigError, match=r"CODECS\[FSQConfig\]"):
        world_model.WorldModelConfig(codec=names["FSQConfig"]())


def test_the_pages_build_without_warnings_and_hold_the_docstrings(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seams = (tmp_path / "site" / "api" / "seams.html").read_text(encoding="utf-8")
    assert 'id="dreamgym.models.codecs.Codec.encode"' in seams
    assert "Latent entries lie in [0, num_codes)" in seams
    pages = [*(tmp_path / "site").rglob("*.html")]
    assert [page.name for page in pages if re.search(r":(class|func|meth|data):", page.read_text("utf-8"))] == []
    # Nothing is loaded from elsewhere.
    assert [
        page.name for page in pages if re.search(r'<(script|img|link)[^>]+="https?:', page.read_text("utf-8"))
    ] == []


def links(text: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8"))
    return [link for link in found if not re.match(r"https?:|mailto:|#", link)]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_relative_links_lead_to_files(text: Path):
    assert [link for link in links(text) if not (text.parent / link.partition("#")[0]).exists()] == []


def test_files_that_texts_name_are_there():
    """Paths in code quotes, such as `tests/benchmarks/ABLATIONS.md`."""
    for text in [*PAGES, ROOT / "README.md", ROOT / "SECURITY.md"]:
        named = re.findall(r"`((?:docs|tests|agents|notebooks|dreamgym)/[\w/.-]+)`", text.read_text(encoding="utf-8"))
        assert [name for name in named if not (ROOT / name).exists()] == [], text


def test_the_page_on_the_command_line_names_every_command_that_prints_json():
    page = (DOCS / "command_line.md").read_text(encoding="utf-8")
    known = {name for name, command in COMMANDS.items() if "json" in command.make(()).__annotations__}
    (said,) = re.findall(r"^(.*) take `--json`", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", said)) == known
    assert known == {"list", "info", "plan", "evaluate", "compare", "pull"}


def test_the_citation_names_the_project_and_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", dreamgym.__version__, "MIT")
    papers = {paper["title"]: paper for paper in cited["references"]}
    assert set(papers) == {"Smaller World Models for Reinforcement Learning", "Neural Discrete Representation Learning"}
    for paper in papers.values():
        assert {"type", "authors", "year", "identifiers"} <= set(paper)
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", paper["identifiers"][0]["value"])
    robine = papers["Smaller World Models for Reinforcement Learning"]["authors"]
    assert [author["family-names"] for author in robine] == ["Robine", "Uelwer", "Harmeling"]


@pytest.mark.parametrize("name", ["train_in_a_dream", "what_the_dream_gets_wrong"])
def test_a_notebook_comes_with_outputs_that_tell_nothing_of_where_they_were_made(name: str):
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < 1e6
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Warnings and errors come as stderr.
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    texts = "".join(line for output in outputs for line in output.get("text", []))
    assert re.findall(r"(?<![\w.])/\w+/\S*|[A-Z]:\\\\\S*", texts) == []


def test_the_notebook_on_codecs_holds_the_guides_codec_and_its_outputs():
    cells = json.loads((ROOT / "notebooks" / "write_your_own_codec.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    guide = re.findall(
        r"```python\n(.*?)```", (DOCS / "write_your_own_codec.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert [part.strip() for part in guide[:2]] == code[:2]
    assert any(cell.get("outputs") for cell in cells)
