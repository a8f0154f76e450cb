"""The server name of a client's first datagrams: found however they are cut, and nothing else than one error for what is hostile."""

import os
import random
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubernetes_router.relay.client_hello import server_name
from kubernetes_router.relay.first_flight import DATAGRAMS, FirstFlight, Resolved
from kubernetes_router.relay.initial_packets import (
    FRAMES,
    FirstFlightError,
    LongHeader,
    crypto_frames,
    initial_packets,
)
from support.hostile_packets import client_hello, crypto_frame, gaps, initial
from support.quic_clients import POD, client, first_flight
from tunnel_protocol.quic.varint import varint

CID = bytes(range(8))


def hello(name: str | None = "router-0.svc") -> bytes:
    connection = client(name)
    connection.connect(POD, 0.0)
    return bytes(client_hello(connection))


HELLO = hello()
ACK = b"\x02" + varint(3) + varint(0) + varint(1) + varint(0) + varint(0) + varint(1)
ACK_ECN = b"\x03" + ACK[1:] + varint(1) + varint(2) + varint(3)


def found(*datagrams: bytes, connection_id: bytes = CID) -> Resolved | None:
    flight = FirstFlight(connection_id)
    for data in datagrams:
        resolved = flight.add(data)
        if resolved is not None:
            return resolved
    return None


def only_packet(datagram: bytes) -> bytes:
    """The Initial packet of a datagram, without what pads the datagram."""
    return next(initial_packets(datagram, CID))[0]


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def message(extensions: bytes | None, *, kind: int = 1) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    if extensions is not None:
        body += len(extensions).to_bytes(2, "big") + extensions
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def host_names(*names: tuple[int, bytes]) -> bytes:
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2, "big") + name for kind, name in names)
    return extension(0, len(listed).to_bytes(2, "big") + listed)


@given(st.data())
def test_the_name_is_found_however_the_hello_is_cut_and_ordered(data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(HELLO) - 1), max_size=20, unique=True)))
    edges = list(zip([0, *cuts], [*cuts, len(HELLO)], strict=True))
    frames = [crypto_frame(start, HELLO[start:end]) for start, end in edges]
    frames += data.draw(
        st.lists(st.sampled_from([b"\x01", b"\x00", b"\x00\x00\x00", ACK, ACK_ECN, frames[0]]), max_size=5)
    )
    order = data.draw(st.permutations(frames))
    count = data.draw(st.integers(1, 4))
    packets = [initial(order[number::count] or [b"\x01"], CID, number=number, size=4_000) for number in range(count)]
    flight = FirstFlight(CID)
    results = [flight.add(packet) for packet in packets]
    assert any(result is not None and result.server_name == "router-0.svc" for result in results)


@pytest.mark.parametrize("long", [False, True])
def test_the_first_flight_of_aioquic_is_read(long: bool) -> None:
    datagrams = first_flight("router-1.svc", long=long)
    assert len(datagrams) == (2 if long else 1)
    cid = datagrams[0][6:14]
    assert found(*datagrams, connection_id=cid) == Resolved("router-1.svc")
    assert found(*reversed(datagrams), connection_id=cid) == Resolved("router-1.svc")
    if long:
        assert found(datagrams[0], datagrams[0], datagrams[0], connection_id=cid) is None


def test_packets_of_one_datagram_are_read_one_after_the_other() -> None:
    half = len(HELLO) // 2
    first = only_packet(initial([crypto_frame(0, HELLO[:half])], CID, number=0))
    second = only_packet(initial([crypto_frame(half, HELLO[half:])], CID, number=1))
    assert found(first + second) == Resolved("router-0.svc")
    # A 0-RTT packet between them is skipped, what comes after a short header is ignored.
    early = b"\xd0\x00\x00\x00\x01\x08" + CID + b"\x00" + varint(20) + bytes(20)
    assert found(first + early + second) == Resolved("router-0.svc")
    assert found(first + b"\x40" + second) is None
    assert found(first + early[:-1]) is None
    assert found(first + early[:15]) is None
    other = initial([crypto_frame(half, HELLO[half:])], bytes(8), number=1)
    assert found(first + other) is None
    assert [number_at for _, number_at in initial_packets(first, CID)] == [6 + 8 + 1 + 8 + 1 + 2]


def test_a_datagram_that_does_not_decrypt_begins_nothing_but_does_not_end_a_flight() -> None:
    forged = only_packet(initial([crypto_frame(0, HELLO)], CID, size=1_350))
    forged = forged[:-1] + bytes([forged[-1] ^ 1])
    with pytest.raises(FirstFlightError, match="no Initial packet that can be decrypted"):
        found(forged)
    half = len(HELLO) // 2
    first = initial([crypto_frame(0, HELLO[:half])], CID, number=0)
    second = initial([crypto_frame(half, HELLO[half:])], CID, number=1)
    assert found(first, forged, second) == Resolved("router-0.svc")


def test_a_packet_too_short_for_its_sample_is_ignored() -> None:
    short = b"\xc0\x00\x00\x00\x01\x08" + CID + b"\x00\x00" + varint(10) + bytes(10)
    with pytest.raises(FirstFlightError):
        found(short)


def test_datagrams_are_bounded_in_number_and_bytes() -> None:
    flight = FirstFlight(CID)
    for number in range(DATAGRAMS.pieces or 0):
        assert not flight.full
        assert flight.add(initial([crypto_frame(100 + number, b"x")], CID, number=number)) is None
    assert flight.full
    with pytest.raises(FirstFlightError, match="too many datagrams"):
        flight.add(initial([b"\x01"], CID, number=9))
    with pytest.raises(FirstFlightError, match="too many datagrams"):
        FirstFlight(CID).add(initial([b"\x01"], CID) + bytes(DATAGRAMS.bytes or 0))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"\x1c\x00\x00\x00"], "closed by the client"),
        ([b"\x08\x00"], "a frame that Initial packets do not have"),
        ([b"\x01"] * 300, "too many frames"),
        ([crypto_frame(70_000, b"x")], "too far ahead"),
        (gaps(70), "too fragmented"),
        ([crypto_frame(0, b"\x01\xff\xff\xff")], "too long"),
        ([crypto_frame(0, b"\x02\x00\x00\x00")], "no ClientHello"),
    ],
)
def test_a_first_packet_that_breaks_a_rule_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(FirstFlightError, match=reason):
        found(initial(frames, CID))


@pytest.mark.parametrize(
    "payload", [b"\x06", b"\x06\x00\x05abc", b"\x06\x40", b"\x02\x00", b"\x03" + ACK[1:], b"\x02\x00\x00" + b"\xff" * 8]
)
def test_truncated_frames_are_refused(payload: bytes) -> None:
    with pytest.raises(FirstFlightError, match="truncated"):
        list(crypto_frames(payload))


def test_frames_of_a_packet_are_counted_and_a_run_of_padding_counts_once() -> None:
    most = (FRAMES.pieces or 0) // 2
    assert list(crypto_frames((bytes(50) + b"\x01") * most)) == []
    with pytest.raises(FirstFlightError, match="too many frames"):
        list(crypto_frames((bytes(50) + b"\x01") * most + b"\x00"))


# --- The ClientHello --------------------------------------------------------------------------------------------------


def test_a_hello_without_a_name_names_nobody() -> None:
    assert server_name(message(None)) is None
    assert server_name(message(b"")) is None
    assert server_name(message(extension(16, b"abc"))) is None
    assert server_name(message(host_names())) is None
    assert server_name(message(host_names((7, b"x")))) is None
    assert server_name(message(host_names((0, b"")))) is None


def test_the_name_is_found_among_other_extensions_and_kinds_of_names() -> None:
    listed = extension(10, bytes(4)) + host_names((7, b"x"), (0, b"router-2"), (0, b"other")) + extension(16, b"")
    assert server_name(message(listed)) == "router-2"
    assert server_name(message(host_names((0, b"a" * 255)))) == "a" * 255


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (message(b"", kind=2), "no ClientHello"),
        (message(host_names((0, b"r"))[:-1]), "truncated"),
        (message(extension(0, b"\x00")), "truncated"),
        (message(host_names((0, b"\xff"))), "no host name"),
        (message(host_names((0, b"a\nb"))), "no host name"),
        (message(host_names((0, b"a" * 256))), "no host name"),
    ],
)
def test_a_malformed_hello_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FirstFlightError, match=reason):
        server_name(data)


# --- Hostile bytes ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_are_a_hello_or_refused(data: bytes) -> None:
    with suppress(FirstFlightError):
        server_name(data)
    with suppress(FirstFlightError):
        server_name(message(data))


@given(st.binary(max_size=1_500))
def test_any_payload_is_frames_or_refused(payload: bytes) -> None:
    with suppress(FirstFlightError):
        assert sum(len(data) for _, data in crypto_frames(payload)) <= len(payload)


@given(st.binary(max_size=300), st.integers(0, 20))
def test_any_bytes_are_a_long_header_or_none(data: bytes, at: int) -> None:
    header = LongHeader.parse(data, at)
    if header is not None:
        assert header.end <= len(data)
        assert max(len(header.source_cid), len(header.destination_cid)) <= 20


@given(st.data())
@settings(max_examples=200)
def test_changed_first_datagrams_resolve_wait_or_are_refused(data: Any) -> None:
    packet = bytearray(initial([crypto_frame(0, HELLO)], CID, size=1_350))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    with suppress(FirstFlightError):
        found(bytes(packet[: data.draw(st.integers(0, len(packet)))]))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(max_size=40)), max_size=12), min_size=1, max_size=6)
)
def test_any_crypto_frames_hold_no_more_than_came_in(packets: list[list[tuple[int, bytes]]]) -> None:
    flight, size = FirstFlight(CID), 0
    with suppress(FirstFlightError):
        for number, frames in enumerate(packets):
            packet = initial([crypto_frame(*frame) for frame in frames] or [b"\x01"], CID, number=number)
            size += len(packet)
            flight.add(packet)
            assert flight._crypto.held_bytes() <= size
            assert sum(map(len, flight.datagrams)) <= (DATAGRAMS.bytes or 0)


def test_hostile_first_datagrams_take_little_time_and_memory() -> None:
    """The largest flights there can be, of what costs most: many frames, many gaps, many tiny packets."""
    pieces = random.Random(1).sample(range(1_000), 60)
    tiny = b"".join(only_packet(initial([b"\x01"], CID, number=number)) for number in range(100))
    costly = [
        initial([crypto_frame(2 * at, b"z") for at in pieces], CID),
        initial([b"\x01", *([b"\x00\x01"] * 100)], CID),
        tiny,
        initial([b"\x02" + varint(0) + varint(0) + varint((1 << 62) - 1) + varint(0) + bytes(900)], CID),
        os.urandom(DATAGRAMS.bytes or 0),
    ]
    tracemalloc.start()
    began = time.process_time()
    for _ in range(20):
        for data in costly:
            flight = FirstFlight(CID)
            with suppress(FirstFlightError):
                for _ in range(DATAGRAMS.pieces or 0):
                    flight.add(data)
    took = (time.process_time() - began) / (20 * len(costly))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 0.05
    assert peak < 1 << 20
