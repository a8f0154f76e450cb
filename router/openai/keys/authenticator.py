"""Decides who sends a request: by the key file, by NVCF, or anybody."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from router.openai.keys.bearer import presented_key
from router.openai.keys.caller import GrantedCaller
from router.openai.keys.key_table import KeyTable
from router.openai.keys.refusals import NO_KEY, WRONG_KEY, no_right
from router.openai.ports import OPEN, Authenticator, Caller, KeyRefused
from router.telemetry.families import Counter


class RemoteCheck(Protocol):
    """Asks a service about keys that are not in the file."""

    def candidate(self, key: bytes) -> "Caller | None":
        """A caller that is not checked yet; None if this cannot be a key of the service."""

    def check(
        self, caller: Caller, routing_key: str | None, named: str
    ) -> "Caller | KeyRefused | asyncio.Future[Caller | KeyRefused] | None":
        """The checked caller for a routing key; None if `caller` is not one of `candidate`."""


class OpenAuthenticator(Authenticator):
    """Everybody may do everything (`--openai-open`)."""

    def __init__(self) -> None:
        self._caller = GrantedCaller(key_id=OPEN)

    def authenticate(self, authorization: bytes | None, api_key: bytes | None) -> Caller:  # noqa: ARG002 (the port)
        """The same caller for all; a key is not looked at."""
        return self._caller

    def authorize(self, caller: Caller, routing_key: str | None, model: str, named: str) -> Caller:  # noqa: ARG002
        """`caller`: it may use every target."""
        return caller


class KeyAuthenticator(Authenticator):
    """Callers have to present a key: one of the file, or one that a service knows."""

    def __init__(
        self,
        table: Callable[[], KeyTable],
        refused: Counter,
        *,
        hide: bool,
        now: Callable[[], float],
        remote: RemoteCheck | None = None,
    ) -> None:
        """`table` returns the keys in force, `now` the POSIX time; `refused` counts by reason.

        `hide`: a model without the right to it is answered like one that does not exist.
        """
        self._table = table
        self._refused = refused
        self._hide = hide
        self._now = now
        self._remote = remote

    def authenticate(self, authorization: bytes | None, api_key: bytes | None) -> Caller | KeyRefused:
        """The caller with the presented key; 401 without one, and for one that nobody has."""
        key = presented_key(authorization, api_key)
        if key is None:
            none_at_all = authorization is None and api_key is None
            self._refused.inc(("missing" if none_at_all else "malformed",))
            return NO_KEY if none_at_all else WRONG_KEY
        caller: Caller | None = self._table().find(key, self._now())
        if caller is None and self._remote is not None:
            caller = self._remote.candidate(key)
        if caller is None:
            self._refused.inc(("wrong",))
            return WRONG_KEY
        return caller

    def authorize(
        self, caller: Caller, routing_key: str | None, model: str, named: str
    ) -> "Caller | KeyRefused | asyncio.Future[Caller | KeyRefused]":
        """`caller` if it has the right to the target; one that a service has to check is replaced by what that says."""
        if self._remote is not None:
            checked = self._remote.check(caller, routing_key, named)
            if checked is not None:
                return checked
        if caller.may_use(routing_key, model):
            return caller
        self._refused.inc(("no_right",))
        return no_right(named, hide=self._hide)
