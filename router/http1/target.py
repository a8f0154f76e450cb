"""Checks request targets (the four forms of RFC 9112 section 3.2) and `Host` values. Pure."""

import re
from typing import Final

_IN_TARGETS: Final = bytes(code for code in range(0x21, 0x7F) if code not in b'"<>')
_IN_PLAIN_TARGETS: Final = _IN_TARGETS.translate(None, b"#`")
_IN_NAMES: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._~!$&'()*+,;=-"
_PORT_DIGITS: Final = 5
_HOST_PATTERN: Final = rb"(?:\[[0-9A-Fa-f:.]+\]|\[[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)"
_HOST: Final = re.compile(rb"(?:" + _HOST_PATTERN + rb"(?::[0-9]{0,5})?)?\Z").match
_AUTHORITY: Final = re.compile(_HOST_PATTERN + rb":[0-9]{1,5}\Z").match
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://" + _HOST_PATTERN + rb"(?::[0-9]{0,5})?(?=[/?#]|\Z)").match


class BadTargetError(Exception):
    """The request target has none of the four forms, or one that its method does not allow."""


def host_is_valid(value: bytes) -> bool:
    """Whether a `Host` value is empty or a host with an optional port (RFC 9110 section 7.2)."""
    name, _, port = value.partition(b":")
    if not name.translate(None, _IN_NAMES) and (not port or (port.isdigit() and len(port) <= _PORT_DIGITS)) and name:
        return True  # nearly all; the rest are addresses in brackets and percent signs
    return _HOST(value) is not None


def origin_form(method: bytes, target: bytes) -> bytes:
    """Path and query of `target` without its fragment; `*` and an authority unchanged. Raises `BadTargetError`."""
    if target.startswith(b"/") and not target.translate(None, _IN_PLAIN_TARGETS) and method != b"CONNECT":
        return target
    if target.translate(None, _IN_TARGETS) or (b"`" in target and b"`" in target.partition(b"?")[0]):
        raise BadTargetError
    if method == b"CONNECT":
        if not _AUTHORITY(target):
            raise BadTargetError
        return target
    if not target.startswith(b"/"):
        if target == b"*":
            if method != b"OPTIONS":
                raise BadTargetError
            return target
        absolute = _ABSOLUTE(target)
        if absolute is None:
            raise BadTargetError
        target = target[absolute.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    return target.partition(b"#")[0]
