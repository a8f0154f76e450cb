"""Addresses that workers dial and watch, as URIs that say whether TLS is used: `http://host[:port]` or `https://host[:port]`.

A worker takes an address without a scheme as cleartext, so a missing one is refused instead of guessed.
"""

import re
from ipaddress import AddressValueError, IPv6Address

from router.config.option_values import ValueRefusedError

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(
    r"(?:(?P<user>.*)@)?(?P<host>\[[^\]]*\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::(?P<port>.*))?", re.DOTALL
)
_USER = re.compile(r"//[^/?#]*@")
_SCHEMES = ("http", "https")


def explicit_uri(text: str) -> str:
    """`text` as scheme and authority, without surrounding blanks and a closing slash.

    Raises `ValueRefusedError` with the reason: a URI with anything but an http or https scheme, a host and perhaps a port.
    """
    trimmed = text.strip()
    match = _URI.fullmatch(trimmed)
    if match is None:
        raise ValueRefusedError("it has no scheme" if trimmed else "it is blank")
    scheme, authority, rest = match["scheme"].lower(), match["authority"], match["rest"]
    if scheme not in _SCHEMES:
        raise ValueRefusedError(f"its scheme is {scheme}")
    if rest not in ("", "/"):
        raise ValueRefusedError("it has a path, a query or a fragment")
    _check_authority(authority)
    return f"{scheme}://{authority}"


def shown(text: str) -> str:
    """`text` for a message: on one line, and without user information."""
    masked = _USER.sub("//***@", text)
    return masked if masked.isprintable() else masked.encode("unicode_escape").decode()


def _check_authority(authority: str) -> None:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueRefusedError("its host is not valid")
    if match["user"] is not None:
        raise ValueRefusedError("it has user information")
    host, port = match["host"], match["port"]
    if not host:
        raise ValueRefusedError("it has no host")
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise ValueRefusedError("its host is not valid") from None
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueRefusedError("its port is not valid")
