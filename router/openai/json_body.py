"""A JSON object as the client wrote it, of which some members are replaced: everything else stays as it is, to the byte.

The text is checked completely (syntax, UTF-8, depth), but only the values that are asked for are decoded. Of a doubled member the
last one counts, as for most decoders, and every one of them is replaced.
"""

import re
from itertools import accumulate
from typing import Any, Final

import msgspec

from router.openai.errors import RequestError, bad_request
from router.openai.wire import NULL, decode_members, decode_value
from tunnel_protocol.limit import Limit

NESTING: Final = Limit("openai.json_nesting", pieces=128)
"""Depth of the arrays and objects of a body."""

CONTAINERS: Final = Limit("openai.json_containers", pieces=200_000)
"""Arrays and objects in a body, as far as brackets in its texts do not count among them."""

DOUBLED: Final = Limit("openai.json_doubled_member", bytes=65_536)
"""Size of the earlier values of a member that a body has more than once."""

_MAX_DEPTH: Final = NESTING.pieces or 0
_MAX_CONTAINERS: Final = CONTAINERS.pieces or 0
_MAX_DOUBLED: Final = DOUBLED.bytes or 0

_BLANKS: Final = b" \t\n\r"
_CLOSING: Final = b"}"
_SMALL_BYTES: Final = 16_384
_string = re.compile(rb'"(?:[^"\\]|\\.)*+"').match
_strings = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_colon = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*").match
_comma = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*").match
_position = re.compile(r"\(byte (\d+)\)").search
_token = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+"').search
_scalar = re.compile(rb"[^,}\] \t\n\r]+").match
_brackets: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(code for code in range(256) if code not in b"[]{}")


class JsonObject:
    """A checked JSON object. `raw` is its text, as it came."""

    __slots__ = ("_kept", "_kept_name", "members", "raw")

    def __init__(self, raw: bytes, members: dict[str, msgspec.Raw]) -> None:
        self.raw = raw
        self.members = members
        """The texts of the values. They refer to `raw`, and are no copies."""
        self._kept_name = ""
        self._kept: Any = None

    def is_null(self, name: str) -> bool:
        """Whether a member is absent or null."""
        found = self.members.get(name)
        return found is None or found == NULL

    def value(self, name: str) -> Any:
        """The value of a member; None if it is absent, null, or has numbers that cannot be represented.

        That of the last name is kept, until `forget`: it may take ten times the memory of its text.
        """
        if name == self._kept_name:
            return self._kept
        self._kept = decoded(self.members.get(name))
        self._kept_name = name
        return self._kept

    def forget(self) -> None:
        """Keep no value."""
        self._kept_name, self._kept = "", None

    def replaced(self, changes: dict[str, bytes]) -> bytes:
        """The text with other values for some members, in their places; those it does not have are added at its end."""
        edits: list[tuple[int, int, bytes]] = []
        added: list[bytes] = []
        spans: dict[str, list[tuple[int, int]]] | None = None
        for name, value in changes.items():
            found = self.members.get(name)
            if found is None:
                added.append(b'"%b":%b' % (name.encode(), value))
                continue
            start = self._only_value_of(name)
            if start:
                edits.append((start, start + len(memoryview(found)), value))
                continue
            if spans is None:
                spans = self._spans()
            edits += [(begin, end, value) for begin, end in spans[name]]
        if added:
            closing = self.raw.rstrip(_BLANKS)
            end = len(closing) - 1
            text = b",".join(added)
            if self.members:
                text = b"," + text
            if not edits:
                return b"".join((memoryview(self.raw)[:end], text, self.raw[end:]))
            edits.append((end, end, text))
        if len(edits) > 1:
            edits.sort()
        view = memoryview(self.raw)  # its slices are no copies
        pieces: list[bytes | memoryview] = []
        at = 0
        for begin, end, value in edits:
            pieces += (view[at:begin], value)
            at = end
        pieces.append(view[at:])
        return b"".join(pieces)

    def without(self, name: str) -> bytes:
        """The text without a member."""
        raw = self.raw
        spans = self._spans(keys=True)
        if name not in spans:
            return raw
        kept = sorted(span for other, found in spans.items() if other != name for span in found)
        return b"{" + b",".join(raw[begin:end] for begin, end in kept) + b"}"

    def _only_value_of(self, name: str) -> int:
        """Where the value of `name` begins, if that is clear without reading the text; else 0."""
        raw = self.raw
        key = b'"%b"' % name.encode()
        # Two searches, as that for one byte is much the quicker one, and most bodies have none.
        if raw.count(key) != 1 or (raw.find(b"\\") >= 0 and b"\\u" in raw):
            return 0  # it stands somewhere else too, or may be written with escapes
        colon = _colon(raw, raw.find(key) + len(key))
        return 0 if colon is None else colon.end()

    def _spans(self, *, keys: bool = False) -> dict[str, list[tuple[int, int]]]:
        """Where the values of each member are, in order; with `keys`, each with its key. Raises `RequestError`."""
        raw, members = self.raw, self.members
        found: dict[str, list[tuple[int, int]]] = {}
        at = len(raw) - len(raw.lstrip(_BLANKS)) + 1
        at += len(raw) - at - len(raw[at:].lstrip(_BLANKS)) if raw[at : at + 1] in (b" ", b"\t", b"\n", b"\r") else 0
        while raw[at : at + 1] == b'"':
            begin = at
            key = _string(raw, at)
            colon = None if key is None else _colon(raw, key.end())
            if key is None or colon is None:  # pragma: no cover - the text is checked
                raise RequestError(_INVALID)
            name: str = msgspec.json.decode(key.group(), type=str)
            at = colon.end()
            value = members[name]
            size = len(memoryview(value))
            end = at + size
            if raw[at:end] != bytes(value) or not _ends_value(raw, end):
                end = _end_of_value(raw, at)  # an earlier one of a doubled member
            found.setdefault(name, []).append((begin if keys else at, end))
            comma = _comma(raw, end)
            if comma is None:
                break
            at = comma.end()
        return found


def _ends_value(raw: bytes, end: int) -> bool:
    return raw[end : end + 1] in (b",", b"}", b" ", b"\t", b"\n", b"\r")


def _end_of_value(raw: bytes, at: int) -> int:
    """Where the value that begins at `at` ends. Raises `RequestError` if it is larger than an earlier one may be."""
    scalar = _string(raw, at) if raw[at : at + 1] == b'"' else None
    if scalar is None and raw[at : at + 1] not in (b"[", b"{"):
        scalar = _scalar(raw, at)
    if scalar is not None:
        return scalar.end()
    depth = 0
    limit = at + _MAX_DOUBLED
    place = at
    while place < limit:
        token = _token(raw, place)
        if token is None:  # pragma: no cover - the text is checked
            break
        place = token.end()
        first = raw[token.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
            if not depth:
                return place
    raise RequestError(bad_request("invalid_json", "The request body has a member twice. Send each member once."))


_INVALID: Final = bad_request("invalid_json", "The request body is not valid JSON.")


def with_last(raw: bytes, added: bytes) -> bytes:
    """The text of an object with `added` (`,"name":value`) as its last members. It must have a member, and none of that name."""
    if raw.endswith(_CLOSING) and len(raw) < _SMALL_BYTES:
        return b"".join((raw[:-1], added, _CLOSING))  # copied twice, which is quicker
    end = len(raw.rstrip(_BLANKS)) - 1
    return b"".join((memoryview(raw)[:end], added, raw[end:]))


def decoded(raw: msgspec.Raw | None) -> Any:
    """A value; None if it is absent, or has numbers that cannot be represented."""
    if raw is None:
        return None
    try:
        return decode_value(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def parse(raw: bytes, what: str = "request body") -> JsonObject:
    """Check a client's text and index its members. Raises `RequestError`; `what` is its name in the message."""
    found = _index(raw, what)
    opening = raw.count(b"[") + raw.count(b"{")
    if opening > _MAX_DEPTH:
        _check_depth(raw, opening, what)
    return found


def parse_answer(raw: bytes) -> JsonObject:
    """Index the members of what an engine sent; it may be nested as deeply as the decoder can read. Raises `RequestError`."""
    return _index(raw, "answer")


def _index(raw: bytes, what: str) -> JsonObject:
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as found:
            raise _not_json(f"The {what} is not UTF-8 (at byte {found.start}). Send JSON in UTF-8.") from None
    try:
        members = decode_members(raw)
    except msgspec.ValidationError:
        raise _not_json(f"The {what} must be a JSON object.") from None
    except RecursionError:
        raise _too_deep(what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(_syntax_error(raw, str(error), what)) from None
    return JsonObject(raw, members)


def _check_depth(raw: bytes, opening: int, what: str) -> None:
    if opening > _MAX_CONTAINERS and raw.count(b'"') > _MAX_CONTAINERS:
        raise _not_json(f"The {what} has more than {_MAX_CONTAINERS} arrays and objects. Send a smaller one.")
    brackets = _strings.sub(b"", raw).translate(_brackets, _NOT_BRACKETS)
    if len(brackets) > 2 * _MAX_CONTAINERS:
        raise _not_json(f"The {what} has more than {_MAX_CONTAINERS} arrays and objects. Send a smaller one.")
    if max(accumulate(1 if bracket == ord("[") else -1 for bracket in brackets)) > _MAX_DEPTH:
        raise _too_deep(what)


def _too_deep(what: str) -> RequestError:
    return _not_json(f"The {what} is nested deeper than {_MAX_DEPTH} levels.")


def _not_json(message: str) -> RequestError:
    return RequestError(bad_request("invalid_json", message))


def _syntax_error(raw: bytes, text: str, what: str) -> str:
    if not raw.strip(_BLANKS):
        return f"The {what} is empty. Send a JSON object."
    place = _position(text)
    if place is not None:
        return f"The {what} is not valid JSON: error at byte {place.group(1)}."
    return f"The {what} is not valid JSON: it is cut, or has an escape that is half of a character."
