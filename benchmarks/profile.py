"""Runs another benchmark under a sampling profiler: writes a flame graph, the command line and facts about the machine.

  benchmarks profile transport --requests 100000     99 samples a second, into .bench-out/profile-<time>
  benchmarks profile --rate 500 flatness

The profiler is py-spy. To profile a running router: `py-spy record --function --pid PID --output flame.svg`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.transport.environment import read_environment

_LONGEST_S = 3_600


def run(args: list[str]) -> None:
    """Write the folder and print its name and the benchmark's output. Exit status 1 if there is no flame graph."""
    parser = argparse.ArgumentParser(
        prog="benchmarks profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=99, help="samples per second (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path(".bench-out"), help="default: %(default)s")
    parser.add_argument("benchmark", help="what to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the benchmark")
    options = parser.parse_args(args)
    beside = Path(sys.executable).parent / "py-spy"
    profiler = str(beside) if beside.exists() else shutil.which("py-spy")
    if profiler is None:
        raise SystemExit("py-spy is not installed; `make setup` does it")
    folder: Path = options.output_dir / time.strftime("profile-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    measured = [sys.executable, "-m", "benchmarks", options.benchmark, *options.arguments]
    graph = folder / "flame.svg"
    command = [profiler, "record", "--function", "--subprocesses", "--rate", str(options.rate), "--output", str(graph)]
    (folder / "command.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")
    (folder / "environment.json").write_bytes(msgspec.json.format(msgspec.json.encode(read_environment()), indent=1))
    subprocess.run([*command, "--", *measured], check=False, timeout=_LONGEST_S)
    if not graph.exists():
        raise SystemExit(f"no flame graph; the rest is in {folder}")
    print(f"written to {folder}")
