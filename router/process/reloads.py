"""What SIGHUP looks at: files that are polled anyway, at once, minted tokens, and logs that were rotated away.

There from the first moment of the process, so that a signal during the start is harmless (docs/operations.md, "Reload").
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

_log = structlog.get_logger()


class Reloads:
    """Parts register what there is to poll; `request` polls all of it."""

    def __init__(self) -> None:
        """Nothing is polled yet."""
        self._polls: dict[str, Callable[[], Awaitable[None]]] = {}
        self._logs: list[Callable[[], None]] = []
        self._running: asyncio.Task[None] | None = None

    def poll(self, name: str, poll: Callable[[], Awaitable[None]]) -> None:
        """Await `poll` at each request; `name` stands in the log if it raises."""
        self._polls[name] = poll

    def reopen(self, log: Callable[[], None]) -> None:
        """Call `log` at each request: it opens its file again. A failure keeps the old one, and is logged by it."""
        self._logs.append(log)

    def request(self) -> None:
        """Look at every polled file now, mint the router's token anew, and open logs again.

        What cannot be used is logged, and the old one stays. Secrets and token files need no more: they are read for each use. A
        request while the one before still runs adds nothing but the logs.
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
            except Exception:  # noqa: BLE001 - logged; one file that cannot be looked at does not keep the others from it
                _log.exception("reload failed", what=name)
