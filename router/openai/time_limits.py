"""The times at which a request of the front is ended, or its silent stream gets a comment. No I/O; seconds of the event loop."""

from typing import Final

from router.openai.settings import FrontSettings

TOO_LONG: Final = "The request took longer than this router allows."
NO_HEAD: Final = "No worker began to answer within the time that this router allows."
SILENT: Final = "The worker sent nothing for longer than this router allows."


class TimeLimits:
    """The limits of one request."""

    __slots__ = ("_settings", "commented_at", "read_at", "worker_sent_at")

    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        self.read_at = 0.0
        """When the request was complete."""
        self.worker_sent_at = 0.0
        """When the worker sent something, or could not because the client did not read."""
        self.commented_at = 0.0
        """When the last comment was sent."""

    def due(self, *, answered: bool, streaming: bool) -> list[tuple[float, str]]:
        """When each limit runs out, with the message of its error; the next comment has none.

        `answered`: the head of the answer is here; `streaming`: comments may be sent.
        """
        settings, found = self._settings, list[tuple[float, str]]()
        if settings.total_timeout_ms:
            found.append((self.read_at + settings.total_timeout_ms / 1000, TOO_LONG))
        if not answered:
            if settings.head_timeout_ms:
                found.append((self.read_at + settings.head_timeout_ms / 1000, NO_HEAD))
        else:
            if settings.idle_timeout_ms:
                found.append((self.worker_sent_at + settings.idle_timeout_ms / 1000, SILENT))
            if settings.keepalive_ms and streaming:
                found.append((max(self.worker_sent_at, self.commented_at) + settings.keepalive_ms / 1000, ""))
        return found
