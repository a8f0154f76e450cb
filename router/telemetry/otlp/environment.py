"""The `OTEL_*` variables: which values the SDK can use, so that no other one reaches it and none stops the start.

Parts of the SDK raise for a value that they cannot parse, some of them while they are imported. So each variable is checked
before: an unusable one is reported and treated as unset, so that the SDK's default applies. Nothing here imports the SDK.
Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter"; variables with the name of a signal
(`OTEL_EXPORTER_OTLP_TRACES_...`) win over the general ones.
"""

import math
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

CERTIFICATE_FILE: Final = Limit("files.tracing_certificates", bytes=1 << 20)
"""Size limit of a file with certificates or a key for the connection to the collector."""

GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"

_MAX_COUNT = (1 << 31) - 1
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_SAMPLERS = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "traceidratio": (None, False),
    "parentbased_traceidratio": (None, True),
}
"""Share of the traces that begin here (None: the sampler's argument), and whether callers' decisions are kept."""

_reader = FileReader()


class UnusableValueError(ValueError):
    """A value that the SDK cannot use. The text is the reason, without the value, which may hold a secret."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A variable that is treated as unset."""

    variable: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingEnvironment:
    """What the variables say."""

    variables: Mapping[str, str]
    """The `OTEL_*` variables that the SDK may see. Those that load other code by its name are not among them."""
    refused: tuple[Refused, ...]
    disabled: bool
    """Whether nothing is to be exported (`OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER=none`)."""
    protocol: str
    """`GRPC` or `HTTP`."""
    headers: Mapping[str, str]
    """Headers for the collector, names in lower case."""
    share: float
    """Share of the traces that begin here to sample, 0 to 1."""
    parent_based: bool
    """Whether traces that begin elsewhere are sampled as their caller decided."""

    @property
    def endpoint(self) -> str | None:
        """Where spans are sent, as the SDK will understand it; None without an endpoint."""
        return self.variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or self.variables.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )

    @property
    def shown_endpoint(self) -> str:
        """The endpoint for the log, without user and password."""
        scheme, separator, rest = (self.endpoint or "").rpartition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def read_environment(environment: Mapping[str, str], endpoint: str | None) -> TracingEnvironment:
    """Check the variables; an `endpoint` of the command line replaces those of the environment."""
    given = {name: value.strip() for name, value in environment.items() if name in _KNOWN and value.strip()}
    by_flag = endpoint is not None and endpoint != given.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if endpoint is not None and by_flag:
        given.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)
        given["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    found, refused = _usable(given)
    if by_flag:
        refused = [
            Refused("--otel-endpoint", one.reason) if one.variable == "OTEL_EXPORTER_OTLP_ENDPOINT" else one
            for one in refused
        ]
    share, parent_based = _sampler(found)
    protocol = _of_signal(found, "PROTOCOL", GRPC)
    _fit_endpoint(found, protocol)
    _fit_compression(found, protocol)
    return TracingEnvironment(
        variables=found,
        refused=tuple(refused),
        disabled=found.get("OTEL_SDK_DISABLED") == "true" or found.get("OTEL_TRACES_EXPORTER") == "none",
        protocol=protocol,
        headers=_headers(_of_signal(found, "HEADERS", "")),
        share=share,
        parent_based=parent_based,
    )


def _usable(given: Mapping[str, str]) -> tuple[dict[str, str], list[Refused]]:
    found: dict[str, str] = {}
    refused: list[Refused] = []
    for name, value in given.items():
        check = _CHECKS.get(name)
        try:
            found[name] = value if check is None else check(value)  # a client certificate and its key: `_check_pair`
        except UnusableValueError as error:
            refused.append(Refused(name, str(error)))
    queue = int(found.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048"))
    if int(found.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512")) > queue:
        if found.pop("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", None) is not None:
            refused.append(Refused("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", f"larger than the queue, {queue}"))
        if queue < 512:
            found["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = str(queue)
    for signal in ("_TRACES", ""):
        refused += _check_pair(
            found, f"OTEL_EXPORTER_OTLP{signal}_CLIENT_CERTIFICATE", f"OTEL_EXPORTER_OTLP{signal}_CLIENT_KEY"
        )
    return found, refused


def _of_signal(found: Mapping[str, str], name: str, default: str) -> str:
    return found.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or found.get(f"OTEL_EXPORTER_OTLP_{name}") or default


def _sampler(found: Mapping[str, str]) -> tuple[float, bool]:
    share, parent_based = _SAMPLERS[found.get("OTEL_TRACES_SAMPLER", "parentbased_always_on")]
    if share is None:
        share = float(found.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    return share, parent_based


def _fit_endpoint(found: dict[str, str], protocol: str) -> None:
    """An endpoint of `OTEL_EXPORTER_OTLP_ENDPOINT` that already has the path of traces is complete for HTTP."""
    general = found.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if protocol == HTTP and general.rstrip("/").endswith("/v1/traces"):
        found.setdefault("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", general)


def _fit_compression(found: dict[str, str], protocol: str) -> None:
    """The SDK's gRPC exporter raises for `none`, the default, and for `deflate`, which only HTTP has."""
    if protocol == GRPC:
        for name in ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"):
            if found.get(name) != "gzip":
                found.pop(name, None)


# --- checks of one value: return the value for the SDK, or raise `UnusableValueError` -----------------------------------


def _one_of(*words: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value.lower() not in words:
            raise UnusableValueError(f"not one of {', '.join(words)}")
        return value.lower()

    return check


def _count(least: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not (value.isascii() and value.isdigit() and len(value) <= 10 and least <= int(value) <= _MAX_COUNT):
            raise UnusableValueError(f"not a whole number from {least} to {_MAX_COUNT}")
        return value

    return check


def _seconds(value: str) -> str:
    seconds = _number(value)
    if not 0 < seconds < math.inf:
        raise UnusableValueError("not a positive number of seconds")
    return value


def _share(value: str) -> str:
    if not 0 <= _number(value) <= 1:
        raise UnusableValueError("not a number from 0 to 1")
    return value


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _endpoint(value: str) -> str:
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        usable = url.scheme in ("", "http", "https") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise UnusableValueError("not a URL with http or https")
    return value


def _headers_text(value: str) -> str:
    _headers(value)
    return value


def _headers(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, value = entry.partition("=")
        name, value = unquote(name).strip().lower(), unquote(value).strip()
        if not entry.strip():
            continue
        if (
            not equals
            or not _HEADER_NAME.fullmatch(name)
            or name.endswith("-bin")
            or not _HEADER_VALUE.fullmatch(value)
        ):
            raise UnusableValueError("not a list of name=value")
        found[name] = value
    return found


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableValueError("not UTF-8") from None
    return value


def _resource(value: str) -> str:
    _encodable(value)
    for entry in value.split(","):
        key, equals, _ = entry.partition("=")
        if entry.strip() and not (equals and key.strip()):
            raise UnusableValueError("not a list of name=value")
    return ",".join(entry for entry in value.split(",") if entry.strip())


def _read(path: str) -> bytes:
    try:
        return _reader.run(path, lambda: read_small_file(Path(path), CERTIFICATE_FILE))
    except SmallFileError as error:
        raise UnusableValueError(f"the file cannot be read: {error.reason}") from error


def _certificates(path: str) -> str:
    content = _read(path)
    try:
        ssl.create_default_context(cadata=content.decode())
    except (ssl.SSLError, ValueError) as error:
        raise UnusableValueError("the file holds no certificates in PEM") from error
    return path


def _check_pair(found: dict[str, str], certificate: str, key: str) -> list[Refused]:
    """Client certificate and key are used together or not at all."""
    if certificate not in found and key not in found:
        return []
    try:
        _client_pair(found.get(certificate), found.get(key))
    except UnusableValueError as error:
        found.pop(certificate, None)
        found.pop(key, None)
        return [Refused(certificate, str(error))]
    return []


def _client_pair(certificate: str | None, key: str | None) -> None:
    if certificate is None or key is None:
        raise UnusableValueError("client certificate and key are needed together")
    _read(certificate)
    _read(key)
    try:
        # An encrypted key gets an empty password: nobody can be asked for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise UnusableValueError("not a certificate and its key in PEM") from error


_CHECKS: Final[Mapping[str, Callable[[str], str]]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(*_SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _share,
    "OTEL_RESOURCE_ATTRIBUTES": _resource,
    "OTEL_SERVICE_NAME": _encodable,
    "OTEL_BSP_MAX_QUEUE_SIZE": _count(1),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _count(1),
    "OTEL_BSP_SCHEDULE_DELAY": _count(1),
    "OTEL_BSP_EXPORT_TIMEOUT": _count(1),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _count(0),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _count(0),
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _count(0),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _count(0),
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _count(0),
    "OTEL_SPAN_LINK_COUNT_LIMIT": _count(0),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _count(0),
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _count(0),
    **{
        f"OTEL_EXPORTER_OTLP{signal}_{name}": check
        for signal in ("", "_TRACES")
        for name, check in {
            "ENDPOINT": _endpoint,
            "PROTOCOL": _one_of(GRPC, HTTP),
            "HEADERS": _headers_text,
            "TIMEOUT": _seconds,
            "COMPRESSION": _one_of("none", "gzip", "deflate"),
            "INSECURE": _one_of("true", "false"),
            "CERTIFICATE": _certificates,
        }.items()
    },
}

_KNOWN: Final = {
    *_CHECKS,
    *(f"OTEL_EXPORTER_OTLP{signal}_CLIENT_{part}" for signal in ("", "_TRACES") for part in ("CERTIFICATE", "KEY")),
}
