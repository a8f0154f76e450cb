"""Checks the URL that a worker registers: its syntax, and whether it fits the worker's connectivity.

Scheme, host and port are parsed by the URL Standard (https://url.spec.whatwg.org/): existing workers were written against a
parser of that standard, and what it refuses must be refused here too. Rules: docs/control-plane.md, "Admission".
"""

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)
_DEFAULT_PORTS: dict[str, int | None] = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "file": None}
_FORBIDDEN_HOST = re.compile(r"[\x00\t\n\r #/:<>?@\[\\\]^|]")
_FORBIDDEN_DOMAIN = re.compile(r"[\x00-\x20#%/:<>?@\[\\\]^|\x7f]")
_IPV4_PART = re.compile(r"0[xX][0-9a-fA-F]*|0[0-7]*|[1-9][0-9]*")
"""Digits only: `int` would also accept a sign, blanks and underscores."""

_LAST_LABEL_IS_NUMBER = re.compile(r"(?:^|.*\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?", re.DOTALL)
_C0_OR_SPACE = "".join(map(chr, range(0x21)))


class InvalidUrlError(Exception):
    """The URL is not valid; `reason` is the text sent to the worker."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Location(NamedTuple):
    scheme: str
    host: str | None
    port: int | None


class _NotAUrlError(Exception):
    pass


def check_inference_server_url(url: str, *, reverse: bool) -> None:
    """Raise `InvalidUrlError` unless `url` is an http(s) URL of an engine (if `reverse`) or `quic://IPv4:port` (if not)."""
    try:
        location = _parse(url)
    except _NotAUrlError:
        raise InvalidUrlError("inference_server_url must be a valid URL") from None
    if reverse:
        if location.scheme not in {"http", "https"}:
            raise InvalidUrlError("inference_server_url scheme must be http or https")
    elif location.scheme != "quic":
        raise InvalidUrlError("inference_server_url scheme must be quic")
    if not location.host:
        raise InvalidUrlError("inference_server_url must include host")
    if not reverse and not _is_ip(location.host):
        raise InvalidUrlError("inference_server_url host must be an IP address")
    if location.port is None:
        raise InvalidUrlError("inference_server_url must include port")


def _is_ip(host: str) -> bool:
    # A bracketed IPv6 address does not match: direct workers are IPv4 only.
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _parse(url: str) -> _Location:
    url = re.sub(r"[\t\n\r]", "", url.strip(_C0_OR_SPACE))
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise _NotAUrlError
    scheme, rest = match[1].lower(), match[2]
    special = scheme in _DEFAULT_PORTS
    if scheme == "file":
        return _Location(scheme, None, None)
    if special:
        authority = re.split(r"[/\\?#]", rest.lstrip("/\\"), maxsplit=1)[0]
    elif rest.startswith("//"):
        authority = re.split(r"[/?#]", rest[2:], maxsplit=1)[0]
    else:
        return _Location(scheme, None, None)
    host, port = _split_port(authority.rpartition("@")[2])
    if not host and (special or port is not None or "@" in authority):
        raise _NotAUrlError
    number = _port_number(port)
    if number is None:
        number = _DEFAULT_PORTS.get(scheme)
    return _Location(scheme, _host(host, special=special), number)


def _split_port(authority: str) -> tuple[str, str | None]:
    bracket = authority.rfind("]")
    colon = authority.find(":", bracket + 1 if authority.startswith("[") else 0)
    if colon < 0:
        return authority, None
    return authority[:colon], authority[colon + 1 :]


def _port_number(port: str | None) -> int | None:
    if not port:
        return None
    if not (port.isascii() and port.isdigit()) or len(port) > 1_000 or int(port) > 0xFFFF:
        raise _NotAUrlError
    return int(port)


def _host(host: str, *, special: bool) -> str:
    if host.startswith("["):
        if not host.endswith("]") or "%" in host:
            raise _NotAUrlError
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise _NotAUrlError from None
    if special:
        return _domain(host)
    if _FORBIDDEN_HOST.search(host):
        raise _NotAUrlError
    return host


def _domain(host: str) -> str:
    try:
        domain = unquote_to_bytes(host).decode()
        if not domain.isascii():
            domain = domain.encode("idna").decode("ascii")
    except UnicodeError:
        raise _NotAUrlError from None
    if not domain or _FORBIDDEN_DOMAIN.search(domain):
        raise _NotAUrlError
    if _LAST_LABEL_IS_NUMBER.fullmatch(domain):
        return _ipv4(domain)
    return domain.lower()


def _ipv4(domain: str) -> str:
    """The IPv4 parser of the URL Standard: 1 to 4 parts, each decimal, octal (0...) or hexadecimal (0x...)."""
    parts = domain.removesuffix(".").split(".")
    if len(parts) > 4:
        raise _NotAUrlError
    numbers = [_ipv4_part(part) for part in parts]
    if any(number > 0xFF for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise _NotAUrlError
    address = numbers[-1] + sum(number << (24 - 8 * index) for index, number in enumerate(numbers[:-1]))
    return str(ipaddress.IPv4Address(address))


def _ipv4_part(part: str) -> int:
    if len(part) > 100 or _IPV4_PART.fullmatch(part) is None:
        raise _NotAUrlError
    if part[:2] in {"0x", "0X"}:
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)
