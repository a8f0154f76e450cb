"""The server's side of HTTP/2, byte by byte, against the h2 library and against peers that break a rule."""

import time
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from router.grpc import frames, header_blocks
from router.grpc.call import PARTIAL_MESSAGES, Call, framed
from router.grpc.frames import ErrorCode, Http2Error
from router.grpc.header_blocks import MalformedRequestError, read_head
from router.grpc.http2_connection import CONNECTION_WINDOW, CONTROL_FRAMES, HEADER_BLOCK, RESETS, Http2Connection
from router.grpc.status import Status
from router.grpc.stream import Http2Stream
from tunnel_protocol.control.grpc_options import CONNECTION_STREAMS, MESSAGE

HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "r"),
    (":path", "/s/M"),
    ("content-type", "application/grpc"),
]
CLIENT = frames.PREFACE + frames.settings({})


class Rig:
    """A connection whose calls are kept, and a client of it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.over: list[Call] = []
        self.messages: list[bytes] = []
        self.closed = 0
        self.outputs = 0
        self.receiving = True
        self.connection = Http2Connection(self._on_request, self._on_output)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="ascii"))
        self.client.initiate_connection()
        self.events: list[Any] = []

    def _on_request(self, stream: Http2Stream, headers: list[tuple[bytes, bytes]]) -> None:
        call = Call(self.connection, stream, "ipv4:1.2.3.4:5", read_head(headers).fields, self.over.append)
        stream.receiver = call
        self.calls.append(call)
        if self.receiving:
            call.receive(self.messages.append, self._on_closed)

    def _on_closed(self) -> None:
        self.closed += 1

    def _on_output(self) -> None:
        self.outputs += 1

    def exchange(self) -> list[Any]:
        """Pass bytes until both sides are silent; what the client got."""
        found: list[Any] = []
        while True:
            sent = self.client.data_to_send()
            if sent:
                self.connection.receive(sent, 0.0)
            answer = self.connection.take_output()
            if not sent and not answer:
                return found
            found += self.client.receive_data(answer)

    def open(self, *more: tuple[str, str], end: bool = False) -> int:
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, [*HEAD, *more], end_stream=end)
        return stream_id


def broken(*parts: bytes) -> ErrorCode:
    """The code with which a connection ends that gets these bytes."""
    rig = Rig()
    with pytest.raises(Http2Error) as failed:
        rig.connection.receive(b"".join(parts), 0.0)
    rig.connection.fail(failed.value)
    last = h2.connection.H2Connection()
    last.initiate_connection()
    assert rig.connection.take_output().endswith(failed.value.text.encode())
    rig.connection.lost()
    assert all(call.over for call in rig.calls)
    return failed.value.code


def headers(stream_id: int = 1, flags: int = frames.END_HEADERS, block: bytes | None = None) -> bytes:
    literals = [header_blocks.literal(name.encode(), value.encode()) for name, value in HEAD]
    return frames.frame(frames.HEADERS, flags, stream_id, b"".join(literals) if block is None else block)


# Calls


def test_messages_go_both_ways_and_the_call_ends_with_trailers() -> None:
    rig = Rig()
    stream_id = rig.open(("x-key", "value"), ("x-data-bin", "AAEC"))
    rig.exchange()
    (call,) = rig.calls
    assert ("x-key", "value") in call.metadata
    assert ("x-data-bin", b"\0\1\2") in call.metadata
    rig.client.send_data(stream_id, framed(b"one") + framed(b"") + framed(b"three")[:6])
    rig.exchange()
    assert rig.messages == [b"one", b""]
    rig.client.send_data(stream_id, framed(b"three")[6:], end_stream=True)
    rig.exchange()
    assert (rig.messages, rig.closed) == ([b"one", b"", b"three"], 1)
    call.write_now(b"answer")
    call.end(Status.NOT_FOUND, "nothing: 100 %é")
    assert rig.outputs > 0
    events = rig.exchange()
    response = next(one for one in events if isinstance(one, h2.events.ResponseReceived))
    assert dict(response.headers) == {":status": "200", "content-type": "application/grpc"}
    assert next(one.data for one in events if isinstance(one, h2.events.DataReceived)) == framed(b"answer")
    trailers = next(one for one in events if isinstance(one, h2.events.TrailersReceived))
    assert dict(trailers.headers) == {"grpc-status": "5", "grpc-message": "nothing: 100 %25%C3%A9"}
    assert rig.over == [call]
    assert rig.connection.streams == {}


def test_a_call_that_is_refused_at_once_has_one_block_and_its_rest_is_not_wanted() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.exchange()
    rig.calls[0].end(Status.UNAUTHENTICATED, "no")
    rig.calls[0].end(Status.OK)
    events = rig.exchange()
    response = next(one for one in events if isinstance(one, h2.events.ResponseReceived))
    assert dict(response.headers)["grpc-status"] == "16"
    reset = next(one for one in events if isinstance(one, h2.events.StreamReset))
    assert (reset.stream_id, reset.error_code) == (stream_id, ErrorCode.NO_ERROR)


def test_what_is_received_byte_by_byte_is_the_same() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.client.send_data(stream_id, framed(b"message"), end_stream=True, pad_length=7)
    for byte in rig.client.data_to_send():
        rig.connection.receive(bytes((byte,)), 0.0)
    assert (rig.messages, rig.closed) == ([b"message"], 1)


def test_messages_wait_in_the_window_until_they_are_received() -> None:
    rig = Rig()
    rig.receiving = False
    stream_id = rig.open()
    rig.client.send_data(stream_id, framed(b"early"), end_stream=True)
    rig.exchange()
    rig.calls[0].receive(rig.messages.append, rig._on_closed)
    assert (rig.messages, rig.closed) == ([b"early"], 1)


def test_a_call_that_is_reset_is_over_and_later_writes_do_nothing() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.exchange()
    rig.client.reset_stream(stream_id)
    rig.exchange()
    (call,) = rig.calls
    assert call.over
    call.write_now(b"x")
    call.end(Status.OK)
    call.on_data(b"x")
    assert rig.exchange() == []


def test_a_call_without_a_message_is_closed_once() -> None:
    rig = Rig()
    rig.open(end=True)
    rig.exchange()
    assert (rig.messages, rig.closed) == ([], 1)
    rig.receiving = False
    rig.open(end=True)
    rig.exchange()
    rig.calls[1].receive(rig.messages.append, rig._on_closed)
    assert (rig.messages, rig.closed) == ([], 2)


def test_a_call_that_ends_within_a_message_hears_no_more_of_what_came_with_it() -> None:
    rig = Rig()
    rig.receiving = False
    stream_id = rig.open()
    rig.exchange()
    (call,) = rig.calls

    def answer(message: bytes) -> None:
        rig.messages.append(message)
        call.end(Status.OK)

    call.receive(answer, rig._on_closed)
    rig.client.send_data(stream_id, framed(b"one") + framed(b"two"))
    events = rig.exchange()
    assert (rig.messages, rig.closed) == ([b"one"], 0)
    assert any(isinstance(one, h2.events.StreamEnded) for one in events)
    assert rig.connection.partial_bytes == 0


def test_a_peer_may_reset_a_call_whose_end_waits_for_it() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + frames.settings({frames.INITIAL_WINDOW_SIZE: 5}) + headers(), 0.0)
    (call,) = rig.calls
    call.write_now(b"0123456789")
    call.end(Status.OK)
    assert rig.over == [call]
    rig.connection.receive(frames.reset(1, 8), 0.0)
    assert rig.over == [call]
    assert rig.connection.streams == {}


def test_the_priority_of_a_request_is_passed_over() -> None:
    rig = Rig()
    stream_id = rig.client.get_next_available_stream_id()
    rig.client.send_headers(stream_id, HEAD, priority_weight=7, priority_depends_on=0, priority_exclusive=True)
    rig.client.send_data(stream_id, framed(b"x"))
    rig.exchange()
    assert rig.messages == [b"x"]


def test_trailers_of_a_client_end_its_side() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.client.send_headers(stream_id, [("x", "y")], end_stream=True)
    rig.exchange()
    assert rig.closed == 1


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (b"\1\0\0\0\1x", "12", "compressed"),
        (b"\0" + ((MESSAGE.bytes or 0) + 1).to_bytes(4, "big"), "8", "4194305 bytes"),
    ],
)
def test_a_message_that_is_not_taken_ends_its_call(sent: bytes, status: str, text: str) -> None:
    rig = Rig()
    rig.client.send_data(rig.open(), sent)
    response = next(one for one in rig.exchange() if isinstance(one, h2.events.ResponseReceived))
    fields = dict(response.headers)
    assert fields["grpc-status"] == status
    assert text in fields["grpc-message"]


def test_incomplete_messages_of_all_calls_of_a_connection_are_bounded() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT, 0.0)
    size = (MESSAGE.bytes or 0) - 10
    begun = b"\0" + (size + 1).to_bytes(4, "big") + bytes(size)
    for number in range(20):
        stream_id = 2 * number + 1
        rig.connection.receive(headers(stream_id), 0.0)
        for at in range(0, len(begun), 16_384):
            rig.connection.receive(frames.frame(frames.DATA, 0, stream_id, begun[at : at + 16_384]), 0.0)
    assert sum(not call.over for call in rig.calls) == 8
    assert rig.connection.partial_bytes <= (PARTIAL_MESSAGES.bytes or 0)
    rig.connection.lost()
    assert rig.connection.partial_bytes == 0


# Flow control


def test_a_large_message_comes_through_and_credit_is_renewed() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.exchange()
    message = framed(bytes(1 << 20))
    while message:
        step = min(rig.client.local_flow_control_window(stream_id), 16_384, len(message))
        assert step > 0
        rig.client.send_data(stream_id, message[:step])
        message = message[step:]
        rig.exchange()
    assert rig.messages == [bytes(1 << 20)]


def test_an_answer_waits_for_the_windows_and_for_the_socket() -> None:
    rig = Rig()
    stream_id = rig.open()
    rig.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    rig.exchange()
    (call,) = rig.calls
    call.write_now(b"0123456789")
    call.end(Status.OK)
    assert not call.writable
    events = rig.exchange()
    assert [one.data for one in events if isinstance(one, h2.events.DataReceived)] == [framed(b"0123456789")[:10]]
    rig.connection.pause()
    rig.client.increment_flow_control_window(3, stream_id)
    assert [one for one in rig.exchange() if isinstance(one, h2.events.DataReceived)] == []
    rig.connection.resume()
    assert [one.data for one in rig.exchange() if isinstance(one, h2.events.DataReceived)] == [b"567"]
    rig.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100})
    rest = rig.exchange()
    assert [one.data for one in rest if isinstance(one, h2.events.DataReceived)] == [b"89"]
    assert any(isinstance(one, h2.events.TrailersReceived) for one in rest)


def test_the_window_of_the_connection_holds_every_answer_up() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + frames.window_update(0, 1) + headers() + headers(3), 0.0)
    rig.connection.receive(frames.window_update(1, 100_000) + frames.window_update(3, 100_000), 0.0)
    first, second = rig.calls
    first.write_now(bytes(65_531 - 5))
    second.write_now(bytes(20))
    assert (first.writable, second.writable) == (True, False)
    rig.connection.receive(frames.window_update(0, 100), 0.0)
    assert second.writable


def test_more_than_a_window_ends_the_connection() -> None:
    rig = Rig()
    rig.receiving = False
    rig.connection.receive(CLIENT + headers(), 0.0)
    with pytest.raises(Http2Error, match="stream's window"):
        rig.connection.receive(frames.frame(frames.DATA, 0, 1, bytes(16_384)) * 4, 0.0)
    rig = Rig()
    rig.receiving = False
    rig.connection.receive(CLIENT, 0.0)
    with pytest.raises(Http2Error, match="connection's window"):  # noqa: PT012 - which of them it is depends on the bound
        for number in range(100):
            rig.connection.receive(headers(2 * number + 1), 0.0)
            rig.connection.receive(frames.frame(frames.DATA, 0, 2 * number + 1, bytes(16_384)) * 3, 0.0)
    assert sum(len(call._partial) for call in rig.calls) <= (CONNECTION_WINDOW.bytes or 0)


def test_a_large_answer_leaves_in_parts_and_what_waits_is_asked_for() -> None:
    rig = Rig()
    grown = frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW}) + frames.window_update(0, 1 << 30)
    rig.connection.receive(CLIENT + grown + headers(), 0.0)
    rig.connection.take_output()
    (call,) = rig.calls
    answer = bytes(1 << 20)
    call.write_now(answer)
    call.write_now(b"last")
    call.end(Status.OK)
    parts = []
    while rig.outputs > len(parts):
        parts.append(rig.connection.take_output())
        assert len(parts[-1]) < 200_000
    assert sum(map(len, parts)) > 1 << 20
    assert len(parts) in range(7, 12)
    assert rig.connection.streams == {}


def test_what_was_not_read_when_a_call_ended_may_be_sent_again() -> None:
    rig = Rig()
    rig.receiving = False
    rig.connection.receive(CLIENT, 0.0)
    for number in range(200):
        stream_id = 2 * number + 1
        rig.connection.receive(headers(stream_id) + frames.frame(frames.DATA, 0, stream_id, bytes(16_384)) * 3, 0.0)
        rig.connection.receive(frames.reset(stream_id, 8), 0.0)
    assert rig.connection.streams == {}


# Bounds


def test_streams_beyond_the_bound_are_refused() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT, 0.0)
    most = CONNECTION_STREAMS.pieces or 0
    for number in range(most + 1):
        rig.connection.take_output()
        rig.connection.receive(headers(2 * number + 1), 0.0)
    assert rig.connection.take_output() == frames.reset(2 * most + 1, ErrorCode.REFUSED_STREAM)
    assert len(rig.calls) == most


def test_a_flood_of_resets_ends_the_connection_and_a_slow_one_does_not() -> None:
    def flood(seconds: float) -> None:
        rig = Rig()
        rig.connection.receive(CLIENT, 0.0)
        for number in range((RESETS.pieces or 0) + 1):
            stream_id = 2 * number + 1
            rig.connection.receive(headers(stream_id) + frames.reset(stream_id, 8), number * seconds)

    flood(1.0)
    with pytest.raises(Http2Error, match="too many streams are reset"):
        flood(0.0)


def test_calls_that_have_said_something_may_all_be_cancelled_together() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT, 0.0)
    for number in range(2 * (RESETS.pieces or 0)):
        stream_id = 2 * number + 1
        message = frames.frame(frames.DATA, 0, stream_id, b"\0\0\0\0\1x")
        rig.connection.receive(headers(stream_id) + message + frames.reset(stream_id, 8), 0.0)
    assert not rig.connection.streams


def test_streams_that_are_reset_for_what_the_peer_did_count_too() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT, 0.0)
    wrong = frames.frame(frames.DATA, frames.END_STREAM, 1, b"")
    streams = range(1, 2 * (RESETS.pieces or 0) + 3, 2)
    flood = b"".join(headers(stream) + 2 * (wrong[:5] + stream.to_bytes(4)) for stream in streams)
    with pytest.raises(Http2Error, match="too many streams are reset"):
        rig.connection.receive(flood, 0.0)
    assert len(rig.calls) == (RESETS.pieces or 0) + 1
    rig.connection.lost()
    assert all(call.over for call in rig.calls)


@pytest.mark.parametrize(
    "nothing",
    [
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.frame(frames.SETTINGS, frames.ACK, 0, b""),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535}),
        frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
        frames.window_update(1, 1),
        frames.frame(frames.DATA, 0, 1, b""),
        frames.frame(0x42, 0, 1, b"?"),
    ],
)
def test_a_flood_of_frames_that_carry_nothing_of_a_call_ends_the_connection(nothing: bytes) -> None:
    most = CONTROL_FRAMES.pieces or 0
    rig = Rig()
    rig.connection.receive(CLIENT + headers(), 0.0)
    for second in range(20):
        rig.connection.receive(nothing * 100, 10.0 + second)
    with pytest.raises(Http2Error, match="too many frames that carry nothing of a call"):
        rig.connection.receive(nothing * (most + 1), 100.0)


def test_a_peer_may_answer_what_calls_send() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + headers(), 0.0)
    (call,) = rig.calls
    answer = frames.frame(frames.PING, 0, 0, bytes(8)) + frames.window_update(1, 15) + frames.window_update(0, 15)
    for _ in range(2 * (CONTROL_FRAMES.pieces or 0)):
        call.write_now(b"x" * 10)
        rig.connection.receive(answer, 0.0)


def test_what_is_left_of_a_flood_for_the_next_turn_comes_in_order() -> None:
    rig = Rig()
    sent = b"".join(frames.frame(frames.PING, 0, 0, number.to_bytes(8)) for number in range(25))
    assert rig.connection.receive(CLIENT + sent, 0.0, 11)  # of which one is SETTINGS
    assert rig.connection.take_output().count(frames.frame(frames.PING, frames.ACK, 0, b"")[3:5]) == 10
    assert rig.connection.receive(frames.frame(frames.PING, 0, 0, bytes(8))[:5], 0.0, 10)
    assert not rig.connection.receive(b"", 0.0, 10)
    assert rig.connection.take_output().endswith((24).to_bytes(8))


def test_a_call_counts_as_several_frames() -> None:
    rig = Rig()
    assert rig.connection.receive(CLIENT + b"".join(headers(2 * n + 1) for n in range(10)), 0.0, 30)
    assert len(rig.calls) == 2
    while rig.connection.receive(b"", 0.0, 30):
        pass
    assert len(rig.calls) == 10


def all_streams_open() -> Rig:
    """As many calls as a connection may have, all with an answer for which the connection has no window left."""
    rig = Rig()
    rig.connection.receive(CLIENT + b"".join(headers(2 * n + 1) for n in range(CONNECTION_STREAMS.pieces or 0)), 0.0)
    for number, call in enumerate(rig.calls):
        call.write_now(bytes(60_000 if number < 2 else 100))
    rig.connection.take_output()
    rig.connection.take_output()
    assert not rig.calls[-1].writable
    return rig


def test_settings_with_many_entries_change_the_windows_of_all_calls_once() -> None:
    rig = all_streams_open()
    entries = b"".join(b"\0\4" + (1_000 + number).to_bytes(4) for number in range(2_700))
    began = time.process_time()
    assert rig.connection.receive(frames.frame(frames.SETTINGS, 0, 0, entries) * 5, 0.0, 256)  # the rest in later turns
    assert time.process_time() - began < 0.1  # 0.8 s for each frame when each entry was applied, 5 ms now
    assert rig.connection.take_output().count(frames.frame(frames.SETTINGS, frames.ACK, 0, b"")) == 1


def test_changes_of_the_window_of_all_calls_are_done_in_several_turns() -> None:
    rig = all_streams_open()
    changes = [frames.settings({frames.INITIAL_WINDOW_SIZE: 70_000 + number}) for number in range(10)]
    assert rig.connection.receive(b"".join(changes), 0.0, 256)
    assert rig.connection.take_output() == frames.frame(frames.SETTINGS, frames.ACK, 0, b"")


def test_credit_for_a_few_bytes_costs_as_little_however_many_calls_wait() -> None:
    rig = all_streams_open()
    began = time.process_time()
    rig.connection.receive(frames.window_update(0, 1) * 900, 0.0)
    assert time.process_time() - began < 0.3  # 1.4 s when each call was looked at, 0.04 s now
    sent = rig.connection.take_output()
    assert len(sent) == 900 * 10


def test_an_answer_that_waits_for_its_own_window_does_not_hold_up_others() -> None:
    rig = Rig()
    small = frames.settings({frames.INITIAL_WINDOW_SIZE: 10})
    rig.connection.receive(CLIENT + small + headers() + headers(3) + frames.window_update(3, 70_000), 0.0)
    rig.connection.take_output()
    first, second = rig.calls
    first.write_now(bytes(20))
    second.write_now(bytes(66_000))
    assert (first.writable, second.writable) == (False, False)
    rig.connection.receive(frames.window_update(0, 1_000), 0.0)
    assert (first.writable, second.writable) == (False, True)
    rig.connection.receive(frames.window_update(1, 15), 0.0)
    assert first.writable


def test_many_messages_in_one_frame_count_as_many_frames() -> None:
    rig = Rig()
    data = frames.frame(frames.DATA, 0, 1, framed(b"") * 300)
    assert rig.connection.receive(CLIENT + headers() + data + data, 0.0, 256)
    assert len(rig.messages) == 300
    while rig.connection.receive(b"", 0.0, 256):
        pass
    assert len(rig.messages) == 600


def test_a_block_of_headers_is_bounded_in_bytes_and_frames_and_decoded() -> None:
    part = frames.frame(frames.CONTINUATION, 0, 1, bytes(16_000))
    assert broken(CLIENT, headers(1, 0), *([part] * 20)) is ErrorCode.ENHANCE_YOUR_CALM
    empty = frames.frame(frames.CONTINUATION, 0, 1, b"")
    assert broken(CLIENT, headers(1, 0), *([empty] * (HEADER_BLOCK.pieces or 0))) is ErrorCode.ENHANCE_YOUR_CALM
    # One entry of the table, named again and again.
    block = b"\x40" + b"\1x" + b"\x7f\xa1\x1e" + bytes(4_000) + b"\xbe" * 200
    assert broken(CLIENT, headers(1, frames.END_HEADERS, block)) is ErrorCode.ENHANCE_YOUR_CALM


# Rules


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], ErrorCode.PROTOCOL_ERROR),
        ([frames.PREFACE, frames.frame(frames.PING, 0, 0, bytes(8))], ErrorCode.PROTOCOL_ERROR),
        ([frames.PREFACE, frames.frame(frames.SETTINGS, frames.ACK, 0, b"")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, (16_385).to_bytes(3, "big") + bytes(6)], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.frame(frames.PING, 0, 0, bytes(7))], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.frame(frames.PING, 0, 1, bytes(8))], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.SETTINGS, 0, 1, b"")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.SETTINGS, 0, 0, bytes(5))], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6))], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31})], ErrorCode.FLOW_CONTROL_ERROR),
        ([CLIENT, frames.settings({frames.MAX_FRAME_SIZE: 1})], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.PUSH_PROMISE, 0, 1, bytes(8))], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.PRIORITY, 0, 1, bytes(4))], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.frame(frames.GOAWAY, 0, 0, bytes(7))], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, frames.frame(frames.DATA, 0, 0, b"x")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.DATA, 0, 1, b"x")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, headers(), frames.frame(frames.DATA, frames.PADDED, 1, b"\5x")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.reset(1, 0)], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, headers(), frames.frame(frames.RST_STREAM, 0, 1, b"")], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, headers(2)], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, headers(1, frames.END_HEADERS | frames.WITH_PRIORITY, b"abc")], ErrorCode.FRAME_SIZE_ERROR),
        ([CLIENT, headers(1, 0), frames.frame(frames.PING, 0, 0, bytes(8))], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.CONTINUATION, 0, 1, b"")], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, headers(1, frames.END_HEADERS, b"\xff")], ErrorCode.COMPRESSION_ERROR),
        ([CLIENT, frames.window_update(0, 0)], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.window_update(0, frames.MAX_WINDOW)], ErrorCode.FLOW_CONTROL_ERROR),
        ([CLIENT, frames.window_update(1, 1)], ErrorCode.PROTOCOL_ERROR),
        ([CLIENT, frames.frame(frames.WINDOW_UPDATE, 0, 0, b"")], ErrorCode.FRAME_SIZE_ERROR),
        (
            [
                CLIENT,
                headers(),
                frames.window_update(1, 1 << 30),
                frames.settings({frames.INITIAL_WINDOW_SIZE: (1 << 31) - 1}),
            ],
            ErrorCode.FLOW_CONTROL_ERROR,
        ),
    ],
)
def test_a_peer_that_breaks_a_rule_of_the_connection_is_told_which(sent: list[bytes], code: ErrorCode) -> None:
    assert broken(*sent) is code


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([frames.window_update(1, 0)], ErrorCode.PROTOCOL_ERROR),
        ([frames.window_update(1, frames.MAX_WINDOW)], ErrorCode.FLOW_CONTROL_ERROR),
        ([headers()], ErrorCode.PROTOCOL_ERROR),
        ([frames.frame(frames.DATA, frames.END_STREAM, 1, b""), headers()], ErrorCode.STREAM_CLOSED),
        ([frames.frame(frames.DATA, frames.END_STREAM, 1, b"")] * 2, ErrorCode.STREAM_CLOSED),
    ],
)
def test_a_peer_that_breaks_a_rule_of_a_stream_loses_the_stream(sent: list[bytes], code: ErrorCode) -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + headers(), 0.0)
    rig.connection.take_output()
    rig.connection.receive(b"".join(sent), 0.0)
    assert frames.reset(1, code) in rig.connection.take_output()
    assert rig.calls[0].over
    rig.connection.receive(frames.frame(frames.PING, 0, 0, b"12345678"), 0.0)
    assert rig.connection.take_output() == frames.frame(frames.PING, frames.ACK, 0, b"12345678")


def test_what_has_no_meaning_is_passed_over() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + headers() + frames.reset(1, 8), 0.0)
    rig.connection.take_output()
    for late in (
        headers(),
        frames.frame(frames.DATA, 0, 1, b"x"),
        frames.window_update(1, 1),
        frames.reset(1, 8),
        frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
        frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
        frames.frame(frames.SETTINGS, frames.ACK, 0, b""),
        frames.frame(0x42, 0, 1, b"?"),
        frames.go_away(0, 0),
    ):
        rig.connection.receive(late, 0.0)
    assert rig.connection.take_output() == b""
    assert len(rig.calls) == 1


def test_after_goaway_new_streams_are_passed_over_and_open_ones_go_on() -> None:
    rig = Rig()
    rig.connection.receive(CLIENT + headers(), 0.0)
    rig.connection.take_output()
    rig.connection.go_away()
    rig.connection.go_away()
    assert rig.connection.take_output() == frames.go_away(1, ErrorCode.NO_ERROR)
    rig.connection.receive(headers(3) + frames.frame(frames.DATA, 0, 3, b"x"), 0.0)
    rig.connection.receive(frames.frame(frames.DATA, 0, 1, framed(b"still")), 0.0)
    assert (rig.messages, len(rig.calls)) == ([b"still"], 1)


# Heads


def test_a_head_is_read() -> None:
    fields = [*HEAD, ("grpc-timeout", "1500m"), ("grpc-encoding", "gzip")]
    head = read_head([(name.encode(), value.encode()) for name, value in sorted(fields)])
    assert (head.method, head.path, head.content_type) == (b"POST", "/s/M", b"application/grpc")
    assert (head.encoding, head.timeout_s) == (b"gzip", 1.5)


@pytest.mark.parametrize(("text", "seconds"), [("1H", 3_600.0), ("2M", 120.0), ("3S", 3.0), ("4u", 4e-6), ("5n", 5e-9)])
def test_units_of_a_deadline(text: str, seconds: float) -> None:
    head = read_head([(name.encode(), value.encode()) for name, value in [*HEAD, ("grpc-timeout", text)]])
    assert head.timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "1x", "123456789S", "-1S", "1.5S"])
def test_a_deadline_that_is_not_well_formed_counts_as_none(text: str) -> None:
    head = read_head([(name.encode(), value.encode()) for name, value in [*HEAD, ("grpc-timeout", text)]])
    assert head.timeout_s is None


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields[1:],
        lambda fields: [*fields, (b":path", b"/other")],
        lambda fields: [fields[0], *fields],
        lambda fields: [(b":status", b"200"), *fields],
        lambda fields: [*fields, (b"Upper", b"x")],
        lambda fields: [*fields, (b"", b"x")],
        lambda fields: [*fields, (b"x-bin", b"A")],
    ],
)
def test_a_malformed_head_is_refused(change: Callable[[Any], Any]) -> None:
    with pytest.raises(MalformedRequestError):
        read_head(change([(name.encode(), value.encode()) for name, value in HEAD]))


def test_long_values_are_written_with_their_length() -> None:
    for size in (126, 127, 254, 255, 3_000):
        decoder = h2.connection.H2Connection().decoder
        assert decoder.decode(header_blocks.literal(b"name", b"x" * size)) == [("name", "x" * size)]
