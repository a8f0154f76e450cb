"""The connections to Redis, by the package `redis`. Imported only if a URL is set."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from router.openai.limits.redis_counter import CALLS, RedisCallError, Script
from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

PASSWORD_FILE = Limit("openai.redis_password_file", bytes=4_096)
"""Size limit of the file with the password."""

_DEFAULT_PORT = 6379


class RedisUrlError(ValueError):
    """The URL cannot be used; the text says why, and does not repeat it."""


class _PasswordFile(CredentialProvider):
    """Reads the password for every connection, so that a new one needs no restart."""

    def __init__(self, path: Path, user: str | None) -> None:
        self._path = path
        self._user = user
        self._reader = FileReader()

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        content = await self._reader.result(str(self._path), lambda: read_small_file(self._path, PASSWORD_FILE))
        password = content.decode("utf-8", "replace").rstrip("\r\n")
        return (password,) if self._user is None else (self._user, password)


class RedisConnection:
    """One connection for each call at a time, opened when it is needed. Calls do not retry: the caller has a deadline."""

    def __init__(self, url: str, password_path: Path | None, timeout_s: float) -> None:
        """Opens nothing. Raises `RedisUrlError`."""
        arguments = _arguments(url)
        if password_path is not None:
            arguments["credential_provider"] = _PasswordFile(password_path, arguments.pop("username", None))
        pool = BlockingConnectionPool(
            max_connections=CALLS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
            client_name="llm-request-router",
            **arguments,
        )
        self._client: Redis = Redis.from_pool(pool)

    def script(self, source: str) -> Script:
        """See `Scripts.script`."""
        registered = self._client.register_script(source)

        async def run(keys: list[str], arguments: list[str]) -> Any:
            try:
                return await registered(keys=keys, args=arguments)
            except RedisError as error:
                raise RedisCallError(_reason(error), str(error)) from error
            except (OSError, SmallFileError) as error:
                raise RedisCallError("connection", str(error)) from error

        return run

    async def close(self) -> None:
        """See `Scripts.close`."""
        await self._client.aclose()


def _reason(error: RedisError) -> str:
    """A short word of a small set: the class of the error."""
    name = type(error).__name__.removesuffix("Error").lower()
    return (
        name if name in {"connection", "timeout", "response", "authentication", "busyloading", "readonly"} else "other"
    )


def _arguments(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise RedisUrlError(str(error)) from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise RedisUrlError("it has to be redis://host:port/database, or rediss:// with TLS")
    if parts.password is not None:
        raise RedisUrlError("it has a password, which belongs into the file of --openai-redis-password-path")
    database = parts.path.removeprefix("/") or "0"
    if not (database.isascii() and database.isdigit() and len(database) <= 6) or parts.query or parts.fragment:
        raise RedisUrlError("only the number of a database may follow the address")
    found: dict[str, Any] = {"host": parts.hostname, "port": port, "db": int(database), "connection_class": Connection}
    if parts.username:
        found["username"] = unquote(parts.username)
    if parts.scheme == "rediss":
        found |= {"connection_class": SSLConnection, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    return found
