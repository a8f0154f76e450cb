"""What `top` shows of a router: overview, updates, pause, connection, details, and `--once`."""

import json
from typing import Any

import msgspec
import pytest

from router.operators.live_document import (
    Certificate,
    Live,
    Policy,
    Process,
    Quantiles,
    Request,
    Second,
    Target,
    Worker,
)
from router.top.detail import explanation, fields, outcome, question
from router.top.live_state import merged
from router.top.once import as_json, as_text
from router.top.ordering import Order
from router.top.overview import overview
from router.top.printable import cells
from router.top.spans import Line, Role, text_of
from router.top.tables import CLUSTERS, REQUESTS, TARGETS, WORKERS
from router.top.view_model import ViewModel
from support.live_documents import a_router, filled, live

HOSTILE = "\x1b[2J\x9b31m\u202e[red]x\n"


def request(number: int, **given: Any) -> Request:
    return filled(Request, **{"number": number, "process": "r", "at": 1000.0 + number, "status": 200, **given})  # type: ignore[no-any-return]


def worker(name: str, **given: Any) -> Worker:
    return filled(Worker, **{"inference_server_id": name, "state": "healthy", **given})  # type: ignore[no-any-return]


def texts(lines: list[Line]) -> list[str]:
    return [text_of(line) for line in lines]


# Overview ---------------------------------------------------------------------------------------------------------------


def test_the_overview_shows_router_load_policy_certificates_and_the_last_minute() -> None:
    shown = texts(
        overview(
            live(
                router=a_router(
                    stargate_id="r0",
                    version="1.2.3",
                    commit="abcdef",
                    uptime_s=3725.0,
                    in_flight=3,
                    waiting=1,
                    now=100.0,
                ),
                policy=filled(Policy, digest="sha256:0123456789", default_algorithm="pulsar", loaded_at=40.0),
                certificates=[
                    filled(Certificate, name="tunnel", days_left=30.4, generated=False, last_reload_ok=True),
                    filled(Certificate, name="made", days_left=9999.0, generated=True, last_reload_ok=True),
                ],
                workers=[worker("a", output_tps=10.5, queue=2), worker("b", state="silent", queue=1)],
                history=[
                    Second(at=1, requests=4, errors=1, first_token_ms=Quantiles(p50=1, p99=2)),
                    Second(at=2, total_ms=Quantiles(p50=30, p99=400)),
                ],
            ),
            200,
        )
    )
    assert shown[0] == "r0  1.2.3 (abcdef)  up 1h02m  ready"
    assert shown[1] == "in flight 3  waiting 1  workers 1/2 healthy  tok/s 10.5  queued 3"
    assert shown[2] == "policy pulsar sha256:01234, loaded 1m00s ago  certificates tunnel 30d made >10y generated"
    assert shown[3] == ("last minute █  0/s, 4 requests, 1 errors  ms p50/p99 first token 1.00/2.00 total 30.0/400")


def test_trouble_of_the_router_is_in_words() -> None:
    shown = overview(
        live(
            router=a_router(
                ready=False,
                not_ready=["warming_up"],
                processes=[
                    Process(stargate_id="a", serving=True, restarts=2),
                    Process(stargate_id="b", serving=False),
                ],
            ),
            policy=filled(Policy, digest="none", default_algorithm="p", rejected="line 3: no"),
            certificates=[
                filled(Certificate, name="a", days_left=-1.0, generated=False, last_reload_ok=True),
                filled(Certificate, name="b", days_left=3.0, generated=False, last_reload_ok=True),
                filled(Certificate, name="c", days_left=99.0, generated=False, last_reload_ok=False),
            ],
            left_out=5,
        ),
        80,
    )
    text = "\n".join(texts(shown))
    assert "NOT READY: warming_up  processes 1/2 (2 restarts)" in text
    assert "policy p, NEW FILE REFUSED: line 3: no  certificates a 0d EXPIRED b 3d c 99d RELOAD FAILED" in text
    assert "5 rows are not shown" in text
    assert "DRAINING" in text_of(overview(live(router=a_router(draining=True)), 80)[0])
    bad = [span.text for line in shown for span in line if span.role is Role.BAD]
    assert len(bad) == 5


def test_the_last_minute_fits_into_80_columns() -> None:
    slow = Quantiles(p50=9_999, p99=3_600_000)
    history = [Second(at=at, requests=9_999, errors=9_999, first_token_ms=slow, total_ms=slow) for at in range(60)]
    assert cells(text_of(overview(live(history=history), 80)[3])) <= 90
    history = [Second(at=at, requests=999, errors=9, first_token_ms=None, total_ms=None) for at in range(59)]
    history.append(
        Second(at=60, requests=999, first_token_ms=Quantiles(p50=99, p99=850), total_ms=Quantiles(p50=999, p99=9999))
    )
    assert cells(text_of(overview(live(history=history), 80)[3])) <= 80


# Events -----------------------------------------------------------------------------------------------------------------


def test_an_update_puts_seconds_and_requests_in_their_places() -> None:
    known = live(history=[Second(at=1), Second(at=2)], requests=[request(2), request(1)])
    update = live(history=[Second(at=2, requests=3), Second(at=3)], requests=[request(3)], left_out=1)
    found = merged(known, update)
    assert found.state.left_out == 1
    assert [(one.at, one.requests) for one in found.history] == [(1, 0), (2, 3), (3, 0)]
    assert [one.number for one in found.requests] == [3, 2, 1]
    assert merged(None, update) is update


def test_no_more_is_kept_than_the_router_keeps() -> None:
    known = live(history=[Second(at=at) for at in range(60)], requests=[request(number) for number in range(50, 0, -1)])
    found = merged(known, live(history=[Second(at=61)], requests=[request(51)]))
    assert (len(found.history), found.history[-1].at) == (60, 61)
    assert [one.number for one in found.requests][::49] == [51, 2]


# Pause, connection, tables ----------------------------------------------------------------------------------------------


def model_of(found: Live) -> ViewModel:
    return ViewModel(found, "http://localhost:9090", 0.0)


def test_a_pause_freezes_what_is_shown_and_ends_with_the_latest() -> None:
    model = model_of(live(workers=[worker("a")]))
    model.pause_or_go_on(1.0)
    model.on_update(live(workers=[worker("a"), worker("b")]), 2.0)
    assert (model.paused, len(model.view.rows)) == (True, 1)
    assert "PAUSED 5.0s ago" in text_of(model.overview(80, 6.0)[-1])
    model.pause_or_go_on(7.0)
    assert (model.paused, len(model.view.rows)) == (False, 2)
    assert text_of(model.overview(80, 8.0)[-1]) == "http://localhost:9090"


def test_without_a_connection_it_is_said_since_when_and_why_and_the_next_event_ends_that() -> None:
    model = model_of(live())
    model.on_trouble("refused\x1b")
    assert text_of(model.overview(80, 65.0)[-1]) == ("NO CONNECTION 1m05s, trying again: refused\\x1b")
    model.on_full(live(workers=[worker("a")]), 70.0)
    assert "NO CONNECTION" not in text_of(model.overview(80, 70.0)[-1])
    assert len(model.view.rows) == 1


def test_a_new_router_replaces_everything() -> None:
    model = model_of(live(requests=[request(1)]))
    model.on_full(live(requests=[request(9)]), 1.0)
    model.choose(REQUESTS)
    assert [row.number for row in model.view.rows] == [9]


def test_a_filter_counts_for_all_tables_and_is_shown() -> None:
    model = model_of(live(workers=[worker("a"), worker("b")], requests=[request(1, inference_server_id="b")]))
    model.filter("b")
    assert text_of(model.tabs()) == "[1 Workers 1/2] 2 Clusters 0  3 Targets 0  4 Requests 1  5 Flows 0"
    assert "filter: b" in text_of(model.overview(80, 0.0)[-1])
    model.choose_next(-1)
    assert "[5 Flows 0]" in text_of(model.tabs())
    model.choose_next(1)
    assert "[1 Workers" in text_of(model.tabs())


# Details ----------------------------------------------------------------------------------------------------------------


def test_all_members_of_a_row_are_shown() -> None:
    row = request(7, request_id=HOSTILE, routing_key=None, duration_ms=12.5)
    shown = dict(line.split(None, 1) for line in texts(fields(row)) if len(line.split(None, 1)) == 2)
    assert (shown["number"], shown["routing_key"], shown["duration_ms"]) == ("7", "-", "12.5")
    assert shown["request_id"] == "\\x1b[2J\\x9b31m\\u202e[red]x\\n"
    assert "1007.000" in shown["at"]
    long = texts(fields(worker("w" * 5_000, models=["a", "b"])))
    assert max(map(len, long)) < 2_100
    assert any(line.endswith("a, b") for line in long)


def test_a_request_is_asked_about_as_it_came() -> None:
    row = request(
        1, model="m", routing_key="k", requested_method="pulsar", input_tokens=5, priority=2, process="router-1"
    )
    one = question(REQUESTS, row, live())
    assert one is not None
    assert dict(one.query) == {
        "model": "m",
        "routing_key": "k",
        "method": "pulsar",
        "input_tokens": "5",
        "priority": "2",
    }
    processes = [Process(stargate_id=name, serving=True) for name in "ab"]
    several = question(REQUESTS, row, live(router=a_router(processes=processes)))
    assert several is not None
    assert ("process", "router-1") in several.query


def test_a_worker_is_asked_about_by_its_first_model_and_a_target_by_itself() -> None:
    asked = question(WORKERS, worker("w", models=["m1", "m2"], routing_key="k"), live())
    assert asked is not None
    assert asked.query == (("model", "m1"), ("routing_key", "k"))
    asked = question(TARGETS, filled(Target, model="m"), live())
    assert asked is not None
    assert asked.query == (("model", "m"),)
    assert question(WORKERS, worker("w"), live()) is None
    assert question(CLUSTERS, filled(Target, model=""), live()) is None
    assert question(REQUESTS, request(1, model=""), live()) is None


def test_an_explanation_is_shown_without_what_a_terminal_would_act_on() -> None:
    document = {
        "target": {"model": HOSTILE, "routing_key": None},
        "algorithm": {"name": "pulsar", "comparator": None, "expression": None},
        "candidates": [{"cluster_id": HOSTILE, "rule": "eligible"}],
        "outcome": {"kind": "chosen", "cluster_id": HOSTILE, "rank_depth": 1},
    }
    lines = explanation(document)
    text = "\n".join(texts(lines))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "decided by pulsar" in text
    assert text_of(outcome(lines)).startswith("=> \\x1b[2J")


@pytest.mark.parametrize("document", [{"error": "no\x1b"}, [], "x", None, {"target": 5}])
def test_an_explanation_of_another_shape_is_shown_as_it_is(document: object) -> None:
    lines = explanation(document)
    assert "".join(texts(lines)).isprintable()
    assert text_of(outcome(lines)) == "(see below)"


# Once -------------------------------------------------------------------------------------------------------------------


def test_once_prints_all_rows_and_columns() -> None:
    found = live(workers=[worker("w2", cluster_id="c" * 100), worker("w1")], requests=[request(1, request_id=HOSTILE)])
    text = as_text(found, ((WORKERS, Order("worker", descending=False)), (REQUESTS, Order.of(REQUESTS))), "")
    lines = text.splitlines()
    at = lines.index("Workers (2)")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["Worker", "w1", "w2"]
    assert "c" * 100 in text
    assert "Requests (1)" in lines
    assert all(line.isprintable() for line in lines)
    assert "Workers (1 of 2)\n" in as_text(found, ((WORKERS, Order.of(WORKERS)),), "w1")


def test_once_as_json_is_the_document_in_ascii() -> None:
    found = live(requests=[request(1, request_id=HOSTILE)])
    text = as_json(msgspec.json.encode(found))
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text)["requests"][0]["request_id"] == HOSTILE
