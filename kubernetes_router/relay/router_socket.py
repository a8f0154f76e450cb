"""A connected UDP socket towards one router, for one path of a tunnel."""

import errno
import socket
import sys
from typing import Final

from kubernetes_router.relay.flows import Target

RECEIVED: Final = 64
"""Datagrams read from the socket of one tunnel before the event loop does other work."""

DATAGRAM_BYTES: Final = 65_535
"""Longest datagram there can be; longer than what is expected, because none may be cut."""
_BUFFER_BYTES: Final = 1 << 20
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
"""Linux: set Don't Fragment and do not use the kernel's own path MTU: the ends of the tunnel find it out (`path_mtu`)."""
_UNREACHABLE: Final = frozenset(
    (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EPERM)
)
_WOULD_BLOCK: Final = (errno.EAGAIN, errno.EWOULDBLOCK)


class UnreachableError(Exception):
    """The host or the network of the router does not take datagrams for it; `errno` says why."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class RouterSocket:
    """Owns the file descriptor. Errors other than `UnreachableError` are losses of one datagram, which QUIC repairs."""

    __slots__ = ("_socket",)

    def __init__(self, target: Target, *, linux: bool = sys.platform == "linux") -> None:
        """Raises `OSError` if there is no socket left, or `target` is no numeric address that can be reached."""
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        family, kind, protocol, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM, flags=numeric)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                found.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            if linux and family == socket.AF_INET:
                found.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            elif linux:
                found.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            found.connect(address)
        except OSError:
            found.close()
            raise
        self._socket = found

    def fileno(self) -> int:
        """The file descriptor, for the event loop."""
        return self._socket.fileno()

    def send(self, data: bytes) -> bool:
        """Send a datagram; False if it is lost. Raises `UnreachableError`."""
        for _ in range(2):
            try:
                self._socket.send(data)
            except OSError as error:
                if error.errno in _UNREACHABLE:
                    raise UnreachableError(error.errno or 0) from None
                if error.errno in _WOULD_BLOCK:
                    return False
                # It may be the report of an earlier datagram (ICMP: too large), which this call only delivers.
            else:
                return True
        return False

    def receive(self, buffer: memoryview) -> list[bytes]:
        """The datagrams that can be read without waiting, at most `RECEIVED`. Raises `UnreachableError` if there are none."""
        found: list[bytes] = []
        receive = self._socket.recv_into
        try:
            for _ in range(RECEIVED):
                size = receive(buffer)
                found.append(bytes(buffer[:size]))
        except OSError as error:
            if error.errno in _UNREACHABLE and not found:
                raise UnreachableError(error.errno or 0) from None
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
