"""The port for OpenAI clients with TLS: its certificate is replaced while it serves, and it closes as the port without TLS does."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

import certs
from certs import Identity
from router.http1.server import HttpServer
from router.process.http_tls import HttpTls
from router.process.served_identity import check_usable_for_http
from support.front_in_memory import chat, front_in_memory, hello, post
from support.http_client import HttpClient
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


async def connect(port: int, identity: Identity) -> HttpClient:
    """A client that trusts exactly this certificate."""
    trust = ssl.create_default_context(cadata=identity.cert_pem.decode())
    return await HttpClient.connect(port, ssl=trust, server_hostname="localhost")


async def serve(server: HttpServer, tls: HttpTls) -> int:
    await server.stop_listening()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    await server.start(listening, tls.context)
    return int(listening.getsockname()[1])


async def test_requests_are_answered_and_new_connections_get_the_newest_certificate():
    first, second = (certs.make_self_signed(["localhost"]) for _ in range(2))
    async with front_in_memory() as front:
        front.worker(on_request=hello)
        tls = HttpTls(first)
        port = await serve(front.http, tls)
        old = await connect(port, first)
        front.gateway.clients.append(old)
        for _ in range(2):
            old.send(chat(stream=True))
            assert (await old.answer()).body.endswith(b"data: [DONE]\n\n")
        tls.replace(second)
        new = await connect(port, second)
        front.gateway.clients.append(new)
        for client in (new, old):
            client.send(chat())
            assert (await client.answer()).status == 200
        with pytest.raises(ssl.SSLError):
            await connect(port, first)


async def test_an_answer_before_the_end_of_a_body_is_read_and_the_connection_closes():
    identity = certs.make_self_signed(["localhost"])
    async with front_in_memory(max_body_bytes=100) as front:
        port = await serve(front.http, HttpTls(identity))
        client = await connect(port, identity)
        front.gateway.clients.append(client)
        client.send(post(body=b"x" * 1000)[:-500])
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (413, "close")
        client.send(b"x" * 500)
        assert await client.closed()
        await eventually(lambda: not front.http.connections)


async def test_a_client_without_tls_harms_nobody():
    identity = certs.make_self_signed(["localhost"])
    async with front_in_memory() as front:
        front.worker(on_request=hello)
        port = await serve(front.http, HttpTls(identity))
        plain = await HttpClient.connect(port)
        plain.send(chat())
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, AssertionError)):
            await asyncio.wait_for(plain.reader.readuntil(b"\r\n\r\n"), 5)
        plain.close()
        client = await connect(port, identity)
        front.gateway.clients.append(client)
        client.send(chat())
        assert (await client.answer()).status == 200


async def test_what_waits_for_its_acceptance_when_the_port_closes_is_served_if_it_speaks_tls():
    identity = certs.make_self_signed(["localhost"])
    async with front_in_memory() as front:
        front.worker(on_request=hello)
        port = await serve(front.http, HttpTls(identity))
        # Nothing is accepted before the test waits for something.
        honest, other = (socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2))
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        trust = ssl.create_default_context(cadata=identity.cert_pem.decode())

        def ask() -> bytes:
            with trust.wrap_socket(honest, server_hostname="localhost") as client:
                client.sendall(chat())
                return client.recv(12)

        with ThreadPoolExecutor(1) as pool:
            asked = asyncio.get_running_loop().run_in_executor(pool, ask)
            await front.http.stop_listening()
            assert await asked == b"HTTP/1.1 200"
        with pytest.raises(ConnectionRefusedError):
            await HttpClient.connect(port)
        other.close()


def test_a_pair_that_does_not_belong_together_is_refused():
    first, second = (certs.make_self_signed(["localhost"]) for _ in range(2))
    check_usable_for_http(first)
    with pytest.raises(certs.IdentityError):
        check_usable_for_http(Identity(cert_pem=first.cert_pem, key_pem=second.key_pem))
