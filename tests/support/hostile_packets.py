"""QUIC packets as a hostile peer builds them: any frames, in Initial packets of its own or on a connection it has."""

import os
from collections.abc import Sequence
from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from tunnel_protocol.quic.varint import varint

VERSION = int(QuicProtocolVersion.VERSION_1)


def crypto_frame(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def initial(
    frames: Sequence[bytes],
    destination_cid: bytes | None = None,
    source_cid: bytes | None = None,
    number: int = 0,
    size: int = 1_350,
) -> bytes:
    """An Initial packet with these encoded frames, padded to `size` bytes."""
    destination_cid = destination_cid or os.urandom(8)
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination_cid, is_client=True, version=VERSION)
    builder = QuicPacketBuilder(
        host_cid=source_cid or os.urandom(8),
        peer_cid=destination_cid,
        version=VERSION,
        is_client=True,
        packet_number=number,
        max_datagram_size=size,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    for frame in frames:
        builder.start_frame(frame[0], capacity=len(frame)).push_bytes(frame[1:])
    datagrams, _ = builder.flush()
    return datagrams[0]


def gaps(count: int, first: int = 1_000) -> list[bytes]:
    """CRYPTO frames of one byte, none of which touches another."""
    return [crypto_frame(first + 2 * at, b"z") for at in range(count)]


def client_hello(quic: QuicConnection) -> Any:
    """What an aioquic client that has called `connect` wants to say first."""
    return bytes(quic._crypto_streams[Epoch.INITIAL].sender._buffer)
