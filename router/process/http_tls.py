"""TLS of an HTTP port, whose certificate may be replaced while it serves."""

import ssl
import tempfile
from pathlib import Path

from certs import Identity


class HttpTls:
    """`context` is what the port is opened with; new connections get the identity that was served last."""

    def __init__(self, identity: Identity) -> None:
        """Raises `ssl.SSLError` if the pair cannot be used."""
        self._current = _context(identity)
        self.context = self._current
        self.context.sni_callback = self._choose

    def replace(self, identity: Identity) -> None:
        """Serve `identity` from the next connection on. Raises `ssl.SSLError`."""
        self._current = _context(identity)

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._current


def _context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The library reads files only. These hold the bytes that were checked; the folder is open to this user alone.
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert"), Path(folder, "key")
        for path, content in ((cert, identity.cert_pem), (key, identity.key_pem)):
            path.write_bytes(content)
        context.load_cert_chain(cert, key)
    return context
