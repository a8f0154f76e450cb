"""Large bodies and many streams, at the level of sockets: whole, apart from each other, and bounded in the router's memory."""

import asyncio
import hashlib
import resource
import socket

import pytest

from support.http_client import HttpClient
from support.receipts import resident_bytes

pytestmark = pytest.mark.harness("tunnels")

MIB = 1024 * 1024
UPLOAD_BYTES = 64 * MIB
ANSWER_BYTES = 8 * MIB
PIECE = bytes(range(256)) * 256
SLACK_BYTES = 12 * MIB
"""What the allocator and the interpreter may take besides."""
HELD_BYTES = 2 * MIB
"""Of one exchange whose taker is slow: a stream's window and the buffers of a connection."""
SLOW_READERS = 12
STREAMS, TUNNELS = 1_000, 10


@pytest.fixture(scope="module", autouse=True)
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8_192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def piece(name, number):
    return b"%s %d " % (name.encode(), number) + PIECE[: 65_536 - 40]


async def grown(case, before):
    return await asyncio.to_thread(resident_bytes, case.system.router.pid) - before


async def warm(case, tunnel):
    """The memory of a router that has seen a few requests."""
    for _ in range(20):
        client = await case.send(case.post(body=PIECE))
        (await tunnel.next_request()).answer(200, PIECE)
        assert (await client.answer()).body == PIECE
    return resident_bytes(case.system.router.pid)


async def at_rest(figure):
    """Wait until `figure()` stays as it is."""
    async with asyncio.timeout(15):
        before, calm = figure(), 0
        while calm < 10:
            await asyncio.sleep(0.03)
            now = figure()
            before, calm = now, calm + 1 if now == before else 0


async def served_beside(case, tunnel, taken):
    """A small request is answered while the large one goes on; `taken` are the requests that are not for us."""
    client = await case.send(case.post(x_request_id="small"))
    async with asyncio.timeout(5):
        while (request := await tunnel.next_request()).header("x-request-id") != "small":
            taken.append(request)
    request.answer(200, b"beside")
    assert (await client.answer()).body == b"beside"


async def upload(client, name, *, chunked, sent=None):
    """Returns the digest; `sent` collects the sizes of what has gone."""
    digest = hashlib.sha256()
    left, number = UPLOAD_BYTES, 0
    while left:
        data = piece(name, number)[:left]
        left, number = left - len(data), number + 1
        digest.update(data)
        client.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        await client.writer.drain()
        if sent is not None:
            sent.append(len(data))
    if chunked:
        client.send(b"0\r\n\r\n")
    return digest.digest()


async def test_64_mib_go_up_whole_held_once_for_another_attempt(case):
    tunnel = await case.worker()
    before = await warm(case, tunnel)
    client = await case.send(case.post(body=b"", content_length=str(UPLOAD_BYTES)))
    request = await tunnel.next_request()
    sending = asyncio.create_task(upload(client, "whole", chunked=False))
    while not sending.done():
        await served_beside(case, tunnel, [])
    sent = await sending
    await request.until(lambda it: it.complete)
    assert (len(request.body), hashlib.sha256(request.body).digest()) == (UPLOAD_BYTES, sent)
    assert await grown(case, before) < UPLOAD_BYTES + SLACK_BYTES
    request.answer(200, b"thanks")
    assert (await client.answer()).body == b"thanks"


@pytest.mark.gateway(max_replay_body_bytes=MIB)
async def test_64_mib_to_a_worker_that_stalls_wait_at_the_client_and_not_in_the_router(case):
    tunnel = await case.worker()
    before = await warm(case, tunnel)
    client = await case.send(case.post(body=b"", chunked=True).removesuffix(b"0\r\n\r\n"))
    request = await tunnel.next_request()
    request.stream.pause_reading()
    sent = []
    sending = asyncio.create_task(upload(client, "stalled", chunked=True, sent=sent))
    await at_rest(lambda: len(sent))
    assert sum(sent) < UPLOAD_BYTES / 2
    await served_beside(case, tunnel, [])
    assert await grown(case, before) < HELD_BYTES + SLACK_BYTES
    request.stream.resume_reading()
    digest = await sending
    await request.until(lambda it: it.complete)
    assert (len(request.body), hashlib.sha256(request.body).digest()) == (UPLOAD_BYTES, digest)
    assert await grown(case, before) < HELD_BYTES + SLACK_BYTES
    request.answer()
    assert (await client.answer()).status == 200


async def slow_client(case):
    """One whose system takes little on its behalf."""
    host, _, port = case.system.ports.http.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    client = HttpClient(*await asyncio.open_connection(sock=sock, limit=1024))
    case.clients.append(client)
    return client


def answer_at_length(request, name, size):
    """Give a whole answer of `size` bytes to the tunnel, which holds what cannot be sent; returns its digest."""
    request.send_head(200, content_length=size)
    digest, left, number = hashlib.sha256(), size, 0
    while left:
        data = piece(name, number)[:left]
        left, number = left - len(data), number + 1
        digest.update(data)
        request.send_body(data)
    request.end()
    return digest.digest()


async def read(client, size):
    """The digest of a body of this length."""
    digest = hashlib.sha256()
    async with asyncio.timeout(20):
        while size:
            data = await client.reader.read(min(size, 100_000))
            assert data
            digest.update(data)
            size -= len(data)
    return digest.digest()


@pytest.mark.gateway(max_replay_body_bytes=MIB)  # no memory that an upload has left behind
async def test_answers_of_8_mib_to_slow_readers_wait_at_the_worker_and_not_in_the_router(case):
    tunnel = await case.worker()
    before = await warm(case, tunnel)
    requests, clients, digests = [], [], []
    for number in range(SLOW_READERS):
        client = await slow_client(case)
        client.send(case.post())
        request = await tunnel.next_request()
        digests.append(answer_at_length(request, f"answer {number}", ANSWER_BYTES))
        requests.append(request)
        clients.append(client)
    answers = [await client.head() for client in clients]
    await at_rest(lambda: sum(request.stream.send_half.unsent_bytes for request in requests))
    for request in requests:
        assert request.stream.send_half.unsent_bytes > MIB
    await served_beside(case, tunnel, [])
    assert await grown(case, before) < SLOW_READERS * HELD_BYTES + SLACK_BYTES
    for client, answer, digest in zip(clients, answers, digests, strict=True):
        assert answer.status == 200
        assert await read(client, ANSWER_BYTES) == digest
    assert await grown(case, before) < SLOW_READERS * HELD_BYTES + SLACK_BYTES


async def test_one_greedy_answer_leaves_99_small_ones_their_share_of_the_tunnel(case):
    tunnel = await case.worker(streams=128)
    client = await case.send(case.post())
    digest = answer_at_length(await tunnel.next_request(), "greedy", UPLOAD_BYTES)
    await client.head()
    reading = asyncio.create_task(read(client, UPLOAD_BYTES))

    async def answer():
        for _ in range(99):
            request = await tunnel.next_request()
            request.answer(200, request.header("x-request-id").encode())

    answering = asyncio.create_task(answer())
    small = await asyncio.gather(*(case.ask(case.post(x_request_id=f"{number}")) for number in range(99)))
    assert not reading.done(), "the small ones had to wait for the greedy one"
    assert [one.body for one in small] == [b"%d" % number for number in range(99)]
    await answering
    assert await reading == digest


async def test_a_thousand_streams_over_ten_tunnels_are_open_at_once_and_kept_apart(case):
    tunnels = [await case.worker(f"w{number}", cluster="pool", streams=128) for number in range(TUNNELS)]
    before = resident_bytes(case.system.router.pid)
    held = []

    async def take(tunnel):
        while True:
            request = await tunnel.next_request()
            await request.until(lambda it: it.complete)
            request.send_head(200)
            request.send_body(b"begin " + request.body)
            held.append((tunnel, request))

    async def ask(number):
        client = await case.client()
        body = b"%d-" % number * (1 + number % 300)
        client.send(case.post(body=body, x_input_tokens="0"))
        answer = await client.head()
        assert await client.chunk() == b"begin " + body
        return client, answer, body

    taking = [asyncio.create_task(take(tunnel)) for tunnel in tunnels]
    asked = [asyncio.create_task(ask(number)) for number in range(STREAMS)]
    open_ones = await asyncio.gather(*asked)
    assert len(held) == STREAMS  # none has ended
    assert {sum(one is tunnel for one, _ in held) for tunnel in tunnels} == {STREAMS // TUNNELS}
    assert await grown(case, before) < 64 * MIB
    for _, request in held:
        request.send_body(b"end " + request.body)
        request.end()
    for client, answer, body in open_ones:
        assert (await client.rest(answer)).body == b"end " + body
    for task in taking:
        task.cancel()
    await asyncio.wait(taking)
