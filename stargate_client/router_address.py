"""Addresses of routers as workers get them: from the command line and from `WatchStargates`."""

from typing import NamedTuple

_HTTPS_PORT = 443


def host_and_port(target: str) -> tuple[str, int]:
    """The host (an IPv6 address without brackets) and the port of `target`, 443 if it has none. Raises `ValueError`."""
    host, colon, port = target.rpartition(":")
    if not colon or (target.startswith("[") and target.endswith("]")):
        host, port = target, str(_HTTPS_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
        raise ValueError(f"{target}: expected a host and a port")
    return host, int(port)


class GrpcAddress(NamedTuple):
    """Where to open a gRPC connection, and whether with TLS."""

    target: str
    """`host:port` as it was given, without scheme."""
    tls: bool = False

    def host_and_port(self) -> tuple[str, int]:
        """The host (an IPv6 address without brackets) and the port, 443 if none was given. Raises `ValueError`."""
        return host_and_port(self.target)


class RouterAddress(NamedTuple):
    """A router to register with: its identity, which is the `:authority` of calls, and where to connect to."""

    authority: str
    dial: GrpcAddress


def parse_grpc_address(text: str) -> GrpcAddress:
    """The address in `text`: `https://` means TLS, `http://` or no scheme means cleartext, whatever the port.

    Never fails: the target of a blank text is blank, and what is not `host:port` is found when it is dialled.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return GrpcAddress(text.rstrip("/"))
    # Only the host and the port count; user information must not get into logs.
    target = rest.partition("/")[0].partition("?")[0].partition("#")[0].rpartition("@")[2]
    return GrpcAddress(target, scheme.lower() == "https")
