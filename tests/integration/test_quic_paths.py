"""What a path may do to a connection, over real sockets: another port, datagrams that are too large, silence."""

import asyncio
import errno
import os
import socket
from contextlib import asynccontextmanager

import pytest

from support.quic_endpoints import TRUSTING, EchoConnection, EchoStream, echoes, quic_endpoints
from support.relay import RelayWeather, UdpRelay
from support.waiting import eventually
from tunnel_protocol.quic.datagrams import Datagrams
from tunnel_protocol.quic.path_mtu import BASE_BYTES
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.udp import UdpSocket

ANY = "0.0.0.0"


@asynccontextmanager
async def through_a_relay(weather=None, settings=None, client_settings=None, host="127.0.0.1", udp=None):
    """A place, a relay in front of it, and both ends of a connection through the relay."""
    async with quic_endpoints(settings, host=host) as endpoints:
        with UdpRelay(endpoints.endpoint.local_address[1], weather) as relay:
            dialled = await endpoints.dial(settings=client_settings, port=relay.port, udp=udp)
            await eventually(lambda: endpoints.accepted)
            yield relay, dialled, endpoints.accepted[0]


async def test_a_peer_whose_port_changes_keeps_its_connection_and_its_streams():
    async with through_a_relay() as (relay, dialled, accepted):
        talk = EchoStream()
        stream = await dialled.open_stream(talk)
        expected = b""
        ports = {accepted.peer_address[1]}
        for _ in range(4):
            piece = os.urandom(20_000)
            expected += piece
            stream.write(piece)
            await eventually(lambda expected=expected: talk.received == expected)
            moves = relay.moves
            relay.move()
            await eventually(lambda moves=moves: relay.moves > moves)
            assert await echoes(dialled)
            ports.add(accepted.peer_address[1])
            assert await echoes(accepted, bytes(50_000)), "streams of the side that stayed reach the new port"
        assert len(ports) == 5
        stream.write(b"", fin=True)
        await asyncio.wait_for(talk.fin.wait(), 5)
        assert talk.received == expected
        assert accepted.engine.one_rtt.paths.active.is_validated
        await eventually(lambda: dialled.open_streams == accepted.open_streams == 0)


async def test_datagrams_grow_to_what_the_path_carries():
    async with through_a_relay() as (relay, dialled, accepted):
        for connection in (dialled, accepted):
            assert await echoes(connection, bytes(500_000))
        assert relay.largest_passed == 1_452


async def test_a_path_that_passes_no_large_datagrams_is_used_to_what_it_has():
    async with through_a_relay(RelayWeather(largest_bytes=1_300)) as (relay, dialled, accepted):
        for _ in range(10):
            for connection in (dialled, accepted):
                assert await echoes(connection, bytes(100_000))
        assert relay.too_large > 0, "larger ones were tried"
        assert 1_280 <= relay.largest_passed <= 1_300


async def test_a_path_that_shrinks_is_noticed_and_nothing_is_lost():
    async with through_a_relay() as (relay, dialled, accepted):
        for connection in (dialled, accepted):
            assert await echoes(connection, bytes(300_000))
        assert relay.largest_passed == 1_452
        relay.weather = RelayWeather(largest_bytes=1_250)
        data = os.urandom(300_000)
        for connection in (dialled, accepted):
            assert await echoes(connection, data)
        before = relay.too_large
        for connection in (dialled, accepted):
            assert await echoes(connection, data)
        assert relay.too_large == before, "none is sent for nothing any more"


@pytest.mark.parametrize("silent", ["dialled", "accepted"])
async def test_a_peer_that_has_vanished_is_given_up_long_before_the_idle_timeout(silent):
    impatient = QuicSettings(max_consecutive_ptos=4)
    patient = QuicSettings()
    settings = (patient, impatient) if silent == "accepted" else (impatient, patient)
    async with through_a_relay(None, *settings) as (relay, dialled, accepted):
        watching = dialled if silent == "accepted" else accepted
        assert await echoes(watching)
        relay.cut = True
        talk = EchoStream()
        (await watching.open_stream(talk)).write(b"anybody there?")
        began = asyncio.get_running_loop().time()
        error = await asyncio.wait_for(watching.wait_closed(), 5)
        assert error.reason == "peer does not answer"
        assert talk.lost is error
        assert asyncio.get_running_loop().time() - began < 3


async def test_keepalive_holds_a_connection_over_a_path_that_says_nothing():
    settings = QuicSettings(idle_timeout_ms=400)
    async with through_a_relay(None, settings, QuicSettings(keepalive_ms=100)) as (_, dialled, accepted):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(accepted.wait_closed(), 1.2)
        assert not dialled.closed
    async with through_a_relay(None, settings) as (_, dialled, accepted):
        for connection in (dialled, accepted):
            assert (await asyncio.wait_for(connection.wait_closed(), 2)).reason == "idle timeout"


# Several addresses of this host ------------------------------------------------------------------------------------------


async def test_a_worker_is_answered_from_the_address_it_dialled():
    async with quic_endpoints(host=ANY) as endpoints:
        port = endpoints.endpoint.local_address[1]
        for host in ("127.0.0.1", "127.0.0.2", "127.7.7.7"):
            # A client takes nothing from an address it did not dial.
            client = endpoints.clients[0] if endpoints.clients else (await endpoints.dial())._endpoint
            connection = await client.connect(host, port, TRUSTING, EchoConnection(), 5)
            for side in (connection, endpoints.accepted[-1]):
                assert await echoes(side, os.urandom(300_000))
            assert endpoints.accepted[-1].engine.peer_address[-1] == socket.inet_aton(host)


async def test_datagrams_from_a_peers_address_to_another_of_ours_do_not_turn_its_answers_aside():
    async with quic_endpoints(host=ANY) as endpoints:
        dialled = await endpoints.dial()
        assert await echoes(dialled)
        accepted, port = endpoints.accepted[0], endpoints.endpoint.local_address[1]
        cid = next(iter(accepted.cids))
        talk = EchoStream()
        stream = await accepted.open_stream(talk)
        for number in range(50):
            # What somebody can send who forges the worker's address, with a connection id or without one.
            forged = [b"\x40" + cid + os.urandom(40), os.urandom(1_200), b"\xc3\0\0\0\1\x08" + os.urandom(1_300)]
            dialled._endpoint._udp.send([(data, ("127.0.0.2", port)) for data in forged])
            stream.write(b"%5d" % number)
            await eventually(lambda number=number: len(talk.received) == 5 * (number + 1))
            assert accepted.engine.peer_address[-1] == socket.inet_aton("127.0.0.1")
        assert dialled.engine.one_rtt.paths.active.address == ("127.0.0.1", port)


async def test_a_peer_that_comes_to_another_address_of_ours_is_followed():
    async with through_a_relay(host=ANY) as (relay, dialled, accepted):
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.1"):
            relay.target_host = host
            assert await echoes(dialled, os.urandom(100_000))
            assert accepted.engine.peer_address[-1] == socket.inet_aton(host)
            assert await echoes(accepted, os.urandom(100_000))
            await eventually(lambda: accepted.engine.one_rtt.paths.active.is_validated)


async def test_answers_to_strangers_leave_from_the_address_that_was_asked():
    async with quic_endpoints(host=ANY) as endpoints:
        port = endpoints.endpoint.local_address[1]
        loop = asyncio.get_running_loop()
        other_version = b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x08" + bytes(8) + bytes(1_200)
        of_no_connection = b"\x40" + bytes(1_200)
        for asked in ("127.0.0.2", "127.0.0.1", "127.0.0.9"):
            for question in (other_version, of_no_connection):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    stranger.setblocking(False)
                    stranger.sendto(question, (asked, port))
                    _, source = await asyncio.wait_for(loop.sock_recvfrom(stranger, 2_048), 5)
                    assert source == (asked, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5"])
async def test_an_endpoint_on_all_addresses_can_dial_too(host):
    async with quic_endpoints(host=ANY) as endpoints, quic_endpoints(host=host) as other:
        connection = await endpoints.endpoint.connect(
            host, other.endpoint.local_address[1], TRUSTING, EchoConnection(), 5
        )
        assert await echoes(connection, os.urandom(100_000))


# A first hop that shrinks ------------------------------------------------------------------------------------------------


class Narrow(socket.socket):
    """A socket whose interface carries `largest` bytes: the kernel says so, differently for segmented batches."""

    def __init__(self, batch_error):
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.largest = 65_535
        self.batch_error = batch_error
        self.refused = 0

    def _check(self, size, error):
        if size > self.largest:
            self.refused += 1
            raise OSError(error, "as the test wants")

    def sendto(self, data, address):
        self._check(len(data), errno.EMSGSIZE)
        return super().sendto(data, address)

    def sendmsg(self, buffers, ancillary, flags, address):
        self._check(int.from_bytes(ancillary[0][2], "little"), self.batch_error)
        return super().sendmsg(buffers, ancillary, flags, address)


@pytest.mark.parametrize("batch_error", [errno.EINVAL, errno.EMSGSIZE])
async def test_an_interface_that_shrinks_under_a_connection_is_believed_at_once(batch_error):
    sock = Narrow(batch_error)
    sock.bind(("127.0.0.1", 0))
    async with through_a_relay(udp=UdpSocket(sock, datagrams=Datagrams)) as (_, dialled, accepted):
        for connection in (dialled, accepted):
            assert await echoes(connection, os.urandom(300_000))
        assert dialled.engine.one_rtt.path_mtu.current == 1_452
        sock.largest = 1_300
        data = os.urandom(1_000_000)
        for connection in (dialled, accepted):
            assert await echoes(connection, data)
        assert dialled.engine.one_rtt.path_mtu.current == BASE_BYTES
        assert accepted.engine.one_rtt.path_mtu.current == 1_452, "the other direction is another path"
        # One burst found out (two calls for a batch); nothing was tried in vain after it.
        assert 1 <= sock.refused <= 24
        assert dialled._endpoint._udp._segmentation, "segmentation works as before"


@pytest.mark.parametrize("largest", [1_200, 1_201, 1_350, 1_451])
async def test_bulk_goes_on_when_the_path_shrinks_in_the_middle_of_it(largest):
    async with through_a_relay() as (relay, dialled, accepted):
        for connection in (dialled, accepted):
            assert await echoes(connection, os.urandom(300_000))
        talks = [EchoStream(), EchoStream()]
        data = os.urandom(3_000_000)
        for connection, talk in zip((dialled, accepted), talks, strict=True):
            (await connection.open_stream(talk)).write(data, fin=True)
        await eventually(lambda: all(len(talk.received) > 300_000 for talk in talks))
        relay.weather = RelayWeather(largest_bytes=largest)
        for talk in talks:
            await asyncio.wait_for(talk.fin.wait(), 15)
            assert talk.received == data


async def test_a_peer_that_moves_to_a_narrower_path_goes_on_there():
    async with through_a_relay() as (relay, dialled, accepted):
        for connection in (dialled, accepted):
            assert await echoes(connection, os.urandom(300_000))
        relay.weather = RelayWeather(largest_bytes=1_220)
        relay.move()
        for connection in (dialled, accepted):
            assert await echoes(connection, os.urandom(500_000))
