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

    def next_at(self, *, answered: bool, streaming: bool) -> float:
        """When the next limit runs out, or a comment is due; 0 if that is never.

        `answered`: the head of the answer is here; `streaming`: comments may be sent.
        """
        settings, found = self._settings, 0.0
        if settings.total_timeout_ms:
            found = self.read_at + settings.total_timeout_ms / 1000
        if not answered:
            if settings.head_timeout_ms:
                found = _earlier(found, self.read_at + settings.head_timeout_ms / 1000)
            return found
        if settings.idle_timeout_ms:
            found = _earlier(found, self.worker_sent_at + settings.idle_timeout_ms / 1000)
        if streaming and settings.keepalive_ms:
            found = _earlier(found, self._comment_at())
        return found

    def reached(self, now: float, *, answered: bool) -> str | None:
        """The message of the limit that has run out by `now`; None if none has."""
        settings = self._settings
        if settings.total_timeout_ms and self.read_at + settings.total_timeout_ms / 1000 <= now:
            return TOO_LONG
        if not answered:
            if settings.head_timeout_ms and self.read_at + settings.head_timeout_ms / 1000 <= now:
                return NO_HEAD
        elif settings.idle_timeout_ms and self.worker_sent_at + settings.idle_timeout_ms / 1000 <= now:
            return SILENT
        return None

    def comment_is_due(self, now: float) -> bool:
        """Whether a stream has been silent for so long by `now` that it gets a comment."""
        return self._settings.keepalive_ms > 0 and self._comment_at() <= now

    def _comment_at(self) -> float:
        return max(self.worker_sent_at, self.commented_at) + self._settings.keepalive_ms / 1000


def _earlier(one: float, other: float) -> float:
    """The earlier of two times, of which the first may be 0 for never."""
    return other if not one or other < one else one
