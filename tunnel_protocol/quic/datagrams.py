"""Datagrams in and out of a non-blocking UDP socket, one system call each.

The Python twin of `datagram_speedups.pyx`, which takes many datagrams with one call and lets the kernel join them where it
can (Linux, `recvmmsg` and `UDP_GRO`). It is used instead where it was compiled.
"""

import errno
import socket
import struct

from tunnel_protocol.quic.engine import Address

Datagram = tuple[bytes, Address]

_UDP_SEGMENT = 103
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_CONTROL_BYTES = 128
_SOURCE_IS_GONE = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH)


class Datagrams:
    """Reads and writes; what went wrong is told as an error number, because a lost datagram is an ordinary event."""

    def __init__(self, sock: socket.socket, receive_bytes: int, *, answers_as_asked: bool = False) -> None:
        """`receive_bytes` is the largest datagram that is expected; what is longer is cut off.

        With `answers_as_asked` every address that `receive` tells ends with the address of this host at which the datagram
        arrived (`IP_PKTINFO`), and what is sent to it leaves from there: what a socket needs that is bound to all
        addresses. Raises OSError if the kernel does not tell.
        """
        self._socket = sock
        self._receive_bytes = receive_bytes
        self._answers_as_asked = answers_as_asked
        if answers_as_asked:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)

    def receive(self, limit: int) -> tuple[list[Datagram], int]:
        """What is there now, and the error that ended it, 0 if there was none.

        Nothing more is asked for once there are `limit`; compiled, what the last call brings (at most 1 MiB) comes on top.
        """
        datagrams: list[Datagram] = []
        receive, size = self._receive_as_asked if self._answers_as_asked else self._socket.recvfrom, self._receive_bytes
        try:
            for _ in range(limit):
                datagrams.append(receive(size))  # noqa: PERF401 - the list must survive the exception
        except BlockingIOError:
            pass
        except OSError as error:
            return datagrams, error.errno or errno.EIO
        return datagrams, 0

    def _receive_as_asked(self, size: int) -> Datagram:
        data, control, _flags, address = self._socket.recvmsg(size, _CONTROL_BYTES)
        for level, kind, found in control:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                address = (*address, found[4:8])
            elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                address = (*address, found[:16])
        return data, address

    def send(self, data: bytes, segment: int, address: Address) -> int:
        """Send one datagram, or datagrams of `segment` bytes each (0: `data` is one); 0 or an error number."""
        source = address[-1]
        if not isinstance(source, bytes):
            return self._send(data, segment, address, None)
        error = self._send(data, segment, address[:-1], source)
        if error in _SOURCE_IS_GONE:
            # The host has lost that address, perhaps, or it is one that only receives: the kernel chooses.
            error = self._send(data, segment, address[:-1], None)
        return error

    def _send(self, data: bytes, segment: int, to: tuple[str | int | bytes, ...], source: bytes | None) -> int:
        control = []
        if segment:
            control.append((socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", segment)))
        if source is not None and len(source) == 4:
            control.append((socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4x", 0, source)))
        elif source is not None:
            control.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, source + bytes(4)))
        try:
            if control:
                self._socket.sendmsg((data,), control, 0, to)
            else:
                self._socket.sendto(data, to)
        except BlockingIOError:
            return errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0
