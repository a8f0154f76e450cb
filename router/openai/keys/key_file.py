"""The file of API keys: JSON with digests, rights and limits, never the keys themselves (docs/openai-keys.md, "The file").

Decoding is strict, so that a mistyped member is an error and not a key with more rights than meant.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import msgspec

from router.openai.keys.caller import GrantedCaller, Names
from router.openai.limits.limit_set import NO_LIMITS, LimitSet
from router.openai.limits.rule import RuleError, parse_rules
from tunnel_protocol.limit import Limit
from tunnel_protocol.unsigned import MAX_U32

KEY_FILE = Limit("openai.key_file", bytes=8 << 20, pieces=10_000)
"""Bytes of the file, and number of keys in it."""

DIGEST_PREFIX = "sha256:"
KEY_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
"""A key id: a label of metrics and a part of log lines and Redis names."""

_BYTE = re.compile(r" \(byte (\d+)\)")
_MAX_CONCURRENCY = 1_000_000

Name = Annotated[str, msgspec.Meta(max_length=512)]


class KeyFileError(Exception):
    """The file cannot be used. `reason` is what is wrong and `place` where: line and column, or the path of a member."""

    def __init__(self, reason: str, place: str) -> None:
        super().__init__(f"{reason} at {place}")
        self.reason = reason
        self.place = place


class LimitEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Limits as they stand in the file."""

    requests: str = ""
    tokens: str = ""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=_MAX_CONCURRENCY)] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for rules that cannot be read."""
        self.limit_set()

    def limit_set(self) -> LimitSet:
        """The limits, read. Raises `RuleError`, which names the member."""
        rules = []
        for member, text in (("requests", self.requests), ("tokens", self.tokens)):
            try:
                rules.append(parse_rules(text))
            except RuleError as error:
                raise RuleError(f"`{member}`: {error.reason}", error.position) from None
        return LimitSet(rules[0], rules[1], self.concurrency)


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """One key as it stands in the file."""

    id: Annotated[str, msgspec.Meta(pattern=KEY_ID)]
    digest: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}\\Z")]
    created: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    note: Annotated[str, msgspec.Meta(max_length=512)] = ""
    priority: Annotated[int, msgspec.Meta(ge=0, le=MAX_U32)] | None = None
    routing_keys: Annotated[list[Name], msgspec.Meta(max_length=1_000)] | None = None
    models: Annotated[list[Name], msgspec.Meta(max_length=1_000)] | None = None
    limits: LimitEntry | None = None
    model_limits: Annotated[dict[Name, LimitEntry], msgspec.Meta(max_length=1_000)] = {}

    def caller(self) -> GrantedCaller:
        """What the key may do."""
        return GrantedCaller(
            key_id=self.id,
            priority=self.priority,
            routing_keys=None if self.routing_keys is None else Names(self.routing_keys),
            models=None if self.models is None else Names(self.models),
            expires_at=None if self.expires is None else self.expires.timestamp(),
            limits=NO_LIMITS if self.limits is None else self.limits.limit_set(),
            model_limits={model: entry.limit_set() for model, entry in self.model_limits.items()},
        )


class KeyFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    keys: Annotated[list[KeyEntry], msgspec.Meta(max_length=KEY_FILE.pieces)]
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1

    @property
    def with_limits(self) -> list[str]:
        """The ids of the keys that have limits."""
        return [one.id for one in self.keys if one.limits is not None or one.model_limits]

    def callers(self) -> Mapping[bytes, GrantedCaller]:
        """What each key may do, by its digest."""
        return {bytes.fromhex(one.digest.removeprefix(DIGEST_PREFIX)): one.caller() for one in self.keys}


def decode(content: bytes) -> KeyFile:
    """The file with this content. Raises `KeyFileError`, and nothing else."""
    if len(content) > (KEY_FILE.bytes or 0):
        raise KeyFileError(f"larger than {KEY_FILE.bytes} bytes", "the end")
    try:
        found = msgspec.json.decode(content, type=KeyFile)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise KeyFileError(reason, path.removesuffix("`") or "$") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(content, error) from None
    seen_ids: set[str] = set()
    seen_digests: set[str] = set()
    for index, entry in enumerate(found.keys):
        if entry.id in seen_ids:
            raise KeyFileError(f"a second key with the id '{entry.id}'", f"$.keys[{index}].id")
        if entry.digest in seen_digests:
            raise KeyFileError("a second entry for the same key", f"$.keys[{index}].digest")
        seen_ids.add(entry.id)
        seen_digests.add(entry.digest)
    return found


def encode(file: KeyFile) -> bytes:
    """The content of a file, indented."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def _malformed(content: bytes, error: Exception) -> KeyFileError:
    if isinstance(error, UnicodeDecodeError):
        return KeyFileError("not UTF-8", f"byte {error.start}")
    text = str(error)
    match = _BYTE.search(text)
    reason = _BYTE.sub("", text)
    if match is None:
        return KeyFileError(reason, "the end")
    before = content[: int(match[1])]
    line = before.count(b"\n") + 1
    column = len(before) - (before.rfind(b"\n") + 1) + 1
    return KeyFileError(reason, f"line {line} column {column}")
