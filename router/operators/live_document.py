"""What the API under `/api/v1` of the operators' port says, as types; docs/api.md describes each field.

Version 1: a field that is there keeps its name and its meaning, and others may be added. Times are Unix seconds, durations
are milliseconds unless the name says otherwise. `router top`, the page and the supervisor read the same documents.
"""

from typing import Final

import msgspec

from tunnel_protocol.limit import Limit

API: Final = "/api/v1"

ROWS: Final = Limit("operators.rows", pieces=2_000)
"""Rows of each table of the state: workers, clusters, targets and flows; the state says that it has more."""

SECONDS: Final = 60
"""Seconds of the history."""


class Process(msgspec.Struct, kw_only=True):
    """One process of the router."""

    stargate_id: str
    serving: bool
    restarts: int = 0


class Router(msgspec.Struct, kw_only=True):
    """The router itself."""

    stargate_id: str
    version: str
    commit: str
    now: float
    started_at: float
    uptime_s: float
    ready: bool
    not_ready: list[str]
    """Reasons why `/readyz` is 503."""
    draining: bool
    in_flight: int
    waiting: int
    """Of the requests in flight, those for which no worker is chosen yet."""
    processes: list[Process]


class Policy(msgspec.Struct, kw_only=True):
    """The routing policy in force."""

    digest: str
    """Of its file, as in the metric `lb_config_info`; `none` without a file."""
    default_algorithm: str
    loaded_at: float
    reloads: int
    """Changes of the file that were accepted since the start."""
    rejected: str | None = None
    """Why the file as it is now is not used; None if it is."""


class Certificate(msgspec.Struct, kw_only=True):
    """A certificate that is served."""

    name: str
    """As `material_type` in the metrics."""
    not_after: float
    days_left: float
    generated: bool
    """Made at the start, because no files are configured."""
    last_reload_ok: bool = True


class Target(msgspec.Struct, kw_only=True):
    """What requests ask for."""

    routing_key: str | None
    model: str
    workers: int
    """Routable ones."""
    registered: int
    """Workers that advertise it, routable or not."""
    clusters: int
    in_flight: int
    requests: int
    """Since the start of the router, as the following two."""
    errors: int
    """Answered with 500 or more."""
    refused: int
    """Answered by the router itself with 429 or 503, so without a worker that took them."""


class Cluster(msgspec.Struct, kw_only=True):
    """Workers that share an engine pool."""

    routing_key: str | None
    cluster_id: str
    workers: int
    routable: int
    rtt_ms: float | None
    queue: int
    running: int
    output_tps: float
    kv_used_tokens: int
    kv_capacity_tokens: int


class Worker(msgspec.Struct, kw_only=True):
    """One registered inference server."""

    inference_server_id: str
    cluster_id: str
    routing_key: str | None
    url: str
    connectivity: str
    """`reverse` or `direct`."""
    state: str
    """`healthy`, `inactive`, `silent` or `disconnected`; docs/api.md."""
    silent_s: float | None
    rtt_ms: float | None
    report_age_s: float | None
    """Since its last report that was used."""
    queue: int
    """This and the following as the worker reports them, over its models."""
    running: int
    max_running: int
    output_tps: float
    input_tps: float
    kv_used_tokens: int
    kv_capacity_tokens: int
    free_streams: int
    in_flight: int
    """Requests of this router on it now."""
    attempts: int
    """Attempts that it answered or that failed, since the start of the router."""
    refusals: int
    """Of these, those that it answered with 429 or 503."""
    failures: int
    """Of these, those without an answer and those with another status of 500 or more."""
    models: list[str]
    """Models that it advertises: the first ones, `models_total` is their number."""
    models_total: int
    healthy_in: int = 1
    """Processes of the router in which it is healthy."""
    registered_in: int = 1


class Flow(msgspec.Struct, kw_only=True):
    """Requests of one target on one worker."""

    routing_key: str | None
    model: str
    inference_server_id: str
    """Empty: requests for which no worker is chosen yet."""
    in_flight: int
    per_second: float
    """Answers since the state before, in each second."""


class State(msgspec.Struct, kw_only=True):
    """The router and its workers at one moment."""

    router: Router
    policy: Policy
    certificates: list[Certificate]
    targets: list[Target]
    clusters: list[Cluster]
    workers: list[Worker]
    flows: list[Flow]
    """Pairs with a request now or since the state before."""
    left_out: int = 0
    """Rows beyond the limit, over all tables."""


class Quantiles(msgspec.Struct, kw_only=True):
    """Within 5 %."""

    p50: float
    p99: float


class Second(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The requests that ended in one second."""

    at: int
    """Unix second."""
    requests: int = 0
    errors: int = 0
    first_token_ms: Quantiles | None = None
    total_ms: Quantiles | None = None
    first_token_counts: dict[int, int] | None = None
    """Requests by step of the scale of `durations.py`; only for the supervisor."""
    total_counts: dict[int, int] | None = None


class Request(msgspec.Struct, kw_only=True):
    """One request that has ended."""

    number: int
    """Grows from request to request of a process, and from one start of it to the next."""
    process: str
    at: float
    request_id: str
    routing_key: str | None
    model: str
    inference_server_id: str
    cluster_id: str
    attempts: int
    status: int
    first_token_ms: float | None
    duration_ms: float
    end: str
    reason: str
    requested_method: str
    input_tokens: int
    priority: int


class Live(msgspec.Struct, kw_only=True):
    """All of it; in an event after the first, `history` and `requests` have only what is new."""

    state: State
    history: list[Second]
    """Oldest first."""
    requests: list[Request]
    """Newest first."""
