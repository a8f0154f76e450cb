"""Listening sockets, bound exclusively and in a fixed order before anything is served.

A port that is in use must fail the start with the name of its listener, and not share the traffic with another process.
"""

import errno
import socket

from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError

_BACKLOG = 1_024


def bind_tcp(address: SocketAddress, listener: str) -> socket.socket:
    """A listening, non-blocking TCP socket. Raises `StartupError`, whose text names `listener`."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # SO_REUSEADDR only allows a bind while old connections are in TIME_WAIT; a second listener still fails.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise StartupError(f"failed to bind {listener} listener", cause_of(error)) from None
    return bound


def bind_tcp_everywhere(port: int, listener: str) -> socket.socket:
    """As `bind_tcp`, on all interfaces, for IPv6 and IPv4 if the host has both."""
    if socket.has_dualstack_ipv6():
        try:
            bound = socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise StartupError(f"failed to bind {listener} listener", cause_of(error)) from None
        else:
            bound.setblocking(False)
            return bound
    return bind_tcp(SocketAddress("0.0.0.0", port), listener)


def bound_address(bound: socket.socket) -> SocketAddress:
    """The address a socket is bound to; all interfaces are always reported as `0.0.0.0`."""
    host, port = bound.getsockname()[:2]
    return SocketAddress("0.0.0.0" if host == "::" else host, port)


def cause_of(error: OSError) -> str:
    """The text of `error`, such as `Address already in use (os error 98)`."""
    return f"{error.strerror or error} (os error {error.errno})"
