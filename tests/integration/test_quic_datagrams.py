"""Datagrams through real sockets, in both forms: order, addresses, bursts, errors as numbers."""

import errno
import gc
import importlib
import select
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE
from tunnel_protocol.quic import datagrams as as_written

BYTES = 2_048


@pytest.fixture(params=["as written", "compiled"])
def form(request: pytest.FixtureRequest) -> Any:
    if request.param == "as written":
        return as_written.Datagrams
    if AS_WRITTEN_BECAUSE is not None:
        pytest.skip(f"the program runs as written: {AS_WRITTEN_BECAUSE}")
    return importlib.import_module("tunnel_protocol.quic.datagram_speedups").Datagrams


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["v4", "v6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    family, host = request.param
    sockets = []
    try:
        for _ in range(2):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind((host, 0))
            sock.setblocking(False)
    except OSError:
        pytest.skip("the host has no such addresses")
    yield sockets[0], sockets[1]
    for sock in sockets:
        sock.close()


def everything(reader: Any, sock: socket.socket, count: int) -> list[Any]:
    got: list[Any] = []
    while len(got) < count:
        assert select.select([sock], [], [], 5)[0], f"{len(got)} of {count} arrived"
        more, error = reader.receive(64)
        assert error == 0
        got += more
    return got


def test_datagrams_arrive_in_order_and_with_the_address_they_came_from(form: Any, pair: Any) -> None:
    here, there = pair
    reader, writer = form(here, BYTES), form(there, BYTES)
    sent = [b"%d" % number * (number % 9 + 1) for number in range(200)]
    for data in sent:
        assert writer.send(data, 0, here.getsockname()) == 0
    got = everything(reader, here, 200)
    assert [data for data, _ in got] == sent
    assert {address for _, address in got} == {there.getsockname()}
    assert reader.receive(64) == ([], 0)


def test_an_answer_goes_to_the_address_as_it_was_told(form: Any, pair: Any) -> None:
    here, there = pair
    one, other = form(here, BYTES), form(there, BYTES)
    other.send(b"question", 0, here.getsockname())
    [(_, address)] = everything(one, here, 1)
    assert one.send(b"answer", 0, address) == 0
    assert everything(other, there, 1) == [(b"answer", here.getsockname())]


def test_peers_in_turn_keep_their_addresses(form: Any, pair: Any) -> None:
    here, there = pair
    third = socket.socket(here.family, socket.SOCK_DGRAM)
    third.bind((here.getsockname()[0], 0))
    try:
        reader = form(here, BYTES)
        for number in range(40):
            (there if number % 2 else third).sendto(b"%d" % number, here.getsockname())
        got = everything(reader, here, 40)
        assert got == [(b"%d" % number, (there if number % 2 else third).getsockname()) for number in range(40)]
        for number, (_, address) in enumerate(got):
            assert reader.send(b"back %d" % number, 0, address) == 0
        there.setblocking(True)
        there.settimeout(5)
        assert [there.recv(99) for _ in range(20)] == [b"back %d" % number for number in range(1, 40, 2)]
    finally:
        third.close()


@pytest.mark.skipif(sys.platform != "linux", reason="segmentation offload is Linux's")
def test_a_burst_that_left_as_one_arrives_as_the_datagrams_it_was(form: Any, pair: Any) -> None:
    here, there = pair
    reader, writer = form(here, BYTES), form(there, BYTES)
    data = b"".join(struct.pack("B", number) * 1_200 for number in range(40)) + b"short"
    error = writer.send(data, 1_200, here.getsockname())
    if error in (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
        pytest.skip("this kernel does not segment")
    assert error == 0
    got = [piece for piece, _ in everything(reader, here, 41)]
    assert b"".join(got) == data
    assert {len(piece) for piece in got} == {1_200, 5}


def test_an_empty_datagram_is_one(form: Any, pair: Any) -> None:
    here, there = pair
    assert form(there, BYTES).send(b"", 0, here.getsockname()) == 0
    assert everything(form(here, BYTES), here, 1) == [(b"", there.getsockname())]


def test_the_largest_datagram_arrives_whole(form: Any, pair: Any) -> None:
    here, there = pair
    assert form(there, 65_527).send(b"x" * 60_000, 0, here.getsockname()) == 0
    assert len(everything(form(here, 65_527), here, 1)[0][0]) == 60_000


def test_the_limit_is_kept_but_for_one_batch(form: Any, pair: Any) -> None:
    here, there = pair
    reader = form(here, BYTES)
    for _ in range(150):
        there.sendto(b"x", here.getsockname())
    got, error = reader.receive(20)
    assert error == 0
    assert 20 <= len(got) <= 36
    assert len(everything(reader, here, 150 - len(got))) == 150 - len(got)


def test_what_the_kernel_refuses_is_told_as_a_number(form: Any, pair: Any) -> None:
    here, _ = pair
    one = form(here, BYTES)
    assert one.send(b"x" * 70_000, 0, here.getsockname()) == errno.EMSGSIZE
    assert one.send(b"x", 0, here.getsockname()) == 0


def test_a_closed_socket_is_an_error_and_no_other_file_is_touched(form: Any, pair: Any) -> None:
    here, there = pair
    one, to = form(here, BYTES), there.getsockname()
    here.close()
    assert one.receive(10) == ([], errno.EBADF)
    assert one.send(b"x", 0, to) == errno.EBADF


def test_an_unreachable_peer_is_an_error_of_the_next_call_at_most(form: Any, pair: Any) -> None:
    here, there = pair
    one, gone = form(here, BYTES), there.getsockname()
    there.close()
    here.connect(gone)
    results = [one.send(b"x", 0, gone)]
    select.select([here], [], [], 1)
    results.append(one.receive(10)[1])
    assert errno.ECONNREFUSED in results or errno.EISCONN in results


def test_memory_stays_as_it_is(form: Any, pair: Any) -> None:
    here, there = pair
    one, other = form(here, BYTES), form(there, BYTES)

    def turn() -> None:
        for _ in range(20):
            other.send(b"x" * 100, 0, here.getsockname())
        assert len(everything(one, here, 20)) == 20
        one.receive(5)

    for _ in range(50):
        turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(300):
        turn()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200


# Which address of ours a peer uses -----------------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        (socket.AF_INET, "0.0.0.0", ("127.0.0.1", "127.0.0.2", "127.8.9.10")),
        (socket.AF_INET6, "::", ("::1",)),
        (socket.AF_INET6, "::", ("::ffff:127.0.0.1", "::ffff:127.0.0.2")),
    ],
    ids=["v4", "v6", "v4 in v6"],
)
def everywhere(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, int, tuple[str, ...]]]:
    """A socket on all addresses of the host, its family, and some of these addresses."""
    family, host, addresses = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((host, 0))
        except OSError:
            pytest.skip("the host has no such addresses")
        sock.setblocking(False)
        yield sock, family, addresses


@pytest.mark.parametrize("segment", [0, 100], ids=["one", "segmented"])
def test_an_answer_leaves_from_the_address_that_was_asked(form: Any, everywhere: Any, segment: int) -> None:
    here, family, addresses = everywhere
    reader = form(here, BYTES, answers_as_asked=True)
    port = here.getsockname()[1]
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        for asked in (*addresses, *addresses[:1]):
            # From one port to all of them: the last one asked counts.
            peer.sendto(b"question", (asked, port))
            ((data, address),) = everything(reader, here, 1)
            assert data == b"question"
            for count in (1, 2):
                assert reader.send(b"a" * (150 if segment else 100), segment, address) == 0
                for _ in range(2 if segment else 1):
                    _, source = peer.recvfrom(BYTES)
                    assert (source[0], count) == (asked, count)


def test_a_peer_that_connected_its_socket_gets_its_answer(form: Any) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        here.bind(("0.0.0.0", 0))
        here.setblocking(False)
        reader = form(here, BYTES, answers_as_asked=True)
        peer.settimeout(5)
        peer.connect(("127.0.0.2", here.getsockname()[1]))
        peer.send(b"question")
        ((_, address),) = everything(reader, here, 1)
        assert reader.send(b"answer", 0, address) == 0
        assert peer.recv(BYTES) == b"answer"


def test_to_a_peer_never_heard_of_the_kernel_chooses(form: Any) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        here.bind(("0.0.0.0", 0))
        here.setblocking(False)
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(5)
        assert form(here, BYTES, answers_as_asked=True).send(b"x", 0, peer.getsockname()) == 0
        assert peer.recv(BYTES) == b"x"


def test_two_addresses_that_one_peer_uses_are_two_paths(form: Any, everywhere: Any) -> None:
    here, family, addresses = everywhere
    reader = form(here, BYTES, answers_as_asked=True)
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        told = []
        for asked in addresses:
            peer.sendto(b"question", (asked, here.getsockname()[1]))
            ((_, address),) = everything(reader, here, 1)
            told.append(address)
            assert socket.inet_ntop(family, address[-1]) == asked
        assert len(set(told)) == len(addresses)
        peer.settimeout(5)
        for address, asked in zip(told, addresses, strict=True):
            # Each is answered as it was asked, whichever was asked last.
            assert reader.send(b"answer", 0, address) == 0
            assert peer.recvfrom(BYTES)[1][0] == asked


@pytest.mark.parametrize("segment", [0, 1])
def test_an_address_that_this_host_has_not_leaves_the_choice_to_the_kernel(form: Any, segment: int) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        here.bind(("0.0.0.0", 0))
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(5)
        lost = (*peer.getsockname(), socket.inet_aton("192.0.2.1"))
        assert form(here, BYTES, answers_as_asked=True).send(b"x", segment, lost) == 0
        assert peer.recv(BYTES) == b"x"


def test_a_socket_on_one_address_is_told_peers_alone(form: Any, pair: Any) -> None:
    here, there = pair
    there.sendto(b"x", here.getsockname())
    assert everything(form(here, BYTES), here, 1) == [(b"x", there.getsockname())]


class Scripted:
    """A socket whose `recvmsg` does what the test says."""

    family = socket.AF_INET

    def __init__(self, *turns: Any) -> None:
        self._turns = list(turns)

    def setsockopt(self, *_: Any) -> None: ...

    def recvmsg(self, *_: Any) -> Any:
        turn = self._turns.pop(0)
        if isinstance(turn, OSError):
            raise turn
        return turn


def test_what_the_kernel_says_beside_the_address_is_passed_over_and_an_error_ends_the_batch() -> None:
    info = (socket.IPPROTO_IP, 8, bytes(4) + b"\x7f\0\0\2" + bytes(4))
    other = (socket.IPPROTO_IP, 1, b"\0")
    datagram = (b"x", [other, info], 0, ("127.0.0.1", 5))
    sock = Scripted(datagram, OSError(errno.ECONNREFUSED, "refused"), datagram, datagram, OSError("no number"))
    datagrams = as_written.Datagrams(sock, BYTES, answers_as_asked=True)  # type: ignore[arg-type]
    assert datagrams.receive(8) == ([(b"x", ("127.0.0.1", 5, b"\x7f\0\0\2"))], errno.ECONNREFUSED)
    assert len(datagrams.receive(2)[0]) == 2
    assert datagrams.receive(2) == ([], errno.EIO)
