"""The refusals of keys. Each is made once: a flood of wrong keys makes no new objects and no log lines."""

from router.openai.ports import KeyRefused, unknown_model

_CHALLENGE = b"www-authenticate"

NO_KEY = KeyRefused(
    401,
    "invalid_request_error",
    "invalid_api_key",
    "You did not provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`.",
    headers=((_CHALLENGE, b"Bearer"),),
)
WRONG_KEY = KeyRefused(
    401,
    "invalid_request_error",
    "invalid_api_key",
    "Incorrect API key provided. Check that the key is complete, and that it was not revoked and has not expired.",
    headers=((_CHALLENGE, b'Bearer error="invalid_token"'),),
)
CANNOT_CHECK = KeyRefused(
    503,
    "server_error",
    "authentication_unavailable",
    "API keys cannot be checked at the moment. Try again.",
    headers=((b"retry-after", b"1"), (b"retry-after-ms", b"1000")),
)
CHECK_TOOK_TOO_LONG = KeyRefused(
    504,
    "server_error",
    "timeout",
    "The check of your API key took too long. Try again.",
    headers=((b"retry-after", b"1"), (b"retry-after-ms", b"1000")),
)
CHECK_FAILED = KeyRefused(
    502,
    "server_error",
    "upstream_error",
    "The service that checks API keys gave an answer that cannot be used. Tell the operator.",
)


def no_right(named: str, *, hide: bool) -> KeyRefused:
    """For a key without the right to the model that the client named `named`.

    `hide`: the same answer as for a model that does not exist.
    """
    if hide:
        return KeyRefused(404, "invalid_request_error", "model_not_found", unknown_model(named), "model")
    return KeyRefused(
        403,
        "permission_error",
        "permission_denied",
        f"Your API key has no right to the model `{named}`. Ask the operator for a key with it, or use another model.",
        "model",
    )
