"""What a load-balancer configuration that cannot be used raises."""

_MESSAGE = 500
"""Characters of an error text; the words of the document stand in it."""


class ConfigError(ValueError):
    """The load-balancer configuration cannot be used. `stage` is `parse` or `build`; the message says where and why."""

    def __init__(self, message: str, stage: str = "parse") -> None:
        super().__init__(message if len(message) <= _MESSAGE else f"{message[:_MESSAGE]}...")
        self.stage = stage
