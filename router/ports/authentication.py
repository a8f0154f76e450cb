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
