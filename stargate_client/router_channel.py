"""gRPC channels to routers, with and without TLS."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio

from stargate_client.router_address import GrpcAddress
from stargate_client.tls_relay import tls_relay
from tunnel_protocol.control.grpc_options import channel_options


@asynccontextmanager
async def router_channel(
    address: GrpcAddress, authority: str, trust: ssl.SSLContext, more: Sequence[tuple[str, int | str]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `address` whose calls have this `:authority`, with the arguments of every worker's channels and `more`.

    With TLS it is one connection, which is not opened again. Raises `CertificateRefusedError`, and `OSError` if there is no
    connection with TLS; without TLS a failed connection is the failure of calls.
    """
    options: list[tuple[str, int | str]] = [*channel_options(), *more]
    if address.tls:
        options += [("grpc.default_authority", authority), ("grpc.http2_scheme", "https")]
        async with tls_relay(address, trust) as target, grpc.aio.insecure_channel(target, options=options) as channel:
            yield channel
        return
    if authority != address.target:
        options.append(("grpc.default_authority", authority))
    async with grpc.aio.insecure_channel(address.target, options=options) as channel:
        yield channel
