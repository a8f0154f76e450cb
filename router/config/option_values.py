"""Parsers of option values: each function converts a text into a value or raises `ValueRefusedError`.

The rules are strict, so that a mistyped value fails the start (docs/operations.md, "Command line").
"""

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal, NamedTuple

from tunnel_protocol.unsigned import MAX_U32, MAX_U64

MAX_PROCESSES = 64
"""Most processes of one router; `auto` takes no more either."""

_DIGITS = re.compile(r"\+?[0-9]+")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\]]*:[^\]]*)\]|(?P<plain>[^\[\]]+)):(?P<port>[0-9]{1,9})")
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(?::[0-9]{1,5})?|[a-z]+://\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?|null"
)
_NEEDED_BY_WORKERS = frozenset(("content-length", "content-type", "x-input-tokens", "x-model", "x-request-id"))
_GO_EXPONENT = re.compile(r"([0-9])(?:\.([0-9]+))?e\+([0-9]{2})")


class ValueRefusedError(Exception):
    """A value is not valid. The usage error shows `reason` after the value, or the valid `choices`.

    `needs_value`: nothing was given; `unsupported`: no value of this option is accepted.
    """

    def __init__(
        self, reason: str, choices: tuple[str, ...] = (), *, needs_value: bool = False, unsupported: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.choices = choices
        self.needs_value = needs_value
        self.unsupported = unsupported


class SocketAddress(NamedTuple):
    """An IP address literal and a port; `str()` returns `1.2.3.4:5` or `[::1]:5`."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


def parse_socket_address(value: str) -> SocketAddress:
    """`IPv4:port` or `[IPv6]:port`, no host name; an IPv6 address without brackets is accepted if it is unambiguous.

    Raises `ValueRefusedError` with `invalid socket address syntax`.
    """
    match = _HOST_AND_PORT.fullmatch(value)
    if match is None or int(match["port"]) > 65535:
        raise ValueRefusedError("invalid socket address syntax")
    host, port = match["v6"] or match["plain"], match["port"]
    try:
        IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        raise ValueRefusedError("invalid socket address syntax") from None
    return SocketAddress(host, int(port))


def text(value: str) -> str:
    """Any text."""
    return value


def not_supported(reason: str) -> Callable[[str], None]:
    """For an option that is known and must not be ignored: every value is refused with `reason`."""

    def parse(_value: str) -> None:
        raise ValueRefusedError(reason, unsupported=True)

    return parse


def url_list(value: str) -> tuple[str, ...]:
    """Comma-separated parts as they are; the checks before the start look at each."""
    return tuple(value.split(","))


def aliases(value: str) -> tuple[tuple[str, str], ...]:
    """`NAME=MODEL`; with several, by commas."""
    found = []
    for one in value.split(","):
        name, equals, model = (part.strip() for part in one.partition("="))
        if not name or not equals or not model:
            raise ValueRefusedError(f"'{one}' is not NAME=MODEL")
        found.append((name, model))
    return tuple(found)


def origins(value: str) -> tuple[str, ...]:
    """Origins of web pages, `https://host` or `*`; with several, by commas."""
    found = tuple(one.strip().rstrip("/") for one in value.split(","))
    for one in found:
        if one != "*" and not _ORIGIN.fullmatch(one):
            raise ValueRefusedError(f"'{one}' is not an origin such as https://example.com")
    return found


def front_mode(value: str) -> Literal["openai", "gateway"]:
    """Whose answers OpenAI clients get."""
    if value == "openai":
        return "openai"
    if value == "gateway":
        return "gateway"
    raise ValueRefusedError(f"unsupported mode '{value}', expected 'openai' or 'gateway'")


def dropped_headers(value: str) -> tuple[str, ...]:
    """Comma-separated names of HTTP fields, in lower case. Those without which no worker serves a request are refused."""
    names = tuple(part.strip().lower() for part in value.split(","))
    for name in names:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueRefusedError(f"'{name}' is not the name of an HTTP field")
        if name in _NEEDED_BY_WORKERS:
            raise ValueRefusedError(f"workers need {name}")
    return names


def _integer(value: str, largest: int) -> int:
    """Digits with an optional plus sign, or an integer in the form in which Helm prints large ones (`1e+06`)."""
    if value == "":
        raise ValueRefusedError("cannot parse integer from empty string")
    number = None
    if _DIGITS.fullmatch(value):
        number = int(value) if len(value) <= 40 else largest + 1
    elif match := _GO_EXPONENT.fullmatch(value):
        lead, fraction, exponent = match[1], match[2] or "", int(match[3])
        if len(fraction) <= exponent <= 20:
            number = int(lead + fraction) * 10 ** (exponent - len(fraction))
    if number is None:
        raise ValueRefusedError("invalid digit found in string")
    if number > largest:
        raise ValueRefusedError("number too large to fit in target type")
    return number


def _plain(largest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        return _integer(value, largest)

    return parse


uint32 = _plain(MAX_U32)
uint64 = _plain(MAX_U64)
milliseconds = uint64


def port(value: str) -> int:
    """0..65535."""
    number = _integer(value, MAX_U64)
    if number > 65535:
        raise ValueRefusedError(f"{number} is not in 0..=65535")
    return number


def milliseconds_above_zero(value: str) -> int:
    """Milliseconds, at least 1."""
    return _above_zero(value, "invalid millisecond value")


def count_above_zero(value: str) -> int:
    """A count, at least 1."""
    return _above_zero(value, "invalid count")


def uint32_above_zero(value: str) -> int:
    """A count of 32 bits, at least 1."""
    return _above_zero(value, "invalid count", MAX_U32)


def process_count(value: str) -> int | Literal["auto"]:
    """`auto`, or a number of processes from 1 to `MAX_PROCESSES`."""
    if value == "auto":
        return "auto"
    number = _above_zero(value, "invalid count, and not 'auto'")
    if number > MAX_PROCESSES:
        raise ValueRefusedError(f"{number} is not in 1..={MAX_PROCESSES}")
    return number


def stream_window(value: str) -> int:
    """Bytes, from 1 KiB to 1 GiB."""
    number = _integer(value, MAX_U64)
    if not 1_024 <= number <= 1 << 30:
        raise ValueRefusedError(f"{number} is not in 1024..={1 << 30}")
    return number


def _above_zero(value: str, complaint: str, largest: int = MAX_U64) -> int:
    try:
        number = _integer(value, largest)
    except ValueRefusedError as error:
        raise ValueRefusedError(f"{complaint}: {error.reason}") from None
    if number == 0:
        raise ValueRefusedError("value must be greater than 0")
    return number


def true_or_false(value: str) -> bool:
    """Exactly `true` or `false`."""
    if value not in ("true", "false"):
        raise ValueRefusedError("", ("true", "false"), needs_value=value == "")
    return value == "true"


def connectivity(value: str) -> Literal["direct", "reverse"]:
    """`direct` (the router dials workers) or `reverse` (workers dial)."""
    if value == "direct":
        return "direct"
    if value == "reverse":
        return "reverse"
    raise ValueRefusedError(f"unsupported backend connectivity '{value}', expected 'direct' or 'reverse'")


def framing(value: str) -> Literal["raw-quic", "http3", "webtransport"]:
    """The framing by any of its accepted names."""
    if value == "raw-quic":
        return "raw-quic"
    if value in ("http3", "h3"):
        return "http3"
    if value in ("webtransport", "web-transport", "wt"):
        return "webtransport"
    raise ValueRefusedError(
        f"unsupported tunnel protocol '{value}', expected 'raw-quic', 'http3', or 'webtransport'",
    )


def log_format(value: str) -> Literal["text", "json"]:
    """The format of log lines."""
    if value == "text":
        return "text"
    if value == "json":
        return "json"
    raise ValueRefusedError(f"unsupported log format '{value}', expected 'text' or 'json'")


def reference_release(value: str) -> Literal["0.11", "0.18"]:
    """A release line of the reference router whose behaviour peers see."""
    if value == "0.11":
        return "0.11"
    if value == "0.18":
        return "0.18"
    raise ValueRefusedError(f"unsupported release line '{value}', expected '0.11' or '0.18'")


def error_bodies(value: str) -> Literal["contract", "json"]:
    """The bodies of answers that the router makes itself."""
    if value == "contract":
        return "contract"
    if value == "json":
        return "json"
    raise ValueRefusedError(f"unsupported form of error bodies '{value}', expected 'contract' or 'json'")


def metric_families(value: str) -> Literal["contract", "all"]:
    """The set of metric families that `/metrics` shows."""
    if value == "contract":
        return "contract"
    if value == "all":
        return "all"
    raise ValueRefusedError(f"unsupported set of metric families '{value}', expected 'contract' or 'all'")


def forbidden_status(value: str) -> Literal[403, 404]:
    """The status of an answer to a client without the right to a model."""
    if value == "403":
        return 403
    if value == "404":
        return 404
    raise ValueRefusedError(f"unsupported status '{value}', expected '403' or '404'")


def open_or_closed(value: str) -> Literal["open", "closed"]:
    """Whether requests are served (open) or refused (closed) while a check cannot be made."""
    if value == "open":
        return "open"
    if value == "closed":
        return "closed"
    raise ValueRefusedError(f"unsupported choice '{value}', expected 'open' or 'closed'")
