"""Whether a client has closed while its bytes are not being read, so that the event loop does not report the close.

That is the case while a worker does not take the body, or while several requests wait. Then the kernel is asked for the
state of the connection (Linux: `tcp(7)`, TCP_INFO); on other systems the close is seen at the next read or write.
"""

import socket
from typing import Final

_ESTABLISHED: Final = 1
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)  # not Final: mypyc takes the constant for an int


def peer_closed(sock: socket.socket | None) -> bool:
    """Whether the peer has closed, half-closed or reset the connection; False where the kernel cannot be asked."""
    if sock is None or _TCP_INFO is None:
        return False
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
    except OSError:
        return False
    return state[0] != _ESTABLISHED
