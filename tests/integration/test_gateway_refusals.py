"""Requests that the router itself answers: what the log and the access log say, and bodies with the reason if asked for."""

import asyncio
import json
from contextlib import suppress

import pytest
import structlog
from structlog.testing import capture_logs

from router.config import package_settings
from router.config.cli import parse
from support.gateway_in_memory import gateway_in_memory
from support.http_client import get, post
from support.package_settings import REQUIRED, connection_timeouts, http_settings
from support.waiting import eventually
from tunnel_protocol.observers.sampler import LINES_OF_SOURCE, SampleLines, Sampler

pytestmark = pytest.mark.loop("uvloop")

REFUSED = "request refused"
FINISHED = "request finished"
CHUNKED = {"transfer_encoding": "chunked", "body": b""}

REFUSALS = [
    (post(x_model=None), 400, "missing x-model"),
    (post(x_input_tokens="many"), 400, "invalid x-input-tokens"),
    (post(x_routing_method="best"), 400, "unknown x-routing-method"),
    (post(body=b"", content_length=str(1 << 40)), 413, "request body exceeds the replay limit"),
    (post("/v1/unknown"), 404, "unknown path"),
    (get("/v1/chat/completions"), 405, "method not allowed"),
    (post("/healthz"), 405, "method not allowed"),
    (get("/v1/models?model_ids="), 400, "blank model_ids"),
]
UNREADABLE = [
    (b"nonsense\r\n\r\n", 400, "malformed request"),
    (get("/" + "x" * 70_000), 414, "request target too long"),
    (get("/", **{f"x-{number}": "1" for number in range(101)}), 431, "request head too large"),
]


def about(lines, event):
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize(("request_bytes", "status", "reason"), REFUSALS)
async def test_a_refused_request_is_in_the_log_and_in_the_access_log_with_its_reason(request_bytes, status, reason):
    async with gateway_in_memory(access_log=True) as harness:
        with capture_logs() as lines:
            assert (await harness.ask(request_bytes)).status == status
        (line,) = about(lines, REFUSED)
        assert (line["log_level"], line["status"], line["reason"]) == ("warning", status, reason)
        method, target = request_bytes.decode().split(" ")[:2]
        assert (line["method"], line["path"]) == (method, target.partition("?")[0])
        (line,) = about(lines, FINISHED)
        assert (line["status"], line["end"], line["reason"], line["attempts"]) == (status, "refused", reason, 0)
        assert line["path"] == target.partition("?")[0]
        assert 0 <= line["duration_ms"] < 30_000
        assert harness.count("requests_rejected_total", f'status="{status}"', f'reason="{reason}"') == 1


@pytest.mark.parametrize(("request_bytes", "status", "reason"), UNREADABLE)
async def test_so_is_one_whose_head_cannot_be_read(request_bytes, status, reason):
    async with gateway_in_memory(access_log=True) as harness:
        with capture_logs() as lines:
            assert (await harness.ask(request_bytes)).status == status
        (line,) = about(lines, REFUSED)
        assert (line["status"], line["reason"], line["path"]) == (status, reason, None)
        (line,) = about(lines, FINISHED)
        assert (line["status"], line["end"], line["reason"]) == (status, "refused", reason)
        assert (line["request_id"], line["duration_ms"]) == (None, None)


async def test_the_names_that_a_refused_request_gives_are_told_if_they_are_text():
    async with gateway_in_memory(access_log=True) as harness:
        with capture_logs() as lines:
            await harness.ask(post(x_request_id="id-1", x_routing_key="k", x_priority="high"))
            await harness.ask(post(x_request_id="\xff", x_priority="high"))
        first, second = about(lines, REFUSED)
        assert (first["request_id"], first["routing_key"], first["model_id"]) == ("id-1", "k", "m")
        assert (second["request_id"], second["routing_key"], second["reason"]) == (None, None, "missing x-request-id")
        assert [line["request_id"] for line in about(lines, FINISHED)] == ["id-1", None]


async def test_an_upload_that_stalls_is_one_line_in_each():
    timeouts = http_settings(timeouts=connection_timeouts(body=0.05))
    async with gateway_in_memory(http=timeouts, access_log=True, reasons_in_bodies=True) as harness:
        harness.worker()
        with capture_logs() as lines:
            got = await harness.ask(post(body=b"half", content_length="9"))
        assert (got.status, json.loads(got.body)["error"]["code"]) == (408, "request_timeout")
        (line,) = about(lines, REFUSED)
        assert (line["request_id"], line["status"], line["reason"]) == ("r-1", 408, "request body stalled")
        (line,) = about(lines, FINISHED)
        assert (line["request_id"], line["status"], line["end"]) == ("r-1", 408, "refused")
        assert (line["attempts"], line["reason"]) == (1, "request body stalled")
        assert harness.count("client_aborts_total", 'phase="upload"') == 1


async def test_a_request_that_a_drain_refuses_is_logged_and_counted():
    async with gateway_in_memory(access_log=True) as harness:
        client = await harness.client()
        request = post()
        client.send(request[:20])
        await eventually(lambda: harness.http.in_flight)
        drain = asyncio.create_task(harness.http.drain(5))
        await eventually(lambda: harness.http.refusing)
        with capture_logs() as lines:
            client.send(request[20:])
            got = await client.answer()
        assert (got.status, got.is_empty) == (503, True)
        (line,) = about(lines, FINISHED)
        assert (line["status"], line["reason"]) == (503, "draining")
        assert harness.count("requests_rejected_total", 'reason="draining"') == 1
        assert await drain


async def test_answers_of_the_router_after_routing_have_their_reason_in_the_access_log_and_those_of_workers_none():
    async with gateway_in_memory(access_log=True, max_connect_retries=0) as harness:
        with capture_logs() as lines:
            await harness.ask(post())
            worker = harness.worker("a", on_request=lambda exchange: exchange.answer())
            await harness.ask(post())
            worker.on_request = lambda exchange: exchange.fail()
            await harness.ask(post())
            worker.refusal = "connection closed"
            await harness.ask(post())
        assert about(lines, REFUSED) == []
        assert [(line["status"], line["end"], line.get("reason")) for line in about(lines, FINISHED)] == [
            (404, "refused", "no eligible candidates"),
            (200, "complete", None),
            (502, "failed", "no answer from the worker, which may have processed the request"),
            (502, "failed", "no answer from a worker"),
        ]


async def test_without_the_access_log_there_is_only_the_sampled_line_which_is_limited_for_each_reason():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            for _ in range(25):
                await harness.ask(post("/favicon.ico"))
            await harness.ask(post(x_model=None))
    assert about(lines, FINISHED) == []
    left_out = []
    sample = SampleLines(Sampler(), lambda: left_out.append(None))
    shown = []
    for line in lines:
        with suppress(structlog.DropEvent):
            shown.append(sample(None, "warning", dict(line))["reason"])
    assert shown == ["unknown path"] * (LINES_OF_SOURCE.pieces or 0) + ["missing x-model"]
    assert len(left_out) == 5


# --- bodies with the reason


def test_bodies_with_the_reason_are_off_unless_asked_for():
    assert not package_settings.proxy(parse(REQUIRED, {})).reasons_in_bodies
    assert package_settings.proxy(parse([*REQUIRED, "--error-bodies=json"], {})).reasons_in_bodies
    assert package_settings.proxy(parse(REQUIRED, {"STARGATE_ERROR_BODIES": "json"})).reasons_in_bodies


def error_of(answer):
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-stargate-error-code") is None
    document = json.loads(answer.body)
    assert list(document) == ["error"]
    error = document["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["param"] is None
    return error["message"], error["type"], error["code"]


@pytest.mark.parametrize(
    ("request_bytes", "status", "message", "code"),
    [
        (post(x_model=None), 400, "missing x-model", "missing_x_model"),
        (post(x_priority="-1"), 400, "invalid x-priority", "invalid_x_priority"),
        (b"nonsense\r\n\r\n", 400, "malformed request", "malformed_request"),
        (
            post(body=b"", content_length=str(1 << 40)),
            413,
            "request body exceeds the replay limit",
            "request_too_large",
        ),
        (post("/v1/unknown"), 404, "unknown path", "unknown_path"),
        (get("/v1/embeddings"), 405, "method not allowed", "method_not_allowed"),
    ],
)
async def test_a_refusal_is_json_in_the_shape_of_the_api_of_openai(request_bytes, status, message, code):
    async with gateway_in_memory(reasons_in_bodies=True) as harness:
        got = await harness.ask(request_bytes)
        assert got.status == status
        assert error_of(got) == (message, "invalid_request_error", code)


async def test_so_are_the_answers_after_an_attempt():
    async with gateway_in_memory(reasons_in_bodies=True, max_connect_retries=0, max_replay_body_bytes=3) as harness:
        worker = harness.worker("a", on_request=lambda exchange: exchange.fail())
        got = await harness.ask(post(body=b"{}"))
        assert (got.status, *error_of(got)[1:]) == (502, "server_error", "ambiguous_delivery")
        worker.refusal = "connection closed"
        got = await harness.ask(post(body=b"{}"))
        assert (got.status, *error_of(got)[1:]) == (502, "server_error", "no_answer")
        worker.refusal = worker.on_request = None
        client = await harness.client()
        client.send(post(**CHUNKED) + b"4\r\nfour\r\n0\r\n\r\n")
        exchange = await worker.next(1)
        await eventually(lambda: exchange.ended)
        exchange.reject()
        got = await client.answer()
        assert (got.status, *error_of(got)[1:]) == (413, "invalid_request_error", "request_too_large")


async def test_so_is_the_answer_when_no_worker_can_be_chosen_or_its_names_are_no_headers():
    async with gateway_in_memory(reasons_in_bodies=True, overload_answer=False) as harness:
        worker = harness.worker("a", cluster="c\n", on_request=lambda exchange: exchange.answer())
        got = await harness.ask(post())
        assert (got.status, *error_of(got)[1:]) == (500, "server_error", "internal_error")
        worker.refusal = "connection closed"
        got = await harness.ask(post())
        assert (got.status, *error_of(got)) == (
            503,
            "no worker can take the request now",
            "server_error",
            "unavailable",
        )


async def test_bodies_of_the_contract_and_those_of_workers_stay_as_they_are():
    async with gateway_in_memory(reasons_in_bodies=True, max_request_retries=0) as harness:
        got = await harness.ask(post())
        assert got.body == b'{"error":"no eligible candidates","code":"no_eligible_candidates"}'
        got = await harness.ask(post(x_routing_method="best"))
        assert (got.status, got.header("x-stargate-error-code")) == (400, "unknown_method")
        worker = harness.worker("a", on_request=lambda exchange: exchange.reject(429, "queue_estimate_mismatch"))
        got = await harness.ask(post())
        assert (got.status, got.header("x-stargate-error-code")) == (503, "overloaded_error")
        worker.on_request = lambda exchange: exchange.answer(503, b"")
        got = await harness.ask(post())
        assert (got.status, got.body, got.header("content-type")) == (503, b"", None)


async def test_probes_have_no_body_and_an_answer_to_head_names_the_length_only():
    async with gateway_in_memory(reasons_in_bodies=True) as harness:
        harness.ready = False
        got = await harness.ask(get("/readyz"))
        assert (got.status, got.is_empty) == (503, True)
        client = await harness.client()
        client.send(b"HEAD /unknown HTTP/1.1\r\nhost: router\r\n\r\n" + get("/healthz"))
        got = await client.answer(head_only=True)
        assert (got.status, got.header("content-type")) == (404, "application/json")
        assert int(got.header("content-length") or 0) > 0
        assert (await client.answer()).status == 200
