"""Reads server-sent events of the operators' port, as a program that watches a router does."""

import json
import socket
from types import TracebackType
from typing import Any, Self


class Events:
    """One stream; iterate with `next_event`."""

    def __init__(self, address: str, *, host: str = "localhost", timeout_s: float = 10.0) -> None:
        name, _, port = address.rpartition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=timeout_s)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(f"GET /api/v1/events HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            header, _, value = line.decode().partition(":")
            self.headers[header.lower()] = value.strip()
        self._text = b""

    def next_event(self) -> tuple[str, dict[str, Any]]:
        """Name and data of the next event. Raises `EOFError` at the end of the stream, `TimeoutError` without one in time."""
        while True:
            head, found, rest = self._text.partition(b"\n\n")
            if not found:
                self._text += self._chunk()
                continue
            self._text = rest
            fields = dict(line.split(b": ", 1) for line in head.split(b"\n"))
            if b"data" in fields:
                return fields[b"event"].decode(), json.loads(fields[b"data"])

    def _chunk(self) -> bytes:
        size = int(self._file.readline() or b"0", 16)
        data = self._file.read(size)
        self._file.readline()
        if not size:
            raise EOFError
        return data

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
