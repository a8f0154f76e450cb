"""Bytes in any order of arrival: what comes out is right, and what is held is bounded by what arrived."""

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from tunnel_protocol.quic.reassembly import Reassembly

BODY = bytes(random.Random(1).randbytes(4_096))


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=80), st.integers(0, 20))
def test_everything_comes_out_once_and_in_order(frames: list[tuple[int, int]], shift: int) -> None:
    pieces, known, received = Reassembly(), set(range(shift)), shift
    for offset, size in frames:
        offset = max(offset, received)  # a stream never hands over what it has delivered
        pieces.add(offset, BODY[offset : offset + size])
        known |= set(range(offset, offset + size))
        while (block := pieces.take(received)) is not None:
            assert bytes(block) == BODY[received : received + len(block)]
            received += len(block)
        expected = next(at for at in range(10_000) if at not in known)
        assert received == expected
        assert pieces.size == len([at for at in known if at >= received])
        gaps = len([at for at in known if at >= received and at - 1 not in known])
        # Of blocks that touch each is longer than the one below: 26 of them have 351 bytes.
        assert gaps <= len(pieces) <= gaps * 26


def test_data_is_kept_as_it_arrived_first() -> None:
    pieces = Reassembly()
    pieces.add(2, b"cd")
    pieces.add(0, b"ABCDEF")
    assert pieces.take(0) == b"ABcdEF"


def test_a_block_that_begins_below_is_cut() -> None:
    pieces = Reassembly()
    pieces.add(0, b"ab")
    pieces.add(5, b"fgh")
    assert pieces.take(6) == b"gh"
    assert (len(pieces), pieces.size) == (0, 0)


def test_no_order_of_single_bytes_costs_quadratic_time() -> None:
    for order in (range(50_000, 0, -1), range(1, 50_000), [*range(1, 50_000, 2), *range(2, 50_000, 2)]):
        pieces = Reassembly()
        before = time.process_time()
        for at in order:
            pieces.add(at, b"x")
            if len(pieces) > 1_024:
                break
        assert time.process_time() - before < 5  # measured: 0.1
