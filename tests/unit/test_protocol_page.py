"""The protocol page shows bytes: they are the bytes we write, and every section that the code cites is there."""

import pathlib
import re

from tunnel_protocol import capnp

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_examples_are_what_we_write() -> None:
    blocks = re.findall(r"^```\n(0000.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown = [bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{8}\b", block))) for block in blocks]
    assert shown == [
        capnp.encode_body(b"hello"),
        capnp.encode_headers([(b"a", b"1")]),
        capnp.encode_handshake("w", "t"),
        capnp.encode_handshake_ack(True),
    ]


def test_every_cited_section_is_there() -> None:
    sections = set(re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE))
    cited = set()
    for package in ("certs", "tunnel_protocol", "router", "kubernetes_router", "stargate_client"):
        for path in (ROOT / package).rglob("*.py"):
            for titles in re.findall(r'protocol\.md, ("[^"]+"(?:\s+and\s+"[^"]+")*)', path.read_text(encoding="utf-8")):
                cited |= set(re.findall(r'"([^"]+)"', titles))
    assert cited
    assert not cited - sections
