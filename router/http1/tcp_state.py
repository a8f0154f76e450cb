"""Whether a client has left whose bytes are not being read at the moment, so that the event loop does not hear of its end.

That is the case while a worker does not take the body, or while several requests wait. The state of the connection is asked of
the kernel instead (Linux: `tcp(7)`, TCP_INFO); elsewhere the departure shows with the next read or write.
"""

import socket

_ESTABLISHED = 1
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)


def peer_closed(sock: socket.socket | None) -> bool:
    """Whether the peer has closed, half-closed or reset the connection."""
    if sock is None or _TCP_INFO is None:
        return False
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
    except OSError:
        return False
    return state[0] != _ESTABLISHED
