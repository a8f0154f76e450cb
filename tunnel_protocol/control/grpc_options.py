"""Channel arguments of every gRPC channel and server, of router and worker alike: keepalive, and bounds on what a peer may send.

A peer that goes silent without closing its connection (a host that vanished, a NAT that forgot) is noticed by the side that waits: after
`KEEPALIVE_MS` without a byte it is pinged, and after `KEEPALIVE_TIMEOUT_MS` more the connection is dead. The names are those of gRPC core
(`grpc_types.h`, `channel_arg_names.h`).
"""

from typing import NamedTuple

from tunnel_protocol.limit import Limit

KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 20_000


class Keepalive(NamedTuple):
    """When a peer that says nothing is given up; milliseconds."""

    after_ms: int = KEEPALIVE_MS
    """Without a byte from it: it is pinged."""
    timeout_ms: int = KEEPALIVE_TIMEOUT_MS
    """Without an answer to that: the connection is dead."""


MESSAGE = Limit("grpc.message", bytes=4 << 20)
"""One gRPC message, in either direction."""

METADATA = Limit("grpc.metadata", bytes=64 << 10)
"""All metadata of a call; up to half of it always passes, so tokens of 16 KiB never meet the limit by chance."""

CONNECTION_STREAMS = Limit("grpc.streams_per_connection", pieces=4_096)
"""Calls under way on one connection: a proxy may carry the registration and watch streams of a thousand workers."""

GrpcOptions = list[tuple[str, int]]

_BOUNDS: GrpcOptions = [
    ("grpc.max_receive_message_length", MESSAGE.bytes or 0),
    ("grpc.max_send_message_length", MESSAGE.bytes or 0),
    # Above the first value gRPC refuses by chance, the more often the larger; above the second always.
    ("grpc.max_metadata_size", (METADATA.bytes or 0) // 2),
    ("grpc.absolute_max_metadata_size", METADATA.bytes or 0),
]


def channel_options(keepalive: Keepalive | None = None) -> GrpcOptions:
    """For a channel to a router or to a service inside the cluster: a proxy named in the environment is never between us."""
    return [
        *_BOUNDS,
        *_pings(keepalive or Keepalive()),
        ("grpc.enable_http_proxy", 0),
        # Come back soon after an outage: somebody waits for it.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def server_options() -> GrpcOptions:
    """For a listener."""
    return [
        *_BOUNDS,
        *_pings(Keepalive()),
        # The library's default lets a second process bind the same port and take half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", CONNECTION_STREAMS.pieces or 0),
        # Peers may ping as often as they like; cutting them off would deregister workers.
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _pings(keepalive: Keepalive) -> GrpcOptions:
    return [
        ("grpc.keepalive_time_ms", keepalive.after_ms),
        ("grpc.keepalive_timeout_ms", keepalive.timeout_ms),
        # What the keepalive waits for is this one, whose default is a minute.
        ("grpc.http2.ping_timeout_ms", keepalive.timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
