"""Whatever a peer sends to the gRPC server, it answers, or closes by the rules: nothing else is raised, and what is held is bounded."""

from contextlib import suppress
from itertools import pairwise

import h2.config
import h2.connection
import h2.exceptions
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st

from router.grpc import frames
from router.grpc.header_decoder import HeaderDecoder, Headers
from router.grpc.http2_connection import CONNECTION_WINDOW, HEADER_BLOCK
from support.decoders import GrpcPeer

_HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "r"),
    (":path", "/s/M"),
    ("content-type", "application/grpc"),
]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "data", "message", "end", "reset", "window", "ping", "settings", "trailers"]),
        st.integers(0, 5),
    ),
    max_size=30,
)


def written_by_a_client(steps: list[tuple[str, int]]) -> bytes:
    """The bytes of a client that does this; what its own library forbids is left out."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for step, number in steps:
        stream_id = 2 * number + 1
        try:
            if step == "open":
                client.send_headers(client.get_next_available_stream_id(), _HEAD, end_stream=number == 0)
            elif step == "data":
                client.send_data(stream_id, bytes(100 * number), pad_length=number)
            elif step == "message":
                client.send_data(stream_id, b"\0\0\0\0\3abc")
            elif step == "end":
                client.end_stream(stream_id)
            elif step == "reset":
                client.reset_stream(stream_id)
            elif step == "window":
                client.increment_flow_control_window(1 + number, stream_id if number % 2 else None)
            elif step == "ping":
                client.ping(b"12345678")
            elif step == "settings":
                client.update_settings({4: 1_000 * number})
            else:
                client.send_headers(stream_id, [("x", "y")], end_stream=True)
        except (h2.exceptions.ProtocolError, KeyError):
            continue
    return client.data_to_send()


@given(
    _STEPS,
    st.lists(st.integers(1, 400), max_size=20),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=4),
)
def test_a_peer_is_answered_or_told_why_not(
    steps: list[tuple[str, int]], cuts: list[int], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(written_by_a_client(steps))
    for at, value in changes:
        content[at % len(content)] = value
    server = GrpcPeer()
    data, at = bytes(content), 0
    try:
        for cut in [*cuts, len(data)]:
            server.connection.receive(data[at : at + cut], float(at))
            server.connection.take_output()
            at += cut
    except frames.Http2Error as error:
        server.connection.fail(error)
    else:
        if not changes:  # what the library of a client has written is right
            assert server.connection.settled
    assert server.held_bytes() <= (CONNECTION_WINDOW.bytes or 0) + len(data)
    server.close()


@given(st.binary(max_size=3_000))
def test_any_bytes_after_the_preface_are_frames_or_an_error(data: bytes) -> None:
    server = GrpcPeer()
    with suppress(frames.Http2Error):
        server.connection.receive(frames.PREFACE + frames.settings({}) + data, 0.0)
    server.close()


def outcome(pieces: list[bytes]) -> tuple[bytes, list[bytes], str]:
    """What a server answers to these pieces, the messages it got, and why it ended the connection."""
    server, answer, error = GrpcPeer(), b"", ""
    try:
        for piece in pieces:
            server.connection.receive(piece, 0.0)
            answer += server.connection.take_output()
    except frames.Http2Error as failed:
        server.connection.fail(failed)
        error = failed.text
    answer += server.connection.take_output()
    server.close()
    return answer, server.messages, error


def cut(content: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[start:end] for start, end in pairwise(bounds)]


@given(_STEPS, st.lists(st.integers(0, 20_000), max_size=30), st.binary(max_size=30))
def test_frames_mean_the_same_wherever_they_are_cut(
    steps: list[tuple[str, int]], places: list[int], last: bytes
) -> None:
    content = written_by_a_client(steps)
    assert outcome(cut(content, places)) == outcome([content])
    hostile = content + last
    assert outcome(cut(hostile, places)) == outcome([hostile])


@given(_STEPS)
def test_frames_byte_by_byte_mean_the_same(steps: list[tuple[str, int]]) -> None:
    content = written_by_a_client(steps)
    assert outcome([bytes((byte,)) for byte in content]) == outcome([content])


_FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":path", b":status", b"content-type", b"x", b"y" * 130]) | st.binary(max_size=20),
        st.sampled_from([b"", b"/", b"200", b"application/grpc", b"v" * 4_070]) | st.binary(max_size=300),
        st.booleans(),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(_FIELDS, st.booleans(), st.sampled_from([None, 0, 50, 4_096])), max_size=8))
def test_blocks_are_decoded_as_they_were_encoded(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]],
) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(HEADER_BLOCK.bytes or 0)
    for fields, huffman, table in blocks:
        if table is not None:
            encoder.header_table_size = table
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == [field[:2] for field in fields]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_block_is_decoded_as_another_decoder_does(blocks: list[bytes]) -> None:
    ours, theirs = HeaderDecoder(HEADER_BLOCK.bytes or 0), Decoder(HEADER_BLOCK.bytes or 0)
    for block in blocks:
        try:
            expected: Headers | None = [(name, value) for name, value in theirs.decode(block, raw=True)]
        except HPACKError:
            expected = None
        try:
            found: Headers | None = ours.decode(block)
        except frames.Http2Error:
            found = None
        assert found == expected
        if found is None:
            return
