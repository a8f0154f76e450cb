"""What arrives for a stream later than usual."""

from tunnel_protocol.quic.receive_half import ReceiveHalf, ReceiveState


def test_a_reset_after_the_connection_was_lost_tells_its_size_and_nothing_else():
    half = ReceiveHalf(1000)
    half.connection_lost()
    assert not half.on_reset_stream(0, 10)
    assert half.final_size == 10
    assert half.state is ReceiveState.LOST
