"""The port through which gRPC registrations and reverse handshakes are authenticated."""

from typing import Protocol


class AuthenticationError(Exception):
    """A worker's token was refused or could not be checked. `cause_text` is for the log and is not sent to the peer."""

    def __init__(self, cause_text: str) -> None:
        super().__init__(cause_text)
        self.cause_text = cause_text


class Authenticator(Protocol):
    """Maps a worker's bearer token to the routing key of its registrations."""

    async def routing_key(self, token: str | None) -> str | None:
        """The routing key (None = unscoped) of `token` (None = no token presented). Raises `AuthenticationError`."""


class WorkerAuthConnectError(Exception):
    """The service that is asked about workers cannot be reached at start-up."""


class RemoteAuthenticator(Authenticator, Protocol):
    """An authenticator that asks a service."""

    async def connect(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds until the service is reachable. Raises `WorkerAuthConnectError`."""

    async def renew_credential(self) -> None:
        """Replace a cached credential of this router; a failure is logged, and the old one is kept."""

    async def close(self) -> None:
        """Close the connection."""
