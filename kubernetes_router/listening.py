"""Listening TCP sockets, and the file that tells other programs which ports were bound."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError

_BACKLOG = 1_024


def bind_tcp(address: SocketAddress, listener: str) -> socket.socket:
    """A listening, non-blocking TCP socket. Raises `StartupError`, whose text names `listener` and the address."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        cause = f"{error.strerror or error} (os error {error.errno})"
        raise StartupError(f"failed to bind {listener} listener on {address}", cause) from None
    return bound


class Binding(Protocol):
    """What binds its UDP socket itself."""

    def bind(self) -> None:
        """Bind the socket. Raises `OSError`."""


def bind_udp(listener: Binding, address: SocketAddress, name: str) -> None:
    """Let `listener` bind its socket. Raises `StartupError`, whose text has `name` and the address."""
    try:
        listener.bind()
    except OSError as error:
        cause = f"{error.strerror or error} (os error {error.errno})"
        raise StartupError(f"failed to bind {name} listener on {address}", cause) from None


def bound_address(bound: socket.socket) -> SocketAddress:
    """The address a socket is bound to."""
    host, port = bound.getsockname()[:2]
    return SocketAddress(host, port)


def write_ports_file(path: Path, bound: Mapping[str, SocketAddress]) -> None:
    """Write `bound` and the process id as JSON, atomically. Raises `StartupError`."""
    document = {"pid": os.getpid(), **{name: str(at) for name, at in bound.items()}}
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(msgspec.json.encode(document) + b"\n")
        unfinished.replace(path)
    except OSError as error:
        raise StartupError(f"failed to write ports file: {path}", str(error)) from None
