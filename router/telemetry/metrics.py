"""Defines every metric of the router: name, help text, labels.

Two sets. The *contract* set is that of the reference router, which existing dashboards use: names, labels, label values and
buckets do not change. The *additional* set may grow. `GET /metrics` shows the contract set (and both if so configured),
`GET /metrics/all` always both. Meaning of each family: docs/operations.md, "Metrics".

Use: `metrics.requests_total.inc((routing_key, model, inference_server_id, status))`; labels are a tuple in the order written
here; an absent routing key is the empty string. A call costs less than a microsecond and does not fail for any label value:
`LabelBounds` limits the values that clients and workers choose; further ones are added up under `__overflow__`.
"""

from collections.abc import Hashable
from typing import TypeVar

from router.telemetry.families import OVERFLOW, Counter, Description, Family, Gauge, Histogram, Labels
from router.telemetry.settings import METRICS_PREFIX
from tunnel_protocol.limit import Limit

F = TypeVar("F", bound=Family)

DURATION_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROUTING_BOUNDS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1)
LONG_DURATION_BOUNDS_S = (*DURATION_BOUNDS_S, 30, 60, 120)
LONG_ROUTING_BOUNDS_S = (*ROUTING_BOUNDS_S, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
REPLAY_BOUNDS_BYTES = (0, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
WIDE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

REGISTERED_TARGETS = Limit("metrics.registered_targets", pieces=100_000)
"""Distinct (routing key, model) pairs that workers have served since the start; further ones count as unregistered."""

UNREGISTERED_TARGETS = Limit("metrics.unregistered_targets", pieces=1_000)
"""Distinct (routing key, model) pairs recorded that no worker has registered."""

REASONS = Limit("metrics.reasons", pieces=100)
"""Distinct values of a `reason` label per family."""

KEY_IDS = Limit("metrics.key_ids", pieces=10_000)
"""Distinct ids of API keys and accounts recorded."""

UNKNOWN_TARGET = ("", "")
"""The labels of all targets that nobody has registered."""

_MAX_REGISTERED = REGISTERED_TARGETS.pieces or 0
_MAX_UNREGISTERED = UNREGISTERED_TARGETS.pieces or 0
_MAX_REASONS = REASONS.pieces or 0
_MAX_KEY_IDS = KEY_IDS.pieces or 0


class LabelBounds:
    """Limits the label values that clients and workers choose: unregistered targets, reasons, and ids of API keys.

    A target counts as registered from its first value in `active_inference_servers` on.
    """

    def __init__(self) -> None:
        self._registered: set[tuple[str, str]] = set()
        self._unregistered: set[Hashable] = set()
        self._reasons: dict[str, set[Hashable]] = {}
        self._key_ids: set[Hashable] = set()

    def register(self, routing_key: str, model: str) -> None:
        """Record this target under its own name from now on, unless too many were registered before."""
        if len(self._registered) < _MAX_REGISTERED:
            self._registered.add((routing_key, model))
            self._unregistered.discard((routing_key, model))

    def admit(self, family: str, label_names: Labels, labels: Labels) -> Labels:
        """See `LabelGuard`."""
        values = dict(zip(label_names, labels, strict=True))
        if "model" in values and "routing_key" in values and not self._target(values["routing_key"], values["model"]):
            values["routing_key"] = values["model"] = OVERFLOW
        if "reason" in values and not _fits(self._reasons.setdefault(family, set()), values["reason"], _MAX_REASONS):
            values["reason"] = OVERFLOW
        if "key_id" in values and not _fits(self._key_ids, values["key_id"], _MAX_KEY_IDS):
            values["key_id"] = OVERFLOW
        return tuple(values.values())

    def _target(self, routing_key: str, model: str) -> bool:
        key = (routing_key, model)
        return key == UNKNOWN_TARGET or key in self._registered or _fits(self._unregistered, key, _MAX_UNREGISTERED)


def _fits(known: set[Hashable], value: Hashable, limit: int) -> bool:
    if value in known:
        return True
    if len(known) >= limit:
        return False
    known.add(value)
    return True


class Metrics:
    """All families of one router process."""

    def __init__(self, prefix: str = METRICS_PREFIX, *, as_of_0_18: bool = True) -> None:
        """`prefix` is put before every name. Raises `MetricNameError` if a name is not legal with it.

        `as_of_0_18`: the contract set is that of release line 0.18, not of 0.11 (docs/compatibility.md).
        """
        self._prefix = prefix
        self._as_of_0_18 = as_of_0_18
        self._bounds = LabelBounds()
        self._contract: list[Family] = []
        self._additional: list[Family] = []
        self._add_contract()
        self._add_additional()
        self._contract.sort(key=lambda family: family.full_name)
        self._additional.sort(key=lambda family: family.full_name)
        for result in ("rejected", "success"):
            self.tls_reloads_total.create(("server_identity", result))
        self.proxy_ambiguous_delivery_total.create()
        if as_of_0_18:
            self.requests_total.create((*UNKNOWN_TARGET, "", "404"))

    def set_active_inference_servers(self, routing_key: str | None, model: str, count: int) -> None:
        """Set the number of routable inference servers of a target, and register the target with `LabelBounds`."""
        self._bounds.register(routing_key or "", model)
        self.active_inference_servers.set(count, (routing_key or "", model))

    def contract_names(self) -> frozenset[str]:
        """The full names of the contract set."""
        return frozenset(family.full_name for family in self._contract)

    def render(self, *, additional: bool = False) -> bytes:
        """The exposition of the contract set, or with `additional` of all families; those without series are left out."""
        families = self._contract
        if additional:
            families = sorted(families + self._additional, key=lambda family: family.full_name)
        out: list[str] = []
        for family in families:
            family.lines(out)
        return "".join(out).encode()

    def _counter(self, name: str, text: str, *labels: str, contract: bool = False) -> Counter:
        return self._kept(Counter(self._prefix, Description(name, text, labels), self._bounds), contract=contract)

    def _gauge(self, name: str, text: str, *labels: str, contract: bool = False) -> Gauge:
        return self._kept(Gauge(self._prefix, Description(name, text, labels), self._bounds), contract=contract)

    def _histogram(
        self, name: str, text: str, bounds: tuple[float, ...], *labels: str, contract: bool = False
    ) -> Histogram:
        description = Description(name, text, labels)
        return self._kept(Histogram(self._prefix, description, bounds, self._bounds), contract=contract)

    def _kept(self, family: F, *, contract: bool) -> F:
        (self._contract if contract else self._additional).append(family)
        return family

    def _add_contract(self) -> None:
        self.requests_total = self._counter(
            "requests_total",
            "Requests that reached routing, by final status",
            *("routing_key", "model", "inference_server_id", "status"),
            contract=True,
        )
        self.proxy_attempts_total = self._counter(
            "proxy_attempts_total",
            "Upstream attempts by result",
            *("routing_key", "model", "inference_server_id", "result"),
            contract=True,
        )
        self.proxy_retries_total = self._counter(
            "proxy_retries_total", "Retries by reason", "routing_key", "model", "reason", contract=True
        )
        self.routing_selections_total = self._counter(
            "routing_selections_total",
            "Cluster selections used for attempts",
            *("routing_key", "model", "algorithm", "selection"),
            contract=True,
        )
        self.routing_kv_free_token_fallback_selections_total = self._counter(
            "routing_kv_free_token_fallback_selections_total",
            "Selections made after skipping a better candidate for lack of free KV cache tokens",
            *("routing_key", "model", "algorithm"),
            contract=True,
        )
        self.routing_expressions_total = self._counter(
            "routing_expressions_total",
            "Requests with a routing expression, by how its settings were found (hit, build, rebuild)",
            *("algorithm", "cache"),
            contract=True,
        )
        self.routing_expression_cache_entries = self._gauge(
            "routing_expression_cache_entries", "Targets whose routing expressions are kept", contract=True
        )
        self.proxy_retry_exhausted_total = self._counter(
            "proxy_retry_exhausted_total",
            "Retryable outcomes that were not retried",
            *("routing_key", "model", "reason"),
            contract=True,
        )
        self.admission_rejections_total = self._counter(
            "admission_rejections_total",
            "Requests refused before routing by input-work admission",
            *("routing_key", "model", "reason"),
            contract=True,
        )
        self.quic_connection_evictions_total = self._counter(
            "quic_connection_evictions_total",
            "Direct tunnels given up before a reconnect",
            *("inference_server_id", "reason"),
            contract=True,
        )
        self.quic_hot_path_reconnect_total = self._counter(
            "quic_hot_path_reconnect_total",
            "Reconnects of direct tunnels on behalf of a request",
            *("inference_server_id", "result"),
            contract=True,
        )
        self.tls_reloads_total = self._counter(
            "tls_reloads_total", "Reloads of TLS material by result", "material_type", "result", contract=True
        )
        self.proxy_replay_buffer_bytes = self._histogram(
            "proxy_replay_buffer_bytes",
            "Request body bytes retained for replay, per attempt",
            REPLAY_BOUNDS_BYTES,
            *("model",),
            contract=True,
        )
        self.proxy_duration_seconds = self._histogram(
            "proxy_duration_seconds",
            "Time from request arrival to response headers, per attempt that produced headers",
            LONG_DURATION_BOUNDS_S if self._as_of_0_18 else DURATION_BOUNDS_S,
            *("routing_key", "model", "inference_server_id"),
            contract=True,
        )
        self.routing_duration_seconds = self._histogram(
            "routing_duration_seconds",
            "Time from request arrival to the first selection",
            LONG_ROUTING_BOUNDS_S if self._as_of_0_18 else ROUTING_BOUNDS_S,
            *("routing_key", "model"),
            contract=True,
        )
        self.proxy_ambiguous_delivery_total = self._counter(
            "proxy_ambiguous_delivery_total",
            "Requests not sent again because a worker may have processed them",
            contract=self._as_of_0_18,
        )
        self.active_inference_servers = self._gauge(
            "active_inference_servers", "Routable inference servers of a target", "routing_key", "model", contract=True
        )
        self.tls_certificate_expiry_seconds = self._gauge(
            "tls_certificate_expiry_seconds",
            "Unix time at which the served certificate chain expires",
            "material_type",
            contract=True,
        )

    def _add_additional(self) -> None:
        self._add_process()
        self._add_requests()
        self._add_workers()
        self._add_openai()

    def _add_process(self) -> None:
        self.build_info = self._gauge("build_info", "Always 1; the build in its labels", "version", "commit")
        self.draining = self._gauge("draining", "1 while the process drains")
        self.not_ready = self._gauge("not_ready", "1 for each reason why /readyz is 503", "reason")
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How late the event loop ran a timer, sampled", WIDE_BOUNDS_S
        )
        self.log_lines_dropped_total = self._counter(
            "log_lines_dropped_total",
            "Lines that could not be written, or not soon enough; log is log or key_log",
            "log",
        )
        self.tls_last_reload_success = self._gauge(
            "tls_last_reload_success", "1 if the last look at the TLS files found a usable identity", "material_type"
        )
        self.tls_last_reload_timestamp_seconds = self._gauge(
            "tls_last_reload_timestamp_seconds", "Unix time of the last change of TLS material", "material_type"
        )
        self.lb_config_reloads_total = self._counter(
            "lb_config_reloads_total", "Changes of the load-balancer file by result (success, rejected)", "result"
        )
        self.lb_config_last_reload_success = self._gauge(
            "lb_config_last_reload_success", "1 if the load-balancer file as it is now was accepted"
        )
        self.lb_config_info = self._gauge(
            "lb_config_info", "Always 1; digest and default algorithm of the active configuration", "hash", "default_lb"
        )
        self.look_again_failures_total = self._counter(
            "look_again_failures_total", "Rounds of a look-again task that failed unexpectedly", "task"
        )
        self.look_again_last_success_timestamp_seconds = self._gauge(
            "look_again_last_success_timestamp_seconds", "Unix time of the last round that did not fail", "task"
        )
        self.discovery_failures_total = self._counter(
            "discovery_failures_total", "Failed DNS look-ups of peer discovery", "kind"
        )
        self.discovery_routers = self._gauge("discovery_routers", "Routers in the published snapshot")

    def _add_requests(self) -> None:
        target = ("routing_key", "model")
        self.requests_in_flight = self._gauge("requests_in_flight", "Requests being proxied right now")
        self.requests_rejected_total = self._counter(
            "requests_rejected_total",
            "Requests answered before routing (400, 404 of a path, 405, 408, early 413, 414, 431, 503 of a drain)",
            "status",
            "reason",
        )
        self.http_connections_refused_total = self._counter(
            "http_connections_refused_total", "Client connections closed at once, too many being open", "reason"
        )
        self.request_duration_seconds = self._histogram(
            "request_duration_seconds", "Time from request arrival to the end of the body", WIDE_BOUNDS_S, *target
        )
        self.request_first_byte_seconds = self._histogram(
            "request_first_byte_seconds", "Time from request arrival to the response head", WIDE_BOUNDS_S, *target
        )
        self.routing_wait_seconds = self._histogram(
            "routing_wait_seconds",
            "Time from request arrival to its first selection, of requests that had to wait for a willing cluster",
            WIDE_BOUNDS_S,
            *target,
        )
        self.client_aborts_total = self._counter(
            "client_aborts_total", "Requests whose client left; phase is upload, head or body", *target, "phase"
        )
        self.midstream_failures_total = self._counter(
            "midstream_failures_total",
            "Responses that broke after their head was forwarded",
            *(*target, "inference_server_id", "reason"),
        )
        self.replay_memory_bytes = self._gauge("replay_memory_bytes", "Request body copies held for retries")
        self.replay_budget_exhausted_total = self._counter(
            "replay_budget_exhausted_total", "Requests forwarded without a copy, the global replay budget being used up"
        )
        self.spills_total = self._counter(
            "spills_total", "Requests sent elsewhere because the preferred tunnel had no free stream", *target
        )
        self.accepted_not_repeated_total = self._counter(
            "accepted_not_repeated_total", "Retries forgone because a worker had the whole request already", *target
        )

    def _add_workers(self) -> None:
        self.registered_streams = self._gauge("registered_streams", "Open registrations")
        self.grpc_connections_closed_total = self._counter(
            "grpc_connections_closed_total",
            "gRPC connections closed because their peer exceeded a limit of docs/limits.md, by its name without `grpc.`",
            "reason",
        )
        self.registrations_refused_total = self._counter(
            "registrations_refused_total", "Registrations refused by reason", "reason"
        )
        self.registrations_ended_total = self._counter(
            "registrations_ended_total", "Registrations that ended, by reason", "reason"
        )
        self.worker_credential_failures_total = self._counter(
            "worker_credential_failures_total",
            "Tokens and certificates not accepted, by worker; id empty where not known yet",
            *("credential", "inference_server_id", "address"),
        )
        self.worker_auth_total = self._counter("worker_auth_total", "Worker authentications by result", "result")
        self.worker_auth_duration_seconds = self._histogram(
            "worker_auth_duration_seconds", "Time one worker authentication took", WIDE_BOUNDS_S, "result"
        )
        self.trace_spans_total = self._counter(
            "trace_spans_total", "Spans by what became of them: exported, export_failed, queue_full", "result"
        )
        self.reverse_tunnels_up = self._gauge("reverse_tunnels_up", "Reverse tunnels that are up")
        self.reverse_handshakes_total = self._counter(
            "reverse_handshakes_total", "Reverse handshakes by result (accepted, or the reason of refusal)", "result"
        )
        self.health_probe_failures_total = self._counter(
            "health_probe_failures_total", "Failed health probes", "inference_server_id"
        )
        self.reverse_handshakes_pending = self._gauge(
            "reverse_handshakes_pending",
            "Connections whose QUIC handshake is complete and whose tunnel handshake is not",
        )
        self.quic_connections = self._gauge("quic_connections", "Open QUIC connections", "direction")
        self.quic_handshakes_half_open = self._gauge(
            "quic_handshakes_half_open",
            "Incoming QUIC handshakes under way; 64 without proved address mean that newcomers have to prove theirs",
            "proved",
        )
        self.stream_credit_waits_total = self._counter(
            "stream_credit_waits_total", "Streams that had to wait for the peer's stream limit"
        )

    def _add_openai(self) -> None:
        caller = ("key_id", "routing_key", "model")
        self.openai_requests_total = self._counter(
            "openai_requests_total", "Requests of OpenAI clients by key, model and status", *caller, "status"
        )
        self.openai_tokens_total = self._counter(
            "openai_tokens_total",
            "Tokens that engines reported; kind is input or output, and of these cached and reasoning",
            *caller,
            "kind",
        )
        self.openai_unreported_requests_total = self._counter(
            "openai_unreported_requests_total", "Requests a worker answered with 200 without reporting usage", *caller
        )
        self.openai_key_refusals_total = self._counter(
            "openai_key_refusals_total", "Requests refused for their API key, by reason", "reason"
        )
        self.openai_key_checks_total = self._counter(
            "openai_key_checks_total", "Keys looked up at the NVCF API, by result", "result"
        )
        self.openai_key_check_duration_seconds = self._histogram(
            "openai_key_check_duration_seconds", "Time one such look-up took", WIDE_BOUNDS_S
        )
        self.openai_limit_refusals_total = self._counter(
            "openai_limit_refusals_total", "Requests refused by a limit, by key and kind of limit", "key_id", "kind"
        )
        self.openai_limit_store_failures_total = self._counter(
            "openai_limit_store_failures_total", "Calls of Redis that failed, by reason", "reason"
        )
        self.openai_keys = self._gauge("openai_keys", "API keys in force")
        self.openai_keys_reloads_total = self._counter(
            "openai_keys_reloads_total", "Changes of the file of API keys by result (success, rejected)", "result"
        )
        self.openai_keys_last_reload_success = self._gauge(
            "openai_keys_last_reload_success", "1 if the file of API keys as it is now was accepted"
        )
