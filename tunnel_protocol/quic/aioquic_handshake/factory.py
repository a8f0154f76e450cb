"""Creates aioquic connections from `QuicSettings` and TLS identities, and makes answers to datagrams of no connection."""

import ssl
from typing import TextIO, cast

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tunnel_protocol.quic.address_validation import StatelessResets, reset_key
from tunnel_protocol.quic.aioquic_handshake.handshake import AioquicHandshake
from tunnel_protocol.quic.aioquic_handshake.observers import KeyLog, TraceFiles
from tunnel_protocol.quic.engine import CID_BYTES, MIN_INITIAL_BYTES, Address, EngineCallbacks
from tunnel_protocol.quic.path_mtu import BASE_BYTES
from tunnel_protocol.quic.quic_engine import QuicEngine
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, ServerTls

_VERSIONS = [int(QuicProtocolVersion.VERSION_1)]
_UNLIMITED = (1 << 62) - 1
"""Connection-level flow control window in bytes, as large as that of the reference peers: only streams are limited, so that a
paused stream does not use up the credit of other streams."""


class AioquicFactory:
    """Implements `EngineFactory`."""

    def __init__(self, settings: QuicSettings, server_tls: ServerTls | None) -> None:
        self._settings = settings
        self._key_log = None if settings.key_log is None else KeyLog(settings.key_log)
        self._traces = None if settings.qlog_dir is None else TraceFiles(settings.qlog_dir)
        self._server = self._server_configuration(server_tls) if server_tls is not None else None
        self.reset_key = reset_key(server_tls)
        self._resets = StatelessResets(self.reset_key)

    def replace_tls(self, tls: ServerTls) -> None:
        """See `EngineFactory`."""
        self._server = self._server_configuration(tls)

    def close(self) -> None:
        """Wait up to a second for qlog traces that are being written."""
        if self._traces is not None:
            self._traces.close()

    def connect(self, address: Address, tls: ClientTls, owner: EngineCallbacks, now: float) -> QuicEngine:
        """See `EngineFactory`."""
        configuration = self._configuration(is_client=True, alpn=tls.alpn)
        configuration.server_name = tls.server_name
        # No system roots: `_anchors_for` selects from `anchors` when the server's chain is known.
        configuration.cadata = b""
        if tls.insecure:
            configuration.verify_mode = ssl.CERT_NONE
        handshake = AioquicHandshake(self._settings, configuration)
        if not tls.insecure:
            handshake.anchors = tuple(x509.load_pem_x509_certificates(tls.trust_pem or b""))
        owner.on_connection_id(handshake.host_cid)
        handshake.connect(address, now)
        return QuicEngine(owner, handshake, self._settings)

    def accept(
        self, data: bytes, address: Address, owner: EngineCallbacks, now: float, original_cid: bytes | None = None
    ) -> QuicEngine | None:
        """See `EngineFactory`."""
        header = _header(data)
        if self._server is None or header is None:
            return None
        handshake = AioquicHandshake(
            self._settings,
            self._server,
            original_destination_connection_id=header.destination_cid if original_cid is None else original_cid,
        )
        handshake.use_cid_prefix(self._settings.cid_prefix)
        handshake.use_reset_tokens(self._resets.token)
        if original_cid is not None:
            handshake.follows_retry(header.destination_cid, address)
        engine = QuicEngine(owner, handshake, self._settings)
        engine.receive(data, address, now)
        if not handshake.authenticated:
            engine.discard()
            return None
        owner.on_connection_id(header.destination_cid)
        owner.on_connection_id(handshake.host_cid)
        return engine

    def starts_connection(self, data: bytes) -> bool:
        """See `EngineFactory`."""
        # Long header, fixed bit, type Initial, version 1, a destination id of 8 to 20 bytes (RFC 9000 section 17.2.2).
        return (
            len(data) >= MIN_INITIAL_BYTES
            and data[0] & 0xF0 == 0xC0
            and data[1:5] == b"\x00\x00\x00\x01"
            and 8 <= data[5] <= 20
        )

    def answer_version(self, data: bytes) -> bytes | None:
        """See `EngineFactory`."""
        if len(data) < MIN_INITIAL_BYTES or not data[0] & 0x80:
            return None
        if int.from_bytes(data[1:5], "big") in (0, *_VERSIONS):
            return None
        source_at = 6 + data[5]
        if data[5] > 20 or len(data) <= source_at or data[source_at] > 20:
            return None
        return encode_quic_version_negotiation(
            source_cid=data[6:source_at],
            destination_cid=data[source_at + 1 : source_at + 1 + data[source_at]],
            supported_versions=_VERSIONS,
        )

    def refuse(self, data: bytes, error_code: int = QuicErrorCode.CONNECTION_REFUSED, reason: str = "") -> bytes | None:
        """See `EngineFactory`."""
        header = _header(data)
        if header is None or header.version is None:
            return None
        crypto = CryptoPair()
        crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
        builder = QuicPacketBuilder(
            host_cid=header.destination_cid,
            is_client=False,
            max_datagram_size=BASE_BYTES,
            peer_cid=header.source_cid,
            version=header.version,
        )
        builder.start_packet(QuicPacketType.INITIAL, crypto)
        phrase = reason.encode()
        capacity = TRANSPORT_CLOSE_FRAME_CAPACITY + len(phrase)
        buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=capacity)
        buf.push_uint_var(error_code)
        buf.push_uint_var(QuicFrameType.PADDING)
        buf.push_uint_var(len(phrase))
        buf.push_bytes(phrase)
        datagrams, _ = builder.flush()
        return datagrams[0]

    def _configuration(self, *, is_client: bool, alpn: tuple[str, ...]) -> QuicConfiguration:
        settings = self._settings
        return QuicConfiguration(
            alpn_protocols=list(alpn) or None,
            connection_id_length=CID_BYTES,
            idle_timeout=settings.idle_timeout_ms / 1000,
            is_client=is_client,
            max_data=_UNLIMITED,
            max_datagram_size=BASE_BYTES,
            max_stream_data=settings.stream_window_bytes,
            quic_logger=self._traces,
            # aioquic uses only `write` and `flush` of the text file, which `KeyLog` has.
            secrets_log_file=cast("TextIO | None", self._key_log),
            supported_versions=_VERSIONS,
        )

    def _server_configuration(self, tls: ServerTls) -> QuicConfiguration:
        chain = x509.load_pem_x509_certificates(tls.cert_pem)
        key = load_pem_private_key(tls.key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
            raise ValueError("TLS key is neither ECDSA, Ed25519 nor RSA")  # noqa: TRY004 - the file is wrong, not the call
        configuration = self._configuration(is_client=False, alpn=tls.alpn)
        configuration.certificate = chain[0]
        configuration.certificate_chain = chain[1:]
        configuration.private_key = key
        return configuration


def _header(data: bytes) -> QuicHeader | None:
    try:
        return pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
    except ValueError:
        return None
