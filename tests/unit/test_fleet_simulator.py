"""A simulated worker answers everything the router asks of it, with two messages of the real protocol."""

from benchmarks.fleet.simulator import ConstantAnswers
from tunnel_protocol.head import RequestHead
from tunnel_protocol.raw_quic import RAW_QUIC


class Stream:
    """What the worker writes and how it abandons."""

    def __init__(self):
        self.written = b""
        self.calls = []

    def write(self, data, *, fin=False):
        self.written += data
        self.calls.append(("write", fin))
        return True

    def reset(self, error_code=0):
        self.calls.append("reset")

    def stop(self, error_code=0):
        self.calls.append("stop")


class Sink:
    def __init__(self):
        self.got = []

    def on_head(self, head):
        self.got.append(head.status)

    def on_body(self, data):
        self.got.append(bytes(data))

    def on_end(self):
        self.got.append("end")


def test_a_probe_is_answered_once_it_is_complete():
    stream, sink = Stream(), Sink()
    handler = ConstantAnswers().accept(stream)
    router = RAW_QUIC.router_exchange(sink)
    handler.on_data(router.encode_head(RequestHead(b"GET", b"/health", [(b"x-model", b"stargate-health")])), False)
    assert not stream.calls
    handler.on_data(router.encode_end(), True)
    assert stream.calls == [("write", True)]
    router.receive(stream.written, True)
    assert sink.got == [200, b"ok", "end"]


def test_an_abandoned_request_is_abandoned_too():
    stream = Stream()
    ConstantAnswers().accept(stream).on_reset(0)
    assert stream.calls == ["reset", "stop"]
