"""The reverse handshake as two state machines that talk to each other."""

import struct

import pytest

from tunnel_protocol.capnp import HandshakeAck
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.handshake import MAX_HANDSHAKE_BYTES, RouterHandshake, WorkerHandshake, WorkerHello


@pytest.mark.parametrize("token", [None, "", "secret", "t" * 40_000])
@pytest.mark.parametrize("step", [1, 7, 1200, 100_000])
def test_hello_is_understood_in_pieces_of_any_size(token: str | None, step: int) -> None:
    raw = WorkerHandshake().hello("worker-1", token)
    router = RouterHandshake()
    heard = [router.receive(raw[at : at + step], False) for at in range(0, len(raw), step)]
    assert heard[-1] == WorkerHello("worker-1", token)
    assert not any(heard[:-1])


def test_answer_is_understood() -> None:
    router = RouterHandshake()
    assert WorkerHandshake().receive(router.accept(), True) == HandshakeAck(True, "")
    assert WorkerHandshake().receive(router.refuse("duplicate connection"), True) == (False, "duplicate connection")


def test_hello_counts_once_and_what_follows_is_ignored() -> None:
    router = RouterHandshake()
    raw = WorkerHandshake().hello("worker-1", None)
    assert router.receive(raw + b"\xff" * 100, False) == WorkerHello("worker-1", None)
    assert router.receive(raw, False) is None
    assert router.receive(b"\xff" * 100, True) is None


@pytest.mark.parametrize(("cut", "reason"), [(0, "got none"), (1, "got part of one"), (39, "got part of one")])
def test_stream_that_ends_early_is_a_protocol_error(cut: int, reason: str) -> None:
    raw = WorkerHandshake().hello("worker-1", None)
    with pytest.raises(ProtocolError, match=f"^expected handshake message, {reason}$"):
        RouterHandshake().receive(raw[:cut], True)
    with pytest.raises(ProtocolError, match=f"^expected handshake ack message, {reason}$"):
        WorkerHandshake().receive(RouterHandshake().accept()[:cut], True)


@pytest.mark.parametrize(
    "table",
    [
        struct.pack("<II", 0, MAX_HANDSHAKE_BYTES // 8),
        struct.pack("<IIII", 1, 0xFFFFFFFF, 0xFFFFFFFF, 0),
        struct.pack("<II", 511, 0),
        b"\xff" * 8,
    ],
)
def test_message_that_is_announced_too_large_is_refused_at_once(table: bytes) -> None:
    with pytest.raises(ProtocolError):
        RouterHandshake().receive(table, False)


def test_limit_is_the_caller_s() -> None:
    raw = WorkerHandshake().hello("worker-1", "t" * 500)
    with pytest.raises(ProtocolError, match=f"handshake message of {len(raw)} bytes exceeds the limit of 256"):
        RouterHandshake(max_bytes=256).receive(raw, False)


def test_segment_table_may_arrive_in_pieces() -> None:
    # The id in a second segment, behind a landing pad; four segments, so the table takes 24 bytes.
    table = struct.pack("<IIIIII", 3, 3, 2, 0, 0, 0)
    raw = table + struct.pack("<QQQ", 2 << 48, 1 << 32 | 2, 0) + struct.pack("<Q8s", 4 << 35 | 2 << 32 | 1, b"abc")
    for step in (1, 5, 9):
        router = RouterHandshake()
        heard = [router.receive(raw[at : at + step], False) for at in range(0, len(raw), step)]
        assert heard[-1] == WorkerHello("abc", None)
