"""Checks whether tunnels can use a TLS identity, by a complete QUIC handshake in memory with the code that will use it.

Parsing a certificate and key is not enough: keys on curves without a signature scheme in TLS or in this engine load without an
error, and then no worker can connect. See docs/operations.md, "TLS".
"""

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake.factory import AioquicFactory
from tunnel_protocol.quic.engine import Address, Engine
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import DEFAULT_SERVER_NAME, ClientTls, ServerTls

_CLIENT: Address = ("127.0.0.1", 1)
_SERVER: Address = ("127.0.0.1", 2)
_ROUNDS = 64
"""Maximum number of flights in both directions; a handshake with a 64 KB certificate chain takes fewer than 20."""
_ROUND_S = 0.02
"""Simulated seconds between flights, so that pacing and timers advance."""


class UnusableIdentityError(ValueError):
    """No handshake with the identity succeeds. `reason` is the engine's error."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a TLS handshake with it fails: {reason}")
        self.reason = reason


def dry_run(tls: ServerTls) -> None:
    """Do one handshake as a server with `tls`. Raises `UnusableIdentityError`; takes a few milliseconds of CPU."""
    try:
        factory = AioquicFactory(QuicSettings(), tls)
    except Exception as error:
        raise UnusableIdentityError(str(error) or type(error).__name__) from error
    server, client = _Callbacks(), _Callbacks()
    try:
        # Certificates are not verified here: each worker has its own trust anchors.
        dialler = factory.connect(
            _SERVER,
            ClientTls(trust_pem=None, server_name=DEFAULT_SERVER_NAME, insecure=True, alpn=tls.alpn),
            client,
            0.0,
        )
        _play(factory, dialler, server, client)
    except Exception as error:
        raise UnusableIdentityError(f"{type(error).__name__}: {error}") from error
    finally:
        factory.close()
    if not (server.established and client.established):
        errors = [str(owner.error) for owner in (server, client) if owner.error is not None]
        raise UnusableIdentityError(errors[0] if errors else "it does not come to an end")


def _play(factory: AioquicFactory, dialler: Engine, server: "_Callbacks", client: "_Callbacks") -> None:
    listener: Engine | None = None
    now = 0.0
    for _ in range(_ROUNDS):
        now += _ROUND_S
        for data, _address in _polled(dialler, now):
            if listener is None:
                listener = factory.accept(data, _CLIENT, server, now)
            else:
                listener.receive(data, _CLIENT, now)
        if listener is None:
            return
        for data, _address in _polled(listener, now):
            dialler.receive(data, _SERVER, now)
        dialler.deliver()
        listener.deliver()
        if (server.established and client.established) or server.error is not None or client.error is not None:
            return


def _polled(engine: Engine, now: float) -> list[tuple[bytes, Address]]:
    deadline = engine.deadline()
    if deadline is not None and deadline <= now:
        engine.handle_timer(now)
    engine.deliver()
    return [(data, address) for data, _segment, address in engine.poll(now)]


class _Callbacks:
    """Records how the handshake ends."""

    def __init__(self) -> None:
        self.established = False
        self.error: ConnectionClosedError | None = None

    def on_work(self) -> None:
        """Nothing to do: `_play` polls both engines in each round."""

    def on_established(self) -> None:
        """The handshake is complete."""
        self.established = True

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:  # noqa: ARG002 (the port's signature)
        """Not called: neither side opens a stream."""
        return None

    def on_stream_credit(self) -> None:
        """Nothing to do: no stream is opened."""

    def on_connection_id(self, connection_id: bytes) -> None:
        """Nothing to do: datagrams are not routed by connection id."""

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        """See `on_connection_id`."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The handshake has failed."""
        self.error = error
