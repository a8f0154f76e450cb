"""Which connection makes way when too many are not tunnels yet."""

from hypothesis import given
from hypothesis import strategies as st

from router.tunnels.pending import PER_SERVER_ID, PendingHandshakes
from router.tunnels.settings import PENDING


def test_the_oldest_of_the_most_frequent_address_makes_way():
    pending = PendingHandshakes(PENDING.pieces)
    assert all(pending.add(("honest", n), f"10.0.{n}.1") is None for n in range(24))
    assert all(pending.add(("silent", n), "192.0.2.1") is None for n in range(1_000))
    assert pending.add("newcomer", "192.0.2.2") == ("silent", 0)
    assert ("silent", 0) not in pending
    assert "newcomer" in pending
    assert len(pending) == PENDING.pieces


def test_a_thousand_workers_of_one_address_get_in_while_it_floods_with_silent_connections():
    """Ten silent connections for each worker; a worker says who it is ten connections later."""
    pending, waiting, done = PendingHandshakes(PENDING.pieces), [], 0
    for n in range(10_000):
        pending.add(("silent", n), "127.0.0.1")
        if n % 10 == 0:
            pending.add(("worker", n), "127.0.0.1")
            waiting.append(("worker", n))
            if len(waiting) > 1:
                worker = waiting.pop(0)
                assert worker in pending
                assert pending.identified(worker, "127.0.0.1", f"w{worker[1]}") is None
                pending.discard(worker)
                done += 1
    assert done == 999


def test_who_has_said_who_it_is_competes_with_its_like_only():
    pending = PendingHandshakes(2)
    for name in "ab":
        pending.add(name, "10.0.0.1")
        assert pending.identified(name, "10.0.0.1", name) is None
    for name in "cd":
        assert pending.add(name, "10.0.0.1") is None
    assert pending.add("e", "10.0.0.2") == "c"
    assert pending.identified("e", "10.0.0.2", "e") == "a"
    assert pending.identified("nobody", "10.0.0.2", "e") is None
    assert [name in pending for name in "abcde"] == [False, True, False, True, True]


def test_claims_of_one_id_compete_with_each_other():
    pending = PendingHandshakes(PENDING.pieces)
    pending.add("honest", "10.0.0.1")
    assert pending.identified("honest", "10.0.0.1", "w1") is None
    gone = []
    for n in range(PER_SERVER_ID.pieces + 1):
        pending.add(n, "192.0.2.1")
        gone.append(pending.identified(n, "192.0.2.1", "w1"))
    assert gone[-2:] == [0, 1], "not the one of another address"
    pending.add("other", "192.0.2.1")
    assert pending.identified("other", "192.0.2.1", "w2") is None


@given(st.lists(st.tuples(st.sampled_from(["add", "identified", "discard"]), st.integers(0, 20), st.integers(0, 3))))
def test_it_is_bounded_whatever_comes_and_holds_nothing_of_who_has_gone(steps):
    pending, members = PendingHandshakes(4), set()
    for step, member, host in steps:
        if step == "add" and member not in members:
            gone = pending.add(member, f"10.0.0.{host}")
            members.add(member)
        elif step == "identified":
            gone = pending.identified(member, f"10.0.0.{host}", f"w{host}")
        else:
            pending.discard(member)
            gone = member
        members.discard(gone)
        assert {one for one in range(21) if one in pending} == members
        assert len(pending) == len(members) <= 8
    for member in members:
        pending.discard(member)
    assert [pending._by_id, pending._ids, len(pending)] == [{}, {}, 0]
