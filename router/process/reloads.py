"""What SIGHUP does: poll all polled files at once, replace the cached token, and open log files again after rotation.

Created before the start, so that a signal during the start has no effect (docs/operations.md, "Reload").
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

_log = structlog.get_logger()


class Reloads:
    """Parts of the router register callbacks; `request` calls all of them."""

    def __init__(self) -> None:
        """No callback is registered."""
        self._polls: dict[str, Callable[[], Awaitable[None]]] = {}
        self._logs: list[Callable[[], None]] = []
        self._running: asyncio.Task[None] | None = None

    def poll(self, name: str, poll: Callable[[], Awaitable[None]]) -> None:
        """Await `poll` at each request; if it raises, that is logged with `name`."""
        self._polls[name] = poll

    def reopen(self, log: Callable[[], None]) -> None:
        """Call `log` at each request to open its file again; it must keep the old file and log it if that fails."""
        self._logs.append(log)

    def request(self) -> None:
        """Poll every polled file now, replace the router's cached token, and open log files again.

        A file that cannot be used is logged, and the old content is kept. Secrets and token files are read for each use and
        need no reload. A request while the previous one is running only opens the log files again.
        """
        _log.info("reload requested")
        for reopen in self._logs:
            reopen()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._poll_everything())

    async def _poll_everything(self) -> None:
        for name, poll in list(self._polls.items()):
            try:
                await poll()
            except Exception:  # noqa: BLE001 - logged; one failing poll must not prevent the others
                _log.exception("reload failed", what=name)
