"""The paths of the live page and its API; docs/api.md."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from router.http1.request import ClientRequest
from router.operators.access import TOKEN, Access
from router.operators.live_document import API, Live
from router.operators.live_feed import LiveFeed
from router.operators.reply import NOT_STORED, Page, Reply, StreamPage, document, line
from tunnel_protocol.head import HeaderList

_HTML: Final = (b"content-type", b"text/html; charset=utf-8")
_FOLDER: Final = Path(__file__).parent
_MAX_FORM_BYTES: Final = TOKEN.bytes or 0


def live_pages(
    feed: LiveFeed,
    explain: Callable[[ClientRequest], Awaitable[Reply]],
    access: Access,
    countable: Callable[[], Live] | None = None,
) -> dict[bytes, Page | StreamPage]:
    """The pages by path. `explain` answers `/explain`, which is in the API, too.

    `countable` returns the state of this process as its supervisor wants it: with counts, which can be added up.
    """
    shown, form = StaticPage("page.html"), StaticPage("login.html")

    async def page(_request: ClientRequest) -> Reply:
        return shown.reply(200)

    async def login(request: ClientRequest) -> Reply:
        body = await FormBody().read(request)
        if body is None:
            return line(413, f"413: the form has more than {_MAX_FORM_BYTES} bytes")
        given = dict(parse_qsl(body.decode("latin-1"))).get("token", "")
        return await access.log_in(given.strip().encode())

    async def state(_request: ClientRequest) -> Reply:
        return document((await feed.current()).state)

    async def history(_request: ClientRequest) -> Reply:
        return document({"history": (await feed.current()).history})

    async def requests(_request: ClientRequest) -> Reply:
        return document({"requests": (await feed.current()).requests})

    async def live(_request: ClientRequest) -> Reply:
        return document(await feed.current())

    async def process(_request: ClientRequest) -> Reply:
        return line(404, "404: this is no process") if countable is None else document(countable())

    api = API.encode()
    return {
        b"/": Page(page, guarded=True, login=lambda: form.reply(401)),
        b"/login": Page(login, (b"POST",)),
        b"/explain": Page(explain, guarded=True),
        api + b"/explain": Page(explain, guarded=True),
        api + b"/state": Page(state, guarded=True),
        api + b"/history": Page(history, guarded=True),
        api + b"/requests": Page(requests, guarded=True),
        api + b"/live": Page(live, guarded=True),
        api + b"/process": Page(process, guarded=True),
        api + b"/events": StreamPage(feed.begin),
    }


class StaticPage:
    """A file of this package; it runs the scripts and styles that are written in it, and nothing else."""

    def __init__(self, name: str) -> None:
        text = (_FOLDER / name).read_text(encoding="utf-8")
        self._body = text.encode()
        policy = (
            f"default-src 'none'; script-src {_hashes(text, 'script')}; style-src {_hashes(text, 'style')}; "
            "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        self._headers: HeaderList = [
            _HTML,
            NOT_STORED,
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    def reply(self, status: int) -> Reply:
        """The page, with this status."""
        return Reply(status, self._headers, self._body)


class FormBody:
    """Reads the body of one request; implements `BodyConsumer`."""

    def __init__(self) -> None:
        self._data = b""
        self._done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def read(self, request: ClientRequest) -> bytes | None:
        """The body; None if it is too large or broken. The server ends the wait for a client that stops sending."""
        request.body.attach(self)
        return self._data if await self._done else None

    def on_body(self, data: bytes) -> None:
        """The next bytes."""
        self._data += data[: _MAX_FORM_BYTES + 1 - len(self._data)]
        if len(self._data) > _MAX_FORM_BYTES:
            self._end(complete=False)

    def on_body_end(self) -> None:
        """The body is complete."""
        self._end(complete=True)

    def on_body_broken(self, reason: str) -> None:  # noqa: ARG002
        """The body is not framed as it should be."""
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if not self._done.done():
            self._done.set_result(complete)


def _hashes(text: str, element: str) -> str:
    """The sources of a Content-Security-Policy for the inline elements of a page."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
