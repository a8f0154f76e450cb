"""Host names of routers and the list of targets."""

import pytest

from kubernetes_router.targets import HostnameTemplate, NoTarget, Target, TargetList
from tunnel_protocol.quic.pod_tag import pod_tag

TEMPLATE = "{pod_name}.routers.{namespace}.svc"
FIRST = Target("router-0", "10.0.0.1", 50071, 50072)
SECOND = Target("router-1", "fd00::1", 50071, 50072)


def targets(template: str = TEMPLATE) -> TargetList:
    return TargetList(HostnameTemplate(template, "nvcf"))


@pytest.mark.parametrize(
    ("template", "host", "pod"),
    [
        (TEMPLATE, "router-0.routers.nvcf.svc", "router-0"),
        (TEMPLATE, "a.b.routers.nvcf.svc", "a.b"),
        (TEMPLATE, "Router-0.routers.nvcf.svc", "Router-0"),
        (TEMPLATE, "router-0.Routers.nvcf.svc", None),
        (TEMPLATE, "router-0.routers.other.svc", None),
        (TEMPLATE, "router-0.routers.nvcf.svc.", None),
        (TEMPLATE, ".routers.nvcf.svc", None),
        (TEMPLATE, "", None),
        ("{pod_name}", "router-0", "router-0"),
        ("{pod_name}", "", None),
        ("aa{pod_name}aa", "aaa", None),
        ("one.example.org", "one.example.org", None),
    ],
)
def test_a_pod_name_is_what_stands_between_the_fixed_parts(template: str, host: str, pod: str | None) -> None:
    assert HostnameTemplate(template, "nvcf").pod(host) == pod


def test_a_host_name_is_the_template_filled_in() -> None:
    assert HostnameTemplate(TEMPLATE, "nvcf").host("router-0") == "router-0.routers.nvcf.svc"
    assert HostnameTemplate("one.example.org", "nvcf").host("router-0") == "one.example.org"


def test_before_the_first_list_nothing_is_ready() -> None:
    found = targets()
    assert (found.complete, found.ready, found.sorted_by_pod_name()) == (False, False, ())
    assert found.quic_target("router-0.routers.nvcf.svc") is NoTarget.NOT_READY


def test_an_empty_list_is_complete_but_not_ready() -> None:
    found = targets()
    assert found.publish([])
    assert (found.complete, found.ready) == (True, False)


def test_server_names_lead_to_address_and_udp_port() -> None:
    found = targets()
    found.publish([SECOND, FIRST])
    assert found.quic_target("router-0.routers.nvcf.svc") == ("10.0.0.1", 50072)
    assert found.quic_target("router-1.routers.nvcf.svc") == ("fd00::1", 50072)
    assert found.quic_target("router-2.routers.nvcf.svc") is NoTarget.NOT_READY
    assert found.quic_target("elsewhere") is NoTarget.UNKNOWN_NAME


def test_targets_are_sorted_and_only_changes_are_told() -> None:
    found, told = targets(), []
    found.on_changed(lambda: told.append(found.sorted_by_pod_name()))
    assert found.publish([SECOND, FIRST])
    assert not found.publish([FIRST, SECOND])
    assert found.publish([SECOND])
    assert told == [(FIRST, SECOND), (SECOND,)]


def test_the_address_of_the_control_plane_has_brackets_around_ipv6() -> None:
    assert (FIRST.grpc_address, SECOND.grpc_address) == ("10.0.0.1:50071", "[fd00::1]:50071")


def test_the_host_name_of_a_target_leads_back_to_it() -> None:
    found = targets()
    found.publish([FIRST])
    assert found.host(FIRST) == "router-0.routers.nvcf.svc"
    assert found.pod(found.host(FIRST)) == "router-0"
    assert found.target("router-0") == FIRST


def test_a_tag_leads_to_the_routers_that_have_it() -> None:
    found = targets()
    assert found.quic_targets_of_tag(pod_tag("router-0")) == []
    found.publish([FIRST, SECOND])
    assert found.quic_targets_of_tag(pod_tag("router-0")) == [("10.0.0.1", 50072)]
    assert found.quic_targets_of_tag(pod_tag("router-1")) == [("fd00::1", 50072)]
    assert found.quic_targets_of_tag(pod_tag("router-2")) == []
    found.publish([SECOND])
    assert found.quic_targets_of_tag(pod_tag("router-0")) == []


def test_pods_with_the_same_tag_are_both_found() -> None:
    names: dict[bytes, str] = {}
    number = 0
    while (other := names.setdefault(pod_tag(f"pod-{number}"), f"pod-{number}")) == f"pod-{number}":
        number += 1
    found = targets()
    found.publish([Target(other, "10.0.0.1", 1, 2), Target(f"pod-{number}", "10.0.0.2", 1, 3)])
    assert sorted(found.quic_targets_of_tag(pod_tag(other))) == [("10.0.0.1", 2), ("10.0.0.2", 3)]
