"""Who may import whom (docs/architecture.md, "Packages"): one direction of dependency, no circle, no exceptions."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "certs",
    "tunnel_protocol",
    "router",
    "kubernetes_router",
    "stargate_client",
    "llm_request_router",
    "benchmarks",
)

ALLOWED_PACKAGES = {
    "certs": {"tunnel_protocol"},  # only its limits and its reader of small files
    "tunnel_protocol": set(),
    "router": {"certs", "tunnel_protocol", "llm_request_router"},  # only router/testing, for its old name
    "kubernetes_router": {"certs", "tunnel_protocol", "router"},  # of the router only what is named below
    "llm_request_router": set(),
    "stargate_client": {"certs", "tunnel_protocol"},
    # The harness starts the processes that are measured; it imports none of these.
    "benchmarks": {"certs", "tunnel_protocol", "router", "stargate_client", "llm_request_router"},
}
ALLOWED_OF_THE_ROUTER_FOR_THE_KUBERNETES_ROUTER = ("router.config", "router.http1", "router.telemetry")
ALLOWED_IN_THE_ROUTER: dict[str, set[str]] = {
    "ports": set(),
    "http1": set(),
    "grpc": set(),
    "balancing": set(),
    "telemetry": set(),
    "registry": {"ports"},
    "proxy": {"ports", "http1", "registry", "balancing", "telemetry"},
    "tunnels": {"ports", "registry", "balancing", "telemetry"},
    "control_plane": {"ports", "grpc", "registry", "balancing", "telemetry"},
    "operators": {"ports", "http1", "registry", "balancing", "telemetry"},
    "openai": {"ports", "http1", "registry", "balancing", "telemetry"},
    "config": set(),
    "process": {
        "ports",
        "http1",
        "grpc",
        "balancing",
        "telemetry",
        "registry",
        "proxy",
        "tunnels",
        "control_plane",
        "operators",
        "openai",
        "config",
    },
    "supervisor": {"http1", "telemetry", "config", "process", "operators"},
    "top": {"operators"},  # only the types of the API, and how an explanation is written as text
    "testing": set(),
}
SETTINGS_OF_A_PACKAGE = re.compile(r"router\.\w+\.settings(\.\w+)?")
"""What `config` may import beside itself: it fills the settings of each package, and knows nothing else of it."""

SANS_IO = ("tunnel_protocol", "router/registry", "router/balancing")
SANS_IO_MODULES = (
    "kubernetes_router/backoff.py",
    "kubernetes_router/grpc_messages.py",
    "kubernetes_router/http2/frames.py",
    "kubernetes_router/http2/stream.py",
    "kubernetes_router/relay/client_hello.py",
    "kubernetes_router/relay/core.py",
    "kubernetes_router/relay/first_flight.py",
    "kubernetes_router/relay/flows.py",
    "kubernetes_router/relay/initial_packets.py",
    "kubernetes_router/relay/outcomes.py",
    "kubernetes_router/slice_events.py",
    "kubernetes_router/slices.py",
    "kubernetes_router/targets.py",
    "router/grpc/frames.py",
    "router/grpc/header_blocks.py",
    "router/grpc/header_decoder.py",
    "router/grpc/http2_connection.py",
    "router/grpc/status.py",
    "router/grpc/stream.py",
    "router/operators/durations.py",
    "router/operators/live_document.py",
    "router/operators/request_log.py",
    "router/operators/state_collector.py",
    "router/supervisor/live_merge.py",
    "router/top/detail.py",
    "router/top/event_stream.py",
    "router/top/figures.py",
    "router/top/keys.py",
    "router/top/lines_view.py",
    "router/top/live_state.py",
    "router/top/once.py",
    "router/top/ordering.py",
    "router/top/overview.py",
    "router/top/printable.py",
    "router/top/spans.py",
    "router/top/table_view.py",
    "router/top/tables.py",
    "router/top/view_model.py",
    "router/supervisor/metric_page.py",
    "router/supervisor/metric_sum.py",
    "router/supervisor/plan.py",
    "router/supervisor/restarts.py",
)
MAY_USE_ASYNCIO = {
    "tunnel_protocol/quic/connection.py",
    "tunnel_protocol/quic/endpoint.py",
    "tunnel_protocol/small_file.py",
    "tunnel_protocol/quic/udp.py",
    "tunnel_protocol/quic/datagrams.py",
    # Observers are written by threads of their own.
    "tunnel_protocol/observers/line_writer.py",
    "tunnel_protocol/observers/sampler.py",
    "tunnel_protocol/observers/standard_streams.py",
    "tunnel_protocol/quic/aioquic_handshake/observers.py",
}


SETTINGS = sorted(path for path in (ROOT / "router").glob("*/settings.py") if path.parent.name != "config")


def modules(package: str) -> Iterator[Path]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            yield path


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            module = node.module or ""
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction_only(package: str) -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in imported(path)
        for other in PACKAGES
        if within(name, other) and other != package and other not in ALLOWED_PACKAGES[package]
    ]
    assert wrong == []


def test_the_kubernetes_router_imports_only_parts_of_the_router() -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules("kubernetes_router")
        for name in imported(path)
        if within(name, "router")
        if not any(within(name, part) for part in ALLOWED_OF_THE_ROUTER_FOR_THE_KUBERNETES_ROUTER)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(ALLOWED_IN_THE_ROUTER))
def test_packages_of_the_router_import_in_one_direction_only(package: str) -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules(f"router/{package}")
        for name in imported(path)
        if within(name, "router") and name != "router"
        if name.split(".")[1] not in {package, *ALLOWED_IN_THE_ROUTER[package]}
        if not (package == "config" and SETTINGS_OF_A_PACKAGE.fullmatch(name))
    ]
    assert wrong == []


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.parent.name)
def test_the_settings_of_a_package_import_nothing_of_the_router(path: Path) -> None:
    assert [name for name in imported(path) if within(name, "router")] == []


def test_every_package_of_the_router_has_a_rule_and_its_root_holds_nothing_else() -> None:
    packages = {path.parent.name for path in (ROOT / "router").glob("*/__init__.py")}
    assert packages == set(ALLOWED_IN_THE_ROUTER)
    assert {path.name for path in (ROOT / "router").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_what_may_import_in_the_router_makes_no_circle() -> None:
    TopologicalSorter(ALLOWED_IN_THE_ROUTER).prepare()


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_in_no_circle(package: str) -> None:
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules(package)
    }
    TopologicalSorter({name: imported(path) & names.keys() - {name} for name, path in names.items()}).prepare()


@pytest.mark.parametrize("where", [*SANS_IO, *SANS_IO_MODULES])
def test_what_can_be_without_io_is_without_io(where: str) -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in ([ROOT / where] if where.endswith(".py") else modules(where))
        for name in imported(path)
        if (within(name, "asyncio") or within(name, "socket") or within(name, "threading"))
        and str(path.relative_to(ROOT)) not in MAY_USE_ASYNCIO
    ]
    assert wrong == []
