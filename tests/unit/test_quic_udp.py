"""The UDP socket when the kernel says no: errors are losses, a full buffer is waited for, the backlog has a bound."""

import errno
import socket

import pytest
from structlog.testing import capture_logs

from tunnel_protocol.quic.datagrams import Datagrams
from tunnel_protocol.quic.udp import _BACKLOG, UdpSocket

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
            udp.tell_buffers()
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
