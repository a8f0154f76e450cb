"""The endpoints whose requests go to workers, and what of their bodies the front needs."""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What an answer is made of."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSE = "response"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path."""

    path: str
    target: bytes
    """The same, as it is sent."""
    kind: Kind
    needed: str | None
    """A member that the body has to have, beside `model`."""
    streams: bool
    """Whether the worker is always asked for a stream."""
    usage_option: bool
    """Whether usage in the stream is asked for by `stream_options`."""
    output_limits: tuple[str, ...]
    """Members with the client's limit of output tokens, the first one that is there counts."""


CHAT: Final = Endpoint(
    "/v1/chat/completions",
    b"/v1/chat/completions",
    Kind.CHAT,
    "messages",
    streams=True,
    usage_option=True,
    output_limits=("max_completion_tokens", "max_tokens"),
)
COMPLETIONS: Final = Endpoint(
    "/v1/completions",
    b"/v1/completions",
    Kind.COMPLETION,
    None,
    streams=True,
    usage_option=True,
    output_limits=("max_tokens",),
)
RESPONSES: Final = Endpoint(
    "/v1/responses",
    b"/v1/responses",
    Kind.RESPONSE,
    None,
    streams=True,
    usage_option=False,
    output_limits=("max_output_tokens",),
)
EMBEDDINGS: Final = Endpoint(
    "/v1/embeddings", b"/v1/embeddings", Kind.EMBEDDING, "input", streams=False, usage_option=False, output_limits=()
)

ENDPOINTS: Final[dict[bytes, Endpoint]] = {one.target: one for one in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)}
