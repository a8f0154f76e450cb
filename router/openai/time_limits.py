"""The times at which a request of the front is ended, or its silent stream gets a comment. No I/O; monotonic seconds.

They are looked at every `tick_s`, so what they lead to comes up to that much later.
"""

from typing import Final

from router.openai.settings import FrontSettings

TOO_LONG: Final = "The request took longer than this router allows."
NO_HEAD: Final = "No worker began to answer within the time that this router allows."
SILENT: Final = "The worker sent nothing for longer than this router allows."


_LEAST_TICK_S: Final = 0.005


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
        silence_ms = self._settings.keepalive_ms
        return silence_ms > 0 and max(self.worker_sent_at, self.commented_at) + silence_ms / 1000 <= now


def tick_s(settings: FrontSettings) -> float:
    """How often the limits have to be looked at, in seconds: a tenth of the shortest, at most a second; 0 is never."""
    limits = (settings.head_timeout_ms, settings.idle_timeout_ms, settings.total_timeout_ms, settings.keepalive_ms)
    shortest = min((limit for limit in limits if limit), default=0)
    return min(1.0, max(_LEAST_TICK_S, shortest / 10_000)) if shortest else 0.0
