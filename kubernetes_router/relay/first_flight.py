"""Collects the first datagrams of a client until its ClientHello is whole. Sans-I/O.

The ClientHello of a worker takes one datagram or two (post-quantum key shares). Its CRYPTO frames may come in any order, in
several packets of one datagram, with padding between them.
"""

from typing import NamedTuple

from kubernetes_router.relay.client_hello import server_name
from kubernetes_router.relay.initial_packets import (
    ClientInitialKeys,
    FirstFlightError,
    crypto_frames,
    initial_packets,
)
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.crypto_stream import CryptoBufferError, CryptoStream

DATAGRAMS = Limit("kubernetes_router.first_flight", bytes=16_384, pieces=4)
"""Datagrams kept of one client whose ClientHello is not complete."""


class Resolved(NamedTuple):
    """A complete ClientHello."""

    server_name: str | None


class FirstFlight:
    """The datagrams that a client sent with one destination connection id, in order of arrival."""

    def __init__(self, connection_id: bytes) -> None:
        self._keys = ClientInitialKeys(connection_id)
        self._crypto = CryptoStream(from_client=True)
        self._expected = 0
        self.datagrams: list[bytes] = []
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether no further datagram is taken."""
        return len(self.datagrams) >= (DATAGRAMS.pieces or 0)

    def add(self, data: bytes) -> Resolved | None:
        """Take a datagram; None as long as the ClientHello is not complete.

        Packets that cannot be decrypted are ignored, unless the first datagram has no other. Raises `FirstFlightError`, also
        when the flight gets too large; the flight is of no use then.
        """
        self._size += len(data)
        if self.full or self._size > (DATAGRAMS.bytes or 0):
            raise FirstFlightError("the ClientHello takes too many datagrams")
        self.datagrams.append(data)
        authentic = False
        for packet, number_at in initial_packets(data, self._keys.connection_id):
            opened = self._keys.open(packet, number_at, self._expected)
            if opened is None:
                continue
            authentic = True
            number, payload = opened
            self._expected = max(self._expected, number + 1)
            message = self._messages(payload)
            if message:
                return Resolved(server_name(message))
        if not authentic and len(self.datagrams) == 1:
            raise FirstFlightError("no Initial packet that can be decrypted")
        return None

    def _messages(self, payload: bytes) -> bytes:
        """The complete TLS messages after the CRYPTO frames of one packet, often none."""
        found = b""
        try:
            for offset, data in crypto_frames(payload):
                found = found or self._crypto.receive(offset, data)
        except CryptoBufferError as error:
            raise FirstFlightError(str(error)) from None
        return found
