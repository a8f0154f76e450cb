"""What happens to a client connection between two events that usually do not meet: no socket, and a clock of its own."""

import asyncio
import dataclasses
import math
import socket
from types import SimpleNamespace

import httptools
import pytest
from structlog.testing import capture_logs

from router.config import package_settings
from router.http1 import server as server_module
from router.http1.connection import ClientConnection, ConnectionCallbacks
from router.http1.pipeline import _NULL_CONNECTION, RequestPipeline
from router.http1.request_parser import RequestParser
from router.http1.response import Response, ResponseOutput
from router.http1.server import HttpServer, keep_alive
from router.http1.tcp_state import peer_closed
from support.client_connection import ClientConnectionOwner
from support.package_settings import DEFAULTS, connection_timeouts, http_settings
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE

as_written_only = pytest.mark.skipif(
    AS_WRITTEN_BECAUSE is None, reason="replaces parts of compiled modules; make cover runs it as written"
)
pytestmark = pytest.mark.loop("virtual")

GET = b"GET /v1/models HTTP/1.1\r\nhost: router\r\n\r\n"
LARGE = 4 << 20
"""More than a body may wait with before its client is paused."""


class Transport:
    """Remembers what was written; the test plays the client."""

    def __init__(self):
        self.out = b""
        self.ended = self.closed = self.aborted = False
        self.reading = True

    def write(self, data):
        self.out += data

    def writelines(self, pieces):
        self.out += b"".join(pieces)

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.ended = True

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name):
        return None


class Taker:
    """Takes a body; `on_data` acts from inside the callback."""

    def __init__(self, on_data=None):
        self.body = b""
        self.complete = False
        self.broken = None
        self.on_data = on_data

    def on_body(self, data):
        self.body += data
        if self.on_data is not None:
            self.on_data()

    def on_body_end(self):
        self.complete = True

    def on_body_broken(self, reason):
        self.broken = reason


class Flow:
    """What answers later; hears about its client."""

    def __init__(self, on_gone=lambda: None):
        self.heard = []
        self.on_gone = on_gone

    def pause_response(self):
        self.heard.append("pause")

    def resume_response(self):
        self.heard.append("resume")

    def client_gone(self):
        self.heard.append("gone")
        self.on_gone()


class Front(ConnectionCallbacks):
    """A server of one connection. `handle` is the test's; without one, requests wait."""

    def __init__(self, handle=lambda *_: None, *, close_unread=True, **timeouts):
        super().__init__()
        self.answer = handle
        self.requests, self.responses, self.refusals = [], [], []
        self.transport = Transport()
        loop = asyncio.get_running_loop()
        self.connection = ClientConnection(self, loop.time, connection_timeouts(**timeouts), close_unread=close_unread)
        self.connection.connection_made(self.transport)

    def handle(self, request, response):
        self.requests.append(request)
        self.responses.append(response)
        return self.answer(request, response)

    def connection_opened(self, connection):
        pass

    def connection_closed(self, connection):
        pass

    def refuse(self, request, response, status, reason):
        self.refusals.append((status, reason))
        response.send(status, [])

    def date(self):
        return b"now"

    def flush_later(self, connection):
        asyncio.get_running_loop().call_soon(connection.flush)

    def feed(self, data):
        self.connection.data_received(data)

    @property
    def statuses(self):
        return [int(part.split(b" ", 1)[0]) for part in self.transport.out.split(b"HTTP/1.1 ")[1:]]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def http_of(compat):
    """The settings of the listener with this release line."""
    return package_settings.http(dataclasses.replace(DEFAULTS, compat=compat))


def post(size, *, version=b"1.1", headers=b""):
    return b"POST / HTTP/%b\r\nhost: router\r\ncontent-length: %d\r\n%b\r\n" % (version, size, headers)


# --- time


async def test_without_limits_no_timer_runs_while_a_request_arrives():
    front = Front(head=math.inf, body=math.inf)
    front.feed(GET[:10])
    assert not front.connection._arrival.waiting


async def test_a_client_that_leaves_before_anybody_produces_its_response_ends_it():
    front = Front()
    front.feed(GET)
    front.connection.connection_lost(None)
    assert front.responses[0].over


async def test_a_head_that_came_in_time_leaves_nothing_behind():
    front = Front(lambda _, response: response.send(204, []), head=5.0, body=7.0)
    front.feed(GET[:10])
    front.feed(GET[10:])
    await asyncio.sleep(20)
    assert front.statuses == [204]
    assert not front.connection._arrival.waiting


async def test_a_body_without_a_limit_may_take_its_time_where_heads_may_not():
    front = Front(head=5.0, body=math.inf)
    request = post(2)
    front.feed(request[:10])
    front.feed(request[10:])
    await asyncio.sleep(60)
    assert front.refusals == []
    assert not front.connection._arrival.waiting


async def test_a_body_that_stalls_before_its_turn_is_broken_when_its_turn_comes():
    taker = Taker()
    front = Front(lambda request, _: request.body.attach(taker), body=5.0)
    front.feed(GET + post(10))
    front.feed(b"half")
    await asyncio.sleep(20)
    assert len(front.requests) == 1
    front.responses[0].send(200, [])
    await settle()
    assert taker.body == b"half"
    assert taker.broken == "request body stalled"


@pytest.mark.parametrize("answers_later", [True, False])
async def test_a_body_that_stalls_in_its_turn_is_answered_by_whoever_has_the_request(answers_later):
    class Waiting(Flow):
        def client_stalled(self, status, reason):
            self.heard.append((status, reason))
            front.responses[0].send(status, [])

    flow = Waiting()

    def handle(request, _):
        request.body.attach(Taker())
        return flow if answers_later else None

    front = Front(handle, body=5.0)
    front.feed(post(10) + b"half")
    await asyncio.sleep(20)
    assert front.statuses == [408]
    told = [(408, "request body stalled")]
    assert (flow.heard, front.refusals) == ((told, []) if answers_later else ([], told))


async def test_a_client_that_is_paused_again_is_watched_by_the_timer_that_runs():
    taker = Taker()
    front = Front(lambda request, _: request.body.attach(taker))
    front.feed(post(10) + b"12345")
    body = front.requests[0].body
    body.pause()
    watch = front.connection._peer_closed_timer
    body.resume()
    body.pause()
    assert not front.transport.reading
    assert front.connection._peer_closed_timer is watch is not None


# --- a client that has gone


async def test_nobody_who_has_gone_is_asked_for_its_body():
    front = Front(lambda *_: Flow())
    front.feed(post(10, headers=b"expect: 100-continue\r\n"))
    front.connection.eof_received()
    front.requests[0].body.attach(Taker())
    await settle()
    assert front.transport.out == b""


@pytest.mark.parametrize("broken_off", [False, True])
async def test_an_answer_given_on_hearing_that_the_client_has_gone_is_written_nowhere(broken_off):
    def answer():
        response = front.responses[0]
        response.start(200, [])
        response.break_off() if broken_off else response.end()

    front = Front(lambda *_: Flow(answer))
    front.feed(GET)
    front.connection.eof_received()
    await settle()
    assert front.transport.out == b""
    assert not front.transport.aborted


async def test_a_request_whose_client_leaves_before_its_turn_is_not_begun():
    front = Front(lambda _, response: response.send(204, []))
    front.feed(GET + GET)
    front.connection.eof_received()
    await settle()
    assert len(front.requests) == 1


# --- the end of a connection


async def test_a_response_that_only_a_reset_can_break_off_is_aborted():
    front = Front()
    front.feed(post(0, version=b"1.0"))
    front.responses[0].start(200, [])
    front.responses[0].write(b"part of it")
    front.responses[0].break_off()
    assert front.transport.aborted
    assert front.transport.out.endswith(b"part of it")


async def test_a_paused_client_is_read_on_while_its_connection_lingers():
    front = Front(discard=3.0)
    front.feed(post(LARGE, headers=b"connection: close\r\n") + bytes(LARGE - 1))
    assert not front.transport.reading
    front.responses[0].send(413, [])
    assert front.transport.reading
    assert front.transport.ended
    assert not front.transport.closed
    await asyncio.sleep(4)
    assert front.transport.closed


@pytest.mark.parametrize(("compat", "limit_s"), [("0.18", 2.0), ("0.11", 1.0)])
async def test_a_client_that_never_stops_sending_is_read_for_two_seconds_after_the_answer(compat, limit_s):
    front = Front(discard=http_of(compat).timeouts.discard)
    front.feed(post(LARGE, headers=b"connection: close\r\n") + b"part")
    front.responses[0].send(413, [])
    loop = asyncio.get_running_loop()
    until = loop.time() + 10
    answered = loop.time()
    while not front.transport.closed and loop.time() < until:
        assert front.transport.reading
        front.feed(b"more")
        await asyncio.sleep(0.05)
    assert loop.time() - answered == pytest.approx(limit_s, abs=0.06)
    assert front.statuses == [413]


async def test_a_body_answered_by_its_taker_before_its_end_was_read_closes_after_a_while():
    taker = Taker(lambda: front.responses[0].send(413, []))
    front = Front(lambda request, _: request.body.attach(taker), discard=3.0)
    front.feed(b"POST / HTTP/1.1\r\nhost: router\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
    front.feed(b"2\r\nab\r\n0\r\n\r\n")
    await asyncio.sleep(4)
    assert front.statuses == [413]
    assert front.transport.closed


async def test_a_drained_connection_whose_head_is_half_sent_gets_a_moment():
    front = Front(half_sent=2.0)
    front.feed(GET[:10])
    front.connection.close_when_idle()
    assert not front.transport.closed
    await asyncio.sleep(3)
    assert front.transport.closed


async def test_a_head_completed_within_that_moment_is_answered():
    front = Front(half_sent=2.0)
    front.feed(GET[:10])
    front.connection.close_when_idle()
    front.feed(GET[10:])
    await asyncio.sleep(3)
    assert not front.transport.closed
    front.responses[0].send(200, [])
    await settle()
    assert front.statuses == [200]


async def test_closing_a_connection_whose_client_has_half_closed_is_left_to_the_transport():
    front = Front()
    front.connection.eof_received()
    front.connection.close_when_idle()
    assert not front.transport.closed


# --- several requests


async def test_a_response_that_begins_while_the_client_is_slow_is_paused_from_the_start():
    flows = [Flow(), Flow()]
    front = Front(lambda *_: flows[len(front.requests) - 1])
    front.feed(GET)
    front.responses[0].send(200, [])
    front.connection.pause_writing()
    front.feed(GET)
    await settle()
    assert flows[1].heard == ["pause"]
    front.connection.resume_writing()
    assert [flow.heard for flow in flows] == [[], ["pause", "resume"]]


async def test_a_pipeline_that_is_over_writes_nothing():
    assert _NULL_CONNECTION.closes_when_idle
    assert _NULL_CONNECTION.draining
    front = Front()
    parser = RequestParser(front.connection, asyncio.get_running_loop().time)
    pipeline = RequestPipeline(front.connection, parser, front, close_unread=True)
    pipeline.release()
    pipeline.refuse(400)
    await settle()
    assert front.transport.out == b""


# --- heads


async def test_a_whole_head_beyond_the_limit_is_refused():
    front = Front()
    front.feed(GET[:-2] + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n")
    await settle()
    assert front.statuses == [431]


async def test_a_defect_of_the_owner_is_not_taken_for_a_fault_of_the_client():
    class Owner:
        set_body_reading = request_complete = invite_body = None

        def request_begun(self, request):
            raise ZeroDivisionError

    with pytest.raises(httptools.HttpParserCallbackError) as raised:
        RequestParser(Owner(), asyncio.get_running_loop().time).feed(GET)
    assert isinstance(raised.value.__context__, ZeroDivisionError)


# --- a response by itself


class Output(ResponseOutput):
    draining = False
    refusing = False

    def __init__(self):
        self.out = b""
        self.ends = []

    def write(self, data):
        self.out += data

    def date(self):
        return b"our date"

    def response_done(self, *, keep_alive):
        self.ends.append("done")

    def response_broken(self, *, reset):
        self.ends.append("broken")


def test_the_date_of_a_worker_is_kept():
    output = Output()
    Response(output, http_1_0=False, keep_alive=True, bodyless=False).start(200, [(b"date", b"its date")])
    assert b"date: its date\r\n" in output.out
    assert b"our date" not in output.out


def test_a_response_that_is_over_stays_as_it_is():
    output = Output()
    response = Response(output, http_1_0=False, keep_alive=True, bodyless=False)
    response.send(200, [], b"all of it")
    sent = output.out
    response.end()
    response.break_off()
    response.send(502, [])
    assert output.out == sent
    assert output.ends == ["done"]


# --- the listener


async def test_a_server_that_was_never_started_is_waited_for_until_its_drain():
    server = HttpServer(None, asyncio.get_running_loop().time, http_settings())
    waiting = asyncio.create_task(server.wait())
    await server.stop_listening()
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await server.drain(1.0)
    await waiting


@as_written_only
async def test_connections_turned_away_within_ten_seconds_are_told_in_one_line():
    class Newcomer:
        closed = False

        def abort(self):
            self.closed = True

    reasons = []
    handler = SimpleNamespace(connection_refused=reasons.append)
    server = HttpServer(handler, asyncio.get_running_loop().time, http_settings(max_connections=0))
    newcomers = [Newcomer() for _ in range(4)]
    with capture_logs() as logs:
        for newcomer in newcomers[:3]:
            server.connection_opened(newcomer)
        await asyncio.sleep(11)
        server.connection_opened(newcomers[3])
    assert all(newcomer.closed for newcomer in newcomers)
    assert reasons == ["connections"] * 4
    assert [line["refused"] for line in logs] == [1, 3]


@as_written_only
async def test_what_several_connections_write_in_one_turn_or_tick_leaves_together():
    flushed = []
    connections = [SimpleNamespace(flush=lambda number=number: flushed.append(number)) for number in range(4)]
    server = HttpServer(None, asyncio.get_running_loop().time, http_settings())
    server.flush_later(connections[0])
    server.flush_later(connections[1])
    assert flushed == []
    await asyncio.sleep(0)
    assert flushed == [0, 1]
    server.tick_begins()
    server.flush_later(connections[2])
    server.flush_later(connections[3])
    await asyncio.sleep(0)
    assert flushed == [0, 1]
    server.tick_ends()
    assert flushed == [0, 1, 2, 3]


def test_a_system_without_one_of_the_keep_alive_times_gets_the_others(monkeypatch):
    class Socket:
        def __init__(self):
            self.options = []

        def setsockopt(self, level, option, value):
            self.options.append((level, option, value))

    assert set(server_module._KEEPALIVE) == {"TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"}
    monkeypatch.delattr(socket, "TCP_KEEPINTVL")
    sock = Socket()
    keep_alive(sock)
    assert [option for _, option, _ in sock.options] == [socket.SO_KEEPALIVE, socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT]


def test_a_socket_that_cannot_be_asked_has_not_left():
    class Socket:
        def getsockopt(self, level, option, size):
            raise OSError

    assert peer_closed(Socket()) is False


def test_a_connection_that_is_gone_has_no_peer():
    response = Response(_NULL_CONNECTION, http_1_0=False, keep_alive=False, bodyless=False)
    assert response.peer == ""


# --- what follows an answer that closes


@pytest.mark.parametrize("rest", [b" HTTP/1.1\r\n\r\n", b"\x00\x00", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_what_follows_the_last_request_in_one_piece_with_its_body_is_not_answered(rest):
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(b"POST / HTTP/1.0\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
    await front.feed(b"12345" + rest)
    assert front.transport.out.count(b"HTTP/1.") == 1
    assert front.transport.out.startswith(b"HTTP/1.0 200")
    front.end()


async def test_a_body_that_breaks_after_an_answer_that_closes_tells_nobody():
    front = ClientConnectionOwner(lambda _: None)
    await front.feed(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
    collected = front.requests[0]
    collected.on_body = lambda _: collected.response.send(413, [])
    await front.feed(b"3\r\nabc\r\nzz\r\n")
    assert front.transport.out.startswith(b"HTTP/1.1 413 ")
    assert front.transport.out.count(b"HTTP/1.1") == 1
    assert not collected.broken
    front.end()
