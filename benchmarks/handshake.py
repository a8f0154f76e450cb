"""The router's CPU for one QUIC handshake of a worker, in memory, and TLS's share of it: what many workers that dial at once cost.

Both sides run in this process on a simulated clock; only the calls of the router's side are measured, without system calls and
event loop. Figures: docs/performance.md, "Idle workers".
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.tls import Context, Epoch

import certs
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.engine import Address, Engine
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import DEFAULT_SERVER_NAME, ClientTls, ServerTls

_CLIENT: Address = ("127.0.0.1", 1)
_SERVER: Address = ("127.0.0.1", 2)
_FLIGHTS = 16
_FLIGHT_S = 0.002


class Cost(NamedTuple):
    """CPU seconds of the router's side."""

    whole: float
    tls: float
    """The part of `whole` in TLS: key exchange, certificate, signature, key schedule."""


class _Side:
    """Callbacks of one side; counts nothing but that the handshake is complete."""

    def __init__(self) -> None:
        self.established = False

    def on_work(self) -> None: ...

    def on_established(self) -> None:
        self.established = True

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None: ...

    def on_stream_credit(self) -> None: ...

    def on_connection_id(self, connection_id: bytes) -> None: ...

    def on_connection_id_retired(self, connection_id: bytes) -> None: ...

    def on_closed(self, error: ConnectionClosedError) -> None:
        raise SystemExit(f"the handshake failed: {error}")


class _Stopwatch:
    """Adds up CPU time of calls."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def timed(self, call: Callable[..., Any], *args: Any) -> Any:
        began = time.thread_time()
        try:
            return call(*args)
        finally:
            self.spent_s += time.thread_time() - began


def run(args: list[str]) -> None:
    """Print medians over the rounds."""
    parser = argparse.ArgumentParser(
        prog="benchmarks handshake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--handshakes", type=int, default=200, help="in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args(args)
    costs = [measure(options.handshakes) for _ in range(options.rounds + 1)][1:]  # the first one warms up
    whole = statistics.median(cost.whole for cost in costs) / options.handshakes
    tls = statistics.median(cost.tls for cost in costs) / options.handshakes
    print(f"a handshake: {whole * 1e6:.0f} us CPU of the router, of which TLS {tls * 1e6:.0f} ({tls / whole:.0%})")
    print(f"1,000 workers: {whole * 1e3:.2f} s of one core, of which TLS {tls * 1e3:.2f}")


def measure(handshakes: int) -> Cost:
    """Do that many handshakes, one after the other, with a new self-signed identity."""
    identity = certs.make_self_signed(["stargate"])
    tls = ServerTls(identity.cert_pem, identity.key_pem)
    factory = AioquicFactory(QuicSettings(), tls)
    whole, inner = _Stopwatch(), _Stopwatch()
    try:
        for _ in range(handshakes):
            _handshake(factory, tls, whole, inner)
    finally:
        factory.close()
    return Cost(whole.spent_s, inner.spent_s)


def _handshake(factory: AioquicFactory, tls: ServerTls, whole: _Stopwatch, inner: _Stopwatch) -> None:
    server, client = _Side(), _Side()
    trust = ClientTls(trust_pem=None, server_name=DEFAULT_SERVER_NAME, insecure=True, alpn=tls.alpn)
    dialler = factory.connect(_SERVER, trust, client, 0.0)
    listener: Engine | None = None
    now = 0.0
    for _ in range(_FLIGHTS):
        now += _FLIGHT_S
        arrived = _polled(dialler, now)
        with _tls_timed(inner):
            for data in arrived:
                if listener is None:
                    listener = whole.timed(factory.accept, data, _CLIENT, server, now)
                else:
                    whole.timed(listener.receive, data, _CLIENT, now)
            answers = [] if listener is None else whole.timed(_polled, listener, now)
        for data in answers:
            dialler.receive(data, _SERVER, now)
        if server.established and client.established:
            return
    raise SystemExit("a handshake did not come to an end")


def _polled(engine: Engine, now: float) -> list[bytes]:
    """The datagrams that an engine sends now, after its callbacks."""
    deadline = engine.deadline()
    if deadline is not None and deadline <= now:
        engine.handle_timer(now)
    engine.deliver()
    return [data for data, _segment, _address in engine.poll(now)]


@contextmanager
def _tls_timed(watch: _Stopwatch) -> Iterator[None]:
    """Measure what TLS does inside."""
    plain = Context.handle_message

    def timed(self: Context, data: bytes, output: dict[Epoch, Buffer]) -> None:
        watch.timed(plain, self, data, output)

    Context.handle_message = timed  # type: ignore[assignment, method-assign]  # this one takes no names
    try:
        yield
    finally:
        Context.handle_message = plain  # type: ignore[method-assign]
