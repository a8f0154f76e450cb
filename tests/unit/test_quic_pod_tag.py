"""The tag of a pod in the connection ids of its router."""

import pytest

from tunnel_protocol.quic.engine import CID_BYTES
from tunnel_protocol.quic.pod_tag import TAG_BYTES, pod_tag, tag_in
from tunnel_protocol.quic.settings import QuicSettings


def test_a_tag_is_short_and_the_same_everywhere() -> None:
    assert len(pod_tag("router-0")) == TAG_BYTES
    assert pod_tag("router-0").hex() == "5707"
    assert pod_tag("router-0") != pod_tag("router-1")


@pytest.mark.parametrize("data", [b"", b"\x40" + bytes(CID_BYTES - 1), b"\xc0" + bytes(30), b"\x00" + bytes(30)])
def test_only_datagrams_with_a_short_header_have_a_tag(data: bytes) -> None:
    assert tag_in(data) is None


def test_the_tag_stands_where_the_connection_id_begins() -> None:
    assert tag_in(b"\x4f" + pod_tag("x") + bytes(CID_BYTES)) == pod_tag("x")


def test_a_prefix_leaves_half_of_an_id_random() -> None:
    with pytest.raises(ValueError, match="cid_prefix"):
        QuicSettings(cid_prefix=bytes(5))
