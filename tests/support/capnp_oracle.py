"""The tunnel's messages as a general Cap'n Proto library sees them: the oracle of the codec's tests.

The schema text states the five messages as docs/protocol.md, "Messages" tells them; ids never appear on the wire.
"""

import contextlib
import pathlib
import tempfile
from typing import Any

import capnp

SCHEMA = """
@0xd3c5a3f0b7a1e6d1;

struct Message {
  union {
    headers @0 :Map;
    body @1 :Body;
    trailers @2 :Map;
  }
}

struct Body { content @0 :Data; }

struct Map { entries @0 :List(Entry); }

struct Entry {
  key @0 :Text;
  value @1 :Text;
}

struct Handshake {
  inferenceServerId @0 :Text;
  authToken @1 :Text;
}

struct HandshakeAck {
  accepted @0 :Bool;
  reason @1 :Text;
}
"""


class Oracle:
    """Writes and reads messages with the general library."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tunnel.capnp"
            path.write_text(SCHEMA)
            self._schema = capnp.load(str(path))

    def write_map(self, member: str, entries: list[tuple[bytes, bytes]], first_segment_words: int) -> bytes:
        message = self._schema.Message.new_message(num_first_segment_words=first_segment_words)
        listed = message.init(member).init("entries", len(entries))
        for at, (name, value) in enumerate(entries):
            listed[at].key = name.decode()
            listed[at].value = value.decode()
        return bytes(message.to_bytes())

    def write_body(self, content: bytes, first_segment_words: int) -> bytes:
        message = self._schema.Message.new_message(num_first_segment_words=first_segment_words)
        message.init("body").content = content
        return bytes(message.to_bytes())

    def write_handshake(self, identity: str, token: str | None, first_segment_words: int) -> bytes:
        message = self._schema.Handshake.new_message(num_first_segment_words=first_segment_words)
        message.inferenceServerId = identity
        if token is not None:
            message.authToken = token
        return bytes(message.to_bytes())

    def write_ack(self, accepted: bool, reason: str, first_segment_words: int) -> bytes:
        message = self._schema.HandshakeAck.new_message(num_first_segment_words=first_segment_words)
        message.accepted = accepted
        message.reason = reason
        return bytes(message.to_bytes())

    def read(self, data: bytes) -> tuple[str, Any] | None:
        """(member, entries or content) of a message of a request stream, or None if the library refuses it."""
        with (
            contextlib.suppress(capnp.KjException, UnicodeDecodeError, ValueError),
            self._open("Message", data) as found,
        ):
            member = found.which()
            if member == "body":
                return "body", bytes(found.body.content)
            entries = getattr(found, str(member)).entries
            return str(member), [(entry.key.encode(), entry.value.encode()) for entry in entries]
        return None

    def read_handshake(self, data: bytes) -> tuple[str, str | None] | None:
        with contextlib.suppress(capnp.KjException, UnicodeDecodeError), self._open("Handshake", data) as found:
            token = found.authToken if found._has("authToken") else None
            return found.inferenceServerId, token
        return None

    def _open(self, root: str, data: bytes) -> Any:
        return getattr(self._schema, root).from_bytes(data)
