"""One of several processes of a router, and the messages between it and its supervisor: lines of JSON on a socket pair.

They are about start, readiness and addresses; nothing of a request goes this way. A process without a supervisor (one process, the
default) has no such link. See docs/operations.md, "Several processes".
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from router.control_plane.replicas import Replica
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

LINK_VARIABLE: Final = "STARGATE_SUPERVISOR_FD"
"""The environment variable by which a supervisor names the descriptor of the link to a process that it starts."""

MESSAGE = Limit("supervisor.message", bytes=256 << 10)
"""One message of the link; a longer one ends it."""

MAX_MESSAGE_BYTES = MESSAGE.bytes or 0


class Serving(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor, once: all ports of the process are bound and served, but the shared ones."""

    addresses: dict[str, str]
    """`ip:port` by the name of the listener."""
    replica: Replica
    """What workers are told of the process."""


class State(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor, once a second and at changes; so it also says that the event loop runs."""

    ready: bool
    """Whether `/readyz` is 200."""
    listening: bool
    """Whether the shared ports are open."""


class Siblings(msgspec.Struct, tag=True, frozen=True):
    """From the supervisor: the other processes that workers should register with."""

    replicas: list[Replica]


class Listen(msgspec.Struct, tag=True, frozen=True):
    """From the supervisor: open or close the shared ports."""

    wanted: bool


ToSupervisor = Serving | State
FromSupervisor = Siblings | Listen


def encode(message: ToSupervisor | FromSupervisor) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode_from_supervisor(line: bytes) -> FromSupervisor:
    """Raises `msgspec.MsgspecError` if `line` is no message."""
    message: FromSupervisor = msgspec.json.decode(line, type=FromSupervisor)
    return message


def decode_to_supervisor(line: bytes) -> ToSupervisor:
    """Raises `msgspec.MsgspecError` if `line` is no message."""
    message: ToSupervisor = msgspec.json.decode(line, type=ToSupervisor)
    return message


def link_descriptor(environment: Mapping[str, str]) -> int | None:
    """The descriptor of the link to the supervisor; None for a process without one."""
    text = environment.get(LINK_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else None


class SupervisorLink:
    """The end of the link in a supervised process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.on_siblings: Callable[[tuple[Replica, ...]], None] = lambda _siblings: None
        """Called with the other processes, at each change."""
        self.on_listen: Callable[[bool], None] = lambda _wanted: None
        """Called with whether the shared ports should be open, at each change."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when the supervisor is gone."""
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, descriptor: int) -> "SupervisorLink":
        """Take over the descriptor; no callback is called before `start`. Raises OSError if it is no socket."""
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        sock.set_inheritable(False)
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MAX_MESSAGE_BYTES))

    def start(self) -> None:
        """Receive messages until the link ends."""
        self._task = asyncio.create_task(self._receive(), name="link to the supervisor")

    def send(self, message: ToSupervisor) -> None:
        """Send one message; without effect after the end of the supervisor."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def close(self) -> None:
        """End the link."""
        self._writer.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _receive(self) -> None:
        try:
            while line := await self._reader.readline():
                message = decode_from_supervisor(line)
                if isinstance(message, Siblings):
                    self.on_siblings(tuple(message.replicas))
                else:
                    self.on_listen(message.wanted)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.error("the link to the supervisor failed", error=str(error))
        self.on_end()
