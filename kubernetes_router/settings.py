"""The options of `stargate-k8s-router`, each written once. docs/kubernetes-router.md explains them.

Declared as those of the router (`router/config/settings.py`): a field is an option, named after its flag.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from router.config.command_line import CommandLine
from router.config.explicit_uri import shown
from router.config.option import option, required_option, switch
from router.config.option_values import (
    SocketAddress,
    ValueRefusedError,
    log_format,
    milliseconds,
    milliseconds_above_zero,
    parse_socket_address,
    port,
    text,
    url_list,
)

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts the credentials of a pod."""


def port_above_zero(value: str) -> int:
    """1..65535."""
    number = port(value)
    if number == 0:
        raise ValueRefusedError("value must be greater than 0")
    return number


def relayed_framing(value: str) -> Literal["raw-quic", "webtransport"]:
    """The framing of the tunnels that are relayed."""
    if value == "raw-quic":
        return "raw-quic"
    if value == "webtransport":
        return "webtransport"
    raise ValueRefusedError(f"unsupported tunnel protocol '{value}', expected 'raw-quic' or 'webtransport'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options of one process."""

    listen_addr: SocketAddress = option(
        "--listen-addr",
        "IP:PORT",
        parse_socket_address,
        default=SocketAddress("0.0.0.0", 50_071),
        help="TCP: gRPC, where workers watch and register.",
        section="Where it listens",
    )
    reverse_tunnel_listen_addr: SocketAddress = option(
        "--reverse-tunnel-listen-addr",
        "IP:PORT",
        parse_socket_address,
        default=SocketAddress("0.0.0.0", 50_072),
        help="UDP: QUIC tunnels of workers.",
    )
    health_listen_addr: SocketAddress = option(
        "--health-listen-addr",
        "IP:PORT",
        parse_socket_address,
        default=SocketAddress("0.0.0.0", 8_080),
        help="TCP: the probes /livez and /readyz, and /metrics.",
    )
    target_namespace: str = required_option(
        "--target-namespace",
        "NAMESPACE",
        text,
        help="Namespace of the routers.",
        env="POD_NAMESPACE",
        section="The routers behind it",
    )
    target_service_name: str = option(
        "--target-service-name",
        "NAME",
        text,
        default="stargate-headless",
        help="Service whose EndpointSlices list the routers; one that publishes addresses which are not ready.",
    )
    advertised_hostname_template: str = option(
        "--advertised-hostname-template",
        "TEMPLATE",
        text,
        default="{pod_name}.stargate.external",
        help="Host name under which workers reach a router, the same as that of the routers; {pod_name} and {namespace} are "
        "filled in.",
    )
    advertised_grpc_port: int = option(
        "--advertised-grpc-port",
        "PORT",
        port_above_zero,
        default=50_071,
        help="gRPC port that is published with that host name.",
    )
    grpc_port_name: str = option(
        "--grpc-port-name", "NAME", text, default="grpc", help="Name of the routers' TCP port for gRPC."
    )
    quic_port_name: str = option(
        "--quic-port-name", "NAME", text, default="quic", help="Name of the routers' UDP port for tunnels."
    )
    grpc_pylon_dial_addr: str = required_option(
        "--grpc-pylon-dial-addr",
        "URI",
        text,
        help="http:// or https:// URI that workers dial for every router: the address of this program.",
        section="What workers are told",
    )
    remote_stargate_url: tuple[str, ...] = option(
        "--remote-stargate-url",
        "URI",
        url_list,
        default=(),
        help="Watch URI of another installation; may be repeated, or be a comma-separated list.",
        env="STARGATE_REMOTE_WATCH_URLS",
        repeats=True,
    )
    allow_insecure_remote_watch_http: bool = switch(
        "--allow-insecure-remote-watch-http",
        help="Allow http:// in --remote-stargate-url.",
        env="STARGATE_ALLOW_INSECURE_REMOTE_WATCH_HTTP",
    )
    watch_heartbeat_ms: int = option(
        "--watch-heartbeat-ms",
        "MS",
        milliseconds_above_zero,
        default=5_000,
        help="An unchanged list is sent again after this time.",
    )
    connect_timeout_ms: int = option(
        "--connect-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=5_000,
        help="Limit for connecting to a router.",
        section="Time limits",
    )
    relay_idle_timeout_ms: int = option(
        "--relay-idle-timeout-ms",
        "MS",
        milliseconds,
        default=300_000,
        help="A relayed tunnel is forgotten after this time without a datagram.",
    )
    relay_keep_alive_ms: int = option(
        "--relay-keep-alive-ms",
        "MS",
        milliseconds,
        default=10_000,
        help="Accepted and checked; tunnels are not terminated here, their ends keep them alive.",
    )
    shutdown_drain_timeout_ms: int = option(
        "--shutdown-drain-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=30_000,
        help="Limit for the end of the process after SIGTERM.",
    )
    tls_cert_path: str | None = option(
        "--tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Certificate chain of the tunnels, watched and reported; it is the routers that serve it.",
        env="STARGATE_TLS_CERT_PATH",
        section="TLS",
    )
    tls_key_path: str | None = option(
        "--tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of that chain.",
        env="STARGATE_TLS_KEY_PATH",
    )
    upstream_tls_cert_path: str | None = option(
        "--upstream-tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Trust bundle for routers, checked at the start; workers verify the routers, this program does not.",
        env="STARGATE_UPSTREAM_TLS_CERT_PATH",
    )
    quic_insecure: bool = switch(
        "--quic-insecure",
        help="Accepted without effect: this program does not terminate the TLS of tunnels.",
        env="STARGATE_QUIC_INSECURE",
    )
    tunnel_protocol: Literal["raw-quic", "webtransport"] = option(
        "--tunnel-protocol",
        "PROTOCOL",
        relayed_framing,
        default="raw-quic",
        help="Framing of the tunnels: 'raw-quic' or 'webtransport'; relayed alike.",
    )
    grpc_tls_cert_path: str | None = option(
        "--grpc-tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Serve gRPC with TLS and this certificate chain; without it gRPC is plaintext.",
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
    tls_poll_ms: int = option(
        "--tls-poll-ms",
        "MS",
        milliseconds_above_zero,
        default=30_000,
        help="How often the certificate files are looked at for changes.",
        env="STARGATE_TLS_POLL_MS",
        added=True,
    )
    kubernetes_api_url: str | None = option(
        "--kubernetes-api-url",
        "URL",
        text,
        default=None,
        help="https:// URL of the Kubernetes API; without it the one of the cluster this pod runs in.",
        section="Kubernetes API",
        added=True,
    )
    kubernetes_token_path: str = option(
        "--kubernetes-token-path",
        "PATH",
        text,
        default=f"{SERVICE_ACCOUNT}/token",
        help="Token of the service account; read anew for every request.",
        added=True,
    )
    kubernetes_ca_path: str = option(
        "--kubernetes-ca-path",
        "PATH",
        text,
        default=f"{SERVICE_ACCOUNT}/ca.crt",
        help="Trust bundle for the Kubernetes API; read anew for every connection.",
        added=True,
    )
    log_format: Literal["text", "json"] = option(
        "--log-format",
        "FORMAT",
        log_format,
        default="text",
        help="Log lines as 'text' or as 'json'.",
        env="STARGATE_LOG_FORMAT",
        section="What operators see",
        added=True,
    )
    ports_file: str | None = option(
        "--ports-file",
        "PATH",
        text,
        default=None,
        help="Once ready, write the bound addresses there as JSON.",
        env="STARGATE_PORTS_FILE",
        added=True,
    )

    def given(self) -> dict[str, Any]:
        """The settings by name that differ from the default, or have none, for the log."""
        values = {option.name: getattr(self, option.name) for option in COMMAND_LINE.options}
        return {
            option.name: _shown(values[option.name])
            for option in COMMAND_LINE.options
            if values[option.name] != option.default
        }


def _shown(value: object) -> object:
    """A value in the spelling of the command line; without user information in URIs."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple) and not isinstance(value, SocketAddress):
        return ",".join(shown(str(one)) for one in value)
    return shown(str(value))


COMMAND_LINE: Final = CommandLine(
    Settings,
    "stargate-k8s-router",
    about="Gives workers one address for several routers in Kubernetes.",
    introduction=(
        "Workers dial this program. It answers their watch with one entry per router pod, passes each registration on to the",
        "router that its :authority names, and relays each tunnel to the router that its TLS server name names. The pods come",
        "from the EndpointSlices of a Service; the service account needs get, list and watch on them. In a pod:",
        "",
        "  stargate-k8s-router --target-namespace nvcf --target-service-name llm-request-router-headless \\",
        "      --advertised-hostname-template {pod_name}.llm-request-router-headless.nvcf.svc.cluster.local \\",
        "      --grpc-pylon-dial-addr http://llm-request-router-backend-router.nvcf.svc.cluster.local:50071",
    ),
)
"""Parses the arguments of `stargate-k8s-router`."""
