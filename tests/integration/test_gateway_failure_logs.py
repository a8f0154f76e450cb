"""What the log says about a request that failed at a worker: one warning with all that decided it."""

import pytest
from structlog.testing import capture_logs

from router.config import package_settings
from router.config.cli import parse
from support.gateway_in_memory import gateway_in_memory
from support.http_client import BrokenOffError, post
from support.package_settings import REQUIRED
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

FAILED = "proxied request failed"
BROKEN_OFF = "upstream response body stream failed"
NOBODY = "no inference server candidates for routing target"


def about(lines, event):
    return [line for line in lines if line["event"] == event]


def told(line):
    return {name: line[name] for name in ("status", "source", "disposition", "retry_reason")}


def rejecting(exchange):
    exchange.reject(429, "queue_full")


def broken(exchange):
    exchange.fail()


def unopened(harness, name="a"):
    """A worker of which no stream can be opened: nothing was handed over, so another attempt may follow."""
    harness.worker(name).refusal = "connection closed"


async def test_a_passed_on_500_is_one_line_and_a_200_none():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", cluster="c", on_request=lambda exchange: exchange.answer(500, b"sorry"))
            got = await harness.ask(post(x_request_id="id-1"))
            assert (got.status, got.body) == (500, b"sorry")
        (line,) = about(lines, FAILED)
        elapsed_ms = line.pop("elapsed_ms")
        assert 0 <= elapsed_ms < 30_000
        assert line == {
            "event": FAILED,
            "log_level": "warning",
            "request_id": "id-1",
            "routing_key": None,
            "model_id": "m",
            "inference_server_id": "a",
            "cluster_id": "c",
            "status": 500,
            "source": "upstream_response",
            "disposition": "pass_through",
            "retry_reason": None,
            "upstream_retryable": None,
            "upstream_retry_reason": None,
            "attempt": 1,
            "connect_retries": 0,
            "request_retries": 0,
            "failed_backends": 0,
        }
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", on_request=lambda exchange: exchange.answer(200))
            await harness.ask(post())
        assert about(lines, FAILED) == []


@pytest.mark.parametrize(("status", "logged"), [(429, 1), (503, 1), (599, 1), (400, 0), (404, 0)])
async def test_refusals_of_the_application_are_logged_if_they_are_about_capacity_or_a_fault(status, logged):
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", on_request=lambda exchange: exchange.answer(status, x_stargate_retryable="false"))
            assert (await harness.ask(post())).status == status
        found = about(lines, FAILED)
        assert [(line["status"], line["disposition"], line["upstream_retryable"]) for line in found] == [
            (status, "pass_through", False)
        ] * logged


async def test_a_retryable_answer_that_is_final_is_told_with_the_reason_of_the_worker():
    async with gateway_in_memory(max_request_retries=1) as harness:
        with capture_logs() as lines:
            harness.worker("a", on_request=rejecting)
            harness.worker("b", on_request=rejecting)
            harness.worker("c", on_request=rejecting)
            assert (await harness.ask(post())).status == 429
        (line,) = about(lines, FAILED)
        assert told(line) == {
            "status": 429,
            "source": "upstream_response",
            "disposition": "retry_exhausted",
            "retry_reason": "queue_full",
        }
        assert (line["upstream_retryable"], line["upstream_retry_reason"]) == (True, "queue_full")
        assert (line["attempt"], line["request_retries"]) == (2, 1)


async def test_a_budget_that_is_over_is_the_reason_also_of_a_retryable_answer():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", on_request=rejecting)
            assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == 429
        (line,) = about(lines, FAILED)
        assert (line["disposition"], line["retry_reason"]) == ("retry_exhausted", "retry_budget_exhausted")


async def test_attempts_that_never_reached_a_worker_end_as_exhausted_retries():
    async with gateway_in_memory(max_connect_retries=1) as harness:
        with capture_logs() as lines:
            for name in "abc":
                unopened(harness, name)
            assert (await harness.ask(post())).status == 502
        (line,) = about(lines, FAILED)
        assert told(line) == {
            "status": 502,
            "source": "proxy_error",
            "disposition": "retry_exhausted",
            "retry_reason": "connect_retries_exhausted",
        }
        assert (line["attempt"], line["connect_retries"], line["failed_backends"]) == (2, 1, 1)
        assert line["upstream_retryable"] is None


async def test_a_request_that_a_worker_may_have_processed_is_told_as_ambiguous():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", on_request=broken)
            harness.worker("b", on_request=broken)
            assert (await harness.ask(post())).status == 502
        (line,) = about(lines, FAILED)
        assert told(line) == {
            "status": 502,
            "source": "proxy_error",
            "disposition": "ambiguous_delivery",
            "retry_reason": "request_may_have_been_applied",
        }
        assert line["attempt"] == 1


@pytest.mark.parametrize(
    ("limit", "status", "disposition"), [(1 << 20, 503, "retry_exhausted"), (3, 413, "payload_too_large")]
)
async def test_a_final_refusal_for_capacity_is_told_with_the_status_that_the_client_got(limit, status, disposition):
    async with gateway_in_memory(max_request_retries=0, max_replay_body_bytes=limit) as harness:
        with capture_logs() as lines:
            worker = harness.worker("a")
            client = await harness.client()
            client.send(post(body=b"", transfer_encoding="chunked") + b"4\r\nfour\r\n0\r\n\r\n")
            exchange = await worker.next()
            await eventually(lambda: exchange.ended)
            exchange.reject(429, "queue_estimate_mismatch")
            assert (await client.answer()).status == status
        (line,) = about(lines, FAILED)
        assert told(line) == {
            "status": status,
            "source": "upstream_response",
            "disposition": disposition,
            "retry_reason": "queue_estimate_mismatch",
        }


async def test_a_body_that_is_not_complete_yet_cannot_be_sent_again():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            worker = harness.worker("a")
            client = await harness.client()
            client.send(post(body=b"", content_length="9") + b"half")
            (await worker.next()).fail()
            assert (await client.answer()).status == 502
        (line,) = about(lines, FAILED)
        assert (line["disposition"], line["retry_reason"]) == ("replay_incomplete", "retryable_proxy_error")


async def test_a_body_that_outgrew_its_copy_is_told_as_too_large():
    async with gateway_in_memory(max_replay_body_bytes=3) as harness:
        with capture_logs() as lines:
            worker = harness.worker("a")
            client = await harness.client()
            client.send(post(body=b"", transfer_encoding="chunked") + b"4\r\nfour\r\n0\r\n\r\n")
            exchange = await worker.next()
            await eventually(lambda: exchange.ended)
            rejecting(exchange)
            assert (await client.answer()).status == 413
        (line,) = about(lines, FAILED)
        assert told(line) == {
            "status": 413,
            "source": "upstream_response",
            "disposition": "payload_too_large",
            "retry_reason": "queue_full",
        }


async def test_an_answer_that_cannot_be_passed_on_is_one_line():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            harness.worker("a", cluster="c\n", on_request=lambda exchange: exchange.answer(503))
            assert (await harness.ask(post())).status == 500
        (line,) = about(lines, FAILED)
        assert (line["status"], line["source"], line["disposition"]) == (500, "proxy_error", "pass_through")


async def test_when_no_worker_is_left_there_is_one_line_that_says_so():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            assert (await harness.ask(post())).status == 404
            unopened(harness)
            assert (await harness.ask(post())).status == 503
        assert about(lines, FAILED) == []
        unknown, none_left = about(lines, NOBODY)
        assert unknown["finalization"] == "no_eligible_candidates"
        assert (unknown["failed_backend_count"], unknown["failed_cluster_count"]) == (0, 0)
        assert none_left["finalization"] == "unavailable"
        assert (none_left["failed_backend_count"], none_left["failed_cluster_count"]) == (1, 1)


async def test_a_response_that_breaks_off_is_told_with_the_bytes_that_were_streamed():
    async with gateway_in_memory() as harness:
        with capture_logs() as lines:
            worker = harness.worker("a")
            client = await harness.client()
            client.send(post())
            exchange = await worker.next()
            exchange.head()
            exchange.body(b"12345")
            exchange.body(b"678")
            exchange.fail("stream reset by peer")
            with pytest.raises(BrokenOffError):
                await client.answer()
        (line,) = about(lines, BROKEN_OFF)
        assert line == {
            "event": BROKEN_OFF,
            "log_level": "warning",
            "inference_server_id": "a",
            "status": 200,
            "streamed_bytes": 8,
            "error": "stream reset by peer",
        }
        assert about(lines, FAILED) == []


async def test_with_the_older_release_line_failures_have_no_line_of_their_own():
    assert not package_settings.proxy(parse([*REQUIRED, "--compat=0.11"], {})).failure_logs
    async with gateway_in_memory(failure_logs=False) as harness:
        with capture_logs() as lines:
            assert (await harness.ask(post())).status == 404
            worker = harness.worker("a", on_request=lambda exchange: exchange.answer(500, b"sorry"))
            assert (await harness.ask(post())).status == 500
            worker.on_request = None
            client = await harness.client()
            client.send(post())
            exchange = await worker.next(1)
            exchange.head()
            exchange.fail()
            with pytest.raises(BrokenOffError):
                await client.answer()
        assert about(lines, FAILED) == []
        assert about(lines, BROKEN_OFF) == []
        assert "finalization" not in about(lines, NOBODY)[0]
