"""Limits that several processes count together, with a real Redis server: atomic, with deadlines, and without harm when it is down."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from router.openai.keys.caller import GrantedCaller
from router.openai.limits import redis_counter
from router.openai.limits.counter import Bucket, Charge, Kind, Outcome, Slots, Verdict
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.limiter import KeyLimiter
from router.openai.limits.memory_counter import MemoryCounter
from router.openai.limits.redis_connection import PASSWORD_FILE, RedisConnection, RedisUrlError
from router.openai.limits.redis_counter import OPERATIONS, RedisCallError, RedisCounter
from router.openai.limits.rule import Unit, parse_rules
from router.openai.ports import Admission, Caller, LimitRefusal, Usage
from router.telemetry.metrics import Metrics
from support.redis_server import RedisServer, needs_redis, redis_server
from support.waiting import eventually
from tunnel_protocol.limit import Limit

OWNER = "key:a"
WEEK = Unit.WEEK.period_ms


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as found:
        yield found


class Counting:
    """A counter with its metrics and a clock of its own for the pause after failures."""

    def __init__(self, url: str, timeout_s: float, password: Path | None = None) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.counter = RedisCounter(
            RedisConnection(url, password, timeout_s),
            self.metrics.openai_limit_store_failures_total,
            timeout_s=timeout_s,
            clock=lambda: self.now,
        )

    async def reserve(
        self, charges: tuple[Charge, ...] = (), slots: tuple[Slots, ...] = (), lease: str = "l"
    ) -> Outcome:
        found = self.counter.reserve(OWNER, charges, slots, lease)
        return found if isinstance(found, Outcome) else await found

    async def settle(self, charges: tuple[Charge, ...] = (), slots: tuple[Slots, ...] = (), lease: str = "l") -> None:
        self.counter.settle(OWNER, charges, slots, lease)
        await self.idle()

    async def idle(self) -> None:
        """Wait until Redis has answered everything."""
        await eventually(lambda: not self.counter._calls)

    def failures(self, reason: str) -> float:
        return self.metrics.openai_limit_store_failures_total.value((reason,))


@asynccontextmanager
async def counting(url: str, timeout_s: float = 5, password: Path | None = None) -> AsyncIterator[Counting]:
    found = Counting(url, timeout_s, password)
    try:
        yield found
    finally:
        await found.counter.close()


def bucket(name: str = "b", capacity: int = 10, period_ms: int = WEEK) -> Bucket:
    return Bucket(f"{OWNER}:{name}", Kind.REQUESTS, capacity, period_ms)


SLOTS = (Slots(f"{OWNER}:running", 2),)


@needs_redis
async def test_it_counts_as_memory_does(server: RedisServer) -> None:
    random = Random(5)
    memory = MemoryCounter(lambda: 0.0)
    async with counting(server.url) as one:
        for turn in range(300):
            charges = tuple(
                Charge(bucket(name, capacity), random.choice([0, 1, 2.5, 7, 10]))
                for name, capacity in (("x", 10), ("y", 25))
                if random.random() < 0.8
            )
            slots = SLOTS if random.random() < 0.5 else ()
            lease = f"l{turn % 5}"
            if random.random() < 0.6:
                expected, found = memory.reserve(OWNER, charges, slots, lease), await one.reserve(charges, slots, lease)
                assert found.verdict is expected.verdict
                assert found.levels == pytest.approx(expected.levels, abs=0.01)
                assert len(found.running) == len(expected.running)
            else:
                corrections = tuple(
                    charge._replace(amount=-charge.amount * random.choice([1, -3])) for charge in charges
                )
                memory.settle(OWNER, corrections, SLOTS, lease)
                await one.settle(corrections, SLOTS, lease)


@needs_redis
async def test_two_processes_never_admit_more_than_the_limit_together(server: RedisServer) -> None:
    async with counting(server.url) as one, counting(server.url) as other:
        charges = (Charge(bucket(capacity=50), 1), Charge(bucket("wide", 1_000), 1))
        slots = (Slots(f"{OWNER}:running", 30),)
        found = await asyncio.gather(
            *(which.reserve(charges, slots, f"{which is one}-{i}") for i in range(100) for which in (one, other))
        )
        assert sum(outcome.verdict is Verdict.GRANTED for outcome in found) == 30
        assert max(outcome.running[0] for outcome in found) == 30
        found = await asyncio.gather(*(which.reserve(charges) for _ in range(100) for which in (one, other)))
        assert sum(outcome.verdict is Verdict.GRANTED for outcome in found) == 20
        assert (await other.reserve((Charge(bucket("wide", 1_000), 1),))).levels == pytest.approx((949,), abs=0.1)


@needs_redis
async def test_buckets_refill_by_the_servers_clock_and_are_forgotten_when_they_are_full(server: RedisServer) -> None:
    async with counting(server.url) as one:
        fast = (Charge(bucket(capacity=10, period_ms=200), 10),)
        assert (await one.reserve(fast)).verdict is Verdict.GRANTED
        assert (await one.reserve(fast)).verdict is Verdict.DENIED
        until = time.monotonic() + 10
        while (await one.reserve(fast)).verdict is not Verdict.GRANTED:
            assert time.monotonic() < until
        await one.settle((fast[0]._replace(amount=-20),))
        raw = one.counter._scripts
        assert isinstance(raw, RedisConnection)
        assert await raw._client.dbsize() == 0


@needs_redis
async def test_a_rule_that_changes_keeps_what_was_used(server: RedisServer) -> None:
    async with counting(server.url) as one:
        await one.reserve((Charge(bucket(capacity=10), 4),))
        assert (await one.reserve((Charge(bucket(capacity=100), 1),))).levels == pytest.approx((95,), abs=0.01)
        assert (await one.reserve((Charge(bucket(capacity=4), 1),))).verdict is Verdict.DENIED


@needs_redis
async def test_slots_of_a_process_that_is_gone_become_free_and_those_of_running_requests_do_not(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counter, "LEASE_MS", 300)
    monkeypatch.setattr(redis_counter, "RENEW_EVERY_S", 0.1)
    async with counting(server.url) as gone, counting(server.url) as lives:
        assert (await gone.reserve(slots=SLOTS, lease="gone")).verdict is Verdict.GRANTED
        assert (await lives.reserve(slots=SLOTS, lease="lives")).running == (2,)
        assert (await lives.reserve(slots=SLOTS, lease="third")).verdict is Verdict.DENIED
        renewing = asyncio.create_task(lives.counter.run())
        until = time.monotonic() + 10
        while (found := await lives.reserve(slots=SLOTS, lease="third")).verdict is not Verdict.GRANTED:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        assert found.running == (2,)
        raw = lives.counter._scripts
        assert isinstance(raw, RedisConnection)
        running = f"lrr:limits:{{{OWNER}}}:running"
        first_expiry = await raw._client.zscore(running, "lives")
        while await raw._client.zscore(running, "lives") < first_expiry + 2 * 300:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        assert (await lives.reserve(slots=SLOTS, lease="fourth")).verdict is Verdict.DENIED
        await lives.settle(slots=SLOTS, lease="third")
        assert (await lives.reserve(slots=SLOTS, lease="fourth")).verdict is Verdict.GRANTED
        renewing.cancel()
        await asyncio.wait([renewing])


@needs_redis
async def test_a_server_that_is_down_is_left_alone_and_asked_again_by_one_request_at_a_time(
    server: RedisServer,
) -> None:
    async with counting(server.url) as one:
        charges = (Charge(bucket(), 1),)
        assert (await one.reserve(charges)).verdict is Verdict.GRANTED
        server.stop()
        with capture_logs() as logs:
            assert (await one.reserve(charges)).verdict is Verdict.UNKNOWN
            assert not one.counter.up
            assert one.failures("connection") == 1
            for _ in range(100):
                assert isinstance(one.counter.reserve(OWNER, charges, (), "l"), Outcome), "answered at once"
            await one.settle(charges)
            assert one.failures("not_settled") == 1
            one.now += 1
            found = await asyncio.gather(*(one.reserve(charges) for _ in range(20)))
            assert {outcome.verdict for outcome in found} == {Verdict.UNKNOWN}
            assert one.failures("connection") == 2
            server.start()
            one.now += 1
            assert (await one.reserve(charges)).verdict is Verdict.GRANTED
            assert one.counter.up
        assert [line["event"] for line in logs] == [
            "Redis cannot be asked; limits of OpenAI clients are not counted",
            "Redis answers again; limits of OpenAI clients are counted",
        ]


@needs_redis
async def test_a_server_that_hangs_costs_one_deadline_and_its_late_answers_reach_nobody(server: RedisServer) -> None:
    async with counting(server.url, 0.2) as one:
        assert (await one.reserve((Charge(bucket("a", 5), 1),))).levels == pytest.approx((4,), abs=0.01)
        server.freeze()
        began = time.monotonic()
        assert (await one.reserve((Charge(bucket("a", 5), 1),))).verdict is Verdict.UNKNOWN
        assert time.monotonic() - began < 2
        assert one.failures("timeout") == 1
        server.thaw()
        one.now += 1
        for i in range(10):
            found = await one.reserve((Charge(bucket(f"other-{i}", 100 + i), 1),))
            assert found.levels == pytest.approx((99 + i,), abs=0.01)


@needs_redis
async def test_a_name_in_redis_that_holds_something_else_disturbs_only_its_own_requests(server: RedisServer) -> None:
    async with counting(server.url) as one:
        raw = one.counter._scripts
        assert isinstance(raw, RedisConnection)
        for name in ("b", "running"):
            await raw._client.set(f"lrr:limits:{{key:a}}:{name}", "neither hash nor set")
        other = (Charge(bucket("other"), 1),)
        found = await asyncio.gather(
            one.reserve((Charge(bucket(), 1),)), one.reserve(other), one.reserve(other, SLOTS), one.reserve(other)
        )
        assert [outcome.verdict for outcome in found] == [
            Verdict.UNKNOWN,
            Verdict.GRANTED,
            Verdict.UNKNOWN,
            Verdict.GRANTED,
        ]
        assert found[3].levels == pytest.approx((8,), abs=0.01)
        assert one.counter.up
        assert one.failures("response") == 2
        await one.settle((Charge(bucket(), 1),), SLOTS)
        one.counter._leases["l"] = ("lrr:limits:{key:a}:running",)
        one.counter.renew()
        await one.idle()
        assert (await one.reserve(other)).levels == pytest.approx((7,), abs=0.01)


@needs_redis
async def test_a_script_that_fails_is_unknown(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1") as server:
        async with counting(server.url) as one:
            assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.UNKNOWN
            assert not one.counter.up


@needs_redis
async def test_scripts_are_loaded_again_into_a_server_that_forgot_them(server: RedisServer) -> None:
    async with counting(server.url) as one:
        await one.reserve((Charge(bucket(), 1),))
        server.stop()
        server.start()
        await one.reserve((Charge(bucket(), 1),))
        one.now += 1
        assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.GRANTED


@needs_redis
async def test_the_password_is_read_from_its_file_for_every_connection(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with redis_server(tmp_path, "--requirepass", "s3cret") as server:
        async with counting(server.url, password=password) as one:
            assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.UNKNOWN
            password.write_text("s3cret\n")
            one.now += 1
            assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.GRANTED
        named = server.url.replace("127", "default@127")
        async with counting(named, password=password) as one:
            assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.GRANTED
        password.write_text("x" * ((PASSWORD_FILE.bytes or 0) + 1))
        with capture_logs() as logs:
            async with counting(server.url, password=password) as one:
                assert (await one.reserve((Charge(bucket(), 1),))).verdict is Verdict.UNKNOWN
        assert "larger than 4096 bytes" in logs[0]["error"]


# --- without a server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h:1", "it has to be redis://"),
        ("redis://", "it has to be redis://"),
        ("127.0.0.1:6379", "it has to be redis://"),
        ("redis://:secret@h", "it has a password"),
        ("redis://h:99999", "Port out of range"),
        ("redis://h/x", "only the number of a database"),
        ("redis://h/0?db=3", "only the number of a database"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_repeated(url: str, why: str) -> None:
    with pytest.raises(RedisUrlError) as refused:
        RedisConnection(url, None, 1)
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_a_url_with_tls_and_a_user_is_used() -> None:
    connection = RedisConnection("rediss://us%65r@localhost:6390/3", None, 1)
    arguments = connection._client.connection_pool.connection_kwargs
    assert (arguments["host"], arguments["port"], arguments["db"], arguments["username"]) == (
        "localhost",
        6390,
        3,
        "user",
    )
    await connection.close()


class Answering:
    """Runs `answer` in place of each script, and keeps the words."""

    def __init__(self, answer: Callable[[], Awaitable[object]]) -> None:
        self.answer = answer
        self.words: list[str] = []

    def script(self, source: str) -> redis_counter.Script:
        async def run(keys: list[str], arguments: list[str]) -> object:
            self.words.append(arguments[1])
            return await self.answer()

        return run

    async def close(self) -> None:
        """Nothing is open."""


async def test_operations_are_bounded_and_more_are_answered_as_if_it_were_down(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPERATIONS.pieces is not None
    monkeypatch.setattr(redis_counter, "OPERATIONS", Limit("operations", pieces=10))
    metrics, forever = Metrics(), asyncio.Event()
    counter = RedisCounter(Answering(forever.wait), metrics.openai_limit_store_failures_total, timeout_s=30)
    found = [counter.reserve(OWNER, (Charge(bucket(), 1),), (), f"l{i}") for i in range(25)]
    assert sum(isinstance(one, Outcome) for one in found) == 15
    assert metrics.openai_limit_store_failures_total.value(("busy",)) == 15
    await asyncio.sleep(0)
    forever.set()
    for one in found:
        if not isinstance(one, Outcome):
            assert (await one).verdict is Verdict.UNKNOWN, "True is no answer of a script"
    await counter.close()
    assert counter._unanswered == 0


async def test_operations_that_come_while_calls_run_go_together_in_calls_of_a_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_counter, "_OPERATIONS_PER_CALL", 10)
    gate = asyncio.Event()
    scripts = Answering(gate.wait)

    async def granted() -> object:
        await gate.wait()
        reservations = sum(word == "r" for word in scripts.words[-1].split())
        return "\n".join(["y 1"] * reservations)

    scripts.answer = granted
    counter = RedisCounter(scripts, Metrics().openai_limit_store_failures_total, timeout_s=30)
    for i in range(2):
        counter.settle(OWNER, (Charge(bucket(), 1),), (), f"l{i}")
        await asyncio.sleep(0)
    for i in range(25):
        counter.settle(OWNER, (Charge(bucket(), 1),), (), f"m{i}")
    assert len(scripts.words) == 2, "two calls at a time"
    gate.set()
    await eventually(lambda: not counter._calls)
    assert [words.count("s ") for words in scripts.words] == [1, 1, 10, 10, 5]
    await counter.close()


@pytest.mark.parametrize("answer", [None, [], "", "y 1\ny 1", "y x", "y 1 x", "y", 7, b"y 1", "y nan", "y inf"])
async def test_what_is_no_answer_of_the_script_is_unknown(answer: object) -> None:
    async def give() -> object:
        return answer

    metrics = Metrics()
    counter = RedisCounter(Answering(give), metrics.openai_limit_store_failures_total, timeout_s=1)
    found = counter.reserve(OWNER, (Charge(bucket(), 1),), (), "l")
    assert not isinstance(found, Outcome)
    assert (await found).verdict is Verdict.UNKNOWN
    assert metrics.openai_limit_store_failures_total.value(("response",)) == 1
    assert not counter.up
    await counter.close()


async def test_what_is_queued_behind_a_call_that_fails_is_answered_with_it() -> None:
    gate, metrics = asyncio.Event(), Metrics()

    async def fail() -> object:
        await gate.wait()
        raise RedisCallError("connection", "gone")

    counter = RedisCounter(Answering(fail), metrics.openai_limit_store_failures_total, timeout_s=30)
    first = counter.reserve(OWNER, (Charge(bucket(), 1),), (), "a")
    await asyncio.sleep(0)
    counter.settle(OWNER, (Charge(bucket(), 1),), (), "b")
    await asyncio.sleep(0)
    queued = counter.reserve(OWNER, (Charge(bucket(), 1),), (), "c")
    given_up = counter.reserve(OWNER, (), SLOTS, "e")
    assert not isinstance(given_up, Outcome)
    given_up.cancel()
    counter.settle(OWNER, (Charge(bucket(), 1),), (), "d")
    gate.set()
    for one in (first, queued):
        assert not isinstance(one, Outcome)
        assert (await one).verdict is Verdict.UNKNOWN
    await eventually(lambda: not counter._calls)
    assert metrics.openai_limit_store_failures_total.value(("not_settled",)) == 1
    assert counter._unanswered == 0
    await counter.close()


async def test_leases_are_renewed_and_not_while_it_is_down() -> None:
    async def granted() -> object:
        return "y 1" if scripts.words[-1].startswith("r") else ""

    scripts = Answering(granted)
    counter = RedisCounter(scripts, Metrics().openai_limit_store_failures_total, timeout_s=1, clock=lambda: 0.0)
    for i in range(25):
        found = counter.reserve(OWNER, (), SLOTS, f"l{i}")
        assert not isinstance(found, Outcome)
        await found
    scripts.words = []
    counter.renew()
    await eventually(lambda: not counter._calls)
    assert " ".join(scripts.words) == " ".join(f"h l{i}" for i in range(25))

    async def fail() -> object:
        raise RedisCallError("connection", "gone")

    scripts.answer, scripts.words = fail, []
    counter.renew()
    await eventually(lambda: not counter._calls)
    calls = len(scripts.words)
    counter.renew()
    assert len(scripts.words) == calls, "after a failure nothing is asked for a while"
    await counter.close()


async def test_at_the_end_what_hangs_is_cancelled_after_one_deadline() -> None:
    for timeout_s in (0.05, 30):
        counter = RedisCounter(
            Answering(asyncio.Event().wait), Metrics().openai_limit_store_failures_total, timeout_s=timeout_s
        )
        counter._timeout_s = 0.05  # of the end
        found = [counter.reserve(OWNER, (), SLOTS, f"l{i}") for i in range(3)]
        await counter.close()
        for one in found:
            assert not isinstance(one, Outcome)
            assert (await one).verdict is Verdict.UNKNOWN
        counter.settle(OWNER, (), SLOTS, "l0")
        assert isinstance(counter.reserve(OWNER, (), SLOTS, "later"), Outcome)
        assert not counter._calls


# --- as a client sees it -----------------------------------------------------------------------------------------------


async def admit(limiter: KeyLimiter, caller: Caller, tokens: int) -> Admission | LimitRefusal:
    found = limiter.admit(caller, None, "m", tokens, 0)
    return await found if isinstance(found, asyncio.Future) else found


@needs_redis
async def test_two_routers_count_a_key_together(server: RedisServer) -> None:
    caller = GrantedCaller(key_id="a", limits=LimitSet(parse_rules("3-D"), parse_rules("1000-W"), 2))
    async with counting(server.url) as one, counting(server.url) as other:
        routers = [
            KeyLimiter(each.counter, each.metrics.openai_limit_refusals_total, open_if_unknown=True)
            for each in (one, other)
        ]
        first, second = [await admit(router, caller, 100) for router in routers]
        assert not isinstance(first, LimitRefusal)
        assert not isinstance(second, LimitRefusal)
        assert dict(second.headers)[b"x-ratelimit-remaining-requests"] == b"1"
        third = await admit(routers[0], caller, 100)
        assert isinstance(third, LimitRefusal)
        assert third.type == "concurrency"
        first.finish(Usage(150, 50))
        second.finish(None)
        for each in (one, other):
            await each.idle()
        last = await admit(routers[1], caller, 100)
        assert not isinstance(last, LimitRefusal)
        assert dict(last.headers)[b"x-ratelimit-remaining-tokens"] in (b"600", b"599")
        last.finish(None)
        over = await admit(routers[0], caller, 1)
        assert isinstance(over, LimitRefusal)
        assert (over.status, over.type) == (429, "requests")
