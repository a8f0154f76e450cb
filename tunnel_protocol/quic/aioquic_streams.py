"""The default engine: aioquic behind the engine port.

Configurations are made here, events of `aioquic_connection` become calls on stream handlers and on the observer, and the
stream objects of the rest of the program live here.
"""

import ssl
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.logger import QuicFileLogger
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.stream import QuicStream
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates

from tunnel_protocol.errors import ConnectionClosedError, StreamClosedError
from tunnel_protocol.quic.aioquic_connection import (
    CONNECTION_ID_BYTES,
    UNLIMITED_DATA,
    PeerClosed,
    SenderChanged,
    StreamCreditGrown,
    TunnelQuicConnection,
)
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls


class EngineObserver(Protocol):
    """The owner of an engine connection."""

    def on_handshake_completed(self) -> None:
        """TLS is done; streams can be opened."""

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a bidirectional stream; None refuses it."""

    def on_stream_credit(self) -> None:
        """The peer allows more streams than before."""

    def on_connection_id(self, connection_id: bytes, *, added: bool) -> None:
        """Datagrams for `connection_id` are (no longer) for this connection."""

    def on_terminated(self, error: ConnectionClosedError) -> None:
        """The connection is over; every stream handler has been told. Nothing follows."""

    def wants_transmit(self) -> None:
        """A call from outside left something to send; arrange for `datagrams_to_send`."""


def server_configuration(tls: ServerTls, settings: QuicSettings, keylog: TextIO | None = None) -> QuicConfiguration:
    """What every connection of a listener is made from. Raises `ValueError` for PEM that does not parse."""
    configuration = _configuration(settings, keylog, is_client=False, alpn=tls.alpn)
    chain = load_pem_x509_certificates(tls.cert_pem)
    configuration.certificate, configuration.certificate_chain = chain[0], chain[1:]
    configuration.private_key = load_pem_private_key(tls.key_pem)
    return configuration


def client_configuration(tls: ClientTls, settings: QuicSettings, keylog: TextIO | None = None) -> QuicConfiguration:
    """What one dialled connection is made from."""
    configuration = _configuration(settings, keylog, is_client=True, alpn=tls.alpn)
    configuration.server_name = tls.server_name
    # Without a bundle of its own the library would fall back to public roots; an empty bundle trusts nobody.
    configuration.cadata = tls.trust_pem or b""
    if tls.insecure:
        configuration.verify_mode = ssl.CERT_NONE
    return configuration


def _configuration(
    settings: QuicSettings, keylog: TextIO | None, *, is_client: bool, alpn: tuple[str, ...]
) -> QuicConfiguration:
    configuration = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=list(alpn) or None,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=settings.idle_timeout_ms / 1000,
        max_data=UNLIMITED_DATA,
        max_stream_data=settings.stream_window_bytes,
        secrets_log_file=keylog,
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )
    if settings.qlog_dir is not None:
        configuration.quic_logger = QuicFileLogger(str(settings.qlog_dir))
    return configuration


class AioquicStream:
    """One stream: what the rest of the program writes to, and the state of its reading side."""

    __slots__ = (
        "_awaiting_sent",
        "_awaiting_writable",
        "_consumed",
        "_engine",
        "_held",
        "_paused",
        "_quic",
        "_reading_over",
        "_stopped",
        "_stream",
        "_writing_over",
        "handler",
        "stream_id",
    )

    def __init__(self, engine: "AioquicEngine", stream: QuicStream) -> None:
        self.stream_id: int = stream.stream_id
        self.handler: StreamHandler | None = None
        self._engine = engine
        self._quic = engine.quic
        self._stream = stream
        self._paused = False
        self._held: list[tuple[bytes, bool]] = []
        self._consumed = 0
        self._reading_over = False
        self._writing_over = False
        self._stopped = False
        self._awaiting_writable = False
        self._awaiting_sent: list[Callable[[], None]] = []

    # --- calls of the owner ----------------------------------------------------------------------------------------

    def write(self, data: bytes, fin: bool = False) -> bool:
        """See `Stream.write`."""
        if self._stopped:
            return True
        if self._writing_over:
            raise StreamClosedError(f"stream {self.stream_id} was written to after its end")
        self._writing_over = fin
        self._stream.sender.write(data, fin)
        self._engine.changed()
        settings = self._engine.settings
        if self._quic.unsent_bytes(self._stream) <= settings.send_buffer_bytes:
            return True
        self._awaiting_writable = True
        self._quic.watch_sender(self._stream, settings.send_buffer_bytes // 2)
        return False

    def reset(self, error_code: int = 0) -> None:
        """See `Stream.reset`."""
        self._writing_over = True
        self._awaiting_writable = False
        if not self._quic.sending_side_over(self._stream):
            self._stream.sender.reset(error_code)
            self._engine.changed()
            self._tell_sent()

    def stop(self, error_code: int = 0) -> None:
        """See `Stream.stop`."""
        self._held.clear()
        if not self._reading_over:
            self._reading_over = True
            if not self._stream.receiver.is_finished:
                self._stream.receiver.stop(error_code)
                self._engine.changed()

    def pause_reading(self) -> None:
        """See `Stream.pause_reading`."""
        self._paused = True

    def resume_reading(self) -> None:
        """See `Stream.resume_reading`."""
        self._paused = False
        while self._held and not self._paused:
            self.deliver(*self._held.pop(0))
        self._engine.changed()

    def unsent_bytes(self) -> int:
        """See `Stream.unsent_bytes`."""
        return self._quic.unsent_bytes(self._stream)

    def acknowledged(self) -> bool:
        """See `Stream.acknowledged`."""
        return self._quic.acknowledged(self._stream)

    def when_sent(self, callback: Callable[[], None]) -> None:
        """See `Stream.when_sent`."""
        if self._stopped or self._quic.sending_side_over(self._stream):
            callback()
            return
        self._awaiting_sent.append(callback)
        self._quic.watch_sender(self._stream, 0)

    # --- calls of the engine ---------------------------------------------------------------------------------------

    def deliver(self, data: bytes, fin: bool) -> None:
        """In-order bytes from the peer: to the handler, or held back while paused."""
        if self._reading_over or self.handler is None:
            return
        if self._paused:
            self._held.append((data, fin))
            return
        self._consumed += len(data)
        if fin:
            self._reading_over = True
        else:
            window = self._engine.settings.stream_window_bytes
            if self._consumed + window - self._stream.max_stream_data_local >= window >> 1:
                self._quic.grant(self._stream, self._consumed + window)
        self.handler.on_data(data, fin)

    def was_reset(self, error_code: int) -> None:
        """The peer abandoned its sending side; what was held back is lost with it."""
        if not self._reading_over:
            self._reading_over = True
            self._held.clear()
            if self.handler is not None:
                self.handler.on_reset(error_code)

    def was_stopped(self, error_code: int) -> None:
        """The peer does not want more from us; the library has answered with RESET_STREAM."""
        if self._stopped:
            return
        self._stopped = True
        self._awaiting_writable = False
        over_before = self._writing_over and self._quic.acknowledged(self._stream)
        self._tell_sent()
        if self.handler is not None and not over_before:
            self.handler.on_stop(error_code)

    def sender_changed(self) -> None:
        """Below the low-water mark, or everything acknowledged."""
        if self._awaiting_writable:
            self._awaiting_writable = False
            if self.handler is not None and not self._writing_over:
                self.handler.on_writable()
        if self._quic.sending_side_over(self._stream):
            self._tell_sent()
        elif self._awaiting_sent:
            self._quic.watch_sender(self._stream, 0)

    def connection_lost(self, error: ConnectionClosedError) -> None:
        """The last call."""
        over = self._reading_over and self._writing_over
        self._reading_over = self._writing_over = self._stopped = True
        self._held.clear()
        self._awaiting_sent.clear()
        handler, self.handler = self.handler, None
        if handler is not None and not over:
            handler.on_connection_lost(error)

    def _tell_sent(self) -> None:
        callbacks, self._awaiting_sent = self._awaiting_sent, []
        for callback in callbacks:
            callback()


class AioquicEngine:
    """One connection; see `EngineConnection`."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        settings: QuicSettings,
        observer: EngineObserver,
        *,
        original_destination: bytes | None = None,
    ) -> None:
        options = {} if original_destination is None else {"original_destination_connection_id": original_destination}
        self.settings = settings
        self.quic = TunnelQuicConnection(configuration, settings, **options)
        self._observer = observer
        self._handshake_done = False
        self._over = False
        self._processing = False
        self._keepalive_s = settings.keepalive_ms / 1000
        self._keepalive_at: float | None = None
        self._closing: tuple[int, str] | None = None

    @property
    def connection_id(self) -> bytes:
        """The first connection id of ours."""
        return bytes(self.quic.host_cid)

    @property
    def peer_address(self) -> Address:
        """Where datagrams go now."""
        address: Address = self.quic.get_peer_address() or ("", 0)
        return address

    @property
    def server_name(self) -> str | None:
        """The name the client asked for."""
        return self.quic.server_name

    @property
    def smoothed_rtt_ms(self) -> float:
        """Smoothed round trip of the path."""
        return float(self.quic.smoothed_rtt * 1000)

    @property
    def open_streams(self) -> int:
        """Streams whose state is not released."""
        return self.quic.open_stream_count

    @property
    def free_streams(self) -> int:
        """Streams that can be opened right now."""
        return 0 if self._over or not self._handshake_done else self.quic.stream_credit

    def connect(self, address: Address, now: float) -> None:
        """Start the handshake (client)."""
        self.quic.connect(address, now)

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take one datagram in."""
        self.quic.receive_datagram(data, address, now)
        if self._keepalive_s:
            self._keepalive_at = now + self._keepalive_s

    def process_events(self) -> None:
        """Empty the queue; a handler that raises loses its own event only, call again for the rest."""
        received = self.quic.received
        while received:
            event = received.popleft()
            if type(event) is tuple:
                stream, data, fin = event
                face = stream.face
                if face is None:
                    face = self._greet(stream)
                face.deliver(data, fin)
            else:
                self._on_event(event)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Everything that can go out now."""
        datagrams: list[tuple[bytes, Address]] = self.quic.datagrams_to_send(now)
        return datagrams

    def next_timer(self) -> float | None:
        """The library's next deadline, or the keepalive's."""
        at: float | None = self.quic.get_timer()
        if self._keepalive_at is not None and (at is None or self._keepalive_at < at):
            return self._keepalive_at
        return at

    def handle_timer(self, now: float) -> None:
        """Time has come."""
        if self._keepalive_at is not None and now >= self._keepalive_at:
            self._keepalive_at = now + self._keepalive_s
            if self._handshake_done and not self.quic.is_closing:
                self.quic.send_ping(0)
        self.quic.handle_timer(now)
        limit = self.settings.max_consecutive_ptos
        if limit and self.quic.consecutive_ptos >= limit and not self.quic.is_closing:
            self.quic.give_up("path is dead")

    def open_stream(self, handler: StreamHandler) -> Stream:
        """A new bidirectional stream."""
        if not self.free_streams:
            raise StreamClosedError("no stream credit")
        stream = self.quic.new_stream()
        face = AioquicStream(self, stream)
        face.handler = handler
        stream.face = face
        return face

    def ping(self) -> None:
        """Send something the peer must acknowledge."""
        if not self._over:
            self.quic.send_ping(0)
            self.changed()

    def close(self, error_code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE; streams and observer are told from the next `process_events`."""
        if self._closing is None and not self._over and not self.quic.is_closing:
            self._closing = (error_code, reason)
            self.quic.close(error_code, None, reason)
            self.quic.received.append(events.ConnectionTerminated(error_code, None, reason))
            self.changed()

    def changed(self) -> None:
        """Something is to be sent."""
        self._observer.wants_transmit()

    # --- events ----------------------------------------------------------------------------------------------------

    def _on_event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.deliver(event.data, event.end_stream)
        elif isinstance(event, SenderChanged):
            if event.stream.face is not None:
                event.stream.face.sender_changed()
        elif isinstance(event, StreamCreditGrown):
            if not self._over:
                self._observer.on_stream_credit()
        elif isinstance(event, events.StreamReset):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.was_reset(event.error_code)
        elif isinstance(event, events.StopSendingReceived):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.was_stopped(event.error_code)
        elif isinstance(event, events.HandshakeCompleted):
            self._handshake_done = True
            self._observer.on_handshake_completed()
        elif isinstance(event, events.ConnectionIdIssued):
            self._observer.on_connection_id(event.connection_id, added=True)
        elif isinstance(event, events.ConnectionIdRetired):
            self._observer.on_connection_id(event.connection_id, added=False)
        elif isinstance(event, PeerClosed):
            self._terminated(ConnectionClosedError(event.error_code, event.reason, by_peer=True))
        elif isinstance(event, events.ConnectionTerminated):
            self._terminated(self._local_error(event))

    def _local_error(self, event: events.ConnectionTerminated) -> ConnectionClosedError:
        if self._closing is not None:
            return ConnectionClosedError(*self._closing, by_peer=False)
        silent = event.error_code == QuicErrorCode.INTERNAL_ERROR
        return ConnectionClosedError(None if silent else event.error_code, event.reason_phrase, by_peer=False)

    def _stream(self, stream_id: int) -> AioquicStream | None:
        """The face of a stream an event is about; it may be released already when both sides ended in one datagram."""
        stream: Any = self.quic.find_stream(stream_id)
        if stream is None:
            return None
        return stream.face if stream.face is not None else self._greet(stream)

    def _greet(self, stream: QuicStream) -> AioquicStream:
        """The peer's stream shows up for the first time: find its handler, or refuse it."""
        face = AioquicStream(self, stream)
        stream.face = face
        if not self._over:
            face.handler = self._observer.on_peer_stream(face)
        if face.handler is None:
            face.stop()
            face.reset()
        return face

    def _terminated(self, error: ConnectionClosedError) -> None:
        if self._over:
            return
        self._over = True
        self._keepalive_at = None
        faces = [stream.face for stream in self.quic.streams() if stream.face is not None]
        self.quic.release()
        first: Exception | None = None
        for face in faces:
            try:
                face.connection_lost(error)
            except Exception as problem:  # noqa: BLE001 - every handler must be told; the first problem is raised below
                first = first or problem
        self._observer.on_terminated(error)
        if first is not None:
            raise first
