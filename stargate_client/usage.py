"""Counts the output tokens of an engine's stream by its events."""

import msgspec


def output_tokens(event: bytes, before: int) -> int:
    """Output tokens so far, after this event: the event's usage count if it has one, else `before` plus its words."""
    data = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return before
    if not isinstance(document, dict):
        return before
    explicit = _explicit(document)
    if explicit is not None:
        return max(before, explicit)
    return before + _words(document)


def _explicit(document: dict[str, object]) -> int | None:
    usage = document.get("usage")
    response = document.get("response")
    nested = response.get("usage") if isinstance(response, dict) else None
    for value in (
        usage.get("completion_tokens") if isinstance(usage, dict) else None,
        document.get("output_tokens_so_far"),
        nested.get("output_tokens") if isinstance(nested, dict) else None,
    ):
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _words(document: dict[str, object]) -> int:
    delta = document.get("delta")
    if isinstance(delta, str):
        return len(delta.split())
    choices = document.get("choices")
    if not isinstance(choices, list):
        return 0
    count = 0
    for choice in choices:
        inner = choice.get("delta") if isinstance(choice, dict) else None
        content = inner.get("content") if isinstance(inner, dict) else None
        if isinstance(content, str):
            count += len(content.split())
    return count
