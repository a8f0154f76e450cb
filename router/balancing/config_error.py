"""The exception for an invalid load-balancer configuration."""

from typing import Final

_MESSAGE: Final = 500
"""Maximum number of characters of an error text, which quotes the document."""


class ConfigError(ValueError):
    """The load-balancer configuration is invalid. `stage` is `parse` or `build`; the message has position and reason."""

    def __init__(self, message: str, stage: str = "parse") -> None:
        super().__init__(message if len(message) <= _MESSAGE else f"{message[:_MESSAGE]}...")
        self.stage = stage
