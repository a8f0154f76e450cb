"""Errors that end a QUIC connection, and their codes (RFC 9000 section 20.1)."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """Transport error codes that this program sends (RFC 9000 section 20.1, RFC 9001 section 6.7)."""

    NO_ERROR = 0x0
    INTERNAL_ERROR = 0x1
    STREAM_LIMIT_ERROR = 0x4
    STREAM_STATE_ERROR = 0x5
    FRAME_ENCODING_ERROR = 0x7
    CONNECTION_ID_LIMIT_ERROR = 0x9
    PROTOCOL_VIOLATION = 0xA
    CRYPTO_BUFFER_EXCEEDED = 0xD
    KEY_UPDATE_ERROR = 0xE
    AEAD_LIMIT_REACHED = 0xF
    UNEXPECTED_MESSAGE = 0x10A
    """TLS alert unexpected_message (RFC 9001 section 4.8)."""


class TransportError(Exception):
    """A peer violated the protocol: the connection ends with `error_code`; `frame_type` is the frame at fault, 0 if none."""

    def __init__(self, error_code: int, frame_type: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.frame_type = frame_type
        self.reason = reason
