"""The process of the simulated workers: each has a gRPC connection, a UDP socket and a tunnel of its own, as a real one has.

    python -m benchmarks.fleet.simulator --router 127.0.0.1:50071 --workers 100

Registration and tunnel are those of `stargate_client`; instead of an engine a constant answers the health probes and every
other request. It runs until SIGTERM. Its log has a line for each registration or handshake that failed.
"""

import argparse
import asyncio
import logging
import signal
import ssl
from collections.abc import Callable
from functools import partial

import structlog
import uvloop

from benchmarks.fleet.capacity import use_all_descriptors
from stargate_client.registration import Registration
from stargate_client.router_address import GrpcAddress, RouterAddress
from stargate_client.settings import WorkerSettings, parse
from tunnel_protocol.control import stargate_pb2
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.raw_quic import RAW_QUIC

MODEL = "simulated"
"""The model that all simulated workers serve, or with several the beginning of their names."""

_QUIC = QuicSettings(keepalive_ms=3_000, max_streams_bidi=256)
_STARTING = 32
"""Workers that may be on the way to their first tunnel: each handshake takes milliseconds of this one process."""
_HEAD = ResponseHead(200, [(b"content-type", b"text/plain")])


def model_of(number: int, models: int) -> str:
    """The model of the worker with this number, of so many models."""
    return MODEL if models == 1 else f"{MODEL}-{number % models}"


class ConstantAnswer(StreamHandler):
    """Answers one request with status 200 and `ok`; the handler of its stream, and a `RequestSink`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._exchange = RAW_QUIC.worker_exchange(self)

    def on_data(self, data: bytes, fin: bool) -> None:
        """Bytes of the request."""
        self._exchange.receive(data, fin)

    def on_reset(self, error_code: int) -> None:  # noqa: ARG002
        """The router abandoned the request."""
        self._stream.reset()
        self._stream.stop()

    def on_stop(self, error_code: int) -> None:
        """The router does not want the rest of the answer, which is complete."""

    def on_writable(self) -> None:
        """Not called: the answer is below the high-water mark."""

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        """Nothing to do."""

    def on_head(self, head: RequestHead) -> None:
        """Every request is answered alike."""

    def on_body(self, data: bytes) -> None:
        """It is not looked at."""

    def on_end(self) -> None:
        """The request is complete."""
        exchange = self._exchange
        answer = exchange.encode_head(_HEAD) + exchange.encode_body(b"ok") + exchange.encode_end()
        self._stream.write(answer, fin=True)


class ConstantAnswers:
    """What a simulated worker serves; implements `StreamAcceptor`."""

    def accept(self, stream: Stream) -> StreamHandler:
        """Create the handler of a stream that the router opened."""
        return ConstantAnswer(stream)


def _registration(
    number: int, model: str, router: str, interval_ms: int, trust: ssl.SSLContext, on_connected: Callable[[], None]
) -> Registration:
    settings: WorkerSettings = parse(
        [
            *("--upstream-http-base-url", "http://127.0.0.1:9", "--model-name", model, "--quic-insecure"),
            *("--inference-server-id", f"simulated-{number}", "--backend-connectivity", "reverse"),
            *("--min-update-interval-ms", str(interval_ms)),
        ],
        {},
    )
    stats = stargate_pb2.ModelStats(
        last_mean_input_tps=1000.0,
        queue_time_estimate_ms_by_priority={0: 0},
        stats_capabilities=["last_mean_input_tps"],
        stats_sources=["simulated"],
    )

    def models(connected: bool) -> dict[str, stargate_pb2.InferenceServerModelRegistration]:
        active, inactive = stargate_pb2.INFERENCE_SERVER_STATUS_ACTIVE, stargate_pb2.INFERENCE_SERVER_STATUS_INACTIVE
        if connected:
            on_connected()
        status = active if connected else inactive
        return {model: stargate_pb2.InferenceServerModelRegistration(stats=stats, status=status)}

    # Channels with the same arguments to one address share a connection, unless each has a pool of its own.
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = RouterAddress(router, GrpcAddress(router))
    return Registration(address, settings, trust, ConstantAnswers(), _QUIC, models, channel_options=options)


class Fleet:
    """The simulated workers of this process."""

    def __init__(self, router: str, interval_ms: int, models: int = 1) -> None:
        self._models = models
        self._router = router
        self._interval_ms = interval_ms
        self._trust = ssl.create_default_context()  # not used: the control plane is cleartext
        self._tasks: list[asyncio.Task[None]] = []
        self._starting = asyncio.Semaphore(_STARTING)
        self._connected: set[int] = set()

    async def start(self, workers: int, per_s: float) -> None:
        """Start workers at this rate, and no more than `_STARTING` before one of them has its tunnel."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(workers):
            await self._starting.acquire()
            on_connected = partial(self._first_connected, number)
            model = model_of(number, self._models)
            worker = _registration(number, model, self._router, self._interval_ms, self._trust, on_connected)
            self._tasks.append(asyncio.create_task(worker.run()))
            await asyncio.sleep(began + (number + 1) / per_s - loop.time())

    async def stop(self) -> None:
        """End all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _first_connected(self, number: int) -> None:
        if number not in self._connected:
            self._connected.add(number)
            self._starting.release()


async def _simulate(router: str, workers: int, interval_ms: int, per_s: float, models: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    fleet = Fleet(router, interval_ms, models)
    starting = asyncio.create_task(fleet.start(workers, per_s))
    await stopped.wait()
    starting.cancel()
    await asyncio.wait({starting})
    await fleet.stop()


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet.simulator", description=__doc__)
    parser.add_argument("--router", required=True, help="address of the router's control plane, host:port")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--interval-ms", type=int, default=1_000, help="pause between two reports of a worker")
    parser.add_argument("--start-per-s", type=float, default=100.0, help="workers that start in a second")
    parser.add_argument("--models", type=int, default=1, help="models, one for each worker in turn")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    use_all_descriptors()
    uvloop.run(_simulate(options.router, options.workers, options.interval_ms, options.start_per_s, options.models))


if __name__ == "__main__":
    main()
