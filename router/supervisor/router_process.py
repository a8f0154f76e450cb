"""One process of a router, as its supervisor sees it: started with a plan, followed over the link, ended by signals."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import structlog

from router.process.supervision import (
    LINK_VARIABLE,
    MAX_MESSAGE_BYTES,
    FromSupervisor,
    Serving,
    decode_to_supervisor,
    encode,
)

_log = structlog.get_logger()


class RouterProcess:
    """A running process and the newest that it told."""

    def __init__(
        self, child: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, now: float
    ) -> None:
        """`now`: the time of the event loop."""
        self._child = child
        self._reader = reader
        self._writer = writer
        self.serving: Serving | None = None
        """Its addresses; None before it serves."""
        self.serving_since = now
        """When it began to serve."""
        self.ready = False
        """Whether it would answer `/readyz` with 200."""
        self.listening = False
        """Whether it has the shared ports open."""
        self.last_message_at = now
        """When its last message came."""

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], limit: int = MAX_MESSAGE_BYTES
    ) -> "RouterProcess":
        """Start `command` with a link. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = await asyncio.create_subprocess_exec(
                    *command,
                    env={**environment, LINK_VARIABLE: str(theirs.fileno())},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # A signal of the terminal is for the supervisor, which passes it on once.
                    process_group=0,
                )
            ours.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=limit)
        except BaseException:
            ours.close()
            raise
        return cls(child, reader, writer, asyncio.get_running_loop().time())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def send(self, message: FromSupervisor) -> None:
        """Send a message; one that does not read its messages is killed, as it does nothing else either."""
        if self._writer.transport.get_write_buffer_size() > MAX_MESSAGE_BYTES:
            _log.error("a process does not read its messages; it is killed", pid=self.pid)
            self.signal(signal.SIGKILL)
        elif not self._writer.is_closing():
            self._writer.write(encode(message))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        # The method of the library looks first whether the process has ended, and so takes the exit code from the task that waits for it.
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def run(self, on_change: Callable[[], None]) -> int:
        """Receive until the process ends; returns its exit code, negative for a signal. `on_change` is called at each change."""
        try:
            while line := await self._reader.readline():
                self._take(line)
                on_change()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.error("the link to a process failed; it is killed", pid=self.pid, error=str(error))
            self.signal(signal.SIGKILL)
        finally:
            self._writer.close()
        return await self._child.wait()

    def _take(self, line: bytes) -> None:
        message = decode_to_supervisor(line)
        self.last_message_at = asyncio.get_running_loop().time()
        if isinstance(message, Serving):
            self.serving = message
            self.serving_since = self.last_message_at
        else:
            self.ready, self.listening = message.ready, message.listening


def inherited_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the processes: without what is for their supervisor alone."""
    found = dict(os.environ if environment is None else environment)
    found.pop("STARGATE_PORTS_FILE", None)
    return found
