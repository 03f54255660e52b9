"""A web server for one page and one player: on this machine alone, at an address that nobody else knows.

Any program of this machine, and any page in its browsers, can send requests to a local port. So everything asks for the
secret in the address, for a ``Host`` that is this machine's (against DNS rebinding) and, of whatever comes from a page,
for the page's own origin.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import queue
import secrets
import threading
import time
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

from dreamgym.errors import ConfigError

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import ServerConnection

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""What a ``Host`` header may name; with any port, as a tunnel from another machine may end at any."""

BUSY, REFUSED = 1013, 1008
"""Codes that a connection is closed with: another window plays, and a message that is none."""

_LONGEST_MESSAGE = 4096  # bytes that a player may send at once
_PATIENCE = 2.0  # seconds for a handshake, and for a farewell
_LOOK = 0.05  # seconds between two looks for a player
_FAREWELL = 1.0  # seconds for which a page that is loaded again waits for its former connection to end

_log = logging.getLogger("dreamgym.play")
_log.addHandler(logging.NullHandler())


def require_web() -> None:
    """See that there is the library for it.

    Raises:
        ConfigError: it is missing; the message says how to install it.
    """
    if importlib.util.find_spec("websockets") is None:
        raise ConfigError("play --web needs websockets: pip install 'dreamgym[web]'.")


class Player:
    """A page that is connected."""

    def __init__(self, connection: ServerConnection) -> None:
        """Nothing was received yet."""
        self._connection = connection
        self._received: queue.SimpleQueue[str | bytes] = queue.SimpleQueue()
        self._gone = threading.Event()

    @property
    def gone(self) -> bool:
        """Whether the page was closed."""
        return self._gone.is_set()

    def received(self) -> list[str | bytes]:
        """What it has sent since the last call."""
        return [self._received.get() for _ in range(self._received.qsize())]

    def send(self, *messages: str | bytes) -> None:
        """Send messages; nothing happens where the page is gone."""
        from websockets.exceptions import ConnectionClosed

        try:
            for message in messages:
                self._connection.send(message)
        except ConnectionClosed:
            self._gone.set()

    def refuse(self, reason: str) -> None:
        """End the connection, and say why."""
        self._connection.close(REFUSED, reason)
        self._gone.set()

    def listen(self) -> None:
        """Receive until the page is gone."""
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self._received.put(self._connection.recv())
        except ConnectionClosed:
            self._gone.set()


class PlayServer:
    """Serves a page, and one player at a time.

    Args:
        page: HTML.
        policy: its Content-Security-Policy.
        port: where; 0 takes one that is free.

    Raises:
        ConfigError: the port is taken or not ours to take.
    """

    def __init__(self, page: str, policy: str, port: int = 0) -> None:
        """Begin to serve."""
        from websockets.sync.server import serve

        self.token = secrets.token_urlsafe(24)
        self._page, self._policy = page, policy
        self._player: Player | None = None
        self._lock = threading.Lock()
        try:
            self._server = serve(
                self._handle,
                HOST,
                port,
                process_request=self._respond,
                compression=None,
                open_timeout=_PATIENCE,
                close_timeout=_PATIENCE,
                max_size=_LONGEST_MESSAGE,
                server_header=None,
                logger=_log,
            )
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "taken" if error.errno == errno.EADDRINUSE else "not this user's to take"
            raise ConfigError(
                f"port: expected one that is free, {port} is {why}. Choose another --port, or 0 for any."
            ) from error
        self.listens_at: tuple[str, int] = self._server.socket.getsockname()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Of the page, with the secret."""
        return f"http://{HOST}:{self.listens_at[1]}/?token={self.token}"

    def wait(self) -> Player:
        """The player, as soon as there is one."""
        while (player := self._player) is None or player.gone:
            time.sleep(_LOOK)
        return player

    def __enter__(self) -> Self:
        """Serve already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say farewell and stop."""
        self._server.shutdown()
        self._thread.join()

    def _handle(self, connection: ServerConnection) -> None:
        """Listen to a page in a thread of its own, unless another plays."""
        player = Player(connection)
        until = time.monotonic() + _FAREWELL
        while (taken := not self._seat(player)) and time.monotonic() < until:
            time.sleep(_LOOK)
        if taken:
            connection.close(BUSY, "Another window plays this game. Close it there, then try again here.")
        else:
            player.listen()

    def _seat(self, player: Player) -> bool:
        """Let a player play, if no other does."""
        with self._lock:
            if self._player is not None and not self._player.gone:
                return False
            self._player = player
            return True

    def _respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page, a refusal, or None where a page connects as it should."""
        path = urlsplit(request.path).path
        refusal = self._refusal(request, must_be_page=path == "/player")
        if refusal:
            response = connection.respond(HTTPStatus.FORBIDDEN, f"{refusal}\n")
        elif path == "/player":
            return None
        elif path == "/":
            response = connection.respond(HTTPStatus.OK, self._page)
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/html; charset=utf-8"
            response.headers["Content-Security-Policy"] = self._policy
        else:
            response = connection.respond(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
        for name, value in (
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            response.headers[name] = value
        return response

    def _refusal(self, request: Request, must_be_page: bool) -> str:
        """Why a request is refused; empty where it is not."""
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or hosts[0].partition(":")[0].lower() not in HOSTS:
            return f"Expected a host of this machine, {' or '.join(HOSTS)}."
        if any(origin != f"http://{hosts[0]}" for origin in origins) or (must_be_page and len(origins) != 1):
            return "Expected a request of the game's own page."
        given = parse_qs(urlsplit(request.path).query).get("token", [])
        if len(given) != 1 or not secrets.compare_digest(given[0].encode(), self.token.encode()):
            return "Expected the whole address that dreamgym play printed, with its token."
        return ""
