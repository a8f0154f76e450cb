"""What arrives for a stream later than usual."""

from tunnel_protocol.quic.receive_half import ReceiveHalf, ReceiveState
from tunnel_protocol.quic.send_half import SendHalf, SendState


def test_a_reset_after_the_connection_was_lost_tells_its_size_and_nothing_else():
    half = ReceiveHalf(1000)
    half.connection_lost()
    assert not half.on_reset_stream(0, 10)
    assert half.final_size == 10
    assert half.state is ReceiveState.LOST


def test_a_stop_before_the_last_gap_is_filled_still_tells_the_peer():
    half = ReceiveHalf(1000)
    half.on_stream_frame(5, b"x", True)
    assert half.state is ReceiveState.SIZE_KNOWN
    half.stop(1)
    assert (half.stop_pending, half.state) == (True, ReceiveState.DATA_READ)
    assert not half.on_stream_frame(0, b"abcde", False)


def test_a_lost_stop_is_sent_again_until_the_final_size_is_known():
    half = ReceiveHalf(1000)
    half.stop(3)
    assert half.next_stop() == 3
    assert half.on_stop_lost()
    assert not half.on_stream_frame(0, b"a", False)
    assert half.on_stream_frame(1, b"", True)
    assert half.over
    assert not half.on_stop_lost()


def test_a_lost_limit_is_sent_again_while_somebody_reads():
    half = ReceiveHalf(1000)
    assert half.on_limit_lost()
    half.stop(0)
    assert not half.on_limit_lost()


def test_what_was_received_before_is_not_received_twice():
    half = ReceiveHalf(1000)
    assert half.on_stream_frame(0, b"ab", False)
    assert not half.on_stream_frame(0, b"a", False)
    assert not half.on_stream_frame(4, b"e", False)
    assert half.on_stream_frame(1, b"bcd", False)
    assert half.take() == b"abcde"


def test_what_becomes_of_packets_after_a_reset_changes_nothing():
    half = SendHalf(10, 5)
    assert not half.on_max_stream_data(10)
    half.write(b"ab", fin=True)
    assert half.next_data(10, 10) == (0, b"ab", True)
    assert half.abandon(1)
    half.on_data_acked(0, 2, fin=True)
    assert not half.on_data_lost(0, 2, fin=True)
    assert half.state is SendState.RESET_SENT
    half.on_reset_acked()
    half.on_reset_acked()
    assert half.state is SendState.RESET_RECVD
