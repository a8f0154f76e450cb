"""The tables: which rows of the live state each has, and its columns: title, text, value to sort by, meaning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.operators.live_document import Cluster, Live, Request, Target, Worker
from router.top.figures import UNKNOWN, count, duration, milliseconds, percent, time_of_day
from router.top.printable import printable
from router.top.spans import Role

Value = str | float | None
"""What a row is sorted by; None, unknown, is last either way."""

Key = tuple[str | int | None, ...]
"""What names a row."""


def _plain(_row: Any) -> Role:
    return Role.PLAIN


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    """One word, for `--sort` and filters."""
    title: str
    text: Callable[[Any], str]
    """The cell, printable."""
    value: Callable[[Any], Value]
    number: bool = True
    """Aligned to the right, and sorted with the largest first when it is chosen."""
    role: Callable[[Any], Role] = _plain
    is_long: bool = False
    """Gets more space than names do."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the live state."""

    name: str
    title: str
    rows: Callable[[Live], Sequence[Any]]
    key: Callable[[Any], Key]
    """Names a row from one state to the next."""
    columns: tuple[Column, ...]
    """The first one is always in view."""
    order: str
    """The column that rows are sorted by at first."""
    descending: bool = False

    def column(self, name: str) -> Column | None:
        """The column called `name`."""
        return next((column for column in self.columns if column.name == name), None)


def _name(name: str, title: str, text: Callable[[Any], str | None]) -> Column:
    """A column of names."""
    return Column(name, title, lambda row: printable(text(row) or UNKNOWN), lambda row: text(row) or None, number=False)


def _count(name: str, title: str, value: Callable[[Any], float | None], *, bad: bool = False) -> Column:
    """A column of numbers; `bad`: those above 0 are a sign of trouble."""
    role = (lambda row: Role.BAD if value(row) else Role.PLAIN) if bad else _plain
    return Column(name, title, lambda row: count(value(row)), value, role=role)


def _ms(name: str, title: str, value: Callable[[Any], float | None]) -> Column:
    return Column(name, title, lambda row: milliseconds(value(row)), value)


def _kv_share(row: Worker | Cluster) -> float | None:
    return row.kv_used_tokens / row.kv_capacity_tokens if row.kv_capacity_tokens > 0 else None


_KV: Final = Column("kv", "KV", lambda row: percent(row.kv_used_tokens, row.kv_capacity_tokens), _kv_share)
_KEY: Final = _name("key", "Routing key", lambda row: row.routing_key)
_MODEL: Final = _name("model", "Model", lambda row: row.model)
_WORKER: Final = _name("worker", "Worker", lambda row: row.inference_server_id)
_CLUSTER: Final = _name("cluster", "Cluster", lambda row: row.cluster_id)


def worker_state(row: Worker) -> str:
    """The state in a word, for silent workers with its time, and for some processes only with their number."""
    shown = printable(row.state)
    if row.silent_s is not None and row.state == "silent":
        shown += f" {duration(row.silent_s)}"
    if row.registered_in > 1 and row.healthy_in != row.registered_in:
        shown += f" {row.healthy_in}/{row.registered_in}"
    return shown


def _worker_role(row: Worker) -> Role:
    return {"healthy": Role.GOOD, "silent": Role.BAD, "disconnected": Role.BAD}.get(row.state, Role.WARNING)


def _request_role(row: Request) -> Role:
    if row.status >= 500 or row.end in {"truncated", "failed"}:
        return Role.BAD
    return Role.WARNING if row.status >= 400 or row.status == 0 else Role.GOOD


def request_end(row: Request) -> str:
    """How the request ended, and why if the router itself answered."""
    return printable(f"{row.end}: {row.reason}" if row.reason else row.end)


def _routable_role(row: Target) -> Role:
    if row.workers == row.registered:
        return Role.PLAIN
    return Role.WARNING if row.workers else Role.BAD


def _cluster_role(row: Cluster) -> Role:
    if row.routable == row.workers:
        return Role.PLAIN
    return Role.WARNING if row.routable else Role.BAD


WORKERS: Final = Table(
    "workers",
    "Workers",
    lambda live: live.state.workers,
    lambda row: (row.routing_key, row.inference_server_id),
    (
        _WORKER,
        Column("state", "State", worker_state, lambda row: row.state, number=False, role=_worker_role),
        _ms("rtt", "RTT ms", lambda row: row.rtt_ms),
        _count("queue", "Queue", lambda row: row.queue),
        _count("running", "Run", lambda row: row.running),
        _count("tokens", "Tok/s", lambda row: row.output_tps),
        _KV,
        _count("free", "Free", lambda row: row.free_streams),
        _count("inflight", "InFl", lambda row: row.in_flight),
        _count("refused", "Refus", lambda row: row.refusals, bad=True),
        _count("failed", "Fail", lambda row: row.failures, bad=True),
        _count("attempts", "Attempts", lambda row: row.attempts),
        _count("max", "Max run", lambda row: row.max_running or None),
        _count("input", "In tok/s", lambda row: row.input_tps),
        Column("report", "Report", lambda row: duration(row.report_age_s), lambda row: row.report_age_s),
        _CLUSTER,
        _KEY,
        Column(
            "models",
            "Models",
            lambda row: printable(", ".join(row.models)) + ("" if row.models_total <= len(row.models) else ", …"),
            lambda row: row.models_total,
            number=False,
            is_long=True,
        ),
        _name("connectivity", "Dialled", lambda row: row.connectivity),
        _name("url", "Address", lambda row: row.url),
    ),
    "worker",
)
CLUSTERS: Final = Table(
    "clusters",
    "Clusters",
    lambda live: live.state.clusters,
    lambda row: (row.routing_key, row.cluster_id),
    (
        _CLUSTER,
        Column(
            "routable",
            "Routable",
            lambda row: f"{row.routable}/{row.workers}",
            lambda row: row.routable,
            role=_cluster_role,
        ),
        _ms("rtt", "RTT ms", lambda row: row.rtt_ms),
        _count("queue", "Queue", lambda row: row.queue),
        _count("running", "Run", lambda row: row.running),
        _count("tokens", "Tok/s", lambda row: row.output_tps),
        _KV,
        _KEY,
    ),
    "cluster",
)
TARGETS: Final = Table(
    "targets",
    "Targets",
    lambda live: live.state.targets,
    lambda row: (row.routing_key, row.model),
    (
        _MODEL,
        Column(
            "workers",
            "Workers",
            lambda row: f"{row.workers}/{row.registered}",
            lambda row: row.workers,
            role=_routable_role,
        ),
        _count("clusters", "Clusters", lambda row: row.clusters),
        _count("inflight", "InFl", lambda row: row.in_flight),
        _count("requests", "Requests", lambda row: row.requests),
        _count("errors", "Errors", lambda row: row.errors, bad=True),
        _count("refused", "Refused", lambda row: row.refused, bad=True),
        _KEY,
    ),
    "model",
)
REQUESTS: Final = Table(
    "requests",
    "Requests",
    lambda live: live.requests,
    lambda row: (row.process, row.number),
    (
        Column("ended", "Ended", lambda row: time_of_day(row.at), lambda row: row.at),
        _name("request", "Request", lambda row: row.request_id),
        _MODEL,
        _WORKER,
        _count("attempts", "Att", lambda row: row.attempts),
        Column(
            "status",
            "Stat",
            lambda row: str(row.status) if row.status else UNKNOWN,
            lambda row: row.status or None,
            role=_request_role,
        ),
        _ms("first", "First ms", lambda row: row.first_token_ms),
        _ms("duration", "All ms", lambda row: row.duration_ms),
        Column("end", "End", request_end, request_end, number=False, role=_request_role, is_long=True),
        _CLUSTER,
        _KEY,
        _count("input", "In tok", lambda row: row.input_tokens),
        Column("priority", "Prio", lambda row: str(row.priority), lambda row: row.priority),
        _name("process", "Process", lambda row: row.process),
    ),
    "ended",
    descending=True,
)
FLOWS: Final = Table(
    "flows",
    "Flows",
    lambda live: live.state.flows,
    lambda row: (row.routing_key, row.model, row.inference_server_id),
    (
        _MODEL,
        Column(
            "worker",
            "Worker",
            lambda row: printable(row.inference_server_id) or "(waiting)",
            lambda row: row.inference_server_id,
            number=False,
        ),
        _count("inflight", "InFl", lambda row: row.in_flight),
        _count("rate", "Answers/s", lambda row: row.per_second),
        _KEY,
    ),
    "inflight",
    descending=True,
)

TABLES: Final = (WORKERS, CLUSTERS, TARGETS, REQUESTS, FLOWS)
"""In the order of their keys, 1 to 5."""


def table_called(name: str) -> Table | None:
    """The table called `name`."""
    return next((table for table in TABLES if table.name == name), None)
