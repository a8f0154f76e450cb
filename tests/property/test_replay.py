"""Request bodies and their copies: whatever order things happen in, an attempt gets every byte in order, or is not made."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.http1.request import RequestBody
from router.proxy.replay import ReplayBudget, ReplayBuffer, ReplayState
from router.proxy.upload import Upload


class Exchange:
    """Takes `capacity` pieces, then says that it is full."""

    def __init__(self) -> None:
        self.pieces = []
        self.capacity = 1_000_000
        self.ended = False
        self.aborted = False

    def send_body(self, data):
        assert not self.ended
        assert not self.aborted
        self.pieces.append(data)
        self.capacity -= 1
        return self.capacity > 0

    def end_body(self):
        assert not self.ended
        self.ended = True

    def abort_upload(self):
        self.aborted = True

    @property
    def received(self):
        return b"".join(self.pieces)


class BodyOnItsWay(RuleBasedStateMachine):
    """A client that sends pieces, attempts that come and go, exchanges that fill up, and a budget others use too."""

    @initialize(limit=st.sampled_from([0, 8, 30, 1 << 20]), total=st.sampled_from([0, 20, 1 << 20]))
    def begin(self, limit, total):
        self.limit, self.total = limit, total
        self.refused = 0
        self.budget = ReplayBudget(total, self.refuse)
        self.replay = ReplayBuffer(limit, self.budget)
        self.reading = True
        self.body = RequestBody(self.set_reading)
        self.sent = b""
        self.complete = False
        self.upload = None
        self.exchange = None
        self.outcomes = []
        self.abandoned = False

    def refuse(self):
        self.refused += 1

    def set_reading(self, reading):
        self.reading = reading

    @precondition(lambda self: not self.complete)
    @rule(data=st.binary(min_size=1, max_size=12))
    def client_sends(self, data):
        self.sent += data
        self.body.feed(data)

    @precondition(lambda self: not self.complete)
    @rule()
    def client_ends(self):
        self.complete = True
        self.body.finish()

    @precondition(lambda self: self.upload is None and self.replay.replayable)
    @rule(capacity=st.integers(1, 5))
    def attempt_begins(self, capacity):
        self.exchange = Exchange()
        self.exchange.capacity = capacity
        self.outcomes = []
        self.upload = Upload(self.body, self.replay, self.exchange, self.outcomes.append)
        self.upload.start()

    @precondition(lambda self: self.upload is not None)
    @rule(capacity=st.integers(1, 5))
    def exchange_has_capacity(self, capacity):
        self.exchange.capacity = capacity
        self.upload.writable()

    @precondition(lambda self: self.upload is not None)
    @rule()
    def worker_stops_the_upload(self):
        self.upload.stopped()

    @precondition(lambda self: self.upload is not None)
    @rule(abort=st.booleans())
    def attempt_ends(self, abort):
        self.upload.abort() if abort else self.upload.cancel()
        self.upload = None

    @rule()
    def time_passes(self): ...

    @invariant()
    def what_an_attempt_received_is_the_beginning_of_the_body(self):
        if self.exchange is not None:
            assert self.sent.startswith(self.exchange.received)
            if self.exchange.ended:
                assert self.complete
                assert self.exchange.received == self.sent
                assert self.outcomes == [None]

    @invariant()
    def a_copy_is_whole_or_not_offered_and_never_above_its_limits(self):
        assert 0 <= self.replay.held_bytes <= self.limit
        assert self.budget.used_bytes == self.replay.held_bytes
        assert not self.total or self.budget.used_bytes <= self.total
        if self.replay.state is ReplayState.COMPLETE:
            assert b"".join(self.replay.chunks) == self.sent
        if self.replay.state is ReplayState.TOO_LARGE:
            assert len(self.sent) > self.limit
            assert not self.replay.held_bytes
        assert self.refused <= 1

    @invariant()
    def a_body_that_somebody_takes_is_not_held_up(self):
        if self.upload is not None and self.upload.from_client and self.exchange.capacity > 0:
            assert self.reading
            assert self.body._waiting.size == 0
            if self.complete and not self.exchange.ended:
                assert self.upload.done

    def teardown(self):
        if hasattr(self, "replay"):
            self.replay.close()
            assert self.budget.used_bytes == 0


BodyOnItsWay.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestBodyOnItsWay = BodyOnItsWay.TestCase


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10), st.integers(1, 5), st.integers(1, 4))
def test_every_further_attempt_gets_the_same_bytes(pieces, capacity, attempts):
    replay = ReplayBuffer(1 << 20, ReplayBudget(0, lambda: None))
    body = RequestBody([].append)
    for piece in pieces:
        body.feed(piece)
    body.finish()
    for _ in range(attempts):
        exchange = Exchange()
        exchange.capacity = capacity
        upload = Upload(body, replay, exchange, [].append)
        upload.start()
        while not exchange.ended:
            exchange.capacity = capacity
            upload.writable()
        upload.cancel()
        assert exchange.received == b"".join(pieces)
        assert replay.replayable
