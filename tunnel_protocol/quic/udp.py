"""A non-blocking UDP socket that receives and sends datagrams in batches; datagrams of equal size are sent in one system call.

UDP segmentation offload (Linux, `UDP_SEGMENT`) is used if the kernel supports it. Datagrams that the kernel does not accept at
once are kept in a bounded backlog; above its limit they are dropped, which QUIC handles as packet loss. A datagram for which the
kernel returns any other error is dropped too: an error affects only its datagram.
"""

import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import structlog

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.datagrams import Datagram, Run
from tunnel_protocol.quic.engine import Address

try:
    from tunnel_protocol.quic.datagram_speedups import Datagrams
except ImportError:
    from tunnel_protocol.quic.datagrams import Datagrams

_log = structlog.get_logger()

_SOCKET_BUFFER_BYTES: Final = 4 << 20
_RECEIVE_BYTES: Final = 2_048
_MAX_SEGMENTS: Final = 64
_MAX_SEGMENTED_BYTES: Final = 65_000
BACKLOG: Final = Limit("udp.send_backlog", bytes=16 << 20, pieces=1_024)
"""Datagrams (or segmented batches) waiting until the socket is writable; more are dropped (packet loss to QUIC)."""

_BACKLOG: Final = BACKLOG.pieces or 0
_BACKLOG_BYTES: Final = BACKLOG.bytes or 0
_WOULD_BLOCK: Final = (errno.EAGAIN, errno.EWOULDBLOCK)
_CANNOT_SEGMENT: Final = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
_REPORT_AFTER_FAILURES: Final = 16
"""Consecutive receive errors without a datagram in between that count as a persistent failure; a single one is ignored."""
_UNSPECIFIED: Final = ("0.0.0.0", "::")
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
"""Linux: set Don't Fragment and ignore the kernel's cached path MTU, because QUIC probes the path itself (`path_mtu`)."""


class UdpSocket:
    """A UDP socket; owns the file descriptor. The caller waits until it is readable or writable."""

    def __init__(
        self,
        sock: socket.socket,
        receive_bytes: int = _RECEIVE_BYTES,
        *,
        linux: bool = sys.platform == "linux",
        datagrams: type[Datagrams] = Datagrams,
        answers_as_asked: bool = False,
    ) -> None:
        """With `answers_as_asked` (Linux) a peer is answered from the local address to which it sent."""
        self._socket = sock
        self._segmentation = linux
        self._backlog: deque[tuple[bytes, int, Address]] = deque()
        self._backlog_bytes = 0
        self._failures = 0
        self.dropped = 0
        """Number of datagrams (or segmented batches) that the kernel refused or that did not fit into the backlog."""
        self.too_large = 0
        """Bytes of the last datagram refused as too large for the interface (EMSGSIZE); its reader sets it to 0."""
        self._answers_as_asked = answers_as_asked and linux
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._datagrams = datagrams(sock, max(receive_bytes, _RECEIVE_BYTES), answers_as_asked=self._answers_as_asked)
        if linux:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)

    @classmethod
    def bind(cls, host: str, port: int, receive_bytes: int = _RECEIVE_BYTES) -> "UdpSocket":
        """A socket bound to `host` and `port`, or to all addresses of this host if `host` is unspecified. Raises OSError."""
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        return cls._bound(family, kind, protocol, address, receive_bytes, answers_as_asked=address[0] in _UNSPECIFIED)

    @classmethod
    def unbound(cls, family: int, receive_bytes: int = _RECEIVE_BYTES) -> "UdpSocket":
        """A socket of `family` on any address and a free port. Raises OSError."""
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

    def log_buffers(self) -> None:
        """Log if the kernel grants smaller socket buffers than a busy router needs, with the sysctl to set."""
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
        """Host and port the socket is bound to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def blocked(self) -> bool:
        """Whether the backlog holds datagrams that wait until the socket is writable."""
        return bool(self._backlog)

    @property
    def unreadable(self) -> bool:
        """Whether receiving has failed many times in a row, so that the caller must pause."""
        return self._failures >= _REPORT_AFTER_FAILURES

    def fileno(self) -> int:
        """The file descriptor, for the event loop."""
        return self._socket.fileno()

    def resolve(self, host_ip: str, port: int) -> Address:
        """A numeric address in the form that `receive` returns. Raises OSError if it does not suit the socket's family."""
        family = self._socket.family
        found = socket.getaddrinfo(
            host_ip, port, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        address: Address = found[0][4]  # type: ignore[assignment]  # typeshed allows addresses of other families here
        if self._answers_as_asked:
            # `receive` appends the local address at which answers arrive: ask the kernel which one it will use.
            with socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect(address)
                local = socket.inet_pton(family, route.getsockname()[0].partition("%")[0])
            address = (address[0], address[1], local) if len(address) == 2 else (*address[:4], local)
        return address

    def receive(self, limit: int) -> list[Datagram]:
        """The datagrams that can be read without waiting; reading stops after `limit` datagrams (see `Datagrams.receive`)."""
        datagrams, error = self._datagrams.receive(limit)
        if error:
            # An ICMP error for an earlier datagram; loss recovery of its connection handles the loss.
            self.dropped += 1
            self._failures = 0 if datagrams else self._failures + 1
            if self._failures == _REPORT_AFTER_FAILURES:
                _log.warning("UDP socket cannot be read", error=os.strerror(error))
        elif self._failures:
            self._failures = 0
        return datagrams

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send in order, now or when the socket becomes writable (see `blocked`, `send_backlog`)."""
        self.send_runs([(data, 0, address) for data, address in datagrams])

    def send_runs(self, runs: Sequence[Run]) -> None:
        """Send in order, now or when the socket becomes writable."""
        if self._backlog:
            for data, segment, address in runs:
                self._keep(data, segment, address)
        elif len(runs) == 1:
            self._send(*runs[0])
        else:
            self._send_joined(runs)

    def send_backlog(self) -> None:
        """Send the backlog; call this when the socket is writable."""
        backlog = self._backlog
        while backlog:
            waiting = backlog.popleft()
            self._backlog_bytes -= len(waiting[0])
            if not self._try(*waiting):
                backlog.appendleft(waiting)
                self._backlog_bytes += len(waiting[0])
                return

    def close(self) -> None:
        """Close the socket; the backlog is dropped."""
        self._backlog.clear()
        self._backlog_bytes = 0
        self._socket.close()

    def _send_joined(self, runs: Sequence[Run]) -> None:
        """Send what follows one another in datagrams of equal size to one address in one system call each."""
        start, count = 0, len(runs)
        while start < count:
            data, segment, address = runs[start]
            size = segment or len(data)
            stop, total = start + 1, len(data)
            while self._segmentation and stop < count and total % size == 0:
                following, its_segment, its_address = runs[stop]
                total += len(following)
                if (
                    (its_segment or len(following)) > size
                    or (its_segment and its_segment != size)
                    or its_address != address
                    or total > min(_MAX_SEGMENTED_BYTES, _MAX_SEGMENTS * size)
                ):
                    break
                stop += 1
            if stop - start == 1:
                self._send(data, segment, address)
            else:
                self._send(b"".join([runs[at][0] for at in range(start, stop)]), size, address)
            start = stop

    def _send(self, data: bytes, segment: int, address: Address) -> None:
        if segment and not self._segmentation:
            for at in range(0, len(data), segment):
                self._send(data[at : at + segment], 0, address)
            return
        if self._backlog or not self._try(data, segment, address):
            self._keep(data, segment, address)

    def _try(self, data: bytes, segment: int, address: Address) -> bool:
        """Send; False if the socket would block. Other errors count as packet loss."""
        error = self._datagrams.send(data, segment, address)
        if not error:
            return True
        if error in _WOULD_BLOCK:
            return False
        if segment and error in _CANNOT_SEGMENT:
            return self._send_one_by_one(data, segment, address, error)
        self.dropped += 1
        if error == errno.EMSGSIZE and not segment:
            self.too_large = len(data)
        return True

    def _send_one_by_one(self, data: bytes, segment: int, address: Address, error: int) -> bool:
        """Send the datagrams of a segmented batch that the kernel refused one by one. False if the socket would block.

        If the first datagram is sent, the kernel or the device cannot segment, and segmentation is switched off. Otherwise the
        datagrams or their address are the cause (too large, port 0), and segmentation stays on: a peer must not switch it off.
        """
        refused = self._datagrams.send(data[:segment], 0, address)
        if refused in _WOULD_BLOCK:
            return False
        if refused:
            self.dropped += 1
            if refused == errno.EMSGSIZE:
                self.too_large = segment
            return True
        if self._segmentation:
            self._segmentation = False
            _log.warning(
                "UDP segmentation offload does not work here; datagrams leave one by one", error=os.strerror(error)
            )
        pieces = [data[at : at + segment] for at in range(segment, len(data), segment)]
        for number, piece in enumerate(pieces):
            if not self._try(piece, 0, address):
                self._keep_first(pieces[number:], address)
                break
        return True

    def _keep_first(self, pieces: list[bytes], address: Address) -> None:
        """Put the rest of a batch at the front of the backlog, because it is older than the backlog."""
        kept = pieces[: _BACKLOG - len(self._backlog)]
        self.dropped += len(pieces) - len(kept)
        self._backlog.extendleft([(piece, 0, address) for piece in reversed(kept)])
        self._backlog_bytes += sum(map(len, kept))

    def _keep(self, data: bytes, segment: int, address: Address) -> None:
        if len(self._backlog) < _BACKLOG and self._backlog_bytes + len(data) <= _BACKLOG_BYTES:
            self._backlog.append((data, segment, address))
            self._backlog_bytes += len(data)
        else:
            self.dropped += 1
