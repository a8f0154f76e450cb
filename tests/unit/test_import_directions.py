"""Who may import whom (docs/architecture.md, "Rooms"): one direction between packages, no arrows between rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("certs", "tunnel_protocol", "router", "stargate_client", "llm_request_router", "benchmarks")

ALLOWED_PACKAGES = {
    "certs": {"tunnel_protocol"},  # only its limits and its reader of small files
    "tunnel_protocol": set(),
    "router": {"certs", "tunnel_protocol", "llm_request_router"},  # only router/testing, for its old name
    "llm_request_router": set(),
    "stargate_client": {"certs", "tunnel_protocol"},
    "benchmarks": {"certs", "tunnel_protocol", "router", "stargate_client"},
}
ALLOWED_ROOMS = {
    "registry": set(),
    "balancing": set(),
    "telemetry": set(),
    "tunnels": {"registry", "balancing", "telemetry"},
    "control_plane": {"registry", "balancing", "telemetry"},
    "gateway": {"registry", "balancing", "telemetry"},
    "testing": set(),
}
PORTS_ANY_ROOM_MAY_IMPLEMENT = {
    # The interface through which the control plane meets a worker's tunnels; the tunnels room implements it.
    ("tunnels", "router.control_plane.worker_tunnels"),
}
SANS_IO = ("tunnel_protocol", "router/registry", "router/balancing")
MAY_USE_ASYNCIO = {
    "tunnel_protocol/quic/endpoint.py",
    "tunnel_protocol/small_file.py",
    "tunnel_protocol/quic/udp.py",
    "tunnel_protocol/quic/datagrams.py",
    # Observers are written by threads of their own.
    "tunnel_protocol/observers/line_writer.py",
    "tunnel_protocol/observers/sampler.py",
    "tunnel_protocol/observers/standard_streams.py",
    "tunnel_protocol/quic/aioquic_engine/observers.py",
}


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


@pytest.mark.parametrize("room", sorted(ALLOWED_ROOMS))
def test_rooms_of_the_router_meet_only_where_they_may(room: str) -> None:
    wrong = []
    for path in modules(f"router/{room}"):
        for name in imported(path):
            if not within(name, "router"):
                continue
            parts = name.split(".")
            other = parts[1] if len(parts) > 1 else ""
            if other == room or other in ALLOWED_ROOMS[room] or other == "":
                continue
            if any(room == who and within(name, port) for who, port in PORTS_ANY_ROOM_MAY_IMPLEMENT):
                continue
            wrong.append((str(path.relative_to(ROOT)), name))
    assert wrong == []


def test_every_room_of_the_router_has_a_rule() -> None:
    rooms = {path.parent.name for path in (ROOT / "router").glob("*/__init__.py")}
    assert rooms == set(ALLOWED_ROOMS)


@pytest.mark.parametrize("where", SANS_IO)
def test_what_can_be_without_io_is_without_io(where: str) -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules(where)
        for name in imported(path)
        if (within(name, "asyncio") or within(name, "socket") or within(name, "threading"))
        and str(path.relative_to(ROOT)) not in MAY_USE_ASYNCIO
    ]
    assert wrong == []
