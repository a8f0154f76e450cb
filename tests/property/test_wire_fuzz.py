"""Whatever bytes come, in whatever pieces: only `ProtocolError`, bounded memory, and the same outcome for every cut."""

import contextlib
import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.handshake import RouterHandshake, WorkerHandshake
from tunnel_protocol.head import RequestHead
from tunnel_protocol.message_reader import WHOLE_BODY_BYTES, MessageReader
from tunnel_protocol.raw_quic import RAW_QUIC

REQUEST = [(b"x-method", b"POST"), (b"x-path", b"/v1/chat/completions"), (b"x-model", b"m")]
MESSAGES = st.one_of(
    st.binary(max_size=100).map(capnp.encode_body),
    st.just(capnp.encode_headers([(b"content-type", b"text/event-stream"), (b"x-status", b"200")])),
    st.just(capnp.encode_headers(REQUEST)),
    st.just(capnp.encode_trailers([(b"x-t", b"1")])),
    st.just(
        struct.pack("<IIIIQQQQQQ", 1, 4, 2, 0, 1 << 32 | 1 << 48, 1, 1 << 48, 1 << 32 | 2, 3 << 35 | 2 << 32 | 1, 65)
    ),
)


@st.composite
def streams(draw):
    """Messages, most of them whole and in order, some with changed bytes or words."""
    stream = bytearray(draw(MESSAGES) if draw(st.booleans()) else capnp.encode_headers(REQUEST))
    for message in draw(st.lists(MESSAGES, max_size=4)):
        stream += message
    for at, value in draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3)):
        stream[at % len(stream)] = value
    if draw(st.booleans()):
        del stream[draw(st.integers(0, len(stream))) :]
    return bytes(stream)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(at)]


class Sink:
    def __init__(self):
        self.told = []

    def on_head(self, head):
        assert not self.told
        self.told.append(head)

    def on_body(self, data):
        assert self.told
        assert data
        assert self.told[-1] != "end"
        self.told.append(data)

    def on_end(self):
        assert self.told
        assert self.told[-1] != "end"
        self.told.append("end")


def outcome(role, parts):
    """What the sink is told, and why it ended if it did not end well."""
    sink = Sink()
    exchange = role(sink)
    try:
        for part in parts:
            exchange.receive(part, False)
        exchange.receive(b"", True)
    except ProtocolError as error:
        assert "end" not in sink.told
        told = list(sink.told)
        exchange.receive(capnp.encode_body(b"late"), True)
        assert sink.told == told
        return sink.told, error.reason
    assert sink.told[-1] == "end"
    return sink.told, None


@settings(max_examples=300)
@given(stream=streams(), cuts=st.lists(st.integers(0, 600), max_size=12))
def test_every_cut_of_a_stream_has_the_same_outcome(stream, cuts):
    for role in (RAW_QUIC.router_exchange, RAW_QUIC.worker_exchange):
        assert outcome(role, pieces(stream, cuts)) == outcome(role, [stream])


@given(stream=streams())
def test_a_stream_byte_by_byte_has_the_same_outcome(stream):
    for role in (RAW_QUIC.router_exchange, RAW_QUIC.worker_exchange):
        assert outcome(role, [bytes([byte]) for byte in stream]) == outcome(role, [stream])


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_cost_a_decoder_nothing_but_a_protocol_error(data):
    for decode in (capnp.decode_message, capnp.decode_handshake, capnp.decode_handshake_ack):
        for raw in (data, struct.pack("<II", 0, len(data) // 8) + data, struct.pack("<IIII", 1, 3, 2, 0) + data):
            with contextlib.suppress(ProtocolError):
                decode(raw)


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_arbitrary_bytes_in_a_handshake_are_a_protocol_error_or_a_handshake(data, cuts):
    for half in (RouterHandshake(), WorkerHandshake()):
        with contextlib.suppress(ProtocolError):
            heard = [half.receive(part, False) for part in pieces(data, cuts)]
            heard.append(half.receive(b"", True))
            assert sum(message is not None for message in heard) == 1


class Counting(MessageReader):
    def __init__(self):
        super().__init__(max_message_bytes=8192)
        self.bytes_reported = 0

    def on_message(self, message):
        self.bytes_reported += len(message.content) if isinstance(message, capnp.Body) else 0


@given(
    table=st.lists(st.integers(0, 1 << 27) | st.integers(0, 300), min_size=1, max_size=20),
    count=st.integers(0, 510) | st.just(0),
    rest=st.binary(max_size=64),
)
def test_hostile_segment_table_holds_back_only_what_came_and_never_more_than_the_limit(table, count, rest):
    stream = struct.pack(f"<I{len(table)}I", count, *table) + rest
    reader = Counting()
    try:
        for _ in range(300):
            reader.feed(stream)
            assert reader.held_bytes() <= 8192 + len(stream)
    except ProtocolError:
        assert reader.held_bytes() <= 8192


@settings(max_examples=30)
@given(
    size=st.integers(WHOLE_BODY_BYTES - 20, WHOLE_BODY_BYTES + 20) | st.integers(100_000, 300_000),
    step=st.integers(500, 70_000),
)
def test_body_of_any_size_arrives_complete(size, step):
    content = (b"0123456789abcde" * (size // 15 + 1))[:size]
    sink = Sink()
    worker = RAW_QUIC.worker_exchange(sink)
    router = RAW_QUIC.router_exchange(Sink())
    stream = router.encode_head(RequestHead(b"POST", b"/", [])) + router.encode_body(content) + router.encode_body(b"z")
    for at in range(0, len(stream), step):
        worker.receive(stream[at : at + step], False)
    worker.receive(b"", True)
    assert b"".join(sink.told[1:-1]) == content + b"z"
    if size <= WHOLE_BODY_BYTES:
        assert len(sink.told) == 4
