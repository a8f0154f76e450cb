"""TLS of gRPC connections: a connection to the router with TLS, and a local socket for gRPC whose bytes it carries.

gRPC's own TLS cannot be used: it checks the `:authority` of each call against the certificate (grpcio 1.85 accepts another one
only without a port), while a router behind a load balancer has its own identity as authority and the certificate of the load
balancer. Here SNI and the name check use the host that is dialled, and failures have their types.
"""

import asyncio
import os
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from stargate_client.certificate_failures import CertificateRefusedError, failure_of
from stargate_client.router_address import GrpcAddress

CONNECT_S = 10.0
"""Seconds for address resolution, TCP and TLS handshakes together."""
_LAST_BYTES_S = 0.25
_BLOCK_BYTES = 64 * 1024
_CREDENTIALS = struct.Struct("3i")


@asynccontextmanager
async def tls_relay(address: GrpcAddress, trust: ssl.SSLContext) -> AsyncIterator[str]:
    """Connect to `address` with TLS; gives the gRPC target through which this process can use the connection, once.

    The end of either side ends the other. Raises `CertificateRefusedError`, and `OSError` if it cannot connect otherwise.
    """
    far_reader, far_writer = await _connect(address, trust)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.setblocking(False)
            # An abstract name needs no file system; `_accept` keeps other processes out.
            name = f"llm-request-router-{os.getpid()}-{secrets.token_hex(16)}"
            listener.bind(f"\0{name}")
            listener.listen(1)
            relay = asyncio.create_task(_relay(listener, far_reader, far_writer))
            try:
                yield f"unix-abstract:{name}"
            finally:
                # gRPC has closed its side, or is about to: its last frames are passed on.
                await asyncio.wait({relay}, timeout=_LAST_BYTES_S)
                relay.cancel()
                await asyncio.wait({relay})
            if not relay.cancelled():
                relay.result()
    finally:
        far_writer.transport.abort()


async def _connect(address: GrpcAddress, trust: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        host, port = address.host_and_port()
    except ValueError as error:
        raise OSError(str(error)) from error
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=trust, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefusedError(failure_of(error)) from error
    except TimeoutError as error:
        raise TimeoutError(f"no TLS connection within {CONNECT_S:g} s") from error
    except UnicodeError as error:  # a label of the host is too long for DNS
        raise OSError(f"{host}: {error}") from error
    if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        writer.transport.abort()
        raise OSError("the peer does not offer HTTP/2 (ALPN h2)")
    return reader, writer


async def _relay(listener: socket.socket, far_reader: asyncio.StreamReader, far_writer: asyncio.StreamWriter) -> None:
    try:
        near_reader, near_writer = await _accept(listener)
    finally:
        listener.close()
    try:
        pumps = {
            asyncio.create_task(_pump(near_reader, far_writer)),
            asyncio.create_task(_pump(far_reader, near_writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        for pump in pumps:
            if not pump.cancelled():
                pump.result()
    finally:
        near_writer.close()
        far_writer.close()


async def _accept(listener: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The connection of this process; those of others are closed."""
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(listener)
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(packed)[0] == os.getpid():
            return await asyncio.open_unix_connection(sock=connection)
        connection.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until either side ends; a slow writer pauses the reader."""
    with suppress(OSError):
        while data := await reader.read(_BLOCK_BYTES):
            writer.write(data)
            await writer.drain()
