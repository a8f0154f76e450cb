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
_SHARE_S = 1.0
"""Seconds that each address of a host gets at least, while there is time."""
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
                try:
                    await asyncio.wait({relay}, timeout=_LAST_BYTES_S)
                finally:
                    relay.cancel()
                await asyncio.wait({relay})
            if not relay.cancelled():
                relay.result()
    finally:
        far_writer.transport.abort()


async def _connect(address: GrpcAddress, trust: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with the first address of the host that accepts one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_S
    try:
        host, port = address.host_and_port()
        async with asyncio.timeout_at(deadline):
            addresses = await _resolve(host, port)
    except UnicodeError as error:  # a label that is too long for DNS
        raise OSError(f"{address.target}: {error}") from error
    except ValueError as error:
        raise OSError(str(error)) from error
    except TimeoutError as error:
        raise TimeoutError(f"{host}: no addresses within {CONNECT_S:g} s") from error
    refused: ssl.SSLCertVerificationError | None = None
    failures = []
    for number, one in enumerate(addresses):
        # An address that does not answer leaves time for the others.
        left_s = deadline - loop.time()
        limit_s = min(left_s, max(left_s / (len(addresses) - number), _SHARE_S))
        try:
            async with asyncio.timeout(limit_s):
                reader, writer = await asyncio.open_connection(one, port, ssl=trust, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            refused = error
        except TimeoutError:
            failures.append(f"{one}: no TLS connection within {limit_s:.1f} s")
        except OSError as error:
            failures.append(f"{one}: {error}")
        else:
            if writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                return reader, writer
            writer.transport.abort()
            failures.append(f"{one}: the peer does not offer HTTP/2 (ALPN h2)")
    if refused is not None:
        raise CertificateRefusedError(failure_of(refused)) from refused
    raise OSError("; ".join(failures))


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, without duplicates. Raises `OSError`, and `UnicodeError` for what is no name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one) for one in dict.fromkeys(entry[4][0] for entry in found)]


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
