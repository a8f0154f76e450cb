"""TLS identities of QUIC listeners: make, load, check and watch. Uses only `limit` and `small_file` of this program."""

from certs.identity import (
    FileTooLargeError,
    Identity,
    IdentityError,
    covers,
    load_identity,
    not_after,
    parse_trust_bundle,
    validate,
)
from certs.self_signed import make_self_signed
from certs.watcher import Rejected, Reloaded, Unchanged, Watcher

__all__ = [
    "FileTooLargeError",
    "Identity",
    "IdentityError",
    "Rejected",
    "Reloaded",
    "Unchanged",
    "Watcher",
    "covers",
    "load_identity",
    "make_self_signed",
    "not_after",
    "parse_trust_bundle",
    "validate",
]
