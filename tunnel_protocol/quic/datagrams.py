"""Datagrams in and out of a non-blocking UDP socket, one system call each.

The Python twin of `datagram_speedups.pyx`, which takes many datagrams with one call and lets the kernel join them where it
can (Linux, `recvmmsg` and `UDP_GRO`). It is used instead where it was compiled.
"""

import errno
import socket
import struct

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.engine import Address

Datagram = tuple[bytes, Address]

_UDP_SEGMENT = 103


_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_CONTROL_BYTES = 128
_SOURCE_IS_GONE = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH)

SOURCES = Limit("udp.source_addresses", pieces=65_536)
"""Peers of which a socket on all addresses knows which of them they use; beyond it the one not heard of for longest is forgotten."""


class Datagrams:
    """Reads and writes; what went wrong is told as an error number, because a lost datagram is an ordinary event."""

    def __init__(self, sock: socket.socket, receive_bytes: int, *, answers_as_asked: bool = False) -> None:
        """`receive_bytes` is the largest datagram that is expected; what is longer is cut off.

        With `answers_as_asked` datagrams to a peer leave from that address of this host to which its last one came
        (`IP_PKTINFO`): what a socket needs that is bound to all addresses.
        """
        self._socket = sock
        self._receive_bytes = receive_bytes
        self._v4 = sock.family == socket.AF_INET
        self._sources: dict[Address, bytes] | None = None
        """Which address of this host each peer uses, as the kernel writes it; heard of longest ago first."""
        if answers_as_asked:
            level, option = (socket.IPPROTO_IP, _IP_PKTINFO) if self._v4 else (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO)
            sock.setsockopt(level, option, 1)
            self._sources = {}

    def receive(self, limit: int) -> tuple[list[Datagram], int]:
        """What is there now, and the error that ended it, 0 if there was none.

        Nothing more is asked for once there are `limit`; compiled, what the last call brings (at most 1 MiB) comes on top.
        """
        if self._sources is not None:
            return self._receive_with_destination(limit, self._sources)
        datagrams: list[Datagram] = []
        receive, size = self._socket.recvfrom, self._receive_bytes
        try:
            for _ in range(limit):
                datagrams.append(receive(size))  # noqa: PERF401 - the list must survive the exception
        except BlockingIOError:
            pass
        except OSError as error:
            return datagrams, error.errno or errno.EIO
        return datagrams, 0

    def _receive_with_destination(self, limit: int, sources: dict[Address, bytes]) -> tuple[list[Datagram], int]:
        datagrams: list[Datagram] = []
        try:
            for _ in range(limit):
                data, control, _flags, address = self._socket.recvmsg(self._receive_bytes, _CONTROL_BYTES)
                for level, kind, found in control:
                    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                        self._heard(sources, address, found[4:8])
                    elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                        self._heard(sources, address, found[:16])
                datagrams.append((data, address))
        except BlockingIOError:
            pass
        except OSError as error:
            return datagrams, error.errno or errno.EIO
        return datagrams, 0

    def _heard(self, sources: dict[Address, bytes], address: Address, source: bytes) -> None:
        sources.pop(address, None)
        sources[address] = source
        if len(sources) > (SOURCES.pieces or 0):
            del sources[next(iter(sources))]

    def send(self, data: bytes, segment: int, address: Address) -> int:
        """Send one datagram, or datagrams of `segment` bytes each (0: `data` is one); 0 or an error number."""
        source = None if self._sources is None else self._sources.get(address)
        error = self._send(data, segment, address, source)
        if error in _SOURCE_IS_GONE and source is not None and self._sources is not None:
            # The host has lost that address, perhaps: the kernel chooses until the peer is heard of again.
            self._sources.pop(address, None)
            error = self._send(data, segment, address, None)
        return error

    def _send(self, data: bytes, segment: int, address: Address, source: bytes | None) -> int:
        control = []
        if segment:
            control.append((socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", segment)))
        if source is not None and self._v4:
            control.append((socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4x", 0, source)))
        elif source is not None:
            control.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, source + bytes(4)))
        try:
            if control:
                self._socket.sendmsg((data,), control, 0, address)
            else:
                self._socket.sendto(data, address)
        except BlockingIOError:
            return errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0
