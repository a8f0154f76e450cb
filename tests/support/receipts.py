"""Clients whose requests are answered by receipts (`x-mock-echo`): whoever gets another's bytes, or fewer, notices."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import aiohttp

from llm_request_router.testing import Process, System
from stargate_client.mock_engine import receipt
from support.http_client import CHAT

MODEL = "m"
END = b"data: [DONE]\n\n"


def body_of(name: str, size: int = 0) -> bytes:
    """A request body nobody else sends, at least `size` bytes long."""
    return json.dumps({"model": MODEL, "stream": True, "name": name, "fill": "f" * size}).encode()


def headers_of(name: str, events: int = 1, pad: int = 0) -> dict[str, str]:
    """Headers that make the mock engine answer with `events` receipts for `name`."""
    return {
        "x-request-id": name,
        "x-model": MODEL,
        "x-input-tokens": "1",
        "content-type": "application/json",
        "x-mock-echo": name,
        "x-output-tokens": str(events),
        "x-mock-pad": str(pad),
    }


def expected(name: str, body: bytes, events: int = 1, pad: int = 0) -> bytes:
    """The one correct answer."""
    digest = hashlib.sha256(body).hexdigest()
    return b"".join(receipt(name, len(body), digest, index, pad) for index in range(events)) + END


async def exchange(
    session: aiohttp.ClientSession, system: System, name: str, events: int = 1, size: int = 0, pad: int = 0
) -> str:
    """How one request ended: "answered", "error STATUS", "broken off", or "no answer". Wrong bytes are an assertion error."""
    body = body_of(name, size)
    right = expected(name, body, events, pad)
    got = bytearray()
    begun = False
    try:
        async with session.post(system.url + CHAT, data=body, headers=headers_of(name, events, pad)) as reply:
            begun = True
            if reply.status != 200:
                text = await reply.read()
                assert b'"echo"' not in text, f"{name} got a receipt with status {reply.status}"
                return f"error {reply.status}"
            async for piece in reply.content.iter_any():
                got += piece
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError):
        assert right.startswith(got), f"{name} got foreign bytes before it was broken off"
        return "broken off" if begun else "no answer"
    assert got == right, f"{name} got {len(got)} bytes that are not its own answer of {len(right)}"
    return "answered"


def http_session(limit: int = 0, timeout_s: float = 60) -> aiohttp.ClientSession:
    """A session without a bound on connections; a request that takes longer than `timeout_s` fails the test."""
    connector = aiohttp.TCPConnector(limit=limit)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s))


def resident_bytes(pid: int) -> int:
    """Resident set of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    line = next(one for one in lines if one.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def start_worker(system: System, name: str, engine_url: str, *options: str) -> Process:
    """Start a worker of a given name; does not wait for it."""
    return system.spawn(
        name,
        [
            *(sys.executable, "-m", "stargate_client", "--stargate-address", system.ports.grpc),
            *("--upstream-http-base-url", engine_url, "--inference-server-id", name, "--model-name", MODEL),
            *("--backend-connectivity", "reverse", "--min-update-interval-ms", "200", "--quic-insecure"),
            *options,
        ],
    )


def active_workers(system: System) -> int:
    """How many workers the router counts for the model."""
    samples = system.metrics(additional=False).items()
    prefix, label = "stargate_active_inference_servers", f'model="{MODEL}"'
    return int(sum(count for sample, count in samples if sample.startswith(prefix) and label in sample))


def counted(outcomes: list[str]) -> dict[str, int]:
    """Outcomes by how often they occurred."""
    return dict(Counter(outcomes))
