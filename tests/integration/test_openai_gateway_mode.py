"""The mode `gateway` beside the cases of the specification, which `test_openai_cases.py` runs in both modes."""

import json
from typing import Any

import pytest

from router.openai.keys.refusals import CHECK_TOOK_TOO_LONG
from router.openai.ports import Authenticator
from support.front_in_memory import DONE, SSE, chunk, front_in_memory, get
from support.openai_cases.case import EMBEDDINGS, alice, ask

pytestmark = pytest.mark.loop("uvloop")

NO_CANDIDATES = '{"error":"no eligible candidates","code":"no_eligible_candidates"}'


async def test_a_check_of_keys_that_takes_too_long_is_told_as_by_the_gateway() -> None:
    class Slow(Authenticator):
        def authenticate(self, *_: Any) -> Any:
            return CHECK_TOOK_TOO_LONG

        def authorize(self, *_: Any) -> Any:
            return CHECK_TOOK_TOO_LONG

    async with front_in_memory(Slow(), mode="gateway") as front:
        answer = await front.ask(ask())
        assert (answer.status, answer.body) == (504, b'{"message":"authentication timed out"}\n')


async def test_errors_of_other_routes_pass_as_they_are() -> None:
    async with front_in_memory(alice(), mode="gateway") as front:
        short_and_stout = b"short and stout"
        front.worker(
            model="m",
            key="f",
            on_request=lambda exchange: exchange.answer(418, short_and_stout, retry_after="7"),
        )
        answer = await front.ask(ask(EMBEDDINGS, input="a"))
        assert (answer.status, answer.body, answer.header("retry-after")) == (418, short_and_stout, "7")
        answer = await front.ask(ask(EMBEDDINGS, model="f/unknown", input="a"))
        assert (answer.status, answer.body.decode()) == (404, NO_CANDIDATES)
        assert answer.header("x-stargate-error-code") == "no_eligible_candidates"


async def test_a_silent_stream_gets_comments() -> None:
    async with front_in_memory(alice(), mode="gateway", keepalive_ms=20) as front:
        worker = front.worker(model="m", key="f")
        client = await front.client()
        client.send(ask(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        await client.head()
        assert await client.chunk() == b": keep-alive\n\n"
        assert await client.chunk() == b": keep-alive\n\n"
        exchange.body(chunk({}, "stop") + DONE)
        exchange.end()
        assert await client.chunk() == chunk({}, "stop", model="f/m") + DONE


async def test_the_version_is_told() -> None:
    async with front_in_memory(alice(), mode="gateway") as front:
        answer = await front.ask(get("/info"))
        assert json.loads(answer.body) == {"service": "llm-request-router", "version": "1.2.3", "commit": "abc"}
