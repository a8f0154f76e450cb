"""Workers that fail in every way while many clients ask: each request ends, in one of the documented ways, with its own bytes."""

import asyncio
import hashlib
from collections import Counter
from random import Random

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import BrokenOffError, post

pytestmark = pytest.mark.loop("uvloop")


CLIENTS = 40
REQUESTS_EACH = 12


class Moods:
    """Plays all workers: each exchange gets one of the ways in which a worker can behave."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._moods = (
            (self.answer,) * 6
            + (self.answer_in_pieces, self.break_before, self.break_after, self.reject, self.mismatch, self.stall)
            + (self.refuse_upload, self.early_error)
        )

    def __call__(self, exchange) -> None:
        self._random.choice(self._moods)(exchange)

    def _when_uploaded(self, exchange, then) -> None:
        """Once the body is complete, as often as it takes; not at all for one that was given up."""
        if exchange.cancelled:
            return
        if exchange.ended:
            then()
        else:
            asyncio.get_running_loop().call_later(0.001, self._when_uploaded, exchange, then)

    def answer(self, exchange) -> None:
        self._when_uploaded(exchange, lambda: exchange.answer(200, receipt(exchange.received)))

    def answer_in_pieces(self, exchange) -> None:
        def pieces() -> None:
            data = receipt(exchange.received)
            exchange.head(200)
            for start in range(0, len(data), 7):
                exchange.body(data[start : start + 7])
            exchange.end()

        self._when_uploaded(exchange, pieces)

    def break_before(self, exchange) -> None:
        exchange.fail()

    def break_after(self, exchange) -> None:
        def half() -> None:
            exchange.head(200)
            exchange.body(receipt(exchange.received)[:20])
            exchange.fail()

        self._when_uploaded(exchange, half)

    def reject(self, exchange) -> None:
        self._when_uploaded(exchange, lambda: exchange.reject(503))

    def mismatch(self, exchange) -> None:
        self._when_uploaded(exchange, lambda: exchange.reject(429, "queue_estimate_mismatch"))

    def stall(self, exchange) -> None:
        """Never a word: the deadline of the attempt has to end it."""

    def refuse_upload(self, exchange) -> None:
        exchange.sink.on_upload_stopped()
        self._random.choice((self.break_before, self.early_error))(exchange)

    def early_error(self, exchange) -> None:
        exchange.answer(400, b"early")


def receipt(body: bytes) -> bytes:
    return b"received " + hashlib.sha256(body).hexdigest().encode()


async def churn(harness, moods, random: Random, stop: asyncio.Event) -> None:
    """Registrations come and go, tunnels fall and rise, streams run out, while requests are running."""
    workers = {}
    while not stop.is_set():
        name = f"w{random.randrange(8)}"
        worker = workers.get(name)
        if worker is None:
            cluster, direct = f"c{random.randrange(4)}", random.random() < 0.3
            workers[name] = harness.worker(name, cluster=cluster, direct=direct, on_request=moods)
        elif random.random() < 0.3 and len(workers) > 3:
            harness.registry.end(workers.pop(name).registration)
            for exchange in worker.exchanges:
                if random.random() < 0.3 and not exchange.cancelled:
                    exchange.fail("connection lost")
            worker.up = False
        else:
            worker.up = random.random() < 0.9
            worker.dialable = random.random() < 0.7
            worker.free = random.choice((0, 1, 100))
            worker.release_streams(0)
            harness.update(worker)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(4))
async def test_every_request_ends_with_its_own_answer_a_documented_error_or_abnormally(seed):
    random = Random(seed)
    async with gateway_in_memory(request_timeout_ms=40) as harness:
        moods = Moods(random)
        for number in range(3):
            harness.worker(f"steady{number}", cluster=f"c{number}", on_request=moods)
        stop = asyncio.Event()
        churning = asyncio.create_task(churn(harness, moods, random, stop))
        ends: Counter[object] = Counter()

        async def ask(client_number: int) -> None:
            client = await harness.client()
            for number in range(REQUESTS_EACH):
                body = b"%d.%d " % (client_number, number) * random.randrange(1, 2000)
                request = post(body=body, chunked=random.random() < 0.5, x_request_id=f"{client_number}.{number}")
                client.send(request)
                if random.random() < 0.05:
                    client.leave()
                    ends["left"] += 1
                    client = await harness.client()
                    continue
                try:
                    answer = await client.answer()
                except BrokenOffError as error:
                    pieces = error.answer.body if error.answer else b""
                    ends["abnormal" if receipt(body).startswith(pieces) else "foreign bytes"] += 1
                    client = await harness.client()
                    continue
                ends[answer.status] += 1
                if answer.status == 200:
                    assert answer.body == receipt(body)
                else:
                    assert answer.status in {400, 429, 502, 503}
                if answer.header("connection") == "close":
                    client = await harness.client()

        await asyncio.gather(*(ask(number) for number in range(CLIENTS)))
        stop.set()
        await churning
        assert ends.total() == CLIENTS * REQUESTS_EACH
        assert ends["foreign bytes"] == 0
        assert ends[200] > CLIENTS
        assert harness.count("client_aborts_total") <= ends["left"]
