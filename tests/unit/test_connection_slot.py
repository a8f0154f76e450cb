from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.tunnels.connection_slot import ConnectionSlot, SlotState


@dataclass(eq=False)
class SlotConnection:
    closed: bool = False
    suspected: bool = False
    free_streams: int = 100


def slot_with(*members):
    slot = ConnectionSlot(lambda: None)
    slot.replace_all(members)
    return slot


def test_a_fresh_slot_has_nothing_to_offer():
    slot = ConnectionSlot(lambda: None)
    assert slot.state is SlotState.DISCONNECTED
    assert not slot.healthy()
    assert slot.pick() is None
    assert slot.free_streams() == 0


def test_a_set_of_three_stays_healthy_and_asks_to_be_replenished_when_one_closes_and_is_whole_after_a_new_dial():
    members = [SlotConnection(), SlotConnection(), SlotConnection()]
    slot = slot_with(*members)
    assert len(slot.members) == 3
    assert slot.healthy()
    assert not slot.needs_replenishing()
    members[1].closed = True
    assert slot.healthy()
    assert slot.needs_replenishing()
    displaced = slot.replace_all([SlotConnection(), SlotConnection(), SlotConnection()])
    assert displaced == tuple(members)
    assert not slot.needs_replenishing()


def test_exchanges_go_round_the_open_members():
    members = [SlotConnection(), SlotConnection(closed=True), SlotConnection()]
    slot = slot_with(*members)
    assert [slot.pick() for _ in range(6)] == [members[0], members[2], members[2], members[0], members[2], members[2]]


def test_a_member_without_a_free_stream_is_passed_over_while_another_has_one():
    busy, free = SlotConnection(free_streams=0), SlotConnection()
    slot = slot_with(busy, free)
    assert [slot.pick() for _ in range(3)] == [free, free, free]
    free.free_streams = 0
    assert {slot.pick(), slot.pick()} == {busy, free}


def test_a_silent_member_is_picked_only_when_there_is_no_other():
    silent, other = SlotConnection(suspected=True), SlotConnection(free_streams=0)
    slot = slot_with(silent, other)
    assert [slot.pick() for _ in range(2)] == [other, other]
    other.closed = True
    assert slot.pick() is silent


def test_probes_take_every_open_member_in_turn_even_a_silent_one():
    members = [SlotConnection(), SlotConnection(suspected=True), SlotConnection(closed=True)]
    slot = slot_with(*members)
    assert [slot.next_open() for _ in range(4)] == [members[0], members[1], members[0], members[1]]


def test_an_abandoned_install_makes_way_for_another_and_a_finished_one_does_not():
    slot = ConnectionSlot(lambda: None)
    first = slot.begin_install()
    assert slot.state is SlotState.INSTALLING
    assert slot.begin_install() is None
    slot.abandon_install(first)
    second = slot.begin_install()
    assert second is not None
    assert slot.complete_install(second, SlotConnection()) == ()
    assert slot.begin_install() is None
    slot.abandon_install(second)
    assert slot.state is SlotState.CONNECTED


def test_beginning_and_abandoning_an_install_both_publish_a_change():
    changes = []
    slot = ConnectionSlot(lambda: changes.append(slot.state))
    slot.abandon_install(slot.begin_install())
    assert changes == [SlotState.INSTALLING, SlotState.DISCONNECTED]


def test_a_dead_connection_that_is_still_recorded_can_be_replaced():
    old, new = SlotConnection(), SlotConnection()
    slot = slot_with(old)
    assert slot.begin_install() is None
    old.closed = True
    install = slot.begin_install()
    assert slot.state is SlotState.REPLACING
    assert slot.complete_install(install, new) == (old,)
    assert slot.members == (new,)


def test_a_silent_connection_can_be_replaced_unless_it_speaks_up_in_time():
    old, new = SlotConnection(suspected=True), SlotConnection()
    slot = slot_with(old)
    install = slot.begin_install()
    old.suspected = False
    assert slot.complete_install(install, new) is None
    assert slot.members == (old,)
    assert slot.state is SlotState.CONNECTED


def test_an_abandoned_replacement_leaves_the_old_connection_recorded():
    old = SlotConnection(closed=True)
    slot = slot_with(old)
    slot.abandon_install(slot.begin_install())
    assert slot.state is SlotState.CONNECTED
    assert slot.members == (old,)


def test_closing_the_old_connection_during_a_replacement_leaves_an_install_without_a_predecessor():
    old = SlotConnection(suspected=True)
    slot = slot_with(old)
    install = slot.begin_install()
    old.closed = True
    assert slot.reverse_closed(old)
    assert slot.state is SlotState.INSTALLING
    new = SlotConnection()
    assert slot.complete_install(install, new) == ()
    assert slot.members == (new,)


def test_a_late_close_of_a_replaced_connection_does_not_remove_its_successor():
    old = SlotConnection(closed=True)
    slot = slot_with(old)
    new = SlotConnection()
    slot.complete_install(slot.begin_install(), new)
    assert not slot.reverse_closed(old)
    assert slot.members == (new,)


def test_a_retired_slot_refuses_everything():
    member = SlotConnection()
    slot = slot_with(member)
    assert slot.retire() == (member,)
    assert slot.retire() == ()
    assert slot.state is SlotState.RETIRED
    assert slot.replace_all([SlotConnection()]) is None
    assert slot.begin_install() is None
    assert not slot.reverse_closed(member)
    assert slot.pick() is None


def test_an_install_under_way_is_refused_when_the_registration_ends():
    slot = ConnectionSlot(lambda: None)
    install = slot.begin_install()
    slot.retire()
    assert slot.complete_install(install, SlotConnection()) is None
    slot.abandon_install(install)
    assert slot.state is SlotState.RETIRED


class SlotMachine(RuleBasedStateMachine):
    """Any order of events: one live connection at most, nothing after retirement, one install at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = ConnectionSlot(lambda: None)
        self.install = None
        self.known: list[SlotConnection] = []

    @rule()
    def begin(self):
        install = self.slot.begin_install()
        if install is not None:
            assert self.install is None
            self.install = install

    @precondition(lambda self: self.install is not None)
    @rule()
    def complete(self):
        member = SlotConnection()
        live_before = [m for m in self.slot.members if not (m.closed or m.suspected)]
        accepted = self.slot.complete_install(self.install, member)
        assert (accepted is None) == (self.slot.retired or bool(live_before))
        if accepted is not None:
            self.known.append(member)
        self.install = None

    @precondition(lambda self: self.install is not None)
    @rule()
    def abandon(self):
        self.slot.abandon_install(self.install)
        self.install = None

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def close(self, data):
        member = data.draw(st.sampled_from(self.known))
        member.closed = True
        mine = any(member is m for m in self.slot.members)
        assert self.slot.reverse_closed(member) == mine
        assert member not in self.slot.members

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def fall_silent(self, data):
        data.draw(st.sampled_from(self.known)).suspected = True

    @rule()
    def retire(self):
        self.slot.retire()

    @invariant()
    def holds(self):
        slot = self.slot
        assert len(slot.members) <= 1
        assert (slot.state in {SlotState.INSTALLING, SlotState.REPLACING}) <= (self.install is not None)
        assert bool(slot.members) == (slot.state in {SlotState.CONNECTED, SlotState.REPLACING})
        picked = slot.pick()
        assert (picked is not None) == slot.healthy()


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
