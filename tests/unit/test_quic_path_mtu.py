"""The search for the largest datagram, and the way back when a path shrinks."""

import pytest

from tunnel_protocol.quic.path_mtu import BASE_BYTES, PathMtu


def search(path_bytes, max_bytes=1_452, peer_bytes=65_527):
    mtu = PathMtu(max_bytes)
    mtu.start(0.0, peer_bytes)
    probes = 0
    while mtu.probe_at == 0.0:
        size = mtu.next_probe()
        probes += 1
        if size <= path_bytes:
            mtu.probe_acked(size, 0.0)
        else:
            mtu.probe_lost(size, 0.0)
    return mtu, probes


def test_an_ordinary_path_takes_one_probe():
    mtu, probes = search(1_472)
    assert (mtu.current, probes, mtu.probe_at) == (1_452, 1, None)


@pytest.mark.parametrize("path_bytes", [1_200, 1_230, 1_280, 1_372, 1_400, 1_440])
def test_a_narrow_path_is_used_almost_in_full(path_bytes):
    mtu, probes = search(path_bytes)
    assert path_bytes - 20 <= mtu.current <= path_bytes
    assert probes < 20
    assert mtu.probe_at > 60, "looks again, but not soon"


def test_what_is_known_already_changes_nothing():
    mtu, _ = search(1_400)
    found = mtu.current
    mtu.probe_acked(1_300, 0.0)
    mtu.probe_lost(1_300, 0.0)
    assert mtu.current == found


def test_the_peers_limit_is_respected():
    mtu, _ = search(1_500, peer_bytes=1_300)
    assert mtu.current == 1_300


def test_no_probe_when_nothing_larger_is_allowed():
    assert search(1_500, max_bytes=1_200)[1] == 0


def test_one_lost_probe_does_not_settle_the_matter():
    mtu = PathMtu(1_452)
    mtu.start(0.0, 1_472)
    mtu.probe_lost(mtu.next_probe(), 0.0)
    mtu.probe_acked(mtu.next_probe(), 0.0)
    assert mtu.current == 1_452


def test_a_path_that_swallows_large_packets_is_noticed_and_tried_again_later():
    mtu, _ = search(1_500)
    fell = [mtu.large_lost(10.0) for _ in range(8)]
    assert fell == [False] * 7 + [True]
    assert mtu.current == BASE_BYTES
    assert mtu.probe_at == 70.0


def test_scattered_losses_are_no_black_hole():
    mtu, _ = search(1_500)
    for _ in range(100):
        mtu.large_lost(1.0)
        mtu.large_acked()
    assert mtu.current == 1_452
