"""The two requests to the Kubernetes API that this program needs: list EndpointSlices, and watch them.

The token is read for every request and the trust bundle for every connection, because both are replaced while the pod runs.
Errors never show the token or the content of an answer. docs/dependencies.md says why no client library is used.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp

from kubernetes_router.settings import Settings
from kubernetes_router.slice_events import (
    InvalidAnswerError,
    Lines,
    ReportedError,
    SliceEvent,
    decode_event,
    decode_page,
)
from kubernetes_router.slices import EndpointSlice
from router.config.startup_checks import StartupError
from router.http1.server import keep_alive
from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

PAGE = Limit("kubernetes_router.page", bytes=32 << 20, pieces=20)
"""Slices per page of a list, and its size."""
FILES = Limit("kubernetes_router.files", bytes=1 << 20)
"""Token and trust bundle."""

_REQUEST_S: Final = 30.0
_CONNECT_S: Final = 10.0
_WATCH_S: Final = 300
"""The API ends a watch after this time; it is then continued, on a new connection and with the token of that time."""
_LATE_S: Final = 15.0
_GONE: Final = 410


class ApiError(Exception):
    """A request failed. `reason` is one of few short texts, for metrics; `hint` says what to do, if that is known."""

    def __init__(self, reason: str, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.hint = hint


class GoneError(ApiError):
    """The version from which to list or watch on is no longer known: list anew."""

    def __init__(self) -> None:
        super().__init__("gone", "the resource version is too old")


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where the API is and how it is accessed."""

    url: str
    """`https://host:port`, without a slash at the end."""
    token_path: str
    ca_path: str


def api_address(settings: Settings, environment: Mapping[str, str]) -> ApiAddress:
    """From the options, or from the variables that Kubernetes sets in every pod. Raises `StartupError`."""
    url = settings.kubernetes_api_url
    if url is None:
        host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise StartupError(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is no pod of a cluster; "
                "--kubernetes-api-url gives the address of the Kubernetes API"
            )
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise StartupError("the URL of the Kubernetes API must be https://host:port", url)
    return ApiAddress(url.rstrip("/"), settings.kubernetes_token_path, settings.kubernetes_ca_path)


class KubernetesApi:
    """Lists and watches the EndpointSlices of one Service."""

    def __init__(self, address: ApiAddress, *, namespace: str, service: str) -> None:
        self._address = address
        self._url = f"{address.url}/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        self._selector = f"kubernetes.io/service-name={service}"
        self._reader = FileReader()

    async def list(self) -> tuple[list[EndpointSlice], str]:
        """All slices and the version of this list. Raises `ApiError`."""
        found: list[EndpointSlice] = []
        following = ""
        async with self._session(_REQUEST_S) as session:
            while True:
                query = {"limit": str(PAGE.pieces), **({"continue": following} if following else {})}
                async with self._answer(session, query) as answer:
                    page = decode_page(await _read_bounded(answer))
                found += page.items or ()
                following = page.metadata.continue_ or ""
                if not following:
                    return found, page.metadata.resource_version

    async def watch(self, resource_version: str) -> AsyncGenerator[SliceEvent]:
        """The changes after a version, until the API ends the watch. Raises `ApiError`."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_S),
        }
        lines = Lines()
        async with self._session(_WATCH_S + _LATE_S) as session, self._answer(session, query) as answer:
            if answer.connection is not None and answer.connection.transport is not None:
                # An API server that vanished is found within two minutes.
                keep_alive(answer.connection.transport.get_extra_info("socket"))
            async for data in answer.content.iter_any():
                for line in lines.feed(data):
                    event = decode_event(line)
                    if event is not None:
                        yield event

    @asynccontextmanager
    async def _session(self, total_s: float) -> AsyncIterator[aiohttp.ClientSession]:
        """A session whose errors are `ApiError`."""
        token = (
            (await self._read(self._address.token_path, "the service account token")).decode("ascii", "replace").strip()
        )
        trust = _trust((await self._read(self._address.ca_path, "the trust bundle")).decode("ascii", "replace"))
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trust),
                headers={
                    "authorization": f"Bearer {token}",
                    "accept": "application/json",
                    "accept-encoding": "identity",
                },
                timeout=aiohttp.ClientTimeout(total=total_s, connect=_CONNECT_S),
            ) as session:
                yield session
        except TimeoutError:
            raise ApiError("timeout", "no answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError("connection", _described(error)) from None
        except InvalidAnswerError as invalid:
            raise ApiError("invalid", f"unexpected content: {invalid}") from None
        except ReportedError as reported:
            raise _refusal(reported.code) from None

    @asynccontextmanager
    async def _answer(
        self, session: aiohttp.ClientSession, query: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        parameters = {"labelSelector": self._selector, **query}
        async with session.get(self._url, params=parameters, allow_redirects=False) as answer:
            if answer.status != 200:
                raise _refusal(answer.status)
            yield answer

    async def _read(self, path: str, what: str) -> bytes:
        try:
            return await self._reader.result(path, lambda: read_small_file(path, FILES))
        except SmallFileError as error:
            raise ApiError("credentials", f"{what} cannot be read: {error.reason}") from None


def _trust(bundle: str) -> ssl.SSLContext:
    unusable = ApiError("credentials", "the trust bundle has no usable certificate")
    if not bundle.strip():
        raise unusable  # the library would trust the certificates of the system
    try:
        return ssl.create_default_context(cadata=bundle)
    except ssl.SSLError:
        raise unusable from None


def _described(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of the API is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientError | OSError):
        return str(error) or type(error).__name__
    # A token that cannot be a header. The text of the error may contain it, so it is not shown.
    return type(error).__name__


def _refusal(status: int) -> ApiError:
    if status == _GONE:
        return GoneError()
    hints = {
        401: "the token of the service account is not accepted",
        403: "the service account needs get, list and watch on endpointslices in discovery.k8s.io",
    }
    return ApiError(f"status_{status}" if status in hints else "status", f"HTTP status {status}", hints.get(status, ""))


async def _read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for data in answer.content.iter_any():
        content += data
        if len(content) > (PAGE.bytes or 0):
            raise InvalidAnswerError(f"a page of more than {PAGE.bytes} bytes")
    return bytes(content)
