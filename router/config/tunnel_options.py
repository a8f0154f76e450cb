"""The options of tunnels to workers, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Final, Literal

from router.config.listener_options import ListenerOptions
from router.config.option import option
from router.config.option_values import (
    connectivity,
    count_above_zero,
    framing,
    milliseconds,
    milliseconds_above_zero,
    stream_window,
    text,
    uint32,
)
from tunnel_protocol.quic.settings import QuicSettings

_QUIC: Final = QuicSettings()
"""The transport is shared with the worker, so the defaults of its limits and timers stand there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOptions(ListenerOptions):
    """Tunnels: protocol, limits and timers."""

    backend_connectivity: Literal["direct", "reverse"] = option(
        "--backend-connectivity",
        "MODE",
        connectivity,
        default="direct",
        help="Who dials: 'direct' (this router) or 'reverse' (the worker).",
        section="Tunnels to workers",
    )
    tunnel_protocol: Literal["raw-quic", "http3", "webtransport"] = option(
        "--tunnel-protocol",
        "PROTOCOL",
        framing,
        default="raw-quic",
        help="Framing on QUIC streams: raw-quic, http3 or webtransport.",
    )
    reverse_tunnel_pylon_dial_addr: str | None = option(
        "--reverse-tunnel-pylon-dial-addr",
        "ADDR",
        text,
        default=None,
        help="Address workers dial for their tunnel instead of the advertised host.",
    )
    reverse_tunnel_connect_timeout_ms: int = option(
        "--reverse-tunnel-connect-timeout-ms",
        "MS",
        milliseconds,
        default=10_000,
        help="How long a registration update waits for the worker's tunnel.",
    )
    quic_connect_timeout_ms: int = option(
        "--quic-connect-timeout-ms",
        "MS",
        milliseconds,
        default=2_000,
        help="Limit for dialling a worker, and once more for setting up the framing.",
    )
    quic_request_timeout_ms: int | None = option(
        "--quic-request-timeout-ms",
        "MS",
        milliseconds,
        default=None,
        help="Limit from opening a stream to the head of the response; the body has none. 300000 if not given, and "
        "30000 with --compat 0.11.",
    )
    direct_quic_connections: int = option(
        "--direct-quic-connections",
        "N",
        count_above_zero,
        default=1,
        help="Connections to each worker in direct mode.",
        env="STARGATE_DIRECT_QUIC_CONNECTIONS",
    )
    quic_max_streams: int = option(
        "--quic-max-streams",
        "N",
        count_above_zero,
        default=_QUIC.max_streams_bidi,
        help="Streams a worker may open on one connection at a time.",
        env="STARGATE_QUIC_MAX_STREAMS",
        added=True,
    )
    quic_idle_timeout_ms: int = option(
        "--quic-idle-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=_QUIC.idle_timeout_ms,
        help="A QUIC connection without any packet for this long is dead.",
        env="STARGATE_QUIC_IDLE_TIMEOUT_MS",
        added=True,
    )
    quic_keepalive_ms: int = option(
        "--quic-keepalive-ms",
        "MS",
        milliseconds,
        default=_QUIC.keepalive_ms,
        help="Send a PING after this much silence; 0 never does.",
        env="STARGATE_QUIC_KEEPALIVE_MS",
        added=True,
    )
    quic_stream_window_bytes: int = option(
        "--quic-stream-window-bytes",
        "BYTES",
        stream_window,
        default=_QUIC.stream_window_bytes,
        help="What a worker may send on a stream beyond what its client has taken: the memory of an exchange.",
        env="STARGATE_QUIC_STREAM_WINDOW_BYTES",
        added=True,
    )
    quic_max_probe_timeouts: int = option(
        "--quic-max-probe-timeouts",
        "N",
        uint32,
        default=_QUIC.max_consecutive_ptos,
        help="Close a connection after this many unanswered probes in a row; 0 leaves it to the idle timeout.",
        env="STARGATE_QUIC_MAX_PROBE_TIMEOUTS",
        added=True,
    )
    quic_qlog_dir: str | None = option(
        "--quic-qlog-dir",
        "DIR",
        text,
        default=None,
        help="Write a qlog file per QUIC connection there (large; for debugging).",
        env="STARGATE_QUIC_QLOG_DIR",
        added=True,
    )
    quic_keylog_path: str | None = option(
        "--quic-keylog-path",
        "PATH",
        text,
        default=None,
        help="Append the TLS secrets of tunnels there, to decrypt captures (anyone who can read it can read the tunnels).",
        env="STARGATE_QUIC_KEYLOG_PATH",
        added=True,
    )
