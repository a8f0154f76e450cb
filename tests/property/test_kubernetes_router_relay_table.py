"""Any order of datagrams, answers, errors and time: every path has its socket, bounds hold, and nothing is left at the end."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kubernetes_router.relay.core import FLIGHTS
from kubernetes_router.relay.flows import IDS, PATHS, Path
from kubernetes_router.relay.outcomes import Outcome
from kubernetes_router.targets import NoTarget
from support.quic_clients import OTHER_POD, POD, PlayedRelay, first_flight
from tunnel_protocol.quic.pod_tag import pod_tag

FLIGHTS_OF = {
    name: [first_flight(name, long=long) for long in (False, True)] for name in ("a", "b", "later", "x", None)
}
ADDRESSES = [(f"192.0.2.{host}", port) for host in range(3) for port in (1, 2)]
CHOSEN = [b"", b"12345678", b"abcdefgh", b"eighteen-bytes-lon", pod_tag("b") + b"123456"]

STEP = st.one_of(
    st.tuples(st.just("flight"), st.sampled_from(list(FLIGHTS_OF)), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("short"), st.sampled_from(CHOSEN)),
    st.tuples(st.just("long"), st.sampled_from(CHOSEN)),
    st.tuples(st.just("bytes"), st.binary(max_size=30)),
    st.tuples(st.just("answer"), st.integers(0, 20), st.sampled_from(CHOSEN), st.booleans()),
    st.tuples(st.just("lost"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 5.0, 11.0, 61.0, 301.0])),
)


def paths(relay: PlayedRelay) -> list[Path]:
    return [path for flow in relay.core.flows.all() for path in flow.paths.values()]


def check(relay: PlayedRelay) -> None:
    table = relay.core.flows
    known = paths(relay)
    assert Counter(map(id, known)) == Counter(map(id, relay.open)), "each path has one socket"
    assert len(table) <= 4
    assert table.unconfirmed <= 2
    assert table.moved == len(known) - len(table)
    assert set(table._by_id) == {one for flow in table.all() for one in flow.ids}
    assert all(table._by_id[one] is flow for flow in table.all() for one in flow.ids)
    assert sum(table._sizes.values()) == len(table._by_id)
    assert list(table._sizes) == sorted(table._sizes, reverse=True)
    assert {flow for flows in table._at_address.values() for flow in flows} == set(table.all())
    assert all(flow.paths for flow in table.all())
    assert all(len(flow.paths) <= (PATHS.pieces or 0) and len(flow.ids) <= (IDS.pieces or 0) for flow in table.all())
    assert set(table._by_client.values()) <= set(table.all())
    assert relay.core.unresolved <= (FLIGHTS.pieces or 0)
    ended = relay.outcomes[Outcome.COMPLETED] + relay.outcomes[Outcome.RELAY_ERROR]
    begun = relay.outcomes[Outcome.ACCEPTED] + relay.outcomes[Outcome.ADOPTED]
    assert begun - ended <= len(table) <= begun


@given(st.lists(st.tuples(st.sampled_from(ADDRESSES), STEP), max_size=60))
@settings(max_examples=300)
def test_paths_and_sockets_belong_together_whatever_happens(steps: list[tuple[Any, Any]]) -> None:
    names = {"a": POD, "b": OTHER_POD, "later": NoTarget.NOT_READY}
    relay = PlayedRelay(names, limits={"max_flows": 4, "max_unconfirmed": 2})
    now = 1.0
    for address, (kind, *details) in steps:
        now += 0.01
        if kind == "flight":
            name, long, which = details
            flight = FLIGHTS_OF[name][long]
            relay.receive(flight[which % len(flight)], address, now)
        elif kind == "short":
            relay.receive(b"\x40" + details[0] + bytes(30), address, now)
        elif kind == "long":
            relay.receive(b"\xe0\0\0\0\1" + bytes([len(details[0])]) + details[0] + bytes(30), address, now)
        elif kind == "bytes":
            relay.receive(details[0], address, now)
        elif kind == "wait":
            now += details[0]
            relay.act(relay.core.expire(now))
        elif relay.open:
            path = list(relay.open)[details[0] % len(relay.open)]
            if kind == "lost":
                relay.act(relay.core.lost(path))
            else:
                _, chosen, long = details
                head = b"\xe0\0\0\0\1\0" + bytes([len(chosen)]) + chosen if long else b"\x40"
                relay.core.receive_from_router(path, head + bytes(30), now)
        check(relay)
    relay.act(relay.core.end_all())
    check(relay)
    table = relay.core.flows
    assert (len(table), relay.open, relay.core.unresolved) == (0, {}, 0)
    assert not any((table._by_id, table._by_client, table._at_address, table._sizes, table.moved))
    assert len(relay.core._sources) == 0
