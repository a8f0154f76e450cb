"""The events of the live page: one computation a second for all viewers, bounds, and viewers that are slow."""

import asyncio
import json
import zlib
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.http1.request import ClientRequest, RequestBody
from router.http1.response import Response, ResponseOutput
from router.operators.live_document import Live, Policy, Request, Router, Second, State
from router.operators.live_feed import SLOW_PERIODS, VIEWERS, LiveFeed

pytestmark = pytest.mark.loop("virtual")


class Output(ResponseOutput):
    """The connection of one viewer."""

    draining = False
    peer = ""

    def __init__(self) -> None:
        self.out = b""
        self.ended: str | None = None

    def write(self, data: bytes) -> None:
        self.out += data

    def date(self) -> bytes:
        return b"now"

    def response_done(self, *, keep_alive: bool) -> None:
        self.ended = "done"

    def response_broken(self, *, reset: bool) -> None:
        self.ended = "broken"

    def events(self) -> list[tuple[str, Any]]:
        found = []
        head, _, rest = self.out.partition(b"\r\n\r\n")
        text = b""
        while rest:  # chunks
            size, _, rest = rest.partition(b"\r\n")
            text += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        if b"content-encoding: gzip" in head:
            text = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(text)
        for block in text.split(b"event: ")[1:]:
            name, _, data = block.partition(b"\n")
            found.append((name.decode(), json.loads(data.partition(b"data: ")[2].partition(b"\n")[0])))
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.events()]


def a_response() -> tuple[Response, Output]:
    output = Output()
    return Response(output, http_1_0=False, keep_alive=True, bodyless=False), output


def a_request(number: int, process: str = "r") -> Request:
    return Request(
        number=number,
        process=process,
        at=1.0,
        request_id="r",
        routing_key=None,
        model="m",
        inference_server_id="w",
        cluster_id="c",
        attempts=1,
        status=200,
        first_token_ms=None,
        duration_ms=1.0,
        end="complete",
        reason="",
        requested_method="",
        input_tokens=1,
        priority=0,
    )


class Source:
    """A router; `requests` have ended, the newest first."""

    def __init__(self) -> None:
        self.reads = 0
        self.requests: list[Request] = []
        self.failing = False

    async def read(self) -> Live:
        self.reads += 1
        await asyncio.sleep(0)
        if self.failing:
            raise ZeroDivisionError
        router = Router(
            stargate_id="r",
            version="1",
            commit="c",
            now=0.0,
            started_at=0.0,
            uptime_s=0.0,
            ready=True,
            not_ready=[],
            draining=False,
            in_flight=0,
            waiting=0,
            processes=[],
        )
        policy = Policy(digest="d", default_algorithm="a", loaded_at=0.0, reloads=0)
        state = State(router=router, policy=policy, certificates=[], targets=[], clusters=[], workers=[], flows=[])
        return Live(state=state, history=[Second(at=at) for at in range(60)], requests=list(self.requests))


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def feed(source: Source) -> LiveFeed:
    return LiveFeed(source)


def a_query(encodings: bytes = b"") -> ClientRequest:
    first = {b"accept-encoding": encodings} if encodings else {}
    body = RequestBody(lambda _reading: None)
    return ClientRequest(b"GET", b"/", [], first, http_1_0=False, keep_alive=True, received_at=0.0, body=body)


async def joined(feed: LiveFeed, encodings: bytes = b"") -> tuple[Any, Output]:
    response, output = a_response()
    return await feed.begin(a_query(encodings), response), output


async def test_a_viewer_gets_everything_and_then_what_is_new_each_second(feed: LiveFeed, source: Source) -> None:
    source.requests = [a_request(2), a_request(1)]
    viewer, output = await joined(feed)
    source.requests = [a_request(3), *source.requests]
    await asyncio.sleep(1.5)
    await asyncio.sleep(1.0)
    viewer.client_gone()
    (full, first), (one, second), (two, third) = output.events()
    assert (full, one, two) == ("full", "update", "update")
    assert [each["number"] for each in first["requests"]] == [2, 1]
    assert ([each["number"] for each in second["requests"]], third["requests"]) == ([3], [])
    assert (len(first["history"]), len(second["history"])) == (60, 3)


async def test_however_many_watch_it_is_computed_once_a_second_and_by_nobody_not_at_all(
    feed: LiveFeed, source: Source
) -> None:
    viewers = [await joined(feed) for _ in range(100)]
    assert source.reads == 1
    await asyncio.sleep(10.5)
    assert source.reads == 11
    assert {len(output.events()) for _, output in viewers} == {11}
    for viewer, _ in viewers:
        viewer.client_gone()
    await asyncio.sleep(60)
    assert (source.reads, feed.viewers) == (11, 0)
    assert len(asyncio.all_tasks()) == 1
    again, output = await joined(feed)
    await asyncio.sleep(1.5)
    again.client_gone()
    assert output.names() == ["full", "update"]


async def test_readers_of_a_page_share_one_look_within_a_second(feed: LiveFeed, source: Source) -> None:
    await asyncio.gather(*(feed.current() for _ in range(20)))
    await feed.current()
    assert source.reads == 1
    await asyncio.sleep(1)
    await feed.current()
    assert source.reads == 2


async def test_viewers_are_bounded(feed: LiveFeed) -> None:
    viewers = [await joined(feed) for _ in range(VIEWERS.pieces or 0)]
    response, output = a_response()
    assert await feed.begin(a_query(), response) is None
    assert output.out.startswith(b"HTTP/1.1 503")
    viewers[0][0].client_gone()
    assert (await joined(feed))[0] is not None
    feed.close()


async def test_a_slow_viewer_misses_events_and_then_gets_everything_again(feed: LiveFeed, source: Source) -> None:
    slow, output = await joined(feed)
    quick, other = await joined(feed)
    slow.pause_response()
    await asyncio.sleep(2.5)
    slow.resume_response()
    await asyncio.sleep(2.0)
    assert output.names() == ["full", "full", "update"]
    assert other.names() == ["full", "update", "update", "update", "update"]
    for viewer in (slow, quick):
        viewer.client_gone()


async def test_a_viewer_that_takes_nothing_loses_its_stream_and_no_other_does(feed: LiveFeed) -> None:
    slow, output = await joined(feed)
    quick, other = await joined(feed)
    slow.pause_response()
    await asyncio.sleep(SLOW_PERIODS + 0.5)
    assert (output.ended, output.names()) == ("broken", ["full"])
    assert (other.ended, len(other.events())) == (None, SLOW_PERIODS + 1)
    assert feed.viewers == 1
    quick.client_gone()


async def test_the_end_of_the_server_ends_all_streams(feed: LiveFeed) -> None:
    _, output = await joined(feed)
    feed.close()
    assert output.ended == "done"
    response, refused = a_response()
    assert await feed.begin(a_query(), response) is None
    assert refused.out.startswith(b"HTTP/1.1 503")
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_a_server_that_ends_while_a_viewer_joins_refuses_it(feed: LiveFeed, source: Source) -> None:
    response, output = a_response()
    joining = asyncio.create_task(feed.begin(a_query(), response))
    await asyncio.sleep(0)
    feed._closed = True
    assert await joining is None
    assert output.out.startswith(b"HTTP/1.1 503")


async def test_a_viewer_for_whom_the_state_cannot_be_read_does_not_count(feed: LiveFeed, source: Source) -> None:
    source.failing = True
    with pytest.raises(ZeroDivisionError):
        await joined(feed)
    assert feed.viewers == 0


async def test_a_defect_ends_the_streams_and_is_logged_and_viewers_may_come_again(
    feed: LiveFeed, source: Source
) -> None:
    _, output = await joined(feed)
    source.failing = True
    with capture_logs() as lines:
        await asyncio.sleep(2)
    assert output.ended == "broken"
    assert [line["log_level"] for line in lines] == ["error"]
    source.failing = False
    viewer, again = await joined(feed)
    await asyncio.sleep(1.5)
    assert again.names() == ["full", "update"]
    viewer.client_stalled(408, "never")
    viewer.client_gone()


async def test_numbers_are_those_of_each_process(feed: LiveFeed, source: Source) -> None:
    source.requests = [a_request(9, "a"), a_request(2, "b")]
    viewer, output = await joined(feed)
    source.requests = [a_request(3, "b"), a_request(1, "c"), *source.requests]
    await asyncio.sleep(1.5)
    viewer.client_gone()
    _, (_, update) = output.events()
    assert [(each["process"], each["number"]) for each in update["requests"]] == [("b", 3), ("c", 1)]


async def test_who_takes_gzip_gets_the_same_compressed_whenever_it_joins(feed: LiveFeed, source: Source) -> None:
    plain, text = await joined(feed)
    early, first = await joined(feed, b"gzip, deflate, br")
    await asyncio.sleep(1.5)
    late, second = await joined(feed, b"br, GZIP ; q=0.5")
    late.pause_response()
    source.requests = [a_request(5)]
    await asyncio.sleep(1)
    late.resume_response()
    await asyncio.sleep(1)
    assert text.names() == first.names() == ["full", "update", "update", "update"]
    assert text.events() == first.events()
    assert len(first.out) < len(text.out) * 0.7
    assert second.names() == ["full", "full"]
    assert second.events()[1][1]["requests"][0]["number"] == 5
    for viewer in (plain, early, late):
        viewer.client_gone()


@pytest.mark.parametrize("encodings", [b"identity", b"gzip;q=0", b"gzip; q=0.000, br", b"xgzip"])
async def test_who_does_not_take_gzip_gets_text(feed: LiveFeed, encodings: bytes) -> None:
    viewer, output = await joined(feed, encodings)
    assert b"content-encoding" not in output.out
    assert output.names() == ["full"]
    viewer.client_gone()
