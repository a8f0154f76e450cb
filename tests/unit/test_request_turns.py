"""Requests and attempts between two events that usually do not meet: a scripted worker, a recorded response, a clock of its own."""

import asyncio
from random import Random
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from router.balancing import BalancingConfig, Chosen, Selector
from router.http1.request import ClientRequest, RequestBody
from router.http1.response import Response, ResponseOutput
from router.ports.identity import Identity
from router.ports.tunnels import TunnelError
from router.proxy.attempt import Attempt, AttemptCallbacks
from router.proxy.head_deadlines import HeadDeadlines
from router.proxy.local_replies import headers_to_client
from router.proxy.placement import Placement
from router.proxy.proxied_request import RequestState
from router.proxy.proxy import Proxy
from router.proxy.replay import ReplayBudget, ReplayBuffer, ReplayState
from router.proxy.upload import Upload
from router.registry import ModelStats, ModelUpdate, Registry
from router.registry.backend import Backend
from router.registry.registration import ClusterGeneration, Registration
from router.telemetry.metrics import Metrics
from support.package_settings import proxy_settings
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE
from tunnel_protocol.head import EXPECTED_QUEUE_MS, RequestHead, ResponseHead

as_written_only = pytest.mark.skipif(
    AS_WRITTEN_BECAUSE is None, reason="replaces parts of compiled modules; make cover runs it as written"
)
pytestmark = pytest.mark.loop("virtual")

HEAD = RequestHead(b"POST", b"/v1/chat/completions", [])
OK = ResponseHead(200, [])


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Output(ResponseOutput):
    """Where a response goes."""

    draining = False

    def __init__(self):
        self.out = b""
        self.ends = []

    def write(self, data):
        self.out += data

    def date(self):
        return b"now"

    def response_done(self, *, keep_alive):
        self.ends.append("done")

    def response_broken(self, *, reset):
        self.ends.append("broken")

    @property
    def statuses(self):
        return [int(part.split(b" ", 1)[0]) for part in self.out.split(b"HTTP/1.1 ")[1:]]


class Exchange:
    def __init__(self, head, sink):
        self.request = head
        self.sink = sink
        self.sent = b""
        self.calls = []

    def send_body(self, data):
        self.sent += data
        return True

    def end_body(self):
        self.calls.append("end")

    def abort_upload(self):
        self.calls.append("abort")

    def cancel(self):
        self.calls.append("cancel")

    def pause(self):
        self.calls.append("pause")

    def resume(self):
        self.calls.append("resume")

    def upload_acknowledged(self):
        return False


class Tunnels:
    """Of one worker. Without a free stream an exchange is opened when the test says so."""

    def __init__(self, *, free=1, direct=False):
        self.direct = direct
        self.free = free
        self.exchanges = []
        self.stream = asyncio.Event()
        self.dialled = asyncio.Event()
        self.ignores_cancellation = False
        self.up = True

    def healthy(self):
        return self.up

    def free_streams(self):
        return self.free

    def silent_since(self):
        return None

    def try_open(self, head, sink, *, end):
        return self._begin(head, sink) if self.free else None

    def _begin(self, head, sink):
        self.exchanges.append(Exchange(head, sink))
        return self.exchanges[-1]

    async def open(self, head, sink, *, end):
        try:
            await self.stream.wait()
        except asyncio.CancelledError:
            if not self.ignores_cancellation:
                raise
        return self._begin(head, sink)

    async def reconnect(self):
        await self.dialled.wait()
        self.up = True


class Owner(AttemptCallbacks):
    """The request of one attempt."""

    def __init__(self):
        self.heard = []
        self.attempt = None
        self.response = Response(Output(), http_1_0=False, keep_alive=True, bodyless=False)

    def attempt_answered(self, head):
        self.heard.append(head.status)
        self.response.start(head.status, head.headers)
        self.attempt.relay(self.response)

    def attempt_failed(self, error, *, handed_over):
        self.heard.append(error.reason)

    def body_begun(self):
        pass

    def response_ended(self, failure):
        self.heard.append(failure or "ended")


def a_replay():
    return ReplayBuffer(1000, ReplayBudget(0, lambda: None))


def an_attempt(tunnels, body=None, *, idle_timeout_ms=0):
    if body is None:
        body = RequestBody(lambda _: None)
        body.finish()
    owner = Owner()
    loop = asyncio.get_running_loop()
    owner.attempt = Attempt(
        owner, tunnels, body, a_replay(), loop, HeadDeadlines(loop, 5.0), idle_timeout_ms=idle_timeout_ms
    )
    return owner, owner.attempt


# --- attempts


async def test_a_pause_before_there_is_a_stream_holds_from_its_beginning():
    tunnels = Tunnels(free=0)
    _, attempt = an_attempt(tunnels)
    attempt.resume()
    attempt.pause()
    attempt.start(HEAD)
    tunnels.stream.set()
    await settle()
    assert tunnels.exchanges[0].calls == ["pause"]
    attempt.resume()
    assert tunnels.exchanges[0].calls == ["pause", "resume"]


async def test_a_stream_that_comes_after_the_attempt_is_over_is_given_back():
    tunnels = Tunnels(free=0)
    tunnels.ignores_cancellation = True
    owner, attempt = an_attempt(tunnels)
    attempt.start(HEAD)
    await settle()
    attempt.discard()
    await settle()
    assert tunnels.exchanges[0].calls == ["cancel"]
    assert owner.heard == []


async def test_a_worker_that_is_lost_while_a_stream_is_waited_for_fails_the_attempt():
    async def lost(head, sink, *, end):
        raise TunnelError("connection lost")

    tunnels = Tunnels(free=0)
    tunnels.open = lost
    owner, attempt = an_attempt(tunnels)
    attempt.start(HEAD)
    await settle()
    assert owner.heard == ["connection lost"]


async def test_a_defect_of_the_tunnels_while_a_stream_is_waited_for_is_a_failed_attempt():
    async def broken(head, sink, *, end):
        raise ZeroDivisionError

    tunnels = Tunnels(free=0)
    tunnels.open = broken
    owner, attempt = an_attempt(tunnels)
    with capture_logs() as logs:
        attempt.start(HEAD)
        await settle()
    assert owner.heard == ["no stream"]
    assert [line["event"] for line in logs] == ["waiting for a stream ended unexpectedly"]
    attempt.discard()
    assert owner.heard == ["no stream"]


async def test_what_a_worker_still_says_after_its_answer_was_discarded_is_dropped():
    tunnels = Tunnels()
    owner, attempt = an_attempt(tunnels)
    attempt.start(HEAD)
    attempt.on_head(OK)
    attempt.discard()
    attempt.on_body(b"more")
    attempt.on_end()
    attempt.on_failed(TunnelError("reset"))
    assert owner.heard == [200]
    assert owner.response.body_bytes == 0


async def test_a_response_that_ended_in_time_is_not_broken_off_later():
    tunnels = Tunnels()
    owner, attempt = an_attempt(tunnels, idle_timeout_ms=1000)
    attempt.start(HEAD)
    attempt.on_head(OK)
    attempt.on_body(b"one")
    attempt.on_end()
    await asyncio.sleep(10)
    assert owner.heard == [200, "ended"]


async def test_a_response_without_a_byte_for_too_long_is_broken_off_unless_its_client_is_slow():
    tunnels = Tunnels()
    owner, attempt = an_attempt(tunnels, idle_timeout_ms=1000)
    attempt.start(HEAD)
    attempt.on_head(OK)
    await asyncio.sleep(0.9)
    attempt.on_body(b"one")
    await asyncio.sleep(0.9)
    assert owner.heard == [200]
    attempt.pause()
    await asyncio.sleep(10)
    assert owner.heard == [200]
    attempt.resume()
    await asyncio.sleep(3)
    assert owner.heard == [200, "no byte of the response for too long"]


async def test_a_response_that_has_ended_cannot_idle_while_its_upload_goes_on():
    body = RequestBody(lambda _: None)
    tunnels = Tunnels()
    owner, attempt = an_attempt(tunnels, body, idle_timeout_ms=1000)
    attempt.start(HEAD)
    attempt.on_head(OK)
    attempt.on_end()
    await asyncio.sleep(3)
    assert owner.heard == [200]
    body.feed(b"the rest")
    body.finish()
    assert owner.heard == [200, "ended"]
    assert tunnels.exchanges[0].sent == b"the rest"


async def test_an_upload_that_ends_after_its_attempt_changes_nothing():
    owner, attempt = an_attempt(Tunnels(), RequestBody(lambda _: None))
    attempt.start(HEAD)
    upload_over = attempt._upload._on_over
    attempt.discard()
    upload_over("request body: broken")
    assert owner.heard == []


async def test_a_body_that_breaks_off_after_the_worker_has_stopped_it_is_no_failure():
    body = RequestBody(lambda _: None)
    failures = []
    replay = a_replay()
    upload = Upload(body, replay, Exchange(HEAD, None), failures.append)
    upload.start()
    upload.stopped()
    body.fail("malformed")
    assert failures == []
    assert replay.state is ReplayState.LOST


async def test_a_body_that_ends_after_the_worker_has_stopped_it_is_complete_in_the_copy_only():
    body = RequestBody(lambda _: None)
    over = []
    replay = a_replay()
    exchange = Exchange(HEAD, None)
    upload = Upload(body, replay, exchange, over.append)
    upload.start()
    upload.stopped()
    body.feed(b"the rest")
    body.finish()
    assert (exchange.sent, exchange.calls, over) == (b"", [], [])
    assert replay.state is ReplayState.COMPLETE
    assert replay.chunks == [b"the rest"]


def test_a_complete_copy_is_not_lost_with_its_original():
    replay = a_replay()
    replay.touch()
    replay.add(b"all")
    replay.complete()
    replay.lose()
    assert replay.chunks == [b"all"]


# --- requests


class Rig:
    """A proxy with one registered worker."""

    def __init__(self, tunnels=None, **settings):
        self.metrics = Metrics()
        self.registry = Registry()
        self.loop = asyncio.get_running_loop()
        selector = Selector(BalancingConfig(), Random(1))
        self.proxy = Proxy(self.registry, selector, self.metrics, proxy_settings(**settings), self.loop.time)
        self.tunnels = tunnels or Tunnels()
        self.output = Output()
        self.response = Response(self.output, http_1_0=False, keep_alive=True, bodyless=False)
        who = Identity("w1", "w1", "quic://192.0.2.1:1", None, not self.tunnels.direct)
        registration = self.registry.begin(who, self.tunnels)
        figures = ModelUpdate(True, ModelStats(last_mean_input_tps=1000.0, output_tps=10.0))
        self.registry.apply(registration, {"m": figures}, connected=True, rtt_ns=1, now=self.loop.time())

    def ask(self, *, body=b"{}"):
        first = {b"host": b"router", b"x-model": b"m", b"x-request-id": b"r-1", b"x-input-tokens": b"12"}
        arriving = RequestBody(lambda _: None)
        request = ClientRequest(
            b"POST",
            HEAD.path,
            list(first.items()),
            first,
            http_1_0=False,
            keep_alive=True,
            received_at=self.loop.time(),
            body=arriving,
        )
        if body:
            arriving.feed(body)
        arriving.finish()
        return self.proxy.handle(request, self.response)


async def test_a_request_without_a_body_is_complete_with_its_head():
    rig = Rig()
    rig.ask(body=b"")
    (exchange,) = rig.tunnels.exchanges
    assert exchange.calls == []
    exchange.sink.on_head(OK)
    exchange.sink.on_end()
    assert rig.output.statuses == [200]
    assert not rig.proxy.running


async def test_a_client_that_is_slow_while_its_worker_is_dialled_is_slow_for_the_attempt():
    rig = Rig(Tunnels(direct=True))
    rig.tunnels.up = False
    request = rig.ask()
    request.resume_response()
    request.pause_response()
    await settle()
    assert rig.tunnels.exchanges == []
    rig.tunnels.dialled.set()
    await settle()
    assert rig.tunnels.exchanges[0].calls[0] == "pause"


async def test_nothing_that_comes_after_its_end_changes_a_request():
    rig = Rig(max_connect_retries=0)
    request = rig.ask()
    rig.tunnels.exchanges[0].sink.on_failed(TunnelError("stream reset"))
    assert rig.output.statuses == [502]
    request.attempt_answered(OK)
    request.attempt_failed(TunnelError("late"), handed_over=False)
    request.response_ended(None)
    request.client_gone()
    request.client_stalled(408, "late")
    request._defect()
    assert rig.output.statuses == [502]
    assert rig.output.ends == ["done"]


@pytest.mark.parametrize("event", ["answered", "failed"])
async def test_an_attempt_that_nobody_made_costs_its_request_and_is_told(event):
    rig = Rig()
    request = rig.ask()
    request._placement = None
    with capture_logs() as logs:
        if event == "answered":
            request.attempt_answered(OK)
        else:
            request.attempt_failed(TunnelError("of whom?"), handed_over=False)
    assert "request in an impossible state" in [line["event"] for line in logs]
    assert rig.output.statuses == [502]
    assert request._state is RequestState.OVER


async def test_a_choice_without_an_estimate_announces_none():
    rig = Rig()
    request = rig.ask()
    placed = request._placement.choice
    unknown = Chosen(placed.candidate, placed.cluster, placed.backend, 1, True, None)
    assert EXPECTED_QUEUE_MS not in dict(request._request_head(unknown).headers)
    estimated = Chosen(placed.candidate, placed.cluster, placed.backend, 1, False, 250)
    assert dict(request._request_head(estimated).headers)[EXPECTED_QUEUE_MS] == b"250"
    request._recorder.chosen(unknown, rig.loop.time(), False, False)
    line = next(
        line
        for line in rig.metrics.render(additional=True).decode().splitlines()
        if line.startswith("stargate_routing_kv_free_token_fallback_selections_total{")
    )
    assert line.endswith(" 1")


@pytest.mark.parametrize("enabled", [False, True])
@as_written_only
async def test_the_lines_of_an_ordinary_request_are_written_if_they_are_wanted(enabled):
    class Line:
        def __init__(self):
            self.enabled = enabled
            self.written = []

        def write(self, *values):
            self.written.append(values)

    rig = Rig()
    log = rig.proxy.access_log = SimpleNamespace(attempt=Line(), finished=Line())
    rig.ask()
    sink = rig.tunnels.exchanges[0].sink
    sink.on_head(OK)
    sink.on_body(b"four")
    sink.on_end()
    assert len(log.attempt.written) == len(log.finished.written) == enabled
    if enabled:
        assert log.finished.written[0][4:7] == (200, "w1", 1)
        assert log.finished.written[0][-2:] == (4, "complete")


# --- the worker that is asked


@as_written_only
def test_work_is_taken_out_only_if_it_was_counted():
    cluster = SimpleNamespace(reserve=lambda *_: None)
    placement = Placement(SimpleNamespace(backend=None, cluster=cluster))
    placement.release()
    placement.reserve(5, 0)
    placement.release()
    assert placement.reservation is None


@as_written_only
def a_worker(cluster_id):
    identity = Identity("größe", cluster_id, "quic://192.0.2.1:1", None, reverse=True)
    return Backend(Registration(identity, None, ClusterGeneration()), ModelStats(), 0, 0.0)


def test_a_name_beyond_ascii_is_passed_on_and_a_control_character_is_not():
    worker = a_worker("c\t1")
    for _ in range(2):
        values = {value for _, value in headers_to_client([], worker, drop_listed=True)}
        assert values == {"größe".encode(), b"quic://192.0.2.1:1", b"c\t1"}
    with pytest.raises(ValueError, match="control character"):
        headers_to_client([], a_worker("c\r\nx: y"), drop_listed=True)
