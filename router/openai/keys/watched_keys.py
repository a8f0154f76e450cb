"""The keys in force: read from the file at the start, replaced as a whole when the file changes.

A changed file is decoded in full before any of it is used; one that cannot be used is logged once, and the last good one is kept.
"""

import asyncio
from pathlib import Path

import structlog

from router.openai.keys.key_file import KeyFile, KeyFileError, decode
from router.openai.keys.key_store import read_key_file
from router.openai.keys.key_table import KeyTable
from router.telemetry.metrics import Metrics
from tunnel_protocol.small_file import FileReader, SmallFileError

_log = structlog.get_logger()


class WatchedKeys:
    """Owns the table of keys; `poll` is called periodically and by a reload."""

    def __init__(
        self, path: Path, content: bytes, metrics: Metrics, reader: FileReader, *, limits_allowed: bool = True
    ) -> None:
        """`content` is what the file has now; `limits_allowed=False`: a file with limits is refused. Raises `KeyFileError`."""
        self._limits_allowed = limits_allowed
        self._path = path
        self._reader = reader
        self._metrics = metrics
        self._polling = asyncio.Lock()
        self._active = content
        self._refused: bytes | None = None
        self._unreadable: str | None = None
        self.table = KeyTable(_usable(content, limits_allowed=limits_allowed).callers())
        self._note_success()

    @classmethod
    def load(cls, path: Path, metrics: Metrics, *, limits_allowed: bool = True) -> "WatchedKeys":
        """Read the file. Raises `SmallFileError` or `KeyFileError`."""
        reader = FileReader()
        content = reader.run(str(path), lambda: read_key_file(path))
        return cls(path, content, metrics, reader, limits_allowed=limits_allowed)

    @staticmethod
    def read(path: Path) -> KeyFile:
        """What is in the file now. Raises `SmallFileError` or `KeyFileError`."""
        return decode(FileReader().run(str(path), lambda: read_key_file(path)))

    async def poll(self) -> None:
        """Read the file, and replace the table if it changed and can be used."""
        async with self._polling:
            path, active, refused, limits_allowed = self._path, self._active, self._refused, self._limits_allowed

            def read() -> tuple[bytes, KeyTable | KeyFileError | None]:
                content = read_key_file(path)
                if content in (active, refused):
                    return content, None
                try:
                    # Here, because thousands of keys take longer than the event loop should stand still.
                    return content, KeyTable(_usable(content, limits_allowed=limits_allowed).callers())
                except KeyFileError as error:
                    return content, error

            try:
                content, found = await self._reader.result(str(path), read)
            except SmallFileError as error:
                self._refuse(None, error.reason)
                return
            if content == active:
                self._refused = self._unreadable = None
                self._metrics.openai_keys_last_reload_success.set(1)
            elif isinstance(found, KeyFileError):
                self._refuse(content, str(found))
            elif found is not None:
                self._active, self._refused, self._unreadable = content, None, None
                self.table = found
                self._metrics.openai_keys_reloads_total.inc(("success",))
                self._note_success()

    def _refuse(self, content: bytes | None, why: str) -> None:
        """Count and log a refused file: once per distinct content, and once per distinct error of one that cannot be read."""
        self._metrics.openai_keys_last_reload_success.set(0)
        if content is None:
            if why == self._unreadable:
                return
            self._unreadable = why
        self._refused = content
        self._metrics.openai_keys_reloads_total.inc(("rejected",))
        _log.warning("API key file rejected; retaining the last good one", path=str(self._path), error=why)

    def _note_success(self) -> None:
        self._metrics.openai_keys.set(len(self.table))
        self._metrics.openai_keys_last_reload_success.set(1)
        _log.info("API keys loaded", path=str(self._path), keys=len(self.table))


def _usable(content: bytes, *, limits_allowed: bool) -> KeyFile:
    """The file with this content. Raises `KeyFileError`, also for limits that are not allowed."""
    found = decode(content)
    if found.with_limits and not limits_allowed:
        raise KeyFileError("limits of several processes need --openai-redis-url", f"the key '{found.with_limits[0]}'")
    return found
