"""Finds what a key may do by the key's digest, in the same time for every key."""

import hmac
from collections.abc import Mapping
from typing import Final

from router.openai.keys.caller import GrantedCaller
from router.openai.keys.key_format import digest_of

_NOBODY: Final = bytes(32)


class KeyTable:
    """The keys of one state of the file; a reload makes a new table.

    A look-up hashes whatever is presented, once, and compares digests. How far a presented key agrees with a real one shows
    neither in the digest nor in the time: there is no path for keys that are malformed, unknown, revoked or expired.
    """

    def __init__(self, callers: Mapping[bytes, GrantedCaller]) -> None:
        """`callers` by the SHA-256 digest of the key."""
        self._callers = {digest: (digest, caller) for digest, caller in callers.items()}
        self._nobody: tuple[bytes, GrantedCaller | None] = (_NOBODY, None)

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, key: bytes, now: float) -> GrantedCaller | None:
        """Who has `key`; None if nobody, or if it has expired by the POSIX time `now`."""
        digest = digest_of(key)
        held, caller = self._callers.get(digest, self._nobody)
        same = hmac.compare_digest(digest, held)
        if caller is None or not same:
            return None
        if caller.expires_at is not None and now >= caller.expires_at:
            return None
        return caller
