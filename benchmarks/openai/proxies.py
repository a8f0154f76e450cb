"""The proxies that are compared, each as processes in front of one engine."""

import json
import os
import secrets
import shlex
import socket
from dataclasses import dataclass, field
from pathlib import Path

from llm_request_router import programs
from llm_request_router.testing import Process, System
from router.openai.keys.key_file import KeyEntry, KeyFile
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_store import KeyStore

MODEL = "my-model"


@dataclass(frozen=True)
class Proxy:
    """One way to the engine."""

    name: str
    address: str
    pid: int
    """Of the process whose CPU and memory count, with its children."""
    headers: dict[str, str] = field(default_factory=dict)
    asks_for_usage: bool = False
    """Whether the clients ask for usage in their streams, as the front asks in any case."""


def routers(folder: Path, engine_url: str) -> tuple[list[System], list[Proxy]]:
    """A router with an open front and its gateway port, and one with a front that asks for keys; a worker each.

    The gateway port is there twice: with clients that ask for usage, its engine sends as much as behind a front.

    The caller stops the systems.
    """
    key, keys = new_key(), folder / "keys.json"
    with KeyStore(keys).changing() as change:
        change.file = KeyFile([KeyEntry(id="bench", digest="sha256:" + digest_of(key.encode()).hex())])
    systems: list[System] = []
    try:
        for name, option in (("open", "--openai-open"), ("keys", f"--openai-keys-file={keys}")):
            (folder / name).mkdir()
            system = System.start(
                "--openai-listen-addr=127.0.0.1:0", option, environment={"RUST_LOG": "warn"}, directory=folder / name
            )
            systems.append(system)
            _add_worker(system, engine_url)
    except BaseException:
        for system in systems:
            system.close()
        raise
    first, second = systems
    gateway_headers = {"x-model": MODEL, "x-input-tokens": "100"}
    http, pid = first.ports.http, first.router.pid
    found = [
        Proxy("router, gateway port", http, pid, gateway_headers),
        Proxy("the same, with usage", http, pid, gateway_headers, asks_for_usage=True),
    ]
    bearer = {"authorization": f"Bearer {key}"}
    for name, system, headers in (("router, front, open", first, {}), ("router, front, keys", second, bearer)):
        assert system.ports.openai is not None  # noqa: S101 - the option was given
        found.append(Proxy(name, system.ports.openai, system.router.pid, headers))
    return systems, found


def litellm(folder: Path, engine_url: str, command: str) -> tuple[Process, Proxy]:
    """LiteLLM's proxy with the one key it insists on, without database and telemetry; `command` is its console script."""
    port, key = _free_port(), f"sk-{secrets.token_hex(32)}"
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{engine_url}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}))
    words = [*shlex.split(command), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    process = Process("litellm", [*words, "--telemetry", "False"], folder, quiet)
    return process, Proxy("LiteLLM", f"127.0.0.1:{port}", process.pid, {"authorization": f"Bearer {key}"})


def vllm_router(folder: Path, engine_url: str, command: str) -> tuple[Process, Proxy]:
    """The router of vLLM in front of one engine, with one key; `command` is its console script."""
    port, key = _free_port(), f"sk-{secrets.token_hex(32)}"
    words = [*shlex.split(command), "--worker-urls", engine_url, "--policy", "round_robin", "--log-level", "error"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(_free_port()), "--api-key", key]
    process = Process("vllm-router", words, folder, {})
    return process, Proxy("vLLM router", f"127.0.0.1:{port}", process.pid, {"authorization": f"Bearer {key}"})


def _add_worker(system: System, engine_url: str) -> None:
    options = ("--upstream-http-base-url", engine_url, "--stargate-address", system.ports.grpc, "--model-name", MODEL)
    reverse = ("--inference-server-id", "bench", "--backend-connectivity", "reverse", "--quic-insecure")
    # The only worker: what it refused would be answered 503, and costs a request without being one.
    takes_all = ("--pylon-queue-mismatch-retry-enabled", "false")
    command = [*programs.command("stargate_client"), *options, *reverse, *takes_all]
    system.spawn("worker", command, programs.environment(os.environ))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
