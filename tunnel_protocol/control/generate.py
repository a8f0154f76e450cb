"""Generate the protobuf modules of this package: `python -m tunnel_protocol.control.generate [--check]`.

The generated files are committed, so that an installation needs no compiler; `--check` generates into a temporary folder
and exits 1 when a committed file differs. Needs the development requirements (grpcio-tools, mypy-protobuf).
"""

import argparse
import importlib.resources
import pathlib
import sys
import tempfile

PROTO_NAMES = ("stargate.proto", "llm_gateway.proto")


def generate(target: pathlib.Path) -> None:
    """Write `tunnel_protocol/control/*_pb2*.py[i]` below `target`. Raises `RuntimeError` if the compiler fails."""
    from grpc_tools import protoc  # a development tool: imported here so that routers do not need it

    root = pathlib.Path(__file__).resolve().parents[2]
    scripts = pathlib.Path(sys.executable).parent
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--proto_path={root}",
        f"--proto_path={well_known}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out={target}",
        *(f"tunnel_protocol/control/{name}" for name in PROTO_NAMES),
    ]
    if protoc.main(arguments) != 0:
        message = "protoc failed; its own message stands above"
        raise RuntimeError(message)


def stale_files() -> list[str]:
    """Names of the committed generated files that differ from the compiler's output."""
    here = pathlib.Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder)
        generate(target)
        fresh = {path.name: path.read_bytes() for path in (target / "tunnel_protocol" / "control").iterdir()}
    return sorted(
        name for name, text in fresh.items() if not (here / name).is_file() or (here / name).read_bytes() != text
    )


def main() -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate the protobuf modules of tunnel_protocol/control.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a committed file is out of date")
    if parser.parse_args().check:
        stale = stale_files()
        if stale:
            sys.stderr.write(f"out of date: {', '.join(stale)}; run `make proto` and commit the result\n")
        return 1 if stale else 0
    generate(pathlib.Path(__file__).resolve().parents[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
