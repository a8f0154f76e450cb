"""Packets as bytes, in both forms: what goes in comes out, hostile bytes cost an answer and nothing else, the forms agree."""

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import decode_packet_number, pull_ack_frame
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE
from tunnel_protocol.quic import packets
from tunnel_protocol.quic.received_packets import ReceivedPacketNumbers, ReceivedPackets
from tunnel_protocol.quic.varint import varint

KEY, IV = bytes(range(16)), 0x0102030405060708090A0B0C
OUR_CID, PEER_CID = b"ourciden", b"peer-connection-id"
LARGEST = (1 << 62) - 1
SMALL, LARGE = st.integers(0, 300), st.integers(0, LARGEST)


def form_of(name: str) -> ModuleType:
    if name == "compiled":
        if AS_WRITTEN_BECAUSE is not None:
            pytest.skip(f"the program runs as written: {AS_WRITTEN_BECAUSE}")
        return importlib.import_module("tunnel_protocol.quic.packet_speedups")
    return packets


needs_compiled = pytest.mark.skipif(
    AS_WRITTEN_BECAUSE is not None, reason=f"the program runs as written: {AS_WRITTEN_BECAUSE}"
)
FORMS = ("as written", "compiled") if AS_WRITTEN_BECAUSE is None else ("as written",)


@pytest.fixture(params=["as written", "compiled"])
def form(request: pytest.FixtureRequest) -> Any:
    return form_of(request.param)


def keys(form: Any, direction: str) -> Any:
    protection = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()  # noqa: S305 - header protection is ECB of one block
    return form.Keys(getattr(AESGCM(KEY), direction), IV, protection.update, AESGCM(KEY).encrypt_into)


class Streams:
    """Notes what arrives on streams 0, 4 and a large one."""

    def __init__(self) -> None:
        self.arrived: list[tuple[int, int, bytes, bool]] = []
        self.by_id = {number: Taker(self, number) for number in (0, 4, 1 << 40)}


class Taker:
    def __init__(self, streams: Streams, number: int) -> None:
        self.streams = streams
        self.number = number

    def on_stream_frame(self, offset: int, data: bytes, fin: bool) -> None:
        self.streams.arrived.append((self.number, offset, data, fin))


def sealed(form: Any, number: int, payload: bytes, *, cid: bytes = OUR_CID, first: int = 0x41) -> bytes:
    return form.seal_packet(first, cid, number, payload, keys(form, "encrypt"))


@given(number=LARGE, payload=st.binary(min_size=2, max_size=1_400), behind=st.integers(0, 30_000))
def test_a_sealed_packet_opens_to_its_number_and_payload(number: int, payload: bytes, behind: int) -> None:
    for form in map(form_of, FORMS):
        packet = sealed(form, number, payload)
        if len(packet) >= packets.SMALLEST_PACKET_BYTES:
            expected = max(0, number - behind)
            assert form.open_packet(packet, keys(form, "decrypt"), 0, expected) == (number, payload)


@needs_compiled
@given(
    number=LARGE, payload=st.binary(max_size=100), cid=st.binary(max_size=20), first=st.sampled_from((0x41, 0x45, 0x61))
)
def test_both_forms_seal_alike(number: int, payload: bytes, cid: bytes, first: int) -> None:
    compiled = form_of("compiled")
    if len(payload) + 16 >= 18:
        assert sealed(compiled, number, payload, cid=cid, first=first) == sealed(
            packets, number, payload, cid=cid, first=first
        )


@needs_compiled
@given(data=st.binary(min_size=29, max_size=200), phase=st.integers(0, 1), expected=LARGE)
def test_both_forms_treat_forged_packets_alike(data: bytes, phase: int, expected: int) -> None:
    def outcome(form: Any) -> Any:
        try:
            return form.open_packet(data, keys(form, "decrypt"), phase, expected)
        except InvalidTag:
            return "forged"

    assert outcome(form_of("compiled")) == outcome(packets)


RUN = {
    "number": st.integers(0, LARGEST - 100),
    "offset": SMALL | st.integers(0, LARGEST - 10_000),
    "data": st.binary(min_size=1, max_size=600),
    "skipped": st.integers(0, 20),
    "piece_bytes": st.integers(20, 700),
    "fin": st.booleans(),
    "mutable": st.booleans(),
}


def run_of(form: Any, cid: bytes, run: dict[str, Any]) -> bytes:
    data = bytes(run["skipped"]) + run["data"] + b"not of this run"
    return form.seal_run(
        0x41,
        cid,
        run["number"],
        b"\x04",
        run["offset"],
        bytearray(data) if run["mutable"] else data,
        run["skipped"],
        run["skipped"] + len(run["data"]),
        run["piece_bytes"],
        run["fin"],
        keys(form, "encrypt"),
    )


@given(run=st.fixed_dictionaries(RUN))
def test_a_run_of_packets_opens_to_the_pieces_of_one_stream(run: dict[str, Any]) -> None:
    data, piece_bytes = run["data"], run["piece_bytes"]
    for name in FORMS:
        form, streams = form_of(name), Streams()
        sealed_run, number, at = run_of(form, OUR_CID, run), run["number"], 0
        packet_bytes = piece_bytes + len(OUR_CID) + 3 + 10 + 16
        while at < len(sealed_run):
            packet = sealed_run[at : at + packet_bytes]
            if len(packet) >= packets.SMALLEST_PACKET_BYTES:
                opened = form.open_packet(packet, keys(form, "decrypt"), 0, number)
                assert opened is not None
                assert opened[0] == number
                assert form.read_stream_frames(opened[1], 0, streams.by_id) == len(opened[1])
            number += 1
            at += packet_bytes
        pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
        expected = [
            (4, run["offset"] + index * piece_bytes, piece, run["fin"] and index == len(pieces) - 1)
            for index, piece in enumerate(pieces)
        ]
        assert streams.arrived == expected


@needs_compiled
@given(run=st.fixed_dictionaries(RUN), cid=st.binary(max_size=20))
def test_both_forms_seal_runs_alike(run: dict[str, Any], cid: bytes) -> None:
    assert run_of(form_of("compiled"), cid, run) == run_of(packets, cid, run)


def test_another_key_phase_or_reserved_bits_are_not_ordinary(form: Any) -> None:
    for first in (0x45, 0x49, 0x51):
        packet = sealed(form, 7, bytes(50), first=first)
        assert form.open_packet(packet, keys(form, "decrypt"), 0, 7) is None


def test_a_packet_that_was_changed_does_not_open(form: Any) -> None:
    packet = bytearray(sealed(form, 7, b"\x01" * 40))
    packet[-1] ^= 1
    with pytest.raises(InvalidTag):
        form.open_packet(bytes(packet), keys(form, "decrypt"), 0, 7)


@given(truncated=st.integers(0, 0xFFFFFFFF), size=st.integers(1, 4), expected=LARGE)
def test_packet_numbers_are_completed_as_the_library_does(truncated: int, size: int, expected: int) -> None:
    truncated &= (1 << 8 * size) - 1
    assert packets.packet_number(truncated, size, expected) == decode_packet_number(truncated, 8 * size, expected)


def test_packet_numbers_around_a_window_are_completed_to_the_nearest() -> None:
    assert packets.packet_number(0x00, 1, 0x1FF) == 0x200
    assert packets.packet_number(0xFF, 1, 0x200) == 0x1FF
    assert packets.packet_number(0x80, 1, 0x200) == 0x280


# --- frames ----------------------------------------------------------------------------------------------------------

FRAMES = st.lists(
    st.tuples(st.sampled_from((0, 4, 1 << 40)), SMALL | LARGE, st.binary(max_size=300), st.booleans()), max_size=8
)


@given(frames=FRAMES)
def test_stream_frames_arrive_as_they_were_written(frames: list[tuple[int, int, bytes, bool]]) -> None:
    for name in FORMS:
        form, streams = form_of(name), Streams()
        payload = b"".join(form.stream_frame(varint(number), offset, data, fin) for number, offset, data, fin in frames)
        assert form.read_stream_frames(payload, 0, streams.by_id) == len(payload)
        assert streams.arrived == frames


def test_the_last_frame_may_come_without_a_length(form: Any) -> None:
    streams = Streams()
    assert form.read_stream_frames(b"\x0c\x04\x05rest", 0, streams.by_id) == 7
    assert streams.arrived == [(4, 5, b"rest", False)]


@pytest.mark.parametrize("tail", [b"\x06", b"\x0a\x07\x01x", b"\x0a\x04\x05cut", b"\x0e\x04\x80", b"\x0a", b"\x0b\xc0"])
def test_reading_stops_before_what_is_no_frame_of_a_known_stream(form: Any, tail: bytes) -> None:
    streams = Streams()
    start = form.stream_frame(b"\x04", 0, b"data", False)
    assert form.read_stream_frames(start + tail, 0, streams.by_id) == len(start)
    assert form.read_stream_frames(start + tail, len(start), streams.by_id) == len(start)
    assert streams.arrived == [(4, 0, b"data", False)]


def test_what_a_stream_raises_passes(form: Any) -> None:
    class Angry:
        def on_stream_frame(self, offset: int, data: bytes, fin: bool) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        form.read_stream_frames(b"\x0a\x00\x00", 0, {0: Angry()})


@needs_compiled
@settings(max_examples=500)
@given(
    payload=st.binary(max_size=80)
    | FRAMES.map(lambda frames: b"".join(packets.stream_frame(varint(f[0]), *f[1:]) for f in frames)),
    cut=st.integers(0, 40),
    flip=st.integers(0, 700),
)
@example(payload=b"\x0b\x00\xff\xff\xff\xff\xff\xff\xff\xff", cut=0, flip=0)
def test_both_forms_read_arbitrary_bytes_alike(payload: bytes, cut: int, flip: int) -> None:
    changed = bytearray(payload[: len(payload) - cut])
    if flip < len(changed):
        changed[flip] ^= 1 << flip % 8
    hostile = bytes(changed)

    def outcome(form: Any) -> Any:
        streams = Streams()
        ends = [form.read_stream_frames(hostile, at, streams.by_id) for at in range(min(4, len(hostile) + 1))]
        try:
            ack = tuple(form.read_ack(hostile, 0))
        except IndexError:
            ack = ("cut short",)
        return ends, streams.arrived, ack

    assert outcome(form_of("compiled")) == outcome(packets)


@needs_compiled
def test_arguments_that_no_caller_gives_are_refused() -> None:
    compiled = form_of("compiled")
    with pytest.raises(ValueError, match="negative"):
        compiled.read_stream_frames(b"\x0a\x00\x00", -1, {})
    with pytest.raises(ValueError, match="negative"):
        compiled.read_ack(bytes(9), -5)
    with pytest.raises(ValueError, match="too short"):
        compiled.open_packet(bytes(28), keys(compiled, "decrypt"), 0, 0)
    with pytest.raises(TypeError):
        compiled.read_stream_frames(None, 0, {})
    for start, stop, piece_bytes, data in (
        (5, 5, 2, b"abcdef"),
        (0, 7, 2, b"abcdef"),
        (0, 2, 0, b"ab"),
        (0, 2, 1, [1, 2]),
    ):
        with pytest.raises(ValueError, match="there are no"):
            compiled.seal_run(0x41, b"", 0, b"", 0, data, start, stop, piece_bytes, False, keys(compiled, "encrypt"))


# --- acknowledgements ------------------------------------------------------------------------------------------------


@given(numbers=st.sets(st.integers(0, 400), min_size=1, max_size=150), late_us=st.integers(0, 50_000))
def test_an_ack_frame_says_what_was_received(numbers: set[int], late_us: int) -> None:
    space = ReceivedPackets(ack_after_bytes=9_600, least_counted_bytes=150, ack_delay_s=0.015)
    for number in sorted(numbers):
        space.on_packet_received(number, 1.0, 100)
    frame = space.ack_frame(1.0 + late_us / 1e6, 10_000)
    assert frame[0] == 2
    ranges, delay = pull_ack_frame(Buffer(data=frame[1:]))
    said = {number for found in ranges for number in found}
    starts, stops = space.ranges.starts, space.ranges.stops
    kept = {number for low, high in zip(starts, stops, strict=True) for number in range(low, high)}
    assert said == kept
    assert kept <= numbers
    assert max(numbers) in said
    assert abs(delay * 8 - late_us) <= 9
    for name in FORMS:
        ack = form_of(name).read_ack(frame, 1)
        largest, its_delay, its_ranges, end = ack
        assert {number for low, high in its_ranges for number in range(low, high + 1)} == said
        assert (largest, its_delay, end) == (max(numbers), delay, len(frame))


@given(max_bytes=st.integers(0, 400))
def test_an_ack_frame_stays_within_its_limit_and_begins_with_the_newest(max_bytes: int) -> None:
    space = ReceivedPackets(ack_after_bytes=9_600, least_counted_bytes=150, ack_delay_s=0.015)
    for number in range(0, 100, 2):
        space.on_packet_received(number, 1.0, 100)
    frame = space.ack_frame(1.0, max_bytes)
    ack = packets.read_ack(frame, 1)
    assert len(frame) <= max(max_bytes, 32)
    assert ack[2][0] == (98, 98)


@given(numbers=st.lists(st.integers(0, 1_500), max_size=900))
def test_a_duplicate_is_told_and_memory_is_bounded(numbers: list[int]) -> None:
    seen, model = ReceivedPacketNumbers(), set()
    for number in numbers:
        known = number in seen
        assert known or number not in model
        if number in model:
            assert known
        seen.add(number)
        model.add(number)
        assert number in seen
        assert sys.getsizeof(seen) < 200
    assert len(seen._seen) <= 256 + 1  # type: ignore[attr-defined] # private


# --- memory ----------------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_by_any_way_out(form: Any) -> None:
    streams, opening, sealing = Streams(), keys(form, "decrypt"), keys(form, "encrypt")
    frame = form.stream_frame(b"\x04", 70_000, b"data", True)
    packet = sealed(form, 9, frame * 3)
    forged = packet[:-1] + b"\x00"
    ack = ReceivedPackets(ack_after_bytes=9_600, least_counted_bytes=150, ack_delay_s=0.015)
    ack.on_packet_received(5, 1.0, 0)
    said = ack.ack_frame(1.0, 100)

    def every_way() -> None:
        form.open_packet(packet, opening, 0, 9)
        form.open_packet(packet, opening, 1, 9)
        with pytest.raises(InvalidTag):
            form.open_packet(forged, opening, 0, 9)
        form.read_stream_frames(frame * 3 + b"\x06", 0, streams.by_id)
        form.read_stream_frames(frame[:-1], 0, streams.by_id)
        form.read_ack(said, 1)
        with pytest.raises(IndexError):
            form.read_ack(said[:3], 1)
        form.stream_frame(b"\x04", 1 << 61, b"data", True)
        form.seal_run(0x41, b"cid", 7, b"\x04", 0, b"piece by piece", 0, 14, 5, True, sealing)
        streams.arrived.clear()

    for _ in range(200):
        every_way()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(3_000):
        every_way()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500
