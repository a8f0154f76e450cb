"""What a case is: a request, and what is answered in each mode."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.caller import GrantedCaller, Names
from router.openai.keys.key_format import digest_of
from router.openai.keys.key_table import KeyTable
from router.telemetry.metrics import Metrics
from support.front_in_memory import MESSAGES, FrontInMemory, hello, post
from support.gateway_in_memory import PlayedExchange
from support.http_client import HttpAnswer

KEY = "sk-lrr-" + "0" * 64
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
BODY: dict[str, Any] = {"model": "f/m", "messages": MESSAGES}
MODELS = ["m", "a/b", "f/a/b", "unknown", "idle"]
"""What the key of the cases may use; `secret` is none of them."""


@dataclass(frozen=True)
class Seen:
    """What a case leads to."""

    front: FrontInMemory
    answers: list[HttpAnswer]
    exchanges: list[PlayedExchange]
    """What the workers got."""

    @property
    def answer(self) -> HttpAnswer:
        """The last one."""
        return self.answers[-1]

    @property
    def exchange(self) -> PlayedExchange:
        """The last one."""
        return self.exchanges[-1]

    @property
    def document(self) -> Any:
        """The JSON of the last answer."""
        return json.loads(self.answer.body)

    @property
    def received(self) -> Any:
        """The JSON of the body that a worker got last."""
        return json.loads(self.exchange.received)


Check = Callable[[Seen], None]
Play = Callable[[FrontInMemory], Awaitable[list[HttpAnswer]]]


@dataclass(frozen=True)
class Says:
    """What is answered."""

    status: int
    error: str | None = None
    """The code of the error in the mode `openai`, its message in the mode `gateway`: with `...` at its end the beginning. None: it is
    no error, or `check` says which."""
    param: str | None = None
    check: Check | None = None


@dataclass(frozen=True)
class Otherwise:
    """What is answered in the mode `gateway` instead of what the gateway answers, and why (docs/openai.md tells it to users)."""

    because: str
    says: Says


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the specification's table."""

    number: int
    what: str
    request: bytes | tuple[bytes, ...] | Play
    """One request, several of which each is sent when the one before is answered, or what a client does."""
    gateway: Says | Otherwise
    openai: Says
    worker: Callable[[PlayedExchange], None] | None = hello
    """How every worker answers; None: the case does it."""
    workers: tuple[tuple[str, str | None], ...] = ()
    """Models and routing keys of further workers."""
    prepare: Callable[[FrontInMemory], None] | None = None
    keys: Any = None
    """Another authenticator than the one that knows `KEY`."""


def alice() -> KeyAuthenticator:
    """Knows one key, that of the cases."""
    table = KeyTable({digest_of(KEY.encode()): GrantedCaller(key_id="alice", models=Names(MODELS))})
    return KeyAuthenticator(lambda: table, Metrics().openai_key_refusals_total, hide=True, now=lambda: 0.0)


# --- requests


def asked(path: str = CHAT, body: Any = None, **headers: Any) -> bytes:
    """A request with the key; `body` is JSON, or bytes as they are."""
    return post(path, body, **{"authorization": f"Bearer {KEY}", **headers})


def ask(path: str = CHAT, **members: Any) -> bytes:
    """A request for `f/m` with the key."""
    document = {"model": "f/m", **members}
    if path == CHAT:
        document.setdefault("messages", MESSAGES)
    return asked(path, document)


# --- checks


def got(**headers: str | None) -> Check:
    """The worker got these headers; None: it got none."""

    def check(seen: Seen) -> None:
        for name, value in headers.items():
            assert seen.exchange.header(name.replace("_", "-")) == value, name

    return check


def told(**headers: str | None) -> Check:
    """The client got these headers; None: it got none."""

    def check(seen: Seen) -> None:
        for name, value in headers.items():
            assert seen.answer.header(name.replace("_", "-")) == value, name

    return check


def holds(condition: Callable[[Seen], bool]) -> Check:
    """`condition` holds."""

    def check(seen: Seen) -> None:
        assert condition(seen), (seen.answers, [exchange.received for exchange in seen.exchanges])

    return check


def both(*checks: Check) -> Check:
    """All of them."""

    def check(seen: Seen) -> None:
        for one in checks:
            one(seen)

    return check
