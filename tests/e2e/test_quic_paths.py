"""What a path may do to a connection, over real sockets: another port, datagrams that are too large, silence."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from quic_place import Talk, a_place, echoes, eventually, run
from relay import UdpRelay, Weather

from tunnel_protocol.quic.settings import QuicSettings


@asynccontextmanager
async def through_a_relay(weather=None, settings=None, client_settings=None):
    """A place, a relay in front of it, and both ends of a connection through the relay."""
    async with a_place(settings) as place:
        with UdpRelay(place.endpoint.local_address[1], weather) as relay:
            dialled = await place.dial(settings=client_settings, port=relay.port)
            await eventually(lambda: place.accepted)
            yield relay, dialled, place.accepted[0]


def test_a_peer_whose_port_changes_keeps_its_connection_and_its_streams():
    async def test():
        async with through_a_relay() as (relay, dialled, accepted):
            talk = Talk()
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
            assert accepted.engine._network_paths[0].is_validated
            await eventually(lambda: dialled.open_streams == accepted.open_streams == 0)

    run(test())


def test_datagrams_grow_to_what_the_path_carries():
    async def test():
        async with through_a_relay() as (relay, dialled, accepted):
            for connection in (dialled, accepted):
                assert await echoes(connection, bytes(500_000))
            assert relay.largest_passed == 1_452

    run(test())


def test_a_path_without_room_for_large_datagrams_is_used_to_what_it_has():
    async def test():
        async with through_a_relay(Weather(largest_bytes=1_300)) as (relay, dialled, accepted):
            for _ in range(10):
                for connection in (dialled, accepted):
                    assert await echoes(connection, bytes(100_000))
            assert relay.too_large > 0, "larger ones were tried"
            assert 1_280 <= relay.largest_passed <= 1_300

    run(test())


def test_a_path_that_shrinks_is_noticed_and_nothing_is_lost():
    async def test():
        async with through_a_relay() as (relay, dialled, accepted):
            for connection in (dialled, accepted):
                assert await echoes(connection, bytes(300_000))
            assert relay.largest_passed == 1_452
            relay.weather = Weather(largest_bytes=1_250)
            data = os.urandom(300_000)
            for connection in (dialled, accepted):
                assert await echoes(connection, data)
            before = relay.too_large
            for connection in (dialled, accepted):
                assert await echoes(connection, data)
            assert relay.too_large == before, "none is sent for nothing any more"

    run(test())


@pytest.mark.parametrize("silent", ["dialled", "accepted"])
def test_a_peer_that_has_vanished_is_given_up_long_before_the_idle_timeout(silent):
    async def test():
        impatient = QuicSettings(max_consecutive_ptos=4)
        patient = QuicSettings()
        settings = (patient, impatient) if silent == "accepted" else (impatient, patient)
        async with through_a_relay(None, *settings) as (relay, dialled, accepted):
            watching = dialled if silent == "accepted" else accepted
            assert await echoes(watching)
            relay.cut = True
            talk = Talk()
            (await watching.open_stream(talk)).write(b"anybody there?")
            began = asyncio.get_running_loop().time()
            error = await asyncio.wait_for(watching.wait_closed(), 5)
            assert error.reason == "peer does not answer"
            assert talk.lost is error
            assert asyncio.get_running_loop().time() - began < 3

    run(test())


def test_keepalive_holds_a_connection_over_a_path_that_says_nothing():
    async def test():
        settings = QuicSettings(idle_timeout_ms=400)
        async with through_a_relay(None, settings, QuicSettings(keepalive_ms=100)) as (_, dialled, accepted):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(accepted.wait_closed(), 1.2)
            assert not dialled.closed
        async with through_a_relay(None, settings) as (_, dialled, accepted):
            for connection in (dialled, accepted):
                assert (await asyncio.wait_for(connection.wait_closed(), 2)).reason == "idle timeout"

    run(test())
