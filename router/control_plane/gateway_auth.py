"""Worker authentication by the gateway's `AuthLlmWorker`. Imported only with a gateway: its gRPC library takes 14 MiB.

Source: docs/control-plane.md, "Worker authentication".
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlsplit

import grpc
import structlog

from router.control_plane.gateway_credentials import CredentialError, CredentialSource
from router.control_plane.settings import GatewayAuthSettings
from router.control_plane.worker_auth import digest_of, trimmed
from router.ports.authentication import AuthenticationError, WorkerAuthConnectError
from router.telemetry.metrics import Metrics
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc
from tunnel_protocol.control.grpc_options import channel_options

_log = structlog.get_logger()

_TRANSIENT: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED})


class GatewayAuthenticator:
    """Asks the gateway for the routing key of a token: one deadline, one retry, and a cache of acceptances."""

    def __init__(
        self,
        settings: GatewayAuthSettings,
        credential: CredentialSource | None,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens no connection. Raises ValueError for an endpoint that is not an http(s) URL."""
        self._settings = settings
        self._credential = credential
        self._metrics = metrics
        self._clock = clock
        self._salt = secrets.token_bytes(16)
        # Digest of the token -> (routing key, expiry in monotonic seconds); oldest first.
        self._accepted: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()
        self._channel = _channel(settings)
        self._gateway = llm_gateway_pb2_grpc.LlmGatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    async def connect(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds until the gateway is reachable, with retries. Raises `WorkerAuthConnectError`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise WorkerAuthConnectError("failed to connect to worker auth endpoint") from error

    async def close(self) -> None:
        """Close the channel and the credential source."""
        await self._channel.close(None)
        if self._credential is not None:
            await self._credential.close()

    async def renew_credential(self) -> None:
        """Let the credential source replace its cached token; a failure is logged, and the old token is kept."""
        if self._credential is None:
            return
        try:
            await self._credential.renew()
        except CredentialError as error:
            _log.warning("worker-auth credential not renewed; the old one stays", error=str(error))

    async def routing_key(self, token: str | None) -> str | None:
        """The routing key of `token` (None is sent as the empty token). Raises `AuthenticationError`."""
        digest = digest_of(self._salt, token or "")
        remembered = self._accepted.get(digest)
        if remembered is not None and self._clock() < remembered[1]:
            self._metrics.worker_auth_total.inc(("cached",))
            return remembered[0]
        began = time.perf_counter()
        result = "failed"
        try:
            routing_key = await self._ask(token or "")
            result = "accepted"
        except AuthenticationError as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and not _is_transient(error.__cause__):
                result = "refused"
            raise
        finally:
            self._metrics.worker_auth_total.inc((result,))
            self._metrics.worker_auth_duration_seconds.observe(time.perf_counter() - began, (result,))
        self._remember(digest, routing_key)
        return routing_key

    async def _ask(self, token: str) -> str | None:
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                metadata = await self._metadata()
                request = llm_gateway_pb2.AuthLlmWorkerRequest(workerToken=token)
                try:
                    reply = await self._call(request, metadata, self._settings.deadline_s / 2)
                except grpc.aio.AioRpcError as error:
                    if not _is_transient(error):
                        raise
                    reply = await self._call(request, metadata, self._settings.deadline_s)
        except CredentialError as error:
            raise AuthenticationError(str(error)) from error
        except TimeoutError as error:
            raise AuthenticationError(f"no answer within {self._settings.deadline_s:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise AuthenticationError(f"{error.code().name}: {error.details()}") from error
        return trimmed(reply.routingKey)

    async def _call(
        self, request: llm_gateway_pb2.AuthLlmWorkerRequest, metadata: tuple[tuple[str, str], ...], timeout_s: float
    ) -> llm_gateway_pb2.AuthLlmWorkerResponse:
        reply = await self._gateway.AuthLlmWorker(request, timeout=timeout_s, metadata=metadata)
        return cast("llm_gateway_pb2.AuthLlmWorkerResponse", reply)

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self._credential is None:
            return ()
        token = await self._credential.token()
        if not all(" " <= character <= "~" for character in token):
            raise CredentialError("invalid auth token: not a legal header value")
        return (("authorization", f"Bearer {token}"),)

    def _remember(self, digest: bytes, routing_key: str | None) -> None:
        if self._settings.cache_s <= 0:
            return
        self._accepted.pop(digest, None)
        self._accepted[digest] = (routing_key, self._clock() + self._settings.cache_s)
        if len(self._accepted) > self._settings.cache_entries:
            self._accepted.popitem(last=False)


def _channel(settings: GatewayAuthSettings) -> grpc.aio.Channel:
    url = urlsplit(settings.endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError(f"worker auth endpoint must be an http or https URL: {settings.endpoint}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    options = channel_options(settings.keepalive)
    if url.scheme == "http":
        return grpc.aio.insecure_channel(f"{host}:{url.port or 80}", options=options)
    return grpc.aio.secure_channel(
        f"{host}:{url.port or 443}", grpc.ssl_channel_credentials(settings.ca_pem), options=options
    )


def _is_transient(error: grpc.aio.AioRpcError) -> bool:
    return error.code() in _TRANSIENT
