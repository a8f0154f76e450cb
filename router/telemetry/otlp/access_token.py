"""The token for the collector, from the secrets file, read again for every batch: a sidecar may replace it at any time.

A file that cannot be used is logged once and the last token is kept. Nothing here imports the SDK.
"""

from pathlib import Path
from typing import Final

import msgspec
import structlog

from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, FileTooLargeError, SmallFileError, read_small_file

_log = structlog.get_logger()

KEY: Final = "tracingAccessToken"
"""The key at the top level of the secrets file."""

HEADER: Final = "lightstep-access-token"
"""The header, or the gRPC metadata, in which the token is sent."""

SECRETS: Final = Limit("files.tracing_secrets", bytes=1 << 20)
"""Size limit of the secrets file."""


class AccessToken:
    """The current token; used by one thread at a time. The file is read in threads that are abandoned if it hangs."""

    def __init__(self, secrets_path: str | None) -> None:
        self._path = secrets_path
        self._reader = FileReader()
        self._token: str | None = None
        self._problem: str | None = None

    def current(self) -> str | None:
        """The token in the file now; None if there is none. A file that cannot be used is logged, and changes nothing."""
        if self._path is None:
            return None
        problem = None
        try:
            self._token = self._read(self._path)
        except _UnusableError as error:
            problem = str(error)
        if problem is not None and problem != self._problem:
            _log.warning("tracing access token cannot be read; the last one is kept", error=problem)
        self._problem = problem
        return self._token

    def _read(self, path: str) -> str | None:
        try:
            content = self._reader.run(path, lambda: read_small_file(Path(path), SECRETS))
        except FileTooLargeError as error:
            raise _UnusableError(f"secrets file '{path}' is larger than {error.limit_bytes} bytes") from error
        except SmallFileError as error:
            raise _UnusableError(f"failed to read secrets file '{path}' for {KEY}: {error.reason}") from error
        try:
            document = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise _UnusableError(f"secrets file '{path}' is not valid JSON") from error
        value = document.get(KEY) if isinstance(document, dict) else None
        if value is None:
            return None
        if not isinstance(value, str):
            raise _UnusableError(f"{KEY} in secrets file is not a string")
        token = value.strip()
        if not (token.isascii() and (token.isprintable() or not token)):
            raise _UnusableError("lightstep access token is not a valid gRPC metadata value")
        return token or None


class _UnusableError(Exception):
    """The file gives no token; the text is the reason, without any content of the file."""
