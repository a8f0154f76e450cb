"""Routers as pods of a fake cluster, and `stargate-k8s-router` in front of them, as real processes on loopback."""

import http.client
import json
import socket
import sys
from collections.abc import Sequence

from support.kubernetes_api import ApiInThread
from support.kubernetes_objects import endpoint, endpoint_slice
from support.processes import INTEROP_MODEL, OURS, LoggedProcess, Stack, StreamedAnswer, free_ports
from support.waiting import wait_until

DOOR = (sys.executable, "-m", "kubernetes_router")
SERVICE = "routers"
TEMPLATE = "{pod_name}.routers.{namespace}.svc"


class RouterPod:
    """A router whose name and host name are those of a pod."""

    def __init__(
        self,
        stack: Stack,
        name: str,
        door_grpc: int,
        *,
        door_quic: int | None = None,
        program: Sequence[str] = OURS,
        host: str = "127.0.0.1",
        like: "RouterPod | None" = None,
        extra: Sequence[str] = (),
    ) -> None:
        """Workers are told to dial the gRPC port of the door, and its UDP port, or the router itself without one.

        With `like` it has the address and the ports of another one that has ended.
        """
        self.name = name
        host = like.host if like else host
        self.host: str = host
        self.grpc, models, self.http, self.metrics = free_ports(4, host=host)
        (self.quic,) = free_ports(1, socket.SOCK_DGRAM, host=host)
        if like:
            self.grpc, self.http, self.quic = like.grpc, like.http, like.quic
        door = "127.0.0.1"
        command = [
            *program,
            f"--stargate-id={name}",
            f"--pod-name={name}",
            "--pod-namespace=nvcf",
            f"--listen-addr={host}:{self.grpc}",
            f"--model-discovery-listen-addr={host}:{models}",
            f"--http-listen-addr={host}:{self.http}",
            f"--metrics-port={self.metrics}",
            f"--advertise-addr={host}:{self.grpc}",
            "--stargate-discovery-dns-name=routers.test",
            "--disable-dns-discovery",
            f"--advertised-hostname-template={TEMPLATE}",
            "--backend-connectivity=reverse",
            f"--reverse-tunnel-listen-addr={host}:{self.quic}",
            f"--reverse-tunnel-pylon-dial-addr={f'{door}:{door_quic}' if door_quic else f'{host}:{self.quic}'}",
            f"--grpc-pylon-dial-addr=http://{door}:{door_grpc}",
            "--quic-insecure",
            *extra,
        ]
        self.process: LoggedProcess = stack.start(name, command)
        wait_until(
            lambda: status_of(self.http, "/healthz", host) == 200 or not self.process.running, 60, f"{name} is alive"
        )
        assert self.process.running, self.process.log()

    @property
    def slice(self) -> dict[str, object]:
        """The EndpointSlice of this pod; each pod has its own here, because ports belong to slices."""
        return self._slice()

    @property
    def terminating_slice(self) -> dict[str, object]:
        """The same when the pod is about to end. The Service publishes what is not ready, so `ready` stays true."""
        return self._slice(terminating=True)

    def _slice(self, *, terminating: bool = False) -> dict[str, object]:
        one = endpoint(self.name, self.host, terminating=terminating)
        return endpoint_slice(self.name, one, service=SERVICE, grpc_port=self.grpc, quic_port=self.quic)

    def readyz(self) -> int | None:
        return status_of(self.http, "/readyz", self.host)

    def chat(self, timeout_s: float = 10) -> StreamedAnswer:
        """One streamed request, read to its end."""
        answer = self.begin_chat(timeout_s=timeout_s)
        answer.read_rest()
        return answer

    def begin_chat(self, *, tokens: int = 3, delay_ms: int = 1, timeout_s: float = 10) -> StreamedAnswer:
        """One streamed request, up to its head."""
        connection = http.client.HTTPConnection(self.host, self.http, timeout=timeout_s)
        body = json.dumps({"model": INTEROP_MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        headers = {
            "content-type": "application/json",
            "x-request-id": "through-the-door",
            "x-model": INTEROP_MODEL,
            "x-input-tokens": "10",
            "x-tokens": str(tokens),
            "x-delay-ms": str(delay_ms),
        }
        connection.request("POST", "/v1/chat/completions", body, headers)
        return StreamedAnswer(connection)

    def serves(self) -> bool:
        try:
            return self.chat(5).status == 200
        except (OSError, http.client.HTTPException):
            return False


class DoorProcess:
    """`stargate-k8s-router` on free ports."""

    def __init__(
        self,
        stack: Stack,
        api: ApiInThread,
        name: str = "door",
        *,
        like: "DoorProcess | None" = None,
        scheme: str = "http",
        extra: Sequence[str] = (),
    ) -> None:
        """With `like` it has the ports of another one that has ended, as behind a Service.

        `scheme` is that of the address workers are told to dial.
        """
        self.grpc, self.health = free_ports(2)
        (self.quic,) = free_ports(1, socket.SOCK_DGRAM)
        if like is not None:
            self.grpc, self.quic = like.grpc, like.quic
        host = "127.0.0.1"
        command = [
            *DOOR,
            f"--listen-addr={host}:{self.grpc}",
            f"--reverse-tunnel-listen-addr={host}:{self.quic}",
            f"--health-listen-addr={host}:{self.health}",
            "--target-namespace=nvcf",
            f"--target-service-name={SERVICE}",
            f"--advertised-hostname-template={TEMPLATE}",
            f"--grpc-pylon-dial-addr={scheme}://{host}:{self.grpc}",
            *api.api.options,
            "--quic-insecure",
            *extra,
        ]
        self.process: LoggedProcess = stack.start(name, command)
        wait_until(lambda: self.get("/livez") == 200 or not self.process.running, 20, f"{name} is alive")
        assert self.process.running, self.process.log()

    def get(self, path: str) -> int | None:
        return status_of(self.health, path)

    def metrics(self) -> str:
        return ask(self.health, "/metrics")[1]


def status_of(port: int, path: str, host: str = "127.0.0.1") -> int | None:
    """The status of a page; None if nobody answers."""
    try:
        return ask(port, path, host)[0]
    except (OSError, http.client.HTTPException):
        return None


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body of a page on loopback."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
