"""The end of a router while requests run: nothing is cut that could finish, and nothing holds the process for ever."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from certs import make_self_signed
from llm_request_router.testing import System
from support.registered_worker import RegisteredWorker
from support.waiting import wait_until

MODEL = "tiny"


class Stream:
    """One streamed chat completion, read event by event."""

    def __init__(self, system: System, tokens: int) -> None:
        self._connection = http.client.HTTPConnection(system.ports.http, timeout=20)
        body = {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]}
        headers = {**system.headers(MODEL), "content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        self.response = self._connection.getresponse()
        self.first = self.response.readline()

    def rest(self) -> bytes:
        """Everything up to the end; raises if the end is abnormal."""
        try:
            return self.response.read()
        finally:
            self._connection.close()


def refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def streaming(system: System, *, tokens: int, delay_ms: int) -> Stream:
    system.add_worker(MODEL, engine_options=["--num-tokens", str(tokens), "--token-delay-ms", str(delay_ms)])
    stream = Stream(system, tokens)
    assert stream.response.status == 200
    assert stream.first.startswith(b"data: ")
    return stream


def test_a_running_stream_over_a_reverse_tunnel_finishes_and_the_exit_is_clean(llm_router: System) -> None:
    stream = streaming(llm_router, tokens=60, delay_ms=20)
    llm_router.router.send(signal.SIGTERM)
    for address in (
        llm_router.ports.http,
        llm_router.ports.grpc,
        llm_router.ports.model_discovery,
        llm_router.ports.metrics,
    ):
        wait_until(lambda address=address: refused(address))  # type: ignore[misc]  # the default binds the loop variable
    assert b"data: [DONE]" in stream.rest()
    assert llm_router.router.wait() == 0


def test_of_fifty_running_streams_none_is_cut_by_a_shutdown(llm_router: System) -> None:
    engine = ["--num-tokens", "40", "--token-delay-ms", "25"]
    for _ in range(2):
        llm_router.add_worker(MODEL, engine_options=engine)
    with ThreadPoolExecutor(50) as pool:
        streams = list(pool.map(lambda _: Stream(llm_router, 40), range(50)))
        assert {stream.response.status for stream in streams} == {200}
        llm_router.router.send(signal.SIGTERM)
        ends = list(pool.map(Stream.rest, streams))
    assert sum(b"data: [DONE]" in end for end in ends) == 50
    assert llm_router.router.wait() == 0


@pytest.mark.llm_router_options("--shutdown-drain-timeout-ms=500")
def test_a_drain_that_takes_too_long_ends_with_one_and_says_what_was_unfinished(llm_router: System) -> None:
    stream = streaming(llm_router, tokens=1_000, delay_ms=20)
    began = time.monotonic()
    llm_router.router.send(signal.SIGTERM)
    assert llm_router.router.wait() == 1
    assert time.monotonic() - began < 3
    assert 'graceful shutdown timed out; forcing exit timeout_ms=500 unfinished="' in llm_router.router.log()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        stream.rest()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(llm_router: System, second: signal.Signals) -> None:
    stream = streaming(llm_router, tokens=1_000, delay_ms=20)
    llm_router.router.send(signal.SIGTERM)
    llm_router.router.until_logged("Entering draining mode")
    llm_router.router.send(second)
    assert llm_router.router.wait(3) == 1
    text = f'received second termination signal; forcing immediate exit signal="{second.name}"'
    assert text in llm_router.router.log()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        stream.rest()


@pytest.mark.llm_router_options("--lame-duck-ms=1500")
def test_a_lame_duck_serves_new_requests_and_can_be_scraped(llm_router: System) -> None:
    stream = streaming(llm_router, tokens=40, delay_ms=20)
    llm_router.router.send(signal.SIGTERM)
    llm_router.router.until_logged("Entering draining mode")
    assert llm_router.request("GET", "/readyz").status == 503
    assert llm_router.request("GET", "/healthz").status == 200
    reply = llm_router.chat(MODEL)
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert llm_router.metrics()["stargate_draining"] == 1
    assert b"data: [DONE]" in stream.rest()
    assert llm_router.router.wait() == 0


def test_a_rotated_certificate_is_served_to_new_tunnels(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "tls.crt", directory / "tls.key"

    def put(days: int) -> None:
        identity = make_self_signed(["stargate"], days=days)
        key.write_bytes(identity.key_pem)
        cert.write_bytes(identity.cert_pem)

    put(10)
    with System.start(f"--tls-cert-path={cert}", f"--tls-key-path={key}", "--tls-poll-ms=50") as system:
        expiry = 'stargate_tls_certificate_expiry_seconds{material_type="server_identity"}'
        before = system.metrics()[expiry]
        system.add_worker(MODEL)
        put(20)
        wait_until(lambda: system.metrics()[expiry] > before)
        system.router.until_logged("TLS material reloaded")
        # The worker that is connected stays, a new one is welcome.
        assert system.chat(MODEL).status == 200
        system.add_worker(MODEL)
        assert system.chat(MODEL).status == 200


def test_a_request_half_sent_when_the_drain_begins_is_answered(llm_router: System) -> None:
    host, _, port = llm_router.ports.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(b"GET /rea")
        # Another connection's answer proves that the router has read what was sent before.
        assert llm_router.request("GET", "/healthz").status == 200
        llm_router.router.send(signal.SIGTERM)
        llm_router.router.until_logged("Entering draining mode")
        client.sendall(b"dyz HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    assert llm_router.router.wait() == 0


def test_a_head_that_never_comes_does_not_hold_the_drain(llm_router: System) -> None:
    host, _, port = llm_router.ports.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(b"GET /rea")
        assert llm_router.request("GET", "/healthz").status == 200
        llm_router.router.send(signal.SIGTERM)
        assert llm_router.router.wait(6) == 0


@pytest.mark.llm_router_options("--shutdown-drain-timeout-ms=500")
async def test_an_upload_that_its_worker_does_not_take_does_not_hold_the_end(llm_router: System) -> None:
    worker = await RegisteredWorker(llm_router, "w1").start(MODEL)
    assert worker.tunnel is not None
    await worker.stop_serving()
    host, _, port = llm_router.ports.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        fields = {**llm_router.headers(MODEL), "host": "t", "content-length": "8000000"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode())
        request = await worker.tunnel.next_request()
        request.stream.pause_reading()
        writer.write(b"x" * 8_000_000)
        llm_router.router.send(signal.SIGTERM)
        assert await asyncio.to_thread(llm_router.router.wait, 5) == 1
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    finally:
        writer.transport.abort()
        await worker.stop()
