"""Who may see the page, the API and explanations: docs/api.md, "Access".

A peer on the loopback that asks for `localhost` or a loopback address needs nothing: the name is checked so that a page of
another site cannot reach the port through a name of its own (DNS rebinding), and a forwarded request is not the peer's own.
Anyone else needs the token, as `Authorization: Bearer` or by a cookie that the login form sets. The cookie is derived from the
token, so it survives a restart and ends with the token.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Final

import structlog

from router.http1.request import ClientRequest
from router.operators.reply import NOT_STORED, Reply, line
from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.sampler import KIND
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

_log = structlog.get_logger()

COOKIE: Final = "router_operators"
TOKEN: Final = Limit("operators.token", bytes=4_096)
"""The token, and the form it is sent in."""

MIN_TOKEN: Final = 16
"""Characters that a token has at least."""

_FORWARDED: Final = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip")
_COOKIE_OF: Final = b"cookie of the operators' port, version 1"

ONLY_LOCAL: Final = (
    "403: only clients on this host may see this, by the name localhost or a loopback address; "
    "for others start the router with --operators-token-file"
)
NOT_USABLE: Final = "403: the token file of the router cannot be used; its log says why"
UNAUTHORIZED_STATUS: Final = 401
UNAUTHORIZED: Final = (
    "401: this needs the token of --operators-token-file, as `Authorization: Bearer`, or the login at /"
)


class TokenUnusableError(Exception):
    """The token file cannot be used; the message says why, without its content."""


class Access:
    """The rule, for one port."""

    def __init__(self, token_file: Path | None) -> None:
        """`token_file` is read at each use that needs it, off the event loop."""
        self._token_file = token_file
        self._reader = FileReader()

    async def refusal(self, request: ClientRequest, peer: str) -> Reply | None:
        """The answer to a request that is not allowed; None if it is."""
        if is_local(request, peer):
            return None
        if self._token_file is None:
            return line(403, ONLY_LOCAL)
        first = request.first
        if b"authorization" in first or b"cookie" in first:
            token = await self._token(self._token_file)
            if token is None:
                return line(403, NOT_USABLE)
            if _bearer_matches(request, token) or _cookie_matches(request, token):
                return None
        reply = line(401, UNAUTHORIZED)
        return reply._replace(headers=[*reply.headers, (b"www-authenticate", b'Bearer realm="operators"')])

    async def log_in(self, given: bytes) -> Reply:
        """Answer the login form: a cookie and the way to the page, or a refusal."""
        if self._token_file is None:
            return line(403, ONLY_LOCAL)
        token = await self._token(self._token_file)
        if token is None:
            return line(403, NOT_USABLE)
        if not hmac.compare_digest(given, token):
            _log.warning("a login at the operators' port was refused", **{KIND: "login refused"})
            return line(401, "401: this is not the token of --operators-token-file")
        cookie = f"{COOKIE}={_cookie_of(token)}; Path=/; HttpOnly; SameSite=Strict"
        return Reply(303, [(b"location", b"/"), (b"set-cookie", cookie.encode()), NOT_STORED])

    async def _token(self, path: Path) -> bytes | None:
        """The token; None if its file cannot be used, which is logged."""

        def read() -> bytes:
            return _usable(read_small_file(path, TOKEN))

        try:
            return await self._reader.result(str(path), read)
        except SmallFileError as error:
            _log.warning("the token file of the operators' port cannot be used", path=str(path), error=error.reason)
        except TokenUnusableError as error:
            _log.warning("the token file of the operators' port cannot be used", path=str(path), error=str(error))
        return None


Rule = Callable[[ClientRequest, str], Awaitable[Reply | None]]
"""`Access.refusal`."""


def is_local(request: ClientRequest, peer: str) -> bool:
    """Whether the request comes from this host, under a name that only this host has, and is not forwarded."""
    first = request.first
    return (
        _is_loopback(peer)
        and _names_this_host(first.get(b"host", b""))
        and not any(name in first for name in _FORWARDED)
    )


def _usable(content: bytes) -> bytes:
    token = content.strip()
    if len(token) < MIN_TOKEN:
        raise TokenUnusableError(f"the token has fewer than {MIN_TOKEN} characters")
    if not token.isascii() or any(byte <= 0x20 or byte == 0x7F for byte in token):
        raise TokenUnusableError("the token is not one line of printable ASCII without blanks")
    return token


def _bearer_matches(request: ClientRequest, token: bytes) -> bool:
    scheme, _, given = request.first.get(b"authorization", b"").strip().partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token)


def _cookie_matches(request: ClientRequest, token: bytes) -> bool:
    try:
        found = SimpleCookie(request.first.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
    except CookieError:
        return False
    return found is not None and hmac.compare_digest(
        found.value.encode("latin-1", "replace"), _cookie_of(token).encode()
    )


def _cookie_of(token: bytes) -> str:
    return hmac.new(token, _COOKIE_OF, hashlib.sha256).hexdigest()


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped.is_loopback
    return found.is_loopback


def _names_this_host(host: bytes) -> bool:
    name = host.decode("latin-1").strip().lower()
    if name.startswith("["):
        inner, closed, port = name[1:].partition("]")
        return bool(closed) and _is_loopback(inner) and (not port or _is_port(port))
    name, colon, port = name.partition(":")
    return (name == "localhost" or _is_loopback(name)) and (not colon or _is_port(f":{port}"))


def _is_port(text: str) -> bool:
    return text[0] == ":" and (text[1:] == "" or (text[1:].isascii() and text[1:].isdigit() and len(text) < 7))
