"""The black-box cases of the gateway's specification (its section 11): one table, run in both modes of the front."""

import json
from typing import Any, Literal

import pytest

from support.front_in_memory import FrontInMemory, error_of, front_in_memory
from support.http_client import HttpAnswer
from support.openai_cases import CASES, Case, Otherwise, Says, Seen
from support.openai_cases.case import UUID, alice

pytestmark = pytest.mark.loop("uvloop")

Mode = Literal["openai", "gateway"]
TARGETS = (("m", "f"), ("a/b", "f"), ("m", UUID))


def test_every_case_is_in_the_table_once() -> None:
    assert [case.number for case in CASES] == list(range(1, 86))


def test_what_is_answered_otherwise_than_by_the_gateway_has_a_reason() -> None:
    otherwise = {case.number: case.gateway.because for case in CASES if isinstance(case.gateway, Otherwise)}
    assert all(otherwise.values())
    assert len(otherwise) < 20


@pytest.mark.parametrize("mode", ["openai", "gateway"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}: {case.what}")
async def test_case(case: Case, mode: Mode) -> None:
    expected = case.openai if mode == "openai" else case.gateway
    says = expected.says if isinstance(expected, Otherwise) else expected
    keys = case.keys or alice()
    origins = ("https://a.test",) if mode == "openai" else ()
    async with front_in_memory(keys, mode=mode, cors_origins=origins, max_body_bytes=18_000) as front:
        seen = await played(front, case)
        if seen.answers:
            check_answer(seen.answer, says, mode)
        else:
            assert front.usage.records[0].status == says.status
        if says.check is not None:
            says.check(seen)


async def played(front: FrontInMemory, case: Case) -> Seen:
    """Have workers answer what the client asks."""
    targets = (*TARGETS, *case.workers)
    workers = [
        front.worker(f"w{at}", model=model, key=key, on_request=case.worker) for at, (model, key) in enumerate(targets)
    ]
    front.played = workers[0]
    front.worker("w9", model="idle", key="f", active=False)
    if case.prepare is not None:
        case.prepare(front)
    if callable(case.request):
        answers = await case.request(front)
    else:
        requests = (case.request,) if isinstance(case.request, bytes) else case.request
        answers = [await asked(front, request) for request in requests]
    return Seen(front, answers, [exchange for worker in workers for exchange in worker.exchanges])


async def asked(front: FrontInMemory, request: bytes) -> HttpAnswer:
    client = await front.client()
    client.send(request)
    return await client.answer(head_only=request.startswith(b"HEAD"))


def check_answer(answer: HttpAnswer, says: Says, mode: Mode) -> None:
    assert answer.status == says.status, answer.body
    assert answer.header("x-request-id")
    if says.error is None:
        return
    if mode == "openai":
        error = error_of(answer)
        assert (error["code"], error["param"]) == (says.error, says.param)
        return
    message = message_of(answer)
    if says.error.endswith("..."):
        assert message.startswith(says.error.removesuffix("...")), message
    else:
        assert message == says.error


def message_of(answer: Any) -> str:
    """The message of an error of the gateway, which has nothing else."""
    found = json.loads(answer.body)
    assert set(found) == {"message"}
    assert answer.header("content-type") == "application/json"
    assert answer.body.endswith(b"}\n")
    text: str = found["message"]
    return text
