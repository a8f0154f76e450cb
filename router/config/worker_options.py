"""The options of workers' registrations, of TLS and of secrets, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Final

from router.config.option import option, switch
from router.config.option_values import (
    milliseconds,
    milliseconds_above_zero,
    text,
)
from router.config.request_options import RequestOptions
from router.control_plane.settings import SECRETS_KEY
from tunnel_protocol.quic.settings import QuicSettings

_QUIC: Final = QuicSettings()
"""The transport is shared with the worker, so the defaults of its limits and timers stand there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions(RequestOptions):
    """Registrations, certificates and credentials."""

    registration_update_idle_timeout_ms: int = option(
        "--registration-update-idle-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Least silence after which a registration ends; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_IDLE_TIMEOUT_MS",
        section="Registration of workers",
    )
    registration_update_max_idle_timeout_ms: int = option(
        "--registration-update-max-idle-timeout-ms",
        "MS",
        milliseconds,
        default=300_000,
        help="Most silence, also for workers that do not tell their interval; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_MAX_IDLE_TIMEOUT_MS",
    )
    worker_auth_endpoint: str | None = option(
        "--worker-auth-endpoint",
        "URL",
        text,
        default=None,
        help="gRPC service that turns a worker's token into its routing key; without it every worker is accepted.",
    )
    worker_auth_connect_timeout_ms: int = option(
        "--worker-auth-connect-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=10_000,
        help="How long start-up tries to reach that service before it gives up.",
        env="STARGATE_WORKER_AUTH_CONNECT_TIMEOUT_MS",
        added=True,
    )
    worker_auth_timeout_ms: int = option(
        "--worker-auth-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=5_000,
        help="Limit for one call of that service; a failed call is tried once more.",
        env="STARGATE_WORKER_AUTH_TIMEOUT_MS",
        added=True,
    )
    worker_auth_cache_ms: int = option(
        "--worker-auth-cache-ms",
        "MS",
        milliseconds,
        default=5_000,
        help="How long a positive answer is remembered; 0 asks every time.",
        env="STARGATE_WORKER_AUTH_CACHE_MS",
        added=True,
    )
    tls_cert_path: str | None = option(
        "--tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Reverse mode: certificate chain served to workers. Direct mode: certificates that workers are checked "
        "against.",
        env="STARGATE_TLS_CERT_PATH",
        section="TLS and secrets",
    )
    tls_key_path: str | None = option(
        "--tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of the served chain; not looked at in direct mode.",
        env="STARGATE_TLS_KEY_PATH",
    )
    quic_insecure: bool = switch(
        "--quic-insecure",
        help="Do not verify workers that this router dials; QUIC stays encrypted.",
        env="STARGATE_QUIC_INSECURE",
    )
    tls_poll_ms: int = option(
        "--tls-poll-ms",
        "MS",
        milliseconds_above_zero,
        default=30_000,
        help="How often the certificate files are looked at for changes.",
        env="STARGATE_TLS_POLL_MS",
        added=True,
    )
    grpc_tls_cert_path: str | None = option(
        "--grpc-tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Serve both gRPC ports with TLS and this certificate chain.",
        env="STARGATE_GRPC_TLS_CERT_PATH",
        added=True,
    )
    grpc_tls_key_path: str | None = option(
        "--grpc-tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of that chain.",
        env="STARGATE_GRPC_TLS_KEY_PATH",
        added=True,
    )
    secrets_path: str | None = option(
        "--secrets-path",
        "PATH",
        text,
        default=None,
        help="JSON file with this router's own credentials; read anew for every use.",
        env="SECRETS_PATH",
    )
    secrets_json_path: str | None = option(
        "--secrets-json-path",
        "KEY",
        text,
        default=None,
        help=f"Dotted path to the bearer token in that file; {SECRETS_KEY} if not given.",
        env="SECRETS_JSON_PATH",
    )
    oauth2_provider_host: str | None = option(
        "--oauth2-provider-host",
        "URL",
        text,
        default=None,
        help="Get the bearer token at <URL>/token with the client credentials of the secrets file.",
        env="OAUTH2_PROVIDER_HOST",
    )
