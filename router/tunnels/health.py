"""Health of one registration's tunnels: periodic probes, their round trip time, and when a worker counts as lost.

A probe is an ordinary exchange, `GET /health`, so its round trip includes the wait for stream credit, the worker and its
engine; it also keeps an otherwise idle tunnel from timing out. Source: docs/protocol.md, "Health".

A worker that vanishes (frozen, powered off, network failure) closes no connection. It counts as *lost* when a probe has been
unanswered for `silence_ms` and nothing else was received from the worker meanwhile. The connection is left open: a
later answer to that probe makes the worker *recovered*.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from router.ports.tunnels import ExchangeSink, TunnelError
from router.telemetry.metrics import Metrics
from router.tunnels.connection_slot import ConnectionSlot
from router.tunnels.probe_times import pause_s
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import Tunnel
from tunnel_protocol.head import RequestHead, ResponseHead

_log = structlog.get_logger()

SLOW_FACTOR: Final = 3
"""The silence limit is at least this many times the last round trip."""


def probe_head(inference_server_id: str) -> RequestHead:
    """The head of every health probe."""
    return RequestHead(
        b"GET",
        b"/health",
        [
            (b"x-request-id", f"stargate-health-{inference_server_id}".encode()),
            (b"x-model", b"stargate-health"),
            (b"x-input-tokens", b"0"),
        ],
    )


class _Answer(ExchangeSink):
    """The sink of one probe: sets `done` to the status once the body has been read to its end."""

    __slots__ = ("_status", "done")

    def __init__(self, done: "asyncio.Future[int]") -> None:
        self.done = done
        self._status = 0

    def on_head(self, head: ResponseHead) -> None:
        self._status = head.status

    def on_body(self, data: bytes) -> None:
        pass

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result(self._status)

    def on_failed(self, error: TunnelError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def on_upload_writable(self) -> None:
        pass

    def on_upload_stopped(self) -> None:
        pass


class HealthMonitor:
    """The probes of one registration; `on_lost` and `on_recovered` alternate, `on_lost` first."""

    def __init__(
        self,
        inference_server_id: str,
        slot: ConnectionSlot[Tunnel],
        settings: TunnelSettings,
        metrics: Metrics,
        *,
        grace_ms: int,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`grace_ms`: milliseconds from the close of the last connection until the worker counts as lost."""
        self.rtt_ns: int | None = None
        """Round trip of the latest probe in nanoseconds; None if not probed yet, failed, or without a connection."""
        self._inference_server_id = inference_server_id
        self._slot = slot
        self._settings = settings
        self._metrics = metrics
        self._grace_ms = grace_ms
        self._clock_ns = clock_ns
        self._head = probe_head(inference_server_id)
        self._usual_ns = 0
        self._failing = False
        self._lost = False
        self._stopped = False
        self._on_lost: Callable[[], None] = _ignore
        self._on_recovered: Callable[[], None] = _ignore

    def listen(self, on_lost: Callable[[], None], on_recovered: Callable[[], None]) -> None:
        """Set the callbacks; before this nothing is called."""
        self._on_lost = on_lost
        self._on_recovered = on_recovered

    def stop(self) -> None:
        """Call no callback any more."""
        self._stopped = True
        self._on_lost = self._on_recovered = _ignore

    async def run(self) -> None:
        """Probe until cancelled: one probe, then a pause, then the next."""
        loop = asyncio.get_running_loop()
        interval_s = self._settings.health_interval_ms / 1000
        while True:
            tunnel = self._slot.next_open()
            if tunnel is None:
                self.rtt_ns = None
            else:
                await self._measure(tunnel, self._settings.probe_timeout_ms)
            await asyncio.sleep(pause_s(loop.time(), interval_s))

    async def measure(self) -> int | None:
        """Make one probe now and return its round trip in nanoseconds; None if it fails or times out."""
        tunnel = self._slot.next_open()
        if tunnel is None or tunnel.suspected:
            return None
        return await self._measure(tunnel, min(self._settings.silence_ms, self._settings.probe_timeout_ms))

    def connection_closed(self) -> None:
        """A connection of the set closed. If it was the last, the worker counts as lost, now or after the grace time."""
        if self._stopped or self._slot.healthy():
            return
        self.rtt_ns = None
        if self._grace_ms:
            asyncio.get_running_loop().call_later(self._grace_ms / 1000, self._grace_over)
        else:
            self._lose("tunnel closed")

    def _grace_over(self) -> None:
        if not self._stopped and not self._slot.healthy():
            self._lose("tunnel closed")

    async def _measure(self, tunnel: Tunnel, limit_ms: int) -> int | None:
        try:
            rtt_ns = await self._probe(tunnel, limit_ms)
        except TunnelError as error:
            self.rtt_ns = None
            self._metrics.health_probe_failures_total.inc((self._inference_server_id,))
            if not self._failing and not self._stopped:
                self._failing = True
                _log.warning("health check failed", inference_server_id=self._inference_server_id, error=error.reason)
            return None
        self._failing = False
        self.rtt_ns = self._usual_ns = rtt_ns
        tunnel.suspected = False
        if self._lost:
            self._lost = False
            _log.info("inference server answers again", inference_server_id=self._inference_server_id)
            self._on_recovered()
        return rtt_ns

    async def _probe(self, tunnel: Tunnel, limit_ms: int) -> int:
        started_ns = self._clock_ns()
        loop = asyncio.get_running_loop()
        answer = _Answer(loop.create_future())
        watch = _SilenceWatch(tunnel, self._silence_s(), partial(self._suspect, tunnel))
        try:
            async with asyncio.timeout(limit_ms / 1000):
                exchange = await tunnel.open(self._head, answer, end=True)
                try:
                    watch.sent()
                    status = await answer.done
                finally:
                    exchange.cancel()
        except TimeoutError:
            raise TunnelError("quic request timed out") from None
        finally:
            watch.stop()
        if not 200 <= status < 300:
            raise TunnelError(f"health check answered with status {status}")
        return self._clock_ns() - started_ns

    def _silence_s(self) -> float:
        return max(self._settings.silence_ms / 1000, SLOW_FACTOR * self._usual_ns / 1e9)

    def _suspect(self, tunnel: Tunnel, silent_since: float) -> None:
        if tunnel.closed or self._stopped:
            return
        if not tunnel.suspected:
            tunnel.silent_since = silent_since
        tunnel.suspected = True
        self.rtt_ns = None
        if self._slot.suspected():
            self._lose("health probe unanswered")

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            _log.warning("inference server lost", inference_server_id=self._inference_server_id, reason=reason)
            self._on_lost()


class _SilenceWatch:
    """Waits for a period of silence on a tunnel while a probe is unanswered.

    A probe that still waits for stream credit shows nothing about the worker, whose streams may all be in use; then a PING
    frame is sent instead, which its QUIC stack acknowledges under any load.
    """

    def __init__(self, tunnel: Tunnel, silence_s: float, on_silence: Callable[[float], None]) -> None:
        self._asked = False
        self._tunnel = tunnel
        self._silence_s = silence_s
        self._on_silence = on_silence
        self._wait()

    def sent(self) -> None:
        """The probe has been sent: from now on silence means that it is unanswered."""
        self._asked = True
        self.stop()
        self._wait()

    def stop(self) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._pieces = self._tunnel.pieces_received
        self._since = loop.time()
        if not self._tunnel.free_streams and not self._asked:
            self._tunnel.connection.ping()
        self._timer = loop.call_later(self._silence_s, self._check)

    def _check(self) -> None:
        if self._asked:
            silent = self._tunnel.pieces_received == self._pieces
        else:
            silent = self._tunnel.connection.last_received_at < self._since
        if silent:
            self._on_silence(self._since)
        self._wait()


def _ignore() -> None:
    pass
