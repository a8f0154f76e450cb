"""The metric families of `stargate-k8s-router`. Meaning of each: docs/kubernetes-router.md, "Metrics"."""

from typing import Final, TypeVar

from router.telemetry.families import Counter, Description, Family, Gauge

PREFIX: Final = "stargate_k8s_router_"
"""Before every name; existing dashboards use it."""

TUNNELS: Final = "server_identity"
"""`material_type` of the certificate of the tunnels."""
GRPC: Final = "grpc_server_identity"
"""`material_type` of the certificate of the gRPC port."""

F = TypeVar("F", bound=Family)


class Metrics:
    """All families of one process."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        self.quic_connections_total = self._counter(
            "quic_connections_total", "Tunnels of workers, by what became of them", "outcome"
        )
        self.tunnels_open = self._gauge("tunnels_open", "Tunnels that are relayed now")
        self.datagrams_dropped_total = self._counter(
            "datagrams_dropped_total", "Datagrams of tunnels that were not passed on", "reason"
        )
        self.tls_reloads_total = self._counter(
            "tls_reloads_total", "New certificate files, by whether they are used", "material_type", "result"
        )
        self.tls_certificate_expiry_seconds = self._gauge(
            "tls_certificate_expiry_seconds", "End of validity of the certificate in use (Unix time)", "material_type"
        )
        self.registrations_total = self._counter(
            "registrations_total", "Registrations of workers, by what became of them", "outcome"
        )
        self.registrations_open = self._gauge("registrations_open", "Registrations that are passed on now")
        self.watches_open = self._gauge("watches_open", "Watch streams that are open now")
        self.grpc_connections = self._gauge("grpc_connections", "Open connections of the gRPC port")
        self.targets = self._gauge("targets", "Routers in the list of targets")
        self.kubernetes_failures_total = self._counter(
            "kubernetes_failures_total", "Failed requests to the Kubernetes API", "reason"
        )
        for result in ("rejected", "success"):
            self.tls_reloads_total.create((TUNNELS, result))
        self._families.sort(key=lambda family: family.full_name)

    def render(self) -> bytes:
        """The exposition (Prometheus text format 0.0.4) of all families that have series."""
        out: list[str] = []
        for family in self._families:
            family.lines(out)
        return "".join(out).encode()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._kept(Counter(PREFIX, Description(name, text, labels)))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(PREFIX, Description(name, text, labels)))

    def _kept(self, family: F) -> F:
        self._families.append(family)
        return family
