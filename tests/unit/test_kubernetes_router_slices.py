"""EndpointSlices and the targets in them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubernetes_router.slices import SLICES, TARGETS, EndpointSlice, PortNames, SliceStore, TooManyError, targets_of
from kubernetes_router.targets import Target
from support.kubernetes_objects import endpoint, endpoint_slice

NAMES = PortNames(grpc="grpc", quic="quic")


def decoded(document: Any) -> EndpointSlice:
    return msgspec.json.decode(msgspec.json.encode(document), type=EndpointSlice)


def found(document: Any) -> list[Target]:
    return list(targets_of(decoded(document), NAMES))


def test_an_endpoint_is_its_pod_with_first_address_and_the_named_ports() -> None:
    document = endpoint_slice("one", endpoint("router-0", "10.0.0.1", "10.0.0.2"), grpc_port=7, quic_port=8)
    assert found(document) == [Target("router-0", "10.0.0.1", 7, 8)]


@pytest.mark.parametrize("written", ["fd00::1", "FD00:0:0::1"])
def test_addresses_may_be_ipv6(written: str) -> None:
    (target,) = found(endpoint_slice("one", endpoint("router-0", written)))
    assert (target.ip, target.grpc_address) == ("fd00::1", "[fd00::1]:50071")


@pytest.mark.parametrize(
    ("conditions", "counts"),
    [
        (None, True),
        ({}, True),
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": True, "serving": False}, True),
        ({"ready": None, "terminating": None}, True),
        ({"ready": False, "serving": True}, False),
        ({"ready": True, "terminating": True}, True),
        ({"ready": True, "serving": False, "terminating": True}, True),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"terminating": True, "serving": True}, False),
    ],
)
def test_ready_false_excludes_and_terminating_does_so_unless_ready_is_true(conditions: Any, counts: bool) -> None:
    document = endpoint_slice("one", {**endpoint("router-0", "10.0.0.1"), "conditions": conditions})
    assert bool(found(document)) is counts


@pytest.mark.parametrize(
    "change",
    [
        {"targetRef": None},
        {"targetRef": {"kind": "Node", "name": "router-0"}},
        {"targetRef": {"kind": "Pod"}},
        {"targetRef": None, "hostname": "10-0-0-1"},
        {"addresses": []},
        {"addresses": None},
        {"addresses": ["router.example.org"]},
    ],
)
def test_what_names_no_pod_or_has_no_address_is_no_target(change: Any) -> None:
    assert found(endpoint_slice("one", {**endpoint("router-0", "10.0.0.1"), **change})) == []


def test_a_reference_without_kind_is_a_pod() -> None:
    document = endpoint_slice("one", {**endpoint("router-0", "10.0.0.1"), "targetRef": {"name": "router-9"}})
    assert [target.pod_name for target in found(document)] == ["router-9"]


@pytest.mark.parametrize(
    ("ports", "counts"),
    [
        ([{"name": "grpc", "port": 1}, {"name": "quic", "port": 2, "protocol": "UDP"}], True),
        ([{"name": "grpc", "port": 1, "protocol": "tcp"}, {"name": "quic", "port": 2, "protocol": "udp"}], True),
        ([{"name": "grpc", "port": 1}, {"name": "quic", "port": 2}], False),
        ([{"name": "grpc", "port": 1, "protocol": "UDP"}, {"name": "quic", "port": 2, "protocol": "UDP"}], False),
        ([{"name": "grpc", "port": 0}, {"name": "quic", "port": 2, "protocol": "UDP"}], False),
        ([{"name": "grpc", "port": None}, {"name": "quic", "port": 2, "protocol": "UDP"}], False),
        ([{"name": "other", "port": 1}, {"name": "quic", "port": 2, "protocol": "UDP"}], False),
        ([{"name": "grpc", "port": 1}], False),
        ([{"port": 1}], False),
        ([], False),
        (None, False),
    ],
)
def test_a_slice_needs_both_named_ports(ports: Any, counts: bool) -> None:
    document = {**endpoint_slice("one", endpoint("router-0", "10.0.0.1")), "ports": ports}
    assert bool(found(document)) is counts


def test_a_slice_without_endpoints_is_empty() -> None:
    assert found({**endpoint_slice("one"), "endpoints": None}) == []


def ips(store: SliceStore) -> dict[str, str]:
    return {target.pod_name: target.ip for target in store.targets()}


def store_of(*documents: Any) -> SliceStore:
    store = SliceStore(NAMES)
    for document in documents:
        store.apply(decoded(document))
    return store


def test_of_a_pod_in_several_slices_the_slice_observed_last_wins() -> None:
    old, new = endpoint("router-0", "10.0.0.1"), endpoint("router-0", "10.0.0.2")
    store = store_of(endpoint_slice("b", old), endpoint_slice("a", new))
    assert ips(store) == {"router-0": "10.0.0.2"}
    store.apply(decoded(endpoint_slice("b", old)))
    assert ips(store) == {"router-0": "10.0.0.1"}
    store.delete("b")
    assert ips(store) == {"router-0": "10.0.0.2"}


def test_a_slice_that_no_longer_lists_a_pod_as_ready_leaves_it_to_the_others() -> None:
    store = store_of(
        endpoint_slice("a", endpoint("router-0", "10.0.0.1"), endpoint("router-1", "10.0.0.9")),
        endpoint_slice("a", endpoint("router-1", "10.0.0.9")),
    )
    assert ips(store) == {"router-1": "10.0.0.9"}


def test_deleting_an_unknown_slice_changes_nothing() -> None:
    store = store_of(endpoint_slice("a", endpoint("router-0", "10.0.0.1")))
    store.delete("b")
    assert ips(store) == {"router-0": "10.0.0.1"}


def test_slices_are_bounded_in_number() -> None:
    store = store_of(*(endpoint_slice(f"s{index}") for index in range(SLICES.pieces or 0)))
    with pytest.raises(TooManyError, match=r"kubernetes_router\.slices"):
        store.apply(decoded(endpoint_slice("one more")))
    store.apply(decoded(endpoint_slice("s0", endpoint("router-0", "10.0.0.1"))))
    assert ips(store) == {"router-0": "10.0.0.1"}


def test_targets_are_bounded_in_number() -> None:
    half = (TARGETS.pieces or 0) // 2
    large = [endpoint(f"router-{index}", "10.0.0.1") for index in range(half)]
    store = store_of(endpoint_slice("a", *large), endpoint_slice("b", *large))
    with pytest.raises(TooManyError, match=r"kubernetes_router\.targets"):
        store.apply(decoded(endpoint_slice("c", endpoint("one-more", "10.0.0.1"))))
    store.delete("b")
    store.apply(decoded(endpoint_slice("c", endpoint("one-more", "10.0.0.1"))))
    assert ips(store)["one-more"] == "10.0.0.1"


_KEYS = st.sampled_from(
    ["name", "port", "protocol", "addresses", "conditions", "targetRef", "kind", "ready", "terminating"]
)
_TEXT = st.sampled_from(["router-0", "router-1", "grpc", "quic", "Pod", "10.0.0.1", "fd00::1", "TCP", "udp", "", "x"])
_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=12,
)


def nearly(**fields: Any) -> st.SearchStrategy[Any]:
    """An object whose fields are as they should be, or anything."""
    return st.fixed_dictionaries({name: st.just(value) | _VALUE for name, value in fields.items()})


_ENDPOINTS = st.lists(nearly(**endpoint("router-0", "10.0.0.1")), max_size=3)
_PORTS = st.tuples(nearly(name="grpc", port=1), nearly(name="quic", port=2, protocol="UDP"))


@given(
    st.fixed_dictionaries({"metadata": nearly(name="one"), "endpoints": _ENDPOINTS, "ports": _PORTS | _VALUE}) | _VALUE
)
def test_any_document_is_refused_as_a_whole_or_gives_usable_targets(document: Any) -> None:
    try:
        targets = found(document)
    except msgspec.ValidationError:
        return
    for target in targets:
        assert target.pod_name
        assert target.ip
        assert 0 < target.grpc_port <= 65535
        assert 0 < target.quic_port <= 65535
