"""JSON that is decoded as far as it is looked at: the values of its members stay text, `msgspec.Raw`, which refers to the bytes around it.

This module is not compiled. mypyc does not keep the annotations of a class by which msgspec decodes, and it takes `Raw` for `bytes`,
which it is for type checkers only.
"""

from typing import Final

import msgspec

ABSENT: Final = msgspec.Raw(b"")
"""A member that is not there."""

NULL: Final = msgspec.Raw(b"null")
TRUE: Final = msgspec.Raw(b"true")
FALSE: Final = msgspec.Raw(b"false")

NOTHING: Final = (ABSENT, NULL)
"""What a member without a value is."""


class Chunk(msgspec.Struct, gc=False):
    """What of a chunk of a stream is looked at; `ABSENT` for a member that is not there."""

    model: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    choices: list[msgspec.Raw] | None = None


class Message(msgspec.Struct, gc=False):
    """What of a message tells whether it stays the same from turn to turn."""

    role: object = None


decode_chunk: Final = msgspec.json.Decoder(Chunk).decode
decode_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""The members of an object; of a doubled one the last counts."""
decode_value: Final = msgspec.json.Decoder().decode
"""Any value, in full."""
decode_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
decode_message: Final = msgspec.json.Decoder(Message).decode
"""Raises `msgspec.ValidationError` for anything but an object."""
