"""From settings to exit code, with a router that does what the test says."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable

import pytest

from router.config.cli import parse
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.process import lifecycle
from router.process.critical_tasks import CriticalTaskError

SETTINGS = parse(["--stargate-id=r", "--advertise-addr=127.0.0.1:1", "--stargate-discovery-dns-name=x"], {})


class Tasks:
    def __init__(self) -> None:
        self.failed: asyncio.Future[CriticalTaskError] = asyncio.get_running_loop().create_future()


class FakeRouter:
    """Ends as told: `on_started` runs once it is up, `drains` is the result of its drain."""

    on_started: Callable[["FakeRouter"], None] = staticmethod(lambda _router: None)
    start_error: Exception | None = None
    start_lasts_s: float = 0
    drains: bool = True
    drain_lasts_s: float = 0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tasks = Tasks()

    @classmethod
    async def start(cls, settings: Settings, _reloads: object) -> "FakeRouter":
        router = cls(settings)
        if cls.start_error is not None:
            raise cls.start_error
        asyncio.get_running_loop().call_soon(cls.on_started, router)
        await asyncio.sleep(cls.start_lasts_s)
        return router

    async def drain(self, budget_s: float) -> bool:
        assert budget_s == pytest.approx(self.settings.shutdown_drain_timeout_ms / 1000 * 0.9)
        await asyncio.sleep(self.drain_lasts_s)
        return self.drains

    def unfinished(self) -> list[str]:
        return ["2 requests"]


def terminate(_router: FakeRouter) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(settings: Settings = SETTINGS, **behaviour: object) -> tuple[int, str, str]:
        monkeypatch.setattr(lifecycle, "start", type("Router", (FakeRouter,), behaviour).start)
        monkeypatch.setattr(lifecycle, "spare_collector", lambda: None)  # not for the process of the tests
        monkeypatch.setattr(lifecycle.log_lines, "set_up", lambda *_given, **_named: None)
        code = lifecycle.run_process(settings, {})
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_a_signal_and_a_drain_in_time_end_with_zero(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(on_started=staticmethod(terminate))
    assert (code, err) == (0, "")
    assert "received termination signal, beginning graceful shutdown" in out
    assert "graceful shutdown complete" in out


def test_a_failed_start_is_told_on_stderr(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run(start_error=StartupError("failed to bind HTTP listener", "Address already in use"))
    assert (code, err) == (1, "Error: failed to bind HTTP listener\n\nCaused by:\n    Address already in use\n")


def test_a_signal_during_the_start_ends_it_with_zero(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(on_started=staticmethod(terminate), start_lasts_s=60)
    assert (code, err) == (0, "")
    assert "received termination signal, beginning graceful shutdown" in out
    assert "stargate stopped cleanly" in out


def test_a_failed_critical_task_drains_and_ends_with_one(run: Callable[..., tuple[int, str, str]]) -> None:
    def fail(router: FakeRouter) -> None:
        router.tasks.failed.set_result(CriticalTaskError("metrics server", "exited unexpectedly"))

    code, out, err = run(on_started=staticmethod(fail))
    assert (code, err) == (1, "Error: critical stargate task `metrics server` exited: exited unexpectedly\n")
    assert "critical stargate task failed, beginning graceful shutdown" in out
    assert "stargate shutdown complete after process failure" in out
    assert "Entering draining mode" not in out


def test_requests_that_outlast_the_drain_end_with_one(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(on_started=staticmethod(terminate), drains=False)
    assert code == 1
    assert "graceful shutdown timed out; forcing exit" in out
    assert "2 requests" in out


def test_a_drain_that_hangs_is_left_after_the_whole_drain_time(run: Callable[..., tuple[int, str, str]]) -> None:
    short = dataclasses.replace(SETTINGS, shutdown_drain_timeout_ms=50)
    code, out, _ = run(short, on_started=staticmethod(terminate), drain_lasts_s=60)
    assert code == 1
    assert "graceful shutdown timed out; forcing exit" in out
