"""`make chaos SECONDS=600`: attacks of all kinds at once on a real router, beside honest clients who check every byte.

    python tests/chaos/mixture.py [--seconds S] [--attacks NAME,NAME,...]

Exit status 1, and what was wrong, unless every honest request got its answer, the router's memory returned to its level
before the attacks, one more request is answered, SIGTERM ends the router with 0 and its log has no traceback.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import aiohttp  # noqa: E402 - found by what stands above, as all below

from llm_request_router.testing import System  # noqa: E402
from support.attacks import ATTACKS, GOOD_POLICY, POLICY_FILE, Attack  # noqa: E402
from support.receipts import MODEL, exchange, http_session, resident_bytes  # noqa: E402

CLIENTS = 4
WARM_UP_REQUESTS = 200
RETURNED_BYTES = 20 << 20
"""So far above its level before the attacks the resident set may stay."""

RETURN_S = 60.0


class Report(NamedTuple):
    """What one run saw; sizes in bytes, CPU in seconds."""

    attacks: tuple[Attack, ...]
    honest: Counter[str]
    rss_before: int
    rss_peak: int
    rss_after: int
    returned_s: float
    cpu_s: float
    wall_s: float
    last_chat: int
    exit_code: int
    tracebacks: int

    def wrong(self) -> list[str]:
        """Everything that should not have been."""
        found = [f"honest: {count} x {what}" for what, count in self.honest.items() if what != "answered"]
        if not self.honest["answered"]:
            found.append("honest: nothing was answered")
        if self.rss_after > self.rss_before + RETURNED_BYTES:
            found.append(f"memory stayed: {_mb(self.rss_before)} before, {_mb(self.rss_after)} after")
        if self.last_chat != 200:
            found.append(f"a request after the attacks: {self.last_chat}")
        if self.exit_code != 0:
            found.append(f"SIGTERM ended the router with {self.exit_code}")
        if self.tracebacks:
            found.append(f"{self.tracebacks} tracebacks in the router's log")
        found += [f"{attack.name()} did nothing" for attack in self.attacks if not attack.sent]
        return found

    def lines(self) -> list[str]:
        """The table for people."""
        rows = [f"{'attack':<26}{'events':>8}{'refused':>9}"]
        rows += [f"{attack.name():<26}{attack.sent:>8}{attack.refused:>9}" for attack in self.attacks]
        rows.append(f"honest requests: {dict(self.honest)}")
        rows.append(
            f"resident set: before {_mb(self.rss_before)}, peak {_mb(self.rss_peak)}, "
            f"after {_mb(self.rss_after)} ({self.returned_s:.0f} s later)"
        )
        rows.append(f"CPU of the router: {self.cpu_s:.1f} s in {self.wall_s:.0f} s")
        return rows


def attacks_named(names: str) -> tuple[Attack, ...]:
    """Attacks by their names, separated by commas; all for an empty string. Raises `ValueError` for an unknown one."""
    known = {attack.name(): attack for attack in ATTACKS}
    wanted = [name for name in names.split(",") if name] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"unknown attacks: {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name]() for name in wanted)


def run(seconds: float, attacks: Sequence[Attack]) -> Report:
    """One router, two workers, honest clients and these attacks for `seconds`."""
    directory = Path(tempfile.mkdtemp(prefix="llm-router-chaos-"))
    try:
        return _run(seconds, attacks, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(seconds: float, attacks: Sequence[Attack], directory: Path) -> Report:
    policy = directory / POLICY_FILE
    policy.write_bytes(GOOD_POLICY)
    with System.start("--lb-config-path", str(policy), "--lb-config-poll-ms", "3600000", directory=directory) as system:
        for _ in range(2):
            system.add_worker(MODEL, engine_options=["--token-delay-ms", "5"])
        before, honest, peak, cpu_s, wall_s = asyncio.run(_load(system, seconds, attacks))
        ended = time.monotonic()
        while resident_bytes(system.router.pid) > before + RETURNED_BYTES and time.monotonic() < ended + RETURN_S:
            time.sleep(0.5)
        returned_s, after = time.monotonic() - ended, resident_bytes(system.router.pid)
        last_chat = system.chat(MODEL, "after all").status
        system.router.send(signal.SIGTERM)
        exit_code = system.router.wait(60)
        tracebacks = system.router.log().count("Traceback")
    return Report(
        tuple(attacks), honest, before, peak, after, returned_s, cpu_s, wall_s, last_chat, exit_code, tracebacks
    )


async def _load(
    system: System, seconds: float, attacks: Sequence[Attack]
) -> tuple[int, Counter[str], int, float, float]:
    async with http_session() as session:
        for number in range(WARM_UP_REQUESTS // CLIENTS):
            await asyncio.gather(*(exchange(session, system, f"warm-{number}-{at}", 3) for at in range(CLIENTS)))
        before, cpu, began = resident_bytes(system.router.pid), _cpu(system), time.monotonic()
        until, honest, peaks = began + seconds, Counter[str](), [before]
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch(system, until, peaks))
            for number in range(CLIENTS):
                group.create_task(_honest(session, system, number, until, honest))
            for attack in attacks:
                group.create_task(attack.run(system, until))
        return before, honest, max(peaks), _cpu(system) - cpu, time.monotonic() - began


async def _honest(
    session: aiohttp.ClientSession, system: System, number: int, until: float, outcomes: Counter[str]
) -> None:
    asked = 0
    while time.monotonic() < until:
        outcomes[await exchange(session, system, f"honest-{number}-{asked}", 1 + asked % 10, 1_000 * (asked % 7))] += 1
        asked += 1


async def _watch(system: System, until: float, peaks: list[int]) -> None:
    while time.monotonic() < until:
        peaks.append(resident_bytes(system.router.pid))
        await asyncio.sleep(0.25)


def _cpu(system: System) -> float:
    fields = Path(f"/proc/{system.router.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def main(arguments: Sequence[str], say: Callable[[str], object] = print) -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to attack (default: %(default)s)")
    parser.add_argument("--attacks", type=attacks_named, default="", help="names, separated by commas (default: all)")
    options = parser.parse_args(arguments)
    report = run(options.seconds, options.attacks)
    for line in report.lines():
        say(line)
    for line in report.wrong():
        say(f"WRONG: {line}")
    return 1 if report.wrong() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
