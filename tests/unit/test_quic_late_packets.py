"""What arrives for a stream, or waits at an endpoint, when its turn comes later than usual."""

from test_quic_endpoint_ticks import crowd, rigged

from tunnel_protocol.quic.endpoint import TickState
from tunnel_protocol.quic.first_packets import ACCEPTS_PER_TURN
from tunnel_protocol.quic.receive_half import ReceiveHalf, ReceiveState


def test_a_reset_after_the_connection_was_lost_tells_its_size_and_nothing_else():
    half = ReceiveHalf(1000)
    half.connection_lost()
    assert not half.on_reset_stream(0, 10)
    assert half.final_size == 10
    assert half.state is ReceiveState.LOST


@rigged
async def test_a_tick_that_is_due_stays_due_while_waiting_clients_are_accepted(rig):
    rig.outside.bind(("127.0.0.1", 0))
    crowd(rig, ACCEPTS_PER_TURN + 1)
    rig.endpoint._readable()
    assert rig.endpoint._first_packets
    rig.endpoint._tick = TickState.PLANNED
    rig.endpoint._accept_waiting()
    assert rig.endpoint._tick is TickState.PLANNED
    assert not rig.endpoint._first_packets
    rig.endpoint._tick = TickState.IDLE
