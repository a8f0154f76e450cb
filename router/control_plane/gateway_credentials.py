"""The credential of this router in calls to the gateway: none, or a secret from a file. A token of an OAuth2 provider is in
`client_credentials`.

Source: docs/control-plane.md, "Worker authentication".
"""

from pathlib import Path
from typing import Protocol

from router.balancing.json_document import JsonError, JsonObject, parse
from router.control_plane.settings import SECRETS_KEY
from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileReader, FileTooLargeError, SmallFileError, read_small_file

WORKER_SCOPE = "llm:check_worker"
"""OAuth2 scope of the question about a worker."""
CALLER_SCOPE = "llm:check_invocation"
"""OAuth2 scope of the question about a caller."""
SECRETS = Limit("files.secrets", bytes=1 << 20)
"""Size limit of the file with the credentials of this router."""


class CredentialError(Exception):
    """No credential is available now. The text has the reason and no secret."""


class CredentialSource(Protocol):
    """The source of the bearer token for calls to the gateway."""

    async def token(self) -> str:
        """The token to use now. Raises `CredentialError`."""

    async def renew(self) -> None:
        """Replace a cached token, as its source may have changed. Raises `CredentialError`, and keeps the old token then."""

    async def close(self) -> None:
        """Release the resources of the source."""


class StaticCredential:
    """One token for the life of the process."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "StaticCredential(<redacted>)"

    async def token(self) -> str:
        """The token."""
        return self._token

    async def renew(self) -> None:
        """Does nothing: the token is fixed."""

    async def close(self) -> None:
        """Does nothing: there are no resources."""


class SecretsFile:
    """A JSON file that a sidecar may replace at any time; read for every use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = FileReader()

    async def text_at(self, key_path: str) -> str | None:
        """The string at a dot-separated path; None if there is no value. Raises `CredentialError`."""
        try:
            content = await self._reader.result(str(self.path), lambda: read_small_file(self.path, SECRETS))
        except FileTooLargeError as error:
            raise CredentialError(f"secrets file '{self.path}' is larger than {error.limit_bytes} bytes") from error
        except SmallFileError as error:
            raise CredentialError(f"failed to read secrets file '{self.path}'") from (error.__cause__ or error)
        try:
            value = parse(content)
        except JsonError as error:
            # Only the position: the rest of the text may quote a secret.
            where = f" at {error.place}" if error.place.startswith("line ") else ""
            raise CredentialError(f"secrets file '{self.path}' is not valid JSON{where}") from error
        for key in key_path.split("."):
            fields = value.last() if isinstance(value, JsonObject) else {}
            if key not in fields:
                return None
            value = fields[key]
        if not isinstance(value, str):
            raise CredentialError(f"secrets file value at {key_path} is not a string")
        return value


class FileCredential:
    """The token in a secrets file, without trimming."""

    def __init__(self, secrets: SecretsFile, key_path: str = SECRETS_KEY) -> None:
        self._secrets = secrets
        self._key_path = key_path

    async def token(self) -> str:
        """Read the token from the file. Raises `CredentialError`."""
        token = await self._secrets.text_at(self._key_path)
        if token is None:
            raise CredentialError(f"failed to extract key from secrets file: no {self._key_path}")
        return token

    async def renew(self) -> None:
        """Does nothing: no token is cached."""

    async def close(self) -> None:
        """Does nothing: there are no resources."""
