"""Callers that the NVCF API knows: its answers, what is remembered of them, its failures, and floods of keys that it does not know."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from router.openai.keys import answer_cache, nvcf
from router.openai.keys.answer_cache import ANSWERS
from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.caller import GrantedCaller
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_table import KeyTable
from router.openai.keys.nvcf import QUESTIONS, CredentialUnavailableError, NvcfCheck
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.rule import parse_rules
from router.openai.ports import Caller, KeyRefused
from router.telemetry.metrics import Metrics
from support.waiting import eventually
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc
from tunnel_protocol.limit import Limit

pytestmark = pytest.mark.loop("grpc")

FUNCTION = "7b2c9a10-0000-4000-8000-000000000001"
KEY = new_key()


class FakeApi(llm_gateway_pb2_grpc.LlmGatewayServicer):
    """Answers `reply`, or fails with `status`, or waits for `gate`."""

    def __init__(self) -> None:
        self.reply = llm_gateway_pb2.AuthLlmInvocationResponse(routingKey=FUNCTION, authContext={"ncaId": "acme"})
        self.status: grpc.StatusCode | None = None
        self.gate: asyncio.Event | None = None
        self.asked: list[tuple[str, str, str | None]] = []

    async def AuthLlmInvocation(  # noqa: N802 (name of the RPC)
        self, request: Any, context: Any
    ) -> llm_gateway_pb2.AuthLlmInvocationResponse:
        authorization = dict(context.invocation_metadata()).get("authorization")
        self.asked.append((request.clientAuthorizationToken, request.routingKey, authorization))
        if self.gate is not None:
            await self.gate.wait()
        if self.status is not None:
            await context.abort(self.status, "secret detail")
        return self.reply


class Rig:
    def __init__(self, api: FakeApi, port: int, *, hide: bool, timeout_s: float) -> None:
        self.api = api
        self.now = 0.0
        self.metrics = Metrics()
        self.credential = "service-token"
        self.check = NvcfCheck(
            f"http://127.0.0.1:{port}",
            self._credential,
            self.metrics,
            timeout_s=timeout_s,
            cache_s=30,
            hide=hide,
            clock=lambda: self.now,
        )
        self.file_caller = GrantedCaller(key_id="file")
        table = KeyTable({digest_of(KEY.encode()): self.file_caller})
        self.gate = KeyAuthenticator(
            lambda: table, self.metrics.openai_key_refusals_total, hide=hide, now=lambda: 0.0, remote=self.check
        )

    async def _credential(self) -> str:
        if not self.credential:
            raise CredentialUnavailableError("no secrets file")
        return self.credential

    async def ask(
        self, key: str = "nvapi-1", routing_key: str | None = FUNCTION, model: str = "m"
    ) -> Caller | KeyRefused:
        caller = self.gate.authenticate(f"Bearer {key}".encode(), None)
        if isinstance(caller, KeyRefused):
            return caller
        found = self.gate.authorize(caller, routing_key, model, f"{routing_key}/{model}")
        return await found if isinstance(found, asyncio.Future) else found

    async def refusal(self, key: str = "nvapi-1", routing_key: str | None = FUNCTION) -> KeyRefused:
        found = await self.ask(key, routing_key)
        assert isinstance(found, KeyRefused)
        return found

    async def granted(self, key: str = "nvapi-1") -> GrantedCaller:
        found = await self.ask(key)
        assert isinstance(found, GrantedCaller), found
        return found

    def count(self, result: str) -> float:
        return self.metrics.openai_key_checks_total.value((result,))


@asynccontextmanager
async def rig(*, hide: bool = True, timeout_s: float = 5) -> AsyncIterator[Rig]:
    api, server = FakeApi(), grpc.aio.server()
    llm_gateway_pb2_grpc.add_LlmGatewayServicer_to_server(api, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = Rig(api, port, hide=hide, timeout_s=timeout_s)
    try:
        yield found
    finally:
        if api.gate is not None:
            api.gate.set()
        await found.check.close()
        await server.stop(0)


async def test_a_caller_gets_what_the_api_says_of_it() -> None:
    async with rig() as one:
        one.api.reply.priority = 0
        one.api.reply.modelSpecs["m"].tokenRateLimit = "100-M,5000-D"
        one.api.reply.modelSpecs["m"].routingMethod = " pulsar "
        one.api.reply.modelSpecs["free"].uris.append("/v1/chat/completions")
        caller = await one.granted()
        assert one.api.asked == [("nvapi-1", FUNCTION, "Bearer service-token")]
        assert (caller.key_id, caller.priority) == ("nvcf:acme", 0)
        assert caller.routing_method("m") == "pulsar"
        assert caller.routing_method("free") is None
        (scope,) = caller.limit_scopes(FUNCTION, "m")
        assert scope.limits == LimitSet(tokens=parse_rules("100-M,5000-D"))
        assert caller.limit_scopes(FUNCTION, "free") == ()
        assert caller.may_use(FUNCTION, "anything")
        assert not caller.may_use(None, "m")
        assert not caller.may_use("other", "m")


async def test_an_absent_priority_is_none_and_a_long_account_still_has_a_short_id() -> None:
    async with rig() as one:
        one.api.reply.authContext["ncaId"] = "a" * 200
        caller = await one.granted()
        assert caller.priority is None
        assert len(caller.key_id) <= 64
        assert caller.owner == "nvcf:" + "a" * 200


async def test_keys_of_the_file_and_keys_of_its_kind_are_never_asked_about() -> None:
    async with rig() as one:
        assert await one.ask(KEY) is one.file_caller
        assert (await one.refusal(new_key())).status == 401
        refused = one.gate.authenticate(b"Bearer \xff\x01", None)
        assert isinstance(refused, KeyRefused)
        assert one.api.asked == []


async def test_a_caller_lists_no_models_before_it_is_checked_and_has_none_without_a_routing_key() -> None:
    async with rig() as one:
        caller = one.gate.authenticate(b"Bearer nvapi-1", None)
        assert not isinstance(caller, KeyRefused)
        assert not caller.may_use(FUNCTION, "m")
        assert caller.routing_method("m") is None
        assert "nvapi-1" not in repr(caller)
        assert (await one.refusal(routing_key=None)).code == "model_not_found"
        assert (await one.refusal(routing_key="\ud800")).code == "model_not_found"
        assert one.api.asked == []


@pytest.mark.parametrize(
    ("status", "hidden", "shown"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, (401, "invalid_api_key"), (401, "invalid_api_key")),
        (grpc.StatusCode.PERMISSION_DENIED, (404, "model_not_found"), (403, "permission_denied")),
        (grpc.StatusCode.NOT_FOUND, (404, "model_not_found"), (403, "permission_denied")),
        (grpc.StatusCode.INVALID_ARGUMENT, (404, "model_not_found"), (403, "permission_denied")),
        (grpc.StatusCode.DEADLINE_EXCEEDED, (504, "timeout"), (504, "timeout")),
        (grpc.StatusCode.UNAVAILABLE, (503, "authentication_unavailable"), (503, "authentication_unavailable")),
        (grpc.StatusCode.INTERNAL, (502, "upstream_error"), (502, "upstream_error")),
    ],
)
@pytest.mark.parametrize("hide", [True, False])
async def test_each_failure_has_its_status_and_the_text_of_the_api_reaches_nobody(
    status: grpc.StatusCode, hidden: tuple[int, str], shown: tuple[int, str], hide: bool
) -> None:
    async with rig(hide=hide) as one:
        one.api.status = status
        found = await one.refusal()
        assert (found.status, found.code) == (hidden if hide else shown)
        assert "secret detail" not in found.message
        if found.status == 503:
            assert dict(found.headers)[b"retry-after"] == b"1"


@pytest.mark.parametrize("what", ["account", "routing key", "limit"])
async def test_an_answer_that_cannot_be_used_is_502_and_logged_without_the_key(what: str) -> None:
    async with rig() as one:
        if what == "account":
            del one.api.reply.authContext["ncaId"]
        elif what == "routing key":
            one.api.reply.routingKey = "other"
        else:
            one.api.reply.modelSpecs["m"].tokenRateLimit = "100-m"
        with capture_logs() as logs:
            for _ in range(3):
                assert (await one.refusal()).status == 502
        assert len(logs) == 1, "once a minute"
        assert "nvapi-1" not in str(logs)


async def test_an_acceptance_is_remembered_and_used_a_little_longer_while_the_api_is_unavailable() -> None:
    async with rig() as one:
        first = await one.granted()
        one.now = 29
        assert await one.granted() is first
        assert len(one.api.asked) == 1
        one.now = 31
        one.api.status = grpc.StatusCode.UNAVAILABLE
        assert await one.granted() is first
        assert (one.count("cached"), one.count("stale")) == (1, 1)
        one.now = 331
        assert (await one.refusal()).status == 503
        one.api.status = None
        assert await one.granted() is not first


async def test_a_refusal_ends_an_acceptance_and_is_remembered_for_a_shorter_time() -> None:
    async with rig() as one:
        await one.granted()
        one.now = 31
        one.api.status = grpc.StatusCode.PERMISSION_DENIED
        for _ in range(5):
            assert (await one.refusal()).status == 404
        assert len(one.api.asked) == 2
        one.api.status = grpc.StatusCode.UNAVAILABLE
        one.now = 37
        assert (await one.refusal()).status == 503, "the acceptance of before is forgotten"
        one.api.status = None
        await one.granted()


async def test_requests_at_the_same_time_ask_once_and_one_that_leaves_does_not_end_it_for_others() -> None:
    async with rig() as one:
        one.api.gate = asyncio.Event()
        tasks = [asyncio.create_task(one.ask()) for _ in range(20)]
        await eventually(lambda: one.api.asked)
        tasks[0].cancel()
        one.api.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        assert all(isinstance(found, GrantedCaller) for found in done[1:])
        assert len(one.api.asked) == 1


async def test_questions_are_bounded_and_further_callers_are_told_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert QUESTIONS.pieces is not None
    monkeypatch.setattr(nvcf, "QUESTIONS", Limit("questions", pieces=5))
    async with rig() as one:
        one.api.gate = asyncio.Event()
        tasks = [asyncio.create_task(one.ask(f"nvapi-{i}")) for i in range(20)]
        await eventually(lambda: sum(task.done() for task in tasks) == 15 and len(one.api.asked) == 5)
        refused = [task for task in tasks if task.done()]
        for task in refused:
            found = task.result()
            assert isinstance(found, KeyRefused)
            assert found.status == 503
        one.api.gate.set()
        await asyncio.wait(tasks)
        assert one.count("busy") == 15


async def test_an_api_that_hangs_costs_one_deadline() -> None:
    async with rig(timeout_s=0.1) as one:
        one.api.gate = asyncio.Event()
        assert (await one.refusal()).status == 504


async def test_without_a_credential_for_the_api_nobody_is_asked() -> None:
    async with rig() as one:
        one.credential = ""
        with capture_logs() as logs:
            assert (await one.refusal()).status == 503
        assert logs[0]["error"] == "no secrets file"
        one.credential = "a\nb"
        assert (await one.refusal()).status == 503
        assert one.api.asked == []


async def test_what_is_remembered_is_bounded_and_wrong_keys_displace_no_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ANSWERS.pieces is not None
    monkeypatch.setattr(answer_cache, "ANSWERS", Limit("answers", pieces=10))
    async with rig() as one:
        await one.granted("right")
        one.api.status = grpc.StatusCode.UNAUTHENTICATED
        for i in range(50):
            assert (await one.refusal(f"wrong-{i}")).status == 401
        assert len(one.check._refused) == 10
        asked = len(one.api.asked)
        await one.granted("right")
        assert len(one.api.asked) == asked


async def test_nothing_is_remembered_if_so_set() -> None:
    cache = answer_cache.AnswerCache[int](0, 0, lambda: 0.0)
    cache.put(b"a", 1)
    assert cache.get(b"a") is None


@pytest.mark.parametrize("endpoint", ["127.0.0.1:50051", "grpc://h:1", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="http or https URL"):
        NvcfCheck(endpoint, None, Metrics(), timeout_s=1, cache_s=1, hide=True)


async def test_an_endpoint_may_use_tls_and_need_no_credential() -> None:
    check = NvcfCheck("https://[::1]:1", None, Metrics(), timeout_s=0.2, cache_s=1, hide=True)
    caller = check.candidate(b"k")
    assert caller is not None
    found = check.check(caller, "f", "f/m")
    assert isinstance(found, asyncio.Future)
    refused = await found
    assert isinstance(refused, KeyRefused)
    assert refused.status in (503, 504)
    await check.close()


async def test_at_the_end_what_is_being_asked_is_cancelled() -> None:
    async with rig() as one:
        one.api.gate = asyncio.Event()
        task = asyncio.create_task(one.ask())
        await eventually(lambda: one.api.asked)
        await one.check.close()
        await asyncio.wait([task])
        assert task.cancelled()
