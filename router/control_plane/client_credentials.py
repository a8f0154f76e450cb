"""Tokens of an OAuth2 provider for calls to the gateway. Imported only with a provider: its HTTP client takes 8 MiB.

Source: docs/control-plane.md, "Worker authentication"; client credentials grant: RFC 6749 section 4.4, Basic: section 2.3.1.
"""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote_plus

import aiohttp
import structlog

from router.balancing.json_document import JsonObject, parse
from router.control_plane.gateway_credentials import WORKER_SCOPE, CredentialError, SecretsFile

_log = structlog.get_logger()

_DEFAULT_LIFE_S = 300
_MAX_LIFE_S = 86_400
_RENEW_BEFORE_S = 60
_MAX_REPLY_BYTES = 1 << 20


class ClientCredentials:
    """Tokens of an OAuth2 provider for `id` and `secret` of a secrets file, cached until shortly before they expire."""

    def __init__(
        self,
        provider: str,
        secrets: SecretsFile,
        *,
        scope: str = WORKER_SCOPE,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`provider` is the base URL; `timeout_s` seconds limit one request to it, response included."""
        self._scope = scope
        self._url = provider.rstrip("/") + "/token"
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._clock = clock
        self._refreshing = asyncio.Lock()
        self._token = ""
        self._renew_at = float("-inf")
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"ClientCredentials({self._url!r})"

    async def token(self) -> str:
        """The cached token, or a new one; concurrent callers share one refresh. Raises `CredentialError`."""
        async with self._refreshing:
            if self._clock() >= self._renew_at:
                asked_at = self._clock()
                self._keep(*await self._mint(), asked_at)
            return self._token

    async def renew(self) -> None:
        """Replace a cached token; the old one is used meanwhile. Raises `CredentialError`, and keeps the old token then."""
        if self._clock() >= self._renew_at:
            return
        asked_at = self._clock()
        token, life_s = await self._mint()
        # A running refresh may have read the old secret: this token replaces its result.
        async with self._refreshing:
            self._keep(token, life_s, asked_at)

    def _keep(self, token: str, life_s: float, asked_at: float) -> None:
        self._token = token
        self._renew_at = asked_at + life_s - _RENEW_BEFORE_S
        _log.debug("minted worker-auth client-credentials token", expires_in_s=life_s)

    async def close(self) -> None:
        """Close the connections to the provider."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _mint(self) -> tuple[str, float]:
        user, password = await self._required("id"), await self._required("secret")
        basic = b64encode(f"{_form_encoded(user)}:{_form_encoded(password)}".encode()).decode()
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.post(
                    self._url,
                    data={"grant_type": "client_credentials", "scope": self._scope},
                    headers={"authorization": f"Basic {basic}"},
                    allow_redirects=False,
                ) as response,
            ):
                if not 200 <= response.status < 300:
                    raise CredentialError(f"oauth2 token endpoint returned status {response.status}")
                return _minted(await _bounded_body(response))
        except TimeoutError as error:
            raise CredentialError("oauth2 token request failed: timed out") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise CredentialError(f"oauth2 token request failed: {type(error).__name__}") from error

    async def _required(self, key: str) -> str:
        value = await self._secrets.text_at(key)
        if value is None:
            raise CredentialError(f"secrets file missing {key}")
        return value


def _form_encoded(part: str) -> str:
    return quote_plus(part, safe="-_.~")


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            raise CredentialError("oauth2 token request failed: the answer is too large")
    return bytes(body)


def _minted(body: bytes) -> tuple[str, float]:
    document = parse(body)
    reply = document.last() if isinstance(document, JsonObject) else {}
    if "access_token" not in reply:
        raise CredentialError("oauth2 token response missing access_token")
    token = reply["access_token"]
    if not isinstance(token, str):
        raise CredentialError("oauth2 access_token is not a string")
    life_s = reply.get("expires_in", _DEFAULT_LIFE_S)
    if isinstance(life_s, bool) or not isinstance(life_s, int | float) or not life_s >= 0:
        life_s = _DEFAULT_LIFE_S
    return token, min(life_s, _MAX_LIFE_S)
