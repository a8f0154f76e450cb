"""The QUIC relay of `stargate-k8s-router` over real sockets, with our QUIC engine at both ends."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.targets import NoTarget
from support.quic_endpoints import OTHER, TRUSTING, EchoStream, QuicEndpoints, echoes, quic_endpoints
from support.quic_relay import Relay, naming, relaying
from support.relay import UdpRelay
from support.waiting import eventually
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.admission import Budget
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.engine import CID_BYTES
from tunnel_protocol.quic.pod_tag import pod_tag
from tunnel_protocol.quic.settings import QuicSettings


@asynccontextmanager
async def two_routers(**options: Any) -> AsyncIterator[tuple[Relay, QuicEndpoints, QuicEndpoints]]:
    """A relay with the routers `a` and `b` behind it."""
    async with quic_endpoints() as a, quic_endpoints() as b:
        pods = {"a": a.endpoint.local_address, "b": b.endpoint.local_address}
        async with relaying(pods, **options) as relay:
            yield relay, a, b


async def test_each_name_leads_to_its_router_and_bytes_pass_both_ways() -> None:
    async with two_routers() as (relay, a, b):
        to_a = await a.dial(naming("a"), port=relay.port)
        to_b = await a.dial(naming("b"), port=relay.port)
        data = os.urandom(500_000)
        assert await asyncio.gather(echoes(to_a, data), echoes(to_b, data)) == [True, True]
        assert [found.server_name for found in (*a.accepted, *b.accepted)] == ["a", "b"]
        assert await echoes(a.accepted[0], data), "routers open streams too"
        assert relay.relay.open_tunnels == 2
        assert relay.outcomes == {Outcome.ACCEPTED: 2}


async def test_the_worker_verifies_the_certificate_of_the_router() -> None:
    async with quic_endpoints() as trusted, quic_endpoints(identity=OTHER) as other:
        pods = {"stargate": trusted.endpoint.local_address}
        async with relaying(pods) as relay:
            assert await echoes(await trusted.dial(TRUSTING, port=relay.port))
            relay.pods["stargate"] = other.endpoint.local_address
            with pytest.raises(ConnectionClosedError):
                await trusted.dial(TRUSTING, port=relay.port)


async def test_datagrams_grow_to_what_the_path_carries_in_both_directions() -> None:
    async with two_routers() as (relay, a, _):
        with UdpRelay(relay.port) as path:
            dialled = await a.dial(naming("a"), port=path.port)
            await eventually(lambda: a.accepted)
            for connection in (dialled, a.accepted[0]):
                assert await echoes(connection, bytes(500_000))
            assert path.largest_passed == 1_452


async def test_resets_and_stop_codes_survive() -> None:
    async with two_routers() as (relay, a, _):
        a.echoes = False
        dialled = await a.dial(naming("a"), port=relay.port)
        await eventually(lambda: a.accepted)
        talk = EchoStream()
        stream = await dialled.open_stream(talk)
        stream.write(b"begun")
        await eventually(lambda: a.owners[0].talks)
        answering = a.owners[0].talks.pop()
        answering.stream.reset(4711)
        await eventually(lambda: talk.reset is not None)
        stream.reset(42)
        await eventually(lambda: answering.reset is not None)
        assert (talk.reset, answering.reset) == (4711, 42)
        talk = EchoStream()
        stream = await dialled.open_stream(talk)
        stream.write(b"begun")
        await eventually(lambda: a.owners[0].talks)
        a.owners[0].talks.pop().stream.stop(815)
        await eventually(lambda: talk.stopped is not None)
        assert talk.stopped == 815


async def test_the_close_of_a_connection_survives_with_its_code_and_reason() -> None:
    async with two_routers() as (relay, a, _):
        dialled = await a.dial(naming("a"), port=relay.port)
        await eventually(lambda: a.accepted)
        a.accepted[0].close(77, "move on")
        error = await asyncio.wait_for(dialled.wait_closed(), 5)
        assert (error.error_code, error.reason) == (77, "move on")


@pytest.mark.parametrize(
    ("name", "reason", "outcome"),
    [
        ("nobody", "unknown target SNI", Outcome.UNKNOWN_SNI),
        ("later", "target stargate not ready", Outcome.TARGET_UNAVAILABLE),
    ],
)
async def test_a_name_without_router_is_refused_with_the_reason(name: str, reason: str, outcome: Outcome) -> None:
    async with two_routers() as (relay, a, _):
        relay.pods["later"] = NoTarget.NOT_READY
        with pytest.raises(ConnectionClosedError, match=reason):
            await a.dial(naming(name), port=relay.port)
        assert relay.outcomes == {outcome: 1}
        assert relay.relay.open_tunnels == 0


async def test_a_client_whose_port_changes_keeps_its_tunnel() -> None:
    async with two_routers() as (relay, a, _):
        with UdpRelay(relay.port) as nat:
            dialled = await a.dial(naming("a"), port=nat.port)
            await eventually(lambda: a.accepted)
            ports = {a.accepted[0].peer_address[1]}
            for _ in range(4):
                assert await echoes(dialled, os.urandom(20_000))
                moves = nat.moves
                nat.move()
                await eventually(lambda moves=moves: nat.moves > moves)  # type: ignore[misc]
                assert await echoes(dialled)
                assert await echoes(a.accepted[0], bytes(50_000)), "the router reaches the new port"
                ports.add(a.accepted[0].peer_address[1])
            assert len(ports) == 5, "the router saw and validated each new path"
        assert relay.relay.open_tunnels == 1
        assert relay.outcomes == {Outcome.ACCEPTED: 1}


async def test_a_router_that_wants_addresses_proved_gets_it_through_the_relay() -> None:
    """All workers come from the relay's host, so a router with many half-open handshakes answers with Retry."""
    async with two_routers() as (relay, a, _):
        a.endpoint._admission._unproved = Budget(0)
        dialled = await a.dial(naming("a"), port=relay.port)
        assert a.endpoint._admission.retries == 1
        assert await echoes(dialled)
        assert relay.outcomes == {Outcome.ACCEPTED: 1}


async def test_a_router_that_is_gone_ends_only_its_tunnels() -> None:
    async with two_routers() as (relay, a, b):
        to_b = await b.dial(naming("b"), port=relay.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            relay.pods["gone"] = free.getsockname()
        with pytest.raises(TimeoutError):
            await a.dial(naming("gone"), port=relay.port, timeout_s=0.3)
        await eventually(lambda: relay.outcomes[Outcome.RELAY_ERROR])
        await eventually(lambda: relay.relay.open_tunnels == 1)
        assert await echoes(to_b)


async def test_a_target_that_is_no_address_ends_only_that_tunnel() -> None:
    async with two_routers() as (relay, a, _):
        relay.pods["wrong"] = ("not-an-address", 1)
        with pytest.raises(TimeoutError):
            await a.dial(naming("wrong"), port=relay.port, timeout_s=0.2)
        assert relay.outcomes[Outcome.RELAY_ERROR] >= 1
        assert relay.relay.open_tunnels == 0


async def test_a_worker_is_answered_from_the_address_it_dialled() -> None:
    async with quic_endpoints() as a, relaying({"a": a.endpoint.local_address}, host="0.0.0.0") as relay:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
            worker.connect(("127.0.0.2", relay.port))  # takes answers from there only
            worker.settimeout(5)
            client = await a.dial(naming("a"), port=relay.port)
            assert await echoes(client)
            first = bytearray(1_200)
            first[:7] = b"\xc0\x0a\x0a\x0a\x0a\x00\x00"  # a version nobody has: the relay answers itself
            worker.setblocking(False)
            worker.send(first)
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(worker, 2_000), 5)
            assert answer[1:5] == bytes(4), "Version Negotiation"


async def test_a_drain_refuses_new_tunnels_and_says_how_many_are_left() -> None:
    async with two_routers() as (relay, a, _):
        dialled = await a.dial(naming("a"), port=relay.port)
        loop = asyncio.get_running_loop()
        draining = asyncio.create_task(relay.relay.drain(loop.time() + 1.0))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionClosedError, match="router shutdown before relay connected"):
            await a.dial(naming("a"), port=relay.port)
        assert await echoes(dialled)
        assert await draining == 1


async def test_a_drain_ends_when_the_last_tunnel_does() -> None:
    async with two_routers(idle_timeout_ms=100) as (relay, a, _):
        dialled = await a.dial(naming("a"), port=relay.port)
        dialled.close()
        assert await relay.relay.drain(asyncio.get_running_loop().time() + 10) == 0
        assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.COMPLETED: 1}


async def test_closing_is_complete_and_harmless_when_repeated() -> None:
    async with two_routers() as (relay, a, _):
        await a.dial(naming("a"), port=relay.port)
        await relay.relay.close()
        await relay.relay.close()
        assert relay.relay.open_tunnels == 0
        assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.COMPLETED: 1}
        with pytest.raises(OSError, match="not bound"):
            _ = relay.port


@pytest.mark.loop("uvloop")
async def test_it_relays_on_uvloop() -> None:
    async with two_routers() as (relay, a, _):
        dialled = await a.dial(naming("a"), port=relay.port)
        assert await echoes(dialled, bytes(1_000_000))


async def test_datagrams_of_unknown_tunnels_are_dropped_silently() -> None:
    async with two_routers() as (relay, _, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.connect(("127.0.0.1", relay.port))
            stranger.setblocking(False)
            stranger.send(b"\x40" + bytes(60))
            stranger.send(b"")
            await eventually(lambda: relay.dropped[Dropped.UNKNOWN_FLOW] == 2)
            with pytest.raises(BlockingIOError):
                stranger.recv(2_000)


async def test_a_hundred_streams_at_once() -> None:
    async with two_routers() as (relay, a, _):
        dialled: Connection = await a.dial(naming("a"), port=relay.port)
        found = await asyncio.gather(*(echoes(dialled, os.urandom(5_000)) for _ in range(100)))
        assert all(found)


@asynccontextmanager
async def two_replicas(prefix: bytes) -> AsyncIterator[tuple[Relay, Relay, QuicEndpoints, UdpRelay]]:
    """A router whose connection ids begin with `prefix`, two relays before it, and what sends workers to one of them."""
    async with quic_endpoints(QuicSettings(cid_prefix=prefix)) as a:
        pods = {"a": a.endpoint.local_address}
        async with relaying(pods) as first, relaying(pods) as second:
            with UdpRelay(first.port) as service:
                yield first, second, a, service


async def test_another_replica_goes_on_with_the_tunnels_of_one_that_is_lost() -> None:
    async with two_replicas(pod_tag("a")) as (first, second, a, service):
        dialled = await a.dial(naming("a"), port=service.port)
        talk = EchoStream()
        stream = await dialled.open_stream(talk)
        stream.write(b"begun")
        await eventually(lambda: talk.received == b"begun")
        await first.relay.close()
        service.target_port = second.port
        stream.write(b" and ended", fin=True)
        await asyncio.wait_for(talk.fin.wait(), 10)
        assert talk.received == b"begun and ended"
        assert await echoes(a.accepted[0]), "the router has found the new path"
        assert second.outcomes == {Outcome.ADOPTED: 1}
        assert second.relay.open_tunnels == 1
        assert not a.failed


async def test_many_tunnels_go_on_at_once() -> None:
    async with two_replicas(pod_tag("a")) as (first, second, a, service):
        dialled = [await a.dial(naming("a"), port=service.port) for _ in range(40)]
        assert first.outcomes == {Outcome.ACCEPTED: 40}
        await first.relay.close()
        service.target_port = second.port
        assert all(await asyncio.gather(*(echoes(connection) for connection in dialled)))
        assert second.outcomes == {Outcome.ADOPTED: 40}


async def test_a_tunnel_without_a_tag_stays_with_its_replica() -> None:
    async with two_replicas(b"") as (first, second, a, service):
        dialled = await a.dial(naming("a"), port=service.port)
        service.target_port = second.port
        dialled.ping()
        await eventually(lambda: second.dropped[Dropped.UNKNOWN_FLOW])
        assert second.outcomes == {}
        service.target_port = first.port
        assert await echoes(dialled)


async def test_all_connection_ids_of_incoming_connections_begin_with_the_prefix() -> None:
    async with quic_endpoints(QuicSettings(cid_prefix=b"\x12\x34")) as endpoints:
        dialled = await endpoints.dial()
        await eventually(lambda: endpoints.accepted)
        accepted: Any = endpoints.accepted[0]
        engine: Any = dialled.engine
        for _ in range(10):
            assert await echoes(dialled)
            assert engine.one_rtt.peer_cids.current.cid.startswith(b"\x12\x34")
            engine.one_rtt.peer_cids.change()
        ids = list(accepted.engine.one_rtt.local_cids.active)
        assert len(set(ids)) == len(ids) > 1
        assert {(found[:2], len(found)) for found in ids} == {(b"\x12\x34", CID_BYTES)}
