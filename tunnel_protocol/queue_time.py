"""The time to process queued prompt tokens: one formula for reservations, estimates and `x-stargate-expected-queue-ms`.

Source: docs/balancing.md, "Estimates". The results are sent to workers, so they must be exact to the millisecond.
"""

import math
from typing import Final

from tunnel_protocol.unsigned import MAX_U64

_TWO_64: Final = 18446744073709551616.0
_INF: Final = math.inf


def queue_time_delta_ms(input_tokens: int, input_tps: float) -> int | None:
    """Milliseconds, rounded up, to process `input_tokens` at `input_tps` tokens per second.

    None if the rate is unusable (zero, negative, not finite) or the result does not fit into 64 bits.
    """
    if input_tokens == 0:
        return 0
    if not 0.0 < input_tps < _INF:
        return None
    delta_ms = input_tokens / input_tps * 1000.0
    return min(math.ceil(delta_ms), MAX_U64) if delta_ms <= _TWO_64 else None
