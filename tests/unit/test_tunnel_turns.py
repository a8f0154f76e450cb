"""Tunnels between two events that usually do not meet: a worker that leaves while it is dialled, asked, or let in."""

import asyncio

import pytest
from structlog.testing import capture_logs

from router.ports.authentication import AuthenticationError
from router.ports.identity import Identity
from router.ports.tunnels import TunnelError, TunnelStep
from router.registry.registry import Registry
from router.telemetry.credential_failures import CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels import dialer as dialer_module
from router.tunnels.dialer import DirectDialer
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.exchange import StreamExchange
from router.tunnels.incoming import IncomingConnection
from router.tunnels.listener import ReverseListener
from router.tunnels.reverse_tunnels import ReverseTunnels
from router.tunnels.tunnel import Tunnel
from support.fake_quic import HEAD, FakeConnection, FakeStream, LineFraming, RecordingSink
from support.loops import run_virtual
from support.package_settings import tunnel_settings
from tunnel_protocol import capnp
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.settings import QuicSettings

as_written_only = pytest.mark.skipif(
    AS_WRITTEN_BECAUSE is None, reason="replaces parts of compiled modules; make cover runs it as written"
)
pytestmark = pytest.mark.loop("virtual")

SETTINGS = tunnel_settings()
CLOSED = ConnectionClosedError(0, "", by_peer=True)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Worker(FakeConnection):
    """A connection that also opens streams without waiting."""

    peer_address = ("192.0.2.1", 40000)

    def try_open_stream(self, handler):
        if self.closed:
            raise CLOSED
        if not self.free_streams:
            return None
        stream = FakeStream(handler)
        self.streams.append(stream)
        self.before_return(stream)
        return stream


def identity(*, reverse, url="quic://192.0.2.1:4433"):
    return Identity("w1", "w1", url, None, reverse)


def a_tunnel(connection=None):
    return Tunnel(connection or Worker(), LineFraming(), "w1")


def direct(dial):
    return DirectTunnels(identity(reverse=False), SETTINGS, Metrics(), dial)


def reverse():
    return ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())


# --- exchanges


async def test_an_exchange_is_opened_at_once_while_a_stream_is_free():
    connection = Worker(free_streams=1)
    tunnels = reverse()
    tunnel = a_tunnel(connection)
    tunnels.complete_install(tunnels.begin_install(), tunnel)
    assert tunnels.try_open(HEAD, RecordingSink(), end=True) is not None
    assert connection.streams[0].fin
    assert tunnel.running == 1
    connection.free_streams = 0
    assert tunnels.try_open(HEAD, RecordingSink(), end=True) is None
    connection.closed = True
    with pytest.raises(TunnelError, match="connection to inference server 'w1' is closed"):
        tunnel.try_open(HEAD, RecordingSink(), end=True)
    assert tunnel.running == 1


def test_what_a_worker_says_about_an_upload_that_is_over_is_not_passed_on():
    tunnel = a_tunnel()
    sink = RecordingSink()
    exchange = StreamExchange(tunnel, LineFraming(), sink)
    stream = FakeStream(exchange)
    exchange.begin(stream, b"", end=False)
    exchange.on_stop(0)
    exchange.on_stop(0)
    exchange.on_writable()
    assert sink.events == ["stopped"]


def test_pausing_and_resuming_end_with_the_response():
    exchange = StreamExchange(a_tunnel(), LineFraming(), RecordingSink())
    stream = FakeStream(exchange)
    exchange.begin(stream, b"", end=False)
    exchange.on_data(b"H200\n", True)
    exchange.pause()
    exchange.resume()
    assert stream.calls == []


async def test_an_exchange_that_answers_a_probe_too_late_changes_nothing():
    connection = Worker()
    tunnels = reverse()
    tunnels.complete_install(tunnels.begin_install(), a_tunnel(connection))
    probe = asyncio.create_task(tunnels.health.measure())
    await settle()
    exchange = connection.streams[0].handler
    sink = exchange._sink
    sink.on_upload_stopped()
    sink.on_upload_writable()
    sink.on_failed(TunnelError("stream reset"))
    sink.on_failed(TunnelError("connection lost"))
    sink.on_end()
    assert await probe is None
    assert tunnels.health.rtt_ns is None


# --- direct workers


async def test_a_set_that_is_complete_is_not_dialled_again():
    dials = []

    async def dial(tunnels):
        dials.append(tunnels)
        return [a_tunnel()]

    tunnels = direct(dial)
    assert [await tunnels.tunnel_step() for _ in range(2)] == [TunnelStep.CONNECTED] * 2
    assert len(dials) == 1


async def test_the_round_trip_of_a_set_that_is_not_complete_is_not_settled():
    async def dial(_tunnels):
        return [a_tunnel()]

    tunnels = direct(dial)
    assert tunnels.settled_rtt_ns() is None
    await tunnels.tunnel_step()
    tunnels.health.rtt_ns = 7
    assert tunnels.settled_rtt_ns() == 7
    tunnels.retire()
    assert tunnels.settled_rtt_ns() is None


async def test_connections_of_a_dial_that_ends_together_with_its_registration_are_given_back():
    connection = Worker()

    async def dial(tunnels):
        tunnels.retire()
        return [a_tunnel(connection)]

    tunnels = direct(dial)
    with pytest.raises(TunnelError, match="no connection for exact inference server registration 'w1'"):
        await tunnels.reconnect()
    assert connection.closed


async def test_a_registration_is_over_when_its_dial_is():
    over = []

    async def dial(_):
        try:
            await asyncio.Event().wait()
        finally:
            over.append("dial")

    tunnels = direct(dial)
    dialling = asyncio.create_task(tunnels.reconnect())
    await settle()
    tunnels.retire()
    await tunnels.wait_retired()
    assert over == ["dial"]
    with pytest.raises(TunnelError, match="no connection for exact inference server registration 'w1'"):
        await dialling


# --- the dialler


class Endpoint:
    """Gives out what `outcomes` says: a connection, or an error."""

    def __init__(self, *outcomes, port=1000):
        self.outcomes = list(outcomes)
        self.local_address = ("0.0.0.0", port)
        self.connections = set()
        self.handlers = []
        self.buffers_logged = 0

    async def connect(self, ip, port, tls, handler, timeout_s):
        self.handlers.append(handler)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        self.connections.add(outcome)
        return outcome

    def log_buffers(self):
        self.buffers_logged += 1


def a_dialler(endpoints, **changes):
    return DirectDialer(endpoints, None, LineFraming(), tunnel_settings(**changes), Metrics())


@as_written_only
async def test_of_a_set_that_is_not_complete_no_connection_stays():
    first = Worker()
    endpoint = Endpoint(first, ConnectionClosedError(2, "refused", by_peer=True))
    dialler = a_dialler({4: endpoint}, direct_connections=2)
    with capture_logs() as logs, pytest.raises(TunnelError, match="quic connect failed"):
        await dialler.dial(direct(None))
    assert first.closed
    assert dialler.connections == 1
    assert logs == [], "no certificate is to blame"
    dialler.log_buffers()
    assert endpoint.buffers_logged == 1


@as_written_only
async def test_a_connection_that_closes_before_it_is_a_tunnel_is_nobodys():
    endpoint = Endpoint(TimeoutError())
    tunnels = direct(None)
    with pytest.raises(TunnelError, match="timed out"):
        await a_dialler({4: endpoint}).dial(tunnels)
    endpoint.handlers[0].on_closed(CLOSED)
    assert tunnels.slot.members == ()


@as_written_only
async def test_a_host_without_ipv6_dials_ipv4_only(monkeypatch):
    async def client(family, quic):
        if family is not dialer_module.socket.AF_INET:
            raise OSError("Address family not supported by protocol")
        return Endpoint(Worker())

    monkeypatch.setattr(dialer_module.Endpoint, "client", client)
    with capture_logs() as logs:
        dialler = await DirectDialer.open(None, LineFraming(), QuicSettings(), SETTINGS, Metrics())
    assert [line["log_level"] for line in logs] == ["warning"]
    there = DirectTunnels(identity(reverse=False, url="quic://[2001:db8::1]:4433"), SETTINGS, Metrics(), None)
    with pytest.raises(TunnelError, match="no IPv6 socket to dial 2001:db8::1 from"):
        await dialler.dial(there)


@pytest.mark.parametrize("ip", ["127.0.0.1", "192.0.2.1"])
@as_written_only
async def test_own_ports_are_refused_only_at_addresses_of_this_host(monkeypatch, ip):
    class Probe:
        """Can be bound to this host's only address."""

        def __init__(self, family, kind):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, address):
            if address[0] != "127.0.0.1":
                raise OSError("Cannot assign requested address")

    endpoint = Endpoint(Worker(), port=1000)
    dialler = a_dialler({4: endpoint}, direct_connections=1)
    tunnels = DirectTunnels(identity(reverse=False, url=f"quic://{ip}:1000"), SETTINGS, Metrics(), None)
    monkeypatch.setattr(dialer_module.socket, "socket", Probe)
    try:
        if ip == "127.0.0.1":
            with pytest.raises(TunnelError, match="a socket of this router"):
                await dialler.dial(tunnels)
        else:
            assert len(await dialler.dial(tunnels)) == 1
    finally:
        monkeypatch.undo()


# --- reverse workers


async def test_a_registration_that_ends_during_an_installation_gets_no_connection():
    tunnels = reverse()
    install = tunnels.begin_install()
    waiting = asyncio.create_task(tunnels.wait_retired())
    await settle()
    tunnels.retire()
    assert not tunnels.complete_install(install, a_tunnel())
    tunnels.start(lambda: None, lambda: None)
    await waiting
    assert tunnels._loop_task is None


@as_written_only
async def test_a_health_loop_that_breaks_is_told():
    tunnels = reverse()

    async def run():
        raise ZeroDivisionError

    tunnels.health.run = run
    with capture_logs() as logs:
        tunnels.start(lambda: None, lambda: None)
        await settle()
    assert [line["event"] for line in logs] == ["health loop ended unexpectedly"]
    tunnels.retire()
    await tunnels.wait_retired()


class Handshakes:
    """What a conversation needs of a listener."""

    def __init__(self, routing_key):
        self.routing_key = routing_key
        self.registrations = Registry()
        self.authenticator = self
        self.framing = LineFraming()
        self.settings = SETTINGS
        self.metrics = Metrics()
        self.credential_failures = CredentialFailures(self.metrics)

    def identified(self, incoming, server_id):
        pass

    def decided(self, incoming):
        pass


def arrive(routing_key):
    """A worker that has said who it is, and whose token is looked at by `routing_key`."""
    connection = Worker()
    context = Handshakes(routing_key)
    incoming = IncomingConnection(connection, context)
    stream = FakeStream(None, 0)
    stream.handler = incoming.on_stream(stream)
    stream.handler.on_data(capnp.encode_handshake("w1", None), True)
    return connection, context, incoming, stream


async def _accept(_):
    return None


@pytest.mark.parametrize("answer", [None, AuthenticationError("no answer")])
def test_a_decision_that_comes_after_the_connection_has_closed_installs_and_answers_nothing(answer):
    async def ask(_):
        incoming.on_closed(CLOSED)
        if answer is not None:
            raise answer

    async def test():
        nonlocal incoming
        connection, context, incoming, stream = arrive(ask)
        tunnels = reverse()
        context.registrations.begin(tunnels.identity, tunnels)
        await settle()
        assert stream.sent == b""
        assert tunnels.slot.members == ()
        incoming.make_way()
        incoming._too_slow()
        assert connection.closes == []

    incoming = None
    run_virtual(test())


async def test_an_authenticator_that_breaks_costs_one_connection():
    async def broken(_):
        raise ZeroDivisionError

    with capture_logs() as logs:
        connection, _, _, _ = arrive(broken)
        await settle()
    assert connection.closed
    assert [line["event"] for line in logs] == ["reverse tunnel handshake broke off"]


async def test_a_reset_after_the_hello_does_not_stop_the_decision():
    connection, _, _, stream = arrive(_accept)
    stream.handler.on_reset(0)
    await settle()
    assert capnp.decode_handshake_ack(stream.sent) == (False, "unauthorized inference_server_id")
    assert not connection.closed


@as_written_only
async def test_a_right_to_install_that_is_lost_again_makes_a_duplicate():
    class Lost(ReverseTunnels):
        def complete_install(self, install, tunnel):
            self.retire()
            return super().complete_install(install, tunnel)

    connection, context, _, stream = arrive(_accept)
    tunnels = Lost(identity(reverse=True), SETTINGS, Metrics())
    context.registrations.begin(tunnels.identity, tunnels)
    await settle()
    assert capnp.decode_handshake_ack(stream.sent) == (False, "duplicate connection")
    assert not connection.closed


# --- the listener


def a_listener(**changes):
    return ReverseListener(Registry(), None, LineFraming(), tunnel_settings(**changes), Metrics())


@as_written_only
async def test_a_listener_that_does_not_listen_has_nothing_and_does_nothing():
    listener = a_listener()
    assert (listener.connections, listener.half_open, listener.pending) == (0, (0, 0), 0)
    assert not listener.listening
    listener.observe_ticks(None)
    listener.replace_tls(None)
    listener.stop_accepting()
    listener.begin_shutdown()
    await listener.close()


@as_written_only
async def test_connections_that_make_way_within_ten_seconds_are_told_in_one_line():
    listener = a_listener(max_pending_handshakes=1)
    connections = [Worker() for _ in range(3)]
    with capture_logs() as logs:
        for connection in connections:
            listener._on_connection(connection)
        await asyncio.sleep(1)
    assert [connection.closed for connection in connections].count(True) == 2
    assert [line["event"] for line in logs] == ["too many reverse handshakes under way; the oldest make way"]


@as_written_only
async def test_a_worker_that_leaves_for_another_reason_says_nothing_about_a_certificate():
    with capture_logs() as logs:
        a_listener()._on_failed(Worker(), CLOSED)
    assert logs == []
