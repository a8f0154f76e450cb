"""What headers are asked for and where they lead: validation, targets, waiting, admission, spill; docs/proxy.md, "Validation" and "Routing"."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import get, post
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "load-balancing.json").read_text())
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
U64_HEADERS = ("x-input-tokens", "x-max-wait-ms", "x-request-slo-ms", "x-stargate-max-wait-ms")
POLICY = b"""{"default": "power-of-n", "models": {
    "sticky": {"algorithm": "pulsar", "require_cache_affinity_key": true},
    "bounded": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}"""


def ok(exchange):
    exchange.answer()


def keyword(name: str) -> str:
    return name.replace("-", "_")


# --- validation


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["x-model", "x-request-id", "x-input-tokens"])
async def test_a_request_without_a_required_header_is_400(path, name):
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=ok)
        for value in (None, "", "  ", "caf\xe9"):
            got = await harness.ask(post(path, **{keyword(name): value}))
            assert (got.status, got.is_empty) == (400, True), value
        assert not worker.exchanges
        assert harness.count("requests_total") == 0


async def test_numbers_follow_the_grammar():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=ok)
        for vector in VECTORS["numeric_header"]:
            if vector["value"] is None or not vector["value"].isascii():
                continue
            for name in ("x-priority",) if vector["bits"] == 32 else U64_HEADERS:
                got = await harness.ask(post(**{keyword(name): vector["value"]}))
                assert got.status == (400 if vector["expected"] == "400" else 200), (name, vector)
        for name in ("x-priority", *U64_HEADERS):
            for value in ("bad", "\u00b2", "1 2", "", "0x10", "\u0661".encode().decode("latin-1")):
                assert (await harness.ask(post(**{keyword(name): value}))).status == 400, (name, value)


async def test_an_optional_text_that_is_unusable_is_ignored():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=ok)
        for value in ("", "  ", "caf\xe9"):
            assert (await harness.ask(post(x_cache_affinity_key=value, x_routing_key=value))).status == 200


async def test_of_repeated_headers_the_first_counts_and_all_are_forwarded():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=ok)
        request = post().replace(b"x-input-tokens: 12\r\n", b"x-input-tokens: 12\r\nX-Input-Tokens: bad\r\n")
        assert (await harness.ask(request)).status == 200
        values = [value for name, value in worker.exchanges[0].request.headers if name == b"x-input-tokens"]
        assert values == [b"12", b"bad"]
        request = post(x_input_tokens="bad\r\nx-input-tokens: 12")
        assert (await harness.ask(request)).status == 400


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("power_of_two", 200),
        (" Round_Robin ", 200),
        ("groq_multiregion", 200),
        ("pulsar", 200),
        ("random", 200),
        ("best", 400),
        ("", 400),
        (" ", 400),
        ("caf\xe9", 400),
    ],
)
async def test_routing_methods(method, status):
    async with gateway_in_memory() as harness:
        harness.worker(on_request=ok)
        assert (await harness.ask(post(x_routing_method=method, x_cache_affinity_key="k"))).status == status


async def test_a_known_method_that_is_not_configured_is_400():
    async with gateway_in_memory(POLICY) as harness:
        harness.worker(on_request=ok)
        assert (await harness.ask(post(x_routing_method="random"))).status == 400
        assert (await harness.ask(post(x_routing_method="power-of-n"))).status == 200


async def test_a_required_affinity_key():
    async with gateway_in_memory(POLICY) as harness:
        harness.worker(model="sticky", on_request=ok)
        assert (await harness.ask(post(model="sticky"))).status == 400
        assert (await harness.ask(post(model="sticky", x_cache_affinity_key="k", x_input_tokens=None))).status == 400
        assert (await harness.ask(post(model="sticky", x_cache_affinity_key="k"))).status == 200


async def test_a_declared_length_above_the_replay_limit_is_413_even_for_nobody():
    async with gateway_in_memory(max_replay_body_bytes=8) as harness:
        got = await harness.ask(post(body=b"fifteen bytes.."))
        assert (got.status, got.is_empty) == (413, True)
        assert (await harness.ask(post(body=b"8 bytes."))).status == 404
        assert (await harness.ask(post(body=b"fifteen bytes..", x_priority="bad"))).status == 400
        assert harness.count("requests_total", 'status="413"') == 0


async def test_a_budget_header_of_another_name_and_none_at_all():
    async with gateway_in_memory(retry_budget_header="X-Budget") as harness:
        harness.worker(on_request=ok)
        assert (await harness.ask(post(x_budget="bad"))).status == 400
        assert (await harness.ask(post(x_stargate_max_wait_ms="bad"))).status == 200
    async with gateway_in_memory(retry_budget_header=None) as harness:
        harness.worker(on_request=ok)
        assert (await harness.ask(post(x_stargate_max_wait_ms="bad"))).status == 200


# --- routes


async def test_paths_match_exactly_and_nothing_is_redirected():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=ok)
        for path in ("/v1/chat/completions/", "//v1/chat/completions", "/v1/chat%2Fcompletions", "/V1/embeddings", "/"):
            got = await harness.ask(post(path))
            assert (got.status, got.is_empty, got.header("x-stargate-error-code")) == (404, True, None)
        assert (await harness.ask(get("/metrics"))).status == 404
        for path in PATHS:
            assert (await harness.ask(post(path))).status == 200
            got = await harness.ask(get(path))
            assert (got.status, got.header("allow"), got.is_empty) == (405, "POST", True)
        for path in ("/healthz", "/readyz", "/v1/models", "/debug/state"):
            got = await harness.ask(post(path, body=b""))
            assert (got.status, got.header("allow"), got.is_empty) == (405, "GET,HEAD", True)


async def test_models_are_listed_without_key_and_by_filter():
    async with gateway_in_memory() as harness:
        harness.worker("1", model="b")
        harness.worker("2", model="a")
        harness.worker("3", model="keyed", key="k")
        harness.worker("4", model="off", active=False)
        got = await harness.ask(get("/v1/models"))
        assert (got.header("content-type"), got.body) == ("application/json", b'{"model_ids":["a","b"]}')
        got = await harness.ask(get("/v1/models?model_ids=%20a%20&model_ids=+zz&routing_key=k"))
        assert got.body == b'{"model_ids":["a"]}'
        for query in ("model_ids=", "model_ids=%20", "model_ids=a&model_ids=+", "model_ids"):
            got = await harness.ask(get(f"/v1/models?{query}"))
            assert (got.status, got.is_empty) == (400, True)
        state = json.loads((await harness.ask(get("/debug/state"))).body)
        assert state["active_model_ids"] == ["a", "b", "keyed"]


async def test_readiness_follows_the_drain():
    async with gateway_in_memory() as harness:
        assert (await harness.ask(get("/healthz"))).status == 200
        assert (await harness.ask(get("/readyz"))).status == 200
        harness.ready = False
        got = await harness.ask(get("/readyz"))
        assert (got.status, got.is_empty) == (503, True)


# --- targets


async def test_nobody_registered_is_404_with_the_code():
    async with gateway_in_memory() as harness:
        got = await harness.ask(post(model="nobody"))
        assert got.status == 404
        assert got.header("x-stargate-error-code") == "no_eligible_candidates"
        assert got.header("content-type") == "application/json"
        assert got.header("content-length") == "66"
        assert got.body == b'{"error":"no eligible candidates","code":"no_eligible_candidates"}'
        assert harness.count("requests_total", 'inference_server_id=""', 'status="404"') == 1


async def test_registered_but_inactive_is_an_empty_503():
    async with gateway_in_memory() as harness:
        worker = harness.worker(active=False, on_request=ok)
        got = await harness.ask(post())
        assert (got.status, got.is_empty, got.header("x-stargate-error-code")) == (503, True, None)
        harness.update(worker)
        assert (await harness.ask(post())).status == 200
        harness.registry.end(worker.registration)
        assert (await harness.ask(post())).status == 404


async def test_routing_keys_and_models_keep_apart():
    async with gateway_in_memory() as harness:
        harness.worker("plain", on_request=ok)
        harness.worker("red", key="red", on_request=ok)
        harness.worker("only", key="red", model="keyed", on_request=ok)
        assert (await harness.ask(post())).header("x-inference-server-id") == "plain"
        assert (await harness.ask(post(x_routing_key=" red "))).header("x-inference-server-id") == "red"
        for request in (post(x_routing_key="blue"), post(model="keyed"), post(x_routing_key="Red"), post(model="M")):
            got = await harness.ask(request)
            assert (got.status, got.header("x-stargate-error-code")) == (404, "no_eligible_candidates")


async def test_members_of_a_cluster_take_turns():
    async with gateway_in_memory() as harness:
        for name in "ba":
            harness.worker(name, cluster="shared", on_request=ok)
        got = [await harness.ask(post()) for _ in range(4)]
        assert [one.header("x-inference-server-id") for one in got] == ["a", "b", "a", "b"]
        assert {one.header("x-stargate-cluster-id") for one in got} == {"shared"}


async def test_with_the_older_release_line_too_much_input_work_is_refused_with_a_code_of_its_own():
    async with gateway_in_memory(POLICY, compat="0.11") as harness:
        harness.worker(model="bounded", on_request=ok, queued_input_size=100, last_mean_input_tps=100.0)
        got = await harness.ask(post(model="bounded", x_input_tokens="50"))
        assert (got.status, got.header("content-length")) == (503, "82")
        assert got.header("x-stargate-error-code") == "input_work_limit_exceeded"
        assert got.body == b'{"error":"input work admission limit exceeded","code":"input_work_limit_exceeded"}'
        assert harness.count("admission_rejections_total", 'reason="input_work_limit_exceeded"') == 1


# --- tunnels without a free stream


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("method", [None, "power-of-n", "round-robin", "random"])
async def test_a_worker_that_reports_no_usable_throughput_is_served_and_spoils_nothing(rate, method):
    policy = b'{"default": "power-of-n", "request_algorithms": {"round-robin": "round-robin", "random": "random"}}'
    async with gateway_in_memory(policy) as harness:
        odd = harness.worker("odd", last_mean_input_tps=rate, queued_input_size=5, on_request=ok)
        assert (await harness.ask(post(x_routing_method=method))).status == 200
        well = harness.worker("well", last_mean_input_tps=100.0, on_request=ok)
        for _ in range(20):
            assert (await harness.ask(post(x_routing_method=method))).status == 200
        assert len(odd.exchanges) + len(well.exchanges) == 21
        assert well.exchanges


async def test_a_worker_without_a_free_stream_gives_way_to_a_sibling_then_to_another_cluster():
    async with gateway_in_memory() as harness:
        full = harness.worker("a", cluster="c", on_request=ok)
        sibling = harness.worker("b", cluster="c", on_request=ok)
        harness.worker("z", on_request=ok, queue_size=9, queued_input_size=9000)
        full.free = 0
        got = [(await harness.ask(post())).header("x-inference-server-id") for _ in range(3)]
        assert got == ["b", "b", "b"]
        sibling.free = 0
        assert (await harness.ask(post())).header("x-inference-server-id") == "z"
        assert harness.count("spills_total") >= 2


async def test_without_any_free_stream_the_chosen_worker_is_waited_for_in_order():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=ok)
        worker.free = 0
        asked = [asyncio.create_task(harness.ask(post(x_request_id=str(number)))) for number in range(3)]
        await eventually(lambda: len(worker.waiting) == 3)
        for left in (2, 1, 0):
            worker.release_streams(1)
            worker.free = 1
            await eventually(lambda left=left: len(worker.waiting) == left)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3
        assert harness.count("spills_total") == 0


# --- differences that docs/differences.md names


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        post().replace(b"POST", b"post", 1),
        post().replace(b"\r\n", b"\n"),
        post(transfer_encoding="gzip, chunked"),
        post(chunked=True, version="1.0"),
        post().replace(b"content-length: 2", b"content-length: 2\r\ncontent-length: 3"),
    ],
    ids=["preface", "lower case", "line feeds", "gzip", "chunked 1.0", "two lengths"],
)
async def test_what_the_front_does_not_speak_is_400_and_closes(request_bytes):
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=ok)
        client = await harness.client()
        client.send(request_bytes)
        got = await client.answer()
        assert (got.status, got.is_empty, got.header("connection")) == (400, True, "close")
        assert await client.closed()
        assert not worker.exchanges


async def test_a_willing_cluster_is_waited_for_until_the_limit():
    policy = b"""{"models": {"m": {"algorithm": "pulsar", "consider_kv_free_tokens": true}}}"""
    full = {"kv_cache_capacity_tokens": 10, "kv_cache_free_tokens": 0, "kv_cache_used_tokens": 10}
    async with gateway_in_memory(policy) as harness:
        worker = harness.worker(on_request=ok, **full)
        for wait in ({}, {"x_max_wait_ms": "0"}, {"x_max_wait_ms": "20"}):
            got = await harness.ask(post(x_cache_affinity_key="k", **wait))
            assert (got.status, got.header("x-stargate-error-code")) == (503, "overloaded_error")
        assert not worker.exchanges
        client = await harness.client()
        client.send(post(x_cache_affinity_key="k", x_max_wait_ms=str(2**64 - 1)))
        await eventually(lambda: harness.proxy.running)
        harness.update(worker, kv_cache_capacity_tokens=1000, kv_cache_free_tokens=1000)
        assert (await client.answer()).status == 200
        assert harness.metrics.routing_wait_seconds.count(("", "m")) == 1


async def test_a_registration_that_ends_leaves_its_running_response_alone():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        harness.registry.end(worker.registration)
        exchange.body(b"to the end")
        exchange.end()
        assert (await client.answer()).body == b"to the end"
        successor = harness.worker(on_request=ok)
        assert (await harness.ask(post())).status == 200
        assert (len(worker.exchanges), len(successor.exchanges)) == (1, 1)
