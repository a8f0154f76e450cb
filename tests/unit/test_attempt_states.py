"""An attempt that is told what no framing tells fails, so that its client is answered."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.http1.request import RequestBody
from router.ports.tunnels import TunnelError
from router.proxy.attempt import Attempt, AttemptCallbacks, AttemptState
from router.proxy.head_deadlines import HeadDeadlines
from router.proxy.replay import ReplayBudget, ReplayBuffer
from tunnel_protocol.head import RequestHead


class FakeExchange:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class FakeTunnels:
    def __init__(self, exchange: FakeExchange) -> None:
        self.exchange = exchange

    def try_open(self, head: RequestHead, sink: Any, *, end: bool) -> FakeExchange:
        return self.exchange


class Owner(AttemptCallbacks):
    def __init__(self) -> None:
        self.failures: list[str] = []

    def attempt_failed(self, error: TunnelError, *, handed_over: bool) -> None:
        self.failures.append(error.reason)


@pytest.mark.parametrize("event", ["body", "end"])
async def test_a_response_that_comes_without_a_head_fails_the_attempt_with_a_log_line(event: str) -> None:
    body, owner, exchange = RequestBody(lambda _: None), Owner(), FakeExchange()
    body.finish()
    attempt = Attempt(
        owner,  # type: ignore[arg-type]
        FakeTunnels(exchange),  # type: ignore[arg-type]
        body,
        ReplayBuffer(100, ReplayBudget(0, lambda: None)),
        asyncio.get_running_loop(),
        HeadDeadlines(asyncio.get_running_loop(), 10.0),
        idle_timeout_ms=0,
    )
    attempt.start(RequestHead(b"POST", b"/", []))
    assert attempt.state is AttemptState.AWAITING_HEAD
    with capture_logs() as logs:
        if event == "body":
            attempt.on_body(b"x")
        else:
            attempt.on_end()
        attempt.on_body(b"more")
        attempt.on_end()
    assert owner.failures == ["response without a head"]
    assert exchange.calls[-1] == "cancel"
    assert attempt.state is AttemptState.OVER
    assert [line["event"] for line in logs] == ["response without a head"]
