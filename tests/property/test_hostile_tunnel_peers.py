"""Arbitrary bytes from a worker, cut anywhere: they end that stream or that connection in order, and raise nothing."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from router.ports.tunnels import ExchangeSink, TunnelError
from router.registry.registry import Registry
from router.telemetry.credential_failures import CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels.incoming import IncomingConnection
from router.tunnels.tunnel import Tunnel
from support.loops import run_virtual
from support.package_settings import tunnel_settings
from tunnel_protocol import capnp
from tunnel_protocol.head import RequestHead
from tunnel_protocol.quic.stream_interface import Stream
from tunnel_protocol.raw_quic import RAW_QUIC

HEADERS = capnp.encode_headers([(b"x-status", b"200"), (b"content-type", b"text/plain")])
BODY = capnp.encode_body(b"hello")
PIECES = st.one_of(st.binary(max_size=64), st.sampled_from([HEADERS, BODY, HEADERS[:11], BODY[5:]]))


class PlayedStream(Stream):
    def __init__(self):
        super().__init__(0)
        self.sent = b""
        self.calls = []

    def write(self, data, fin=False):
        self.sent += data
        return True

    def reset(self, error_code=0):
        self.calls.append("reset")

    def stop(self, error_code=0):
        self.calls.append("stop")

    def pause_reading(self): ...

    def resume_reading(self): ...

    def unsent_bytes(self):
        return 0

    def acknowledged(self):
        return False

    def when_sent(self, callback):
        callback()


class Connection:
    peer_address = ("192.0.2.1", 1)
    closed = False
    free_streams = 1

    async def open_stream(self, handler):
        self.handler = handler
        self.stream = PlayedStream()
        return self.stream

    def close(self, error_code=0, reason=""):
        self.closed = True


class Sink(ExchangeSink):
    def __init__(self):
        self.events = []

    def on_head(self, head):
        self.events.append("head")

    def on_body(self, data):
        assert data
        self.events.append("body")

    def on_end(self):
        self.events.append("end")

    def on_failed(self, error):
        assert isinstance(error, TunnelError)
        self.events.append("failed")

    def on_upload_writable(self): ...

    def on_upload_stopped(self): ...


@given(st.lists(PIECES, max_size=8), st.booleans())
@settings(deadline=None)
def test_whatever_a_worker_answers_the_sink_hears_one_well_formed_story(pieces, reset):
    connection, sink = Connection(), Sink()
    tunnel = Tunnel(connection, RAW_QUIC, "w1")
    run_virtual(tunnel.open(RequestHead(b"POST", b"/", []), sink, end=True))
    for piece in pieces:
        connection.handler.on_data(piece, False)
    if reset:
        connection.handler.on_reset(0)
    else:
        connection.handler.on_data(b"", True)
    assert tunnel.running == 0
    assert sink.events[-1] in {"end", "failed"}
    assert sink.events.count("head") <= 1
    assert all(event == "body" for event in sink.events[1:-1])
    if sink.events[-1] == "failed":
        assert connection.stream.calls == ["reset", "stop"]
    else:
        assert sink.events[0] == "head"


class HandshakeContext:
    framing = RAW_QUIC
    settings = tunnel_settings()

    def __init__(self):
        self.registrations = Registry()
        self.authenticator = self
        self.metrics = Metrics()
        self.credential_failures = CredentialFailures(self.metrics)
        self.over = 0

    async def routing_key(self, token):
        return None

    def identified(self, incoming, server_id):
        pass

    def decided(self, incoming):
        self.over += 1


@given(st.lists(st.one_of(PIECES, st.just(capnp.encode_handshake("w1", "t"))), max_size=6))
@settings(deadline=None)
def test_whatever_a_peer_says_instead_of_a_handshake_ends_its_connection(pieces):
    async def test():
        context, connection = HandshakeContext(), Connection()
        incoming = IncomingConnection(connection, context)
        stream = PlayedStream()
        handler = incoming.on_stream(stream)
        for piece in pieces:
            handler.on_data(piece, False)
        handler.on_data(b"", True)
        for _ in range(3):
            await asyncio.sleep(0)
        assert connection.closed
        assert context.over == 1

    run_virtual(test())
