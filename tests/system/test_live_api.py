"""The API of the operators' port of a running router: docs/api.md."""

import json
import signal
import time

import pytest

from llm_request_router.testing import System
from support.events import Events


@pytest.fixture(scope="module")
def router():
    with System.start() as system:
        system.add_worker("tiny")
        yield system


def local(system):
    return system.ports.metrics.replace("0.0.0.0", "127.0.0.1")


def get(system, path):
    reply = system.request("GET", path, address=local(system))
    assert reply.status == 200, reply
    return json.loads(reply.body)


def until(look, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return found


def test_the_state_shows_the_router_its_targets_and_workers(router):
    router.chat("tiny")
    state = until(lambda: (found := get(router, "/api/v1/state"))["workers"] and found)
    assert state["router"]["ready"]
    assert state["router"]["uptime_s"] > 0
    assert [one["serving"] for one in state["router"]["processes"]] == [True]
    (worker,) = state["workers"]
    assert (worker["inference_server_id"], worker["state"], worker["connectivity"]) == (
        "worker-0",
        "healthy",
        "reverse",
    )
    assert worker["rtt_ms"] > 0
    assert worker["free_streams"] > 0
    assert worker["models"] == ["tiny"]
    (target,) = state["targets"]
    assert (target["model"], target["routing_key"], target["workers"]) == ("tiny", None, 1)
    (cluster,) = state["clusters"]
    assert (cluster["cluster_id"], cluster["routable"]) == ("worker-0", 1)
    assert state["policy"]["digest"] == "none"
    (certificate,) = state["certificates"]
    assert certificate["days_left"] > 0


def test_a_request_is_in_the_list_with_its_times_and_without_its_content(router):
    asked = "nobody-should-read-this"
    reply = router.chat("tiny", asked)
    assert reply.status == 200

    def listed():
        body = router.request("GET", "/api/v1/requests", address=local(router)).body
        assert asked.encode() not in body
        return [one for one in json.loads(body)["requests"] if one["inference_server_id"] == "worker-0"]

    newest = until(listed)[0]
    assert (newest["model"], newest["attempts"], newest["status"], newest["end"]) == ("tiny", 1, 200, "complete")
    assert 0 < newest["first_token_ms"] <= newest["duration_ms"]
    assert newest["reason"] == ""


def test_a_refused_request_is_in_the_list_with_its_reason(router):
    assert router.chat("nobody-serves-this").status == 404
    bad = router.request("POST", "/v1/chat/completions", headers={"x-model": "tiny", "x-request-id": "without-tokens"})
    assert bad.status == 400

    def both():
        found = {(one["model"], one["status"], one["reason"]) for one in get(router, "/api/v1/requests")["requests"]}
        wanted = {("tiny", 400, "missing x-input-tokens"), ("nobody-serves-this", 404, "no eligible candidates")}
        return wanted <= found

    until(both)


def test_the_history_is_by_second_and_has_quantiles(router):
    router.chat("tiny")

    def counted():
        history = get(router, "/api/v1/history")["history"]
        assert len(history) == 60
        assert [one["at"] for one in history] == list(range(history[0]["at"], history[0]["at"] + 60))
        return [one for one in history if one.get("first_token_ms")]

    second = until(counted)[-1]
    assert second["requests"] >= 1
    assert 0 < second["first_token_ms"]["p50"] <= second["total_ms"]["p99"]


def test_explain_is_part_of_the_api(router):
    document = get(router, "/api/v1/explain?model=tiny")
    assert document["outcome"]["kind"] == "chosen"
    assert document == {**get(router, "/explain?model=tiny"), "request": document["request"]} | {
        "candidates": document["candidates"]
    }


def test_events_begin_with_everything_and_go_on_once_a_second_with_what_is_new(router):
    router.chat("tiny")
    with Events(local(router)) as events:
        assert events.status == 200
        assert events.headers["content-type"] == "text/event-stream"
        name, first = events.next_event()
        assert (name, len(first["history"])) == ("full", 60)
        known = {one["number"] for one in first["requests"]}
        assert known
        started = time.monotonic()
        assert router.chat("tiny").status == 200
        new, count = [], 0
        while not new:
            name, update = events.next_event()
            count += 1
            assert (name, len(update["history"])) == ("update", 3)
            new = update["requests"]
        assert not {one["number"] for one in new} & known
        assert count <= time.monotonic() - started + 1.5
    assert new[0]["inference_server_id"] == "worker-0"


def test_who_is_at_another_host_name_is_told_how_to_get_in(router):
    reply = router.request("GET", "/api/v1/state", headers={"host": "router.example:9090"}, address=local(router))
    assert reply.status == 403
    assert b"--operators-token-file" in reply.body


def test_a_frozen_worker_is_shown_as_silent_and_a_stopped_one_is_gone(router):
    worker = router.add_worker("other")

    def state_of():
        return {one["inference_server_id"]: one for one in get(router, "/api/v1/state")["workers"]}.get("worker-1")

    until(lambda: (state_of() or {}).get("state") == "healthy")
    worker.process.send(signal.SIGSTOP)
    try:
        silent = until(lambda: (one := state_of()) and one["state"] == "silent" and one)
        assert silent["silent_s"] >= 1
    finally:
        worker.process.send(signal.SIGCONT)
    until(lambda: (state_of() or {}).get("state") == "healthy")
    worker.process.send(signal.SIGTERM)
    until(lambda: state_of() is None)
