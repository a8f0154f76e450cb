"""A worker whose control plane is behind something that ends TLS: the router speaks cleartext, the worker https."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from certs import Identity, make_self_signed
from support.control_plane import RegistrationStream, control_plane, report
from support.waiting import DEADLINE_S
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc

pytestmark = pytest.mark.loop("grpc")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def tls_in_front_of(port: int, identity: Identity, folder: Path) -> AsyncIterator[int]:
    """Ends TLS (ALPN h2) and passes the bytes on; yields its port."""
    (folder / "pair.pem").write_bytes(identity.key_pem + identity.cert_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    context.set_alpn_protocols(["h2"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = {asyncio.create_task(_copy(reader, inner_writer)), asyncio.create_task(_copy(inner_reader, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            inner_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_worker_registers_through_a_tls_terminator_with_the_name_of_its_router_as_authority(
    tmp_path: Path,
) -> None:
    name = "router-0.routers.ns.svc.cluster.local"
    # The library of this client checks the certificate against both names; others check that of the dialled host only.
    identity = make_self_signed([name], ip_addresses=["127.0.0.1"])
    async with control_plane() as client, tls_in_front_of(client.router.port, identity, tmp_path) as port:
        credentials = grpc.ssl_channel_credentials(identity.cert_pem)
        options = [("grpc.default_authority", f"{name}:50071")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
            client.router.watch.publish(stargate_pb2.WatchStargatesResponse(watch_stargate_urls=["https://other:443"]))
            watching = stub.WatchStargates(stargate_pb2.WatchStargatesRequest())
            async with asyncio.timeout(DEADLINE_S):
                assert list((await watching.read()).watch_stargate_urls) == ["https://other:443"]
            worker = RegistrationStream(stub.RegisterInferenceServer())
            await worker.update(report("w", "m"))
            assert client.router.routable("m") == ["w"]
            watching.cancel()
            worker.call.cancel()
