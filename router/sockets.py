"""Listening sockets, taken exclusively and in a fixed order before anything is served.

A port that is in use must fail the start with the name of its listener, not split the traffic with another process.
"""

import socket

from router.option_values import SocketAddress
from router.startup_checks import StartupError

_BACKLOG = 1_024


def bind_tcp(address: SocketAddress, listener: str) -> socket.socket:
    """A listening, non-blocking TCP socket; raises `StartupError` naming `listener`."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # SO_REUSEADDR only lifts the wait for old connections; a second listener still fails.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise StartupError(f"failed to bind {listener} listener", cause_of(error)) from None
    return bound


def bound_address(bound: socket.socket) -> SocketAddress:
    """Where a socket really listens."""
    host, port = bound.getsockname()[:2]
    return SocketAddress(host, port)


def cause_of(error: OSError) -> str:
    """`Address already in use (os error 98)`."""
    return f"{error.strerror or error} (os error {error.errno})"
