"""What each process of a router gets as its own options, and which options exclude more than one process. Without I/O.

See docs/operations.md, "Several processes".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError, listen_address

_MAX_PORT = 65_535
_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process: its id, and the values of options that differ from those of the router. None: the option is left out."""

    stargate_id: str
    options: Mapping[str, str | None]


def check_processes(settings: Settings, count: int) -> None:
    """Raise `StartupError` if `count` processes, more than one, are not possible with the other options."""
    given = f"--processes={settings.processes}"
    refused = f"{given} ({count}) is not possible" if settings.processes == "auto" else f"{given} is not possible"
    by_srv = not settings.disable_dns_discovery and None not in (settings.pod_name, settings.pod_namespace)
    named = settings.reverse or by_srv or settings.advertised_hostname_template is not None
    if named and "{pod_name}" in settings.hostname_template:
        raise StartupError(
            f"{refused} with {{pod_name}} in --advertised-hostname-template",
            f"workers reach a pod under the name {settings.hostname_template} at one QUIC port: behind stargate-k8s-router a "
            "pod has one, so its processes could not be told apart; run more pods, or give a template without {pod_name}",
        )
    if by_srv:
        raise StartupError(
            f"{refused} with --pod-name and --pod-namespace",
            "discovery by SRV records finds one gRPC port for each pod; run more pods, or give --disable-dns-discovery",
        )
    _check_ports(settings, count, refused)


def _check_ports(settings: Settings, count: int, refused: str) -> None:
    grpc = listen_address(settings, "listen_addr")
    reverse = listen_address(settings, "reverse_tunnel_listen_addr") if settings.reverse else SocketAddress("", 0)
    for name, port in (
        ("listen_addr", grpc.port),
        ("reverse_tunnel_listen_addr", reverse.port),
        ("advertise_addr", settings.advertise_addr.port),
    ):
        if port and port + count - 1 > _MAX_PORT:
            raise StartupError(
                f"{refused}: its last process would have port {port + count - 1}", options=settings.shown(name)
            )
    if not grpc.port:
        return
    others = {name: listen_address(settings, name) for name in ("model_discovery_listen_addr", "http_listen_addr")}
    if settings.openai_listen_addr is not None:
        others["openai_listen_addr"] = listen_address(settings, "openai_listen_addr")
    others["metrics_port"] = SocketAddress("0.0.0.0", settings.metrics_port)
    for name, other in others.items():
        same_host = grpc.host == other.host or grpc.host in _EVERYWHERE or other.host in _EVERYWHERE
        if same_host and grpc.port <= other.port < grpc.port + count:
            raise StartupError(
                f"{refused}: port {other.port} would be the gRPC port of process {other.port - grpc.port}",
                "process i listens on the port of --listen-addr + i; leave as many ports free as there are processes",
                options=settings.shown("listen_addr", name),
            )


def plan_processes(
    settings: Settings,
    count: int,
    http: SocketAddress,
    model_discovery: SocketAddress,
    openai: SocketAddress | None = None,
) -> list[ProcessPlan]:
    """The plans of all processes; the addresses are those that are reserved for the shared ports."""
    plans = [_plan(settings, index, http, model_discovery) for index in range(count)]
    if openai is None:
        return plans
    shared = {"--openai-listen-addr": str(openai)}
    return [ProcessPlan(plan.stargate_id, {**plan.options, **shared}) for plan in plans]


def _plan(settings: Settings, index: int, http: SocketAddress, model_discovery: SocketAddress) -> ProcessPlan:
    stargate_id = f"{settings.stargate_id}-{index}"
    options: dict[str, str | None] = {
        "--processes": "1",
        "--stargate-id": stargate_id,
        "--advertise-addr": str(_moved(settings.advertise_addr, index)),
        "--listen-addr": str(_moved(listen_address(settings, "listen_addr"), index)),
        "--http-listen-addr": str(http),
        "--model-discovery-listen-addr": str(model_discovery),
        "--ports-file": None,
    }
    if settings.reverse:
        reverse = listen_address(settings, "reverse_tunnel_listen_addr")
        options["--reverse-tunnel-listen-addr"] = str(_moved(reverse, index))
    dialled = settings.reverse_tunnel_pylon_dial_addr
    if dialled:
        host, colon, port = dialled.rpartition(":")
        if colon and port.isascii() and port.isdigit() and int(port):
            options["--reverse-tunnel-pylon-dial-addr"] = f"{host}:{int(port) + index}"
    return ProcessPlan(stargate_id, options)


def _moved(address: SocketAddress, index: int) -> SocketAddress:
    return address._replace(port=address.port + index) if address.port else address
