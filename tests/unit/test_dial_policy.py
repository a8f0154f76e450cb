"""Whom a registration can make the router send datagrams to, and how many."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ports.tunnels import TunnelError
from router.tunnels.addresses import DialTarget, dial_target
from router.tunnels.dial_policy import (
    DIALS,
    DIALS_TO_HOST,
    DIALS_TO_TARGET,
    FAILED_DIALS,
    FIRST_PAUSE_S,
    FREE_FAILURES,
    JITTER,
    LONGEST_PAUSE_S,
    DialPolicy,
    check_dialled_address,
)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("quic://255.255.255.255:9", "broadcast"),
        ("quic://240.0.0.1:9", "reserved"),
        ("quic://0.0.0.0:9", "unspecified"),
        ("quic://0.1.2.3:9", "unspecified"),
        ("quic://[::]:9", "unspecified"),
        ("quic://224.0.0.1:9", "multicast"),
        ("quic://[ff02::1]:9", "multicast"),
        ("quic://169.254.169.254:80", "link-local"),
        ("quic://[fe80::1]:9", "link-local"),
        ("quic://[::ffff:169.254.169.254]:80", "link-local"),
        ("quic://[::ffff:224.0.0.1]:80", "multicast"),
        ("quic://[64:ff9b::a9fe:a9fe]:80", "link-local"),
        ("quic://[2002:e000:1::1]:80", "multicast"),
        ("quic://[::255.255.255.255]:80", "broadcast"),
        ("quic://127.0.0.1:0", "port 0"),
        ("quic://127.0.0.9:50072", "a socket of this router"),
        ("quic://[::ffff:127.0.0.9]:50072", "a socket of this router"),
    ],
)
def test_an_address_at_which_no_inference_server_can_be_is_not_dialled(url: str, why: str) -> None:
    with pytest.raises(TunnelError, match=why):
        check_dialled_address(dial_target(url), is_ours=lambda ip, port: (ip, port) == ("127.0.0.9", 50_072))


@pytest.mark.parametrize(
    "url",
    [
        "quic://127.0.0.1:9",
        "quic://10.1.2.3:4433",
        "quic://[2001:db8::1]:4433",
        "quic://[::1]:9",
        "quic://[64:ff9b::c000:201]:9",
    ],
)
def test_other_addresses_are(url: str) -> None:
    check_dialled_address(dial_target(url), is_ours=lambda _ip, _port: False)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class WithoutJitter(Random):
    def random(self) -> float:
        return 0.0


def target(port: int = 4_433, ip: str = "192.0.2.1") -> DialTarget:
    return DialTarget(ip, port, 4)


def test_a_dial_that_fails_again_is_repeated_ever_more_rarely_until_one_succeeds() -> None:
    clock = Clock()
    policy, pauses = DialPolicy(clock, WithoutJitter()), []
    for _ in range(9):
        began = clock.now
        while True:
            try:
                policy.begin(target())
                break
            except TunnelError:
                clock.now += 0.25
        pauses.append(clock.now - began)
        policy.end(target(), failed=True)
    assert pauses == [0, 0, 0.25, 0.5, 1, 2, 4, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    clock.now += LONGEST_PAUSE_S
    policy.begin(target())
    policy.end(target(), failed=False)
    policy.begin(target())


def test_pauses_are_longer_by_up_to_a_quarter_by_chance_and_differ_from_target_to_target() -> None:
    policy = DialPolicy(Clock(), Random(7))
    pauses = []
    for number in range(200):
        one = target(1 + number)
        for _ in range(FREE_FAILURES + 1):
            policy.begin(one)
            policy.end(one, failed=True)
        pauses.append(policy._failures[one.ip, one.port].not_before - Clock().now)
    assert min(pauses) >= FIRST_PAUSE_S
    assert max(pauses) < FIRST_PAUSE_S * (1 + JITTER)
    # Evenly over the whole range: about 50 in each quarter of it.
    quarters = [int((pause_s / FIRST_PAUSE_S - 1) / JITTER * 4) for pause_s in pauses]
    assert all(30 < quarters.count(quarter) < 70 for quarter in range(4))


@pytest.mark.parametrize(
    ("limit", "targets"),
    [
        (DIALS_TO_TARGET, [target()] * 10),
        (DIALS_TO_HOST, [target(port) for port in range(1, 100)]),
        (DIALS, [target(port, f"192.0.2.{host}") for host in range(1, 200) for port in range(1, 9)]),
    ],
    ids=["target", "host", "all"],
)
def test_dials_under_way_are_bounded_and_a_place_is_free_again_after_each(limit, targets) -> None:
    policy = DialPolicy(Clock(), WithoutJitter())
    for one in targets[: limit.pieces]:
        policy.begin(one)
    with pytest.raises(TunnelError, match="under way"):
        policy.begin(targets[limit.pieces])
    policy.end(targets[0], failed=False)
    policy.begin(targets[0])


def test_only_so_many_failures_are_remembered() -> None:
    policy = DialPolicy(Clock(), WithoutJitter())
    for _ in range(2):
        for number in range((FAILED_DIALS.pieces or 0) + 5):
            one = target(1 + number % 60_000)
            policy.begin(one)
            policy.end(one, failed=True)
    assert len(policy._failures) == FAILED_DIALS.pieces


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans(), st.floats(0, 3)), max_size=60))
def test_nothing_is_left_when_all_dials_have_ended(dials) -> None:
    clock = Clock()
    policy, begun = DialPolicy(clock, WithoutJitter()), []
    for host, port, failed, pause_s in dials:
        clock.now += pause_s
        one = target(port, f"192.0.2.{host}")
        try:
            policy.begin(one)
            begun.append((one, failed))
        except TunnelError:
            if begun:
                ended, how = begun.pop()
                policy.end(ended, failed=how)
    for one, failed in begun:
        policy.end(one, failed=failed)
    assert (policy._to_target, policy._to_host, policy._under_way) == ({}, {}, 0)
