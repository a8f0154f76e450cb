"""The checks before the start that the command line does not make; each raises `StartupError` (exit code 1)."""

from certs import IdentityError, parse_trust_bundle
from kubernetes_router.settings import Settings
from router.config.explicit_uri import explicit_uri, shown
from router.config.option_values import ValueRefusedError
from router.config.startup_checks import StartupError, both_or_none, read_trust_bundle


def check_options(settings: Settings) -> None:
    """Raise `StartupError` for values that are not usable or do not fit together."""
    if settings.relay_idle_timeout_ms == 0:
        raise StartupError("--relay-idle-timeout-ms must be greater than 0")
    if settings.relay_keep_alive_ms >= settings.relay_idle_timeout_ms:
        raise StartupError("--relay-keep-alive-ms must be less than --relay-idle-timeout-ms")
    pylon_dial_addr(settings)
    remote_watch_urls(settings)
    both_or_none("--tls-cert-path", settings.tls_cert_path, "--tls-key-path", settings.tls_key_path)
    both_or_none(
        *("--grpc-tls-cert-path", settings.grpc_tls_cert_path), *("--grpc-tls-key-path", settings.grpc_tls_key_path)
    )
    if settings.upstream_tls_cert_path is not None:
        _check_trust(settings.upstream_tls_cert_path)


def pylon_dial_addr(settings: Settings) -> str:
    """The URI that workers dial for every router. Raises `StartupError`."""
    return _explicit("--grpc-pylon-dial-addr", settings.grpc_pylon_dial_addr)


def remote_watch_urls(settings: Settings) -> list[str]:
    """The URIs of other installations that workers watch too: unique, sorted. Raises `StartupError`."""
    found = {_explicit("--remote-stargate-url", url) for url in settings.remote_stargate_url if url.strip()}
    cleartext = sorted(url for url in found if url.startswith("http://"))
    if cleartext and not settings.allow_insecure_remote_watch_http:
        raise StartupError(
            "http:// remote Watch URLs require --allow-insecure-remote-watch-http",
            f"--remote-stargate-url (or STARGATE_REMOTE_WATCH_URLS) has {', '.join(cleartext)}",
        )
    return sorted(found)


def _explicit(flag: str, given: str) -> str:
    try:
        return explicit_uri(given)
    except ValueRefusedError as error:
        complaint = f"{flag} must be an explicit http:// or https:// URI"
        raise StartupError(complaint, f"{shown(given)}: {error.reason}") from None


def _check_trust(path: str) -> None:
    try:
        parse_trust_bundle(read_trust_bundle(path))
    except IdentityError as error:
        causes = (error.reason, error.detail) if error.detail else (error.reason,)
        raise StartupError("load upstream TLS trust bundle", *causes) from None
