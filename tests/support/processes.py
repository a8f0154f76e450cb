"""Real processes on free ports: routers, workers, engines; started, waited for, signalled, and their logs kept for the report."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.waiting import wait_until

INTEROP_MODEL = "dummy-model"
HERE = Path(__file__).parent
OURS = (sys.executable, "-m", "router")
OUR_WORKER = (sys.executable, "-m", "stargate_client")


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> list[int]:
    socks = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    for sock in socks:
        sock.bind((host, 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


class LoggedProcess:
    """One child process whose output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        env = dict(os.environ, RUST_LOG="info", NO_COLOR="1", no_proxy="127.0.0.1", PYTHONUNBUFFERED="1")
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, within_s: float = 10) -> int:
        return self._child.wait(within_s)

    def stop(self) -> None:
        """SIGTERM (after waking it), then SIGKILL."""
        if self.running:
            self._child.send_signal(signal.SIGCONT)
            self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(5)


class Stack:
    """Everything a scenario starts; `stop` ends all of it, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[LoggedProcess] = []

    def start(self, name: str, command: Sequence[str]) -> LoggedProcess:
        process = LoggedProcess(name, command, self.folder)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()

    def engine(self) -> "EngineProcess":
        return EngineProcess(self)

    def router(self, program: Sequence[str], **options: Any) -> "RouterProcess":
        return RouterProcess(self, program, **options)


class EngineProcess:
    def __init__(self, stack: Stack) -> None:
        (self.port,) = free_ports(1)
        self.process = stack.start(
            "engine", (sys.executable, str(HERE / "openai_engine.py"), str(self.port), INTEROP_MODEL)
        )
        wait_until(lambda: _status(self.port, "/health") == 200, 15, "engine answers")

    def break_down(self, *parts: str) -> None:
        """From now on exactly these of `health` and `chat` fail."""
        url = f"http://127.0.0.1:{self.port}/broken"
        request = urllib.request.Request(url, json.dumps(parts).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - the URL is ours


class RouterProcess:
    """A router process, ours or the reference: the command line is the same."""

    def __init__(
        self,
        stack: Stack,
        program: Sequence[str],
        *,
        advertise_port: int | None = None,
        dial_port: int | None = None,
        grpc_port: int | None = None,
        quic_port: int | None = None,
        direct: bool = False,
        pod: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """With `pod` it looks for other routers in the DNS, under `routers.test`."""
        self.http, grpc, models, self.metrics = free_ports(4)
        self.grpc = grpc_port or grpc
        self.quic = quic_port or free_ports(1, socket.SOCK_DGRAM)[0]
        host = "127.0.0.1"
        command = [
            *program,
            "--stargate-id=interop",
            f"--listen-addr={host}:{self.grpc}",
            f"--model-discovery-listen-addr={host}:{models}",
            f"--http-listen-addr={host}:{self.http}",
            f"--advertise-addr={host}:{advertise_port or self.grpc}",
            "--stargate-discovery-dns-name=routers.test",
            *((f"--pod-name={pod}", "--pod-namespace=ns") if pod else ("--disable-dns-discovery",)),
            f"--metrics-port={self.metrics}",
            f"--backend-connectivity={'direct' if direct else 'reverse'}",
            f"--advertised-hostname-template={host}",
            "--tunnel-protocol=raw-quic",
            "--quic-insecure",
            *extra,
        ]
        if not direct:
            command.append(f"--reverse-tunnel-listen-addr={host}:{self.quic}")
        if dial_port is not None:
            command.append(f"--reverse-tunnel-pylon-dial-addr={host}:{dial_port}")
        self.process = stack.start(pod or "router", command)
        wait_until(lambda: self.readyz() == 200 or not self.process.running, 20, "router is ready")
        assert self.process.running, self.process.log()

    def readyz(self) -> int | None:
        return _status(self.http, "/readyz")

    def chat(self, *, tokens: int = 3, delay_ms: int = 1, timeout_s: float = 15) -> "StreamedAnswer":
        """One streamed chat request, read to its end."""
        answer = self.begin_chat(tokens=tokens, delay_ms=delay_ms, timeout_s=timeout_s)
        answer.read_rest()
        return answer

    def begin_chat(self, *, tokens: int = 3, delay_ms: int = 1, timeout_s: float = 15) -> "StreamedAnswer":
        """One streamed chat request, up to its head."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=timeout_s)
        body = json.dumps({"model": INTEROP_MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        headers = {
            "content-type": "application/json",
            "x-request-id": f"interop-{time.monotonic_ns()}",
            "x-model": INTEROP_MODEL,
            "x-input-tokens": "10",
            "x-tokens": str(tokens),
            "x-delay-ms": str(delay_ms),
        }
        connection.request("POST", "/v1/chat/completions?trace=1", body, headers)
        return StreamedAnswer(connection)

    def serves(self) -> bool:
        try:
            return self.chat(timeout_s=5).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def routable(self) -> int:
        """The number of routable workers of the model, as the metrics page tells it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as page:
            for line in page.read().decode().splitlines():
                if line.startswith("stargate_active_inference_servers{") and f'model="{INTEROP_MODEL}"' in line:
                    return int(float(line.rsplit(" ", 1)[1]))
        return 0


class StreamedAnswer:
    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}
        self.body = b""

    def read_line(self) -> bytes:
        line = self._response.readline()
        self.body += line
        return line

    def read_rest(self) -> None:
        try:
            self.body += self._response.read()
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    @property
    def tokens(self) -> list[str]:
        """The contents of the chunks, `[DONE]` last."""
        data = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one)["choices"][0]["delta"]["content"] for one in data]


def worker_arguments(
    engine: EngineProcess, stargate_port: int, *, worker_id: str = "w1", direct: bool = False, extra: Sequence[str] = ()
) -> list[str]:
    return [
        f"--upstream-http-base-url=http://127.0.0.1:{engine.port}",
        f"--model-name={INTEROP_MODEL}",
        f"--stargate-address=127.0.0.1:{stargate_port}",
        f"--inference-server-id={worker_id}",
        f"--backend-connectivity={'direct' if direct else 'reverse'}",
        "--quic-insecure",
        "--tunnel-protocol=raw-quic",
        "--min-update-interval-ms=200",
        "--disable-bringup",
        "--active-canary-interval-ms=0",
        "--initial-input-tps=100000",
        "--metrics-host=127.0.0.1",
        "--metrics-port=0",
        *extra,
    ]


def _status(port: int, path: str) -> int | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
