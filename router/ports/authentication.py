"""The port through which gRPC registrations and tunnel handshakes are authenticated alike."""

from typing import Protocol


class AuthenticationError(Exception):
    """A worker's token was refused or could not be checked. `cause_text` is for the log, never for the peer."""

    def __init__(self, cause_text: str) -> None:
        super().__init__(cause_text)
        self.cause_text = cause_text


class Authenticator(Protocol):
    """Turns a worker's bearer token into the routing key its registrations are scoped to."""

    async def routing_key(self, token: str | None) -> str | None:
        """The routing key (None = unscoped) that `token` (None = none presented) stands for; raises `AuthenticationError`."""
