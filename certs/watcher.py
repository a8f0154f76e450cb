"""Detects that certificate and key files were replaced, by their content; keeps the last valid pair.

This module has no timer and no task: the owner calls `poll` (the router every 30 s). The files are opened by path each time,
which follows the atomic symlink swaps of secrets mounted by Kubernetes.
"""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

from certs.identity import Identity, IdentityError, check_dates, read_identity, validate


class Unchanged(NamedTuple):
    """Nothing to do: the files equal the active pair, or are rejected for the same reason as before."""


class Reloaded(NamedTuple):
    """The files hold another valid pair: use it for new handshakes."""

    identity: Identity


class Rejected(NamedTuple):
    """The files are not usable; reported once per error text."""

    error: IdentityError


class Watcher:
    """Watches one certificate file and one key file; starts with the pair that is already in use."""

    def __init__(
        self, cert_path: str, key_path: str, active: Identity, check: Callable[[Identity], None] | None = None
    ) -> None:
        """`check` is called with a new pair before it becomes active, and raises `IdentityError` if it cannot be used."""
        self._check = check
        self.cert_path = cert_path
        """Path of the certificate file as configured."""
        self._key_path = key_path
        self._active = active
        self._rejected: str | None = None
        self._refused: Identity | None = None
        """The pair that `check` refused last; it is not checked again, because a check is slow and gives the same result."""

    @property
    def rejecting(self) -> bool:
        """Whether the files were not usable at the last poll."""
        return self._rejected is not None

    def poll(self, now: dt.datetime) -> Unchanged | Reloaded | Rejected:
        """Read both files and compare them with the active pair; `now` is aware, UTC. Never raises for their content."""
        try:
            found = read_identity(self.cert_path, self._key_path)
            if found == self._refused:
                return Unchanged()
            if found == self._active:
                # Only the time has changed, so check only the dates: parsing a large RSA key takes 0.1 s.
                check_dates(found, now)
            else:
                validate(found, now)
                if self._check is not None:
                    self._refused = found
                    self._check(found)
        except IdentityError as error:
            return self.reject(error)
        self._rejected = self._refused = None
        if found == self._active:
            return Unchanged()
        self._active = found
        return Reloaded(found)

    def reject(self, error: IdentityError) -> Unchanged | Rejected:
        """Record that the files cannot be used; an owner also calls this if its `poll` did not end in time."""
        if str(error) == self._rejected:
            return Unchanged()
        self._rejected = str(error)
        return Rejected(error)
