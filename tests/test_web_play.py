"""``dreamgym play --web``: in a browser, on this machine alone, for whoever has its address."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from browser import Browser, open_browser
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dreamgym.cli import main
from dreamgym.play_server import BUSY, REFUSED, PlayServer
from dreamgym.play_web import play_in_browser, play_page

PHONE, SCREEN = (390, 844), (1280, 800)
PICTURE = """(() => {
    const copy = new OffscreenCanvas(96, 96).getContext('2d', {willReadFrequently: true});
    copy.drawImage(document.getElementById('picture'), 0, 0);
    return [...copy.getImageData(0, 0, 96, 96).data].filter((_, index) => index % 4 === 0).join();
})()"""


class Served:
    """The command, its address, and what it printed."""

    def __init__(self, run: Path) -> None:
        command = ["play", str(run), "--web", "--no-browser", "--device", "cpu", "--fps", "60"]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "dreamgym", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.printed = ""
        while "Ctrl-C" not in self.printed:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.printed += line
        (self.address,) = re.findall(r"http://\S+", self.printed)
        self.host = urlsplit(self.address).netloc
        self.token = self.address.partition("?token=")[2]

    def player(self, *, host: str | None = None, origin: str | None = "", token: str | None = None) -> Any:
        """A websocket as a page would open it, but for what is said otherwise."""
        address = f"ws://{host or self.host}/player?token={self.token if token is None else token}"
        given: Any = f"http://{self.host}" if origin == "" else origin
        return connect(address, origin=given, sock=socket.create_connection(self.host.split(":")), proxy=None)


@pytest.fixture(scope="module")
def served(tiny_run: Path) -> Iterator[Served]:
    served = Served(tiny_run)
    yield served
    served.process.send_signal(signal.SIGINT)
    _, said = served.process.communicate(timeout=20)
    assert served.process.returncode == 130, said
    assert said.strip() == "Interrupted."


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(served: Served, browser: Browser) -> Iterator[Browser]:
    """The page, connected, at the beginning of a dream that is paused; closed at the end."""
    browser.size(*SCREEN)
    browser.open(served.address)
    try:
        until(browser, "return document.getElementById('step').textContent !== '-'")
        if browser.run("return document.querySelector('[data-command=pause]').ariaPressed") == "false":
            click(browser, "pause")
        if text(browser, "place").startswith("Real"):
            click(browser, "switch")
        click(browser, "reset")
        until(browser, "return document.getElementById('step').textContent === '0'")
        until(browser, "return document.getElementById('place').textContent === 'Dream, paused'")
        yield browser
        assert browser.said() == []
    finally:
        browser.open("about:blank")


def until(browser: Browser, script: str) -> None:
    """Wait for what shall be true within seconds."""
    end = time.monotonic() + 10
    while not browser.run(script):
        assert time.monotonic() < end, f"{script}: {browser.run('return document.body.innerText')}"
        time.sleep(0.02)


def text(browser: Browser, part: str) -> str:
    return browser.run(f"return document.getElementById('{part}').textContent")


def click(browser: Browser, command: str) -> None:
    """Press a command's button, and wait for what it says."""
    before = text(browser, "message")
    browser.run(f"document.querySelector('[data-command={command}]').click()")
    if command != "step":
        until(browser, f"return document.getElementById('message').textContent !== {json.dumps(before)}")


def step(browser: Browser, key: str = "", times: int = 1) -> None:
    """Take single steps with a key held, as a keyboard would."""
    for _ in range(times):
        before = text(browser, "step")
        for kind in ("keydown", "keyup"):
            if key:
                browser.run(
                    f"document.body.dispatchEvent(new KeyboardEvent('{kind}', {{key: '{key}', bubbles: true}}))"
                )
        click(browser, "step")
        until(browser, f"return document.getElementById('step').textContent !== '{before}'")


# the page


def test_keys_are_shown_and_change_the_picture(page: Browser) -> None:
    assert "d = RIGHT" in text(page, "legend")
    names = page.run("return [...document.querySelectorAll('#keys button')].map(one => one.firstChild.textContent)")
    assert names == ["LEFT", "RIGHT", "FIRE"]
    before = page.run(f"return {PICTURE}")
    page.driver.find_element("css selector", "body").send_keys("d")
    step(page)
    assert text(page, "action") == "RIGHT"
    until(page, f"return {PICTURE} !== {json.dumps(before)}")
    assert re.fullmatch(r"\D?\d\.\d\d", text(page, "reward")) and text(page, "uncertainty").endswith(" nats")
    assert page.run("return document.getElementById('picture').ariaLabel") == "Dream: the picture at step 1"


def test_a_finger_holds_a_key(page: Browser) -> None:
    button = "document.querySelector('#keys [data-key=a]')"
    pointer = "{pointerId: 1, bubbles: true}"
    page.run(
        f"{button}.setPointerCapture = () => 0; {button}.dispatchEvent(new PointerEvent('pointerdown', {pointer}))"
    )
    for _ in range(2):
        step(page)
        assert text(page, "action") == "LEFT"
    page.run(f"{button}.dispatchEvent(new PointerEvent('pointerup', {pointer}))")
    step(page, times=2)
    assert text(page, "action") == "NOOP"


def test_time_passes_unless_it_is_paused(page: Browser) -> None:
    click(page, "pause")
    until(page, "return +document.getElementById('step').textContent > 3")
    page.driver.find_element("css selector", "body").send_keys("p")
    until(page, "return document.getElementById('message').textContent === 'Paused.'")
    step(page)
    here = text(page, "step")
    time.sleep(0.1)
    assert text(page, "step") == here


def test_a_moment_is_saved_and_forked(page: Browser) -> None:
    fork = "return document.querySelector('[data-command=fork]').disabled"
    assert page.run(fork) or "saved" in page.run("return document.body.innerText")
    step(page, times=2)
    click(page, "save")
    until(page, fork.replace("return ", "return !"))
    saved = page.run(f"return {PICTURE}")
    step(page, "d", times=3)
    assert page.run(f"return {PICTURE}") != saved
    click(page, "fork")
    until(page, f"return {PICTURE} === {json.dumps(saved)}")
    assert text(page, "step") == "2"


def test_the_game_is_played_from_where_the_dream_began(page: Browser) -> None:
    step(page, times=2)
    click(page, "switch")
    assert text(page, "place") == "Real game, paused" and text(page, "step") == "0"
    assert text(page, "uncertainty") == "-"
    step(page, "d", times=3)
    click(page, "switch")
    assert text(page, "place") == "Dream, paused" and text(page, "step") == "3"


def test_a_page_that_is_loaded_again_goes_on(page: Browser, served: Served) -> None:
    step(page, times=3)
    page.driver.refresh()
    until(page, "return document.getElementById('step').textContent === '3'")
    assert not page.run("return document.getElementById('again').offsetParent")


def test_a_second_window_is_told_that_another_plays(page: Browser, served: Served) -> None:
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(served.address)
    until(page, "return document.getElementById('message').textContent.includes('Another window plays')")
    assert page.run("return document.getElementById('again').offsetParent !== null")
    page.driver.close()
    page.driver.switch_to.window(first)
    step(page)


def test_nothing_is_asked_for_elsewhere(page: Browser, served: Served) -> None:
    assert page.asked() == [served.address, f"ws://{served.host}/player?token={served.token}"]
    for outside in ("http://example.org/", "http://127.0.0.1:1/"):
        assert "TypeError" in page.wait(f"fetch('{outside}')")
    said = page.said()
    assert len(said) >= 2 and all("Content Security Policy" in line for line in said)


@pytest.mark.parametrize("size", [PHONE, (320, 568), (844, 390), SCREEN])
def test_it_fits(size: tuple[int, int], page: Browser) -> None:
    page.size(*size)
    width, height = size
    assert page.run("return document.documentElement.scrollWidth") <= width
    low = page.run(
        "return Math.max(...[...document.querySelectorAll('#keys button')].map(x => x.getBoundingClientRect().bottom))"
    )
    assert low <= height, "keys are seen without scrolling"
    small = page.run(
        "return [...document.querySelectorAll('button')].filter(x => x.offsetParent && x.offsetHeight < 44).length"
    )
    assert small == 0
    page.size(*SCREEN)


def test_dark_has_other_colours(page: Browser) -> None:
    seen: list[str] = []
    for scheme in ("dark", "light"):
        page.scheme(scheme)
        seen.append(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(18, 22, 27)", "rgb(255, 255, 255)"]


def test_the_policy_names_what_the_page_holds() -> None:
    page, policy = play_page()
    assert policy.count("sha256-") == 2 and "unsafe" not in policy
    assert not re.search(r"https?://", page) and "/* colours */" not in page


# the door


def ask(served: Served, path: str, **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(served.host, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode(), response.headers


def test_the_address_is_this_machine_s_and_secret(served: Served) -> None:
    assert served.host.startswith("127.0.0.1:") and len(served.token) >= 32
    with PlayServer("", "") as server, PlayServer("", "") as other:
        assert server.token != other.token and server.listens_at[0] == other.listens_at[0] == "127.0.0.1"


@pytest.mark.parametrize("query", ["", "?token=", "?token=x", "?token={}x", "?token=é", "?token={}&token={}", "?t={}"])
def test_a_page_without_the_token_is_refused(query: str, served: Served) -> None:
    status, said, _ = ask(served, "/" + query.format(*[served.token] * 2).replace("é", "%C3%A9"))
    assert status == 403 and "token" in said and "<html" not in said


def test_the_page_is_kept_nowhere_and_framed_nowhere(served: Served) -> None:
    status, said, headers = ask(served, f"/?token={served.token}")
    assert status == 200 and said.startswith("<!DOCTYPE html>")
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ask(served, f"/other?token={served.token}")[0] == 404


def test_another_host_is_refused(served: Served) -> None:
    for host in ("example.org", f"example.org:{served.host.split(':')[1]}", "127.0.0.1.example.org"):
        assert ask(served, f"/?token={served.token}", Host=host)[0] == 403
    assert ask(served, f"/?token={served.token}", Host="localhost:9000")[0] == 200


@pytest.mark.parametrize(
    "given",
    [
        {"origin": "http://example.org"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": None},
        {"origin": "null"},
        {"token": "x"},
        {"token": ""},
        {"host": "example.org"},
    ],
)
def test_another_page_cannot_play(given: dict[str, Any], served: Served) -> None:
    with pytest.raises(InvalidStatus) as refused:
        served.player(**given)
    assert refused.value.response.status_code == 403


def test_only_one_plays_at_a_time_and_the_next_when_it_is_gone(served: Served) -> None:
    with served.player() as player:
        known, view, picture = json.loads(player.recv(5)), json.loads(player.recv(5)), player.recv(5)
        assert known["game"] == "Pong" and view["place"] == "dream" and picture.startswith(b"\x89PNG")
        with served.player() as second, pytest.raises(ConnectionClosed) as closed:
            second.recv(5)
        assert closed.value.rcvd.code == BUSY and "Another window" in closed.value.rcvd.reason
    with served.player() as player:
        assert "commands" in json.loads(player.recv(5))


@pytest.mark.parametrize("message", ["no JSON", "[1]", '{"press": 1}', '{"do": "win é"}', b"\x00"])
def test_a_message_that_is_none_ends_the_connection_and_not_the_game(message: str | bytes, served: Served) -> None:
    with served.player() as player:
        player.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                player.recv(5)
        assert closed.value.rcvd.code == REFUSED and "expected" in closed.value.rcvd.reason
    with served.player() as player:
        assert player.recv(5)


def test_a_port_that_is_taken_is_told(tiny_run: Path, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = served.host.split(":")[1]
    assert main(["play", str(tiny_run), "--web", "--port", port, "--device", "cpu"]) == 2
    assert f"{port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "system", "variables", "opened"),
    [
        (True, "linux", {"DISPLAY": ":0"}, True),
        (True, "linux", {"BROWSER": "firefox"}, True),
        (True, "linux", {}, False),
        (True, "darwin", {}, True),
        (False, "darwin", {}, False),
    ],
)
def test_a_browser_is_opened_where_it_would_be_seen(
    wanted: bool,
    system: str,
    variables: dict[str, str],
    opened: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(server: PlayServer) -> None:
        raise KeyboardInterrupt

    asked: list[str] = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dreamgym.play_web.sys.platform", system)
    monkeypatch.setattr("dreamgym.play_web.webbrowser.open", asked.append)
    monkeypatch.setattr(PlayServer, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        play_in_browser(cast(Any, None), browser=wanted)
    (address,) = re.findall(r"http://\S+", capsys.readouterr().out)
    assert asked == ([address] if opened else [])
