"""Describes a decision as a document: all candidates, the rule that excludes each excluded one, scores, and the choice.

It does not affect later decisions: it uses its own balancer and random numbers, and does not advance the order of backends
in a cluster. See docs/balancing.md, "Explaining a decision".
"""

import math
from collections.abc import Sequence

from router.balancing.admission import input_work_seconds, rejection
from router.balancing.algorithm import Balancer, Explanation, details_of, explanation_of
from router.balancing.candidate import Candidate
from router.balancing.definition import Definition
from router.balancing.estimates import duration_ms, queue_delay_ms, ttft_ms
from router.balancing.expressions import ExpressionDefinition
from router.balancing.feasibility import Feasibility
from router.balancing.outcome import Wait
from router.balancing.request import RoutingRequest
from router.balancing.selector import MAX_WAIT_MS, Selector, TargetView, admission_candidates

Document = dict[str, object]


def explain(
    selector: Selector,
    request: RoutingRequest,
    method: str | None,
    target: TargetView[object, object] | None,
    *,
    advertised: bool,
    excluded: set[str],
    now: float,
) -> Document:
    """What `select` would decide now, and why. Raises `MethodError`, as `in_force` does."""
    effective = selector.in_force(request.routing_key, request.model, method)
    candidates = () if target is None else target.candidates()
    elapsed_ms = max(0.0, now - request.received_at) * 1000.0
    explanation = explanation_of(effective.built)
    explained = Explanation({}, {}) if explanation is None else explanation(request, candidates, elapsed_ms)
    document: Document = {
        "target": {"routing_key": request.routing_key, "model": request.model, "advertised": advertised},
        "request": {
            "input_tokens": request.input_tokens,
            "priority": request.priority,
            "affinity_key_present": request.affinity_key is not None,
            "request_slo_ms": request.request_slo_ms,
            "elapsed_ms": elapsed_ms,
        },
        "algorithm": {
            "name": effective.algorithm,
            "requested": method,
            "expression": effective.expression.decode() if isinstance(effective, ExpressionDefinition) else None,
            "comparator": explained.comparator,
            "settings": dict(effective.settings),
        },
        "candidates": _rows(explained, request, candidates, excluded),
    }
    refusal = _admission(effective, request, candidates, excluded, document)
    balancer = None if target is None or not candidates else selector.dry_run_balancer(effective, request, target)
    if balancer is None:
        document["outcome"] = {"kind": "unavailable" if advertised or excluded else "not_found"}
        return document
    details = details_of(balancer, request, candidates, elapsed_ms)
    if details is not None:
        document["affinity"] = dict(details)
    document["outcome"] = refusal or _outcome(balancer, request, candidates, excluded, elapsed_ms)
    return document


def _admission(
    effective: Definition,
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    excluded: set[str],
    document: Document,
) -> Document | None:
    limit = effective.max_input_work_seconds
    if limit is None or all(candidate.cluster_id in excluded for candidate in candidates):
        return None
    counted = admission_candidates(effective, request, candidates, excluded)
    tokens = request.input_tokens or 0
    document["admission"] = {
        "limit_seconds": limit,
        "seconds": input_work_seconds(counted, tokens),
        "counted_clusters": [candidate.cluster_id for candidate in counted],
    }
    reason = rejection(counted, tokens, limit)
    return None if reason is None else {"kind": "rejected", "reason": reason}


def _outcome(
    balancer: Balancer,
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    excluded: set[str],
    elapsed_ms: float,
) -> Document:
    choice = balancer.choose(request, candidates, excluded, elapsed_ms)
    left = any(candidate.cluster_id not in excluded for candidate in candidates)
    if choice is None:
        return {"kind": "wait" if left and request.max_wait_ms is not None else "unavailable"}
    if isinstance(choice, Wait):
        if not left or elapsed_ms >= MAX_WAIT_MS:
            return {"kind": "unavailable"}
        return {"kind": "wait", "wait_ms": _finite(choice.seconds * 1000.0)}
    return {
        "kind": "chosen",
        "cluster_id": choice.candidate.cluster_id,
        "rank_depth": choice.rank_depth,
        "skipped_for_kv": choice.skipped_for_kv,
    }


def _rows(
    explained: Explanation, request: RoutingRequest, candidates: Sequence[Candidate], excluded: set[str]
) -> list[Document]:
    tokens = request.input_tokens or 0
    rows = []
    for candidate in candidates:
        cluster_id = candidate.cluster_id
        row: Document = {
            "cluster_id": cluster_id,
            "rule": Feasibility.EXCLUDED.value
            if cluster_id in excluded
            else explained.rules.get(cluster_id, Feasibility.ELIGIBLE.value),
            "backends": candidate.active_backend_count,
            "rtt_ms": duration_ms(candidate.rtt_ns),
            "queue_ms": queue_delay_ms(candidate, request.priority),
            "ttft_ms": ttft_ms(candidate, tokens, request.priority),
            "input_tps": candidate.last_mean_input_tps,
            "queued_requests": candidate.queue_size,
            "queued_tokens": candidate.queued_input_size,
            "running": candidate.num_running_queries,
            "concurrency": candidate.max_engine_concurrency,
            "kv_free_tokens": candidate.kv_cache_free_tokens,
            **explained.columns.get(cluster_id, {}),
        }
        rows.append({key: _finite(value) for key, value in row.items()})
    return rows


def _finite(value: object) -> object:
    """`value`; a float that is not finite as a string, because JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
