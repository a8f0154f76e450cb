"""Why a router is not ready: told once in the log when a reason appears and when it goes, and in a metric."""

import asyncio

import pytest
import structlog

from router.process.readiness import NotReady, Readiness
from router.telemetry.loop_lag import RECOVERY_S, STALL_S, LoopLag
from router.telemetry.metrics import Metrics
from support.loops import VirtualTimeLoop


def test_a_reason_is_told_when_it_appears_and_when_it_goes() -> None:
    metrics, holding = Metrics("stargate_"), set[NotReady]()
    causes = {reason: (lambda reason=reason: reason in holding) for reason in NotReady}
    readiness = Readiness(causes, metrics)
    with structlog.testing.capture_logs() as lines:
        assert readiness.ready()
        holding |= {NotReady.DRAINING, NotReady.EVENT_LOOP_STALLED}
        assert not readiness.ready()
        assert not readiness.ready()
        holding.remove(NotReady.EVENT_LOOP_STALLED)
        readiness.poll()
        assert readiness.reasons() == [NotReady.DRAINING]
        holding.clear()
        assert readiness.ready()
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("not ready", "draining"),
        ("not ready", "event_loop_stalled"),
        ("reason against readiness is gone", "event_loop_stalled"),
        ("reason against readiness is gone", "draining"),
    ]


def test_every_reason_is_a_sample_of_the_metric_and_what_nobody_watches_never_holds() -> None:
    metrics = Metrics("stargate_")
    Readiness({NotReady.CERTIFICATE_EXPIRED: lambda: True}, metrics)
    page = metrics.render(additional=True).decode()
    found = {reason.value: f'stargate_not_ready{{reason="{reason.value}"}} 1' in page for reason in NotReady}
    assert found == {reason.value: reason is NotReady.CERTIFICATE_EXPIRED for reason in NotReady}


class Histogram:
    def __init__(self) -> None:
        self.seen: list[float] = []

    def observe(self, value: float) -> None:
        self.seen.append(value)


@pytest.mark.loop("virtual")
@pytest.mark.parametrize(("stood_still_s", "stalled"), [(STALL_S * 0.9, False), (STALL_S * 1.6, True)])
async def test_a_loop_that_stood_still_is_stalled_for_a_while(stood_still_s: float, stalled: bool) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    lag = LoopLag(Histogram())  # type: ignore[arg-type]
    lag.start()
    await asyncio.sleep(1.5)
    assert not lag.stalled()
    loop.stand_still(stood_still_s)
    assert lag.stalled() is stalled
    await asyncio.sleep(RECOVERY_S * 0.9)
    assert lag.stalled() is stalled
    await asyncio.sleep(RECOVERY_S * 0.2)
    assert not lag.stalled()
    lag.stop()
