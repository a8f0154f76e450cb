"""A `QuicRelay` in this process, in front of echoing QUIC endpoints that stand for router pods."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from kubernetes_router.relay.flows import Target
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.relay.quic_relay import QuicRelay
from kubernetes_router.targets import NoTarget
from tunnel_protocol.quic.pod_tag import pod_tag
from tunnel_protocol.quic.tls import ClientTls


class Relay:
    """A relay and what it has told."""

    def __init__(
        self, pods: Mapping[str, Target | NoTarget], *, host: str = "127.0.0.1", idle_timeout_ms: int = 60_000
    ) -> None:
        self.pods = dict(pods)
        self.outcomes: Counter[Outcome] = Counter()
        self.dropped: Counter[Dropped] = Counter()
        self.relay = QuicRelay(
            host,
            0,
            resolve=lambda name: self.pods.get(name, NoTarget.UNKNOWN_NAME),
            tagged=self._tagged,
            idle_timeout_ms=idle_timeout_ms,
            on_outcome=self._on_outcome,
            on_dropped=self._on_dropped,
        )

    def _tagged(self, tag: bytes) -> list[Target]:
        return [at for name, at in self.pods.items() if pod_tag(name) == tag and not isinstance(at, NoTarget)]

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1

    def _on_dropped(self, reason: Dropped) -> None:
        self.dropped[reason] += 1

    @property
    def port(self) -> int:
        return self.relay.address[1]


@asynccontextmanager
async def relaying(
    pods: Mapping[str, Target | NoTarget], *, host: str = "127.0.0.1", idle_timeout_ms: int = 60_000
) -> AsyncIterator[Relay]:
    found = Relay(pods, host=host, idle_timeout_ms=idle_timeout_ms)
    await found.relay.start()
    try:
        yield found
    finally:
        await found.relay.close()


def naming(server_name: str) -> ClientTls:
    """TLS of a client that asks for `server_name` and trusts everybody."""
    return ClientTls(None, server_name, insecure=True)
