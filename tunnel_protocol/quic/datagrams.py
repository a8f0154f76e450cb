"""Reads and writes datagrams of a non-blocking UDP socket, one system call each.

The Python version of `datagram_speedups.pyx`, which is used instead if it was compiled: that one reads many datagrams per system
call and lets the kernel coalesce them (Linux, `recvmmsg` and `UDP_GRO`).
"""

import errno
import socket
import struct

from tunnel_protocol.quic.engine import Address

Datagram = tuple[bytes, Address]

Run = tuple[bytes, int, Address]
"""Datagrams to one address in one buffer: the buffer, the size of each of them (the last may be shorter; 0: it is one datagram)."""

_UDP_SEGMENT = 103
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_CONTROL_BYTES = 128
_SOURCE_IS_GONE = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH)


class Datagrams:
    """Reads and writes datagrams. Errors are returned as errno, not raised, because losing a datagram is an ordinary event."""

    def __init__(self, sock: socket.socket, receive_bytes: int, *, answers_as_asked: bool = False) -> None:
        """`receive_bytes` is the size of the largest expected datagram; longer ones are truncated.

        With `answers_as_asked` every address that `receive` returns ends with the local address at which the datagram
        arrived (`IP_PKTINFO`), and `send` uses it as the source address. A socket that is bound to all addresses needs this.
        Raises OSError if the kernel does not support it.
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
        """The datagrams that can be read without waiting, and the errno that ended reading (0: none).

        Reading stops after `limit` datagrams; the compiled version returns all of its last system call (at most 1 MiB more).
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
        """Send `data` as datagrams of `segment` bytes each (0: as one datagram). Returns 0 or an errno."""
        source = address[-1]
        if not isinstance(source, bytes):
            return self._send(data, segment, address, None)
        error = self._send(data, segment, address[:-1], source)
        if error in _SOURCE_IS_GONE:
            # The host may no longer have this source address, or it cannot send from it: let the kernel choose.
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
