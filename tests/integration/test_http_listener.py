"""A listener that closes and is opened again, as that of one of several processes of a router."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from router.http1 import server as server_module
from router.http1.server import HttpServer
from support.package_settings import http_settings
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE


def handle(request, response):
    request.body.detach()
    response.send(200, [], b"served")


def listener(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    sock.setblocking(False)
    return sock


def connect(port):
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    client.setblocking(False)
    return client


async def test_a_listener_that_closes_serves_what_the_kernel_has_accepted_and_can_be_opened_again():
    loop = asyncio.get_running_loop()
    server = HttpServer(SimpleNamespace(handle=handle), loop.time, http_settings())
    first = listener(0)
    port = first.getsockname()[1]
    await server.start(first)
    clients = [connect(port) for _ in range(3)]
    await server.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    await server.start(listener(port))
    clients.append(connect(port))
    for client in clients:
        assert (await loop.sock_recv(client, 1_000)).endswith(b"served")
        client.close()
    assert await server.drain(5.0)


@pytest.mark.skipif(AS_WRITTEN_BECAUSE is None, reason="a compiled module keeps its constants")
async def test_a_listener_that_closes_accepts_no_more_than_its_backlog(monkeypatch):
    loop = asyncio.get_running_loop()
    server = HttpServer(SimpleNamespace(handle=handle), loop.time, http_settings())
    first = listener(0)
    await server.start(first)
    clients = [connect(first.getsockname()[1]) for _ in range(4)]
    monkeypatch.setattr(server_module, "BACKLOG", 2)
    await server.stop_listening()
    for client in clients[:2]:
        assert (await loop.sock_recv(client, 1_000)).endswith(b"served")
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(clients[3], 1_000)
    for client in clients:
        client.close()
    assert await server.drain(5.0)
