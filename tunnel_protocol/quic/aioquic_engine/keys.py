"""1-RTT keys that outlast a key update (RFC 9001 section 6.5).

aioquic forgets the old receive keys the moment it starts an update, but the peer goes on using them until it has seen a packet
under the new ones. If that packet is lost and the next one is only due as an answer, nobody speaks any more.
"""

from aioquic.quic.crypto import CryptoContext, CryptoError, CryptoPair  # type: ignore[attr-defined]  # re-exported so


class KeyPairWithPrevious(CryptoPair):
    """Takes the place of a pair; reads packets of the key phase before the current one too."""

    def __init__(self, pair: CryptoPair) -> None:
        super().__init__()
        self.recv = pair.recv
        self.send = pair.send
        self._before: CryptoContext | None = None
        """The receive keys before the last update; kept until the next one, for reordered packets."""

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """Header, payload and number. Raises `CryptoError` for what was sent under neither keys nor their successors."""
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
