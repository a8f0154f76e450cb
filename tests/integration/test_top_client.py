"""`router top` as a client of an operators' port: what it sends, and what it makes of answers of all kinds."""

import asyncio
import gzip
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from certs import make_self_signed
from router.operators.live_document import Live
from router.top import client as client_module
from router.top.client import AccessRefusedError, RouterClient, RouterError, decoded
from support.live_documents import live

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = msgspec.json.encode(live())


class Port:
    """An operators' port that answers everything by one handler, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.answer: Handler
        self.url = ""
        self.closed = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        return await self.answer(request)

    def says(self, body: bytes, **given: object) -> None:
        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, **given)  # type: ignore[arg-type]

        self.answer = answer


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    found = Port()
    runner = web.ServerRunner(web.Server(found.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.closed.set()
    await runner.cleanup()


async def test_the_state_is_read_with_the_token_in_a_header(port: Port, tmp_path: Path) -> None:
    port.says(DOCUMENT)
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert decoded(await RouterClient(port.url, tmp_path / "token").live()) == live()
    assert decoded(await RouterClient(port.url, None).live()) == live()
    with_token, without = port.asked
    assert with_token.headers["authorization"] == "Bearer 0123456789abcdef"
    assert "authorization" not in without.headers
    assert with_token.path_qs == "/api/v1/live"


@pytest.mark.parametrize("content", [b"", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 5_000, b"a\x7fb"])
async def test_a_token_file_that_cannot_be_used_sends_nothing(port: Port, tmp_path: Path, content: bytes) -> None:
    port.says(DOCUMENT)
    (tmp_path / "token").write_bytes(content)
    for path in (tmp_path / "token", tmp_path / "none"):
        with pytest.raises(AccessRefusedError, match="cannot be used"):
            await RouterClient(port.url, path).live()
    assert port.asked == []


async def test_an_explanation_is_asked_with_escapes(port: Port) -> None:
    port.says(b'{"outcome": {}}')
    answer = await RouterClient(port.url, None).explain((("model", "a&b=c ü"), ("routing_key", "k")))
    assert answer == {"outcome": {}}
    assert dict(port.asked[0].query) == {"model": "a&b=c ü", "routing_key": "k"}
    port.says(b"no json")
    with pytest.raises(RouterError, match="no JSON"):
        await RouterClient(port.url, None).explain(())


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AccessRefusedError), (403, AccessRefusedError), (404, RouterError), (302, RouterError)]
)
async def test_an_answer_that_is_none_is_said_in_its_words_which_are_printable(
    port: Port, status: int, kind: type[Exception]
) -> None:
    port.says(b"no: \x1b[2J" + b"x" * 10_000, status=status, headers={"location": "http://127.0.0.1:1/"})
    with pytest.raises(kind) as caught:
        await RouterClient(port.url, None).live()
    assert str(caught.value).startswith("no: \\x1b[2Jxxx")
    assert len(str(caught.value)) < 400
    assert len(port.asked) == 1
    port.says(b"", status=status)
    with pytest.raises(kind, match=f"the answer is {status}"):
        await RouterClient(port.url, None).live()


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'"\xff"', b'{"state": 5, "history": [], "requests": []}'])
async def test_a_document_of_another_kind_is_refused(port: Port, body: bytes) -> None:
    port.says(body)
    with pytest.raises(RouterError, match="not of the API"):
        decoded(await RouterClient(port.url, None).live())


async def test_what_a_later_version_adds_is_ignored(port: Port) -> None:
    document = msgspec.json.decode(DOCUMENT)
    document["more"] = document["state"]["router"]["more"] = [1]
    port.says(msgspec.json.encode(document))
    assert decoded(await RouterClient(port.url, None).live()) == live()


async def test_an_answer_beyond_the_bound_is_given_up(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_MAX_BYTES", 1_000)
    port.says(b" " * 1_001)
    with pytest.raises(RouterError, match="more than 1000 bytes"):
        await RouterClient(port.url, None).live()


async def collected(port: Port) -> list[tuple[str, Live]]:
    return [event async for event in RouterClient(port.url, None).events()]


@pytest.mark.parametrize("compressed", [False, True])
async def test_events_are_read_until_the_router_ends_them(port: Port, compressed: bool) -> None:
    text = b"retry: 1000\n\nevent: full\ndata: %b\n\nevent: update\ndata: %b\n\n" % (DOCUMENT, DOCUMENT)

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream", **({"content-encoding": "gzip"} if compressed else {})}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(gzip.compress(text) if compressed else text)
        return response

    port.answer = answer
    assert await collected(port) == [("full", live()), ("update", live())]


async def test_a_router_that_says_nothing_is_given_up_in_time(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_SILENCE_S", 0.2)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b": nothing\n\n")
        await port.closed.wait()
        return response

    port.answer = answer
    with pytest.raises(RouterError):
        await collected(port)


async def test_a_stream_of_something_else_is_refused(port: Port) -> None:
    port.says(b"data: {}\n\n")
    with pytest.raises(RouterError, match="not of the API"):
        await collected(port)


async def test_a_port_behind_tls_is_reached_if_its_certificate_is_trusted(tmp_path: Path) -> None:
    identity = make_self_signed(["localhost"])
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    port = Port()
    port.says(DOCUMENT)
    runner = web.ServerRunner(web.Server(port.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    # A process of its own: which roots are trusted is decided when it starts.
    words = ["-m", "router", "top", "--once", "--json", "--url", f"https://localhost:{runner.addresses[0][1]}"]
    for trusted, expected in ((certificate, 0), (tmp_path / "none", 1)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *words),
            env={**os.environ, "SSL_CERT_FILE": str(trusted)},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await process.communicate()
        assert process.returncode == expected, error
        assert bool(out) == (expected == 0)
        assert (b"certificate" in error) == (expected != 0)
    await runner.cleanup()


async def test_nobody_at_the_address_is_an_error_with_a_reason() -> None:
    with pytest.raises(RouterError, match=r"\w+"):
        await RouterClient("http://127.0.0.1:1", None).live()
