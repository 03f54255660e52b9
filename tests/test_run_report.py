"""The report of a run and the comparison of several, as a browser shows them."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, open_browser

from dreamgym import run_report
from dreamgym.cases import moving_error, representative_cases
from dreamgym.charts import Axis, Series, bar_chart, line_chart
from dreamgym.checkpoint import load_dream
from dreamgym.cli import main
from dreamgym.codebook import codebook_use
from dreamgym.pages import table
from dreamgym.published import PUBLISHED
from dreamgym.run_comparison import write_page, write_table
from dreamgym.run_facts import facts_of, run_facts
from dreamgym.run_folder import RunFolder
from dreamgym.run_report import write_report
from dreamgym.video import Comparison

HOSTILE = """<script>window.hacked = 1</script><img src="http://example.org/x" onerror="window.hacked = 2">"'&amp;"""
CHARTS = {"scores", "dream", "accuracy", "recall", "precision", "calibration", "endcalibration", "codebook"}
BARS = {"time", "flop", "memory"}
PHONE, SCREEN = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def report(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that knows everything of itself, and whose names are markup."""
    dream, folder = load_dream(smoke_run), RunFolder(smoke_run)
    facts = facts_of(smoke_run / "dream.safetensors", dream)
    bins = {"confidence": [0.3, 0.9], "real": [0.2, 1.0], "share": [0.4, 0.6]}
    measured = {f"{kind}_{name}": value for kind in ("calibration", "end_calibration") for name, value in bins.items()}
    measured |= {"calibration_error": 0.1, "end_calibration_error": 0.1}
    measured |= {f"{name}_{span}": 0.5 for name in ("precision_lost", "recall_lost") for span in ("0_5", "5_10")}
    known = replace(
        facts,
        name=HOSTILE,
        about={**facts.about, "machine": HOSTILE, "preset": HOSTILE, "config": {"game": HOSTILE, HOSTILE: {"a": 1}}},
        fidelity=[(HOSTILE, {**facts.fidelity[-1][1], **measured, HOSTILE: 1.0})],
        phases=[replace(phase, memory=1_500_000_000) for phase in facts.phases],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "facts_of", lambda file, dream: known)
        patch.setattr(run_report, "_operations", lambda *given: {"fit": 2e12, "train": 1e9})
        cases = representative_cases
        patch.setattr(run_report, "representative_cases", lambda *given, seed: cases(*given, starts=3, horizon=8))
        page = tmp_path_factory.mktemp("pages") / "report.html"
        return write_report(page, smoke_run / "dream.safetensors", dream, folder.load_held_out(54_000))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_every_chart_is_there_named_described_and_with_its_numbers(report: Path, browser: Browser) -> None:
    browser.size(*SCREEN)
    browser.open(report)
    found = browser.run(
        """return [...document.querySelectorAll('svg.chart')].map(chart => ({
            name: chart.querySelector('title').id.replace('-title', ''), role: chart.getAttribute('role'),
            labels: chart.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent),
            width: chart.getBoundingClientRect().width, marks: chart.querySelectorAll('polyline, rect').length,
            rows: chart.closest('figure').querySelectorAll('details tbody tr').length}))"""
    )
    assert {chart["name"] for chart in found} == CHARTS | BARS
    for chart in found:
        assert chart["role"] == "img" and all(chart["labels"]) and len(chart["labels"]) == 2
        assert chart["width"] > 200 and chart["marks"] and chart["rows"], chart["name"]


def test_nothing_is_fetched_said_or_run(report: Path, browser: Browser) -> None:
    browser.open(report)
    assert browser.run("return document.querySelectorAll('script, [onerror]').length") == 0
    assert browser.run("return window.hacked === undefined")
    assert browser.said() == []
    assert browser.asked() == [report.as_uri()]
    assert report.stat().st_size < run_report.MOST_BYTES


def test_names_from_the_run_are_shown_as_they_are(report: Path, browser: Browser) -> None:
    browser.open(report)
    assert browser.run("return document.title") == f"Pong: {HOSTILE}"
    assert browser.run("return document.body.textContent").count(HOSTILE) >= 5


def test_videos_play(report: Path, browser: Browser) -> None:
    browser.open(report)
    played = browser.wait(
        """Promise.all([...document.querySelectorAll('video')].map(async video => {
            await video.play();
            const begun = Date.now();
            while (video.currentTime < 0.2 && Date.now() - begun < 15000) await new Promise(go => setTimeout(go, 50));
            return [video.readyState, video.currentTime, video.videoWidth];
        }))"""
    )
    assert len(played) == 3
    assert all(state >= 2 and seconds >= 0.2 and width > 300 for state, seconds, width in played), played


@pytest.mark.parametrize("unfolded", [False, True])
def test_nothing_overflows_on_a_phone(unfolded: bool, report: Path, browser: Browser) -> None:
    browser.size(*PHONE)
    browser.open(report)
    if unfolded:
        browser.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    wide = browser.run(
        """return [...document.querySelectorAll('body *')].filter(part => !part.closest('.scroll')
            && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    browser.size(*SCREEN)


def test_dark_has_other_colours(report: Path, browser: Browser) -> None:
    seen: list[list[str]] = []
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(report)
        seen.append(
            browser.run(
                """const of = (part, name) => getComputedStyle(document.querySelector(part))[name];
                return [of('body', 'backgroundColor'), of('body', 'color'), of('figure', 'backgroundColor'),
                        of('polyline.s0', 'stroke'), of('.tick', 'fill'), of('summary', 'color')]"""
            )
        )
    browser.scheme("light")
    light, dark = seen
    assert all(one != other for one, other in zip(light, dark, strict=True))
    brightness = [sum(map(int, part[4:-1].split(","))) for part in (*light[:2], *dark[:2])]
    assert brightness[0] - brightness[1] > 500 and brightness[3] - brightness[2] > 500


def test_a_run_leaves_its_report_behind(smoke_run: Path) -> None:
    page = (smoke_run / "report.html").read_text()
    assert all(f'id="{name}-title"' in page for name in ("scores", "dream", "accuracy", "time", "flop", "memory"))


def test_a_dream_without_a_run_is_shown_as_far_as_it_is_known(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(tiny_run), "--out", str(out), "--device", "cpu"]) == 0
    page = out.read_text()
    assert "No score of the real game was recorded" in page and "By phase they are not known" in page
    assert page.count("<video") == 3
    assert "MB" in capsys.readouterr().out
    assert main(["report", str(tiny_run), "--out", "page.pdf"]) == 2
    assert "ending in .html" in capsys.readouterr().err


def test_runs_are_compared_on_a_page(smoke_run: Path, tmp_path: Path, browser: Browser) -> None:
    facts = run_facts(str(smoke_run))
    others = [replace(facts, name=HOSTILE), replace(facts, game="Walk", scored=facts.scored[-1:], random=None)]
    page = write_page(tmp_path / "runs.html", [facts, *others])
    browser.size(*PHONE)
    browser.open(page)
    assert browser.run("return document.querySelectorAll('svg.chart').length") == 2
    assert browser.run("return document.querySelectorAll('#scores0-title ~ polyline').length") == 2
    assert browser.run("return document.querySelectorAll('section:last-child tbody tr').length") == 3
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.run("return window.hacked === undefined")
    assert browser.said() == [] and browser.asked() == [page.as_uri()]
    assert browser.run("return document.body.textContent").count(HOSTILE) >= 2
    browser.size(*SCREEN)


def test_runs_are_compared_in_a_table_beside_published_scores(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.csv"
    assert main(["compare", str(smoke_run), str(smoke_run), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    entries = [entry for entry in RunFolder(smoke_run).log() if "real" in entry]
    assert len(rows) == 2 * len(entries)
    for row, entry in zip(rows, entries * 2, strict=True):
        assert float(row["score"]) == entry["real"]["mean"] and float(row["low"]) == entry["real"]["low"]
        assert float(row["dream_return"]) == entry["dream"]["mean"]
        assert (float(row["human"]), float(row["published_4_frames"])) == (14.6, 11.8)
        assert float(row["human_normalised"]) == pytest.approx((entry["real"]["mean"] + 20.7) / 35.3)
    assert main(["compare", str(smoke_run), str(smoke_run), "--out", "film.mp4"]) == 2
    assert ".html or .csv for 2 runs" in capsys.readouterr().err


def test_what_is_not_known_is_left_empty_in_the_table(smoke_run: Path, tmp_path: Path) -> None:
    facts = run_facts(str(smoke_run))
    unknown = replace(facts, game="Walk", about={}, random=None, scored=[replace(facts.scored[0], dream=None)])
    (row,) = csv.DictReader(write_table(tmp_path / "runs.csv", [unknown]).open())
    assert [row[name] for name in ("human", "dream_return", "minutes", "run_random")] == [""] * 4


def test_published_scores_are_put_on_the_scale_of_people() -> None:
    pong = PUBLISHED["Pong"]
    assert (pong.normalised(-20.7), pong.normalised(14.6)) == (0.0, 1.0)
    assert len(PUBLISHED) == 36 and all(game.human > game.random for game in PUBLISHED.values())


def test_a_dream_is_far_where_something_moves_in_it_or_in_the_game() -> None:
    background = np.full((4, 4), 50.0)
    real = np.full((3, 4, 4), 50, np.uint8)
    dream = real.copy()
    real[1, 0, 0], dream[1, 1, 1] = 152, 101
    dream[2] += 5
    nothing = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.int64), np.zeros(3, np.int64)
    assert moving_error(Comparison(real, dream, *nothing), background) == pytest.approx([0, (102 + 51) / 2 / 255, 0])


def test_best_median_and_worst_are_in_order(smoke_run: Path) -> None:
    held_out = RunFolder(smoke_run).load_held_out(54_000)
    cases = representative_cases(load_dream(smoke_run), held_out, starts=5, horizon=6)
    assert [(case.label, case.rank, case.starts) for case in cases] == [
        ("best", 1, 5),
        ("median", 3, 5),
        ("worst", 5, 5),
    ]
    errors = [case.error for case in cases]
    assert errors == sorted(errors) and all(len(case.shown.real) == len(case.shown.dream) == 7 for case in cases)


def test_the_codebook_is_counted_and_drawn(smoke_run: Path) -> None:
    model, held_out = load_dream(smoke_run).world_model, RunFolder(smoke_run).load_held_out(54_000)
    use = codebook_use(model, held_out)
    records = np.unique(np.linspace(0, len(held_out) - 1, min(2_000, len(held_out))).astype(int))
    codes = model.encode(held_out.frames_at(records, model.frame_stack)).numpy()
    assert use.shares == pytest.approx(np.bincount(codes.ravel(), minlength=model.codec.num_codes) / codes.size)
    assert use.used == len(np.unique(codes)) and 1 <= use.perplexity <= use.used
    assert use.pictures.shape == (model.codec.num_codes, 16, 16)


@pytest.mark.parametrize(("far", "drawn"), [(60.0, True), (5_000.0, False)])
def test_a_reference_that_lies_far_away_is_named_only(far: float, drawn: bool) -> None:
    chart = line_chart(
        "a", "t", "d", [Series("s", [1, 2], [0.0, 10.0])], Axis("x"), Axis("y"), [("r", 1.0), ("p", 5.0), ("h", far)]
    )
    assert ("outside the chart" in chart) is not drawn
    assert chart.split("</svg>")[0].count('class="reference"') == 2 + drawn


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-21.0, 1e6]])
def test_charts_of_little_are_finite(values: list[float]) -> None:
    line = Series("s", list(range(len(values))), values, values, values)
    bars: list[Any] = [("none", 0.0, "0")]
    chart = line_chart("a", "t", "d", [line], Axis("x"), Axis("y")) + bar_chart("b", "t", "d", bars)
    assert "nan" not in chart and "inf" not in chart


def test_a_table_escapes_and_leaves_open_what_is_not_known() -> None:
    made = table(("<b>", "n"), [("<i>", 1_234), ("a", None)])
    assert "&lt;b&gt;" in made and "&lt;i&gt;" in made and "1,234" in made and ">-</td>" in made
