"""The decisions of the QUIC relay, with plain aioquic connections at both ends and a clock of the test."""

import os
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, StreamDataReceived, StreamReset

from kubernetes_router.relay.core import (
    ANSWERS_PER_SECOND,
    FLIGHTS,
    FLIGHTS_OF_ADDRESS,
    FLIGHTS_PER_SECOND,
    MOVES_PER_SECOND,
)
from kubernetes_router.relay.flows import EVICTABLE_S, IDS, MOVED, PATHS, FlowTable
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.targets import NoTarget
from support.hostile_packets import crypto_frame, initial
from support.quic_clients import (
    OTHER_POD,
    POD,
    WORKER,
    Conversation,
    PlayedRelay,
    RouterPod,
    client,
    first_flight,
)
from tunnel_protocol.quic.admission import CONNECTION_REFUSED
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.pod_tag import pod_tag


def conversation(
    worker: QuicConnection | None = None, relay: PlayedRelay | None = None, **pod_options: Any
) -> Conversation:
    talk = Conversation(
        relay or PlayedRelay(), worker or client(), {POD: RouterPod(**pod_options), OTHER_POD: RouterPod()}
    )
    talk.begin()
    return talk


def connected(talk: Conversation) -> bool:
    return any(isinstance(event, HandshakeCompleted) for event in talk.events)


def echoed(talk: Conversation, data: bytes) -> bool:
    """Whether the router of the first pod gets `data` and its answer arrives."""
    pod = talk.pods[POD]
    stream = talk.worker.get_next_available_stream_id()
    talk.worker.send_stream_data(stream, data, end_stream=True)
    talk.play()
    asked = b"".join(e.data for e in pod.events if isinstance(e, StreamDataReceived) and e.stream_id == stream)
    pod.connections[0].send_stream_data(stream, asked, end_stream=True)
    talk.play()
    return data == b"".join(e.data for e in talk.events if isinstance(e, StreamDataReceived) and e.stream_id == stream)


def source(number: int, port: int = 40_000) -> Address:
    return f"198.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", port


def established(relay: PlayedRelay, address: Address = WORKER, name: str = "a") -> tuple[Conversation, bytes]:
    """A confirmed tunnel, and the connection id that its router chose."""
    talk = conversation(client(name), relay)
    talk.address = address
    talk.play()
    assert connected(talk)
    return talk, talk.worker._peer_cid.cid


# --- Handshakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", [False, True])
def test_a_tunnel_is_relayed_after_its_first_flight(long: bool) -> None:
    alpn = [f"protocol-{number:03}" for number in range(120)]
    options = {"alpn_protocols": alpn} if long else {}
    talk = conversation(client(**options), **options)
    talk.play()
    assert connected(talk)
    assert echoed(talk, os.urandom(50_000))
    assert talk.relay.outcomes == {Outcome.ACCEPTED: 1}
    assert len(talk.relay.open) == 1
    assert talk.relay.core.flows.unconfirmed == 0


def test_a_first_flight_in_two_datagrams_may_come_in_any_order_and_nothing_is_sent_before_it_is_whole() -> None:
    relay = PlayedRelay()
    first, second = first_flight(long=True)
    relay.receive(second)
    assert (relay.core.unresolved, relay.open, relay.answers, list(relay.forwarded)) == (1, {}, [], [])
    relay.receive(first)
    assert [data for _, data in relay.taken()] == [second, first]
    assert relay.core.unresolved == 0


def test_a_repeated_first_flight_goes_to_the_same_router() -> None:
    relay = PlayedRelay()
    flight = first_flight(long=True)
    for data in flight * 3:
        relay.receive(data)
    assert len(relay.open) == 1
    assert [data for _, data in relay.taken()] == flight * 3
    assert relay.outcomes == {Outcome.ACCEPTED: 1}


def test_a_retry_of_the_router_does_not_lose_the_tunnel() -> None:
    from tunnel_protocol.quic.address_validation import AddressValidation, InitialHeader

    talk = conversation()
    validation = AddressValidation()
    pod = talk.pods[POD]
    accept = pod.receive
    retried: list[bytes] = []

    def receive(data: bytes, port: int, now: float) -> None:
        header = InitialHeader.parse(data)
        if not pod.connections and header is not None and not header.token:
            retried.append(data)
            talk._to_worker(validation.retry(header, ("relay", port), now), port)
            return
        if not pod.connections:
            assert header is not None
            original = validation.original_cid(header, ("relay", port), now)
            assert original is not None
            pod.connections.append(
                QuicConnection(
                    configuration=pod._configuration,
                    original_destination_connection_id=original,
                    retry_source_connection_id=header.destination_cid,
                )
            )
        accept(data, port, now)

    pod.receive = receive  # type: ignore[method-assign]
    talk.play()
    assert len(retried) == 1
    assert connected(talk)
    assert echoed(talk, b"hello")
    assert talk.relay.outcomes == {Outcome.ACCEPTED: 1}


def test_an_unknown_version_is_answered_and_the_tunnel_is_relayed_with_version_1() -> None:
    talk = conversation(client(original_version=0x1A2A3A4A, supported_versions=[0x1A2A3A4A, 1]))
    talk.play()
    assert connected(talk)
    assert talk.relay.outcomes == {Outcome.ACCEPTED: 1}


def test_a_version_negotiation_of_the_router_reaches_the_worker() -> None:
    talk = conversation(client(supported_versions=[1, 0x6B3343CF]), supported_versions=[0x6B3343CF])
    pod = talk.pods[POD]
    accept = pod.receive
    versions: list[bytes] = []

    def receive(data: bytes, port: int, now: float) -> None:
        from aioquic.quic.packet import encode_quic_version_negotiation

        versions.append(data[1:5])
        if data[0] & 0x80 and data[1:5] == b"\0\0\0\1":
            answer = encode_quic_version_negotiation(
                source_cid=data[6:14], destination_cid=data[15:23], supported_versions=[0x6B3343CF]
            )
            talk._to_worker(answer, port)
        else:
            accept(data, port, now)

    pod.receive = receive  # type: ignore[method-assign]
    talk.play()
    assert b"\x6b\x33\x43\xcf" in versions, "what follows goes to the same router, in a version the relay cannot read"
    assert connected(talk)


def test_resets_pass_with_their_codes() -> None:
    talk, _ = established(PlayedRelay())
    stream = talk.worker.get_next_available_stream_id()
    talk.worker.send_stream_data(stream, b"begun")
    talk.play()
    talk.pods[POD].connections[0].reset_stream(stream, 4711)
    talk.play()
    assert [event.error_code for event in talk.events if isinstance(event, StreamReset)] == [4711]


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason", "outcome"),
    [
        (None, "missing target SNI", Outcome.MISSING_SNI),
        ("x", "unknown target SNI", Outcome.UNKNOWN_SNI),
        ("later", "target stargate not ready", Outcome.TARGET_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("long", [False, True])
def test_a_client_that_cannot_be_relayed_sees_a_close_with_the_reason(
    name: str | None, reason: str, outcome: Outcome, long: bool
) -> None:
    alpn = [f"protocol-{number:03}" for number in range(120)] if long else None
    relay = PlayedRelay({"later": NoTarget.NOT_READY})
    talk = conversation(client(name, alpn_protocols=alpn), relay)
    talk.play(400)
    closed = talk.closed()
    assert closed is not None
    assert (closed.error_code, closed.reason_phrase) == (CONNECTION_REFUSED, reason)
    assert (relay.outcomes, relay.open, relay.core.unresolved) == ({outcome: 1}, {}, 0)


def test_an_answer_is_shorter_than_what_it_answers_and_answers_are_bounded_in_number() -> None:
    relay = PlayedRelay({})
    for number in range((ANSWERS_PER_SECOND.pieces or 0) + 10):
        relay.receive(first_flight()[0], source(number), now=10.0)
    assert len(relay.answers) == ANSWERS_PER_SECOND.pieces
    assert all(len(data) < 1_200 for data, _ in relay.answers)
    assert relay.answers[0][1] == source(0)


def test_a_drain_refuses_new_tunnels_and_keeps_the_others() -> None:
    talk, _ = established(PlayedRelay())
    talk.relay.core.accepting = False
    newcomer = Conversation(talk.relay, client(), {})
    newcomer.address = source(1)
    newcomer.begin()
    newcomer.play(400)
    closed = newcomer.closed()
    assert closed is not None
    assert closed.reason_phrase == "router shutdown before relay connected"
    assert echoed(talk, b"hello")


# --- First flights that do not end ------------------------------------------------------------------------------------


def test_a_first_flight_has_five_seconds() -> None:
    relay = PlayedRelay()
    relay.receive(first_flight(long=True)[0], now=1.0)
    relay.act(relay.core.expire(5.9))
    assert relay.core.unresolved == 1
    relay.act(relay.core.expire(6.0))
    assert relay.core.unresolved == 0
    assert relay.outcomes == {Outcome.UNRESOLVED: 1}
    assert (relay.answers, relay.open) == ([], {})


def test_a_fifth_datagram_without_an_end_begins_anew() -> None:
    relay = PlayedRelay()
    cid = os.urandom(8)
    for number in range(5):
        relay.receive(initial([crypto_frame(5_000, b"x")], cid, number=number))
    assert relay.core.unresolved == 1
    assert relay.outcomes == {Outcome.UNRESOLVED: 1}
    flight = first_flight(long=True)
    for data in (flight[0], flight[0], flight[0], flight[0], *flight):
        relay.receive(data)
    assert relay.outcomes[Outcome.ACCEPTED] == 1


def test_a_flight_that_breaks_a_rule_ends_silently() -> None:
    relay = PlayedRelay()
    cid = os.urandom(8)
    relay.receive(initial([b"\x1c\x00\x00\x00"], cid))
    assert (relay.outcomes, relay.drops) == ({}, {Dropped.MALFORMED: 1})
    relay.receive(initial([crypto_frame(1, b"x")], cid))
    relay.receive(initial([b"\x1c\x00\x00\x00"], cid, number=1))
    assert relay.outcomes == {Outcome.UNRESOLVED: 1}
    assert relay.drops == {Dropped.MALFORMED: 2}
    assert (relay.core.unresolved, relay.answers) == (0, [])


def unfinished() -> bytes:
    return initial([crypto_frame(1, b"x")], os.urandom(8))


def test_unfinished_flights_of_one_address_displace_each_other_only() -> None:
    relay = PlayedRelay()
    first, second = first_flight(long=True)
    relay.receive(first, source(1))
    for number in range((FLIGHTS_OF_ADDRESS.pieces or 0) + 50):
        relay.receive(unfinished(), source(2, number + 1))
    assert relay.core.unresolved == (FLIGHTS_OF_ADDRESS.pieces or 0) + 1
    relay.receive(second, source(1))
    assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.UNRESOLVED: 50}


def test_unfinished_flights_are_bounded_in_number() -> None:
    relay = PlayedRelay()
    for number in range((FLIGHTS.pieces or 0) + 20):
        relay.receive(unfinished(), source(number))
    assert relay.core.unresolved == FLIGHTS.pieces
    assert relay.outcomes == {Outcome.UNRESOLVED: 20}


def test_first_flights_are_bounded_in_a_second() -> None:
    relay = PlayedRelay({})
    data = first_flight()[0]
    for number in range((FLIGHTS_PER_SECOND.pieces or 0) + 7):
        relay.receive(data, source(number), now=10.0)
    assert relay.drops == {Dropped.TOO_MANY: 7}
    relay.receive(data, now=11.0)
    assert relay.outcomes == {Outcome.UNKNOWN_SNI: (FLIGHTS_PER_SECOND.pieces or 0) + 1}


# --- Floods and bounds ------------------------------------------------------------------------------------------------


def test_a_flood_of_valid_first_flights_from_many_addresses_evicts_no_tunnel_in_use() -> None:
    relay = PlayedRelay(limits={"max_flows": 40, "max_unconfirmed": 8})
    talk, _ = established(relay)
    for number in range(200):
        relay.receive(first_flight()[0], source(number), now=talk.now)
    assert relay.core.flows.unconfirmed == 8
    assert len(relay.open) == len(relay.core.flows) == 9
    relay.taken()
    assert echoed(talk, b"still here")
    assert relay.outcomes == {Outcome.ACCEPTED: 201, Outcome.RELAY_ERROR: 192}


def test_a_full_table_gives_up_an_idle_tunnel_but_none_in_use() -> None:
    relay = PlayedRelay(limits={"max_flows": 2, "max_unconfirmed": 2})
    old, _ = established(relay, source(1))
    established(relay, source(2))
    relay.receive(first_flight()[0], source(3), now=1.0)
    assert relay.outcomes == {Outcome.ACCEPTED: 2, Outcome.RELAY_ERROR: 1}
    assert relay.details[-1] == "no place for another tunnel"
    relay.receive(first_flight()[0], source(3), now=old.now + EVICTABLE_S)
    assert relay.outcomes == {Outcome.ACCEPTED: 3, Outcome.RELAY_ERROR: 1, Outcome.COMPLETED: 1}
    assert {path.client for path in relay.open} == {source(2), source(3)}


def test_in_a_full_table_a_client_that_has_not_proved_its_address_makes_way_first() -> None:
    relay = PlayedRelay(limits={"max_flows": 2, "max_unconfirmed": 2})
    talk, _ = established(relay, source(1))
    relay.receive(first_flight()[0], source(2), now=talk.now)
    relay.receive(first_flight()[0], source(3), now=talk.now)
    assert {path.client for path in relay.open} == {source(1), source(3)}
    assert relay.outcomes == {Outcome.ACCEPTED: 3, Outcome.RELAY_ERROR: 1}


def test_connection_ids_of_one_tunnel_are_bounded() -> None:
    relay = PlayedRelay()
    relay.receive(first_flight()[0])
    (path,) = relay.open
    for number in range(20):
        chosen = bytes([number]) * 8
        relay.core.receive_from_router(path, b"\xc0\0\0\0\1\x00\x08" + chosen + bytes(20), 0.0)
    relay.core.receive_from_router(path, b"\xc0\0\0\0\0\x00\x08" + bytes(8), 0.0)
    relay.core.receive_from_router(path, b"\xc0\0\0", 0.0)
    relay.core.receive_from_router(path, b"", 0.0)
    assert len(path.flow.ids) == IDS.pieces
    assert set(relay.core.flows._by_id) == set(path.flow.ids)


# --- Later datagrams --------------------------------------------------------------------------------------------------


def test_a_worker_whose_address_changes_keeps_its_tunnel_and_the_router_sees_the_new_path() -> None:
    talk = conversation(client(idle_timeout=300), idle_timeout=300)
    talk.play()
    (before,) = talk.relay.open.values()
    talk.address = source(5)
    assert echoed(talk, b"from elsewhere")
    assert len(talk.relay.open) == 2
    assert talk.relay.outcomes == {Outcome.ACCEPTED: 1}
    paths = talk.pods[POD].connections[0]._network_paths
    assert (paths[0].addr[1], paths[0].is_validated) == (before + 1, True)
    talk.now += EVICTABLE_S
    assert echoed(talk, b"later")
    talk.relay.act(talk.relay.core.expire(talk.now))
    assert [path.client for path in talk.relay.open] == [source(5)]
    assert echoed(talk, b"and on")


def test_strangers_with_a_connection_id_they_saw_displace_each_other_only() -> None:
    relay = PlayedRelay()
    talk, cid = established(relay)
    for number in range(20):
        relay.receive(b"\x40" + cid + bytes(40), source(number), now=talk.now)
    assert len(relay.open) == PATHS.pieces
    assert WORKER in {path.client for path in relay.open}
    relay.taken()
    assert echoed(talk, b"hello")


def test_moves_are_bounded_in_a_second() -> None:
    relay = PlayedRelay()
    talk, cid = established(relay)
    for number in range((MOVES_PER_SECOND.pieces or 0) + 5):
        relay.receive(b"\x40" + cid + bytes(40), source(number), now=talk.now)
    assert relay.drops == {Dropped.TOO_MANY: 5}


def test_paths_of_moved_clients_are_bounded() -> None:
    relay = PlayedRelay()
    talk, cid = established(relay)
    relay.core.flows.moved = MOVED.pieces or 0
    relay.receive(b"\x40" + cid + bytes(40), source(1), now=talk.now)
    assert relay.drops == {Dropped.TOO_MANY: 1}
    assert len(relay.open) == 1


def test_a_tunnel_does_not_move_before_its_client_has_proved_its_address() -> None:
    relay = PlayedRelay()
    relay.receive(first_flight()[0])
    (path,) = relay.open
    relay.core.receive_from_router(path, b"\xc0\0\0\0\1\x00\x08" + bytes(8) + bytes(20), 0.0)
    relay.receive(b"\x40" + bytes(48), source(1))
    assert len(relay.open) == 1
    assert relay.drops == {Dropped.UNKNOWN_FLOW: 1}


def test_an_id_that_the_router_issued_later_leads_to_the_router_of_the_address() -> None:
    talk, _ = established(PlayedRelay())
    talk.worker.change_connection_id()
    assert echoed(talk, b"with another id")


def test_an_id_issued_later_goes_to_each_router_that_its_client_uses() -> None:
    relay = PlayedRelay()
    established(relay)
    again, _ = established(relay, name="b")
    assert len(relay.open) == 2
    relay.receive(b"\x40" + bytes(60), now=again.now)
    assert {path.flow.target for path, _ in relay.taken()} == {POD, OTHER_POD}
    assert relay.drops == {}


# --- Tunnels of other replicas ----------------------------------------------------------------------------------------


def tagged(name: str) -> bytes:
    return b"\x40" + pod_tag(name) + os.urandom(60)


def test_a_datagram_with_a_tag_goes_to_the_router_of_the_tag_and_the_next_ones_with_its_id_too() -> None:
    relay = PlayedRelay()
    data = tagged("b")
    relay.receive(data)
    relay.receive(data[:9] + bytes(30))
    (path,) = relay.open
    assert [(path.flow.target, len(sent)) for path, sent in relay.taken()] == [(OTHER_POD, 63), (OTHER_POD, 39)]
    assert relay.outcomes == {Outcome.ADOPTED: 1}
    assert relay.core.flows.unconfirmed == 1
    relay.core.receive_from_router(path, b"\x40" + bytes(40), 0.1)
    relay.receive(data[:9] + bytes(30))
    assert relay.core.flows.unconfirmed == 0


def test_a_tag_is_followed_among_the_routers_of_one_address() -> None:
    relay = PlayedRelay()
    established(relay)
    talk, _ = established(relay, name="b")
    relay.receive(tagged("b"), now=talk.now)
    assert [path.flow.target for path, _ in relay.taken()] == [OTHER_POD]
    assert relay.outcomes == {Outcome.ACCEPTED: 2}


def test_tunnels_of_other_replicas_are_not_taken_in_the_shutdown_nor_too_many_at_once() -> None:
    relay = PlayedRelay()
    for number in range((MOVES_PER_SECOND.pieces or 0) + 3):
        relay.receive(tagged("a"), source(number), now=10.0)
    assert relay.drops == {Dropped.TOO_MANY: 3}
    relay.core.accepting = False
    relay.receive(tagged("a"), now=12.0)
    assert relay.drops == {Dropped.TOO_MANY: 3, Dropped.UNKNOWN_FLOW: 1}


def test_a_flood_of_tags_evicts_no_tunnel_in_use() -> None:
    relay = PlayedRelay(limits={"max_flows": 40, "max_unconfirmed": 8})
    talk, _ = established(relay)
    for number in range(60):
        relay.receive(tagged("a"), source(number), now=talk.now)
    assert len(relay.core.flows) == 9
    relay.taken()
    assert echoed(talk, b"still here")


def test_a_router_without_connection_ids_is_found_by_the_address() -> None:
    talk = conversation(connection_id_length=0)
    talk.play()
    assert connected(talk)
    assert echoed(talk, b"hello")
    assert talk.relay.core.flows.unconfirmed == 0
    talk.relay.act(talk.relay.core.end_all())
    assert (talk.relay.open, len(talk.relay.core.flows)) == ({}, 0)


def test_ids_of_different_lengths_are_told_apart() -> None:
    relay = PlayedRelay({"a": POD, "b": OTHER_POD})
    one = conversation(relay=relay, connection_id_length=18)
    one.play()
    two = Conversation(relay, client("b"), {POD: RouterPod(), OTHER_POD: RouterPod(connection_id_length=6)})
    two.address = source(9)
    two.begin()
    two.play()
    assert connected(two)
    assert echoed(one, b"hello")
    assert list(relay.core.flows._sizes) == [18, 6]


@pytest.mark.parametrize(
    "data", [b"", b"\x40", b"\x40" + bytes(40), b"\xe0\0\0\0\1\x08" + bytes(40), b"\xc0", bytes(1_300)]
)
def test_datagrams_of_unknown_tunnels_are_dropped_silently(data: bytes) -> None:
    relay = PlayedRelay()
    relay.receive(data)
    assert relay.drops == {Dropped.UNKNOWN_FLOW: 1}
    assert (relay.answers, relay.open, list(relay.forwarded)) == ([], {}, [])


def test_an_unknown_id_in_a_handshake_does_not_hit_another_tunnel_of_the_address() -> None:
    relay = PlayedRelay()
    talk, _ = established(relay)
    relay.receive(b"\xe0\0\0\0\1\x08" + os.urandom(8) + bytes(40), now=talk.now)
    assert relay.drops == {Dropped.UNKNOWN_FLOW: 1}


def test_half_an_hour_of_keep_alives_keeps_a_tunnel() -> None:
    talk = conversation(relay=PlayedRelay(idle_s=60))
    talk.play()
    for _ in range(180):
        talk.now += 10
        talk.worker.send_ping(1)
        talk.play(3)
        talk.relay.act(talk.relay.core.expire(talk.now))
    assert echoed(talk, b"still there")
    assert talk.relay.outcomes == {Outcome.ACCEPTED: 1}


# --- Ends -------------------------------------------------------------------------------------------------------------


def test_a_silent_tunnel_is_forgotten_after_the_idle_time() -> None:
    relay = PlayedRelay(idle_s=300)
    talk, _ = established(relay)
    relay.act(relay.core.expire(talk.now + 299))
    assert len(relay.open) == 1
    relay.act(relay.core.expire(talk.now + 300))
    assert relay.open == {}
    assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.COMPLETED: 1}
    flows = relay.core.flows
    left = [flows._by_id, flows._by_client, flows._at_address, flows._sizes]
    assert (any(left), flows.moved) == (False, 0)


def test_a_router_that_does_not_answer_is_an_error_and_a_client_that_does_not_go_on_is_none() -> None:
    relay = PlayedRelay()
    relay.receive(first_flight()[0], source(1))
    relay.receive(first_flight()[0], source(2))
    relay.core.receive_from_router(list(relay.open)[1], b"\xc0", 0.1)
    relay.act(relay.core.expire(9.9))
    assert len(relay.open) == 2
    relay.act(relay.core.expire(10.0))
    assert relay.open == {}
    assert relay.outcomes == {Outcome.ACCEPTED: 2, Outcome.RELAY_ERROR: 1, Outcome.COMPLETED: 1}


def test_a_lost_path_ends_its_tunnel_only_if_it_has_no_other() -> None:
    relay = PlayedRelay()
    talk, _ = established(relay)
    talk.address = source(5)
    assert echoed(talk, b"moved")
    first, second = relay.open
    relay.act(relay.core.lost(first))
    assert list(relay.open) == [second]
    assert echoed(talk, b"goes on")
    assert relay.core.lost(first) == []
    relay.act(relay.core.lost(second))
    assert relay.open == {}
    assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.RELAY_ERROR: 1}


def test_a_moved_tunnel_is_forgotten_as_a_whole() -> None:
    relay = PlayedRelay()
    talk, _ = established(relay)
    talk.address = source(5)
    assert echoed(talk, b"moved")
    relay.receive(unfinished(), source(7), now=talk.now)
    relay.act(relay.core.end_all())
    assert (relay.open, len(relay.core.flows), relay.core.flows.moved, relay.core.unresolved) == ({}, 0, 0, 0)
    assert relay.outcomes == {Outcome.ACCEPTED: 1, Outcome.COMPLETED: 1, Outcome.UNRESOLVED: 1}


def test_an_empty_table_has_nobody_to_give_up() -> None:
    table = FlowTable(max_flows=0, max_unconfirmed=1)
    assert list(table.place(0.0)) == []
    assert table.full
