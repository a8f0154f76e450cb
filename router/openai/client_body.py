"""The body of a client: what it asks for, and what the worker gets of it. No I/O."""

import re
from typing import Final

from router.openai import body_facts, errors, json_body
from router.openai.endpoints import Endpoint, Kind
from router.openai.errors import RequestError, bad_request
from router.openai.json_body import JsonObject, decoded
from router.openai.ports import Refusal
from router.openai.wire import FALSE, NULL, TRUE

_TRUE: Final = b"true"
_USAGE: Final = b'{"include_usage":true}'
_ADDED_USAGE: Final = b',"stream_options":{"include_usage":true}'
_ADDED_STREAM: Final = b',"stream":true'
_CHAT: Final = Kind.CHAT  # bound once: looking a member up in its enum takes long (Python 3.11)
_BRACKET: Final = ord("[")
_BRACE: Final = ord("{")
_is_empty = re.compile(rb"\[[ \t\n\r]*\]").match


class ClientBody:
    """A checked body. `read` makes it."""

    __slots__ = ("_added", "_changes", "endpoint", "json", "keep_usage", "model", "name", "stream")

    def __init__(self, endpoint: Endpoint, body: JsonObject, name: str, *, stream: bool) -> None:
        self.endpoint = endpoint
        self.json = body
        self.name = name
        """The model as the client wrote it."""
        model = body.members.get("model")
        self.model = body_facts.encoded(name) if model is None else bytes(model)
        """The JSON text of that."""
        self.stream = stream
        """Whether the client asked for a stream."""
        self.keep_usage = True
        """Whether the client asked for usage in its stream."""
        self._changes: dict[str, bytes] = {}
        self._added = b""
        if endpoint.streams and not stream:
            if "stream" in body.members:
                self._changes["stream"] = _TRUE
            else:
                self._added = _ADDED_STREAM
        if endpoint.usage_option:
            self._ask_for_usage()

    def _ask_for_usage(self) -> None:
        """Have the engine report usage in any case. Raises `RequestError`."""
        options = self.json.members.get("stream_options")
        if options is None:
            self.keep_usage = False
            self._added += _ADDED_USAGE
            return
        written = bytes(options)
        if options == NULL:
            self.keep_usage = False
            self._changes["stream_options"] = _USAGE
        elif written.startswith(b"{"):  # what is no object is refused by the engine
            inner = json_body.parse(written, "member `stream_options`")
            wanted = inner.members.get("include_usage")
            if wanted is None or bytes(wanted) != _TRUE:
                self.keep_usage = False
                self._changes["stream_options"] = inner.replaced({"include_usage": _TRUE})

    def for_worker(self, model: str) -> bytes:
        """The body for the worker that serves `model`: its name, a stream with usage, and nothing else changed."""
        changes = self._changes
        if model != self.name:
            changes["model"] = body_facts.encoded(model)
        text = self.json.replaced(changes) if changes else self.json.raw
        return json_body.with_last(text, self._added) if self._added else text


def read(endpoint: Endpoint, raw: bytes, content_type: bytes | None) -> ClientBody:
    """Check a body. Raises `RequestError`."""
    try:
        body = json_body.parse(raw)
    except RequestError:
        if content_type is not None and not _is_json(content_type):
            message = "The request body must be JSON. Send it with `content-type: application/json`."
            raise RequestError(errors.unsupported_content_type(message)) from None
        raise
    model = decoded(body.members.get("model"))
    if model is None:
        raise RequestError(missing("model"))
    if not isinstance(model, str):
        raise RequestError(bad_request("invalid_type", "`model` must be a string.", "model"))
    if endpoint.needed is not None:
        _check_needed(body, endpoint.needed, endpoint)
    stream = body.members.get("stream")
    streams = stream is not None and stream == TRUE
    if stream is not None and not streams and stream not in (FALSE, NULL):
        raise RequestError(bad_request("invalid_type", "`stream` must be true or false.", "stream"))
    return ClientBody(endpoint, body, model, stream=endpoint.streams and streams)


def missing(name: str) -> Refusal:
    """400 for a member that is not there."""
    return bad_request("missing_required_parameter", f"You must provide `{name}`.", name)


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


def _check_needed(body: JsonObject, name: str, endpoint: Endpoint) -> None:
    """Raise `RequestError` if a member that the request needs is not there, or cannot be used."""
    found = body.members.get(name)
    if found is None or body.is_null(name):
        raise RequestError(missing(name))
    if endpoint.kind is _CHAT:
        value = body.value(name)
        if isinstance(value, list) and value:
            return
        # No array, none with a message, or one with numbers that cannot be represented.
        text = memoryview(found)
        if text[0] != _BRACKET:
            raise RequestError(bad_request("invalid_type", f"`{name}` must be an array.", name))
        if text[1] != _BRACE and _is_empty(text) is not None:
            raise RequestError(bad_request("invalid_value", f"`{name}` must not be empty.", name))
