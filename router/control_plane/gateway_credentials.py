"""The credential of this router in calls to the gateway: none, a secret from a file, or a token from an OAuth2 provider.

Source: docs/control-plane.md, "Worker authentication"; client credentials grant: RFC 6749 section 4.4, Basic: section 2.3.1.
"""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_plus

import aiohttp
import structlog

from router.balancing.json_document import JsonError, JsonObject, parse
from router.control_plane.settings import SECRETS_KEY
from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, FileTooLargeError, SmallFileError, read_small_file

_log = structlog.get_logger()

WORKER_SCOPE = "llm:check_worker"
"""OAuth2 scope of the question about a worker."""
CALLER_SCOPE = "llm:check_invocation"
"""OAuth2 scope of the question about a caller."""
_DEFAULT_LIFE_S = 300
_MAX_LIFE_S = 86_400
_RENEW_BEFORE_S = 60
_MAX_REPLY_BYTES = 1 << 20
SECRETS = Limit("files.secrets", bytes=1 << 20)
"""Size limit of the file with the credentials of this router."""


class CredentialError(Exception):
    """No credential is available now. The text has the reason and no secret."""


class CredentialSource(Protocol):
    """The source of the bearer token for calls to the gateway."""

    async def token(self) -> str:
        """The token to use now. Raises `CredentialError`."""

    async def renew(self) -> None:
        """Replace a cached token, as its source may have changed. Raises `CredentialError`, and keeps the old token then."""

    async def close(self) -> None:
        """Release the resources of the source."""


class StaticCredential:
    """One token for the life of the process."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "StaticCredential(<redacted>)"

    async def token(self) -> str:
        """The token."""
        return self._token

    async def renew(self) -> None:
        """Does nothing: the token is fixed."""

    async def close(self) -> None:
        """Does nothing: there are no resources."""


class SecretsFile:
    """A JSON file that a sidecar may replace at any time; read for every use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = FileReader()

    async def text_at(self, key_path: str) -> str | None:
        """The string at a dot-separated path; None if there is no value. Raises `CredentialError`."""
        try:
            content = await self._reader.result(str(self.path), lambda: read_small_file(self.path, SECRETS))
        except FileTooLargeError as error:
            raise CredentialError(f"secrets file '{self.path}' is larger than {error.limit_bytes} bytes") from error
        except SmallFileError as error:
            raise CredentialError(f"failed to read secrets file '{self.path}'") from (error.__cause__ or error)
        try:
            value = parse(content)
        except JsonError as error:
            # Only the position: the rest of the text may quote a secret.
            where = f" at {error.place}" if error.place.startswith("line ") else ""
            raise CredentialError(f"secrets file '{self.path}' is not valid JSON{where}") from error
        for key in key_path.split("."):
            fields = value.last() if isinstance(value, JsonObject) else {}
            if key not in fields:
                return None
            value = fields[key]
        if not isinstance(value, str):
            raise CredentialError(f"secrets file value at {key_path} is not a string")
        return value


class FileCredential:
    """The token in a secrets file, without trimming."""

    def __init__(self, secrets: SecretsFile, key_path: str = SECRETS_KEY) -> None:
        self._secrets = secrets
        self._key_path = key_path

    async def token(self) -> str:
        """Read the token from the file. Raises `CredentialError`."""
        token = await self._secrets.text_at(self._key_path)
        if token is None:
            raise CredentialError(f"failed to extract key from secrets file: no {self._key_path}")
        return token

    async def renew(self) -> None:
        """Does nothing: no token is cached."""

    async def close(self) -> None:
        """Does nothing: there are no resources."""


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
