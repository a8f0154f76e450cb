"""The HTTP listener: accepts connections, passes requests to a handler, and drains."""

import asyncio
import email.utils
import resource
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog

from router.http1.connection import ClientConnection, ConnectionCallbacks
from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.http1.settings import HttpSettings
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

RESERVED_DESCRIPTORS: Final = Limit("http1.reserved_descriptors", pieces=64)
"""File descriptors that client connections leave free for tunnels, control plane, metrics and files; at most a quarter."""

BACKLOG = 1024
_REPORT_EVERY_S: Final = 10.0
_TLS_HANDSHAKE_S: Final = 10.0
"""A connection counts only after its handshake, so that must not take long."""
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""TCP keepalive in seconds: a peer that does not answer is dropped within two minutes (Linux's default: over two hours)."""


class ServerCallbacks(Protocol):
    """Answers the requests of a server."""

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """See `RequestHandler.handle`."""

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:
        """See `RequestHandler.refuse`."""

    def connection_refused(self, reason: str) -> None:
        """A connection was closed when accepted; `reason` is the exceeded limit: `connections` or `descriptors`."""


class HttpServer(ConnectionCallbacks):
    """One listening socket and its connections. Idle connections are not closed by a timeout."""

    def __init__(
        self,
        handler: ServerCallbacks,
        clock: Callable[[], float],
        settings: HttpSettings,
    ) -> None:
        super().__init__()
        self._max_connections = settings.max_connections
        self._turned_away = 0
        self._reported_at = -_REPORT_EVERY_S
        self._handler = handler
        self._timeouts = settings.timeouts
        self._close_unread = settings.close_unread
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._connections: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._unflushed: list[ClientConnection] = []
        self._flush_planned = False
        self._in_tick = False
        self._date = b""
        self._date_second = 0

    @property
    def in_flight(self) -> int:
        """Number of connections on which a request is arriving or being answered."""
        return sum(not connection.idle for connection in self._connections)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on a bound socket, with TLS if `tls` is given; again only after `stop_listening`."""
        # Accepted sockets inherit these options: they detect clients that vanish, as idle connections have no timeout.
        keep_alive(sock)
        self._tls = tls
        limit = None if tls is None else _TLS_HANDSHAKE_S
        self._server = await self._loop.create_server(
            self._connection, sock=sock, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=limit
        )
        self._listener = sock

    def _connection(self) -> Any:
        # A protocol of asyncio, but for the base class: its own is a compiled one.
        return ClientConnection(self, self._clock, self._timeouts, close_unread=self._close_unread)

    async def stop_listening(self) -> None:
        """Close the listener until the next `start`. Open connections stay, and what the kernel has accepted is served."""
        listener = self._listener
        waiting: list[socket.socket] = []
        if listener is not None:
            # To close the listener resets what waits for its acceptance.
            with suppress(OSError):  # nothing more, or no descriptor for it
                while len(waiting) < BACKLOG:
                    waiting.append(listener.accept()[0])
        self._close_listener()
        await asyncio.gather(*(self._serve_accepted(accepted) for accepted in waiting))

    async def _serve_accepted(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        limit = None if self._tls is None else _TLS_HANDSHAKE_S
        try:
            await self._loop.connect_accepted_socket(
                self._connection, accepted, ssl=self._tls, ssl_handshake_timeout=limit
            )
        except OSError:
            accepted.close()  # it has gone, or does not speak TLS

    def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = self._listener = None

    async def wait(self) -> None:
        """Serve until a drain has closed the listener."""
        await self._ended.wait()

    async def drain(self, budget_s: float, lame_duck_s: float = 0.0) -> bool:
        """Refuse new requests and let the running ones finish; False if some still ran after `budget_s` seconds.

        For `lame_duck_s` seconds first, new connections are accepted and new requests served, each as the last of its connection:
        a balancer goes on sending them until its next probe. Then the listener closes.
        """
        deadline = self._loop.time() + budget_s
        self.draining = True
        if lame_duck_s:
            await asyncio.sleep(min(lame_duck_s, budget_s))
        self.refusing = True
        self._close_listener()
        self._ended.set()
        for connection in list(self._connections):
            connection.close_when_idle()
        while self._connections:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in list(self._connections):
            connection.abort()

    # --- Requests --------------------------------------------------------------------------------------------------

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Pass a request to the handler; once the listener closes in a drain, answer 503."""
        if self.refusing and request.method == b"POST":
            self._handler.refuse(request, response, 503, "draining")
            return None
        return self._handler.handle(request, response)

    def connection_opened(self, connection: ClientConnection) -> None:
        """Add the connection, or close it at once if there are too many; connections accepted earlier are not affected."""
        if len(self._connections) >= self._max_connections:
            self._turn_away(connection, "connections", self._max_connections)
            return
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The kernel assigns the lowest free descriptor, so a high number shows that nearly all are in use in this process.
        if limit >= 0 and connection.descriptor >= limit - min(RESERVED_DESCRIPTORS.pieces or 0, limit // 4):
            self._turn_away(connection, "descriptors", limit)
            return
        self._connections.add(connection)

    def _turn_away(self, connection: ClientConnection, reason: str, limit: int) -> None:
        connection.abort()
        self._handler.connection_refused(reason)
        self._turned_away += 1
        now = self._clock()
        if now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            _log.warning(
                "client connections refused: too many are open",
                reason=reason,
                limit=limit,
                open=len(self._connections),
                refused=self._turned_away,
            )
            self._turned_away = 0

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:
        """Have the handler answer a request that is not handled."""
        self._handler.refuse(request, response, status, reason)

    def connection_closed(self, connection: ClientConnection) -> None:
        """Remove a connection whose transport is closed."""
        self._connections.discard(connection)
        self._changed.set()

    def flush_later(self, connection: ClientConnection) -> None:
        """Flush all connections written to at once: at the end of the tick, or else of the turn of the event loop."""
        if not (self._in_tick or self._flush_planned):
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        self._unflushed.append(connection)

    # --- TickObserver ----------------------------------------------------------------------------------------------

    def tick_begins(self) -> None:
        """An endpoint is about to deliver received data: writes until `tick_ends` are flushed there."""
        self._in_tick = True

    def tick_ends(self) -> None:
        """The endpoint has delivered all data of this tick: flush every connection that was written to."""
        self._in_tick = False
        if self._unflushed:
            self._flush()

    def _flush(self) -> None:
        self._flush_planned = False
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush()

    def date(self) -> bytes:
        """The value of the `date` header, rendered once a second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = email.utils.formatdate(second, usegmt=True).encode()
        return self._date


def keep_alive(sock: socket.socket) -> None:
    """Accepted sockets inherit it from `sock`: clients that vanish are found although connections may be idle for ever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not every system has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
