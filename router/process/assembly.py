"""Parts whose class depends on the options: discovery, worker authentication, and the log of TLS secrets.

Nothing here opens a socket or starts a task.
"""

import tempfile
from pathlib import Path

import structlog

from router.config import package_settings
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane.discovery import HeadlessService, Lookup, PlainDns, SelfOnly
from router.control_plane.gateway_credentials import CredentialSource, FileCredential, SecretsFile
from router.control_plane.replicas import LookupFailedError, own_replica
from router.control_plane.settings import SECRETS_KEY
from router.control_plane.worker_auth import OpenAuthenticator
from router.ports.authentication import RemoteAuthenticator
from router.process.sockets import cause_of
from router.telemetry.metrics import Metrics
from tunnel_protocol.observers.line_writer import LineWriter

_log = structlog.get_logger()


def key_log(settings: Settings) -> LineWriter | None:
    """The writer of the log of TLS secrets; None if not configured. Raises `StartupError` if the file cannot be opened."""
    path = settings.quic_keylog_path
    if path is None:
        return None

    def failed(error: OSError) -> None:
        _log.warning("key log cannot be written; secrets are lost", path=path, error=str(error))

    try:
        return LineWriter(Path(path), "# {} secrets were lost".format, name="key log", failed=failed)
    except OSError as error:
        options = settings.shown("quic_keylog_path")
        raise StartupError(f"failed to open key log {path}", cause_of(error), options=options) from None


def check_qlog_dir(settings: Settings) -> None:
    """Make the directory of the traces, and a file in it. Raises `StartupError`."""
    path = settings.quic_qlog_dir
    if path is None:
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        options = settings.shown("quic_qlog_dir")
        raise StartupError(f"failed to write to qlog directory {path}", cause_of(error), options=options) from None


def authenticator(settings: Settings, metrics: Metrics) -> OpenAuthenticator | RemoteAuthenticator:
    """The authenticator, which accepts every worker or asks the gateway. Raises `StartupError` for an invalid endpoint."""
    asked = package_settings.gateway_auth(settings)
    if asked is None:
        return OpenAuthenticator()
    # With the gRPC library of 14 MiB, which nothing else needs.
    from router.control_plane.gateway_auth import GatewayAuthenticator

    try:
        return GatewayAuthenticator(asked, _credential(settings), metrics)
    except ValueError as error:
        options = settings.shown("worker_auth_endpoint")
        raise StartupError("failed to connect to worker auth endpoint", str(error), options=options) from None


def _credential(settings: Settings) -> CredentialSource | None:
    if settings.secrets_path is None:
        return None
    secrets = SecretsFile(Path(settings.secrets_path))
    if settings.oauth2_provider_host is not None:
        # With its HTTP client of 8 MiB, which nothing else needs.
        from router.control_plane.client_credentials import ClientCredentials

        return ClientCredentials(settings.oauth2_provider_host, secrets)
    return FileCredential(secrets, settings.secrets_json_path or SECRETS_KEY)


def lookup(settings: Settings, advertise: SocketAddress, http_port: int) -> Lookup:
    """The method of discovery. Raises `StartupError` if the system's resolver configuration is needed and not usable."""
    own = own_replica(settings.stargate_id, str(advertise), http_port)
    if settings.disable_dns_discovery:
        return SelfOnly(own)
    # The library for DNS takes 9 MiB.
    from router.control_plane.resolver import Resolver

    try:
        resolver = Resolver(ttl_cap_s=settings.dns_resolver_ttl_ms / 1000, nameserver=settings.dns_nameserver)
    except LookupFailedError as error:
        causes = [str(error.__cause__)] if error.__cause__ else []
        options = settings.shown("stargate_discovery_dns_name")
        raise StartupError(str(error), *causes, options=options) from None
    if settings.pod_name is not None and settings.pod_namespace is not None:
        return HeadlessService(
            resolver,
            dns_name=settings.stargate_discovery_dns_name,
            template=settings.hostname_template,
            pod_name=settings.pod_name,
            namespace=settings.pod_namespace,
            advertise_addr=str(advertise),
            one_name_per_pod=settings.as_of_0_18,
        )
    return PlainDns(resolver, dns_name=settings.stargate_discovery_dns_name, own=own)
