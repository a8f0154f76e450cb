"""What SIGHUP looks at: files that are watched anyway, at once, and logs that were rotated away.

There from the first moment of the process, so that a signal during the start is harmless (docs/operations.md, "Reload").
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

_log = structlog.get_logger()


class Reloads:
    """Parts register what there is to look at; `request` looks at all of it."""

    def __init__(self) -> None:
        """Nothing is looked at yet."""
        self._looks: dict[str, Callable[[], Awaitable[None]]] = {}
        self._logs: list[Callable[[], None]] = []
        self._running: asyncio.Task[None] | None = None

    def look_at(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        """Await `look` at each request; `name` stands in the log if it raises."""
        self._looks[name] = look

    def reopen(self, log: Callable[[], None]) -> None:
        """Call `log` at each request: it opens its file again. A failure keeps the old one, and is logged by it."""
        self._logs.append(log)

    def request(self) -> None:
        """Look at every watched file now, and open logs again. What cannot be used is logged, and the old one stays.

        Secrets and token files need no more: they are read for each use. A request while the one before still runs adds nothing
        but the logs.
        """
        _log.info("reload requested")
        for reopen in self._logs:
            reopen()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._look_at_everything())

    async def _look_at_everything(self) -> None:
        for name, look in list(self._looks.items()):
            try:
                await look()
            except Exception:  # noqa: BLE001 - logged; one file that cannot be looked at does not keep the others from it
                _log.exception("reload failed", what=name)
