"""What headers are asked for and where they lead: validation, targets, waiting, admission, spill; docs/proxy.md, "Validation" and "Routing"."""

import asyncio
import json
from pathlib import Path

import pytest
from gateway_house import a_house, eventually, get, post, scenario

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
def test_a_request_without_a_required_header_is_400(path, name):
    @scenario
    async def test():
        async with a_house() as house:
            worker = house.worker(on_request=ok)
            for value in (None, "", "  ", "caf\xe9"):
                got = await house.ask(post(path, **{keyword(name): value}))
                assert (got.status, got.is_empty) == (400, True), value
            assert not worker.exchanges
            assert house.count("requests_total") == 0

    test()


def test_numbers_follow_the_grammar():
    @scenario
    async def test():
        async with a_house() as house:
            house.worker(on_request=ok)
            for vector in VECTORS["numeric_header"]:
                if vector["value"] is None or not vector["value"].isascii():
                    continue
                for name in ("x-priority",) if vector["bits"] == 32 else U64_HEADERS:
                    got = await house.ask(post(**{keyword(name): vector["value"]}))
                    assert got.status == (400 if vector["expected"] == "400" else 200), (name, vector)
            for name in ("x-priority", *U64_HEADERS):
                for value in ("bad", "\u00b2", "1 2", "", "0x10", "\u0661".encode().decode("latin-1")):
                    assert (await house.ask(post(**{keyword(name): value}))).status == 400, (name, value)

    test()


@scenario
async def test_an_optional_text_that_is_unusable_is_ignored():
    async with a_house() as house:
        house.worker(on_request=ok)
        for value in ("", "  ", "caf\xe9"):
            assert (await house.ask(post(x_cache_affinity_key=value, x_routing_key=value))).status == 200


@scenario
async def test_of_repeated_headers_the_first_counts_and_all_are_forwarded():
    async with a_house() as house:
        worker = house.worker(on_request=ok)
        request = post().replace(b"x-input-tokens: 12\r\n", b"x-input-tokens: 12\r\nX-Input-Tokens: bad\r\n")
        assert (await house.ask(request)).status == 200
        values = [value for name, value in worker.exchanges[0].request.headers if name == b"x-input-tokens"]
        assert values == [b"12", b"bad"]
        request = post(x_input_tokens="bad\r\nx-input-tokens: 12")
        assert (await house.ask(request)).status == 400


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
def test_routing_methods(method, status):
    @scenario
    async def test():
        async with a_house() as house:
            house.worker(on_request=ok)
            assert (await house.ask(post(x_routing_method=method, x_cache_affinity_key="k"))).status == status

    test()


@scenario
async def test_a_known_method_that_is_not_configured_is_400():
    async with a_house(POLICY) as house:
        house.worker(on_request=ok)
        assert (await house.ask(post(x_routing_method="random"))).status == 400
        assert (await house.ask(post(x_routing_method="power-of-n"))).status == 200


@scenario
async def test_a_required_affinity_key():
    async with a_house(POLICY) as house:
        house.worker(model="sticky", on_request=ok)
        assert (await house.ask(post(model="sticky"))).status == 400
        assert (await house.ask(post(model="sticky", x_cache_affinity_key="k", x_input_tokens=None))).status == 400
        assert (await house.ask(post(model="sticky", x_cache_affinity_key="k"))).status == 200


@scenario
async def test_a_declared_length_above_the_replay_limit_is_413_even_for_nobody():
    async with a_house(max_replay_body_bytes=8) as house:
        got = await house.ask(post(body=b"fifteen bytes.."))
        assert (got.status, got.is_empty) == (413, True)
        assert (await house.ask(post(body=b"8 bytes."))).status == 404
        assert (await house.ask(post(body=b"fifteen bytes..", x_priority="bad"))).status == 400
        assert house.count("requests_total", 'status="413"') == 0


@scenario
async def test_a_budget_header_of_another_name_and_none_at_all():
    async with a_house(retry_budget_header="X-Budget") as house:
        house.worker(on_request=ok)
        assert (await house.ask(post(x_budget="bad"))).status == 400
        assert (await house.ask(post(x_stargate_max_wait_ms="bad"))).status == 200
    async with a_house(retry_budget_header=None) as house:
        house.worker(on_request=ok)
        assert (await house.ask(post(x_stargate_max_wait_ms="bad"))).status == 200


# --- routes


@scenario
async def test_paths_match_exactly_and_nothing_is_redirected():
    async with a_house() as house:
        house.worker(on_request=ok)
        for path in ("/v1/chat/completions/", "//v1/chat/completions", "/v1/chat%2Fcompletions", "/V1/embeddings", "/"):
            got = await house.ask(post(path))
            assert (got.status, got.is_empty, got.header("x-stargate-error-code")) == (404, True, None)
        assert (await house.ask(get("/metrics"))).status == 404
        for path in PATHS:
            assert (await house.ask(post(path))).status == 200
            got = await house.ask(get(path))
            assert (got.status, got.header("allow"), got.is_empty) == (405, "POST", True)
        for path in ("/healthz", "/readyz", "/v1/models", "/debug/state"):
            got = await house.ask(post(path, body=b""))
            assert (got.status, got.header("allow"), got.is_empty) == (405, "GET,HEAD", True)


@scenario
async def test_models_are_listed_without_key_and_by_filter():
    async with a_house() as house:
        house.worker("1", model="b")
        house.worker("2", model="a")
        house.worker("3", model="keyed", key="k")
        house.worker("4", model="off", active=False)
        got = await house.ask(get("/v1/models"))
        assert (got.header("content-type"), got.body) == ("application/json", b'{"model_ids":["a","b"]}')
        got = await house.ask(get("/v1/models?model_ids=%20a%20&model_ids=+zz&routing_key=k"))
        assert got.body == b'{"model_ids":["a"]}'
        for query in ("model_ids=", "model_ids=%20", "model_ids=a&model_ids=+", "model_ids"):
            got = await house.ask(get(f"/v1/models?{query}"))
            assert (got.status, got.is_empty) == (400, True)
        state = json.loads((await house.ask(get("/debug/state"))).body)
        assert state["active_model_ids"] == ["a", "b", "keyed"]


@scenario
async def test_readiness_follows_the_drain():
    async with a_house() as house:
        assert (await house.ask(get("/healthz"))).status == 200
        assert (await house.ask(get("/readyz"))).status == 200
        house.ready = False
        got = await house.ask(get("/readyz"))
        assert (got.status, got.is_empty) == (503, True)


# --- targets


@scenario
async def test_nobody_registered_is_404_with_the_code():
    async with a_house() as house:
        got = await house.ask(post(model="nobody"))
        assert got.status == 404
        assert got.header("x-stargate-error-code") == "no_eligible_candidates"
        assert got.header("content-type") == "application/json"
        assert got.header("content-length") == "66"
        assert got.body == b'{"error":"no eligible candidates","code":"no_eligible_candidates"}'
        assert house.count("requests_total", 'inference_server_id=""', 'status="404"') == 1


@scenario
async def test_registered_but_inactive_is_an_empty_503():
    async with a_house() as house:
        worker = house.worker(active=False, on_request=ok)
        got = await house.ask(post())
        assert (got.status, got.is_empty, got.header("x-stargate-error-code")) == (503, True, None)
        house.update(worker)
        assert (await house.ask(post())).status == 200
        house.registry.end(worker.registration)
        assert (await house.ask(post())).status == 404


@scenario
async def test_routing_keys_and_models_keep_apart():
    async with a_house() as house:
        house.worker("plain", on_request=ok)
        house.worker("red", key="red", on_request=ok)
        house.worker("only", key="red", model="keyed", on_request=ok)
        assert (await house.ask(post())).header("x-inference-server-id") == "plain"
        assert (await house.ask(post(x_routing_key=" red "))).header("x-inference-server-id") == "red"
        for request in (post(x_routing_key="blue"), post(model="keyed"), post(x_routing_key="Red"), post(model="M")):
            got = await house.ask(request)
            assert (got.status, got.header("x-stargate-error-code")) == (404, "no_eligible_candidates")


@scenario
async def test_members_of_a_cluster_take_turns():
    async with a_house() as house:
        for name in "ba":
            house.worker(name, cluster="shared", on_request=ok)
        got = [await house.ask(post()) for _ in range(4)]
        assert [one.header("x-inference-server-id") for one in got] == ["a", "b", "a", "b"]
        assert {one.header("x-stargate-cluster-id") for one in got} == {"shared"}


@scenario
async def test_too_much_input_work_is_refused_with_its_code():
    async with a_house(POLICY) as house:
        house.worker(model="bounded", on_request=ok, queued_input_size=100, last_mean_input_tps=100.0)
        got = await house.ask(post(model="bounded", x_input_tokens="50"))
        assert (got.status, got.header("content-length")) == (503, "82")
        assert got.header("x-stargate-error-code") == "input_work_limit_exceeded"
        assert got.body == b'{"error":"input work admission limit exceeded","code":"input_work_limit_exceeded"}'
        assert house.count("admission_rejections_total", 'reason="input_work_limit_exceeded"') == 1


# --- tunnels without a free stream


@scenario
async def test_a_worker_without_a_free_stream_gives_way_to_a_sibling_then_to_another_cluster():
    async with a_house() as house:
        full = house.worker("a", cluster="c", on_request=ok)
        sibling = house.worker("b", cluster="c", on_request=ok)
        house.worker("z", on_request=ok, queue_size=9, queued_input_size=9000)
        full.free = 0
        got = [(await house.ask(post())).header("x-inference-server-id") for _ in range(3)]
        assert got == ["b", "b", "b"]
        sibling.free = 0
        assert (await house.ask(post())).header("x-inference-server-id") == "z"
        assert house.count("spills_total") >= 2


@scenario
async def test_without_any_free_stream_the_chosen_worker_is_waited_for_in_order():
    async with a_house() as house:
        worker = house.worker(on_request=ok)
        worker.free = 0
        asked = [asyncio.create_task(house.ask(post(x_request_id=str(number)))) for number in range(3)]
        await eventually(lambda: len(worker.waiting) == 3)
        for left in (2, 1, 0):
            worker.release_streams(1)
            worker.free = 1
            await eventually(lambda left=left: len(worker.waiting) == left)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 3
        assert house.count("spills_total") == 0


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
def test_what_the_front_does_not_speak_is_400_and_closes(request_bytes):
    @scenario
    async def test():
        async with a_house() as house:
            worker = house.worker(on_request=ok)
            client = await house.client()
            client.send(request_bytes)
            got = await client.answer()
            assert (got.status, got.is_empty, got.header("connection")) == (400, True, "close")
            assert await client.closed()
            assert not worker.exchanges

    test()


@scenario
async def test_a_willing_cluster_is_waited_for_until_the_limit():
    policy = b"""{"models": {"m": {"algorithm": "pulsar", "consider_kv_free_tokens": true}}}"""
    full = {"kv_cache_capacity_tokens": 10, "kv_cache_free_tokens": 0, "kv_cache_used_tokens": 10}
    async with a_house(policy) as house:
        worker = house.worker(on_request=ok, **full)
        for wait in ({}, {"x_max_wait_ms": "0"}, {"x_max_wait_ms": "20"}):
            got = await house.ask(post(x_cache_affinity_key="k", **wait))
            assert (got.status, got.is_empty) == (503, True)
        assert not worker.exchanges
        client = await house.client()
        client.send(post(x_cache_affinity_key="k", x_max_wait_ms=str(2**64 - 1)))
        await eventually(lambda: house.proxy.running)
        house.update(worker, kv_cache_capacity_tokens=1000, kv_cache_free_tokens=1000)
        assert (await client.answer()).status == 200
        assert house.metrics.routing_wait_seconds.count(("", "m")) == 1


@scenario
async def test_a_registration_that_ends_leaves_its_running_response_alone():
    async with a_house() as house:
        worker = house.worker()
        client = await house.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        house.registry.end(worker.registration)
        exchange.body(b"to the end")
        exchange.end()
        assert (await client.answer()).body == b"to the end"
        successor = house.worker(on_request=ok)
        assert (await house.ask(post())).status == 200
        assert (len(worker.exchanges), len(successor.exchanges)) == (1, 1)
