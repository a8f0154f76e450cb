"""`make demo`: starts a router, two workers and a mock engine as processes on this machine and sends requests through them.

Shows the whole path (HTTP, router, QUIC tunnel, worker, engine) with the tokens as they arrive, then the errors a client gets
if no worker can serve a request. All processes listen on free ports of the loopback and end with this program.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import certs
from tunnel_protocol import compilation

T = TypeVar("T")

MODEL = "tiny-model"
_DEADLINE_S = 30.0
_PAUSE_S = 0.5
_QUESTIONS = ("What does a router do all day?", "Tell me about tunnels.", "And what is a token?")


class DemoError(Exception):
    """The demo cannot continue; the message says why and what to do."""


class Status:
    """A status line that is rewritten on a terminal; elsewhere plain lines."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._started = time.monotonic()

    def doing(self, text: str) -> None:
        """Show the current step."""
        seconds = time.monotonic() - self._started
        if self._live:
            print(f"\r\033[K  … {text} ({seconds:.1f} s)", end="", flush=True)

    def done(self, text: str) -> None:
        """Show that a step is complete."""
        print(f"\r\033[K  ✓ {text}" if self._live else f"  - {text}", flush=True)


class Processes:
    """The child processes of the demo and their logs; `stop` ends them all."""

    def __init__(self, folder: Path, status: Status) -> None:
        self.folder = folder
        self.status = status
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start `python -m WORDS...` with its output in a log file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
            )
        self._running.append((name, child))
        return child

    def until(self, what: str, ready: Callable[[], T | None]) -> T:
        """Wait until `ready` returns a value other than None. Raises `DemoError` if a process ends or the deadline passes."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            found = ready()
            if found is not None:
                self.status.done(what)
                return found
            for name, child in self._running:
                if child.poll() is not None:
                    raise DemoError(
                        f"{name} ended with exit code {child.returncode} while waiting for: {what}\n{self.log(name)}"
                    )
            if time.monotonic() > deadline:
                logs = "\n".join(self.log(name) for name, _ in self._running)
                raise DemoError(f"not within {_DEADLINE_S:.0f} s: {what}\n{logs}")
            self.status.doing(what)
            time.sleep(0.05)

    def pid(self, name: str) -> int:
        """The id of a process."""
        return next(child.pid for own, child in self._running if own == name)

    def stop_one(self, name: str) -> None:
        """End and remove one process."""
        for entry in list(self._running):
            if entry[0] == name:
                entry[1].send_signal(signal.SIGTERM)
                entry[1].wait(10)
                self._running.remove(entry)

    def stop(self) -> None:
        """End all processes, last started first."""
        for _, child in reversed(self._running):
            child.terminate()
        for _, child in reversed(self._running):
            try:
                child.wait(8)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def log(self, name: str) -> str:
        """The last lines of a process's log."""
        text = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"    last lines of {name}:", *(f"      {line}" for line in text)])


def read_ports(path: Path) -> dict[str, str] | None:
    """The content of a ports file; None if it does not exist yet."""
    if not path.exists():
        return None
    found: dict[str, str] = json.loads(path.read_text())
    return found


def start_router(processes: Processes, folder: Path, http_port: int) -> dict[str, str]:
    """Start the router with a new certificate; returns its addresses."""
    identity = certs.make_self_signed(["localhost", "stargate"])
    cert, key, ports = folder / "router.crt", folder / "router.key", folder / "router.json"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    processes.status.done("certificate made")
    local = "127.0.0.1"
    processes.start(
        "router",
        "router",
        "--stargate-id=demo",
        f"--listen-addr={local}:0",
        f"--model-discovery-listen-addr={local}:0",
        f"--http-listen-addr={local}:{http_port}",
        f"--advertise-addr={local}:0",
        "--stargate-discovery-dns-name=localhost",
        "--disable-dns-discovery",
        "--metrics-port=0",
        f"--openai-listen-addr={local}:0",
        "--openai-open",
        "--backend-connectivity=reverse",
        f"--reverse-tunnel-listen-addr={local}:0",
        f"--advertised-hostname-template={local}",
        f"--tls-cert-path={cert}",
        f"--tls-key-path={key}",
        f"--ports-file={ports}",
    )
    return processes.until("router is up", lambda: read_ports(ports))


def start_engine(processes: Processes, folder: Path) -> str:
    """Start the mock engine; returns its URL."""
    ports = folder / "engine.json"
    processes.start(
        "engine", "stargate_client.mock_engine", "--port=0", f"--ports-file={ports}", f"--model={MODEL}",
        "--token-delay-ms=40", "--ttft-ms=80",
    )  # fmt: skip
    return processes.until("mock engine is up", lambda: read_ports(ports))["url"]


def start_worker(processes: Processes, folder: Path, number: int, engine_url: str, router: dict[str, str]) -> None:
    """Start one worker."""
    processes.start(
        f"worker-{number}",
        "stargate_client",
        f"--upstream-http-base-url={engine_url}",
        f"--model-name={MODEL}",
        f"--stargate-address={router['grpc']}",
        f"--inference-server-id=worker-{number}",
        "--backend-connectivity=reverse",
        f"--tls-cert-path={folder / 'router.crt'}",
        "--min-update-interval-ms=200",
        "--metrics-host=127.0.0.1",
    )


def ask(address: str, model: str, question: str, tokens: int = 12, method: str = "") -> http.client.HTTPResponse:
    """Send one streaming chat completion request; `method` asks for a load-balancing algorithm."""
    connection = http.client.HTTPConnection(address, timeout=10)
    body = {"model": model, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": question}]}
    headers = {
        "content-type": "application/json",
        "x-request-id": f"demo-{time.time_ns()}",
        "x-model": model,
        "x-input-tokens": str(len(question.split())),
        **({"x-routing-method": method} if method else {}),
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    return connection.getresponse()


def tokens_of(response: http.client.HTTPResponse) -> Iterator[str]:
    """The tokens of a streamed response, as they arrive."""
    while line := response.readline():
        data = line.removeprefix(b"data: ").strip()
        if data and data != b"[DONE]":
            content = json.loads(data)["choices"][0]["delta"].get("content")
            if content:
                yield content


def routed_to(address: str) -> str | None:
    """The worker that answers a short request now, or None."""
    try:
        # In turn: by default a worker whose speed is known is preferred to one that has not answered anything yet.
        response = ask(address, MODEL, "ready?", tokens=1, method="round-robin")
        response.read()
    except OSError:
        return None
    return response.headers["x-inference-server-id"] if response.status == http.HTTPStatus.OK else None


def wait_for_workers(processes: Processes, address: str) -> None:
    """Wait until both workers have answered a request."""
    seen: set[str] = set()

    def both() -> bool | None:
        found = routed_to(address)
        if found is not None:
            seen.add(found)
        return True if len(seen) == 2 else None

    processes.until("two workers have dialled in and serve", both)


def chat(address: str) -> None:
    """Send a request and show the response while it streams."""
    for question in _QUESTIONS:
        started = time.monotonic()
        response = ask(address, MODEL, question)
        if response.status != http.HTTPStatus.OK:
            raise DemoError(f"the router answered {response.status} instead of a completion")
        print(f"\n  > {question}\n  {response.headers['x-inference-server-id']}: ", end="", flush=True)
        first = None
        for token in tokens_of(response):
            first = first or time.monotonic()
            print(token, end="", flush=True)
        print(f"\n    (first token after {((first or started) - started) * 1000:.0f} ms)")


def openai_answer(address: str) -> None:
    """Send a request as an OpenAI client does, which needs no headers for the router and may ask for a whole answer."""
    connection = http.client.HTTPConnection(address, timeout=10)
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": _QUESTIONS[0]}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    response = connection.getresponse()
    document = json.loads(response.read())
    if response.status != http.HTTPStatus.OK:
        raise DemoError(f"the port for OpenAI clients answered {response.status}: {document}")
    print(f"\n  The same from an OpenAI client, at http://{address}/v1, without streaming:")
    print(f"    {document['choices'][0]['message']['content']}")


def refusals(processes: Processes, address: str) -> None:
    """Show the responses for an unknown model, and for a known model without available workers."""
    print("\n  Nobody serves `no-such-model`:")
    response = ask(address, "no-such-model", "hello?")
    body = response.read().decode()
    print(f"    {response.status} {response.headers['x-stargate-error-code']}  {body}")
    if response.status != http.HTTPStatus.NOT_FOUND:
        raise DemoError("expected 404")
    print(f"\n  The engine behind both workers stops; they stay registered for `{MODEL}`:")
    processes.stop_one("engine")

    def refused() -> int | None:
        answer = ask(address, MODEL, "hello?")
        answer.read()
        own = answer.headers["x-inference-server-id"] is None
        return answer.status if own and answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE else None

    started = time.monotonic()
    status = processes.until("the workers have reported it", refused)
    print(f"    {status} after {time.monotonic() - started:.1f} s")


def page_of(router: dict[str, str]) -> str:
    """The address of the live page."""
    return f"http://localhost:{router['metrics'].rpartition(':')[2]}/"


def stay(processes: Processes, router: dict[str, str]) -> None:
    """Keep all processes running with a little traffic, and show where to look and what to try."""
    address = router["http"]
    headers = f"-H 'x-model: {MODEL}' -H 'x-request-id: mine' -H 'x-input-tokens: 3'"
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hello"}]})
    print(
        f"\nSee it work: {page_of(router)}\n"
        f"\nTry:\n  curl -N http://{router['openai']}/v1/chat/completions -d '{body}'"
        f"\nor as a gateway:\n  curl -N http://{address}/v1/chat/completions {headers} -d '{body}'"
        f"\n  kill {processes.pid('engine')}    # the engine behind both workers: see what clients get, and why"
        "\n\nA request is sent about each second. Ctrl-C ends the demo.",
        flush=True,
    )
    with contextlib.suppress(KeyboardInterrupt):
        for question in itertools.cycle(_QUESTIONS):
            with contextlib.suppress(OSError, http.client.HTTPException):  # a process was stopped: go on
                ask(address, MODEL, question).read()
            time.sleep(_PAUSE_S)


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--stay", action="store_true", help="keep running, with traffic, and print the address of the live page"
    )
    parser.add_argument(
        "--http-port", type=int, default=0, help="port of the router's HTTP front (default: any free one)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="llm-router-demo-") as name:
        folder = Path(name)
        status = Status()
        status.done(f"the program runs {compilation.description()}")
        processes = Processes(folder, status)
        try:
            router = start_router(processes, folder, options.http_port)
            engine_url = start_engine(processes, folder)
            for number in (1, 2):
                start_worker(processes, folder, number, engine_url, router)
            wait_for_workers(processes, router["http"])
            chat(router["http"])
            openai_answer(router["openai"])
            if options.stay:
                stay(processes, router)
            else:
                refusals(processes, router["http"])
                print(
                    "\nThat was the whole way: HTTP → router → QUIC tunnel → worker → engine. `make demo STAY=1` keeps it up."
                )
        except DemoError as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print()
            return 130
        finally:
            processes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
