"""The checks before the router starts, in their documented order.

Each check raises `StartupError` with a text that operators search for; it is printed as `Error: ...` followed by
`Caused by:`, and the process exits with 1 (docs/operations.md, "When start-up fails").
"""

import re
from collections.abc import Sequence

from certs import IdentityError, parse_trust_bundle
from certs.identity import PEM
from router.config.explicit_uri import explicit_uri, shown
from router.config.option_values import SocketAddress, ValueRefusedError, parse_socket_address
from router.config.settings import Settings
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMINGS = frozenset({"raw-quic"})


class StartupError(Exception):
    """The start has failed. `message` is the headline, `causes` are the causes, outermost first.

    `options` are those whose values led to it, as `Settings.shown` gives them.
    """

    def __init__(self, message: str, *causes: str, options: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.causes = causes
        self.options = tuple(options)

    def report(self) -> str:
        """The text for stderr."""
        lines = [f"Error: {self.message}"]
        if self.causes:
            lines += ["", "Caused by:"]
            numbered = len(self.causes) > 1
            lines += [
                f"    {index}: {cause}" if numbered else f"    {cause}" for index, cause in enumerate(self.causes)
            ]
        if self.options:
            lines += ["", f"{'Option' if len(self.options) == 1 else 'Options'}: {' '.join(self.options)}"]
        return "\n".join(lines)


def causes_of(error: BaseException) -> tuple[str, ...]:
    """The texts of an exception and of its causes, outermost first."""
    texts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(texts) < 10:
        text = str(current) or type(current).__name__
        if not texts or texts[-1] != text:
            texts.append(text)
        current = current.__cause__
    return tuple(texts)


def check_options(settings: Settings) -> None:
    """Raise `StartupError` for options that exclude or need one another, or whose feature this program does not have."""
    _check_connectivity(settings)
    _check_peer_forwarding(settings)
    retry_budget_header(settings)
    remote_watch_urls(settings)
    pylon_dial_addr(settings)
    _check_pairs(settings)
    _check_available(settings)


def _check_connectivity(settings: Settings) -> None:
    if not settings.reverse:
        if settings.reverse_tunnel_listen_addr is not None:
            raise StartupError("--reverse-tunnel-listen-addr requires --backend-connectivity=reverse")
        if settings.reverse_tunnel_pylon_dial_addr is not None:
            raise StartupError("--reverse-tunnel-pylon-dial-addr requires --backend-connectivity=reverse")
    elif settings.reverse_tunnel_listen_addr is None:
        raise StartupError("--backend-connectivity=reverse requires --reverse-tunnel-listen-addr")


def _check_peer_forwarding(settings: Settings) -> None:
    if not settings.enable_dev_peer_forwarding:
        return
    if settings.disable_dns_discovery:
        raise StartupError("--enable-dev-peer-forwarding cannot be combined with --disable-dns-discovery")
    if settings.pod_name is None or settings.pod_namespace is None:
        raise StartupError("--enable-dev-peer-forwarding requires both --pod-name and --pod-namespace")


def _check_pairs(settings: Settings) -> None:
    if settings.reverse:
        both_or_none("--tls-cert-path", settings.tls_cert_path, "--tls-key-path", settings.tls_key_path)
    both_or_none(
        *("--openai-tls-cert-path", settings.openai_tls_cert_path),
        *("--openai-tls-key-path", settings.openai_tls_key_path),
    )
    both_or_none(
        *("--grpc-tls-cert-path", settings.grpc_tls_cert_path), *("--grpc-tls-key-path", settings.grpc_tls_key_path)
    )


def both_or_none(cert_flag: str, cert: str | None, key_flag: str, key: str | None) -> None:
    """Raise `StartupError` if only one of certificate and key is configured."""
    if cert is not None and key is None:
        raise StartupError(f"{key_flag} is required with {cert_flag}")
    if key is not None and cert is None:
        raise StartupError(f"{cert_flag} is required with {key_flag}")


def _check_available(settings: Settings) -> None:
    if settings.tunnel_protocol not in _FRAMINGS:
        raise StartupError(
            f"--tunnel-protocol={settings.tunnel_protocol} is not available in this version; use raw-quic"
        )
    if settings.enable_dev_peer_forwarding:
        raise StartupError("--enable-dev-peer-forwarding is not available in this program; leave it out")


def retry_budget_header(settings: Settings) -> bytes | None:
    """The lower-case name of the retry-budget header; None if budgets are off. Raises `StartupError` for an invalid name."""
    name = settings.proxy_retry_budget_header.strip()
    if not name:
        return None
    encoded = name.encode("utf-8")
    if not _HEADER_NAME.fullmatch(encoded):
        raise StartupError(
            f"invalid proxy retry budget header: {settings.proxy_retry_budget_header}",
            "it is not the name of an HTTP field",
            options=settings.shown("proxy_retry_budget_header"),
        )
    return encoded.lower()


def remote_watch_urls(settings: Settings) -> tuple[str, ...]:
    """The URLs of other installations, as workers get them. Raises `StartupError` for one that does not say whether it uses TLS.

    With `--compat 0.11` they are taken as they are.
    """
    given = settings.remote_stargate_url
    if not settings.as_of_0_18:
        return given
    found = tuple(
        _explicit(url, "--remote-stargate-url", "remote Watch URL must be an explicit http:// or https:// URI")
        for url in given
    )
    cleartext = [url for url in found if url.startswith("http://")]
    if cleartext and not settings.allow_insecure_remote_watch_http:
        raise StartupError(
            "http:// remote Watch URLs require --allow-insecure-remote-watch-http",
            f"--remote-stargate-url (or STARGATE_REMOTE_WATCH_URLS) has {', '.join(cleartext)}",
        )
    return found


def pylon_dial_addr(settings: Settings) -> str | None:
    """The address workers dial for gRPC; None if it is the advertised one. Raises `StartupError` as `remote_watch_urls`."""
    given = settings.grpc_pylon_dial_addr
    if given is None or not settings.as_of_0_18:
        return given
    return _explicit(
        given, "--grpc-pylon-dial-addr", "Pylon gRPC dial address must be an explicit http:// or https:// URI"
    )


def addresses_without_scheme(settings: Settings) -> list[str]:
    """The addresses for workers that do not say whether they use TLS; only with `--compat 0.11` does a start get so far."""
    given = [*settings.remote_stargate_url, settings.grpc_pylon_dial_addr or ""]
    return [shown(text.strip()) for text in given if text.strip() and "://" not in text]


def _explicit(given: str, flag: str, complaint: str) -> str:
    try:
        return explicit_uri(given)
    except ValueRefusedError as error:
        raise StartupError(complaint, f"{flag}={shown(given)}: {error.reason}") from None


def check_worker_auth(settings: Settings) -> None:
    """Raise `StartupError` if client credentials are configured without the secrets file."""
    if (
        settings.worker_auth_endpoint is None
        or settings.oauth2_provider_host is None
        or settings.secrets_path is not None
    ):
        return
    raise StartupError(
        "OAUTH2_PROVIDER_HOST is set but SECRETS_PATH is not; client-credentials worker auth needs the secrets file with the "
        "id/secret",
        options=settings.shown("oauth2_provider_host"),
    )


def listen_address(settings: Settings, name: str) -> SocketAddress:
    """The socket address of the listen option with the field name `name`. Raises `StartupError`."""
    try:
        return parse_socket_address(getattr(settings, name))
    except ValueRefusedError as error:
        raise StartupError(
            error.reason,
            "it has to be IPv4:port or [IPv6]:port, without a host name",
            options=settings.shown(name),
        ) from None


def outbound_trust(settings: Settings, pem: bytes | None) -> bytes | None:
    """The PEM bundle by which direct workers are verified; None if they are not verified. Raises `StartupError`.

    `pem` is the content of the certificate option: the bundle in direct mode, the served chain in reverse mode. It is checked
    in reverse mode too, so that a deployment with verification but without the files does not start.
    """
    if settings.quic_insecure:
        return None
    if pem is None:
        raise StartupError(
            "failed to initialize quic proxy",
            "TLS cert required when --quic-insecure is not set",
            options=("--tls-cert-path", "--quic-insecure"),
        )
    try:
        parse_trust_bundle(pem)
    except IdentityError as error:
        causes = (error.reason, error.detail) if error.detail else (error.reason,)
        options = settings.shown("tls_cert_path")
        raise StartupError("failed to initialize quic proxy", *causes, options=options) from None
    return pem


def read_trust_bundle(path: str, options: Sequence[str] = ()) -> bytes:
    """Read a trust bundle; its content is checked later. Raises `StartupError` with `options` if the file cannot be read."""
    try:
        return FileReader().run(path, lambda: read_small_file(path, PEM))
    except SmallFileError as error:
        if error.error_number is None:
            raise StartupError(str(error), options=options) from None
        raise StartupError(f"{error.reason} (os error {error.error_number})", options=options) from None
