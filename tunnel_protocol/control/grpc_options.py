"""What all gRPC channels and servers of router and worker have in common: keepalive, and limits on received data.

Keepalive detects a peer that is gone without closing its connection (host failure, expired NAT entry): after
`KEEPALIVE_MS` without a received byte it is pinged, and after `KEEPALIVE_TIMEOUT_MS` without an answer the connection is
closed. The argument names are those of gRPC core (`grpc_types.h`, `channel_arg_names.h`).
"""

from typing import NamedTuple

from tunnel_protocol.limit import Limit

KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 20_000


class Keepalive(NamedTuple):
    """When the connection to a silent peer is closed; milliseconds."""

    after_ms: int = KEEPALIVE_MS
    """Time without a received byte after which a ping is sent."""
    timeout_ms: int = KEEPALIVE_TIMEOUT_MS
    """Time without an answer to the ping after which the connection is closed."""


MESSAGE = Limit("grpc.message", bytes=4 << 20)
"""Largest gRPC message in either direction."""

METADATA = Limit("grpc.metadata", bytes=64 << 10)
"""Largest metadata of a call. gRPC refuses some calls from half of this on; a token of 16 KiB is below that."""

CONNECTION_STREAMS = Limit("grpc.streams_per_connection", pieces=4_096)
"""Concurrent calls on one connection: a proxy may carry the registration and watch streams of 1,000 workers."""

GrpcOptions = list[tuple[str, int]]

_BOUNDS: GrpcOptions = [
    ("grpc.max_receive_message_length", MESSAGE.bytes or 0),
    ("grpc.max_send_message_length", MESSAGE.bytes or 0),
    # Between the two values gRPC refuses calls at random, more often the larger they are; above the second value always.
    ("grpc.max_metadata_size", (METADATA.bytes or 0) // 2),
    ("grpc.absolute_max_metadata_size", METADATA.bytes or 0),
    # No PING after received data to measure the bandwidth for the flow control windows: messages are small, and each such PING,
    # with its acknowledgement, costs as much as the report it follows.
    ("grpc.http2.bdp_probe", 0),
]


def channel_options(keepalive: Keepalive | None = None) -> GrpcOptions:
    """Arguments for a channel to a router or a service in the cluster; proxies named in the environment are not used."""
    return [
        *_BOUNDS,
        *_pings(keepalive or Keepalive()),
        ("grpc.enable_http_proxy", 0),
        # Reconnect soon after an outage, because requests wait for it.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def _pings(keepalive: Keepalive) -> GrpcOptions:
    return [
        ("grpc.keepalive_time_ms", keepalive.after_ms),
        ("grpc.keepalive_timeout_ms", keepalive.timeout_ms),
        # The keepalive timeout that takes effect is this argument, whose default is one minute.
        ("grpc.http2.ping_timeout_ms", keepalive.timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
