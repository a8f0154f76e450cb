"""Notice that a mounted pair was replaced: by content, through the configured paths, with the last good pair kept.

No timer and no task in here: the owner calls `poll` as often as it likes (the router: every 30 s). Opening by path each time
follows the atomic symlink swaps of mounted secrets.
"""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

from certs.identity import Identity, IdentityError, check_dates, read_identity, validate


class Unchanged(NamedTuple):
    """Nothing to do: same bytes as the active pair, or the same rejection as before."""


class Reloaded(NamedTuple):
    """A valid, different pair: use it for new handshakes."""

    identity: Identity


class Rejected(NamedTuple):
    """What is on disk now is not usable; reported once per error text."""

    error: IdentityError


class Watcher:
    """Follows one certificate and key file; starts from the pair that is already served."""

    def __init__(
        self, cert_path: str, key_path: str, active: Identity, check: Callable[[Identity], None] | None = None
    ) -> None:
        """`check` is asked about a new pair before it is taken, and raises `IdentityError` if it cannot be used."""
        self._check = check
        self.cert_path = cert_path
        """As configured."""
        self._key_path = key_path
        self._active = active
        self._rejected: str | None = None
        self._refused: Identity | None = None
        """The pair that the last check refused: a check is dear, and its answer stays the same."""

    @property
    def rejecting(self) -> bool:
        """Whether what the last poll found was not usable."""
        return self._rejected is not None

    def poll(self, now: dt.datetime) -> Unchanged | Reloaded | Rejected:
        """Read both files and compare. Never raises for what the files hold."""
        try:
            found = read_identity(self.cert_path, self._key_path)
            if found == self._refused:
                return Unchanged()
            if found == self._active:
                # Parsing a large RSA key takes a tenth of a second; nothing but time has passed.
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
        """Take note that what is on disk cannot be used; also for an owner whose `poll` could not end."""
        if str(error) == self._rejected:
            return Unchanged()
        self._rejected = str(error)
        return Rejected(error)
