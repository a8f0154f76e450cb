"""Connects the live page of this process with the parts that it shows (docs/api.md)."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from router.operators.access import Access
from router.operators.explain_page import ExplainPage
from router.operators.live_document import Certificate
from router.operators.live_feed import LiveFeed
from router.operators.live_pages import live_pages
from router.operators.request_log import RequestLog
from router.operators.server import OperatorsServer
from router.operators.state_collector import Placed, RouterFacts, StateCollector
from router.process.opening import Base, Bound, TunnelParts
from router.process.policy import Policy
from router.telemetry import build


class LivePage:
    """The operators' port of one process."""

    def __init__(self, base: Base, bound: Bound, tunnels: TunnelParts, policy: Policy) -> None:
        self._base = base
        self._policy = policy
        self._identities = [one for one in (tunnels.identity, bound.grpc_identity) if one is not None]
        self._in_flight: Callable[[], Iterable[Placed]] = tuple
        self._not_ready: Callable[[], list[str]] = list
        self.requests = RequestLog(base.settings.stargate_id, time.monotonic, time.time)
        """Is told of each request that ends."""

    def follow(self, in_flight: Callable[[], Iterable[Placed]], not_ready: Callable[[], list[str]]) -> None:
        """From now on show the requests in flight, and the reasons against readiness."""
        self._in_flight, self._not_ready = in_flight, not_ready

    def server(self) -> OperatorsServer:
        """The server of the port, to be started."""
        base = self._base
        settings, metrics = base.settings, base.metrics
        token_file = settings.operators_token_file
        access = Access(None if token_file is None else Path(token_file))
        collector = StateCollector(
            base.registry, metrics, self.requests, self._facts(), loop_clock=asyncio.get_running_loop().time
        )
        feed = LiveFeed(collector)
        explain = ExplainPage(base.registry, self._policy.selector).answer
        return OperatorsServer(
            metrics,
            all_families=settings.metrics_families == "all",
            pages=live_pages(feed, explain, access, lambda: collector.live(countable=True)),
            access=access,
            feed=feed,
        )

    def _facts(self) -> RouterFacts:
        metrics = self._base.metrics
        return RouterFacts(
            stargate_id=self._base.settings.stargate_id,
            version=build.build_version(),
            commit=build.commit(),
            started_at=time.time(),
            not_ready=lambda: self._not_ready(),
            draining=lambda: bool(metrics.draining.value()),
            policy=self._policy.state,
            certificates=self._certificates,
            in_flight=lambda: self._in_flight(),
        )

    def _certificates(self) -> list[Certificate]:
        return [identity.state() for identity in self._identities]
