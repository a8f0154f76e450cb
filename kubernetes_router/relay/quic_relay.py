"""The relay on an asyncio event loop: one UDP socket for workers, and a connected one for each path towards a router."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from kubernetes_router.relay.core import Action, Answer, Close, Forward, Open, RelayCore
from kubernetes_router.relay.flows import Path, Target
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.relay.router_socket import DATAGRAM_BYTES, RouterSocket, UnreachableError
from kubernetes_router.targets import NoTarget
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.udp import UdpSocket

_log = structlog.get_logger()

_BATCH: Final = 256
"""Datagrams of workers read before the event loop does other work."""
_SWEEP_S: Final = 1.0
"""Seconds between looks at what has run out of time."""
_READ_AGAIN_S: Final = 0.05
"""Seconds to pause after reading the socket has failed many times in a row."""


class QuicRelay:
    """Relays QUIC datagrams between workers and the routers that the server names of their first flights name."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        resolve: Callable[[str], Target | NoTarget],
        tagged: Callable[[bytes], Sequence[Target]],
        idle_timeout_ms: int,
        on_outcome: Callable[[Outcome], None],
        on_dropped: Callable[[Dropped], None],
    ) -> None:
        """`resolve` returns the IP address and UDP port of the router that a server name names, `tagged` those of the routers whose
        connection ids begin with a tag (`tunnel_protocol.quic.pod_tag`).

        A tunnel is forgotten after `idle_timeout_ms` without a datagram of its worker. `on_outcome` is called for each tunnel,
        `on_dropped` for each datagram that is not passed on.
        """
        self._host = host
        self._port = port
        self._on_outcome = on_outcome
        self._on_dropped = on_dropped
        refusals = AioquicFactory(QuicSettings(), None)
        self._core = RelayCore(resolve, tagged, refusals, self, idle_s=idle_timeout_ms / 1000)
        self._sockets: dict[Path, RouterSocket] = {}
        self._buffer = memoryview(bytearray(DATAGRAM_BYTES))
        self._udp: UdpSocket | None = None
        self._watching_writable = False
        self._sweep: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    def bind(self) -> None:
        """Bind the socket; nothing is read before `start`. Raises `OSError`."""
        self._udp = UdpSocket.bind(self._host, self._port, DATAGRAM_BYTES)

    async def start(self) -> None:
        """Relay from now on; binds the socket unless that was done. Raises `OSError`."""
        if self._udp is None:
            self.bind()
        assert self._udp is not None  # noqa: S101 - for the type checker
        self._loop = asyncio.get_running_loop()
        self._udp.log_buffers()
        self._loop.add_reader(self._udp.fileno(), self._readable)
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the socket for workers. Raises `OSError` unless it is bound."""
        if self._udp is None:
            raise OSError("the relay is not bound")
        return self._udp.address

    @property
    def open_tunnels(self) -> int:
        """Number of tunnels that are relayed now."""
        return len(self._core.flows)

    @property
    def unresolved(self) -> int:
        """Number of clients whose ClientHello is not complete."""
        return self._core.unresolved

    def stop_accepting(self) -> None:
        """Refuse new tunnels, with a reason; existing ones are relayed on."""
        self._core.accepting = False

    async def drain(self, deadline: float) -> int:
        """Take no new tunnels, and wait until none is open or the loop's time is `deadline`; returns how many are still open.

        A tunnel cannot be ended from here, because only its ends have its keys.
        """
        self.stop_accepting()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.open_tunnels:
                    self._changed.clear()
                    await self._changed.wait()
        return self.open_tunnels

    async def close(self) -> None:
        """Forget all tunnels and close all sockets; has no effect a second time."""
        udp, self._udp = self._udp, None
        if udp is None:
            return
        if self._sweep is not None:
            self._sweep.cancel()
            self._loop.remove_reader(udp.fileno())
            if self._watching_writable:
                self._loop.remove_writer(udp.fileno())
        self._core.accepting = False
        self._act(self._core.end_all())
        udp.close()

    # --- RelayEvents -------------------------------------------------------------------------------------------------

    def outcome(self, outcome: Outcome, client: Address, detail: str) -> None:
        """Count and log what became of a tunnel."""
        self._on_outcome(outcome)
        self._changed.set()
        what = "tunnel not relayed"
        if outcome in (Outcome.ACCEPTED, Outcome.ADOPTED):
            what = "tunnel relayed"
        elif outcome in (Outcome.COMPLETED, Outcome.RELAY_ERROR):
            what = "tunnel ended"
        _log.info(what, outcome=outcome.value, peer=client[0], detail=detail)

    def dropped(self, reason: Dropped) -> None:
        """Count a datagram that is not passed on."""
        self._on_dropped(reason)

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        udp = self._udp
        if udp is None:
            return
        now = self._loop.time()
        core, sockets = self._core, self._sockets
        for data, client in udp.receive(_BATCH):
            path = core.path_of(data, client, now)
            if path is None:
                self._act(core.receive(data, client, now))
                continue
            try:
                if not sockets[path].send(data):
                    self._on_dropped(Dropped.NOT_SENT)
            except UnreachableError:
                self._act(core.lost(path))
        if udp.unreadable:
            # The event loop would call this again at once in a busy loop.
            self._loop.remove_reader(udp.fileno())
            self._loop.call_later(_READ_AGAIN_S, self._read_again)

    def _read_again(self) -> None:
        if self._udp is not None:
            self._loop.add_reader(self._udp.fileno(), self._readable)

    def _answered(self, path: Path) -> None:
        """A router has sent something on `path`."""
        found = self._sockets.get(path)
        if found is None:
            return
        try:
            datagrams = found.receive(self._buffer)
        except UnreachableError:
            self._act(self._core.lost(path))
            return
        now = self._loop.time()
        client = path.client
        for data in datagrams:
            self._core.receive_from_router(path, data, now)
        if datagrams:
            self._send_to_client([(data, client) for data in datagrams])

    def _send_to_client(self, datagrams: list[tuple[bytes, Address]]) -> None:
        udp = self._udp
        if udp is None:
            return
        before = udp.dropped
        udp.send(datagrams)
        for _ in range(udp.dropped - before):
            self._on_dropped(Dropped.NOT_SENT)
        if udp.blocked and not self._watching_writable:
            self._watching_writable = True
            self._loop.add_writer(udp.fileno(), self._writable)

    def _writable(self) -> None:
        udp = self._udp
        if udp is None:
            return
        udp.send_backlog()
        if not udp.blocked:
            self._watching_writable = False
            self._loop.remove_writer(udp.fileno())

    # --- actions -----------------------------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Forward):
                self._forward(action)
            elif isinstance(action, Answer):
                self._send_to_client([(action.data, action.client)])
            elif isinstance(action, Open):
                self._open(action.path)
            else:
                self._close(action)

    def _open(self, path: Path) -> None:
        try:
            opened = RouterSocket(path.flow.target)
        except OSError as error:
            host, port = path.flow.target
            _log.warning("no socket towards a router", address=f"{host}:{port}", error=error.strerror or str(error))
            self._act(self._core.lost(path))
            return
        self._sockets[path] = opened
        self._loop.add_reader(opened.fileno(), self._answered, path)

    def _forward(self, action: Forward) -> None:
        found = self._sockets.get(action.path)
        if found is None:
            return  # it could not be opened
        try:
            for data in action.datagrams:
                if not found.send(data):
                    self._on_dropped(Dropped.NOT_SENT)
        except UnreachableError:
            self._act(self._core.lost(action.path))

    def _close(self, action: Close) -> None:
        found = self._sockets.pop(action.path, None)
        if found is not None:
            self._loop.remove_reader(found.fileno())
            found.close()

    def _expire(self) -> None:
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire)
        self._act(self._core.expire(self._loop.time()))
