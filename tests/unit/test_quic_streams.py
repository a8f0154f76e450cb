"""One stream without a connection: what its owner sees, what the peer's frames do, what is bounded."""

import tracemalloc

import pytest

from tunnel_protocol.errors import ConnectionClosedError, StreamClosedError
from tunnel_protocol.quic.receive_half import ReceiveState, StreamError
from tunnel_protocol.quic.stream import CONNECTION_GAPS, STREAM_GAPS, BidirectionalStream, StreamCallbacks
from tunnel_protocol.quic.stream_interface import StreamHandler


class Owner(StreamCallbacks):
    def __init__(self):
        super().__init__()
        self.released = []

    def schedule_poll(self):
        self.poll_scheduled = True

    def release(self, stream):
        self.released.append(stream)

    def deliver(self):
        while self.ready:
            batch = list(self.ready)
            self.ready.clear()
            for stream in batch:
                stream.deliver()


class Handler(StreamHandler):
    def __init__(self):
        self.calls = []

    def on_data(self, data, fin):
        self.calls.append((data, fin))

    def on_reset(self, error_code):
        self.calls.append(f"reset {error_code}")

    def on_stop(self, error_code):
        self.calls.append(f"stop {error_code}")

    def on_writable(self):
        self.calls.append("writable")

    def on_connection_lost(self, error):
        self.calls.append("lost")


class Rig:
    def __init__(self, window=1_000, send_limit=10_000, high_water=500):
        self.owner = Owner()
        self.handler = Handler()
        self.stream = BidirectionalStream(
            self.owner, 4, b"\x04", self.handler, window=window, send_limit=send_limit, high_water=high_water
        )

    def calls(self):
        self.owner.deliver()
        calls, self.handler.calls = self.handler.calls, []
        return calls

    def sent(self, max_bytes=10_000):
        return self.stream.next_data(max_bytes, 1 << 60)


def test_bytes_arrive_in_order_and_fin_once():
    rig = Rig()
    rig.stream.on_stream_frame(3, b"def", False)
    assert rig.calls() == []
    rig.stream.on_stream_frame(0, b"abc", False)
    assert rig.calls() == [(b"abcdef", False)]
    rig.stream.on_stream_frame(6, b"", True)
    rig.stream.on_stream_frame(6, b"", True)
    assert rig.calls() == [(b"", True)]
    rig.stream.on_stream_frame(0, b"abc", False)
    assert rig.calls() == []


def test_fin_that_overtakes_its_data_waits_for_it():
    rig = Rig()
    rig.stream.on_stream_frame(2, b"c", True)
    assert rig.calls() == []
    rig.stream.on_stream_frame(0, b"ab", False)
    assert rig.calls() == [(b"abc", True)]


def test_pieces_of_one_tick_are_delivered_together():
    rig = Rig()
    for at, piece in ((0, b"a"), (1, b"b"), (2, b"c")):
        rig.stream.on_stream_frame(at, piece, False)
    assert rig.calls() == [(b"abc", False)]


def test_nothing_is_delivered_or_granted_while_reading_is_paused():
    rig = Rig(window=10)
    rig.stream.pause_reading()
    rig.stream.on_stream_frame(0, b"0123456789", False)
    assert rig.calls() == []
    assert not rig.owner.control
    with pytest.raises(StreamError):
        rig.stream.on_stream_frame(10, b"x", False)
    rig.stream.resume_reading()
    assert rig.calls() == [(b"0123456789", False)]
    assert rig.stream.receive_half.limit_pending
    assert rig.stream.receive_half.next_limit() == 20


def test_a_fin_that_came_while_reading_was_paused_is_delivered_after_it():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", False)
    assert rig.calls() == [(b"abc", False)]
    rig.stream.pause_reading()
    rig.stream.on_stream_frame(3, b"", True)
    assert rig.calls() == []
    rig.stream.resume_reading()
    assert rig.calls() == [(b"", True)]


def test_a_reset_that_nobody_has_heard_of_ends_a_stopped_stream_without_a_frame_to_the_peer():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", False)
    rig.stream.on_reset_stream(7, 3)
    rig.stream.stop(9)
    assert rig.calls() == []
    assert not rig.stream.receive_half.stop_pending
    assert rig.stream.receive_half.state is ReceiveState.RESET_READ


def test_the_window_is_constant_and_renewed_by_halves():
    rig = Rig(window=100)
    rig.stream.on_stream_frame(0, bytes(49), False)
    rig.calls()
    assert not rig.stream.receive_half.limit_pending
    rig.stream.on_stream_frame(49, bytes(1), False)
    rig.calls()
    assert rig.stream.receive_half.next_limit() == 150


def test_a_peer_beyond_its_credit_is_in_error():
    with pytest.raises(StreamError) as caught:
        Rig(window=10).stream.on_stream_frame(5, b"123456", False)
    assert caught.value.error_code == 0x3


@pytest.mark.parametrize("second", [(0, b"abcd", True), (2, b"", True), (3, b"x", False)])
def test_a_changed_final_size_is_an_error(second):
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", True)
    with pytest.raises(StreamError) as caught:
        rig.stream.on_stream_frame(*second)
    assert caught.value.error_code == 0x6


def test_data_in_ever_more_fragments_is_refused():
    rig = Rig(window=1_000_000)
    for at in range(STREAM_GAPS.pieces):
        rig.stream.on_stream_frame(1 + 2 * at, b"x", False)
    with pytest.raises(StreamError):
        rig.stream.on_stream_frame(500_000, b"x", False)


def test_streams_of_a_connection_share_a_bound_of_fragments():
    owner = Owner()
    streams = [
        BidirectionalStream(owner, 4 * number, b"", Handler(), window=1_000_000, send_limit=0, high_water=1)
        for number in range(1 + CONNECTION_GAPS.pieces // 100)
    ]

    def fill():
        for stream in streams:
            for at in range(100):
                stream.on_stream_frame(1 + 2 * at, b"x", False)

    with pytest.raises(StreamError):
        fill()
    assert owner.pieces_out_of_order == CONNECTION_GAPS.pieces + 1
    for stream in streams[:-1]:
        stream.stop()
    streams[-1].connection_lost(ConnectionClosedError(None, "", by_peer=False))
    assert owner.pieces_out_of_order == 0


def test_a_byte_at_the_far_end_of_the_window_holds_a_byte():
    rig = Rig(window=1_250_000)
    tracemalloc.start()
    try:
        rig.stream.on_stream_frame(1_249_999, b"x", False)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rig.stream.receive_half.held_bytes == 1
    assert grown < 2_000


def test_a_reset_is_delivered_after_the_data_before_it():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", False)
    rig.stream.on_reset_stream(7, 3)
    assert rig.calls() == [(b"abc", False), "reset 7"]
    rig.stream.on_stream_frame(0, b"abc", False)
    assert rig.calls() == []


def test_a_reset_reaches_a_paused_reader_and_frees_what_it_had_not_taken():
    rig = Rig()
    rig.stream.pause_reading()
    rig.stream.on_stream_frame(0, b"abc", False)
    rig.stream.on_reset_stream(0, 3)
    assert rig.calls() == ["reset 0"]


def test_a_reset_after_everything_arrived_changes_nothing():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", True)
    rig.stream.on_reset_stream(0, 3)
    assert rig.calls() == [(b"abc", True)]


def test_after_stop_nothing_is_delivered_and_the_peers_end_releases_the_stream():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", False)
    rig.stream.stop()
    assert rig.stream.receive_half.stop_pending
    assert rig.stream.receive_half.next_stop() == 0
    rig.stream.write(b"", fin=True)
    assert rig.sent() == (0, b"", True)
    rig.stream.on_data_acked(0, 0, True)
    assert rig.calls() == []
    assert rig.owner.released == []
    rig.stream.on_reset_stream(0, 10)
    assert rig.calls() == []
    assert rig.owner.released == [rig.stream]


def test_stop_after_fin_has_no_effect():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"abc", True)
    rig.calls()
    rig.stream.stop()
    assert not rig.stream.receive_half.stop_pending


def test_stop_drops_a_complete_answer_that_was_not_taken():
    rig = Rig()
    rig.stream.pause_reading()
    rig.stream.on_stream_frame(0, b"abc", True)
    rig.stream.stop()
    assert not rig.stream.receive_half.stop_pending
    rig.stream.reset()
    rig.stream.on_reset_acked()
    assert rig.calls() == []
    assert rig.owner.released == [rig.stream]


def test_writing_beyond_the_high_water_mark_asks_to_pause_until_half_of_it_is_left():
    rig = Rig(high_water=500)
    assert rig.stream.write(bytes(500))
    assert not rig.stream.write(b"x")
    assert rig.stream.send_half.unsent_bytes == 501
    rig.sent(200)
    assert rig.calls() == []
    rig.sent(51)
    assert rig.calls() == ["writable"]
    rig.sent(100)
    assert rig.calls() == []


def test_what_is_sent_stays_within_the_peers_limits():
    rig = Rig(send_limit=10)
    rig.stream.write(b"0123456789abc", fin=True)
    assert rig.stream.next_data(6, 1 << 60) == (0, b"012345", False)
    assert rig.stream.next_data(100, 2) == (6, b"67", False)
    assert rig.sent() == (8, b"89", False)
    assert rig.sent() is None
    assert not rig.stream.send_half.has_data()
    rig.owner.sending.clear()
    rig.stream.on_max_stream_data(100)
    assert rig.stream in rig.owner.sending
    assert rig.sent() == (10, b"abc", True)


def test_lost_bytes_go_first_and_fin_with_the_last_of_them():
    rig = Rig()
    rig.stream.write(b"abcdef", fin=True)
    assert rig.stream.next_data(3, 99) == (0, b"abc", False)
    assert rig.stream.next_data(3, 99) == (3, b"def", True)
    rig.stream.on_data_lost(3, 6, True)
    rig.stream.on_data_lost(0, 3, False)
    assert rig.sent() == (0, b"abcdef", True)
    rig.stream.on_data_acked(0, 6, True)
    assert rig.stream.acknowledged()


def test_large_writes_are_kept_as_they_are_and_small_ones_are_gathered():
    rig = Rig(send_limit=1 << 20, high_water=1 << 20)
    large = bytes(range(256)) * 100
    for data in (b"head", b"er", large, b"pad", bytearray(b"head"), large):
        rig.stream.write(data)
    half = rig.stream.send_half
    assert [len(piece) for piece in half.pieces] == [6, 25_600, 7, 25_600]
    assert half.pieces[1] is large
    written = b"header" + large + b"padhead" + large
    assert rig.sent(10) == (0, written[:10], False)
    assert half.next_run(10_000, 9, 1 << 20, True) == 20_000, "a run ends with its piece"
    assert rig.sent(30_000) == (20_010, written[20_010:50_010], False)
    rig.stream.on_data_acked(0, 7, False)
    assert [len(piece) for piece in half.pieces] == [25_600, 7, 25_600], "what is partly acknowledged is kept whole"
    rig.stream.on_data_lost(25_600, 25_620, False)
    assert rig.sent(100) == (25_600, written[25_600:25_620], False)
    rig.stream.on_data_acked(7, 25_613, False)
    assert [len(piece) for piece in half.pieces] == [25_600]


def test_a_run_takes_whole_pieces_within_all_limits_and_the_rest_only_if_asked():
    rig = Rig(send_limit=1_000)
    rig.stream.write(bytes(95), fin=True)
    half = rig.stream.send_half
    assert half.next_run(50, 10, 1_000, True) == 0, "one piece and a rest is no run"
    assert half.next_run(10, 1, 1_000, True) == 0
    assert half.next_run(10, 10, 19, True) == 0, "the connection's credit"
    assert half.next_run(10, 10, 25, True) == 20
    assert half.next_run(10, 3, 1_000, True) == 30
    assert half.next_run(10, 10, 1_000, False) == 40
    assert half.fin_pending
    assert (half.next_run(10, 10, 1_000, True), half.next_data(10, 99)) == (0, (90, bytes(5), True))


def test_a_run_with_the_rest_ends_the_stream():
    rig = Rig(send_limit=1_000)
    rig.stream.write(bytes(45), fin=True)
    half = rig.stream.send_half
    assert rig.stream.next_run(10, 5, 1_000, True) == 45
    assert not half.fin_pending
    assert not half.has_data()
    rig.stream.on_data_lost(0, 10, False)
    assert half.next_run(2, 5, 1_000, True) == 0, "what was lost is sent again first"


def test_a_run_that_empties_the_buffer_lets_the_writer_go_on():
    rig = Rig(send_limit=1_000, high_water=50)
    assert not rig.stream.write(bytes(100))
    assert rig.stream.next_run(20, 4, 1_000, False) == 80
    assert rig.calls() == ["writable"]


def test_acknowledgements_out_of_order_release_the_front_when_it_is_complete():
    rig = Rig()
    rig.stream.write(b"abcdef", fin=True)
    for _ in range(3):
        rig.stream.next_data(2, 99)
    rig.stream.on_data_acked(4, 6, True)
    rig.stream.on_data_acked(2, 4, False)
    assert not rig.stream.acknowledged()
    rig.stream.on_data_lost(0, 2, False)
    assert rig.sent() == (0, b"ab", False)
    rig.stream.on_data_acked(0, 2, False)
    assert rig.stream.acknowledged()


def test_reset_before_everything_was_sent_drops_the_buffer_and_names_what_was_sent():
    rig = Rig()
    rig.stream.write(bytes(400))
    rig.stream.next_data(100, 999)
    rig.stream.reset(0)
    assert rig.stream.send_half.unsent_bytes == 0
    assert rig.stream not in rig.owner.sending
    assert rig.stream.send_half.next_reset() == (0, 100)
    rig.stream.on_data_lost(0, 100, False)
    assert rig.stream not in rig.owner.sending
    with pytest.raises(StreamClosedError):
        rig.stream.write(b"x")
    rig.stream.on_reset_acked()
    assert not rig.stream.acknowledged()


def test_reset_after_everything_was_acknowledged_has_no_effect():
    rig = Rig()
    rig.stream.write(b"abc", fin=True)
    rig.sent()
    rig.stream.on_data_acked(0, 3, True)
    rig.stream.reset()
    assert not rig.stream.send_half.reset_pending
    assert rig.stream.acknowledged()


def test_the_peers_stop_is_answered_with_its_code_and_writes_are_dropped():
    rig = Rig()
    rig.stream.write(bytes(100))
    rig.stream.on_stop_sending(9)
    assert rig.stream.send_half.next_reset() == (9, 0)
    assert rig.calls() == ["stop 9"]
    assert rig.stream.write(b"more", fin=True)
    assert rig.sent() is None
    rig.stream.on_stop_sending(9)
    assert rig.calls() == []


def test_writing_after_fin_is_an_error():
    rig = Rig()
    rig.stream.write(b"abc", fin=True)
    with pytest.raises(StreamClosedError):
        rig.stream.write(b"x")


@pytest.mark.parametrize("end", ["acknowledged", "reset", "stopped"])
def test_when_sent_is_called_once_whatever_ends_the_sending_side(end):
    rig = Rig()
    told = []
    rig.stream.write(b"abc", fin=True)
    rig.stream.when_sent(lambda: told.append(1))
    if end == "acknowledged":
        rig.sent()
        rig.stream.on_data_acked(0, 3, True)
    elif end == "reset":
        rig.stream.reset()
    else:
        rig.stream.on_stop_sending(0)
    rig.calls()
    assert told == [1]
    rig.stream.when_sent(lambda: told.append(2))
    assert told == [1, 2]


def test_everybody_who_waits_for_the_end_of_sending_is_told_and_nobody_after_a_lost_connection():
    rig = Rig()
    told = []
    rig.stream.when_sent(lambda: told.append(1))
    rig.stream.when_sent(lambda: told.append(2))
    rig.stream.reset()
    assert told == [1, 2]
    rig = Rig()
    rig.stream.connection_lost(ConnectionClosedError(0, "", by_peer=True))
    rig.stream.when_sent(lambda: told.append(3))
    assert told == [1, 2]


def test_a_fin_that_is_acknowledged_before_its_data_waits_for_it():
    rig = Rig()
    rig.stream.write(b"abc")
    rig.sent()
    rig.stream.write(b"", fin=True)
    assert rig.sent() == (3, b"", True)
    rig.stream.on_data_acked(3, 3, True)
    assert not rig.stream.acknowledged()
    rig.stream.on_data_acked(0, 3, False)
    assert rig.stream.acknowledged()


def test_an_empty_piece_says_nothing():
    rig = Rig()
    rig.stream.on_stream_frame(0, b"", False)
    assert rig.calls() == []


def test_a_fin_ahead_of_all_data_waits():
    rig = Rig()
    rig.stream.on_stream_frame(5, b"", True)
    assert rig.calls() == []
    rig.stream.on_stream_frame(0, b"abcde", False)
    assert rig.calls() == [(b"abcde", True)]


@pytest.mark.parametrize(("final_size", "code"), [(2, 0x6), (1_001, 0x3)])
def test_a_reset_below_what_was_received_or_beyond_the_credit_is_an_error(final_size, code):
    rig = Rig(window=1_000)
    rig.stream.on_stream_frame(0, b"abc", False)
    with pytest.raises(StreamError) as caught:
        rig.stream.on_reset_stream(0, final_size)
    assert caught.value.error_code == code


def test_a_lost_connection_is_the_last_call_and_what_was_acknowledged_stays_so():
    rig = Rig()
    rig.stream.write(b"abc", fin=True)
    rig.sent()
    rig.stream.on_data_acked(0, 3, True)
    rig.stream.when_sent(lambda: None)
    rig.stream.on_stream_frame(0, b"x", False)
    rig.stream.connection_lost(ConnectionClosedError(0, "", by_peer=True))
    assert rig.calls() == ["lost"]
    assert rig.stream.acknowledged()
    rig.stream.stop()
    rig.stream.reset()
    rig.stream.resume_reading()
    assert rig.calls() == []


def test_a_written_buffer_may_be_changed_afterwards():
    rig = Rig()
    data = bytearray(b"abc")
    rig.stream.write(data)
    data[:] = b"xyz"
    assert rig.sent() == (0, b"abc", False)


def test_a_handler_may_pause_stop_and_write_from_inside_a_call():
    rig = Rig()

    def on_data(data, fin):
        rig.handler.calls.append((data, fin))
        rig.stream.pause_reading()
        rig.stream.write(b"answer", fin=True)

    rig.handler.on_data = on_data
    rig.stream.on_stream_frame(0, b"a", False)
    rig.owner.deliver()
    rig.stream.on_stream_frame(1, b"b", False)
    assert rig.calls() == [(b"a", False)]
    assert rig.sent() == (0, b"answer", True)
