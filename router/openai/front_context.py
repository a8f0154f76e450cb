"""What all requests of the front share."""

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

from router.balancing import RoutingRequest
from router.http1.request import ClientRequest
from router.http1.response import ResponseFlow, ResponseWriter
from router.openai import errors
from router.openai.model_names import KnownTargets, ModelNames
from router.openai.ports import FrontServices, Refusal
from router.openai.settings import FrontSettings
from router.openai.time_limits import tick_s
from router.registry import Registry
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

BODIES: Final = Limit("openai.bodies", bytes=1024 * 1024 * 1024)
"""Bytes of all request bodies that are held; a request that would exceed it is answered 503."""

REQUEST_ID: Final = Limit("openai.request_id", bytes=128)
"""Longest request id that is taken from a client; a longer one is replaced."""

_MAX_BODIES: Final = BODIES.bytes or 0
_MAX_ID: Final = REQUEST_ID.bytes or 0
_IN_IDS: Final = bytes(range(0x21, 0x7F))
_ID_BYTES: Final = 16
_RANDOM_BYTES: Final = 256 * _ID_BYTES
_EXPOSED: Final = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, x-multi-turn-session-id, x-ratelimit-limit-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, "
    b"x-ratelimit-reset-tokens"
)


class Relayed(ResponseFlow, Protocol):
    """A request on its way through routing and tunnels."""

    def abandon(self, reason: str) -> None:
        """End it; nothing more is written to its response. No effect after its end."""


class Relay(Protocol):
    """Routing and relay, as the front uses them; `router/process` connects it."""

    def relay(
        self,
        request: ClientRequest,
        response: ResponseWriter,
        routing: RoutingRequest,
        request_id: str,
        method: str | None,
    ) -> Relayed:
        """Route `request`, whose body is complete, and write the worker's answer, or a local reply, to `response`."""


class Running(Protocol):
    """A request that is being answered."""

    def tick(self, now: float) -> None:
        """Some time has passed; `now` in monotonic seconds."""


class BodyBudget:
    """Counts the bytes of request bodies that are held."""

    __slots__ = ("_limit", "used_bytes")

    def __init__(self, limit_bytes: int = _MAX_BODIES) -> None:
        self._limit = limit_bytes
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False if the limit does not allow it."""
        if self.used_bytes + size > self._limit:
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Release `size` bytes."""
        self.used_bytes -= size


class FrontContext:
    """Shared by all requests of one listener."""

    def __init__(
        self,
        settings: FrontSettings,
        services: FrontServices,
        relay: Relay,
        registry: Registry,
        known: KnownTargets,
        clock: Callable[[], float],
        render: Callable[[Refusal], bytes] = errors.envelope,
    ) -> None:
        """`render` makes the body of an error."""
        self.render = render
        self.settings = settings
        self.services = services
        self.relay = relay
        self.registry = registry
        self.known = known
        self.names = ModelNames(
            registry, known, default_routing_key=settings.default_routing_key, aliases=settings.aliases
        )
        self.clock = clock
        """Monotonic seconds."""
        self._random = b""
        self._random_at = 0
        self.body_limit_digits = len(str(settings.max_body_bytes))
        """A length with fewer digits is below the limit of a body."""
        # `asyncio.get_running_loop` costs a system call; requests use this reference.
        self.loop = asyncio.get_running_loop()
        self.bodies = BodyBudget()
        self.running: set[Running] = set()
        """The requests that are being answered."""
        self._tick_s = tick_s(settings)
        self._ticks: asyncio.TimerHandle | None = None
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)

    def watch(self) -> None:
        """See to it that time passes for the requests that run. One timer for all: one for each costs a tenth of a request."""
        if self._ticks is None and self._tick_s:
            self._ticks = self.loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._ticks = None
        if not self.running:
            return
        self.watch()
        now = self.clock()
        for one in list(self.running):
            one.tick(now)

    def request_id(self, request: ClientRequest) -> str:
        """The client's request id if it is printable ASCII and not too long, else a new one."""
        given = request.first.get(b"x-request-id")
        if given and len(given) <= _MAX_ID and not given.translate(None, _IN_IDS):
            return given.decode()
        return self.new_id()

    def new_id(self) -> str:
        """A request id of our own."""
        at = self._random_at
        if at >= len(self._random):
            # For 256 ids at once: it is a system call.
            self._random = os.urandom(_RANDOM_BYTES)
            at = 0
        self._random_at = at + _ID_BYTES
        return "req_" + self._random[at : at + _ID_BYTES].hex()

    def headers(self, request: ClientRequest, request_id: str) -> HeaderList:
        """What every answer to `request` has, its id first."""
        found = [(b"x-request-id", request_id.encode())]
        if self._origins:
            found += self.cors_headers(request)
        return found

    def cors_headers(self, request: ClientRequest) -> HeaderList:
        """The fields by which a browser lets a page of an allowed origin read the answer."""
        origin = request.first.get(b"origin")
        if origin is None or not (origin in self._origins or b"*" in self._origins):
            return [(b"vary", b"origin")] if self._origins else []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]
