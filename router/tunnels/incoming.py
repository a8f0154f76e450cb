"""One connection that a worker opened: its reverse handshake, and afterwards its events as a tunnel.

The router's half of docs/protocol.md, "Reverse handshake": the worker identifies itself on its first stream, the checks run
in a fixed order, and the answer is either an installed tunnel or a refusal that is delivered before the connection closes.
An error of the peer closes this connection and affects no other one.
"""

import asyncio
from typing import Final, Protocol

import structlog

from router.ports.authentication import AuthenticationError, Authenticator
from router.registry.registration import Registration
from router.telemetry.credential_failures import Credential, CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels.reverse_tunnels import ReverseTunnels
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import Tunnel, TunnelConnection
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError
from tunnel_protocol.framing import Framing
from tunnel_protocol.handshake import RouterHandshake, WorkerHello
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

_log = structlog.get_logger()

EMPTY_ID: Final = "empty inference_server_id"
NOT_AUTHENTICATED: Final = "authentication failed"
UNAUTHORIZED_ID: Final = "unauthorized inference_server_id"
OTHER_ROUTING_KEY: Final = "routing key mismatch"
DUPLICATE: Final = "duplicate connection"


class Registrations(Protocol):
    """Finds live registrations; the registry implements it."""

    def live(self, inference_server_id: str) -> Registration | None:
        """The live registration of this id; None if there is none."""


class HandshakeContext(Protocol):
    """What a handshake uses of the listener."""

    registrations: Registrations
    authenticator: Authenticator
    framing: Framing
    settings: TunnelSettings
    metrics: Metrics
    credential_failures: CredentialFailures

    def identified(self, incoming: "IncomingConnection", server_id: str) -> None:
        """The worker has sent its id; authentication and the checks are running."""

    def decided(self, incoming: "IncomingConnection") -> None:
        """The connection is a tunnel now, or has closed: it is no longer pending."""


class IncomingConnection(StreamHandler):
    """The handler of one incoming connection and of its handshake stream."""

    def __init__(self, connection: TunnelConnection, context: HandshakeContext) -> None:
        self.connection = connection
        self._context = context
        self._handshake = RouterHandshake(context.settings.max_handshake_bytes)
        self._stream: Stream | None = None
        self._decision: asyncio.Task[None] | None = None
        self._tunnels: ReverseTunnels | None = None
        self._tunnel: Tunnel | None = None
        self._over = False
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(context.settings.handshake_timeout_ms / 1000, self._too_slow)

    @property
    def _host(self) -> str:
        return self.connection.peer_address[0]

    # --- ConnectionHandler -------------------------------------------------------------------------------------------

    def on_stream(self, stream: Stream) -> StreamHandler | None:
        """Accept the first stream as the handshake stream; refuse every further one."""
        if self._stream is not None or self._over:
            return None
        self._stream = stream
        return self

    def on_closed(self, error: ConnectionClosedError) -> None:  # noqa: ARG002 - why it closed changes nothing here
        """The connection has closed, by either side."""
        self._end()
        if self._tunnels is not None and self._tunnel is not None:
            self._tunnels.connection_closed(self._tunnel)

    # --- StreamHandler -----------------------------------------------------------------------------------------------

    def on_data(self, data: bytes, fin: bool) -> None:
        """Collect the bytes of the worker's one message."""
        if self._decision is not None or self._over or self._stream is None:
            return
        try:
            hello = self._handshake.receive(data, fin)
        except ProtocolError as error:
            self._fail(error.reason)
            return
        if hello is None:
            return
        if not fin:
            # The handshake has one message: grant no credit for more bytes.
            self._stream.stop()
        self._context.identified(self, hello.inference_server_id)
        self._decision = asyncio.get_running_loop().create_task(self._decide(hello))
        self._decision.add_done_callback(self._decided)

    def on_reset(self, error_code: int) -> None:
        """The worker reset its handshake stream: the handshake fails."""
        if self._decision is None:
            self._fail(f"handshake stream reset (code {error_code})")

    def on_stop(self, error_code: int) -> None:
        """The worker does not read the answer; after a refusal, `when_sent` is called, which closes the connection."""

    def on_writable(self) -> None:
        """Does nothing: the answer is far below the high-water mark."""

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        """Does nothing: `on_closed` handles it."""

    # --- the checks --------------------------------------------------------------------------------------------------

    async def _decide(self, hello: WorkerHello) -> None:
        worker_id = hello.inference_server_id
        if not worker_id:
            self._refuse(EMPTY_ID)
            return
        try:
            routing_key = await self._context.authenticator.routing_key(hello.token)
        except AuthenticationError as error:
            self._context.credential_failures.failed(
                Credential.TUNNEL_TOKEN, error.cause_text, host=self._host, inference_server_id=worker_id
            )
            self._refuse(NOT_AUTHENTICATED)
            return
        self._context.credential_failures.passed(
            Credential.TUNNEL_TOKEN, host=self._host, inference_server_id=worker_id
        )
        if self._over:
            return
        _log.info("reverse handshake authenticated", inference_server_id=worker_id, routing_key=routing_key)
        # No suspension point from here to the installation: the registration cannot end or change in between.
        registration = self._context.registrations.live(worker_id)
        tunnels = None if registration is None or not registration.identity.reverse else registration.tunnels
        if registration is None or not isinstance(tunnels, ReverseTunnels):
            _log.warning(f"reverse handshake NACK: {UNAUTHORIZED_ID}", inference_server_id=worker_id)
            self._refuse(UNAUTHORIZED_ID)
        elif registration.identity.routing_key != routing_key:
            _log.warning(
                f"reverse handshake NACK: {OTHER_ROUTING_KEY}",
                inference_server_id=worker_id,
                quic_routing_key=routing_key,
                stored_routing_key=registration.identity.routing_key,
            )
            self._refuse(OTHER_ROUTING_KEY)
        elif not self._install(tunnels, worker_id):
            _log.warning(f"reverse handshake NACK: {DUPLICATE}", inference_server_id=worker_id)
            self._refuse(DUPLICATE)

    def _install(self, tunnels: ReverseTunnels, worker_id: str) -> bool:
        install = tunnels.begin_install()
        if install is None:
            return False
        tunnel = Tunnel(self.connection, self._context.framing, worker_id)
        if not tunnels.complete_install(install, tunnel):
            return False
        self._tunnels = tunnels
        self._tunnel = tunnel
        self._end()
        self._context.metrics.reverse_handshakes_total.inc(("accepted",))
        if self._stream is not None:  # pragma: no branch - what is decided came on it
            self._stream.write(self._handshake.accept(), fin=True)
        _log.info(
            "reverse tunnel connection established", inference_server_id=worker_id, peer=_address(self.connection)
        )
        return True

    def _refuse(self, reason: str) -> None:
        """Send the reason, and close only when it is acknowledged: a close would overtake bytes in flight."""
        if self._over or self._stream is None:
            return
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(
            self._context.settings.connect_timeout_ms / 1000, self._refusal_unread
        )
        self._context.metrics.reverse_handshakes_total.inc((reason,))
        self._stream.write(self._handshake.refuse(reason), fin=True)
        self._stream.when_sent(self._close)

    def make_way(self) -> None:
        """Close this connection, because there are too many pending handshakes."""
        if not self._over:
            self._context.metrics.reverse_handshakes_total.inc(("made way",))
            self._close()

    # --- the ways it ends --------------------------------------------------------------------------------------------

    def _decided(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        _log.error("reverse tunnel handshake broke off", peer=_address(self.connection), exc_info=task.exception())
        self._close()

    def _too_slow(self) -> None:
        self._fail("handshake timed out")

    def _refusal_unread(self) -> None:
        _log.warning(
            "timed out waiting for reverse handshake NACK delivery",
            timeout_ms=self._context.settings.connect_timeout_ms,
        )
        self._close()

    def _fail(self, reason: str) -> None:
        if not self._over:
            self._context.metrics.reverse_handshakes_total.inc(("failed",))
            _log.warning("reverse tunnel connection failed", error=reason, peer=_address(self.connection))
            self._close()

    def _close(self) -> None:
        self._end()
        self.connection.close()

    def _end(self) -> None:
        """The handshake has ended, by a tunnel or by a failure: cancel its timers and task."""
        if self._over:
            return
        self._over = True
        self._deadline.cancel()
        if self._decision is not None and self._tunnel is None:
            self._decision.cancel()
        self._context.decided(self)


def _address(connection: TunnelConnection) -> str:
    host, port = connection.peer_address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
