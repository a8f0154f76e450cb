"""Discovery of routers: what is read out of DNS, what a failing lookup leads to, what is published."""

import asyncio
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from router.control_plane.discovery import Discovery, HeadlessService, PlainDns, SelfOnly
from router.control_plane.replicas import (
    LookupFailedError,
    Replica,
    SrvRecord,
    dashed_address,
    from_addresses,
    own_replica,
    pod_of,
    pod_replica,
    render_hostname,
    split_port,
    with_siblings,
)
from router.control_plane.resolver import Resolver
from router.control_plane.watch import WatchCell, WatchPublisher, build_response, remote_watch_urls
from router.telemetry.metrics import Metrics
from support.name_server import name_server
from tunnel_protocol.control.stargate_pb2 import StargateInfo, WatchStargatesResponse

DNS = "routers-headless.ns.svc.cluster.local"
TEMPLATE = "{pod_name}.{namespace}.example"


class FakeResolver:
    def __init__(self) -> None:
        self.records: list[SrvRecord] | LookupFailedError = []
        self.ips: list[str] | LookupFailedError = []
        self.pods: dict[str, list[str]] = {}
        """Addresses by the first label of a name."""
        self.asked: list[str] = []

    async def srv(self, name: str) -> list[SrvRecord]:
        self.asked.append(name)
        if isinstance(self.records, LookupFailedError):
            raise self.records
        return self.records

    async def addresses(self, name: str) -> list[str]:
        self.asked.append(name)
        if name.endswith(f".{DNS}"):
            if (label := name.partition(".")[0]) not in self.pods:
                raise LookupFailedError("no such name")
            return self.pods[label]
        if isinstance(self.ips, LookupFailedError):
            raise self.ips
        return self.ips


def headless(
    resolver: FakeResolver, template: str = TEMPLATE, *, own: str = "10.0.0.1:50071", one_name_per_pod: bool = True
) -> HeadlessService:
    return HeadlessService(
        resolver,  # type: ignore[arg-type]
        dns_name=DNS,
        template=template,
        pod_name="pod-0",
        namespace="ns",
        advertise_addr=own,
        one_name_per_pod=one_name_per_pod,
    )


async def replicas(lookup: Any) -> list[Replica]:
    found: list[Replica] = await lookup.replicas()
    return found


# Reading answers


def test_hostname_template_is_filled_in() -> None:
    assert render_hostname("{pod_name}.{namespace}.example", "p", "n") == "p.n.example"


def test_own_entry_of_a_headless_service_is_its_pod_without_http_address() -> None:
    assert headless(FakeResolver()).own == Replica("pod-0", "pod-0.ns.example:50071", "")


def test_peer_of_a_headless_service_looks_the_same_with_its_own_port() -> None:
    assert pod_replica(TEMPLATE, "pod-7", "ns", 9) == Replica("pod-7", "pod-7.ns.example:9", "")


@pytest.mark.parametrize(
    ("target", "pod"),
    [
        (f"pod-1.{DNS}.", "pod-1"),
        (f"pod-1.{DNS}", "pod-1"),
        (f"pod-1.{DNS.upper()}", "pod-1"),
        (f"a.pod-1.{DNS}.", None),
        (f"{DNS}.", None),
        ("pod-1.elsewhere.", None),
        ("pod-1", None),
        (f".{DNS}", None),
    ],
)
def test_srv_target_names_a_pod_only_directly_under_the_service(target: str, pod: str | None) -> None:
    assert pod_of(target, DNS + ".") == pod


async def test_srv_records_give_pods_with_their_ports_and_self_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    resolver = FakeResolver()
    resolver.records = [
        SrvRecord(f"pod-2.{DNS}.", 50071),
        SrvRecord("foreign.example.", 1),
        SrvRecord(f"pod-1.{DNS}.", 60000),
    ]
    lookup = headless(resolver)
    expected = [
        Replica("pod-0", "pod-0.ns.example:50071"),
        Replica("pod-1", "pod-1.ns.example:60000"),
        Replica("pod-2", "pod-2.ns.example:50071"),
    ]
    assert await replicas(lookup) == expected
    assert await replicas(lookup) == expected
    assert resolver.asked.count(f"_grpc._tcp.{DNS}") == 2
    assert capsys.readouterr().out.count("ignoring SRV target outside headless service domain") == 1


# One name per pod: a headless Service can list a pod of a Deployment by its name and by its address with dashes


def names(found: list[Replica]) -> list[str]:
    return [replica.stargate_id for replica in found]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("10-244-1-5", "10.244.1.5"),
        ("fd00--2", "fd00::2"),
        ("2001-db8-0-0-0-0-0-1", "2001:db8::1"),
        ("router-0", None),
        ("10-244-1", None),
        ("10-244-1-256", None),
        ("router-7d4b9-x2x9z", None),
    ],
)
def test_a_name_made_of_an_address_is_recognized(name: str, address: str | None) -> None:
    found = dashed_address(name)
    assert (None if found is None else str(found)) == address


async def test_a_pod_listed_by_name_and_by_address_is_published_once_by_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    resolver = FakeResolver()
    resolver.records = [
        SrvRecord(f"{name}.{DNS}.", 50071)
        for name in ("pod-0", "10-0-0-1", "pod-1", "10-0-0-2", "10-0-0-3", "fd00--7", "pod-6")
    ]
    resolver.pods = {"pod-0": ["10.0.0.1"], "pod-1": ["10.0.0.2"], "pod-6": ["10.0.0.6", "fd00::7"]}
    lookup = headless(resolver)
    assert names(await replicas(lookup)) == ["10-0-0-3", "pod-0", "pod-1", "pod-6"]
    await replicas(lookup)
    output = capsys.readouterr().out
    assert output.count("second name") == 1
    assert "10-0-0-1, 10-0-0-2, fd00--7" in output


async def test_a_service_that_lists_addresses_only_names_the_own_pod_once() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"{name}.{DNS}.", 50071) for name in ("10-0-0-1", "10-0-0-2")]
    assert await replicas(headless(resolver)) == [
        Replica("10-0-0-2", "10-0-0-2.ns.example:50071"),
        Replica("pod-0", "pod-0.ns.example:50071"),
    ]
    resolver.records = [SrvRecord(f"fd00--1.{DNS}.", 50071)]
    assert names(await replicas(headless(resolver, own="[fd00::1]:50071"))) == ["pod-0"]


async def test_the_own_pod_under_a_host_name_of_its_own_is_published_once() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"{name}.{DNS}.", 50071, ("10.0.0.1",)) for name in ("hostname", "10-0-0-1")]
    assert names(await replicas(headless(resolver))) == ["pod-0"]
    resolver.records = [SrvRecord(f"hostname.{DNS}.", 50071)]
    resolver.pods = {"hostname": ["10.0.0.1"]}
    assert names(await replicas(headless(resolver))) == ["pod-0"]


async def test_another_port_is_another_router_and_unknown_addresses_are_published() -> None:
    resolver = FakeResolver()
    resolver.records = [
        SrvRecord(f"10-0-0-1.{DNS}.", 1),
        SrvRecord(f"pod-1.{DNS}.", 50071, ("10.0.0.1",)),
        SrvRecord(f"pod-1.{DNS}.", 2, ("10.0.0.1",)),
        SrvRecord(f"pod-2.{DNS}.", 50071),
        SrvRecord(f"10-0-0-2.{DNS}.", 50071),
    ]
    assert await replicas(headless(resolver)) == [
        Replica("10-0-0-1", "10-0-0-1.ns.example:1"),
        Replica("10-0-0-2", "10-0-0-2.ns.example:50071"),
        Replica("pod-0", "pod-0.ns.example:50071"),
        Replica("pod-1", "pod-1.ns.example:2"),
        Replica("pod-2", "pod-2.ns.example:50071"),
    ]


async def test_names_alone_need_no_further_lookup() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"{name}.{DNS}.", 50071) for name in ("pod-0", "pod-1", "10-0-0-1")]
    assert names(await replicas(headless(resolver))) == ["pod-0", "pod-1"]
    assert resolver.asked == [f"_grpc._tcp.{DNS}"]


async def test_with_the_older_release_line_every_name_of_the_service_is_published() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"{name}.{DNS}.", 50071, ("10.0.0.1",)) for name in ("10-0-0-1", "pod-0")]
    assert names(await replicas(headless(resolver, one_name_per_pod=False))) == ["10-0-0-1", "pod-0"]
    assert names(await replicas(headless(resolver))) == ["pod-0"]


async def test_own_srv_record_keeps_its_own_port() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"pod-0.{DNS}.", 7)]
    assert await replicas(headless(resolver)) == [Replica("pod-0", "pod-0.ns.example:7")]


async def test_only_foreign_srv_records_leave_self() -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord("foreign.example.", 1)]
    assert await replicas(headless(resolver)) == [Replica("pod-0", "pod-0.ns.example:50071")]


async def test_template_that_gives_all_pods_one_address_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    resolver = FakeResolver()
    resolver.records = [SrvRecord(f"pod-1.{DNS}.", 50071)]
    lookup = headless(resolver, "everyone.example")
    await replicas(lookup)
    await replicas(lookup)
    assert capsys.readouterr().out.count("several pods render to one address") == 1


def test_plain_addresses_use_the_own_port_and_drop_loopback_aliases() -> None:
    own = own_replica("router", "10.0.0.1:50071", 8000)
    addresses = ["10.0.0.2", "127.0.0.1", "0.0.0.0", "::", "::1", "fd00::2", "10.0.0.2"]
    assert from_addresses(addresses, own) == [
        Replica("10.0.0.2:50071", "10.0.0.2:50071"),
        Replica("[fd00::2]:50071", "[fd00::2]:50071"),
        Replica("router", "10.0.0.1:50071", "10.0.0.1:8000"),
    ]


def test_loopback_is_accepted_only_as_the_own_address() -> None:
    own = own_replica("router", "127.0.0.1:50071", 8000)
    assert from_addresses(["127.0.0.1", "127.0.0.2"], own) == [own]


def test_ipv6_scope_stays_in_the_advertised_address_only() -> None:
    own = own_replica("router", "[fe80::1%eth0]:50071", 8000)
    assert own == Replica("router", "[fe80::1%eth0]:50071", "[fe80::1]:8000")
    assert from_addresses(["fe80::1%eth0"], own) == [own]


async def test_self_only_mode_shows_exactly_the_configured_entry() -> None:
    own = own_replica("router", "10.0.0.1:50071", 8123)
    assert await replicas(SelfOnly(own)) == [Replica("router", "10.0.0.1:50071", "10.0.0.1:8123")]


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x"])
def test_address_without_host_or_port_is_an_error(address: str) -> None:
    with pytest.raises(ValueError, match="not host:port"):
        split_port(address)


# Several processes on a host


def test_siblings_are_published_and_other_hosts_have_as_many_processes() -> None:
    own = Replica("r-1", "10.0.0.1:50072", "10.0.0.1:8000")
    sibling = Replica("r-0", "10.0.0.1:50071", "10.0.0.1:8000")
    pod = Replica("pod", "pod.example:50071")
    found = with_siblings([own, Replica("[fd00::2]:50072", "[fd00::2]:50072"), pod], own, [sibling])
    assert found == sorted(
        [
            own,
            sibling,
            pod,
            Replica("[fd00::2]:50072", "[fd00::2]:50072"),
            Replica("[fd00::2]:50071", "[fd00::2]:50071"),
        ]
    )


async def test_siblings_are_in_every_round_also_without_an_answer() -> None:
    resolver = FakeResolver()
    own, sibling = Replica("r-0", "10.0.0.1:50071", "x"), Replica("r-1", "10.0.0.1:50072", "x")
    lookup = PlainDns(resolver, dns_name="routers", own=own)  # type: ignore[arg-type]
    discovery = Discovery(lookup, Metrics(), grace_s=0)
    resolver.ips = LookupFailedError("timed out")
    assert await discovery.round() == [own]
    discovery.siblings = (sibling,)
    assert await discovery.round() == [own, sibling]


@pytest.mark.loop("virtual")
async def test_a_change_is_published_without_waiting_for_the_next_round() -> None:
    cell = WatchCell()
    discovery = ScriptedDiscovery([Replica("one", "one:1")], [Replica("two", "two:1")])
    publisher = WatchPublisher(discovery, cell, poll_ms=1000, heartbeat_ms=5000)  # type: ignore[arg-type]
    task = asyncio.create_task(publisher.run())
    first = await cell.newer(0)
    assert first is not None
    publisher.publish_soon()
    second = await cell.newer(first[0])
    assert second is not None
    assert second[1].stargates[0].stargate_id == "two"
    assert asyncio.get_running_loop().time() < 1
    task.cancel()
    await asyncio.wait([task])


# Failing lookups


async def test_failing_lookup_repeats_the_last_good_answer_for_a_grace_time_and_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    resolver = FakeResolver()
    resolver.ips = ["10.0.0.2"]
    own = own_replica("router", "10.0.0.1:50071", 8000)
    lookup = PlainDns(resolver, dns_name="routers", own=own)  # type: ignore[arg-type]
    discovery = Discovery(lookup, Metrics(), grace_s=30, clock=lambda: now)
    both = await discovery.round()
    assert len(both) == 2
    resolver.ips = LookupFailedError("timed out")
    for now in (1.0, 30.0):  # noqa: B007 (the clock)
        assert await discovery.round() == both
    for now in (30.5, 31.0):  # noqa: B007 (the clock)
        assert await discovery.round() == [own]
    resolver.ips = ["10.0.0.3"]
    assert len(await discovery.round()) == 2

    output = capsys.readouterr().out
    assert output.count("dns lookup failed") == 1
    assert output.count("publishing only this router") == 1
    assert output.count("discovery works again") == 1


async def test_lookup_that_never_worked_yields_self() -> None:
    resolver = FakeResolver()
    resolver.records = LookupFailedError("no such name")
    lookup = headless(resolver)
    assert await Discovery(lookup, Metrics(), grace_s=30).round() == [lookup.own]


# Responses


def test_response_is_sorted_and_unique() -> None:
    response = build_response(
        [Replica("b", "b:1"), Replica("a", "a:1"), Replica("b", "b:1"), Replica("a", "a:2")], ["u", "v"], None
    )
    assert response == WatchStargatesResponse(
        stargates=[
            StargateInfo(stargate_id="a", advertise_addr="a:2"),
            StargateInfo(stargate_id="b", advertise_addr="b:1"),
        ],
        watch_stargate_urls=["u", "v"],
    )


@pytest.mark.parametrize("order", [1, -1])
def test_entry_with_an_id_beats_one_without(order: int) -> None:
    response = build_response([Replica("", "a:1"), Replica("id", "a:1")][::order], [], None)
    assert [info.stargate_id for info in response.stargates] == ["id"]


def test_entries_without_id_are_kept_by_address() -> None:
    response = build_response([Replica("", "b:1"), Replica("", "a:1")], [], None)
    assert [info.advertise_addr for info in response.stargates] == ["a:1", "b:1"]


def test_dial_override_goes_trimmed_into_every_entry() -> None:
    response = build_response([Replica("a", "a:1"), Replica("b", "b:1")], [], " lb:443 ")
    assert {info.grpc_pylon_dial_addr for info in response.stargates} == {"lb:443"}


def test_remote_urls_lose_own_names_blanks_and_repeats() -> None:
    urls = [
        " http://west:50071 ",
        "",
        "  ",
        "west:50071",
        "10.0.0.1:50071",
        "http://10.0.0.1:50071",
        f"http://{DNS}:50071/",
        "routers.ns.svc.cluster.local:50071",
        "https://east",
        "not a url:x",
        "http://[::1]:5",
        "http://:80",
    ]
    assert remote_watch_urls(urls, advertise_addr="10.0.0.1:50071", dns_name=DNS) == [
        "http://[::1]:5",
        "https://east",
        "http://:80",
        "not a url:x",
        " http://west:50071 ".strip(),
    ]


# Watching


def info(name: str) -> WatchStargatesResponse:
    return WatchStargatesResponse(stargates=[StargateInfo(stargate_id=name)])


async def test_reader_gets_the_current_value_once_and_then_only_newer_ones() -> None:
    cell = WatchCell()
    cell.publish(info("a"))
    newest = await cell.newer(0)
    assert newest is not None
    assert newest[1] == info("a")
    waiting = asyncio.create_task(cell.newer(newest[0]))
    await asyncio.sleep(0)
    assert not waiting.done()
    cell.publish(info("a"))  # a heartbeat counts
    newest = await waiting
    assert newest is not None
    cell.publish(info("b"))
    cell.publish(info("c"))
    newest = await cell.newer(newest[0])
    assert newest is not None
    assert newest[1] == info("c")
    cell.close()
    assert await cell.newer(0) is None


async def test_first_message_never_names_nobody_but_an_url_alone_is_enough() -> None:
    cell = WatchCell()
    waiting = asyncio.create_task(cell.newer(0))
    await asyncio.sleep(0)
    cell.publish(WatchStargatesResponse())
    await asyncio.sleep(0)
    assert not waiting.done()
    cell.publish(WatchStargatesResponse(watch_stargate_urls=["u"]))
    assert await waiting is not None


class ScriptedDiscovery:
    """One answer per round; the last one for ever."""

    def __init__(self, *rounds: list[Replica]) -> None:
        self.rounds = list(rounds)

    async def round(self) -> list[Replica]:
        return self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]


@pytest.mark.loop("virtual")
async def test_publishes_at_once_on_change_and_as_heartbeat() -> None:
    cell = WatchCell()
    one, two = [Replica("one", "one:1")], [Replica("two", "two:1")]
    discovery = ScriptedDiscovery(one, one, two)
    publisher = WatchPublisher(discovery, cell, poll_ms=1000, heartbeat_ms=5000)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(publisher.run())
    seen, published = 0, []
    while len(published) < 4:
        newer = await cell.newer(seen)
        assert newer is not None
        seen = newer[0]
        published.append((round(loop.time()), newer[1].stargates[0].stargate_id))
    task.cancel()
    await asyncio.wait([task])
    assert await cell.newer(seen) is None

    assert published == [(0, "one"), (2, "two"), (7, "two"), (12, "two")]


async def test_cancelling_the_publisher_ends_a_round_that_never_returns() -> None:
    class Stuck:
        async def round(self) -> list[Replica]:
            await asyncio.Event().wait()
            raise AssertionError

    cell = WatchCell()
    task = asyncio.create_task(
        WatchPublisher(Stuck(), cell, poll_ms=1, heartbeat_ms=1).run()  # type: ignore[arg-type]
    )
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await cell.newer(0) is None


# The resolver against a name server


async def test_resolver_reads_srv_and_both_address_families() -> None:
    async with name_server() as server:
        server.table = {
            ("_grpc._tcp.r.", "SRV"): ["0 0 50071 pod-0.r.", "0 0 6 pod-1.r."],
            ("r.", "A"): ["10.0.0.1", "10.0.0.2"],
            ("r.", "AAAA"): ["fd00::1"],
            ("four.", "A"): ["10.0.0.4"],
        }
        lookups = Resolver(ttl_cap_s=0, nameserver=server.address)
        assert sorted(await lookups.srv("_grpc._tcp.r")) == [("pod-0.r.", 50071, ()), ("pod-1.r.", 6, ())]
        server.additional = {
            ("POD-0.r.", "A"): ["10.0.0.7"],
            ("pod-0.r.", "AAAA"): ["fd00::7"],
            ("pod-1.r.", "TXT"): ["x"],
        }
        assert sorted(await lookups.srv("_grpc._tcp.r")) == [
            ("pod-0.r.", 50071, ("10.0.0.7", "fd00::7")),
            ("pod-1.r.", 6, ()),
        ]
        server.additional = {}
        assert sorted(await lookups.addresses("r")) == ["10.0.0.1", "10.0.0.2", "fd00::1"]
        assert await lookups.addresses("four") == ["10.0.0.4"]


async def test_resolver_failures_are_errors_and_not_remembered() -> None:
    async with name_server() as server:
        lookups = Resolver(ttl_cap_s=60, timeout_s=0.2, nameserver=server.address)
        for name in ("nowhere", "silent"):
            with pytest.raises(LookupFailedError):
                await lookups.srv(name)
        with pytest.raises(LookupFailedError):
            await lookups.addresses("nowhere")
        server.table = {("nowhere.", "A"): ["10.0.0.1"]}
        assert await lookups.addresses("nowhere") == ["10.0.0.1"]


async def test_resolver_keeps_an_answer_for_its_capped_ttl() -> None:
    now = 0.0
    async with name_server() as server:
        server.table = {("_grpc._tcp.r.", "SRV"): ["0 0 1 pod-0.r."]}
        lookups = Resolver(ttl_cap_s=1, nameserver=server.address, clock=lambda: now)
        for now, asked in ((0.0, 1), (0.9, 1), (1.0, 2)):  # noqa: B007 (the clock)
            await lookups.srv("_grpc._tcp.r")
            assert len(server.asked) == asked
        server.ttl = 0
        now = 5.0
        await lookups.srv("_grpc._tcp.r")
        await lookups.srv("_grpc._tcp.r")
        assert len(server.asked) == 4


def test_system_without_resolver_configuration_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any, **__: Any) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver, "Resolver", unreadable)
    with pytest.raises(LookupFailedError, match="failed to read system resolver config"):
        Resolver(ttl_cap_s=1)
