"""The idle timeout of a registration, computed from the update interval that its worker announces.

Source: docs/control-plane.md, "Idle timeout".
"""

import re
from enum import Enum, auto

from tunnel_protocol.unsigned import MAX_U64

HEARTBEAT_METADATA = "x-stargate-registration-heartbeat-ms"

_UNSIGNED = re.compile(r"\+?[0-9]+", re.ASCII)


class BadHeartbeat(Enum):
    """Why an announced update interval is not valid."""

    NOT_ASCII = auto()
    NOT_AN_INTEGER = auto()


def parse_heartbeat_ms(value: str | bytes | None) -> int | BadHeartbeat | None:
    """The announced update interval in milliseconds; None if none was announced."""
    if value is None:
        return None
    if isinstance(value, bytes) or not value.isascii():
        return BadHeartbeat.NOT_ASCII
    if not _UNSIGNED.fullmatch(value) or len(value) > 1_000 or int(value) > MAX_U64:
        return BadHeartbeat.NOT_AN_INTEGER
    return int(value)


def idle_timeout_ms(heartbeat_ms: int | None, floor_ms: int, cap_ms: int) -> int | None:
    """The idle timeout in milliseconds: three heartbeats, at least `floor_ms`, at most `cap_ms` (which takes precedence).

    Without a heartbeat it is the cap. None = no timeout, if one of the limits is 0.
    """
    if floor_ms == 0 or cap_ms == 0:
        return None
    if heartbeat_ms is None:
        return cap_ms
    return min(max(3 * heartbeat_ms, floor_ms), cap_ms)
