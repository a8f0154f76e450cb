"""The settings of a transport benchmark, and the rows of the suggested matrix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.transport.generator import Generator

TRANSPORTS = ("raw-quic", "http3", "webtransport")
"""Tunnel encodings in running order; the others are compared with the first."""

BUILT = ("raw-quic",)
"""The tunnel encodings that this program implements."""

MAX_STREAMS = 16_384
"""Concurrent streams that the server grants on each connection."""

_ORDER_SEED = 5_611_218_002_229
_WARMUP_SALT = 659_918
_AT_LEAST_ONE = (
    "requests", "concurrency", "quic_connections", "request_chunk_bytes", "response_chunk_bytes", "trials",
    "request_timeout_ms", "run_timeout_ms",
)  # fmt: skip
_NOT_NEGATIVE = (
    "warmup_requests", "request_body_bytes", "response_body_bytes", "warmup_trials", "cooldown_ms", "idle_streams",
)  # fmt: skip
_MODES = ("smoke", "controlled", "strict")


class SettingsError(ValueError):
    """An invalid parameter; `parameter` is its name."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """The settings of all runs of a benchmark. Raises `SettingsError` for invalid values."""

    requests: int = 20_000
    concurrency: int = 256
    quic_connections: int = 1
    warmup_requests: int = 1_000
    """Requests per run before the measured ones."""
    request_body_bytes: int = 1_024
    response_body_bytes: int = 1_024
    request_chunk_bytes: int = 16_384
    response_chunk_bytes: int = 16_384
    quic_send_fairness: bool = True
    http3_send_grease: bool = True
    trials: int = 1
    warmup_trials: int = 0
    cooldown_ms: int = 0
    """Pause after each run."""
    randomize_order: bool = False
    noise_threshold_cv: float = 0.02
    """Highest coefficient of variation of the throughput that counts as reliable."""
    min_effect_size_percent: float = 1.0
    """Smallest relative difference of mean throughputs that the report mentions."""
    reliability_mode: str = "smoke"
    transports: tuple[str, ...] = BUILT
    server_process: bool = False
    """Run the server in its own process, so that the CPU time of each end is known."""
    idle_streams: int = 0
    """Idle open streams on the first connection during the run."""
    request_timeout_ms: int = 30_000
    """Time limit of a request; it fails after that."""
    run_timeout_ms: int = 600_000
    """Time limit of a run; it is ended after that."""

    def __post_init__(self) -> None:
        """Check all values."""
        self._check_numbers()
        if self.reliability_mode not in _MODES:
            raise SettingsError("reliability_mode", "must be one of " + ", ".join(_MODES))
        if not self.quic_send_fairness:
            raise SettingsError("quic_send_fairness", "cannot be off: the engine sends streams in turn")
        if not self.transports:
            raise SettingsError("transport", "must be named at least once")
        for name in self.transports:
            if name not in TRANSPORTS:
                raise SettingsError("transport", f"must be one of {', '.join(TRANSPORTS)}, not {name}")
            if name not in BUILT:
                raise SettingsError("transport", f"{name} is not built yet; there is " + ", ".join(BUILT))

    def _check_numbers(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise SettingsError(name, "must be at least 1")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise SettingsError(name, "must not be negative")
        for name in ("noise_threshold_cv", "min_effect_size_percent"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SettingsError(name, "must be a finite number that is not negative")
        # Half of the granted streams, so that idle streams and streams that are just ending leave enough for new requests.
        if self.concurrency > MAX_STREAMS // 2 * self.quic_connections:
            raise SettingsError("concurrency", f"must be at most {MAX_STREAMS // 2} for each connection")
        if self.idle_streams > MAX_STREAMS // 2:
            raise SettingsError("idle_streams", f"must be at most {MAX_STREAMS // 2}")

    def order(self, trial: int, *, warmup: bool) -> list[str]:
        """The transports of a trial (counted from 0) in running order."""
        names = list(TRANSPORTS)
        if self.randomize_order:
            draw = Generator(_ORDER_SEED ^ trial ^ (_WARMUP_SALT if warmup else 0))
            first = draw.below(3)
            names[0], names[first] = names[first], names[0]
            second = 1 + draw.below(2)
            names[1], names[second] = names[second], names[1]
        return [name for name in names if name in self.transports]


_ROWS: dict[str, dict[str, int]] = {
    "default": {},
    "serial-small": {"requests": 2_000, "concurrency": 1, "warmup_requests": 200},
    "medium-concurrency": {"requests": 10_000, "concurrency": 32, "warmup_requests": 500},
    "multi-connection": {"quic_connections": 4},
    "large-request": {
        "requests": 2_000, "concurrency": 32, "warmup_requests": 100, "request_body_bytes": 1_048_576,
    },
    "large-response": {
        "requests": 2_000, "concurrency": 32, "warmup_requests": 100, "response_body_bytes": 1_048_576,
    },
    "token-stream": {
        "requests": 1_000, "concurrency": 32, "warmup_requests": 50,
        "request_body_bytes": 2_048, "response_body_bytes": 16_384, "response_chunk_bytes": 128,
    },
    "no-body": {"request_body_bytes": 0, "response_body_bytes": 0},
}  # fmt: skip


def matrix(base: TransportSettings, scale: float) -> Mapping[str, TransportSettings]:
    """The suggested rows by name, with `scale` times their requests; settings that a row does not set are those of `base`."""
    usual = TransportSettings()
    rows = {}
    for name, row in _ROWS.items():
        shape = {field: row.get(field, getattr(usual, field)) for field in _SHAPE}
        shape["requests"] = max(1, round(shape["requests"] * scale))
        shape["warmup_requests"] = round(shape["warmup_requests"] * scale)
        rows[name] = replace(base, **shape)
    return rows


_SHAPE = (
    "requests", "concurrency", "quic_connections", "warmup_requests",
    "request_body_bytes", "response_body_bytes", "request_chunk_bytes", "response_chunk_bytes",
)  # fmt: skip
