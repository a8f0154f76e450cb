"""Worker authentication: the gateway's answer, its failures, the router's own credential."""

import asyncio
import json
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import grpc
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from router.control_plane.client_credentials import ClientCredentials
from router.control_plane.gateway_auth import GatewayAuthenticator
from router.control_plane.gateway_credentials import (
    CredentialError,
    CredentialSource,
    FileCredential,
    SecretsFile,
    StaticCredential,
)
from router.control_plane.worker_auth import (
    OpenAuthenticator,
    StaticAuthenticator,
)
from router.ports.authentication import AuthenticationError, WorkerAuthConnectError
from router.telemetry.metrics import Metrics
from support.control_plane import ControlPlaneClient, control_plane
from support.package_settings import gateway_auth_settings
from support.relay import TcpRelay
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc
from tunnel_protocol.control.grpc_options import Keepalive

pytestmark = pytest.mark.loop("grpc")


class FakeGateway(llm_gateway_pb2_grpc.LlmGatewayServicer):
    """Maps worker tokens to routing keys; may fail or hang first."""

    def __init__(self) -> None:
        self.routing_keys: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.failures: list[grpc.StatusCode] = []
        self.hangs = 0

    async def AuthLlmWorker(  # noqa: N802 (name of the RPC)
        self, request: Any, context: Any
    ) -> llm_gateway_pb2.AuthLlmWorkerResponse:
        self.seen.append((request.workerToken, dict(context.invocation_metadata()).get("authorization")))
        if self.hangs:
            self.hangs -= 1
            await asyncio.Event().wait()
        if self.failures:
            await context.abort(self.failures.pop(0), "planned")
        if request.workerToken not in self.routing_keys:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown worker token")
        return llm_gateway_pb2.AuthLlmWorkerResponse(routingKey=self.routing_keys[request.workerToken])


class Rig:
    def __init__(self, gateway: FakeGateway, port: int, authenticator: GatewayAuthenticator, metrics: Metrics) -> None:
        self.gateway = gateway
        self.port = port
        self.authenticator = authenticator
        self.metrics = metrics

    async def refusal(self, token: str | None = "w") -> str:  # noqa: S107 (no secret)
        with pytest.raises(AuthenticationError) as refused:
            await self.authenticator.routing_key(token)
        return refused.value.cause_text

    def count(self, result: str) -> int:
        wanted = f'stargate_worker_auth_total{{result="{result}"}} '
        lines = self.metrics.render(additional=True).decode().splitlines()
        return next((int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(wanted)), 0)


@asynccontextmanager
async def gateway(
    credential: CredentialSource | None = None, clock: Callable[[], float] | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    service = FakeGateway()
    server = grpc.aio.server()
    llm_gateway_pb2_grpc.add_LlmGatewayServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    metrics = Metrics()
    asked = gateway_auth_settings(**{"endpoint": f"http://127.0.0.1:{port}", **settings})
    more = {} if clock is None else {"clock": clock}
    authenticator = GatewayAuthenticator(asked, credential, metrics, **more)
    try:
        await authenticator.connect(5.0)
        yield Rig(service, port, authenticator, metrics)
    finally:
        await authenticator.close()
        await server.stop(None)


async def test_gateway_sees_both_tokens_and_its_key_is_adopted() -> None:
    async with gateway(StaticCredential("router-token")) as rig:
        rig.gateway.routing_keys = {"w": "tenant"}
        assert await rig.authenticator.routing_key("w") == "tenant"
        assert rig.gateway.seen == [("w", "Bearer router-token")]


async def test_blank_key_is_unscoped_and_missing_tokens_are_asked_about_as_empty() -> None:
    async with gateway() as rig:
        rig.gateway.routing_keys = {"": "  ", "padded": " tenant "}
        assert await rig.authenticator.routing_key(None) is None
        assert await rig.authenticator.routing_key("padded") == "tenant"
        assert rig.gateway.seen[0] == ("", None)


async def test_refusal_is_final_and_never_remembered() -> None:
    async with gateway() as rig:
        assert await rig.refusal() == "UNAUTHENTICATED: unknown worker token"
        assert len(rig.gateway.seen) == 1
        rig.gateway.routing_keys = {"w": "tenant"}
        assert await rig.authenticator.routing_key("w") == "tenant"
        assert (rig.count("refused"), rig.count("accepted")) == (1, 1)


async def test_transient_failure_is_retried_once() -> None:
    async with gateway() as rig:
        rig.gateway.routing_keys = {"w": "tenant"}
        rig.gateway.failures = [grpc.StatusCode.UNAVAILABLE]
        assert await rig.authenticator.routing_key("w") == "tenant"
        rig.gateway.failures = [grpc.StatusCode.UNAVAILABLE] * 3
        assert await rig.refusal("v") == "UNAVAILABLE: planned"
        assert len(rig.gateway.failures) == 1
        assert rig.count("failed") == 1


async def test_hanging_gateway_is_asked_again_and_given_up_at_the_deadline() -> None:
    async with gateway(deadline_s=0.3) as rig:
        rig.gateway.routing_keys = {"w": "tenant"}
        rig.gateway.hangs = 1
        assert await rig.authenticator.routing_key("w") == "tenant"
        rig.gateway.hangs = 2
        assert await rig.refusal("v") in {"no answer within 0.3 s", "DEADLINE_EXCEEDED: Deadline Exceeded"}


async def test_acceptance_is_remembered_for_a_short_while_per_token() -> None:
    now = 0.0
    async with gateway(clock=lambda: now, cache_s=10, cache_entries=2) as rig:
        rig.gateway.routing_keys = {"w": "tenant", "v": "other", "u": "third"}
        for now, asked in ((0.0, 1), (9.9, 1), (10.0, 2)):  # noqa: B007 (the clock)
            assert await rig.authenticator.routing_key("w") == "tenant"
            assert len(rig.gateway.seen) == asked
        assert await rig.authenticator.routing_key("v") == "other"
        assert await rig.authenticator.routing_key("u") == "third"
        assert await rig.authenticator.routing_key("w") == "tenant"  # pushed out by the two others
        assert len(rig.gateway.seen) == 5
        assert rig.count("cached") == 1
        assert b"w" not in rig.authenticator._accepted


async def test_memory_can_be_switched_off() -> None:
    async with gateway(cache_s=0) as rig:
        rig.gateway.routing_keys = {"w": "tenant"}
        await rig.authenticator.routing_key("w")
        await rig.authenticator.routing_key("w")
        assert len(rig.gateway.seen) == 2


@pytest.mark.parametrize("secret", ["with\nbreak", "ünicode"])
async def test_credential_that_fits_no_header_fails_the_call(secret: str) -> None:
    async with gateway(StaticCredential(secret)) as rig:
        text = await rig.refusal()
        assert text.startswith("invalid auth token")
        assert secret not in text


async def test_unreachable_gateway_fails_the_start_after_its_time() -> None:
    settings = gateway_auth_settings(endpoint="http://127.0.0.1:9")
    authenticator = GatewayAuthenticator(settings, None, Metrics())
    with pytest.raises(WorkerAuthConnectError, match="failed to connect to worker auth endpoint"):
        await authenticator.connect(0.05)
    await authenticator.close()


@pytest.mark.parametrize("endpoint", ["gateway:50051", "ftp://gateway", "http://", ""])
def test_endpoint_must_be_an_url(endpoint: str) -> None:
    with pytest.raises(ValueError, match="http or https"):
        GatewayAuthenticator(gateway_auth_settings(endpoint=endpoint), None, Metrics())


async def test_https_endpoint_and_ipv6_host_are_understood() -> None:
    for endpoint in ("https://gateway.example", "http://[::1]:5"):
        await GatewayAuthenticator(gateway_auth_settings(endpoint=endpoint), None, Metrics()).close()


async def test_open_authenticator_takes_anybody_and_a_table_only_its_tokens() -> None:
    assert await OpenAuthenticator().routing_key("anything") is None
    table = StaticAuthenticator({"a": " key ", "b": " ", "c": None})
    assert [await table.routing_key(token) for token in "abc"] == ["key", None, None]
    for token in (None, "d"):
        with pytest.raises(AuthenticationError):
            await table.routing_key(token)


# The router's own credential


async def test_static_credential_is_the_literal_and_prints_redacted() -> None:
    credential = StaticCredential("literal")
    assert await credential.token() == "literal"
    assert "literal" not in repr(credential)


def secrets(tmp_path: Path, content: Any) -> SecretsFile:
    path = tmp_path / "secrets.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return SecretsFile(path)


async def test_file_credential_is_read_anew_each_time_and_not_trimmed(tmp_path: Path) -> None:
    file = secrets(tmp_path, {"authToken": " one ", "a": {"b": "nested"}})
    assert await FileCredential(file).token() == " one "
    assert await FileCredential(file, "a.b").token() == "nested"
    secrets(tmp_path, {"authToken": "two"})
    assert await FileCredential(file).token() == "two"
    await FileCredential(file).close()


@pytest.mark.parametrize(
    ("content", "key", "text"),
    [
        ({}, "authToken", "failed to extract key from secrets file"),
        ({"a": "x"}, "a.b", "failed to extract key from secrets file"),
        ([], "a", "failed to extract key from secrets file"),
        ({"authToken": 5}, "authToken", "is not a string"),
        (b"{", "authToken", "is not valid JSON"),
        (b"\xff", "authToken", "is not valid JSON"),
        (b"[" * 100_000, "authToken", "is not valid JSON"),
        (b" " * ((1 << 20) + 1), "authToken", "is larger than"),
    ],
)
async def test_unusable_secrets_file_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, content: Any, key: str, text: str
) -> None:
    with pytest.raises(CredentialError, match=text):
        await FileCredential(secrets(tmp_path, content), key).token()


async def test_missing_secrets_file_is_an_error_that_keeps_its_cause(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="failed to read secrets file") as failed:
        await FileCredential(SecretsFile(tmp_path / "none")).token()
    assert isinstance(failed.value.__cause__, FileNotFoundError)


class Provider:
    """An OAuth2 token endpoint."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.reply: Any = {"access_token": "minted", "expires_in": 300}
        self.status = 200
        self.stall: str | None = None
        self.url = ""
        self.stalled = asyncio.Event()
        self.released = asyncio.Event()

    async def token(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.headers["authorization"], await request.text()))
        if self.stall == "before":
            self.stalled.set()
            await self.released.wait()
        body = self.reply if isinstance(self.reply, bytes) else json.dumps(self.reply).encode()
        if self.stall == "inside":
            response = web.StreamResponse(status=self.status)
            await response.prepare(request)
            await response.write(body[:5])
            await self.released.wait()
            return response
        return web.Response(status=self.status, body=body)


@asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    service = Provider()
    application = web.Application()
    application.router.add_post("/token", service.token)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}//"
    try:
        yield service
    finally:
        service.released.set()
        await runner.cleanup()


@asynccontextmanager
async def minting(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Provider, ClientCredentials]]:
    async with provider() as service:
        file = secrets(tmp_path, {"id": "id /:ä~", "secret": "s+&%"})
        credentials = ClientCredentials(service.url, file, **options)
        try:
            yield service, credentials
        finally:
            await credentials.close()


async def test_token_is_minted_with_form_encoded_basic_authentication(tmp_path: Path) -> None:
    async with minting(tmp_path) as (service, credentials):
        assert await credentials.token() == "minted"
        [(authorization, body)] = service.requests
        scheme, _, encoded = authorization.partition(" ")
        assert scheme == "Basic"
        assert b64decode(encoded).decode() == "id+%2F%3A%C3%A4~:s%2B%26%25"
        assert parse_qs(body) == {"grant_type": ["client_credentials"], "scope": ["llm:check_worker"]}
        assert "s+&%" not in repr(credentials)


@pytest.mark.parametrize(
    ("life_s", "later_s", "requests"),
    [
        (300, 239, 1),
        (300, 240, 2),
        (60, 0, 2),
        (10**12, 86_339, 1),
        (10**12, 86_340, 2),
        ("odd", 239, 1),
        (None, 239, 1),
    ],
)
async def test_minted_token_is_kept_until_a_minute_before_it_expires(
    tmp_path: Path, life_s: Any, later_s: float, requests: int
) -> None:
    now = 0.0
    async with minting(tmp_path, clock=lambda: now) as (service, credentials):
        service.reply = {"access_token": "minted"} | ({} if life_s is None else {"expires_in": life_s})
        await credentials.token()
        now = float(later_s)
        await credentials.token()
        assert len(service.requests) == requests


async def test_a_renewal_replaces_the_kept_token_by_one_of_the_secret_as_it_is_now(tmp_path: Path) -> None:
    async with minting(tmp_path) as (service, credentials):
        await credentials.renew()
        assert service.requests == []  # none is kept: the first use mints one
        await credentials.token()
        secrets(tmp_path, {"id": "id", "secret": "rotated"})
        service.reply = {"access_token": "second"}
        await credentials.renew()
        assert b64decode(service.requests[1][0].partition(" ")[2]) == b"id:rotated"
        assert await credentials.token() == "second"
        assert len(service.requests) == 2


async def test_a_renewal_that_fails_leaves_the_kept_token_and_says_so(tmp_path: Path) -> None:
    async with minting(tmp_path) as (service, credentials), gateway(credentials) as rig:
        await credentials.token()
        service.status = 401
        with capture_logs() as logs:
            await rig.authenticator.renew_credential()
        assert [(line["event"], line["error"]) for line in logs] == [
            (
                "worker-auth credential not renewed; the old one stays",
                "oauth2 token endpoint returned status 401",
            )
        ]
        assert await credentials.token() == "minted"


async def test_the_kept_token_is_used_while_a_renewal_waits_for_the_provider(tmp_path: Path) -> None:
    async with minting(tmp_path) as (service, credentials):
        await credentials.token()
        service.stall, service.reply = "before", {"access_token": "second"}
        renewal = asyncio.create_task(credentials.renew())
        async with asyncio.timeout(5):
            await service.stalled.wait()
            assert await credentials.token() == "minted"
            service.released.set()
            await renewal
        assert await credentials.token() == "second"


async def test_concurrent_callers_share_one_mint(tmp_path: Path) -> None:
    async with minting(tmp_path) as (service, credentials):
        assert await asyncio.gather(*(credentials.token() for _ in range(5))) == ["minted"] * 5
        assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "reply", "text"),
    [
        (401, {}, "oauth2 token endpoint returned status 401"),
        (302, {}, "oauth2 token endpoint returned status 302"),
        (200, {}, "oauth2 token response missing access_token"),
        (200, [], "oauth2 token response missing access_token"),
        (200, {"access_token": 5}, "oauth2 access_token is not a string"),
        (200, b"{", "oauth2 token request failed"),
        (200, b" " * ((1 << 20) + 1), "oauth2 token request failed: the answer is too large"),
    ],
)
async def test_unusable_answer_of_the_provider_is_an_error(tmp_path: Path, status: int, reply: Any, text: str) -> None:
    async with minting(tmp_path) as (service, credentials):
        service.status, service.reply = status, reply
        with pytest.raises(CredentialError, match=text):
            await credentials.token()
        service.status, service.reply = 200, {"access_token": "minted"}
        assert await credentials.token() == "minted"


@pytest.mark.parametrize("stall", ["before", "inside"])
async def test_stalling_provider_times_out_and_the_next_caller_may_try(tmp_path: Path, stall: str) -> None:
    async with minting(tmp_path, timeout_s=0.1) as (service, credentials):
        service.stall = stall
        with pytest.raises(CredentialError, match="timed out"):
            await credentials.token()
        service.stall = None
        assert await credentials.token() == "minted"


async def test_unreachable_provider_is_an_error(tmp_path: Path) -> None:
    file = secrets(tmp_path, {"id": "i", "secret": "s"})
    credentials = ClientCredentials("http://127.0.0.1:9", file)
    with pytest.raises(CredentialError, match="oauth2 token request failed"):
        await credentials.token()
    await credentials.close()
    await credentials.close()


async def test_secrets_without_id_are_named(tmp_path: Path) -> None:
    credentials = ClientCredentials("http://127.0.0.1:9", secrets(tmp_path, {"secret": "s"}))
    with pytest.raises(CredentialError, match="secrets file missing id"):
        await credentials.token()


async def test_a_gateway_that_goes_silent_fails_registrations_in_time_and_is_connected_to_anew() -> None:
    """Its connection stays open, as with a proxy whose other side is gone, and brings nothing any more."""
    async with gateway() as rig:
        rig.gateway.routing_keys = {"early": "tenant", "late": "tenant"}
        with TcpRelay(rig.port) as relay:
            settings = gateway_auth_settings(
                endpoint=f"http://127.0.0.1:{relay.port}", deadline_s=0.5, keepalive=Keepalive(200, 800)
            )
            authenticator = GatewayAuthenticator(settings, None, rig.metrics)
            try:
                async with control_plane(authenticator=authenticator) as client:
                    await client.register("first", credential="early")
                    relay.silence()
                    began = time.monotonic()
                    assert await _answer(client, "late") is grpc.StatusCode.UNAUTHENTICATED
                    assert 0.4 < time.monotonic() - began < 5.0
                    assert client.router.routable("m", "tenant") == ["first"]
                    async with asyncio.timeout(10):
                        while await _answer(client, "late") is not grpc.StatusCode.OK:
                            pass
                    await client.register("second", credential="late")
                    assert client.router.routable("m", "tenant") == ["first", "second"]
            finally:
                await authenticator.close()


async def _answer(client: ControlPlaneClient, credential: str) -> grpc.StatusCode:
    """How a registration ends that says nothing."""
    worker = await client.open(credential=credential)
    with suppress(asyncio.InvalidStateError):
        await worker.call.done_writing()
    return (await worker.status())[0]
