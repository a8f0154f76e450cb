"""First datagrams that wait for their turn."""

from tunnel_protocol.quic.admission import Admitted
from tunnel_protocol.quic.first_packets import PER_CLIENT, WAITING, FirstPacketQueue
from tunnel_protocol.quic.sources import source_of


def put(queue, name, host="192.0.2.1", port=1, data=b"hello"):
    queue.add(name, data, (host, port), Admitted(source_of(host), b"original"))


def test_they_are_taken_in_order_of_arrival():
    queue = FirstPacketQueue()
    for name in (b"a", b"b"):
        put(queue, name, data=name)
    assert len(queue) == 2
    assert [queue.take().datagrams for _ in range(2)] == [[b"a"], [b"b"]]
    assert queue.take() is None


def test_what_a_client_sends_meanwhile_is_kept_up_to_a_bound_and_only_from_its_address():
    queue = FirstPacketQueue()
    for n in range(PER_CLIENT.pieces + 3):
        put(queue, b"a", data=b"%d" % n)
    put(queue, b"a", port=2)
    assert queue.take().datagrams == [b"%d" % n for n in range(PER_CLIENT.pieces)]
    assert len(queue) == 0


def test_when_it_is_full_the_oldest_of_the_most_frequent_address_is_dropped():
    queue = FirstPacketQueue()
    put(queue, b"honest", "10.0.0.1")
    for n in range(WAITING.pieces - 1):
        put(queue, b"%d" % n)
    put(queue, b"newcomer", "10.0.0.2")
    assert queue.dropped == 1
    assert len(queue) == WAITING.pieces
    taken = []
    while (first := queue.take()) is not None:
        taken.append(first.address[0])
    assert taken[0] == "10.0.0.1"
    assert taken[-1] == "10.0.0.2"
