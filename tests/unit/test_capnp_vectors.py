"""Every vector of the message codec: verdict, decoded value, canonical bytes, and whole streams in pieces of any size."""

import json
import pathlib
from typing import Any

import pytest

from support.framing_recorder import FramingRecorder
from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.raw_quic import RAW_QUIC

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
CAPNP = json.loads((VECTORS / "capnp.json").read_text())
DECODERS = {
    "Message": capnp.decode_message,
    "Handshake": capnp.decode_handshake,
    "HandshakeAck": capnp.decode_handshake_ack,
}


def plain(message: Any) -> dict[str, Any]:
    if isinstance(message, capnp.Body):
        return {"content_hex": message.content.hex()}
    if isinstance(message, capnp.Headers | capnp.Trailers):
        return {"entries": [[name.decode(), value.decode()] for name, value in message.entries]}
    return dict(message._asdict())


def encoded(message: Any) -> bytes:
    if isinstance(message, capnp.Body):
        return capnp.encode_body(message.content)
    if isinstance(message, capnp.Headers):
        return capnp.encode_headers(message.entries)
    if isinstance(message, capnp.Trailers):
        return capnp.encode_trailers(message.entries)
    if isinstance(message, capnp.Handshake):
        return capnp.encode_handshake(*message)
    return capnp.encode_handshake_ack(*message)


@pytest.mark.parametrize("vector", CAPNP["messages"], ids=lambda v: v["name"])
def test_message_vector(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    decode = DECODERS[vector["root"]]
    if vector["expect"] == "reject":
        with pytest.raises(ProtocolError):
            decode(raw)
        return
    message = decode(raw)
    assert plain(message) == vector["decoded"]
    if vector["canonical"]:
        assert encoded(message) == raw


@pytest.mark.parametrize("step", [1, 3, 8, 1000000])
@pytest.mark.parametrize("vector", CAPNP["sequences"], ids=lambda v: v["name"])
def test_stream_vector_in_pieces_of_any_size(vector: dict[str, Any], step: int) -> None:
    raw = bytes.fromhex(vector["hex"])
    sink = FramingRecorder()
    exchange = RAW_QUIC.worker_exchange(sink) if "/v1/" in str(vector) else RAW_QUIC.router_exchange(sink)

    def feed() -> None:
        for at in range(0, len(raw), step):
            exchange.receive(raw[at : at + step], False)
        exchange.receive(b"", vector["fin"])

    if vector["expect"] == "reject":
        with pytest.raises(ProtocolError, match=vector["diagnostic"]):
            feed()
        assert not sink.ended
    else:  # a frame after trailers is nobody's business: the body is over before it
        feed()
        assert sink.ended
    if vector.get("headers"):
        assert sink.head is not None
        kept = [(n.encode(), v.encode()) for n, v in vector["headers"] if n not in ("x-method", "x-path", "x-status")]
        assert sink.head.headers == kept
    if "body_hex" in vector:
        assert b"".join(sink.pieces) == bytes.fromhex(vector["body_hex"])
