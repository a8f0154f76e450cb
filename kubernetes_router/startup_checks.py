"""The checks before the start that the command line does not make; each raises `StartupError` (exit code 1)."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from certs import IdentityError, parse_trust_bundle
from kubernetes_router.settings import Settings
from router.config.startup_checks import StartupError, both_or_none, read_trust_bundle


def check_options(settings: Settings) -> None:
    """Raise `StartupError` for values that are not usable or do not fit together."""
    if settings.relay_idle_timeout_ms == 0:
        raise StartupError("--relay-idle-timeout-ms must be greater than 0")
    if settings.relay_keep_alive_ms >= settings.relay_idle_timeout_ms:
        raise StartupError("--relay-keep-alive-ms must be less than --relay-idle-timeout-ms")
    if _scheme(settings.grpc_pylon_dial_addr) is None:
        raise StartupError("--grpc-pylon-dial-addr must be an explicit http:// or https:// URI")
    remote_watch_urls(settings)
    both_or_none("--tls-cert-path", settings.tls_cert_path, "--tls-key-path", settings.tls_key_path)
    both_or_none(
        *("--grpc-tls-cert-path", settings.grpc_tls_cert_path), *("--grpc-tls-key-path", settings.grpc_tls_key_path)
    )
    if settings.upstream_tls_cert_path is not None:
        _check_trust(settings.upstream_tls_cert_path)


def remote_watch_urls(settings: Settings) -> list[str]:
    """The URIs of other installations that workers watch too: trimmed, unique, sorted. Raises `StartupError`."""
    found: Iterable[str] = {url.strip() for url in settings.remote_stargate_url} - {""}
    for url in found:
        scheme = _scheme(url)
        if scheme is None:
            raise StartupError("--remote-stargate-url must be an explicit http:// or https:// URI", url)
        if scheme == "http" and not settings.allow_insecure_remote_watch_http:
            raise StartupError("http:// remote Watch URLs require --allow-insecure-remote-watch-http", url)
    return sorted(found)


def _scheme(uri: str) -> str | None:
    """`http` or `https`; None if `uri` is not an absolute URI of one of them with a host."""
    try:
        parts = urlsplit(uri.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts.scheme if usable else None


def _check_trust(path: str) -> None:
    try:
        parse_trust_bundle(read_trust_bundle(path))
    except IdentityError as error:
        causes = (error.reason, error.detail) if error.detail else (error.reason,)
        raise StartupError("load upstream TLS trust bundle", *causes) from None
