"""The listener as a client of raw bytes sees it: framing, limits, keep-alive, pipelining, bodies, the drain."""

import asyncio
import gc
import os
import resource
import socket

import pytest

from router.http1.connection import ClientConnection
from router.http1.server import RESERVED_DESCRIPTORS
from support.gateway_in_memory import gateway_in_memory
from support.http_client import BrokenOffError, HttpClient, get, post
from support.package_settings import connection_timeouts, http_settings
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


HOST = b"host: x\r\n"


def echo(exchange):
    exchange.answer(200, b"ok")


# --- answers of the router's own


async def test_answers_without_body_say_so_and_name_no_server():
    async with gateway_in_memory() as harness:
        for data, status in ((get("/healthz"), 200), (get("/nowhere"), 404), (post(x_model=None), 400)):
            answer = await harness.ask(data)
            assert (answer.status, answer.is_empty) == (status, True)
            assert answer.header("date").endswith(" GMT")
            assert answer.header("server") is None
            assert answer.header("x-stargate-error-code") is None


async def test_a_refused_request_leaves_its_connection_usable():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        for data, status in (
            (post(x_request_id=None), 400),
            (get("/x"), 404),
            (get("/v1/embeddings"), 405),
            (post(), 200),
        ):
            client.send(data)
            assert (await client.answer()).status == status


# --- keep-alive and pipelining


async def test_a_connection_serves_one_request_after_the_other():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        for _ in range(5):
            client.send(post())
            answer = await client.answer()
            assert (answer.status, answer.body, answer.header("connection")) == (200, b"ok", None)


async def test_pipelined_requests_are_answered_in_order():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"first") + get("/healthz") + post(body=b"third", chunked=True) + get("/nowhere"))
        first = await worker.next()
        first.answer(200, b"one")
        assert (await client.answer()).body == b"one"
        assert (await client.answer()).is_empty
        third = await worker.next(1)
        await eventually(lambda: third.ended)
        assert (first.received, third.received) == (b"first", b"third")
        third.answer(200, b"three")
        assert (await client.answer()).body == b"three"
        assert (await client.answer()).status == 404


async def test_a_pipeline_of_fifty_requests_in_one_write_is_answered_completely():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        client.send(b"".join(post() if number % 2 else get("/healthz") for number in range(50)))
        for number in range(50):
            assert (await client.answer()).body == (b"ok" if number % 2 else b"")


async def test_a_pipeline_without_end_is_refused_after_the_answers_it_is_due():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        client.send(post() + get("/healthz") * 100)
        assert (await client.answer()).status == 200
        for _ in range(64):
            assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_connection_close_is_honoured():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        for data in (get("/healthz", connection="close"), post(connection="close")):
            client = await harness.client()
            client.send(data)
            assert (await client.answer()).header("connection") == "close"
            assert await client.closed()


async def test_http_1_0_is_answered_in_kind_and_closes_unless_asked_to_stay():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        client.send(post(version="1.0"))
        answer = await client.answer()
        assert (answer.version, answer.body, answer.header("transfer-encoding")) == ("HTTP/1.0", b"ok", None)
        client = await harness.client()
        for _ in range(2):
            client.send(b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert (answer.version, answer.header("connection")) == ("HTTP/1.0", "keep-alive")


async def test_an_upgrade_is_ignored_and_the_connection_goes_on():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        client = await harness.client()
        client.send(
            get("/healthz", connection="upgrade, http2-settings", upgrade="h2c", http2_settings="AA") + get("/x")
        )
        assert [(await client.answer()).status for _ in range(2)] == [200, 404]


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_of_an_upgrade_is_a_body_and_never_a_request(chunked):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        body = get("/nowhere")
        client.send(post(body=body, chunked=chunked, connection="upgrade", upgrade="h2c") + get("/healthz"))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert exchange.received == body
        assert exchange.header("upgrade") is None
        exchange.answer()
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]


# --- heads


async def test_a_head_may_arrive_byte_by_byte():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=echo)
        client = await harness.client()
        for byte in post(body=b"abc"):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer()).body == b"ok"
        assert worker.exchanges[0].received == b"abc"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"".join(b"h%d: x\r\n" % n for n in range(99)) + b"\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"".join(b"h%d: x\r\n" % n for n in range(100)) + b"\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"big: " + b"x" * 400_000 + b"\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nbig: " + b"x" * 500_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 65_533 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"GET /" + b"a" * 65_534 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    ],
    ids=["100 headers", "101 headers", "head of 400 kB", "head of 500 kB", "target of 65,534", "target of 65,535"],
)
async def test_limits_of_a_head(head, status):
    async with gateway_in_memory() as harness:
        client = await harness.client()
        client.send(head)
        answer = await client.answer()
        assert (answer.status, answer.is_empty) == (status, True)
        if status in (414, 431):
            assert answer.header("connection") == "close"
            assert await client.closed()
        else:
            client.send(get("/healthz"))
            assert (await client.answer()).status == 200


async def test_a_head_below_the_limit_may_share_its_segment_with_a_long_body():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=None)
        client = await harness.client()
        client.send(post(body=b"b" * 300_000, padding="x" * 200_000))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert len(exchange.received) == 300_000
        exchange.answer()
        assert (await client.answer()).status == 200


async def test_a_refusal_is_readable_although_the_client_is_still_sending():
    async with gateway_in_memory() as harness:
        client = await harness.client()
        client.send(b"GET / HTTP/1.1\r\nbig: " + b"x" * 3_000_000)
        assert (await client.answer()).status == 431


async def test_a_bad_request_behind_good_ones_is_refused_after_their_answers():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post() + get("/healthz") + b"BAD REQUEST LINE\r\n\r\n")
        exchange = await worker.next()
        exchange.answer()
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.closed()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://router:8000/healthz", 200),
        (b"GET HTTPS://[::1]/healthz?a=b", 200),
        (b"GET http://x/healthz#fragment", 200),
        (b"GET http://x?/healthz", 404),
        (b"GET http://x", 404),
        (b"GET http://user@x/healthz", 400),
        (b"GET http:///healthz", 400),
        (b"GET http://x:port/healthz", 400),
        (b"GET x:80", 400),
        (b"GET *", 400),
        (b"OPTIONS *", 404),
        (b"CONNECT x:80", 404),
        (b"CONNECT x", 400),
        (b"CONNECT /healthz", 400),
        (b'GET /healthz?"', 400),
        (b"GET /healthz?<", 400),
        (b"GET /healthz?>", 400),
        (b"GET /healthz`", 400),
        (b"GET /healthz?`{}|^\\[]", 200),
        (b"GET /healthz?\xc3\xa9", 400),
        (b"GET /healthz?a b", 400),
        (b"GET /healthz?\x00", 400),
        (b"GET /healthz?\x7f", 400),
    ],
)
async def test_a_target_has_one_of_the_four_forms(line, status):
    async with gateway_in_memory() as harness:
        assert (await harness.ask(line + b" HTTP/1.1\r\n" + HOST + b"\r\n")).status == status


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [
        (b"1.1", [], 400),
        (b"1.0", [], 200),
        (b"1.1", [b""], 200),
        (b"1.1", [b"a.b:80"], 200),
        (b"1.1", [b"[::1]:80"], 200),
        (b"1.1", [b"a", b"a"], 400),
        (b"1.0", [b"a", b"b"], 400),
        (b"1.1", [b"a b/c"], 400),
        (b"1.1", [b"a/b"], 400),
        (b"1.1", [b"user@a"], 400),
        (b"1.1", [b"a:b"], 400),
        (b"1.1", [b"a:1:2"], 400),
        (b"1.1", [b"[::1"], 400),
        (b"1.1", [b"caf\xc3\xa9"], 400),
        (b"1.0", [b"a/b"], 400),
    ],
)
async def test_a_request_of_http_1_1_names_one_host(version, hosts, status):
    async with gateway_in_memory() as harness:
        lines = b"".join(b"host: %b\r\n" % host for host in hosts)
        assert (await harness.ask(b"GET /healthz HTTP/%b\r\n%b\r\n" % (version, lines))).status == status


async def test_an_absolute_target_is_routed_by_its_path():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=echo)
        answer = await harness.ask(post("http://router:8000/v1/responses?a=b"))
        assert answer.status == 200
        assert worker.exchanges[0].request.path == b"/v1/responses?a=b"


# --- bodies of requests


async def test_trailers_are_dropped():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=None)
        client = await harness.client()
        client.send(
            post(transfer_encoding="chunked", content_length=None, body=b"")
            + b"3\r\nabc\r\n0\r\nx-model: other\r\n\r\n"
        )
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"abc"
        assert exchange.header("x-model") == "m"
        exchange.answer()
        assert (await client.answer()).status == 200


async def test_trailers_without_end_are_not_collected():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=None)
        client = await harness.client()
        client.send(post(transfer_encoding="chunked", content_length=None, body=b"") + b"3\r\nabc\r\n0\r\nx: ")
        await worker.next()
        for _ in range(100):
            client.send(b"y" * 20_000)
        answer = await client.answer()
        assert answer.status == 502
        assert await client.closed()


async def test_chunked_framing_wins_over_a_content_length_which_is_not_passed_on():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=None)
        client = await harness.client()
        client.send(post(chunked=True, body=b"0123456789", content_length="3"))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"0123456789"
        assert exchange.header("content-length") is None
        exchange.answer()
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await client.closed()


async def test_nothing_behind_a_request_with_two_framings_is_read_and_its_answer_arrives():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(chunked=True, body=b"0123456789", content_length="3") + get("/healthz"))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        client.send(get("/healthz") * 20_000)  # unread bytes at a close would take the answer from the client
        exchange.answer()
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await client.closed()


async def test_a_body_nobody_wants_is_read_and_dropped_so_that_the_next_request_works():
    async with gateway_in_memory(http=http_settings(close_unread=False)) as harness:
        client = await harness.client()
        for chunked in (False, True):
            data = post("/nowhere", body=b"x" * 300_000, chunked=chunked)
            client.send(data[:1000])
            answer = await client.answer()
            assert answer.status == 404
            client.send(data[1000:] + get("/healthz"))
            assert (await client.answer()).status == 200


async def test_a_body_nobody_wants_is_not_waited_for_long():
    async with gateway_in_memory() as harness:
        client = await harness.client()
        client.send(post("/nowhere", body=b"", content_length="10"))
        assert (await client.answer()).status == 404
        assert await client.closed()


async def test_a_chunk_size_that_is_none_ends_the_request_with_502_and_the_connection():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(transfer_encoding="chunked", content_length=None, body=b"") + b"3\r\nabc\r\n")
        exchange = await worker.next()
        client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, answer.is_empty) == (502, True)
        assert exchange.cancelled
        assert await client.closed()


async def test_a_broken_body_behind_another_request_is_noticed_in_its_turn():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post() + post(transfer_encoding="chunked", content_length=None, body=b"") + b"zz\r\n")
        (await worker.next()).answer()
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 502
        assert await client.closed()


async def test_a_large_body_waits_at_the_client_until_somebody_takes_it():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        worker.free = 0
        client = await harness.client()
        size = 64 << 20
        client.send(post(body=b"", content_length=str(size)))
        client.send(b"z" * size)
        await eventually(lambda: worker.waiting)
        connection = next(iter(harness.http._connections))
        await eventually(lambda: not connection._reading)
        assert connection._pipeline._current.body._waiting.size < 1 << 20
        worker.release_streams(1)
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert len(exchange.received) == size
        exchange.answer()
        assert (await client.answer()).status == 200


async def test_a_worker_that_takes_no_more_pauses_the_client():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"", content_length="3000000"))
        exchange = await worker.next()
        exchange.writable = False
        client.send(b"z" * 3_000_000)
        await eventually(lambda: exchange.received)
        connection = next(iter(harness.http._connections))
        await eventually(lambda: not connection._reading)
        assert len(exchange.received) < 2_000_000
        exchange.writable = True
        exchange.sink.on_upload_writable()
        await eventually(lambda: exchange.ended)
        assert len(exchange.received) == 3_000_000
        exchange.answer()
        assert (await client.answer()).status == 200


# --- Expect: 100-continue


async def test_the_body_is_asked_for_only_when_a_stream_is_open():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        worker.free = 0
        client = await harness.client()
        client.send(post(body=b"", content_length="4", expect="100-continue"))
        await eventually(lambda: worker.waiting)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.readexactly(1), 0.05)
        worker.release_streams(1)
        assert (await client.answer()).status == 100
        client.send(b"body")
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"body"
        assert exchange.header("expect") == "100-continue"
        exchange.answer()
        assert (await client.answer()).status == 200


async def test_an_early_refusal_does_not_ask_for_the_body_and_closes():
    async with gateway_in_memory() as harness:
        for data in (
            post("/nowhere", body=b"", content_length="4", expect="100-continue"),
            post(body=b"", content_length="4", expect="100-continue", x_model=None),
            post(body=b"", content_length="99999999", expect="100-continue"),
        ):
            client = await harness.client()
            client.send(data)
            answer = await client.answer()
            assert answer.status in (400, 404, 413)
            assert await client.closed()


async def test_a_client_that_does_not_wait_to_be_asked_is_asked_all_the_same():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=echo)
        client = await harness.client()
        client.send(post(body=b"body", expect="100-continue"))
        assert [(await client.answer()).status for _ in range(2)] == [100, 200]
        assert worker.exchanges[0].received == b"body"


# --- output


async def an_answer_begun(harness):
    """A client, its exchange with the head of an answer, and what is written to the client from here on."""
    worker = harness.worker()
    client = await harness.client()
    client.send(post())
    exchange = await worker.next()
    connection = next(iter(harness.http._connections))
    writes = []
    connection._transport = Recording(connection._transport, writes)
    exchange.head(200)
    return client, exchange, writes


async def test_chunks_of_one_turn_leave_in_one_write():
    async with gateway_in_memory() as harness:
        client, exchange, writes = await an_answer_begun(harness)
        for piece in (b"a", b"b", b"c"):
            exchange.body(piece)
        exchange.end()
        answer = await client.answer()
        assert answer.chunks == [b"a", b"b", b"c"]
        assert len(writes) == 1


async def test_chunks_of_a_tick_of_the_tunnels_leave_with_its_end_and_not_a_turn_later():
    async with gateway_in_memory() as harness:
        client, exchange, writes = await an_answer_begun(harness)
        harness.http.tick_begins()
        exchange.body(b"a")
        exchange.body(b"b")
        assert not writes
        harness.http.tick_ends()
        assert len(writes) == 1
        exchange.body(b"c")
        exchange.end()
        answer = await client.answer()
        assert answer.chunks == [b"a", b"b", b"c"]
        assert len(writes) == 2


class Recording:
    def __init__(self, transport, writes):
        self._transport = transport
        self._writes = writes

    def write(self, data):
        self._writes.append(data)
        self._transport.write(data)

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_a_slow_reader_pauses_the_worker_and_a_fast_one_does_not():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await HttpClient.connect(harness.port, limit=1 << 16)
        harness.clients.append(client)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        sent = 0
        async with asyncio.timeout(5):
            while not exchange.paused:
                exchange.body(b"c" * 65_536)
                sent += 65_536
                await asyncio.sleep(0)
        assert sent < 16 << 20
        answer = await client.head()
        reading = asyncio.create_task(client.rest(answer))
        await eventually(lambda: not exchange.paused)
        exchange.end()
        assert len((await reading).body) == sent


async def test_a_client_that_never_reads_the_end_of_its_answer_is_cut_off_in_the_drain():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await HttpClient.connect(harness.port, limit=1 << 12)
        harness.clients.append(client)
        client.send(post(connection="close"))
        exchange = await worker.next()
        exchange.head(200)
        while not exchange.paused:
            exchange.body(b"c" * 65_536)
            await asyncio.sleep(0)
        exchange.end()
        assert not await harness.http.drain(0.05)
        harness.http.abort()
        await eventually(lambda: not harness.http.connections)


async def test_a_response_that_breaks_off_towards_http_1_0_is_reset_after_what_came():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(version="1.0"))
        exchange = await worker.next()
        exchange.head(200)
        exchange.body(b"part")
        assert (await client.head()).status == 200
        assert await client.reader.readexactly(4) == b"part"
        exchange.fail()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_many_workers_that_fail_at_once_are_tried_one_after_the_other():
    async with gateway_in_memory(max_connect_retries=1_000) as harness:
        for number in range(400):
            harness.worker(f"w{number:03}", cluster="c").up = False
        assert (await harness.ask(post())).status == 503
        assert harness.count("proxy_attempts_total", 'result="proxy_502"') == 400


async def test_a_defect_in_a_tunnel_costs_its_request_only():
    class DefectError(Exception): ...

    async with gateway_in_memory() as harness:
        stale = harness.worker(direct=True)
        stale.up = False

        async def reconnect():
            raise DefectError

        stale.reconnect = reconnect
        assert (await harness.ask(post())).status == 502
        full = harness.worker("w2", model="other")
        full.free = 0

        async def open_stream(head, sink, *, end):
            raise DefectError

        full.open = open_stream
        assert (await harness.ask(post(model="other"))).status == 503
        assert (await harness.ask(get("/healthz"))).status == 200


# --- leaving


async def test_an_answer_that_is_ready_reaches_a_client_that_has_stopped_sending():
    async with gateway_in_memory() as harness:
        for _ in range(20):
            client = await harness.client()
            client.send(get("/healthz"))
            client.half_close()
            assert (await client.answer()).status == 200
            assert await client.closed()


async def test_a_client_that_stops_sending_while_it_waits_is_gone():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        client.half_close()
        await eventually(lambda: exchange.cancelled)
        assert await client.closed()


# --- limits in time and number


async def test_an_upload_that_stalls_is_408_and_given_up_at_the_worker():
    async with gateway_in_memory(http=http_settings(timeouts=connection_timeouts(body=0.05))) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"half", content_length="9"))
        answer = await client.answer()
        assert (answer.status, answer.is_empty, answer.header("connection")) == (408, True, "close")
        assert (await worker.next()).cancelled
        assert await client.closed()
        assert harness.count("requests_rejected_total", 'status="408"') == 1


async def test_an_upload_that_stalls_beside_its_answer_does_not_end_the_answer():
    async with gateway_in_memory(http=http_settings(timeouts=connection_timeouts(body=0.5))) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"half", content_length="9"))
        exchange = await worker.next()
        exchange.head(200)
        assert (await client.head()).status == 200
        connection = next(iter(harness.http._connections))
        await eventually(lambda: not connection._arrival.waiting)  # the limit has passed
        exchange.body(b"on")
        assert await client.reader.readuntil(b"on\r\n")


async def test_a_client_that_waits_to_be_asked_for_its_body_is_not_late():
    async with gateway_in_memory(http=http_settings(timeouts=connection_timeouts(body=0.02))) as harness:
        worker = harness.worker(on_request=None)
        worker.free = 0
        client = await harness.client()
        client.send(post(body=b"", content_length="4", expect="100-continue"))
        await eventually(lambda: worker.waiting)
        connection = next(iter(harness.http._connections))
        first = connection._arrival._timer
        await eventually(lambda: connection._arrival._timer is not first)  # the limit has passed
        worker.release_streams(1)
        assert (await client.answer()).status == 100


async def test_connections_above_the_limit_are_closed_at_once_and_counted():
    async with gateway_in_memory(http=http_settings(max_connections=2)) as harness:
        kept = [await harness.client() for _ in range(2)]
        await eventually(lambda: harness.http.connections == 2)
        for _ in range(3):
            client = await harness.client()
            with pytest.raises((BrokenOffError, ConnectionResetError)):
                await client.answer()
        assert harness.count("http_connections_refused_total", 'reason="connections"') == 3
        for client in kept:
            client.send(get("/healthz"))
            assert (await client.answer()).status == 200
        kept.pop().leave()
        await eventually(lambda: harness.http.connections == 1)
        assert (await harness.ask(get("/healthz"))).status == 200


async def test_the_last_file_descriptors_are_not_for_client_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with gateway_in_memory() as harness:
        kept = await harness.client()
        kept.send(get("/healthz"))
        assert (await kept.answer()).status == 200
        free = os.dup(0)  # the number of the next one
        os.close(free)
        assert RESERVED_DESCRIPTORS.pieces > 6
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 6, hard))
        try:
            client = await harness.client()
            with pytest.raises((BrokenOffError, ConnectionResetError)):
                await client.answer()
            kept.send(get("/healthz"))
            assert (await kept.answer()).status == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert harness.count("http_connections_refused_total", 'reason="descriptors"') == 1
        assert (await harness.ask(get("/healthz"))).status == 200


# --- the drain


async def test_a_drain_closes_idle_connections_lets_requests_finish_and_refuses_new_ones():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        idle, busy = await harness.client(), await harness.client()
        idle.send(get("/healthz"))
        await idle.answer()
        busy.send(post())
        exchange = await worker.next()
        drain = asyncio.create_task(harness.http.drain(5))
        assert await idle.closed()
        with pytest.raises(ConnectionRefusedError):
            await HttpClient.connect(harness.port)
        assert not drain.done()
        exchange.answer(200, b"late")
        answer = await busy.answer()
        assert (answer.body, answer.header("connection")) == (b"late", "close")
        assert await busy.closed()
        assert await drain


async def test_a_lame_duck_is_not_ready_and_serves_requests_as_the_last_of_their_connections():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=echo)
        kept = await harness.client()
        kept.send(get("/readyz"))
        assert (await kept.answer()).status == 200
        drain = asyncio.create_task(harness.http.drain(5, 1))
        await eventually(lambda: harness.http.draining)
        for data, status in ((get("/readyz"), 503), (get("/healthz"), 200), (post(), 200)):
            answer = await harness.ask(data)
            assert (answer.status, answer.header("connection")) == (status, "close")
        kept.send(post())
        answer = await kept.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await kept.closed()
        assert await drain


async def test_a_lame_duck_keeps_the_connection_of_an_answer_that_began_before_it():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        drain = asyncio.create_task(harness.http.drain(5, 1))
        await eventually(lambda: harness.http.draining)
        exchange.end()
        assert (await client.answer()).header("connection") is None
        client.send(post())
        (await worker.next(1)).answer(200, b"last")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.header("connection")) == (200, b"last", "close")
        assert await client.closed()
        assert await drain


async def test_a_drain_out_of_time_says_so():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        assert not await harness.http.drain(0.05)
        assert harness.http.in_flight == 1
        harness.http.abort()
        with pytest.raises(BrokenOffError):
            await client.answer()
        await eventually(lambda: exchange.cancelled)


async def test_a_closed_connection_is_freed_without_the_collector():
    def alive():
        return sum(type(one) is ClientConnection for one in gc.get_objects())

    async with gateway_in_memory() as harness:
        gc.collect()
        gc.disable()
        try:
            before = alive()
            client = await harness.client()
            client.send(post() + post(body=b"half", content_length="9"))
            assert [(await client.answer()).status, (await client.answer()).status] == [404, 404]
            assert alive() == before + 1
            client.leave()
            await eventually(lambda: alive() == before)
        finally:
            gc.enable()
