"""Header blocks of gRPC peers: every form of a field, linear time, and what a few bytes can stand for."""

import gc
import time
import tracemalloc

import pytest
from hpack import Encoder

from router.grpc import frames, header_blocks
from router.grpc.call import Call
from router.grpc.frames import ErrorCode, Http2Error
from router.grpc.header_decoder import HeaderDecoder, Headers, size_of
from router.grpc.http2_connection import HEADER_BLOCK, OPEN_HEADS, Http2Connection
from router.grpc.stream import Http2Stream

MOST = HEADER_BLOCK.bytes or 0
CLIENT = frames.PREFACE + frames.settings({})
HEAD = b"\x83\x86\x44\x02/a\x5f\x10application/grpc"
BIG = b"\x40\x01x\x7f\xbd\x1d" + b"v" * 3_900
"""A field of 3,900 bytes, which index 62 stands for from then on."""


def refused(block: bytes) -> ErrorCode:
    with pytest.raises(Http2Error) as failed:
        HeaderDecoder(MOST).decode(block)
    return failed.value.code


def headers(stream_id: int, block: bytes) -> bytes:
    return frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block)


class Server:
    """Keeps its calls open."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.connection = Http2Connection(self._on_request, lambda: None)

    def _on_request(self, stream: Http2Stream, fields: Headers) -> None:
        head = header_blocks.read_head(fields)
        call = Call(self.connection, stream, "peer", head.fields, lambda _call: None)
        stream.receiver = call
        self.calls.append(call)


def test_a_block_is_decoded_whatever_form_its_fields_have() -> None:
    decoder = HeaderDecoder(MOST)
    assert decoder.decode(b"\x82\x40\x01a\x01b\x00\x01c\x01d\x10\x01e\x01f\x0f\x00\x01g") == [
        (b":method", b"GET"),
        (b"a", b"b"),
        (b"c", b"d"),
        (b"e", b"f"),
        (b"accept-charset", b"g"),
    ]
    assert decoder.decode(b"\xbe\x7e\x01z") == [(b"a", b"b"), (b"a", b"z")]
    assert decoder.decode(b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    with pytest.raises(Http2Error):
        decoder.decode(b"\xbe")  # the table was emptied
    fields = [(b"x" * size, b"y" * size) for size in (1, 126, 127, 128, 300, 17_000)]
    for huffman in (True, False):
        assert HeaderDecoder(MOST).decode(Encoder().encode(fields, huffman=huffman)) == fields


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\x80\x80\x80\x80\x01",
        b"\xff",
        b"\xfe",
        b"\x00",
        b"\x00\x05ab",
        b"\x00\x01a\x05b",
        b"\x00\x81\xff\x01a",
        b"\x82\x20",
        b"\x3f\xe2\x1f",
    ],
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    assert refused(block) is ErrorCode.COMPRESSION_ERROR


def test_a_block_of_the_smallest_fields_costs_linear_time() -> None:
    began = time.process_time()
    assert refused(b"\x00\x80\x80" * 8_000 + bytes(230_000)) is ErrorCode.ENHANCE_YOUR_CALM
    assert time.process_time() - began < 0.3  # 1.3 s when each field copied the rest, 0.02 s now


def test_a_table_entry_that_is_named_again_and_again_is_bounded_and_not_copied() -> None:
    decoder = HeaderDecoder(MOST)
    assert refused(BIG + b"\xbe" * 200) is ErrorCode.ENHANCE_YOUR_CALM
    fields = decoder.decode(BIG + b"\xbe" * 15)
    assert size_of(fields) == 16 * 3_933
    assert len({id(value) for _, value in fields}) == 1


def test_calls_whose_heads_name_one_large_entry_hold_no_copies_of_it() -> None:
    server = Server()
    server.connection.receive(CLIENT + headers(1, HEAD + BIG), 0.0)
    flood = b"".join(headers(2 * number + 3, b"\x83\x86\xc0\xbf" + b"\xbe" * 14) for number in range(400))
    gc.collect()
    tracemalloc.start()
    try:
        server.connection.receive(flood, 0.0)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(server.calls) == 401
    assert held < 4_000 * 401  # about 1.4 kB for each call; its head is 55 kB
    assert server.calls[-1].metadata == [("content-type", "application/grpc"), *([("x", "v" * 3_900)] * 14)]
    assert server.calls[-1].first_value("x") == "v" * 3_900
    assert server.calls[-1].first_value("y") is None
    server.connection.lost()
    assert server.calls[-1].metadata == []


def test_the_heads_of_all_open_calls_of_a_connection_are_bounded() -> None:
    server = Server()
    server.connection.receive(CLIENT + headers(1, HEAD + BIG), 0.0)
    number = 0
    while not (refusals := server.connection.take_output()).endswith(
        frames.reset(2 * number + 1, ErrorCode.REFUSED_STREAM)
    ):
        number += 1
        server.connection.receive(headers(2 * number + 1, b"\x83\x86\xc0\xbf" + b"\xbe" * 14), 0.0)
        assert number < 1_000
    assert refusals
    one = 14 * 3_933
    assert number * one <= (OPEN_HEADS.bytes or 0) <= (number + 2) * one
    server.connection.receive(frames.reset(3, 8) + frames.reset(5, 8), 0.0)
    server.connection.receive(headers(2 * number + 3, HEAD), 0.0)
    assert server.connection.take_output() == b""
    assert len(server.connection.streams) == number - 1
