"""Reads the usage that an engine reports, in the forms of chat completions, completions, embeddings and responses."""

from typing import Final

import msgspec

from router.openai.ports import Usage

_MOST: Final = 1 << 53
"""Larger figures are no counts of tokens."""


def usage_of(raw: msgspec.Raw | None) -> Usage | None:
    """The usage in the JSON of a `usage` member; None if it is absent, null or has no counts."""
    if raw is None:
        return None
    try:
        return usage_in(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def usage_in(found: object) -> Usage | None:
    """The usage in a decoded `usage` member."""
    if not isinstance(found, dict):
        return None
    given = _count(found, "prompt_tokens", "input_tokens")
    made = _count(found, "completion_tokens", "output_tokens")
    if given is None and made is None:
        return None
    return Usage(
        given or 0,
        made or 0,
        _detail(found, "cached_tokens", "prompt_tokens_details", "input_tokens_details"),
        _detail(found, "reasoning_tokens", "completion_tokens_details", "output_tokens_details"),
    )


def _detail(found: dict[str, object], name: str, *places: str) -> int:
    for place in places:
        details = found.get(place)
        if isinstance(details, dict):
            return _count(details, name) or 0
    return 0


def _count(found: dict[str, object], *names: str) -> int | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST:
            return value
    return None
