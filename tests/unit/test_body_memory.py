"""What waits of a body, and its copy for another attempt, take about their bytes of memory, however small the pieces were."""

import time
import tracemalloc
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http1.blocks import BLOCK, Blocks
from router.http1.request import WAITING_BODY, RequestBody
from router.http1.request_parser import RequestParser
from router.proxy.replay import ReplayBudget, ReplayBuffer, ReplayState
from router.proxy.settings import REPLAY_COPY, REPLAY_TOTAL

SIZE = 1 << 18


@contextmanager
def growth():
    """A list that holds, afterwards, how many bytes were allocated and not freed."""
    found = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield found
    found.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 2, 35, 1000, 5000])
def test_a_copy_of_small_pieces_takes_about_its_bytes(size):
    budget = ReplayBudget(REPLAY_TOTAL.bytes, lambda: None)
    copy = ReplayBuffer(REPLAY_COPY.bytes, budget)
    copy.touch()
    with growth() as grown:
        for number in range(SIZE // size):
            copy.add(number.to_bytes(4, "little") * (size // 4 + 1))
    held = copy.held_bytes
    assert budget.used_bytes == held
    assert grown[0] < 1.25 * held + 2 * BLOCK.bytes
    assert len(copy.chunks) <= 2 + held // 500
    copy.close()
    assert budget.used_bytes == 0


class Reader:
    """The owner of a parser; takes each body into a copy as an upload does."""

    def __init__(self, copy):
        self.copy = copy
        self.pieces = 0

    def request_begun(self, request):
        request.body.attach(self)

    def request_complete(self, request): ...

    def set_body_reading(self, reading): ...

    def on_body(self, data):
        self.pieces += 1
        self.copy.add(data)

    def on_body_end(self):
        self.copy.complete()


@pytest.mark.parametrize("delivery", [7, 65_536])
def test_an_upload_in_chunks_of_two_bytes_takes_about_its_bytes(delivery):
    """16 MiB took 446 MiB: each chunk was an object of its own. The figure is kept by its ratio."""
    copy = ReplayBuffer(REPLAY_COPY.bytes, ReplayBudget(REPLAY_TOTAL.bytes, lambda: None))
    copy.touch()
    reader = Reader(copy)
    parser = RequestParser(reader, time.monotonic)
    parser.feed(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    wire = b"2\r\nab\r\n" * 131_072
    with growth() as grown:
        for at in range(0, len(wire), delivery):
            parser.feed(wire[at : at + delivery])
    parser.feed(b"0\r\n\r\n")
    assert (copy.state, copy.held_bytes) == (ReplayState.COMPLETE, 262_144)
    assert grown[0] < 1.25 * copy.held_bytes + 2 * BLOCK.bytes
    assert reader.pieces <= len(wire) // delivery + 2
    copy.close()
    parser.release()


def test_a_copy_above_its_limit_is_dropped():
    budget = ReplayBudget(REPLAY_TOTAL.bytes, lambda: None)
    copy = ReplayBuffer(REPLAY_COPY.bytes, budget)
    copy.touch()
    copy.add(bytes(REPLAY_COPY.bytes))
    assert copy.state is ReplayState.COPYING
    copy.add(b"x")
    assert (copy.state, budget.used_bytes) == (ReplayState.TOO_LARGE, 0)


def test_copies_above_the_limit_of_all_are_dropped():
    refused = []
    budget = ReplayBudget(REPLAY_TOTAL.bytes, lambda: refused.append(1))
    assert budget.take(REPLAY_TOTAL.bytes)
    copy = ReplayBuffer(REPLAY_COPY.bytes, budget)
    copy.touch()
    copy.add(b"x")
    copy.complete()
    assert (copy.state, refused) == (ReplayState.LOST, [1])


def test_a_body_that_nobody_takes_pauses_its_client_and_takes_about_its_bytes():
    reading = []
    body = RequestBody(reading.append)
    with growth() as grown:
        for number in range(WAITING_BODY.bytes // 2):
            body.feed(number.to_bytes(2, "little"))
        assert reading == []
        body.feed(b"x")
    assert reading == [False]
    assert grown[0] < 2 * WAITING_BODY.bytes
    assert len(body.take()) <= 4
    assert reading == [False, True]


@given(st.lists(st.integers(1, 3000) | st.sampled_from([1, 1023, 1024, BLOCK.bytes]) | st.none(), max_size=60))
def test_blocks_are_a_queue_of_bytes(steps):
    blocks, expected, number = Blocks(), b"", 0
    for size in steps:
        if size is not None:
            number += 1
            data = (b"%d," % number * (size // 2 + 1))[:size]
            blocks.add(data)
            expected += data
        elif blocks.size:
            first = blocks.pop()
            assert first
            assert expected.startswith(first)
            expected = expected[len(first) :]
        assert blocks.size == len(expected)
    assert b"".join(blocks.pieces()) == expected
    assert len(blocks.pieces()) <= 3 + 2 * len(expected) // 1024 + sum(step is None for step in steps)
    assert b"".join(blocks.take()) == expected
    assert (blocks.size, blocks.pieces()) == (0, [])
    blocks.add(b"again")
    blocks.clear()
    assert (blocks.size, blocks.pieces()) == (0, [])
