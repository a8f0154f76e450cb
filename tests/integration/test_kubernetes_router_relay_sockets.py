"""The sockets of the QUIC relay when the kernel says no: an error ends one tunnel or loses one datagram, nothing else."""

import asyncio
import errno
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from kubernetes_router.relay import quic_relay
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.relay.router_socket import RECEIVED, RouterSocket, UnreachableError
from support.quic_clients import first_flight
from support.quic_endpoints import echoes, quic_endpoints
from support.quic_relay import naming, relaying
from support.waiting import eventually
from tunnel_protocol.quic.udp import UdpSocket

BUFFER = memoryview(bytearray(65_535))


class Kernel:
    """A socket whose next calls fail as the test says."""

    def __init__(self, *failures: int) -> None:
        self.failures = list(failures)
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []

    def _fail(self) -> None:
        if self.failures:
            raise OSError(self.failures.pop(0), "as the test wants")

    def send(self, data: bytes) -> None:
        self._fail()
        self.sent.append(data)

    def recv_into(self, buffer: memoryview) -> int:
        if not self.waiting:
            self._fail()
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        data = self.waiting.pop(0)
        buffer[: len(data)] = data
        return len(data)


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        found.settimeout(5)
        yield found


def over(kernel: Kernel, peer: socket.socket) -> RouterSocket:
    found: Any = RouterSocket(peer.getsockname())
    found._socket.close()
    found._socket = kernel
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM])
def test_a_router_that_cannot_be_reached_is_told(peer: socket.socket, number: int) -> None:
    with pytest.raises(UnreachableError) as caught:
        over(Kernel(number), peer).send(b"x")
    assert caught.value.errno == number
    with pytest.raises(UnreachableError, match=errno.errorcode[number]):
        over(Kernel(number), peer).receive(BUFFER)


def test_what_was_read_before_an_error_is_not_lost(peer: socket.socket) -> None:
    kernel = Kernel(errno.ECONNREFUSED, errno.ECONNREFUSED)
    kernel.waiting = [b"one", b"", b"three"]
    found = over(kernel, peer)
    assert found.receive(BUFFER) == [b"one", b"", b"three"]
    with pytest.raises(UnreachableError):
        found.receive(BUFFER)


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.ENOBUFS, errno.EIO])
def test_the_report_of_an_earlier_datagram_does_not_lose_the_next_one(peer: socket.socket, number: int) -> None:
    kernel = Kernel(number)
    found = over(kernel, peer)
    assert found.send(b"x")
    assert kernel.sent == [b"x"]
    kernel.failures = [number, number]
    assert not found.send(b"lost")
    kernel.failures = [number]
    assert found.receive(BUFFER) == []


def test_a_full_socket_loses_the_datagram(peer: socket.socket) -> None:
    kernel = Kernel(errno.EAGAIN)
    assert not over(kernel, peer).send(b"x")
    assert kernel.sent == []


def test_reading_stops_after_a_batch(peer: socket.socket) -> None:
    kernel = Kernel()
    kernel.waiting = [b"x"] * (RECEIVED + 1)
    assert len(over(kernel, peer).receive(BUFFER)) == RECEIVED


@pytest.mark.parametrize(("host", "level", "option"), [("127.0.0.1", 0, 10), ("::1", 41, 23)])
def test_datagrams_leave_whole_and_with_dont_fragment(host: str, level: int, option: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as router:
        try:
            router.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is not an address of this host")
        router.settimeout(5)
        found = RouterSocket((host, router.getsockname()[1]))
        try:
            assert found._socket.getsockopt(level, option) == 3  # IP_PMTUDISC_PROBE
            assert found.send(bytes(60_000))
            data, address = router.recvfrom(65_535)
            assert len(data) == 60_000
            router.sendto(b"back", address)
            found._socket.settimeout(5)
            assert found._socket.recv(10, socket.MSG_PEEK) == b"back"
            found._socket.setblocking(False)
            assert found.receive(BUFFER) == [b"back"]
        finally:
            found.close()


def test_elsewhere_than_on_linux_the_option_is_not_set(peer: socket.socket) -> None:
    found = RouterSocket(peer.getsockname(), linux=False)
    assert found._socket.getsockopt(0, 10) != 3
    found.close()


@pytest.mark.parametrize("target", [("not-an-address", 1), ("255.255.255.255", 1)])
def test_an_address_that_cannot_be_used_is_an_error(target: tuple[str, int]) -> None:
    with pytest.raises(OSError):
        RouterSocket(target)


# --- The relay --------------------------------------------------------------------------------------------------------


async def test_without_sockets_left_a_tunnel_is_refused_and_the_others_go_on() -> None:
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
            worker.connect(("127.0.0.1", relay.port))
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (worker.fileno() + 1, hard))
                worker.send(first_flight("a")[0])
                await eventually(lambda: relay.outcomes[Outcome.RELAY_ERROR])
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert relay.relay.open_tunnels == 1
        assert await echoes(dialled)


async def test_a_router_that_vanishes_ends_its_tunnel_and_a_new_first_flight_begins_another() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        router.bind(("127.0.0.1", 0))
        router.setblocking(False)
        target = router.getsockname()
        async with relaying({"a": target}) as relay:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
                worker.connect(("127.0.0.1", relay.port))
                flight = first_flight("a")[0]
                worker.send(flight)
                loop = asyncio.get_running_loop()
                assert await asyncio.wait_for(loop.sock_recv(router, 2_000), 5) == flight
                router.close()
                worker.send(flight)
                await eventually(lambda: relay.outcomes[Outcome.RELAY_ERROR] == 1)
                assert relay.relay.open_tunnels == 0
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                    again.bind(target)
                    again.setblocking(False)
                    worker.send(flight)
                    assert await asyncio.wait_for(loop.sock_recv(again, 2_000), 5) == flight
                assert relay.outcomes[Outcome.ACCEPTED] == 2


async def test_an_error_at_sending_ends_the_tunnel_at_its_first_datagram_and_at_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(_socket: RouterSocket, _data: bytes) -> bool:
        raise UnreachableError(errno.ECONNREFUSED)

    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        with monkeypatch.context() as failing, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
            failing.setattr(RouterSocket, "send", unreachable)
            worker.sendto(first_flight("a")[0], ("127.0.0.1", relay.port))
            dialled.ping()
            await eventually(lambda: relay.outcomes[Outcome.RELAY_ERROR] == 2)
            assert relay.relay.open_tunnels == 0
        other = await a.dial(naming("a"), port=relay.port)
        assert await echoes(other)


class FullSocket:
    """The socket for workers, while the kernel takes nothing."""

    def __init__(self, udp: UdpSocket) -> None:
        self._udp = udp
        self.full = True
        self.unreadable = True
        self.dropped = 0
        self.waiting: list[Any] = []

    @property
    def blocked(self) -> bool:
        return bool(self.waiting)

    def fileno(self) -> int:
        return self._udp.fileno()

    def receive(self, limit: int) -> list[Any]:
        return self._udp.receive(limit)

    def send(self, datagrams: list[Any]) -> None:
        self.waiting += datagrams
        self.send_backlog()

    def send_backlog(self) -> None:
        if not self.full:
            waiting, self.waiting = self.waiting, []
            self._udp.send(waiting)

    def close(self) -> None:
        self._udp.close()


async def test_what_a_full_socket_does_not_take_is_sent_when_it_can_be() -> None:
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        assert await echoes(dialled)
        assert relay.relay._udp is not None
        full: Any = FullSocket(relay.relay._udp)
        full.unreadable = False
        relay.relay._udp = full
        dialled.ping()
        await eventually(lambda: full.blocked and relay.relay._watching_writable)
        relay.relay._writable()
        assert relay.relay._watching_writable
        full.full = False
        await eventually(lambda: not relay.relay._watching_writable)
        assert await echoes(dialled)
        full.full = True
        dialled.ping()
        await eventually(lambda: relay.relay._watching_writable)


async def test_datagrams_that_are_lost_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        with monkeypatch.context() as failing:
            failing.setattr(RouterSocket, "send", lambda *_: False)
            dialled.ping()
            await eventually(lambda: relay.dropped[Dropped.NOT_SENT])
            before = relay.dropped[Dropped.NOT_SENT]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
                worker.sendto(first_flight("a")[0], ("127.0.0.1", relay.port))
                await eventually(lambda: relay.dropped[Dropped.NOT_SENT] > before)
        before = relay.dropped[Dropped.NOT_SENT]
        relay.relay._send_to_client([(bytes(65_507 + 1), ("127.0.0.1", 9))])
        assert relay.dropped[Dropped.NOT_SENT] == before + 1
        assert await echoes(dialled)


async def test_a_socket_that_cannot_be_read_is_given_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_relay, "_READ_AGAIN_S", 0.001)
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        udp = relay.relay._udp
        assert udp is not None
        broken: Any = FullSocket(udp)
        broken.full = False
        relay.relay._udp = broken
        relay.relay._readable()
        broken.unreadable = False
        assert await echoes(dialled)
        relay.relay._udp = udp


async def test_nothing_happens_after_the_end() -> None:
    async with relaying({}) as relay:
        relay.relay._core.accepting = True
        await relay.relay.close()
        relay.relay._readable()
        relay.relay._read_again()
        relay.relay._writable()
        relay.relay._send_to_client([(b"x", ("127.0.0.1", 9))])
        relay.relay._answered(None)  # type: ignore[arg-type]
    bound = quic_relay.QuicRelay(
        "127.0.0.1",
        0,
        resolve=lambda _name: ("127.0.0.1", 1),
        tagged=lambda _tag: (),
        idle_timeout_ms=1_000,
        on_outcome=lambda _outcome: None,
        on_dropped=lambda _reason: None,
    )
    bound.bind()
    await bound.close()


async def test_a_flood_of_first_flights_leaves_a_tunnel_alone() -> None:
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}) as relay:
        dialled = await a.dial(naming("a"), port=relay.port)
        flights = [first_flight("a")[0] for _ in range(20)] + [first_flight("b")[0] for _ in range(20)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.connect(("127.0.0.1", relay.port))
            for number in range(1_500):
                flight = bytearray(flights[number % len(flights)])
                if number % 3 == 2:
                    flight[number % 1_200] ^= 1
                stranger.send(flight)
                if number % 100 == 0:
                    assert await echoes(dialled)
        assert await echoes(dialled)
        assert relay.relay.unresolved <= 512
