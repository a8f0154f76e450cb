"""The first bytes of a router's connection ids: a tag of its pod's name.

With it any replica of `stargate-k8s-router` can pass on a datagram of a connection that it has not seen before, from another replica
that was lost or is not asked any more. A tag is a hint and proves nothing: a router that gets a datagram by mistake cannot decrypt it.
"""

import hashlib
from typing import Final

from tunnel_protocol.quic.engine import CID_BYTES

TAG_BYTES: Final = 2
"""The other 6 bytes of a connection id stay random."""


def pod_tag(pod_name: str) -> bytes:
    """The tag of a pod."""
    return hashlib.sha256(b"stargate connection id|" + pod_name.encode()).digest()[:TAG_BYTES]


def tag_in(data: bytes) -> bytes | None:
    """The tag in a datagram with a short header (RFC 9000 section 17.3); None if it is no such datagram, or too short."""
    if len(data) <= CID_BYTES or data[0] & 0xC0 != 0x40:
        return None
    return data[1 : 1 + TAG_BYTES]
