"""Every published vector of the message codec: verdict, decoded value, canonical bytes; and captured conversations."""

import json
import pathlib
from typing import Any

import pytest

from tunnel_protocol import capnp
from tunnel_protocol.control import stargate_pb2
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.handshake import RouterHandshake, WorkerHandshake
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.raw_quic import RAW_QUIC

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
CAPNP = json.loads((VECTORS / "capnp.json").read_text())
TRANSCRIPTS = json.loads((VECTORS / "transcripts.json").read_text())
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


class Recorder:
    """A sink for either role that writes down what it is told."""

    def __init__(self) -> None:
        self.head: RequestHead | ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.ended = 0

    def on_head(self, head: Any) -> None:
        assert self.head is None
        self.head = head

    def on_body(self, data: bytes) -> None:
        assert self.head is not None
        assert data
        self.pieces.append(data)

    def on_end(self) -> None:
        self.ended += 1


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
    sink = Recorder()
    exchange = RAW_QUIC.router_exchange(sink)

    def feed() -> None:
        for at in range(0, len(raw), step):
            exchange.receive(raw[at : at + step], False)
        exchange.receive(b"", vector["fin"])

    if vector["expect"] == "reject" and vector["name"] != "seq_frame_after_trailers":
        with pytest.raises(ProtocolError):
            feed()
        assert not sink.ended
    else:  # a frame after trailers is nobody's business: the body is over before it
        feed()
        assert sink.ended == 1


@pytest.mark.parametrize("exchange", TRANSCRIPTS["worker"]["exchanges"], ids=lambda e: e["name"])
def test_captured_exchange_decodes_to_its_messages(exchange: dict[str, Any]) -> None:
    for role, direction in (
        (RAW_QUIC.worker_exchange, "router_to_worker"),
        (RAW_QUIC.router_exchange, "worker_to_router"),
    ):
        messages = exchange[f"{direction}_messages"]
        if not messages:
            continue
        sink = Recorder()
        fin = exchange[f"{direction}_end"] == "fin"
        try:
            role(sink).receive(bytes.fromhex(exchange[direction]), fin)
        except ProtocolError:
            assert sink.head is None  # heads that a worker drops without an answer
            continue
        bodies = [
            bytes.fromhex(b["hex"]) if isinstance(b, dict) else b.encode() for kind, b in messages if kind == "body"
        ]
        assert sink.pieces == [piece for piece in bodies if piece]
        assert sink.ended == (1 if fin else 0)


@pytest.mark.parametrize("exchange", TRANSCRIPTS["router"]["exchanges"], ids=lambda e: e["name"])
def test_our_request_bytes_equal_those_captured_from_the_reference(exchange: dict[str, Any]) -> None:
    raw = bytes.fromhex(exchange["router_to_worker"])
    sink = Recorder()
    RAW_QUIC.worker_exchange(sink).receive(raw, True)
    assert isinstance(sink.head, RequestHead)
    ours = RAW_QUIC.router_exchange(Recorder())
    written = ours.encode_head(sink.head) + b"".join(map(ours.encode_body, sink.pieces)) + ours.encode_end()
    assert written == raw


def test_captured_handshakes_are_understood_and_written_alike() -> None:
    for name in ("handshake_no_token", "handshake_with_token"):
        captured = TRANSCRIPTS["worker"][name]
        raw = bytes.fromhex(captured["worker_to_router"])
        hello = RouterHandshake().receive(raw, True)
        assert hello is not None
        assert WorkerHandshake().hello(*hello) == raw
        assert RouterHandshake().accept() == bytes.fromhex(captured["router_to_worker"])
    refused = bytes.fromhex(TRANSCRIPTS["worker"]["handshake_refused"]["router_to_worker"])
    assert WorkerHandshake().receive(refused, True) == (False, "authentication failed")
    assert RouterHandshake().refuse("authentication failed") == refused


def test_captured_registrations_and_acks_decode() -> None:
    for registration in TRANSCRIPTS["worker"]["registrations_first_3s"]:
        message = stargate_pb2.InferenceServerRegistration.FromString(bytes.fromhex(registration["hex"]))
        assert message.inference_server_id
        assert set(message.models) == set(registration["json"].get("models", {}))
    ack = stargate_pb2.InferenceServerAck.FromString(bytes.fromhex(TRANSCRIPTS["worker"]["ack_hex"]))
    assert ack.reverse_tunnel_target == ack.reverse_tunnel_pylon_dial_addr
