"""Keeps the previous 1-RTT receive keys after a key update (RFC 9001 section 6.5).

aioquic drops the old receive keys when it starts an update, but the peer uses the old keys until it has received a packet with
the new ones. If that packet is lost and the next one would only be sent as an answer, the connection stalls.
"""

from aioquic.quic.crypto import CryptoContext, CryptoError, CryptoPair  # type: ignore[attr-defined]  # re-exported so


class KeyPairWithPrevious(CryptoPair):
    """Replaces aioquic's key pair; also decrypts packets of the previous key phase."""

    def __init__(self, pair: CryptoPair) -> None:
        super().__init__()
        self.recv = pair.recv
        self.send = pair.send
        self._before: CryptoContext | None = None
        """The receive keys before the last update; kept until the next update, for reordered packets."""

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """Header, payload and packet number. Raises `CryptoError` unless current, previous or next keys decrypt the packet."""
        try:
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except CryptoError:
            if self._before is None:
                raise
        header, payload, number, _ = self._before.decrypt_packet(packet, encrypted_offset, expected_packet_number)
        return header, payload, number

    def _update_key(self, trigger: str) -> None:
        now = self.recv
        before = self._before = CryptoContext(now.key_phase)
        before.aead, before.hp, before.secret = now.aead, now.hp, now.secret
        before.cipher_suite, before.version = now.cipher_suite, now.version
        super()._update_key(trigger)
