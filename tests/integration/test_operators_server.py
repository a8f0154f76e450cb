"""The operators' port, over a real socket: its pages, who may see them, and its bounds."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.http1.request import ClientRequest, RequestBody
from router.operators.access import COOKIE, MIN_TOKEN, TOKEN, Access, is_local
from router.operators.handler import CONNECTIONS
from router.operators.live_document import Live, Policy, State
from router.operators.live_feed import LiveFeed
from router.operators.live_pages import live_pages
from router.operators.reply import Page, Reply, document
from router.operators.server import OperatorsServer
from router.supervisor.live_merge import router_of
from router.telemetry.metrics import Metrics
from support.waiting import eventually

GIVEN = "a-token-for-operators"
LOCAL = "host: localhost"


class Port:
    """A server, and how to ask it."""

    def __init__(self, server: OperatorsServer, number: int) -> None:
        self.server = server
        self.number = number

    async def ask(self, request: str, *headers: str, body: str = "") -> tuple[str, bytes]:
        """The head in lower case but for its cookie, and the body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        lines = [request, *(headers or ("host: x",)), "connection: close"]
        if body:
            lines.append(f"content-length: {len(body)}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1"))
        async with asyncio.timeout(10):
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.decode().lower() + "\r\n", content


@pytest.fixture
async def port() -> AsyncGenerator[Callable[..., Any]]:
    running: list[tuple[OperatorsServer, asyncio.Task[None]]] = []

    async def start(metrics: Metrics | None = None, **given: Any) -> Port:
        bound = socket.create_server(("127.0.0.1", 0))
        bound.setblocking(False)
        server = OperatorsServer(metrics or Metrics(), **{"all_families": False, **given})
        await server.start(bound)
        running.append((server, asyncio.create_task(server.serve())))
        return Port(server, bound.getsockname()[1])

    yield start
    for server, serving in running:
        server.stop()
        await serving


async def shown(_request: ClientRequest) -> Reply:
    return document({"shown": True})


def guarded(access: Access | None = None) -> dict[str, Any]:
    return {"pages": {b"/explain": Page(shown, guarded=True)}, "access": access}


async def test_metrics_are_text_of_version_0_0_4_whatever_is_accepted(port: Callable[..., Any]) -> None:
    metrics = Metrics()
    metrics.build_info.set(1, ("1", "abc"))
    head, body = await (await port(metrics)).ask(
        "GET /metrics HTTP/1.1", "host: x", "accept: application/openmetrics-text"
    )
    assert head.startswith("http/1.1 200")
    assert "content-type: text/plain; version=0.0.4\r\n" in head
    assert body.startswith(b"# HELP stargate_")
    assert b"build_info" not in body


async def test_head_is_answered_without_a_body_and_post_is_not_allowed(port: Callable[..., Any]) -> None:
    started = await port()
    head, body = await started.ask("HEAD /metrics HTTP/1.1")
    assert (head[:12], body) == ("http/1.1 200", b"")
    refused, nothing = await started.ask("POST /metrics HTTP/1.1")
    assert (refused[:12], nothing) == ("http/1.1 405", b"")
    assert "allow: get,head\r\n" in refused


async def test_other_paths_are_not_there(port: Callable[..., Any]) -> None:
    started = await port()
    for path in ("/none", "/metrics/"):
        head, body = await started.ask(f"GET {path} HTTP/1.1")
        assert (head[:12], body) == ("http/1.1 404", b"")


async def test_all_families_have_a_page_of_their_own_or_the_only_one(port: Callable[..., Any]) -> None:
    metrics = Metrics()
    metrics.build_info.set(1, ("1", "abc"))
    _, everything = await (await port(metrics)).ask("GET /metrics/all HTTP/1.1")
    assert b'stargate_build_info{commit="abc",version="1"} 1' in everything
    assert b"process_resident_memory_bytes" in everything
    _, configured = await (await port(metrics, all_families=True)).ask("GET /metrics HTTP/1.1")
    assert b"stargate_build_info" in configured


async def test_a_page_that_fails_is_a_500_and_a_log_line_and_the_next_is_served(port: Callable[..., Any]) -> None:
    class Broken(Metrics):
        def render(self, *, additional: bool = False) -> bytes:
            raise RuntimeError("no page")

    started = await port(Broken())
    with capture_logs() as lines:
        heads = [(await started.ask(f"GET {path} HTTP/1.1"))[0][:12] for path in ("/metrics", "/none")]
    assert heads == ["http/1.1 500", "http/1.1 404"]
    assert [line["event"] for line in lines] == ["a page of the operators' port failed"]


async def test_what_is_no_request_is_refused(port: Callable[..., Any]) -> None:
    assert (await (await port()).ask("nonsense"))[0].startswith("http/1.1 400")


async def test_connections_are_bounded(port: Callable[..., Any]) -> None:
    started = await port()
    opened = [await asyncio.open_connection("127.0.0.1", started.number) for _ in range(CONNECTIONS.pieces or 0)]
    await eventually(lambda: started.server.connections == len(opened))
    over = await asyncio.open_connection("127.0.0.1", started.number)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await over[0].readexactly(1)
    for _, writer in (*opened, over):
        writer.close()


# --- access ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LocalHost:9090", "127.0.0.1:1", "127.8.9.1", "[::1]:9090", "[::1]"])
async def test_a_client_on_this_host_that_asks_for_it_by_name_needs_nothing(
    port: Callable[..., Any], host: str
) -> None:
    head, body = await (await port(**guarded())).ask("GET /explain HTTP/1.1", f"host: {host}")
    assert (head[:12], body) == ("http/1.1 200", b'{"shown":true}')


@pytest.mark.parametrize(
    "headers",
    [
        ("host: evil.example:9090",),
        ("host: localhost.evil.example",),
        ("host: 10.0.0.7",),
        ("host: [::2]",),
        (LOCAL, "x-forwarded-for: 10.0.0.7"),
        (LOCAL, "forwarded: for=10.0.0.7"),
    ],
)
async def test_any_other_name_or_a_forwarded_request_is_not_local(
    port: Callable[..., Any], headers: tuple[str]
) -> None:
    head, body = await (await port(**guarded())).ask("GET /explain HTTP/1.1", *headers)
    assert head.startswith("http/1.1 403")
    assert b"--operators-token-file" in body


@pytest.mark.parametrize(
    ("peer", "host", "local"),
    [
        ("127.0.0.1", b"localhost:80:80", False),
        ("127.0.0.1", b"[::1", False),
        ("127.0.0.1", b"[::1]x", False),
        ("127.0.0.1", b"[::1]:x", False),
        ("127.0.0.1", b"localhost:", True),
        ("::1", b"localhost", True),
        ("::ffff:127.0.0.1", b"localhost", True),
        ("::ffff:10.0.0.1", b"localhost", False),
        ("fe80::1%eth0", b"localhost", False),
        ("10.0.0.1", b"localhost", False),
        ("", b"localhost", False),
        ("127.0.0.1", b"", False),
    ],
)
def test_both_the_peer_and_the_name_have_to_be_of_this_host(peer: str, host: bytes, local: bool) -> None:
    body = RequestBody(lambda _reading: None)
    request = ClientRequest(
        b"GET", b"/", [], {b"host": host}, http_1_0=False, keep_alive=True, received_at=0.0, body=body
    )
    assert is_local(request, peer) is local


async def test_metrics_are_shown_to_everybody(port: Callable[..., Any]) -> None:
    assert (await (await port(**guarded())).ask("GET /metrics HTTP/1.1", "host: router.example"))[0][
        :12
    ] == "http/1.1 200"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{GIVEN}\n")
    return path


async def test_from_elsewhere_the_token_opens_it_as_bearer(port: Callable[..., Any], token_file: Path) -> None:
    started = await port(**guarded(Access(token_file)))
    ask = "GET /explain HTTP/1.1"
    for authorization in (f"Bearer {GIVEN}", f"bearer  {GIVEN} "):
        assert (await started.ask(ask, "host: r", f"authorization: {authorization}"))[0][:12] == "http/1.1 200"
    for headers in (
        (),
        ("authorization: Bearer other-token-of-others",),
        (f"authorization: Basic {GIVEN}",),
        ("authorization: Bearer",),
        (f"cookie: {COOKIE}={GIVEN}",),
        ("cookie: {}=;=,",),
        ("cookie: a[=b",),
    ):
        head, body = await started.ask(ask, "host: r", *headers)
        assert head.startswith("http/1.1 401"), headers
        assert "www-authenticate: bearer" in head
        assert GIVEN.encode() not in body


async def test_the_token_is_never_taken_from_the_url(port: Callable[..., Any], token_file: Path) -> None:
    started = await port(**guarded(Access(token_file)))
    for query in (f"token={GIVEN}", f"access_token={GIVEN}"):
        assert (await started.ask(f"GET /explain?{query} HTTP/1.1", "host: r"))[0][:12] == "http/1.1 401"


@pytest.mark.parametrize(
    "content", ["", "short", "two lines of\nsomething longer", "with a blank in it somewhere", "é" * MIN_TOKEN, None]
)
async def test_a_token_file_that_cannot_be_used_opens_nothing(
    port: Callable[..., Any], tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    started = await port(**guarded(Access(path)))
    with capture_logs() as lines:
        head, body = await started.ask("GET /explain HTTP/1.1", "host: r", f"authorization: Bearer {GIVEN}")
    assert head.startswith("http/1.1 403")
    assert b"cannot be used" in body
    assert [line["event"] for line in lines] == ["the token file of the operators' port cannot be used"]


async def test_a_token_file_is_read_up_to_its_bound(port: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "token"
    for size, status in ((TOKEN.bytes or 0, "200"), ((TOKEN.bytes or 0) + 1, "403")):
        token = "x" * size
        path.write_text(token)
        started = await port(**guarded(Access(path)))
        head, _ = await started.ask("GET /explain HTTP/1.1", "host: r", f"authorization: Bearer {token}")
        assert head[9:12] == status


# --- the login form ------------------------------------------------------------------------------------------------------


class Router:
    """Whatever runs behind the pages."""

    async def read(self) -> Live:
        raise NotImplementedError


def all_pages(access: Access) -> dict[str, Any]:
    feed = LiveFeed(Router())
    return {"pages": live_pages(feed, shown, access), "access": access, "feed": feed}


FORM = ("host: r", "content-type: application/x-www-form-urlencoded")


async def test_the_page_asks_for_the_token_and_the_form_gives_a_cookie_that_opens_it(
    port: Callable[..., Any], token_file: Path
) -> None:
    started = await port(**all_pages(Access(token_file)))
    head, body = await started.ask("GET / HTTP/1.1", "host: r")
    assert head.startswith("http/1.1 401")
    assert b"<form" in body
    assert (await started.ask("GET /api/v1/explain HTTP/1.1", "host: r"))[0].startswith("http/1.1 401")
    head, _ = await started.ask("POST /login HTTP/1.1", *FORM, body=f"token={GIVEN}")
    assert head.startswith("http/1.1 303")
    assert "location: /\r\n" in head
    cookie = head.partition("set-cookie: ")[2].partition("\r\n")[0]
    assert cookie.partition("; ")[2] == "path=/; httponly; samesite=strict"
    assert GIVEN not in cookie
    opening = ("host: r", f"cookie: other=1; {cookie.partition(';')[0]}")
    head, body = await started.ask("GET / HTTP/1.1", *opening)
    assert head.startswith("http/1.1 200")
    assert b"<table" in body
    again = await port(**all_pages(Access(token_file)))  # as after a restart
    assert (await again.ask("GET /api/v1/explain HTTP/1.1", *opening))[0].startswith("http/1.1 200")
    token_file.write_text("another-token-from-now-on")  # noqa: ASYNC240
    assert (await started.ask("GET / HTTP/1.1", *opening))[0].startswith("http/1.1 401")


@pytest.mark.parametrize("form", ["token=something-else-entirely", "", "other=1", f"token={GIVEN}x"])
async def test_a_login_without_the_token_is_refused_and_logged(
    port: Callable[..., Any], token_file: Path, form: str
) -> None:
    started = await port(**all_pages(Access(token_file)))
    with capture_logs() as lines:
        head, _ = await started.ask("POST /login HTTP/1.1", *FORM, body=form)
    assert head.startswith("http/1.1 401")
    assert "set-cookie" not in head
    assert [line["event"] for line in lines] == ["a login at the operators' port was refused"]


async def test_a_login_where_nobody_can_log_in_says_so(port: Callable[..., Any], tmp_path: Path) -> None:
    closed = await port(**all_pages(Access(None)))
    head, body = await closed.ask("POST /login HTTP/1.1", *FORM, body=f"token={GIVEN}")
    assert head.startswith("http/1.1 403")
    assert b"--operators-token-file" in body
    head, body = await closed.ask("GET / HTTP/1.1", "host: r")
    assert head.startswith("http/1.1 403")
    assert b"<form" not in body
    broken = await port(**all_pages(Access(tmp_path / "none")))
    assert (await broken.ask("POST /login HTTP/1.1", *FORM, body=f"token={GIVEN}"))[0].startswith("http/1.1 403")


async def test_a_form_is_read_up_to_its_bound(port: Callable[..., Any], token_file: Path) -> None:
    started = await port(**all_pages(Access(token_file)))
    head, _ = await started.ask("POST /login HTTP/1.1", *FORM, body="token=" + "x" * 5_000)
    assert head.startswith("http/1.1 413")


async def test_a_form_whose_framing_breaks_and_one_that_does_not_arrive_get_no_cookie(
    port: Callable[..., Any], token_file: Path
) -> None:
    started = await port(**all_pages(Access(token_file)))
    for rest in (b"zz\r\n", None):
        reader, writer = await asyncio.open_connection("127.0.0.1", started.number)
        writer.write(b"POST /login HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntok\r\n")
        if rest is None:
            writer.close()
            continue
        writer.write(rest)
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert b" 4" in answer[:12]
        assert b"set-cookie" not in answer
        writer.close()
    assert (await started.ask("GET /metrics HTTP/1.1"))[0].startswith("http/1.1 200")


async def test_a_process_of_its_own_has_nothing_for_a_supervisor_unless_it_says_so(port: Callable[..., Any]) -> None:
    started = await port(**all_pages(Access(None)))
    assert (await started.ask("GET /api/v1/process HTTP/1.1", LOCAL))[0].startswith("http/1.1 404")


async def test_pages_run_only_their_own_scripts_and_styles(port: Callable[..., Any]) -> None:
    head, _ = await (await port(**all_pages(Access(None)))).ask("GET / HTTP/1.1", LOCAL)
    policy = head.partition("content-security-policy: ")[2].partition("\r\n")[0]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2


# --- events ----------------------------------------------------------------------------------------------------------------


class LargeRouter:
    """A router whose state is large."""

    async def read(self) -> Live:
        policy = Policy(digest="d" * 500_000, default_algorithm="a", loaded_at=0.0, reloads=0)
        router = router_of([], "r", 1.0, 0.0, [])
        state = State(router=router, policy=policy, certificates=[], targets=[], clusters=[], workers=[], flows=[])
        return Live(state=state, history=[], requests=[])


async def test_a_viewer_that_reads_nothing_is_cut_off_and_one_that_reads_is_not(port: Callable[..., Any]) -> None:
    feed, access = LiveFeed(LargeRouter(), period_s=0.02), Access(None)
    started = await port(pages=live_pages(feed, shown, access), access=access, feed=feed)
    ask = b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n"
    _, idle = await asyncio.open_connection("127.0.0.1", started.number, limit=1024)
    reader, writer = await asyncio.open_connection("127.0.0.1", started.number)
    idle.write(ask)
    await eventually(lambda: feed.viewers == 1)
    writer.write(ask)

    async def read_on() -> None:
        while await reader.read(1 << 20):
            pass

    reading = asyncio.create_task(read_on())
    await eventually(lambda: feed.viewers == 2)
    await eventually(lambda: feed.viewers == 1)
    await eventually(lambda: started.server.connections == 1, 20)
    assert not reading.done()
    for each in (idle, writer):
        each.close()
    await reading


async def test_a_viewer_that_leaves_is_noticed_and_the_end_of_the_server_ends_the_others(
    port: Callable[..., Any],
) -> None:
    feed, access = LiveFeed(LargeRouter(), period_s=0.02), Access(None)
    started = await port(pages=live_pages(feed, shown, access), access=access, feed=feed)
    opened = [await asyncio.open_connection("127.0.0.1", started.number) for _ in range(2)]
    for _, writer in opened:
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n")
    await eventually(lambda: feed.viewers == 2)
    opened[0][1].close()
    await eventually(lambda: feed.viewers == 1)
    started.server.stop()
    async with asyncio.timeout(10):
        assert (await opened[1][0].read()).endswith(b"0\r\n\r\n")
    opened[1][1].close()
