"""Settings of the front for OpenAI clients; `router/config` fills them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Limits and switches of the front. Times in milliseconds, sizes in bytes; 0 is no limit for the times."""

    mode: Literal["openai", "gateway"]
    """`gateway`: answers and numbers of the gateway that the front replaces (docs/openai.md, "Replacing the gateway")."""

    default_routing_key: str | None
    """Routing key of models that are registered under it and asked for without one."""

    aliases: tuple[tuple[str, str], ...]
    """(name, model): further names of models; the model is written as a client would."""

    max_body_bytes: int
    """Largest request body."""

    head_timeout_ms: int
    """From the whole request to the head of a worker's answer."""

    idle_timeout_ms: int
    """Between two pieces of a worker's answer."""

    total_timeout_ms: int
    """From the whole request to the end of the answer."""

    keepalive_ms: int
    """Silence in a stream after which a comment is sent."""

    cors_origins: tuple[str, ...]
    """Origins whose pages may use the front; `*` is every one, none switches CORS off."""
