"""What a router with few options does not load, because it would stay in its memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNUSED = (
    "aiohttp",  # a provider of tokens
    "dns",  # discovery
    "greenlet",  # structlog looks for it
    "grpc",  # a gateway that authenticates workers
    "opentelemetry",  # traces
    "pygments",
    "redis",  # limits of several processes
    "rich",  # structlog looks for it
    "router.openai.front",
    "router.supervisor",
    "textual",  # `router top`
)
START = """
import json, sys
from tunnel_protocol.observers.structlog_import import import_structlog
import_structlog()
import router.config.cli, router.process.lifecycle
found = sorted(sys.modules)
import rich
print(json.dumps(found))
"""


def loaded() -> set[str]:
    """The modules of a process that has imported what a router starts with."""
    environment = {**os.environ, "LLM_ROUTER_PURE_PYTHON": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(ended.stdout))


def test_a_router_loads_only_the_libraries_that_its_options_need() -> None:
    found = loaded()
    assert "router.process.app" in found
    assert [name for name in UNUSED if name in found] == []
