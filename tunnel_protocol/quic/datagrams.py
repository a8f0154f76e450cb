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


class Datagrams:
    """Reads and writes; what went wrong is told as an error number, because a lost datagram is an ordinary event."""

    def __init__(self, sock: socket.socket, receive_bytes: int) -> None:
        """`receive_bytes` is the largest datagram that is expected; what is longer is cut off."""
        self._socket = sock
        self._receive_bytes = receive_bytes

    def receive(self, limit: int) -> tuple[list[Datagram], int]:
        """What is there now, and the error that ended it, 0 if there was none.

        Nothing more is asked for once there are `limit`; compiled, what the last call brings (at most 1 MiB) comes on top.
        """
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

    def send(self, data: bytes, segment: int, address: Address) -> int:
        """Send one datagram, or datagrams of `segment` bytes each (0: `data` is one); 0 or an error number."""
        try:
            if segment:
                self._socket.sendmsg(
                    (data,), ((socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", segment)),), 0, address
                )
            else:
                self._socket.sendto(data, address)
        except BlockingIOError:
            return errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0
