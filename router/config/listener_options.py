"""Who a router is, where it listens and how it finds other routers, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Final, Literal

from router.config.option import option, required_option, switch
from router.config.option_values import (
    SocketAddress,
    milliseconds,
    milliseconds_above_zero,
    parse_socket_address,
    port,
    process_count,
    reference_release,
    text,
    url_list,
)

DEFAULT_HOSTNAME_TEMPLATE: Final = "{pod_name}.stargate.external"
"""Host name of a router for workers, if no other template is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Identity, listeners and discovery."""

    stargate_id: str = required_option(
        "--stargate-id",
        "ID",
        text,
        help="Identity of this process in logs, state and snapshots.",
        section="Who this router is",
    )
    advertise_addr: SocketAddress = required_option(
        "--advertise-addr",
        "IP:PORT",
        parse_socket_address,
        help="gRPC address of this router as published to workers; follows the port really bound if it names the "
        "listen port.",
    )
    pod_name: str | None = option(
        "--pod-name",
        "NAME",
        text,
        default=None,
        help="Name of the pod; together with the namespace it switches discovery to SRV records.",
        env="POD_NAME",
    )
    pod_namespace: str | None = option(
        "--pod-namespace", "NAMESPACE", text, default=None, help="Namespace of the pod.", env="POD_NAMESPACE"
    )
    advertised_hostname_template: str | None = option(
        "--advertised-hostname-template",
        "TEMPLATE",
        text,
        default=None,
        help="Host name under which workers reach a router; {pod_name} and {namespace} are filled in. "
        f"Without it {DEFAULT_HOSTNAME_TEMPLATE} is used.",
    )
    compat: Literal["0.11", "0.18"] = option(
        "--compat",
        "RELEASE",
        reference_release,
        default="0.18",
        help="Release line of the reference router whose behaviour clients, workers and charts see: '0.11' (August 2026) "
        "or '0.18'. docs/compatibility.md lists the differences.",
        env="STARGATE_COMPAT",
        added=True,
    )
    processes: int | Literal["auto"] = option(
        "--processes",
        "N|auto",
        process_count,
        default=1,
        help="Complete routers on this host, to use more cores: process i, from 0, is <stargate-id>-i and has its gRPC and QUIC "
        "ports + i; the HTTP and model-discovery ports are shared. 'auto' is one for each core of the CPU limit.",
        env="STARGATE_PROCESSES",
        added=True,
    )
    listen_addr: str = option(
        "--listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:50071",
        help="TCP: gRPC control plane, where workers register and watch.",
        section="Where it listens",
    )
    model_discovery_listen_addr: str = option(
        "--model-discovery-listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:50073",
        help="TCP: gRPC model discovery, where gateways list models.",
    )
    http_listen_addr: str = option(
        "--http-listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:8000",
        help="TCP: HTTP requests and the probes /healthz and /readyz.",
    )
    metrics_port: int = option(
        "--metrics-port",
        "PORT",
        port,
        default=9_090,
        help="TCP port of /metrics on all interfaces; 0 takes a free one.",
    )
    reverse_tunnel_listen_addr: str | None = option(
        "--reverse-tunnel-listen-addr",
        "IP:PORT",
        text,
        default=None,
        help="UDP: QUIC tunnels that workers dial; needed with, and only with, reverse connectivity.",
    )
    stargate_discovery_dns_name: str = required_option(
        "--stargate-discovery-dns-name",
        "NAME",
        text,
        help="DNS name (headless Service) under which all routers are found.",
        section="Discovery of other routers",
    )
    disable_dns_discovery: bool = switch("--disable-dns-discovery", help="Publish only this router; ask no DNS.")
    dns_poll_ms: int = option(
        "--dns-poll-ms", "MS", milliseconds_above_zero, default=1_000, help="Pause between two look-ups."
    )
    dns_resolver_ttl_ms: int = option(
        "--dns-resolver-ttl-ms", "MS", milliseconds, default=1_000, help="Longest time a positive DNS answer is used."
    )
    watch_heartbeat_ms: int = option(
        "--watch-heartbeat-ms",
        "MS",
        milliseconds,
        default=5_000,
        help="Longest gap between two snapshots to a watching worker, even if nothing changed.",
    )
    remote_stargate_url: tuple[str, ...] = option(
        "--remote-stargate-url",
        "URL",
        url_list,
        default=(),
        help="Further routers that workers should watch, https://host:port, or http:// with the next option; repeat it or "
        "separate with commas.",
        env="STARGATE_REMOTE_WATCH_URLS",
        repeats=True,
    )
    allow_insecure_remote_watch_http: bool = switch(
        "--allow-insecure-remote-watch-http",
        help="Allow http:// in --remote-stargate-url.",
        env="STARGATE_ALLOW_INSECURE_REMOTE_WATCH_HTTP",
        later=True,
    )
    grpc_pylon_dial_addr: str | None = option(
        "--grpc-pylon-dial-addr",
        "URL",
        text,
        default=None,
        help="Address workers dial for gRPC instead of the advertised one: http://host:port or https://host:port.",
    )
    enable_dev_peer_forwarding: bool = switch(
        "--enable-dev-peer-forwarding",
        help="Development relay between routers. Not available in this program: start-up stops if given.",
    )
    dns_nameserver: SocketAddress | None = option(
        "--dns-nameserver",
        "IP:PORT",
        parse_socket_address,
        default=None,
        help="Name server to ask; without it the system's.",
        added=True,
    )
    discovery_grace_ms: int = option(
        "--discovery-grace-ms",
        "MS",
        milliseconds,
        default=30_000,
        help="How long the last good DNS answer is kept when look-ups fail; 0 publishes only this router at once.",
        added=True,
    )
