"""The retries that one request has used and what it must not choose again; decides whether another attempt follows.

Source: docs/proxy.md, "Retries".
"""

from router.ports.tunnels import TunnelError
from router.proxy import retry
from router.proxy.replay import ReplayBuffer
from router.proxy.retry import Verdict
from router.proxy.settings import NoRepeat, ProxySettings


class RetryState:
    """The counters, exclusions and deadline of one request. Times are monotonic seconds."""

    __slots__ = (
        "_deadline",
        "_settings",
        "attempts",
        "connect_retries",
        "failed_backends",
        "failed_clusters",
        "refused_for_capacity",
        "request_retries",
        "routing_retries",
    )

    def __init__(self, settings: ProxySettings, deadline: float | None) -> None:
        self._settings = settings
        self._deadline = deadline
        self.attempts = 0
        """Number of attempts begun."""
        self.connect_retries = 0
        """Number of attempts and dials made after a failure before a response head."""
        self.request_retries = 0
        """Number of attempts made after a retryable response."""
        self.routing_retries = 0
        """Number of waits for an eligible cluster."""
        self.refused_for_capacity = False
        """Whether the worker of the last attempt refused the request for lack of capacity."""
        self.failed_backends: set[str] = set()
        """Ids of inference servers that are not tried again."""
        self.failed_clusters: set[str] = set()
        """Ids of clusters that are not chosen again."""

    @property
    def may_connect_again(self) -> bool:
        """Whether the limit of retries after transport failures is not reached."""
        return self.connect_retries < self._settings.max_connect_retries

    @property
    def excludes_anything(self) -> bool:
        """Whether a worker or a cluster is excluded for this request."""
        return bool(self.failed_backends or self.failed_clusters)

    def after_failure(self, error: TunnelError, replay: ReplayBuffer, now: float, *, handed_over: bool) -> Verdict:
        """The verdict after an attempt that got no response head. `handed_over`: the tunnel was given the whole request."""
        no_repeat = self._settings.no_repeat
        return retry.verdict(
            budget_over=self._budget_over(now),
            retries_left=self.may_connect_again,
            replay=replay.state,
            accepted=no_repeat is NoRepeat.ACKNOWLEDGED and error.accepted,
            ambiguous=no_repeat is NoRepeat.HANDED_OVER and handed_over,
        )

    def after_answer(self, replay: ReplayBuffer, now: float) -> Verdict:
        """The verdict after a retryable response."""
        return retry.verdict(
            budget_over=self._budget_over(now),
            retries_left=self.request_retries < self._settings.max_request_retries,
            replay=replay.state,
        )

    def _budget_over(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline
