"""Reads the usage that an engine reports, in the forms of chat completions, completions, embeddings and responses."""

from typing import Final

import msgspec

from router.openai.ports import Usage
from router.openai.wire import decode_value

_MOST: Final = 1 << 53
"""Larger figures are no counts of tokens."""


def usage_of(raw: msgspec.Raw | None) -> Usage | None:
    """The usage in the JSON of a `usage` member; None if it is absent, null or has no counts."""
    if raw is None:
        return None
    try:
        return usage_in(decode_value(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def usage_in(found: object) -> Usage | None:
    """The usage in a decoded `usage` member."""
    if not isinstance(found, dict):
        return None
    get = found.get
    given = _count(get("prompt_tokens"))
    if given is None:
        given = _count(get("input_tokens"))
    made = _count(get("completion_tokens"))
    if made is None:
        made = _count(get("output_tokens"))
    if given is None and made is None:
        return None
    cached = _detail("cached_tokens", get("prompt_tokens_details"), get("input_tokens_details"))
    reasoning = _detail("reasoning_tokens", get("completion_tokens_details"), get("output_tokens_details"))
    return Usage(given or 0, made or 0, cached, reasoning)


def _detail(name: str, details: object, else_details: object) -> int:
    if isinstance(details, dict):
        return _count(details.get(name)) or 0
    if isinstance(else_details, dict):
        return _count(else_details.get(name)) or 0
    return 0


def _count(value: object) -> int | None:
    """`value` if it is a count of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None
