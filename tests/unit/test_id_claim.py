"""When the holder of an id counts as alive, as dead, or as neither yet."""

from router.control_plane.id_claim import HolderLiveness, Liveness


def test_a_holder_whose_tunnel_was_never_lost_is_alive_however_long_it_is_silent() -> None:
    assert HolderLiveness(3.0, 0.0).judge(claimed_at=100.0, now=200.0) is Liveness.ALIVE


def test_a_holder_that_lost_its_tunnel_has_until_its_silence_is_over() -> None:
    holder = HolderLiveness(3.0, 0.0)
    holder.message_received(10.0)
    holder.tunnel_lost()
    assert holder.dead_at == 13.0
    assert holder.judge(claimed_at=11.0, now=12.9) is Liveness.UNDECIDED
    assert holder.judge(claimed_at=11.0, now=13.0) is Liveness.DEAD


def test_a_message_after_the_claim_or_a_working_tunnel_keeps_the_id() -> None:
    holder = HolderLiveness(3.0, 0.0)
    holder.tunnel_lost()
    holder.message_received(2.0)
    assert holder.judge(claimed_at=2.0, now=2.5) is Liveness.UNDECIDED
    assert holder.judge(claimed_at=1.9, now=2.5) is Liveness.ALIVE
    holder.tunnel_recovered()
    assert holder.judge(claimed_at=2.0, now=9.0) is Liveness.ALIVE
