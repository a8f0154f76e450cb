"""A non-blocking UDP socket that takes and gives datagrams in batches; several equal ones leave in one system call.

UDP segmentation offload (Linux, `UDP_SEGMENT`) is used where the kernel takes it. What the kernel does not take at once
waits in a bounded backlog; what does not fit there is dropped, which QUIC treats as any other loss.
"""

import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.datagrams import Datagram
from tunnel_protocol.quic.engine import Address

try:
    from tunnel_protocol.quic.datagram_speedups import Datagrams
except ImportError:
    from tunnel_protocol.quic.datagrams import Datagrams

_log = structlog.get_logger()

_SOCKET_BUFFER_BYTES = 4 << 20
_RECEIVE_BYTES = 2_048
_MAX_SEGMENTS = 64
_MAX_SEGMENTED_BYTES = 65_000
BACKLOG = Limit("udp.send_backlog", bytes=1_024 * _MAX_SEGMENTED_BYTES, pieces=1_024)
"""Datagrams (or segmented batches) that wait until the socket takes them; beyond it they are dropped, which is loss to QUIC."""

_BACKLOG = BACKLOG.pieces or 0
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK)
_CANNOT_SEGMENT = (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
_UNSPECIFIED = ("0.0.0.0", "::")
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
"""Linux: never fragment, and do not believe what the kernel remembers of the path; we probe it ourselves."""


class UdpSocket:
    """Owns the file descriptor; the caller waits for readiness."""

    def __init__(
        self,
        sock: socket.socket,
        receive_bytes: int = _RECEIVE_BYTES,
        *,
        linux: bool = sys.platform == "linux",
        datagrams: type[Datagrams] = Datagrams,
        answers_as_asked: bool = False,
    ) -> None:
        """With `answers_as_asked` (Linux) a peer is answered from that address of this host to which it wrote."""
        self._socket = sock
        self._segmentation = linux
        self._backlog: deque[tuple[bytes, int, Address]] = deque()
        self.dropped = 0
        """Datagrams (or segmented batches) the kernel refused or the backlog had no room for."""
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._datagrams = datagrams(
            sock, max(receive_bytes, _RECEIVE_BYTES), answers_as_asked=answers_as_asked and linux
        )
        if linux:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)

    @classmethod
    def bind(cls, host: str, port: int, receive_bytes: int = _RECEIVE_BYTES) -> "UdpSocket":
        """A socket bound to this address alone, or to all of this host if it is unspecified. Raises OSError."""
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        return cls._bound(family, kind, protocol, address, receive_bytes, answers_as_asked=address[0] in _UNSPECIFIED)

    @classmethod
    def unbound(cls, family: int, receive_bytes: int = _RECEIVE_BYTES) -> "UdpSocket":
        """A socket on any address and a free port. Raises OSError."""
        address = ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)
        return cls._bound(family, socket.SOCK_DGRAM, 0, address, receive_bytes, answers_as_asked=False)

    @classmethod
    def _bound(
        cls,
        family: int,
        kind: int,
        protocol: int,
        address: tuple[Any, ...],
        receive_bytes: int,
        *,
        answers_as_asked: bool,
    ) -> "UdpSocket":
        sock = socket.socket(family, kind, protocol)
        try:
            sock.bind(address)
            return cls(sock, receive_bytes, answers_as_asked=answers_as_asked)
        except OSError:
            sock.close()
            raise

    def tell_buffers(self) -> None:
        """Log once if the kernel gave smaller buffers than a busy router needs, and what to set."""
        for option, setting in ((socket.SO_RCVBUF, "net.core.rmem_max"), (socket.SO_SNDBUF, "net.core.wmem_max")):
            given = self._socket.getsockopt(socket.SOL_SOCKET, option) // (2 if sys.platform == "linux" else 1)
            if given < _SOCKET_BUFFER_BYTES:
                _log.info(
                    "UDP socket buffer is smaller than asked for; bursts may be lost",
                    wanted_bytes=_SOCKET_BUFFER_BYTES,
                    given_bytes=given,
                    sysctl=f"{setting}={_SOCKET_BUFFER_BYTES}",
                )

    @property
    def address(self) -> tuple[str, int]:
        """Where the socket is bound."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def blocked(self) -> bool:
        """Something waits until the socket is writable."""
        return bool(self._backlog)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def resolve(self, host_ip: str, port: int) -> Address:
        """A numeric address as this socket will report it. Raises OSError if it does not suit the socket's family."""
        found = socket.getaddrinfo(
            host_ip, port, self._socket.family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        return found[0][4]  # type: ignore[return-value]  # typeshed allows addresses of other families here

    def receive(self, limit: int) -> list[Datagram]:
        """What is there now; once there are `limit` datagrams no more are asked for (see `Datagrams.receive`)."""
        datagrams, error = self._datagrams.receive(limit)
        if error:
            # An ICMP error of an earlier datagram; the connection it concerns will notice by itself.
            self.dropped += 1
        return datagrams

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send in order, now or when the socket is writable (see `blocked`, `send_backlog`)."""
        if self._backlog:
            for data, address in datagrams:
                self._keep(data, 0, address)
        elif len(datagrams) == 1:
            self._send(datagrams[0][0], 0, datagrams[0][1])
        else:
            self._send_segmented(datagrams)

    def send_backlog(self) -> None:
        """The socket is writable again."""
        backlog = self._backlog
        while backlog:
            data, segment, address = backlog.popleft()
            if not self._try(data, segment, address):
                backlog.appendleft((data, segment, address))
                return

    def close(self) -> None:
        """Release the descriptor; the backlog is dropped."""
        self._backlog.clear()
        self._socket.close()

    def _send_segmented(self, datagrams: Sequence[Datagram]) -> None:
        """Runs of equal size to one address (the last may be shorter) leave as one."""
        start, count = 0, len(datagrams)
        while start < count:
            data, address = datagrams[start]
            size = len(data)
            stop, total = start + 1, size
            while (
                self._segmentation
                and stop < count
                and stop - start < _MAX_SEGMENTS
                and datagrams[stop][1] == address
                and len(datagrams[stop - 1][0]) == size
                and len(datagrams[stop][0]) <= size
                and total + size <= _MAX_SEGMENTED_BYTES
            ):
                total += len(datagrams[stop][0])
                stop += 1
            if stop - start == 1:
                self._send(data, 0, address)
            else:
                self._send(b"".join([datagrams[at][0] for at in range(start, stop)]), size, address)
            start = stop

    def _send(self, data: bytes, segment: int, address: Address) -> None:
        if self._backlog or not self._try(data, segment, address):
            self._keep(data, segment, address)

    def _try(self, data: bytes, segment: int, address: Address) -> bool:
        """False if the socket would block; errors count as loss."""
        error = self._datagrams.send(data, segment, address)
        if error in _WOULD_BLOCK:
            return False
        if segment and error in _CANNOT_SEGMENT:
            # The kernel or the device cannot segment: never ask again.
            self._segmentation = False
            _log.warning(
                "UDP segmentation offload does not work here; datagrams leave one by one", error=os.strerror(error)
            )
            for at in range(0, len(data), segment):
                self._send(data[at : at + segment], 0, address)
        elif error:
            self.dropped += 1
        return True

    def _keep(self, data: bytes, segment: int, address: Address) -> None:
        if len(self._backlog) < _BACKLOG:
            self._backlog.append((data, segment, address))
        else:
            self.dropped += 1
