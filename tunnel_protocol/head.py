"""Request and response heads as they cross a tunnel, and the header names that each hop removes.

Heads hold bytes end to end: the HTTP front receives bytes, the wire carries bytes, nothing on the path decodes text it does
not need. Header names are lower case; order and multiplicity are kept. See docs/protocol.md, "Heads".
"""

from typing import NamedTuple

HeaderList = list[tuple[bytes, bytes]]
"""Ordered (lower-case name, value) pairs; repeated names are separate entries."""


class RequestHead(NamedTuple):
    """Method, path with query exactly as received, and headers of a request."""

    method: bytes
    path: bytes
    headers: HeaderList


class ResponseHead(NamedTuple):
    """Status (100..999) and headers of a response."""

    status: int
    headers: HeaderList
