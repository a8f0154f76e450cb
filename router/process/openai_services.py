"""Opens what the OpenAI front is given: keys, limits, estimates, affinity and usage, as the options say."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from router.config.openai_checks import check_openai_access, keys_in_clear
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane.gateway_credentials import (
    CALLER_SCOPE,
    CredentialError,
    CredentialSource,
    FileCredential,
    SecretsFile,
)
from router.openai.affinity import GatewayAffinity, ScopedAffinity
from router.openai.estimator import LearningEstimator
from router.openai.keys.authenticator import KeyAuthenticator, OpenAuthenticator
from router.openai.keys.key_file import KeyFileError
from router.openai.keys.key_table import KeyTable
from router.openai.keys.nvcf import CredentialUnavailableError, NvcfCheck
from router.openai.keys.watched_keys import WatchedKeys
from router.openai.limits.counter import Counter
from router.openai.limits.limiter import KeyLimiter
from router.openai.limits.memory_counter import MemoryCounter
from router.openai.limits.redis_counter import RedisCounter
from router.openai.ports import Authenticator, FrontServices, UsageSink
from router.openai.usage import UsageCounters, UsageLog
from router.process.opening import Base
from router.process.polling import every
from router.process.sockets import cause_of
from tunnel_protocol.small_file import SmallFileError

_log = structlog.get_logger()
T = TypeVar("T")

_NO_REDIS = "limits of several processes need --openai-redis-url, or each process would allow them in full"


def open_services(base: Base, address: SocketAddress, *, tls: bool, as_gateway: bool) -> FrontServices:
    """Check the options for a front on `address`, and open its services; what is open is closed with `base.opened`.

    `tls`: the front has TLS; `as_gateway`: it is in the mode `gateway`. Raises `StartupError`. Needs a running loop.
    """
    settings = base.settings
    check_front(settings, address, several=base.supervisor is not None)
    if keys_in_clear(settings, address, tls=tls):
        _log.warning(
            "API keys of OpenAI clients travel without TLS: everybody on the way can read them; see --openai-tls-cert-path",
            addr=str(address),
        )
    return FrontServices(
        authenticator=_authenticator(base),
        limiter=KeyLimiter(
            _counter(base),
            base.metrics.openai_limit_refusals_total,
            open_if_unknown=settings.openai_redis_down == "open",
        ),
        estimator=LearningEstimator(correct=not as_gateway),
        affinity=GatewayAffinity() if as_gateway else ScopedAffinity(),
        usage=_usage(base),
    )


def check_front(settings: Settings, address: SocketAddress, *, several: bool) -> None:
    """Raise `StartupError` if nobody could use a front on `address`, everybody could by mistake, or limits would not hold.

    `several`: processes of one router, each of which would count by itself.
    """
    check_openai_access(settings, address)
    if not several or settings.openai_redis_url is not None or settings.openai_open:
        return
    if settings.openai_auth_endpoint is not None:
        raise StartupError(_NO_REDIS, options=settings.shown("openai_auth_endpoint"))
    path = settings.openai_keys_file
    if path is not None and _load_keys(settings, lambda: WatchedKeys.read(Path(path))).with_limits:
        raise StartupError(_NO_REDIS, options=settings.shown("openai_keys_file"))


def _authenticator(base: Base) -> Authenticator:
    settings, metrics = base.settings, base.metrics
    if settings.openai_open:
        return OpenAuthenticator()
    keys: WatchedKeys | None = None
    if settings.openai_keys_file is not None:
        path = Path(settings.openai_keys_file)
        allowed = base.supervisor is None or settings.openai_redis_url is not None
        keys = _load_keys(settings, lambda: WatchedKeys.load(path, metrics, limits_allowed=allowed))
        name = "API keys reload"
        base.reloads.poll(name, keys.poll)
        base.tasks.start_loop(name, every(settings.openai_keys_poll_ms / 1000, keys.poll, name, metrics))
    nobody = KeyTable({})
    return KeyAuthenticator(
        (lambda: nobody) if keys is None else (lambda: keys.table),
        metrics.openai_key_refusals_total,
        hide=settings.openai_forbidden_status == 404,
        now=time.time,
        remote=_nvcf(base),
    )


def _load_keys(settings: Settings, load: Callable[[], T]) -> T:
    options = settings.shown("openai_keys_file")
    headline = f"failed to read the file of API keys: {settings.openai_keys_file}"
    try:
        return load()
    except SmallFileError as error:
        raise StartupError(headline, error.reason, options=options) from None
    except KeyFileError as error:
        raise StartupError(headline, str(error), options=options) from None


def _nvcf(base: Base) -> NvcfCheck | None:
    settings = base.settings
    if settings.openai_auth_endpoint is None:
        return None
    source = _credential(settings)
    try:
        check = NvcfCheck(
            settings.openai_auth_endpoint,
            None if source is None else _token_of(source),
            base.metrics,
            timeout_s=settings.openai_auth_timeout_ms / 1000,
            cache_s=settings.openai_auth_cache_ms / 1000,
            hide=settings.openai_forbidden_status == 404,
        )
    except ValueError as error:
        options = settings.shown("openai_auth_endpoint")
        raise StartupError("failed to use the NVCF API for API keys", str(error), options=options) from None
    if source is not None:
        base.opened.push_async_callback(source.close)
    base.opened.push_async_callback(check.close)
    return check


def _credential(settings: Settings) -> CredentialSource | None:
    if settings.secrets_path is None:
        return None
    secrets = SecretsFile(Path(settings.secrets_path))
    if settings.oauth2_provider_host is not None:
        # With its HTTP client of 8 MiB, which nothing else needs.
        from router.control_plane.client_credentials import ClientCredentials

        return ClientCredentials(settings.oauth2_provider_host, secrets, scope=CALLER_SCOPE)
    return FileCredential(secrets, settings.openai_auth_secrets_json_path)


def _token_of(source: CredentialSource) -> Callable[[], Awaitable[str]]:
    async def token() -> str:
        try:
            return await source.token()
        except CredentialError as error:
            raise CredentialUnavailableError(str(error)) from error

    return token


def _counter(base: Base) -> Counter:
    settings = base.settings
    if settings.openai_redis_url is None:
        return MemoryCounter(time.monotonic)
    # The package is needed with a URL only.
    from router.openai.limits.redis_connection import RedisConnection, RedisUrlError

    timeout_s = settings.openai_redis_timeout_ms / 1000
    password = settings.openai_redis_password_path
    try:
        connection = RedisConnection(settings.openai_redis_url, None if password is None else Path(password), timeout_s)
    except RedisUrlError as error:
        raise StartupError("--openai-redis-url cannot be used", str(error)) from None
    counter = RedisCounter(connection, base.metrics.openai_limit_store_failures_total, timeout_s=timeout_s)
    base.opened.push_async_callback(counter.close)
    base.tasks.start_loop("leases of limits in Redis", counter.run())
    return counter


def _usage(base: Base) -> UsageSink:
    counters = UsageCounters(base.metrics)
    path = base.settings.openai_usage_log
    if path is None:
        return counters
    try:
        log = UsageLog(Path(path), counters)
    except OSError as error:
        options = base.settings.shown("openai_usage_log")
        raise StartupError(f"failed to open the usage log {path}", cause_of(error), options=options) from None
    base.metrics.log_lines_dropped_total.track(lambda: log.dropped, ("usage_log",))
    base.reloads.reopen(log.reopen)
    # Its end waits for a slow disk, so not on the loop.
    base.opened.push_async_callback(asyncio.to_thread, log.close)
    return log
