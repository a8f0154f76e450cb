"""Cache affinity keys: equal over the turns of a conversation, never equal for two callers or targets."""

import hashlib
import itertools

import pytest

from router.openai.affinity import SCOPES, GatewayAffinity, ScopedAffinity
from router.openai.keys.caller import GrantedCaller

A, B = GrantedCaller(key_id="a"), GrantedCaller(key_id="b")


def test_a_session_has_one_key_for_one_caller_and_target() -> None:
    affinity = ScopedAffinity()
    assert affinity.of_session(A, "k", "m", "s") == affinity.of_session(A, "k", "m", "s", from_header=True)
    targets: list[tuple[GrantedCaller, str | None, str, str]] = [
        (A, "k", "m", "s"),
        (B, "k", "m", "s"),
        (A, None, "m", "s"),
        (A, "k", "n", "s"),
        (A, "k", "m", "t"),
        (A, "km", "", "s"),
        (A, "k", "ms", ""),
    ]
    keys = [affinity.of_session(*one) for one in targets]
    assert len(set(keys)) == len(keys)
    assert all(len(key) < 128 and key.isascii() for key in keys)


def test_what_looks_like_a_key_is_hashed_and_not_trusted() -> None:
    forged = ScopedAffinity().of_session(A, None, "m", "s")
    assert ScopedAffinity().of_session(B, None, "m", forged, from_header=True) != forged


def test_turns_with_the_same_beginning_share_a_key_and_other_beginnings_have_others() -> None:
    affinity = ScopedAffinity()
    system, user, tools = b'{"role":"system"}', b'{"role":"user","content":"hi"}', b'[{"type":"function"}]'
    sequences = [(system, user), (user,), (tools, system, user), (system + user,), (user, system)]
    keys = [affinity.of_prefix(A, None, "m", parts) for parts in sequences]
    assert len(set(keys)) == len(keys)
    assert affinity.of_prefix(A, None, "m", (system, user)) == keys[0]
    assert affinity.of_prefix(B, None, "m", (system, user)) != keys[0]
    assert affinity.of_prefix(A, None, "m", ()) is None


@pytest.mark.parametrize("affinity", [ScopedAffinity(), GatewayAffinity()])
def test_session_ids_are_bounded_and_have_no_control_characters(affinity: ScopedAffinity | GatewayAffinity) -> None:
    assert affinity.session_fault("s" * 256) is None
    assert affinity.session_fault("s" * 257) == "must be at most 256 bytes"
    assert affinity.session_fault("ä" * 129) == "must be at most 256 bytes"
    assert affinity.session_fault("a\nb") == "must not contain control characters"
    assert affinity.session_fault("a\x7f") == "must not contain control characters"
    assert affinity.session_fault("\ud800") is None
    affinity.of_session(A, None, "m", "\ud800")


def test_the_gateways_keys_to_the_byte() -> None:
    affinity = GatewayAffinity()
    assert affinity.of_session(A, "k", "m", "k") == (
        "mt:v1:session:8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
    )
    assert affinity.of_prefix(A, None, "m", (b'[{"role":"user","content":"hi"}]',)) == (
        "mt:v1:payload:b03d228fdf33e7c81a9a7ea3eadadcf2cdcb98823fe93c669b8f0db42e0fa8a0"
    )
    own = "mt:v1:x:" + "ab" * 32
    assert affinity.of_session(A, None, "m", own, from_header=True) == own
    assert affinity.of_session(A, None, "m", own) == f"mt:v1:session:{hashlib.sha256(own.encode()).hexdigest()}"
    assert affinity.of_prefix(A, None, "m", ()) is None
    for one, other in itertools.combinations((A, B), 2):
        assert affinity.of_session(one, "k", "m", "s") == affinity.of_session(other, "j", "n", "s")


def test_the_callers_and_targets_that_are_kept_are_bounded() -> None:
    affinity = ScopedAffinity()
    first = affinity.of_session(A, None, "m", "s")
    for i in range(SCOPES.pieces or 0):
        affinity.of_session(A, None, f"m{i}", "s")
        assert len(affinity) <= (SCOPES.pieces or 0)
    assert len(affinity) == 1
    assert affinity.of_session(A, None, "m", "s") == first
