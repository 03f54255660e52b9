"""Playing in a browser: a session's pictures and numbers to a page, and the keys of its player back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import time
import webbrowser
from importlib.resources import files
from typing import Any, cast

import cv2

from dreamgym.errors import InvalidInputError
from dreamgym.pages import COLOURS
from dreamgym.play_keys import key_name
from dreamgym.play_server import Player, PlayServer
from dreamgym.play_session import PlaySession


def play_in_browser(session: PlaySession, *, port: int = 0, fps: int = 15, browser: bool = True) -> None:
    """Play until Ctrl-C.

    While no page is connected time stands still; one that is loaded again goes on where it was.

    Args:
        session: what is played.
        port: of the page; 0 takes one that is free.
        fps: most steps a second.
        browser: open the page, where there is a display.

    Raises:
        ConfigError: the port is taken.
    """
    with PlayServer(*play_page(), port) as server:
        print(f"play at {server.address}\nThe address is a secret of this machine; Ctrl-C ends.", flush=True)
        if browser and _has_display():
            webbrowser.open(server.address)
        while True:
            _entertain(server.wait(), session, fps)
            session.release_all()


def play_page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run its own script and style and reach nothing but its server."""
    page = files("dreamgym").joinpath("play.html").read_text(encoding="utf-8").replace("/* colours */", COLOURS)
    hashes = {
        kind: base64.b64encode(hashlib.sha256(match.group(1).encode()).digest()).decode()
        for kind in ("script", "style")
        if (match := re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL))
    }
    rules = [f"{kind}-src 'sha256-{digest}'" for kind, digest in hashes.items()]
    policy = ["default-src 'none'", *rules, "connect-src 'self'", "img-src data: blob:", "base-uri 'none'"]
    return page, "; ".join([*policy, "form-action 'none'", "frame-ancestors 'none'"])


def _entertain(player: Player, session: PlaySession, fps: int) -> None:
    """Play with one page until it is gone."""
    player.send(_introduction(session), *_shown(session))
    due = time.monotonic()
    while not player.gone:
        due = max(due + 1 / fps, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            for message in player.received():
                _obey(session, message)
        except InvalidInputError as error:
            player.refuse(ascii(str(error))[1:100])
        if session.tick():
            player.send(*_shown(session))


def _obey(session: PlaySession, message: str | bytes) -> None:
    """Do what a page says: ``{"press": key}``, ``{"release": key}``, ``{"release": null}`` or ``{"do": command}``.

    Raises:
        InvalidInputError: it says something else.
    """
    try:
        told = json.loads(message)
    except ValueError:
        told = None
    match told:
        case {"press": str(key)}:
            session.press(key)
        case {"release": str(key)}:
            session.release(key)
        case {"release": None}:
            session.release_all()
        case {"do": str(command)}:
            session.do(command)
        case _:
            raise InvalidInputError("message: expected press, release or do.")


def _introduction(session: PlaySession) -> str:
    """What a page has to know once, as JSON."""
    keys = [{"key": key, "name": key_name(key), "action": action} for key, action in session.keys.single.items()]
    commands = [{"command": command, "key": key} for command, key in session.commands.items()]
    return json.dumps({"game": session.name, "keys": keys, "words": session.keys.words(), "commands": commands})


def _shown(session: PlaySession) -> tuple[str, bytes]:
    """What there is to see: numbers and words as JSON, and the picture as PNG."""
    view = session.view()
    facts = cast("dict[str, Any]", {**view._asdict(), "picture": None})
    return json.dumps(facts), cv2.imencode(".png", view.picture)[1].tobytes()


def _has_display() -> bool:
    """Whether a browser would be seen: without a display some are found that take the terminal over."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
