"""Keys, rights, limits and usage as clients of the OpenAI port see them, with real processes."""

import http.client
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from llm_request_router.testing import ProcessEndedError, System
from llm_request_router.testing.system import Reply
from router.openai.keys.key_file import KeyEntry, KeyFile, LimitEntry
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_store import KeyStore
from support.processes import free_ports
from support.redis_server import needs_redis, redis_server
from support.waiting import wait_until
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc

MODEL = "tiny-model"
OTHER = "other-model"
CHAT = "/v1/chat/completions"
LISTEN = "--openai-listen-addr=127.0.0.1:0"


class Keys:
    """A key file, and the keys in it by their ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, str] = {}
        self.option = f"--openai-keys-file={path}"

    def add(self, name: str, limits: LimitEntry | None = None, models: list[str] | None = None) -> None:
        self.of[name] = new_key()
        digest = "sha256:" + digest_of(self.of[name].encode()).hex()
        with KeyStore(self.path).changing() as change:
            entry = KeyEntry(id=name, digest=digest, limits=limits, models=models)
            change.file = KeyFile([*change.file.keys, entry])

    def revoke(self, name: str) -> None:
        with KeyStore(self.path).changing() as change:
            change.file = KeyFile([one for one in change.file.keys if one.id != name])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    found = Keys(tmp_path / "keys.json")
    found.add("alice")
    return found


@contextmanager
def started(keys: Keys, *options: str, listen: str = LISTEN) -> Iterator[System]:
    with System.start(listen, keys.option, *options) as system:
        system.add_worker(MODEL, OTHER, engine_options=["--token-delay-ms", "1"])
        yield system


def address(system: System) -> str:
    assert system.ports.openai is not None
    return system.ports.openai


def ask(system: System, key: str | None, model: str = MODEL, at: str | None = None, **more: object) -> Reply:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}], **more}
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    document = json.dumps(body).encode()
    return system.request("POST", CHAT, headers=headers, body=document, address=at or address(system))


def error(reply: Reply) -> dict[str, object]:
    document = json.loads(reply.body)
    found = document["error"]
    assert isinstance(found, dict)
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_key_is_needed_its_rights_hold_and_usage_is_counted_and_logged(keys: Keys, tmp_path: Path) -> None:
    keys.add("narrow", models=[OTHER])
    log = tmp_path / "usage.jsonl"
    with started(keys, f"--openai-usage-log={log}", "--openai-forbidden-status=403") as system:
        for wrong in (None, "nonsense", new_key()):
            refused = ask(system, wrong)
            assert refused.status == 401
            assert error(refused)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert refused.headers["x-request-id"]

        withheld = ask(system, keys.of["narrow"])
        assert withheld.status == 403
        assert error(withheld)["code"] == "permission_denied"
        assert error(withheld)["param"] == "model"

        with openai.OpenAI(base_url=f"http://{address(system)}/v1", api_key=keys.of["narrow"], max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [OTHER]
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])

        with openai.OpenAI(base_url=f"http://{address(system)}/v1", api_key=keys.of["alice"], max_retries=0) as client:
            found = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=4
            )
            assert found.usage is not None
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (1, 4)

        metrics = system.metrics()
        caller = f'key_id="alice",model="{MODEL}",routing_key=""'
        assert metrics[f'stargate_openai_requests_total{{{caller},status="200"}}'] == 1
        assert (
            metrics[f'stargate_openai_tokens_total{{key_id="alice",kind="input",model="{MODEL}",routing_key=""}}'] == 1
        )
        assert (
            metrics[f'stargate_openai_tokens_total{{key_id="alice",kind="output",model="{MODEL}",routing_key=""}}'] == 4
        )
        assert metrics['stargate_openai_key_refusals_total{reason="wrong"}'] == 2
        assert metrics['stargate_openai_key_refusals_total{reason="missing"}'] == 1

        wait_until(lambda: log.exists() and '"alice"' in log.read_text(), 10, "the request is in the usage log")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        (line,) = [one for one in lines if one["key_id"] == "alice"]
        assert (line["status"], line["end"], line["model"]) == (200, "complete", MODEL)
        assert (line["input_tokens"], line["output_tokens"]) == (1, 4)
        for key in keys.of.values():
            assert key not in log.read_text() + system.router.log()


def test_without_the_right_a_model_looks_as_if_it_did_not_exist(keys: Keys) -> None:
    keys.add("narrow", models=[OTHER])
    with started(keys) as system:
        withheld, unknown = ask(system, keys.of["narrow"]), ask(system, keys.of["narrow"], "no-such-model")
        assert (withheld.status, unknown.status) == (404, 404)
        texts = [error(one)["message"] for one in (withheld, unknown)]
        assert str(texts[0]).replace(MODEL, "M") == str(texts[1]).replace("no-such-model", "M")


def test_a_limit_is_429_with_all_fields_and_the_sdk_knows_it(keys: Keys) -> None:
    keys.add("limited", LimitEntry(requests="2-H", tokens="1000-H"))
    with started(keys) as system:
        first = ask(system, keys.of["limited"])
        assert first.status == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) > 900
        assert first.headers["x-ratelimit-reset-requests"].startswith("30m")
        assert first.headers["x-ratelimit-reset-tokens"]
        second = ask(system, keys.of["limited"], stream=True)
        assert second.status == 200
        # What the engine reported, 1 + 4, not what was estimated and reserved.
        assert int(second.headers["x-ratelimit-remaining-tokens"]) <= 1000 - 5
        with openai.OpenAI(
            base_url=f"http://{address(system)}/v1", api_key=keys.of["limited"], max_retries=2
        ) as client:
            began = time.monotonic()
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
            assert time.monotonic() - began < 5, "the pause is too long to be waited for"
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.type == "requests"
        fields = refused.value.response.headers
        assert int(fields["retry-after"]) > 60
        assert int(fields["retry-after-ms"]) > 60_000
        assert fields["x-should-retry"] == "false"
        assert fields["x-ratelimit-remaining-requests"] == "0"
        impossible = ask(system, keys.of["limited"], max_tokens=5000)
        assert impossible.status == 400
        assert error(impossible)["code"] == "rate_limit_request_too_large"
        assert system.metrics()['stargate_openai_limit_refusals_total{key_id="limited",kind="requests"}'] == 1
        assert ask(system, keys.of["alice"]).status == 200


def test_running_requests_are_limited_and_a_client_that_leaves_gives_its_place_back(keys: Keys) -> None:
    keys.add("one-at-a-time", LimitEntry(concurrency=1))
    with System.start(LISTEN, keys.option) as system:
        system.add_worker(MODEL, engine_options=["--token-delay-ms", "200", "--num-tokens", "1000"])
        body = {"model": MODEL, "max_tokens": 1000, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        connection = http.client.HTTPConnection(address(system), timeout=20)
        headers = {"authorization": f"Bearer {keys.of['one-at-a-time']}", "content-type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        assert connection.getresponse().status == 200
        refused = ask(system, keys.of["one-at-a-time"], max_tokens=1)
        assert refused.status == 429
        assert error(refused)["type"] == "concurrency"
        connection.close()
        wait_until(lambda: ask(system, keys.of["one-at-a-time"], max_tokens=1).status == 200, 10, "the place is free")


def test_a_revoked_key_ends_and_a_new_one_begins_without_a_restart(keys: Keys) -> None:
    with started(keys, "--openai-keys-poll-ms=3600000") as system:
        assert ask(system, keys.of["alice"]).status == 200
        keys.add("bob")
        keys.revoke("alice")
        assert ask(system, keys.of["bob"]).status == 401
        system.router.send(signal.SIGHUP)
        wait_until(lambda: ask(system, keys.of["bob"]).status == 200, 10, "the new key is known")
        assert ask(system, keys.of["alice"]).status == 401


def test_the_priority_and_secrets_of_a_request_are_the_keys_and_not_the_clients(keys: Keys) -> None:
    with started(keys) as system:
        body = json.dumps({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).encode()
        headers = {
            "x-api-key": keys.of["alice"],
            "content-type": "application/json",
            "x-priority": "0",
            "x-model": "no-such-model",
            "x-routing-key": "nobody",
            "cookie": "a=b",
        }
        assert system.request("POST", CHAT, headers=headers, body=body, address=address(system)).status == 200


def test_a_flood_of_wrong_keys_is_answered_and_leaves_nothing_in_the_log(keys: Keys) -> None:
    with started(keys) as system:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
        before = system.router.log()

        def flood(part: int) -> int:
            connection = http.client.HTTPConnection(address(system), timeout=20)
            refused = 0
            for i in range(500):
                headers = {"authorization": f"Bearer sk-lrr-{part:032x}{i:032x}", "content-type": "application/json"}
                connection.request("POST", CHAT, body, headers)
                response = connection.getresponse()
                response.read()
                refused += response.status == 401
            connection.close()
            return refused

        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(flood, range(4))) == 2000
        assert "sk-lrr-" not in system.router.log()
        assert len(system.router.log()) - len(before) < 2_000
        assert system.metrics()['stargate_openai_key_refusals_total{reason="wrong"}'] == 2000
        assert ask(system, keys.of["alice"]).status == 200


# --- starts that are refused -------------------------------------------------------------------------------------------


def refusal(*options: str) -> str:
    with pytest.raises(ProcessEndedError) as ended:
        System.start(*options)
    return ended.value.log


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((LISTEN,), "--openai-listen-addr requires --openai-keys-file"),
        (("--openai-listen-addr=0.0.0.0:0", "--openai-open"), "requires --openai-open-anywhere"),
        ((LISTEN, "--openai-open", "--openai-redis-url=http://h"), "--openai-redis-url cannot be used"),
    ],
)
def test_a_dangerous_or_useless_start_is_one_line(options: tuple[str, ...], told: str) -> None:
    (line,) = [line for line in refusal(*options).splitlines() if line.startswith("Error: ")]
    assert told in line


def test_limits_of_several_processes_without_redis_are_one_line(keys: Keys) -> None:
    keys.add("limited", LimitEntry(requests="2-H"))
    lines = refusal("--openai-listen-addr=127.0.0.1:18080", keys.option, "--processes=2").splitlines()
    (line,) = [line for line in lines if line.startswith("Error: ")]
    assert "limits of several processes need --openai-redis-url" in line


def test_keys_in_clear_are_one_warning(keys: Keys) -> None:
    with System.start("--openai-listen-addr=0.0.0.0:0", keys.option) as system:
        assert system.router.log().count("travel without TLS") == 1
    with System.start(LISTEN, keys.option) as system:
        assert "travel without TLS" not in system.router.log()


# --- several routers ---------------------------------------------------------------------------------------------------


@needs_redis
def test_two_routers_count_a_key_together_and_go_on_without_redis_as_is_set(keys: Keys, tmp_path: Path) -> None:
    keys.add("limited", LimitEntry(requests="3-D"))
    with redis_server(tmp_path) as redis:
        option = f"--openai-redis-url={redis.url}"
        with started(keys, option) as one, started(keys, option, "--openai-redis-down=closed") as other:
            found = [ask(system, keys.of["limited"]) for system in (one, other, one, other)]
            assert [reply.status for reply in found] == [200, 200, 200, 429]
            assert found[1].headers["x-ratelimit-remaining-requests"] == "1"
            redis.stop()
            assert ask(one, keys.of["limited"]).status == 200
            closed = ask(other, keys.of["limited"])
            assert closed.status == 503
            assert error(closed)["code"] == "rate_limit_unavailable"
            assert ask(other, keys.of["alice"]).status == 200, "no limits, nothing to ask"
            one.router.until_logged("Redis cannot be asked")


@needs_redis
def test_processes_of_one_router_count_a_key_together(keys: Keys, tmp_path: Path) -> None:
    keys.add("limited", LimitEntry(requests="4-D"))
    (port,) = free_ports(1)
    listen = f"127.0.0.1:{port}"
    with redis_server(tmp_path) as redis:
        options = ("--processes=2", f"--openai-redis-url={redis.url}", f"--openai-listen-addr={listen}")
        with System.start(keys.option, *options) as system:
            system.add_worker(MODEL, engine_options=["--token-delay-ms", "1"])
            # Each request has a connection of its own, which the kernel gives to one of the two.
            wait_until(
                lambda: all(ask(system, keys.of["alice"], at=listen).status == 200 for _ in range(16)),
                20,
                "both can route",
            )
            found = [ask(system, keys.of["limited"], at=listen).status for _ in range(12)]
            assert sorted(found) == [200] * 4 + [429] * 8
            caller = f'key_id="limited",model="{MODEL}",routing_key=""'
            assert system.metrics()[f'stargate_openai_requests_total{{{caller},status="200"}}'] == 4


# --- callers that the NVCF API knows -----------------------------------------------------------------------------------

FUNCTION = "7b2c9a10-0000-4000-8000-000000000001"


class Api(llm_gateway_pb2_grpc.LlmGatewayServicer):
    """Knows one worker's token, and one caller, whose tokens are limited."""

    def __init__(self) -> None:
        self.credentials: set[str | None] = set()
        self.asked = 0

    def AuthLlmWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 (name of the RPC)
        return llm_gateway_pb2.AuthLlmWorkerResponse(routingKey=FUNCTION)

    def AuthLlmInvocation(self, request: Any, context: Any) -> Any:  # noqa: N802 (name of the RPC)
        self.asked += 1
        self.credentials.add(dict(context.invocation_metadata()).get("authorization"))
        if request.clientAuthorizationToken != "nvapi-right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
        if request.routingKey != FUNCTION:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such function")
        answer = llm_gateway_pb2.AuthLlmInvocationResponse(
            routingKey=FUNCTION, authContext={"ncaId": "acme"}, priority=4
        )
        answer.modelSpecs[MODEL].tokenRateLimit = "100-H"
        return answer


def test_a_caller_that_the_nvcf_api_knows_is_served_and_limited_and_goes_on_while_it_is_away(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"nvcfApiToken": "service", "authToken": "router"}))
    api, server = Api(), grpc.server(ThreadPoolExecutor(2))
    llm_gateway_pb2_grpc.add_LlmGatewayServicer_to_server(api, server)
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    options = (f"--openai-auth-endpoint={endpoint}", f"--worker-auth-endpoint={endpoint}", f"--secrets-path={secrets}")
    try:
        with System.start(LISTEN, *options, "--openai-auth-cache-ms=1") as system:
            system.add_worker(MODEL, options=["--auth-token=w"], engine_options=["--token-delay-ms", "1"])
            name = f"{FUNCTION.upper()}/{MODEL}"
            answer = ask(system, "nvapi-right", name)
            assert answer.status == 200
            assert json.loads(answer.body)["model"] == name
            assert answer.headers["x-ratelimit-limit-tokens"] == "100"
            assert ask(system, "nvapi-wrong", name).status == 401
            assert ask(system, new_key(), name).status == 401
            assert ask(system, None, name).status == 401
            assert ask(system, "nvapi-right", "other").status == 404
            assert api.credentials == {"Bearer service"}
            server.stop(0).wait()
            assert ask(system, "nvapi-right", name).status == 200, "what is known is used a while longer"
            away = ask(system, "nvapi-new", name)
            assert away.status == 503
            assert error(away)["code"] == "authentication_unavailable"
            assert away.headers["retry-after"] == "1"
            refused = ask(system, "nvapi-right", name, max_tokens=90)
            assert (refused.status, error(refused)["type"]) == (429, "tokens")
            system.router.until_logged("cannot be checked by the NVCF API")
            assert "nvapi-" not in system.router.log()
            caller = f'key_id="nvcf:acme",model="{MODEL}",routing_key="{FUNCTION}"'
            assert system.metrics()[f'stargate_openai_requests_total{{{caller},status="200"}}'] == 2
    finally:
        server.stop(0)
