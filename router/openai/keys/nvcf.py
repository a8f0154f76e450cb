"""Asks the NVCF API whether a caller's key may invoke a function: one question at a time for a key and function, with a deadline.

An acceptance is remembered for a while, and a little longer while the API is unavailable; a refusal for a shorter time.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import cast
from urllib.parse import urlsplit

import grpc
import structlog

from router.openai.keys.answer_cache import AnswerCache
from router.openai.keys.caller import GrantedCaller
from router.openai.keys.key_format import PREFIX
from router.openai.keys.nvcf_answers import NoRight, UnusableAnswerError, caller_of, refusal_of
from router.openai.keys.refusals import CANNOT_CHECK, CHECK_FAILED, CHECK_TOOK_TOO_LONG, WRONG_KEY, no_right
from router.openai.ports import Caller, KeyRefused
from router.telemetry.metrics import Metrics
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc
from tunnel_protocol.control.grpc_options import channel_options
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

QUESTIONS = Limit("openai.key_checks", pieces=256)
"""Questions that are not answered yet; further callers are told to try again."""

_STALE_S = 300.0
"""How long an acceptance stays usable while the API is unavailable."""
_REFUSALS_OF_ACCEPTANCES = 1 / 6
"""Time for which a refusal is remembered, as a part of that of an acceptance."""
_LOG_EVERY_S = 60.0

Answer = GrantedCaller | KeyRefused | NoRight


class CredentialUnavailableError(Exception):
    """The router has no credential for the API now; the text has the reason and no secret."""


class UncheckedCaller:
    """A caller whose key is not in the file: what it may do is known when the routing key is."""

    __slots__ = ("key_id", "priority", "token")

    def __init__(self, token: str) -> None:
        self.key_id = "nvcf"
        self.priority: int | None = None
        self.token = token

    def __repr__(self) -> str:
        return "UncheckedCaller(<redacted>)"

    def routing_method(self, model: str) -> str | None:  # noqa: ARG002 (the port)
        """Not known yet."""
        return None

    def may_use(self, routing_key: str | None, model: str) -> bool:  # noqa: ARG002 (the port)
        """Not known yet; so its list of models is empty."""
        return False


class NvcfCheck:
    """The `RemoteCheck` by `AuthLlmInvocation`."""

    def __init__(
        self,
        endpoint: str,
        credential: Callable[[], Awaitable[str]] | None,
        metrics: Metrics,
        *,
        timeout_s: float,
        cache_s: float,
        hide: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens no connection. Raises ValueError for an endpoint that is not an http(s) URL.

        `credential` gives the router's own token for the API, or raises `CredentialUnavailableError`; None: it needs none.
        """
        self._credential = credential
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._hide = hide
        self._clock = clock
        # So that a dump of the memory does not tell which of known keys were used.
        self._salt = secrets.token_bytes(16)
        self._accepted: AnswerCache[GrantedCaller] = AnswerCache(cache_s, cache_s + _STALE_S, clock)
        self._refused: AnswerCache[KeyRefused | NoRight] = AnswerCache(cache_s * _REFUSALS_OF_ACCEPTANCES, 0.0, clock)
        self._asked: dict[bytes, asyncio.Task[Answer]] = {}
        self._log_after = float("-inf")
        self._channel = _channel(endpoint)
        self._api = llm_gateway_pb2_grpc.LlmGatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    async def close(self) -> None:
        """Cancel what is being asked, and close the channel."""
        running = list(self._asked.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._channel.close(None)

    def candidate(self, key: bytes) -> UncheckedCaller | None:
        """See `RemoteCheck.candidate`. Keys of the file's kind are none of the API's."""
        if key.startswith(PREFIX.encode()) or not all(0x20 < byte < 0x7F for byte in key):
            return None
        return UncheckedCaller(key.decode("ascii"))

    def check(
        self, caller: Caller, routing_key: str | None, named: str
    ) -> "Caller | KeyRefused | asyncio.Future[Caller | KeyRefused] | None":
        """See `RemoteCheck.check`."""
        if not isinstance(caller, UncheckedCaller):
            return None
        if routing_key is None or not _is_text(routing_key):
            return no_right(named, hide=self._hide)
        digest = self._digest(caller.token, routing_key)
        accepted = self._accepted.get(digest)
        if accepted is not None and accepted.fresh:
            self._count("cached")
            return accepted.value
        refused = self._refused.get(digest)
        if refused is not None:
            self._count("cached")
            return self._told(refused.value, named)
        task = self._asked.get(digest)
        if task is None:
            if len(self._asked) >= (QUESTIONS.pieces or 0):
                self._count("busy")
                return CANNOT_CHECK
            task = asyncio.get_running_loop().create_task(self._ask(digest, caller.token, routing_key))
            self._asked[digest] = task
            task.add_done_callback(lambda _: self._asked.pop(digest, None))
        return asyncio.ensure_future(self._later(task, named))

    async def _later(self, task: "asyncio.Task[Answer]", named: str) -> "Caller | KeyRefused":
        # A client that leaves does not end the question of others.
        return self._told(await asyncio.shield(task), named)

    def _told(self, answer: Answer, named: str) -> "Caller | KeyRefused":
        return no_right(named, hide=self._hide) if isinstance(answer, NoRight) else answer

    async def _ask(self, digest: bytes, token: str, routing_key: str) -> Answer:
        began = time.perf_counter()
        answer, result = await self._answer(token, routing_key)
        self._metrics.openai_key_check_duration_seconds.observe(time.perf_counter() - began)
        if isinstance(answer, GrantedCaller):
            self._accepted.put(digest, answer)
        elif answer is WRONG_KEY or isinstance(answer, NoRight):
            self._accepted.forget(digest)
            self._refused.put(digest, answer)
        elif answer in (CANNOT_CHECK, CHECK_TOOK_TOO_LONG):
            stale = self._accepted.get(digest)
            if stale is not None:
                answer, result = stale.value, "stale"
        self._count(result)
        return answer

    async def _answer(self, token: str, routing_key: str) -> tuple[Answer, str]:
        """The answer and its label in the metric; failures of the API are logged once a minute."""
        try:
            async with asyncio.timeout(self._timeout_s):
                request = llm_gateway_pb2.AuthLlmInvocationRequest(
                    clientAuthorizationToken=token, routingKey=routing_key
                )
                metadata = await self._metadata()
                reply = await self._api.AuthLlmInvocation(request, timeout=self._timeout_s, metadata=metadata)
            found = caller_of(cast("llm_gateway_pb2.AuthLlmInvocationResponse", reply), routing_key)
        except TimeoutError:
            self._log_failure(f"no answer within {self._timeout_s:g} s")
            return CHECK_TOOK_TOO_LONG, "failed"
        except grpc.aio.AioRpcError as error:
            answer = refusal_of(error.code())
            if answer is WRONG_KEY or isinstance(answer, NoRight):
                return answer, "refused"
            self._log_failure(f"{error.code().name}: {error.details()}")
            return answer, "failed"
        except CredentialUnavailableError as error:
            self._log_failure(str(error))
            return CANNOT_CHECK, "failed"
        except UnusableAnswerError as error:
            self._log_failure(str(error))
            return CHECK_FAILED, "failed"
        return found, "accepted"

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self._credential is None:
            return ()
        token = await self._credential()
        if not all(" " <= character <= "~" for character in token):
            raise CredentialUnavailableError("the credential is not a legal header value")
        return (("authorization", f"Bearer {token}"),)

    def _log_failure(self, error: str) -> None:
        if self._clock() >= self._log_after:
            self._log_after = self._clock() + _LOG_EVERY_S
            _log.warning("API keys of OpenAI clients cannot be checked by the NVCF API", error=error)

    def _count(self, result: str) -> None:
        self._metrics.openai_key_checks_total.inc((result,))

    def _digest(self, token: str, routing_key: str) -> bytes:
        text = f"{len(token)}:{token}{routing_key}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=32).digest()


def _is_text(routing_key: str) -> bool:
    """Whether protobuf can carry it: a client can write half of a surrogate pair in JSON."""
    return routing_key.isascii() or not any("\ud800" <= character <= "\udfff" for character in routing_key)


def _channel(endpoint: str) -> grpc.aio.Channel:
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("it must be an http or https URL")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    if url.scheme == "http":
        return grpc.aio.insecure_channel(f"{host}:{url.port or 80}", options=channel_options())
    credentials = grpc.ssl_channel_credentials()
    return grpc.aio.secure_channel(f"{host}:{url.port or 443}", credentials, options=channel_options())
