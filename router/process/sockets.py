"""Listening sockets, bound exclusively and in a fixed order before anything is served.

A port that is in use must fail the start with the name of its listener, and not share the traffic with another process. Only
the processes of one router share ports: their supervisor has reserved them.
"""

import errno
import os
import socket
from collections.abc import Sequence

from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError

_BACKLOG = 1_024


def reserve_tcp(address: SocketAddress, listener: str, options: Sequence[str]) -> socket.socket:
    """A socket that holds a port for `bind_tcp(..., shared=True)` and does not listen. Raises `StartupError` as `bind_tcp`."""
    with bind_tcp(address, listener, options) as alone:
        found = bound_address(alone)
    reserved = _tcp_socket(found, listener, options, shared=True)
    # A start of another router, which does not share, must find the port in use.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return reserved


def bind_tcp(address: SocketAddress, listener: str, options: Sequence[str], *, shared: bool = False) -> socket.socket:
    """A listening, non-blocking TCP socket. Raises `StartupError`, which names `listener` and its `options`.

    `shared`: other processes of the same user that say the same may listen on the port too; the kernel spreads connections.
    """
    bound = _tcp_socket(address, listener, options, shared=shared)
    try:
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise _failed(listener, error, options) from None
    return bound


def _tcp_socket(address: SocketAddress, listener: str, options: Sequence[str], *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _failed(listener, error, options) from None
    try:
        # SO_REUSEADDR only allows a bind while old connections are in TIME_WAIT; a second listener still fails.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise _failed(listener, error, options) from None
    return bound


def bind_tcp_everywhere(port: int, listener: str, options: Sequence[str]) -> socket.socket:
    """As `bind_tcp`, on all interfaces, for IPv6 and IPv4 if the host has both."""
    if socket.has_dualstack_ipv6():
        try:
            bound = socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise _failed(listener, error, options) from None
        else:
            bound.setblocking(False)
            return bound
    return bind_tcp(SocketAddress("0.0.0.0", port), listener, options)


def bound_address(bound: socket.socket) -> SocketAddress:
    """The address a socket is bound to; all interfaces are always reported as `0.0.0.0`."""
    host, port = bound.getsockname()[:2]
    return SocketAddress("0.0.0.0" if host == "::" else host, port)


def cause_of(error: OSError) -> str:
    """The text of `error`, such as `Address already in use (os error 98)`."""
    if error.errno is None:
        return str(error)
    return f"{os.strerror(error.errno)} (os error {error.errno})"


def _failed(listener: str, error: OSError, options: Sequence[str]) -> StartupError:
    return StartupError(f"failed to bind {listener} listener", cause_of(error), options=options)
