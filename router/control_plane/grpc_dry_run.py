"""Checks whether a gRPC port can use a TLS identity: one TLS handshake with the gRPC library, on a loopback port.

The library parses an identity only when a client connects; with a key type it does not support, the server would start
without an error and refuse every worker. Source: docs/operations.md, "TLS".
"""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import grpc

_TIMEOUT_S = 3.0


class UnusableGrpcIdentityError(ValueError):
    """A TLS handshake with the identity fails, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a TLS handshake with it fails: {reason}")
        self.reason = reason


def dry_run(cert_pem: bytes, key_pem: bytes) -> None:
    """Do one TLS handshake. Raises `UnusableGrpcIdentityError`. Blocks, so call it in a thread without an event loop."""
    executor = ThreadPoolExecutor(max_workers=1)
    server = grpc.server(executor)
    try:
        credentials = grpc.ssl_server_credentials([(key_pem, cert_pem)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        _shake_hands(port)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnusableGrpcIdentityError(str(error) or type(error).__name__) from error
    finally:
        server.stop(None)
        executor.shutdown(wait=False)


def _shake_hands(port: int) -> None:
    # Without verification: only workers can check whether they trust the certificate.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # the library refuses a peer that does not offer it
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname="stargate"),
    ):
        pass
