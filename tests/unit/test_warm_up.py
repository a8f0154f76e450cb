"""The warm-up before /readyz is 200: fixed time, early end by a stable number of workers, and no way back."""

import asyncio
from collections.abc import Callable

import pytest
import structlog

from router.config.cli import UsageError, parse
from router.process.readiness import NotReady, Readiness
from router.process.warm_up import WarmUp, WarmUpState, WarmUpTimer, active_backends
from router.registry import Identity, ModelStats, ModelUpdate, Registry
from router.telemetry.metrics import Metrics
from support.loops import VirtualTimeLoop

REQUIRED = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=routers.local"]
STABILIZED = "backend count stabilized; promoting replica to ready before warmup window elapses"
ELAPSED = "readiness warmup window elapsed; promoting replica to ready"

pytestmark = pytest.mark.loop("virtual")


def started(
    count: Callable[[], int],
    on_ready: Callable[[], None] = lambda: None,
    *,
    warm_up_ms: int,
    sample_interval_ms: int = 1_000,
    window: int = 5,
) -> WarmUpTimer:
    now = asyncio.get_running_loop().time()
    warm_up = WarmUp(warm_up_ms=warm_up_ms, sample_interval_ms=sample_interval_ms, window=window, now=now)
    timer = WarmUpTimer(warm_up, count, on_ready)
    timer.start()
    return timer


async def test_without_a_warm_up_the_router_is_ready_at_once_and_counts_nothing() -> None:
    counted: list[int] = []
    with structlog.testing.capture_logs() as lines:
        timer = started(lambda: counted.append(1) or 1, warm_up_ms=0)
        assert not timer.warming()
        await asyncio.sleep(100)
    assert not counted
    assert not lines


async def test_without_workers_the_warm_up_ends_when_its_time_is_over() -> None:
    with structlog.testing.capture_logs() as lines:
        timer = started(lambda: 0, warm_up_ms=60_000)
        await asyncio.sleep(59.99)
        assert timer.warming()
        await asyncio.sleep(0.02)
        assert not timer.warming()
        await asyncio.sleep(100)
    assert lines == [{"event": ELAPSED, "warmup_ms": 60_000, "log_level": "info"}]


async def test_a_stable_number_of_workers_ends_it_with_the_sample_after_the_window() -> None:
    with structlog.testing.capture_logs() as lines:
        timer = started(lambda: 1, warm_up_ms=60_000, sample_interval_ms=100, window=3)
        await asyncio.sleep(0.399)
        assert timer.warming()
        await asyncio.sleep(0.002)
        assert not timer.warming()
    assert lines == [{"event": STABILIZED, "active_backends": 1, "stable_samples": 3, "log_level": "info"}]


async def test_the_defaults_end_it_after_six_seconds_at_the_earliest() -> None:
    timer = started(lambda: 7, warm_up_ms=60_000)
    await asyncio.sleep(5.99)
    assert timer.warming()
    await asyncio.sleep(0.02)
    assert not timer.warming()


async def test_a_change_of_the_number_starts_the_window_again() -> None:
    counts = iter([1, 1, 1, 2, 2, 2, 2])
    timer = started(lambda: next(counts), warm_up_ms=60_000, sample_interval_ms=100, window=3)
    await asyncio.sleep(0.65)
    assert timer.warming()
    await asyncio.sleep(0.1)
    assert not timer.warming()


async def test_no_workers_are_no_stable_number() -> None:
    counts = iter([0, 0, 0, 3, 0, 3, 3])
    timer = started(lambda: next(counts), warm_up_ms=700, sample_interval_ms=100, window=1)
    await asyncio.sleep(0.65)
    assert timer.warming()
    with structlog.testing.capture_logs() as lines:
        await asyncio.sleep(0.1)  # a sample and the end are due at the same moment
    assert [line["event"] for line in lines] == [ELAPSED]


async def test_a_router_that_is_ready_stays_so_when_its_workers_leave() -> None:
    workers = [1]
    timer = started(lambda: workers[0], warm_up_ms=60_000, sample_interval_ms=100, window=1)
    await asyncio.sleep(0.25)
    assert not timer.warming()
    workers[0] = 0
    await asyncio.sleep(100)
    assert not timer.warming()


async def test_a_shutdown_during_the_warm_up_never_makes_it_ready() -> None:
    with structlog.testing.capture_logs() as lines:
        timer = started(lambda: 1, warm_up_ms=1_000, sample_interval_ms=100, window=3)
        await asyncio.sleep(0.25)
        timer.stop()
        await asyncio.sleep(100)
    assert timer.warming()
    assert timer.state is WarmUpState.ABANDONED
    assert not lines


@pytest.mark.parametrize(("warm_up_ms", "at"), [(0, 0.0), (500, 0.5), (60_000, 0.3)])
async def test_readiness_is_told_once_when_it_begins(warm_up_ms: int, at: float) -> None:
    told: list[float] = []
    loop = asyncio.get_running_loop()
    workers = 1 if warm_up_ms == 60_000 else 0
    began = loop.time()
    timer = started(
        lambda: workers,
        lambda: told.append(loop.time() - began),
        warm_up_ms=warm_up_ms,
        sample_interval_ms=100,
        window=2,
    )
    await asyncio.sleep(100)
    timer.stop()
    assert told == [pytest.approx(at, abs=0.01)]


async def test_a_shutdown_after_the_warm_up_leaves_it_ready() -> None:
    timer = started(lambda: 0, warm_up_ms=100)
    await asyncio.sleep(1)
    timer.stop()
    assert timer.state is WarmUpState.ELAPSED


async def test_samples_missed_by_a_late_loop_are_not_made_up_for() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    counted: list[float] = []

    def count() -> int:
        counted.append(round(loop.time(), 3))
        return 1

    started(count, warm_up_ms=60_000, sample_interval_ms=100, window=100)
    await asyncio.sleep(0.15)
    loop.stand_still(1.0)
    await asyncio.sleep(0.16)
    assert counted[0] == pytest.approx(0.1)
    assert counted[1] == pytest.approx(1.15, abs=0.01)
    assert counted[2] == pytest.approx(1.25, abs=0.01)
    assert len(counted) == 3


def test_a_call_before_anything_is_due_changes_nothing() -> None:
    warm_up = WarmUp(warm_up_ms=500, sample_interval_ms=100, window=1, now=10.0)
    assert warm_up.due == pytest.approx(10.1)
    warm_up.on_time(10.05, lambda: 1)
    assert warm_up.active_backends is None
    assert warm_up.due == pytest.approx(10.1)
    warm_up.on_time(11.0, lambda: 1)
    assert warm_up.state is WarmUpState.ELAPSED
    assert warm_up.due is None
    warm_up.on_time(12.0, lambda: 1)
    assert warm_up.active_backends is None


def test_only_what_can_be_routed_to_counts() -> None:
    registry = Registry()
    assert active_backends(registry) == 0
    for name, key in (("w1", None), ("w2", "tenant")):
        worker = registry.begin(Identity(name, name, "quic://10.0.0.1:1", key, reverse=False), None)  # type: ignore[arg-type]
        models = {"m": ModelUpdate(True, ModelStats()), "off": ModelUpdate(False, ModelStats())}
        registry.apply(worker, models, connected=False, rtt_ns=1, now=0.0)
        assert active_backends(registry) == (0 if name == "w1" else 1)
        registry.apply(worker, models, connected=True, rtt_ns=1, now=1.0)
    assert active_backends(registry) == 2


def test_an_expired_certificate_counts_after_the_warm_up_and_warming_up_is_no_warning() -> None:
    holding = {NotReady.WARMING_UP}
    readiness = Readiness({reason: (lambda reason=reason: reason in holding) for reason in NotReady}, Metrics("s_"))
    with structlog.testing.capture_logs() as lines:
        assert not readiness.ready()
        holding.clear()
        assert readiness.ready()
        holding.add(NotReady.CERTIFICATE_EXPIRED)
        assert not readiness.ready()
    assert [(line["reason"], line["log_level"]) for line in lines] == [
        ("warming_up", "info"),
        ("warming_up", "info"),
        ("certificate_expired", "warning"),
    ]


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [
        ("--readiness-warmup-ms", 60_000, 0),
        ("--readiness-stabilization-sample-interval-ms", 250, 1_000),
        ("--readiness-stabilization-window", 9, 5),
    ],
)
def test_each_option_can_come_from_the_environment_and_the_argument_wins(option: str, value: int, default: int) -> None:
    field = option.removeprefix("--").replace("-", "_")
    env = {f"STARGATE_{field.upper()}": str(value)}
    assert getattr(parse(REQUIRED, {}), field) == default
    assert getattr(parse(REQUIRED, env), field) == value
    assert getattr(parse([*REQUIRED, f"{option}=3"], env), field) == 3


@pytest.mark.parametrize("option", ["--readiness-stabilization-sample-interval-ms", "--readiness-stabilization-window"])
def test_interval_and_window_are_above_zero(option: str) -> None:
    with pytest.raises(UsageError, match="value must be greater than 0"):
        parse([*REQUIRED, f"{option}=0"], {})


def test_the_window_has_32_bits() -> None:
    with pytest.raises(UsageError, match="number too large to fit in target type"):
        parse([*REQUIRED, "--readiness-stabilization-window=4294967296"], {})
