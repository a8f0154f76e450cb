"""Load on one tunnel between real processes, over a network that may be bad: `python tests/support/tunnel_load.py --seconds 5`.

A program, so that it can be run in a network namespace of its own. Clients send requests of all sizes, each of which has one
correct answer; what came of them is printed as JSON. With `--weather` the tunnel goes through a relay.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from llm_request_router.testing import Process, System
from support.receipts import MODEL, active_workers, exchange, http_session, resident_bytes, start_worker
from support.relay import RelayWeather, UdpRelay

CLIENTS = 24
LISTENERS = 3
"""Clients whose answers take most of a second: with them the worker is hardly ever silent, so the router learns where it is."""
REQUEST_LIMIT_S = 30
ROOT = Path(__file__).parents[2]

NETEM = "loss 2% delay 2ms 1ms reorder 95% duplicate 1%"


ADMIT_ALL = "--pylon-queue-mismatch-retry-enabled=false"
"""Clients that never pause make any estimate of the queue wrong now and then."""


def start_pylon(system: System, pylon: str, engine_url: str) -> Process:
    """The reference's worker, with the same engine as ours; dials or is dialled as the router wants it."""
    return system.spawn(
        "pylon",
        [
            *(pylon, "--stargate-address", system.ports.grpc, "--upstream-http-base-url", engine_url),
            *("--inference-server-id", "w", "--model-name", MODEL),
            f"--backend-connectivity={'reverse' if system.reverse else 'direct'}",
            *("--tunnel-protocol=raw-quic", "--quic-insecure", "--min-update-interval-ms=200", "--disable-bringup"),
            *("--active-canary-interval-ms=0", "--initial-input-tps=100000", "--metrics-host=127.0.0.1"),
            *("--metrics-port=0", ADMIT_ALL),
        ],
    )


class Load:
    """Clients that ask as fast as they are answered, and what became of it."""

    def __init__(self, system: System, seconds: float) -> None:
        self.system = system
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.resident: list[int] = []
        self._began = time.monotonic()
        self._seconds = seconds

    async def run(self) -> None:
        """Returns when the time is over and the last request has been answered."""
        async with http_session(timeout_s=REQUEST_LIMIT_S) as session, asyncio.TaskGroup() as group:
            group.create_task(self._weigh())
            for number in range(CLIENTS):
                group.create_task(self._ask(session, number))

    def _left_s(self) -> float:
        return self._began + self._seconds - time.monotonic()

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        random = Random(number)
        for turn in range(1 << 60):
            if self._left_s() < 0:
                return
            began = time.monotonic()
            outcome = await exchange(
                session,
                self.system,
                f"{number}-{turn}",
                events=400 if number < LISTENERS else random.choice((1, 5, 30)),
                size=random.choice((0, 0, 9, 5_000, 200_000)),
                pad=random.choice((0, 0, 100, 5_000)),
            )
            self.outcomes[outcome] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    async def _weigh(self) -> None:
        """The router's resident memory, ten times."""
        for _ in range(10):
            await asyncio.sleep(max(0, self._seconds / 10))
            self.resident.append(resident_bytes(self.system.router.pid))


def run(seconds: float, pylon: str | None, weather: RelayWeather | None, *, direct: bool = False) -> dict[str, object]:
    """Start everything, make the load, report."""
    with contextlib.ExitStack() as stack:
        options = []
        relay = None
        if weather is not None:
            relay = stack.enter_context(UdpRelay(weather=weather))
            options.append(f"--reverse-tunnel-pylon-dial-addr=127.0.0.1:{relay.port}")
        system = stack.enter_context(System.start(*options, reverse=not direct))
        if relay is not None and system.ports.reverse_tunnel is not None:
            relay.target_port = int(system.ports.reverse_tunnel.rpartition(":")[2])
        _, engine_url = system.add_engine(MODEL, name="engine", options=["--token-delay-ms", "2"])
        worker = start_pylon(system, pylon, engine_url) if pylon else start_worker(system, "w", engine_url, ADMIT_ALL)
        worker.until(lambda: active_workers(system), "it is routable", 30)
        load = Load(system, seconds)
        asyncio.run(load.run())
        log = system.router.log()
        return {
            "outcomes": dict(load.outcomes),
            "slowest_s": round(load.slowest_s, 2),
            "resident_mib": [round(size / 2**20, 1) for size in load.resident],
            "tunnels": None if direct else log.count("reverse tunnel connection established"),
            "alarming_lines": [one for one in log.splitlines() if re.search("error|Traceback", one)],
            "relay": relay and {name: value for name, value in vars(relay).items() if type(value) is int},
        }


# --- for tests -------------------------------------------------------------------------------------------------------

LOAD_S = float(os.environ.get("TUNNEL_LOAD_S", "4"))
BAD = "loss=0.02,duplication=0.03,late=0.1"
MOVING = "loss=0.005,moves_every_s=0.7"


def assert_all_was_well(report: dict[str, Any]) -> None:
    """Every request was answered with its own bytes, by one tunnel, and memory is where it was after a fifth of the time."""
    assert set(report["outcomes"]) == {"answered"}, report
    assert report["outcomes"]["answered"] > 10 * LOAD_S
    assert report["tunnels"] in (1, None), "and it was never lost"
    assert report["alarming_lines"] == []
    early, *_, late = report["resident_mib"][2:]
    assert late - early < 16


def load_in_a_process(
    seconds: float, *, pylon: str | None = None, weather: str | None = None, before: str = "", direct: bool = False
) -> dict[str, Any]:
    """Run this program; with `before`, a shell command, in a network namespace of its own after that command."""
    command = [sys.executable, __file__, f"--seconds={seconds}"]
    command += [f"--pylon={pylon}"] if pylon else []
    command += [f"--weather={weather}"] if weather is not None else []
    command += ["--direct"] if direct else []
    if before:
        command = ["unshare", "-rn", "sh", "-c", f'ip link set lo up && {before} && exec "$@"', "sh", *command]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=seconds + 90,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(ended.stdout)  # noqa: T201 - shown with -s and on failure
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def why_no_netem() -> str | None:
    """What keeps this machine from netem in a network namespace of its own; None if nothing does."""
    if not (shutil.which("unshare") and shutil.which("tc") and shutil.which("ip")):
        return "unshare, ip or tc is not installed"
    attempt = ["unshare", "-rn", "sh", "-c", f"ip link set lo up && tc qdisc add dev lo root netem {NETEM}"]
    ended = subprocess.run(attempt, capture_output=True, text=True, timeout=10, check=False)
    return None if ended.returncode == 0 else f"no netem here: {ended.stderr.strip()}"


def main() -> None:
    """Run once and print what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pylon", help="the reference's worker; ours without it")
    parser.add_argument("--weather", type=RelayWeather.parse, help="of a relay, as loss=0.01,late=0.1")
    parser.add_argument("--direct", action="store_true", help="the router dials")
    options = parser.parse_args()
    print(json.dumps(run(options.seconds, options.pylon, options.weather, direct=options.direct)))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
