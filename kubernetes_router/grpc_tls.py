"""TLS of the gRPC port, whose certificate may be replaced while it listens."""

import ssl
import tempfile
from pathlib import Path

from certs import Identity, IdentityError


class ServedTls:
    """The context for the listener; each handshake uses the identity that was given last."""

    def __init__(self, identity: Identity) -> None:
        self._current = server_context(identity)
        self.context = server_context(identity)
        """For `create_server`, which keeps it for good; it only hands each handshake on."""
        self.context.sni_callback = self._use_current

    def replace(self, identity: Identity) -> None:
        """Use `identity` for handshakes from now on."""
        self._current = server_context(identity)

    def _use_current(
        self, handshake: ssl.SSLSocket | ssl.SSLObject, _server_name: str | None, _context: ssl.SSLContext
    ) -> None:
        handshake.context = self._current


def check_usable(identity: Identity) -> None:
    """Raise `IdentityError` if the pair cannot be served."""
    try:
        server_context(identity)
    except ssl.SSLError as error:
        raise IdentityError("TLS server identity cannot be used", error.reason or str(error)) from error


def server_context(identity: Identity) -> ssl.SSLContext:
    """A context for gRPC: TLS 1.2 or newer, ALPN `h2`. Raises `ssl.SSLError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # The library reads files only. These hold the bytes that were checked; the folder is open to this user alone.
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert"), Path(folder, "key")
        for path, content in ((cert, identity.cert_pem), (key, identity.key_pem)):
            path.write_bytes(content)
        context.load_cert_chain(cert, key)
    return context
