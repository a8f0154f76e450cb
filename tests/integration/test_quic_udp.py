"""The UDP socket when the kernel says no: errors are losses, a full buffer is waited for, the backlog has a bound."""

import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tunnel_protocol.quic.datagrams import Datagrams
from tunnel_protocol.quic.udp import _BACKLOG, BACKLOG, UdpSocket

TO = ("127.0.0.1", 9)


class Kernel(socket.socket):
    """A real socket whose system calls can be made to fail; `sent` is what would have left."""

    def __init__(self):
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.sent = []
        self.failures = []
        """Errors of the next calls, None for a call that works."""
        self.segments = []

    def _fail(self):
        error = self.failures.pop(0) if self.failures else None
        if error is not None:
            raise OSError(error, "as the test wants")

    def sendto(self, data, address):
        self._fail()
        self.sent.append(data)

    def sendmsg(self, buffers, ancillary, flags, address):
        self._fail()
        self.segments.append(int.from_bytes(ancillary[0][2], "little"))
        self.sent.append(b"".join(buffers))

    def recvfrom(self, size):
        self._fail()
        return b"x", TO


def over(kernel, *, linux=True):
    return UdpSocket(kernel, linux=linux, datagrams=Datagrams)


@pytest.fixture
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


def test_equal_datagrams_leave_in_one_call_and_the_shorter_last_one_with_them(kernel):
    udp = over(kernel)
    udp.send([(b"aaaa", TO), (b"bbbb", TO), (b"cc", TO), (b"dddd", TO), (b"eeee", ("127.0.0.1", 10))])
    assert kernel.sent == [b"aaaabbbbcc", b"dddd", b"eeee"]
    assert kernel.segments == [4]


def test_runs_leave_as_they_are_and_with_what_fits_to_their_last_datagram(kernel):
    udp = over(kernel)
    udp.send_runs([(b"aaaabbbb", 4, TO), (b"ccccdd", 4, TO), (b"eeee", 0, TO), (b"ffffgggg", 4, ("127.0.0.1", 10))])
    assert kernel.sent == [b"aaaabbbbccccdd", b"eeee", b"ffffgggg"]
    assert kernel.segments == [4, 4]


def test_runs_of_other_sizes_are_not_joined(kernel):
    udp = over(kernel)
    udp.send_runs([(b"aaaabbbb", 4, TO), (b"ccdd", 2, TO), (b"eeeee", 0, TO), (b"x" * 40_000, 1_000, TO)])
    udp.send_runs([(b"y" * 40_000, 1_000, TO), (b"z" * 40_000, 1_000, TO)])
    assert kernel.sent == [b"aaaabbbb", b"ccdd", b"eeeee", b"x" * 40_000, b"y" * 40_000, b"z" * 40_000]


def test_where_the_kernel_cannot_segment_the_datagrams_of_a_run_leave_one_by_one(kernel):
    udp = over(kernel, linux=False)
    udp.send_runs([(b"aaaabbbbcc", 4, TO)])
    assert kernel.sent == [b"aaaa", b"bbbb", b"cc"]


@pytest.mark.parametrize(
    ("family", "option"),
    [(socket.AF_INET, (socket.IPPROTO_IP, 10, 3)), (socket.AF_INET6, (socket.IPPROTO_IPV6, 23, 3))],
)
def test_the_path_is_probed_by_us_and_not_by_the_kernel(family, option):
    class Recording(Kernel):
        def setsockopt(self, *given):
            options.append(given)

    options = []
    Recording.family = family
    with Recording() as kernel:
        over(kernel)
    assert option in options


def test_elsewhere_than_on_linux_each_leaves_alone(kernel):
    udp = over(kernel, linux=False)
    udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    assert kernel.sent == [b"aaaa", b"bbbb"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT])
def test_a_kernel_that_cannot_segment_is_asked_once(kernel, code):
    udp = over(kernel)
    kernel.failures = [code]
    udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    assert kernel.sent == [b"aaaa", b"bbbb"]
    udp.send([(b"cccc", TO), (b"dddd", TO)])
    assert kernel.segments == []
    assert udp.dropped == 0


@pytest.mark.parametrize("datagrams", [[(b"aaaa", TO)], [(b"aaaa", TO), (b"bbbb", TO)]])
def test_an_error_is_a_loss(kernel, datagrams):
    udp = over(kernel)
    kernel.failures = [errno.ENETUNREACH]
    udp.send(datagrams)
    assert (udp.dropped, udp.blocked, kernel.sent) == (1, False, [])


def test_what_the_socket_does_not_take_waits_in_order_and_within_bounds(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EAGAIN]
    udp.send([(b"first", TO)])
    assert udp.blocked
    udp.send([(b"%d" % number, TO) for number in range(_BACKLOG + 5)])
    assert udp.dropped == 6
    kernel.failures = [None, None, errno.EAGAIN]
    udp.send_backlog()
    assert kernel.sent == [b"first", b"0"]
    assert udp.blocked
    udp.send_backlog()
    assert not udp.blocked
    assert kernel.sent == [b"first", *(b"%d" % number for number in range(_BACKLOG - 1))]


def test_a_segmented_batch_that_has_to_wait_leaves_as_one(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EAGAIN]
    udp.send([(b"aaaa", TO), (b"bbbb", TO), (b"c", TO), (b"dd", TO)])
    udp.send_backlog()
    assert kernel.sent == [b"aaaabbbbc", b"dd"]


NOT_THE_SOCKETS_FAULT = [
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EPERM,
    errno.EACCES,
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.EMSGSIZE,
    errno.EINVAL,
    errno.EIO,
    errno.EINTR,
]
"""A firewall, a full queue, a route that is gone, a peer that is gone, a device without offload, a signal."""


@pytest.mark.parametrize("code", NOT_THE_SOCKETS_FAULT, ids=errno.errorcode.get)
def test_whatever_the_kernel_says_costs_the_datagram_it_says_it_of(kernel, code):
    udp = over(kernel)
    with capture_logs() as logged:
        for number in range(50):
            kernel.failures = [code]
            udp.send([(b"lost%d" % number, TO)])
            udp.send([(b"sent%d" % number, TO)])
    assert kernel.sent == [b"sent%d" % number for number in range(50)]
    assert (udp.dropped, udp.blocked, logged) == (50, False, [])


@pytest.mark.parametrize("code", NOT_THE_SOCKETS_FAULT, ids=errno.errorcode.get)
def test_an_error_of_receiving_ends_a_batch_and_not_the_reader(kernel, code):
    udp = over(kernel)
    with capture_logs() as logged:
        for _ in range(50):
            kernel.failures = [None, code]
            assert udp.receive(10) == [(b"x", TO)]
            kernel.failures = [code]
            assert udp.receive(10) == []
            assert not udp.unreadable
    assert (udp.dropped, logged) == (100, [])


def test_a_socket_that_cannot_be_read_any_more_says_so_once(kernel):
    udp = over(kernel)
    with capture_logs() as logged:
        for _ in range(2):
            kernel.failures = [errno.ENOMEM] * 40
            for number in range(40):
                assert udp.receive(10) == []
                assert udp.unreadable == (number >= 15)
            assert udp.receive(1) == [(b"x", TO)]
            assert not udp.unreadable
    assert [line["event"] for line in logged] == ["UDP socket cannot be read"] * 2


def test_segmentation_that_fails_is_told_once(kernel):
    udp = over(kernel)
    with capture_logs() as logged:
        for _ in range(20):
            kernel.failures = [errno.EIO]
            udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    assert [line["log_level"] for line in logged] == ["warning"]
    assert udp.dropped == 19, "after the first time these are errors of single datagrams"


def test_batches_that_waited_when_segmentation_failed_are_told_no_second_time(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EAGAIN, errno.EAGAIN]
    udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    udp._keep(b"ccccdddd", 4, TO)
    kernel.failures = [errno.EIO, None, None, errno.EIO, None]
    with capture_logs() as logged:
        udp.send_backlog()
        udp.send_backlog()
    assert kernel.sent == [b"aaaa", b"bbbb", b"cccc", b"dddd"]
    assert len(logged) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EMSGSIZE])
def test_a_batch_whose_datagrams_or_address_are_at_fault_leaves_segmentation_on(kernel, code):
    # A peer with port 0, or an interface that has become narrower: no reason to send one by one to everybody else.
    udp = over(kernel)
    kernel.failures = [code, code]
    with capture_logs() as logged:
        udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    assert (kernel.sent, udp.dropped, logged) == ([], 1, [])
    assert udp.too_large == (4 if code == errno.EMSGSIZE else 0)
    udp.send([(b"cccc", TO), (b"dddd", TO)])
    assert (kernel.sent, kernel.segments) == ([b"ccccdddd"], [4])


def test_a_datagram_too_large_for_the_interface_is_reported(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EMSGSIZE]
    udp.send([(b"x" * 1_400, TO)])
    assert (udp.too_large, udp.dropped) == (1_400, 1)


def test_a_batch_that_fails_while_the_socket_is_full_waits_as_it_is(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EIO, errno.EAGAIN]
    udp.send([(b"aaaa", TO), (b"bbbb", TO)])
    assert udp.blocked
    udp.send_backlog()
    assert (kernel.sent, kernel.segments) == ([b"aaaabbbb"], [4]), "nothing was learnt about segmentation"


def test_what_is_left_of_a_batch_goes_before_all_that_came_later(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EAGAIN]
    udp.send([(b"aaaa", TO), (b"bbbb", TO), (b"cccc", TO)])
    udp.send([(b"later", TO)])
    kernel.failures = [errno.EIO, None, errno.EAGAIN, errno.EAGAIN]
    udp.send_backlog()
    assert kernel.sent == [b"aaaa"]
    udp.send_backlog()
    assert kernel.sent == [b"aaaa", b"bbbb", b"cccc", b"later"]
    assert (udp.blocked, udp._backlog_bytes, udp.dropped) == (False, 0, 0)


def test_the_backlog_is_bounded_in_bytes_too(kernel):
    udp = over(kernel)
    kernel.failures = [errno.EAGAIN]
    udp.send([(b"x" * 1_000, TO)])
    batch = b"y" * 60_000
    for _ in range(1_000):
        udp.send([(batch, TO)])
    held = sum(len(data) for data, _, _ in udp._backlog)
    assert held == udp._backlog_bytes
    assert BACKLOG.bytes - 60_000 < held <= BACKLOG.bytes
    udp.send_backlog()
    assert (udp.blocked, udp._backlog_bytes) == (False, 0)


STEP = st.one_of(
    st.tuples(st.just("send"), st.lists(st.integers(1, 3), min_size=1, max_size=6)),
    st.tuples(st.just("writable"), st.just([])),
)


@given(
    steps=st.lists(STEP, max_size=12),
    failures=st.lists(st.sampled_from([None, None, errno.EAGAIN, *NOT_THE_SOCKETS_FAULT]), max_size=40),
)
def test_under_any_errors_datagrams_keep_their_order_and_the_backlog_its_count(steps, failures):
    with Kernel() as kernel:
        udp = over(kernel)
        kernel.failures = list(failures)
        given_bytes = b""
        for number, (kind, sizes) in enumerate(steps):
            if kind == "send":
                datagrams = [bytes([number * 8 + at]) * size for at, size in enumerate(sizes)]
                given_bytes += b"".join(datagrams)
                udp.send([(data, TO) for data in datagrams])
            else:
                udp.send_backlog()
            assert udp._backlog_bytes == sum(len(data) for data, _, _ in udp._backlog)
        kernel.failures = []
        udp.send_backlog()
        assert not udp.blocked
        left = iter(given_bytes)
        assert all(byte in left for byte in b"".join(kernel.sent)), "in order, and none twice"


@pytest.mark.parametrize(
    ("host", "to", "address"),
    [
        ("127.0.0.1", "127.0.0.2", ("127.0.0.2", 9)),
        ("0.0.0.0", "127.0.0.2", ("127.0.0.2", 9, socket.inet_aton("127.0.0.1"))),
        ("::", "::1", ("::1", 9, 0, 0, socket.inet_pton(socket.AF_INET6, "::1"))),
    ],
)
def test_a_peers_address_names_ours_where_there_are_several(host, to, address):
    try:
        udp = UdpSocket.bind(host, 0)
        told = udp.resolve(to, 9)
    except OSError:
        pytest.skip("the host has no such addresses")
    udp.close()
    assert told == address


def test_an_icmp_error_while_receiving_ends_the_batch(kernel):
    udp = over(kernel)
    kernel.failures = [None, errno.ECONNREFUSED]
    assert udp.receive(10) == [(b"x", TO)]
    assert udp.dropped == 1
    assert len(udp.receive(10)) == 10
    kernel.failures = [None, errno.EAGAIN]
    assert udp.receive(10) == [(b"x", TO)]


def test_an_address_that_cannot_be_bound_leaves_no_socket_behind():
    with pytest.raises(OSError, match=r"assign|available"):
        UdpSocket.bind("192.0.2.1", 0)


@pytest.mark.parametrize(("granted", "lines"), [(8 << 20, 0), (425_984, 2)])
def test_buffers_smaller_than_wanted_are_told_with_what_to_set(granted, lines, monkeypatch):
    with capture_logs() as logged:
        udp = UdpSocket.bind("127.0.0.1", 0)
        try:
            monkeypatch.setattr(udp, "_socket", Granted(granted))
            udp.log_buffers()
        finally:
            monkeypatch.undo()
            udp.close()
    told = [line["sysctl"] for line in logged if "buffer is smaller" in line["event"]]
    assert told == ["net.core.rmem_max=4194304", "net.core.wmem_max=4194304"][:lines]


class Granted:
    def __init__(self, size):
        self.size = size

    def getsockopt(self, _level, _option):
        return self.size
