"""What the front asks of keys, limits, estimates, affinity and usage, as interfaces and values.

The listener of the front knows these only; the implementations (`router/openai/{keys,limits,estimate,affinity,usage}`) know nothing
of the listener. The order of one request:

1. `Authenticator.authenticate` with the head, before the body is read: a `Caller`, or `KeyRefused`.
2. The body is read, the model name resolved to a target (routing key or None, model).
3. `Authenticator.authorize` with the target: the `Caller` for it, or `KeyRefused`.
4. `TokenEstimator.estimate` and `output_hint`, `Affinity`.
5. `Limiter.admit`: an `Admission` (its headers go onto every answer of the request), or `LimitRefusal`.
6. The request is relayed. At its end, whatever the end, `Admission.finish` once, `TokenEstimator.learn` if usage was reported, and
   `UsageSink.record` once. A refused request is recorded too, if its caller is known.

What can be answered without waiting is returned directly; what needs I/O returns an `asyncio.Future`, with a deadline of its own. The
caller may cancel such a future. Methods do not raise for anything a client sends.

Most are abstract classes and no protocols: the compiled form calls a method of its own classes in a tenth of the time.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeAlias

from mypy_extensions import mypyc_attr

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Response fields, names in lower case, for example `((b"retry-after", b"4"),)`."""


# --- refusals ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of a worker's: the members of the error envelope, the status, and further response fields."""

    status: int
    type: str
    """`error.type`, for example `invalid_request_error`."""
    code: str
    """`error.code`, for example `invalid_api_key`."""
    message: str
    """`error.message`: what to do; never the key, an address or the text of an exception."""
    param: str | None = None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class KeyRefused(Refusal):
    """401: no key or one that is not valid. 403 or 404: no right to the target. 503, 504: the key cannot be checked now."""


@dataclass(frozen=True, slots=True)
class LimitRefusal(Refusal):
    """429: a limit is reached. 400: the request can never pass a limit. 503: limits cannot be checked, and must be.

    `headers` has `retry-after`, `retry-after-ms`, `x-should-retry` where they help, and all `x-ratelimit-*`.
    """


def unknown_model(model: str) -> str:
    """The message of 404 `model_not_found`: the same for a model that does not exist and for one without the right to it."""
    return f"The model `{model}` does not exist or you do not have access to it."


# --- keys --------------------------------------------------------------------------------------------------------------

OPEN: Final = "open"
"""`Caller.key_id` of a client that needs no key (`--openai-open`)."""


class Caller(Protocol):
    """Who sends a request, and what it may do."""

    @property
    def key_id(self) -> str:
        """Name of the key: a label of metrics and part of affinity keys; never the key itself. Not more than 64 characters."""

    @property
    def priority(self) -> int | None:
        """Value for the routing request's priority, 0 the most urgent; None: the router's default."""

    def routing_method(self, model: str) -> str | None:
        """What `x-routing-method` would say for a request for `model`; None: the router's default."""

    def may_use(self, routing_key: str | None, model: str) -> bool:
        """Whether the caller has the right to a target, as far as that is known without asking anybody.

        For the list of models. A request is decided by `Authenticator.authorize`.
        """


@mypyc_attr(allow_interpreted_subclasses=True)
class Authenticator(ABC):
    """Decides by its key who sends a request."""

    __slots__ = ()

    @abstractmethod
    def authenticate(
        self, authorization: bytes | None, api_key: bytes | None
    ) -> "Caller | KeyRefused | asyncio.Future[Caller | KeyRefused]":
        """The caller of a request, from its head alone.

        `authorization` is the value of that field, None without one; `api_key` that of `x-api-key`, else of `api-key`. It counts only
        without `authorization`. With several `authorization` fields pass them joined by a comma, which no key matches.
        """

    @abstractmethod
    def authorize(
        self, caller: Caller, routing_key: str | None, model: str, named: str
    ) -> "Caller | KeyRefused | asyncio.Future[Caller | KeyRefused]":
        """The caller of a request for a target: `caller`, or one that knows more, which replaces it.

        `named` is the model as the client wrote it, for the message of a refusal.
        """


# --- usage -------------------------------------------------------------------------------------------------------------


class Usage:
    """Tokens of one request as the engine reported them. Equal by its numbers."""

    __slots__ = ("cached_tokens", "input_tokens", "output_tokens", "reasoning_tokens")

    def __init__(
        self, input_tokens: int, output_tokens: int, cached_tokens: int = 0, reasoning_tokens: int = 0
    ) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens
        """Part of the input tokens."""
        self.reasoning_tokens = reasoning_tokens
        """Part of the output tokens."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash(self._numbers())

    def __repr__(self) -> str:
        return f"Usage{self._numbers()}"

    def _numbers(self) -> tuple[int, int, int, int]:
        return self.input_tokens, self.output_tokens, self.cached_tokens, self.reasoning_tokens


class End(Enum):
    """How a request of the front ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    """By the front or the router, before a worker accepted it."""
    ENGINE_ERROR = "engine_error"
    """The engine answered with an error, as status or as event."""
    CLIENT_GONE = "client_gone"
    CUT = "cut"
    """The worker's answer did not end well, or a timeout ended it."""


class UsageRecord:
    """One request, for counters and the usage log. No content, no key."""

    __slots__ = (
        "code",
        "duration_ms",
        "end",
        "estimated_input_tokens",
        "first_token_ms",
        "key_id",
        "model",
        "output_seen",
        "path",
        "registered",
        "request_id",
        "routing_key",
        "status",
        "stream",
        "usage",
    )

    def __init__(
        self,
        *,
        request_id: str,
        key_id: str,
        path: str,
        routing_key: str | None,
        model: str,
        registered: bool,
        stream: bool,
        status: int,
        code: str | None,
        end: End,
        estimated_input_tokens: int,
        usage: Usage | None,
        output_seen: int,
        first_token_ms: float | None,
        duration_ms: float,
    ) -> None:
        self.request_id = request_id
        self.key_id = key_id
        self.path = path
        """The endpoint, for example `/v1/chat/completions`."""
        self.routing_key = routing_key
        self.model = model
        """The routed model; empty if the request did not get so far."""
        self.registered = registered
        """Whether the model is one that workers serve. Others are no label of a metric."""
        self.stream = stream
        self.status = status
        self.code = code
        """`error.code` of an error made by the front."""
        self.end = end
        self.estimated_input_tokens = estimated_input_tokens
        self.usage = usage
        """None: the engine reported none."""
        self.output_seen = output_seen
        """Events with content that were relayed; 0 for an answer that was no stream."""
        self.first_token_ms = first_token_ms
        self.duration_ms = duration_ms


@mypyc_attr(allow_interpreted_subclasses=True)
class UsageSink(ABC):
    """Takes one record a request; never waits and never fails."""

    __slots__ = ()

    @abstractmethod
    def record(self, record: UsageRecord) -> None:
        """Count and log a request that has ended."""


# --- limits ------------------------------------------------------------------------------------------------------------


@mypyc_attr(allow_interpreted_subclasses=True)
class Admission(ABC):
    """A request that is counted by the limits, until `finish`."""

    __slots__ = ("headers",)

    def __init__(self, headers: Headers = ()) -> None:
        self.headers = headers
        """`x-ratelimit-*` fields as of the admission; empty if nothing limits the request."""

    @abstractmethod
    def finish(self, usage: Usage | None, output_seen: int = 0, *, served: bool = True) -> None:
        """End the request and correct what it was charged. Call it once, whatever the end; later calls have no effect.

        With `usage`, that is the charge. Without, it is the estimated input and `output_seen` (events with content that were
        relayed). `served=False`: no worker accepted the request, and nothing is charged, the request itself neither.
        """


@mypyc_attr(allow_interpreted_subclasses=True)
class Limiter(ABC):
    """Counts requests, tokens and running requests by key and model."""

    __slots__ = ()

    @abstractmethod
    def admit(
        self, caller: Caller, routing_key: str | None, model: str, input_tokens: int, output_tokens: int | None
    ) -> "Admission | LimitRefusal | asyncio.Future[Admission | LimitRefusal]":
        """Reserve one request of `input_tokens` (estimated) and `output_tokens` (the hint; None: unknown).

        A future that is cancelled releases what it reserved; one that has a result must be finished.
        """


# --- estimates ---------------------------------------------------------------------------------------------------------


class BodyFacts:
    """What the estimate of input tokens needs to know of a body. Base64 of images and audio counts in none of the byte fields.

    No named tuple, as what is made for every request: making one takes ten times as long in the compiled form.
    """

    __slots__ = ("images", "images_low", "pieces", "quarters", "text_bytes", "token_ids", "tools_bytes")

    def __init__(
        self,
        text_bytes: int = 0,
        pieces: int = 0,
        tools_bytes: int = 0,
        token_ids: int = 0,
        images_low: int = 0,
        images: int = 0,
        quarters: int = 0,
    ) -> None:
        self.text_bytes = text_bytes
        """UTF-8 bytes of all text the engine reads: content, names, tool calls, instructions, prompts, inputs."""
        self.pieces = pieces
        """Number of messages, prompts or inputs the text stands in."""
        self.tools_bytes = tools_bytes
        """Bytes of the JSON of tools, functions and the response format, once."""
        self.token_ids = token_ids
        """Number of token ids given instead of text."""
        self.images_low = images_low
        """Images with `detail: "low"`."""
        self.images = images
        """Other images."""
        self.quarters = quarters
        """Text that is counted already, in quarters of bytes: for embeddings the sum of `ceil(bytes / 4)` over the inputs (and their
        number in `pieces`), in the mode `gateway` the whole estimate. Such text is not in `text_bytes`."""


class Estimate:
    """Input tokens of a body."""

    __slots__ = ("base", "exact", "tokens")

    def __init__(self, tokens: int, base: int, exact: int = 0) -> None:
        self.tokens = tokens
        """Corrected by what the model reported so far: for routing and limits."""
        self.base = base
        """Without correction, and without `exact`: what `learn` compares."""
        self.exact = exact
        """Part of `tokens` that is no estimate: token ids."""


@mypyc_attr(allow_interpreted_subclasses=True)
class TokenEstimator(ABC):
    """Estimates tokens without a tokenizer, and learns from what engines report. Holds a bounded number of models."""

    __slots__ = ()

    @abstractmethod
    def estimate(self, model: str, facts: BodyFacts) -> Estimate:
        """Input tokens of a body for `model` (the routed one)."""

    @abstractmethod
    def output_hint(self, model: str, most: int | None) -> int | None:
        """Expected output tokens: `most` (the client's limit, None without one), capped by what the model produces on average.

        None if neither is known.
        """

    @abstractmethod
    def learn(self, model: str, estimate: Estimate, usage: Usage) -> None:
        """Take a reported usage into account."""


# --- affinity ----------------------------------------------------------------------------------------------------------


@mypyc_attr(allow_interpreted_subclasses=True)
class Affinity(ABC):
    """Cache affinity keys: the same key for the turns of a conversation, and never one for two callers."""

    __slots__ = ()

    @abstractmethod
    def session_fault(self, session: str) -> str | None:
        """Why `session` cannot be a session id (too long, control characters); None if it can."""

    @abstractmethod
    def of_session(
        self, caller: Caller, routing_key: str | None, model: str, session: str, *, from_header: bool = False
    ) -> str:
        """The key of an explicit session: `prompt_cache_key`, a conversation id, or the header `x-multi-turn-session-id`.

        `from_header` is for the mode `gateway`, which takes a value that looks like its own keys as it is, if a header has it.
        """

    @abstractmethod
    def of_prefix(self, caller: Caller, routing_key: str | None, model: str, parts: tuple[bytes, ...]) -> str | None:
        """The key of a conversation without a session id; None if `parts` are empty.

        `parts` are the JSON of the members that stay the same from turn to turn, as the client wrote them: tools, each system or
        developer message (instructions), the first user message.
        """


# --- all of it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrontServices:
    """What a listener is given."""

    authenticator: Authenticator
    limiter: Limiter
    estimator: TokenEstimator
    affinity: Affinity
    usage: UsageSink
