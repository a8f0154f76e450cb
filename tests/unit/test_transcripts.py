"""Conversations captured from a worker and a router in the field: we read them as they were meant and write the same bytes."""

import json
import pathlib
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from support.framing_recorder import FramingRecorder
from tunnel_protocol.control import stargate_pb2
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.handshake import RouterHandshake, WorkerHandshake
from tunnel_protocol.head import HeaderList, RequestHead, ResponseHead, request_headers_to_worker
from tunnel_protocol.raw_quic import RAW_QUIC

TRANSCRIPTS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "transcripts.json").read_text())
WORKER, ROUTER = TRANSCRIPTS["worker"], TRANSCRIPTS["router"]
REQUESTS = [e for e in WORKER["exchanges"] if e["name"] != "no_path"] + ROUTER["exchanges"]
ANSWERED = [e for e in WORKER["exchanges"] if e["worker_to_router_messages"]]


def bodies(messages: list[list[Any]]) -> list[bytes]:
    contents = [value for kind, value in messages if kind == "body"]
    return [bytes.fromhex(c["hex"]) if isinstance(c, dict) else c.encode() for c in contents]


def entries(messages: list[list[Any]]) -> HeaderList:
    return [(name.encode(), value.encode()) for name, value in messages[0][1]]


def without(headers: HeaderList, *names: bytes) -> HeaderList:
    return [entry for entry in headers if entry[0] not in names]


@pytest.mark.parametrize("exchange", REQUESTS, ids=lambda e: e["name"])
def test_captured_request_is_read_and_written_alike(exchange: dict[str, Any]) -> None:
    raw, messages = bytes.fromhex(exchange["router_to_worker"]), exchange["router_to_worker_messages"]
    fin = exchange["router_to_worker_end"] == "fin"
    sink = FramingRecorder()
    RAW_QUIC.worker_exchange(sink).receive(raw, fin)
    head = entries(messages)
    assert sink.head == RequestHead(head[0][1], head[1][1], without(head, b"x-method", b"x-path"))
    assert sink.pieces == [piece for piece in bodies(messages) if piece]
    assert sink.ended == fin

    ours = RAW_QUIC.router_exchange(FramingRecorder())
    assert isinstance(sink.head, RequestHead)
    written = ours.encode_head(sink.head) + b"".join(map(ours.encode_body, sink.pieces)) + ours.encode_end()
    if b"" not in bodies(messages):  # empty messages are legal to read; we write none
        assert written == raw


def test_head_that_a_worker_drops_without_an_answer_is_a_protocol_error() -> None:
    (exchange,) = [e for e in WORKER["exchanges"] if e["name"] == "no_path"]
    with pytest.raises(ProtocolError, match="without a usable x-method and x-path"):
        RAW_QUIC.worker_exchange(FramingRecorder()).receive(bytes.fromhex(exchange["router_to_worker"]), True)


@pytest.mark.parametrize("exchange", ANSWERED, ids=lambda e: e["name"])
def test_captured_answer_is_read_and_written_alike(exchange: dict[str, Any]) -> None:
    raw, messages = bytes.fromhex(exchange["worker_to_router"]), exchange["worker_to_router_messages"]
    fin = exchange["worker_to_router_end"] == "fin"
    sink = FramingRecorder()
    RAW_QUIC.router_exchange(sink).receive(raw, fin)
    head = entries(messages)
    status = dict(head)[b"x-status"]
    assert sink.head == ResponseHead(int(status), without(head, b"x-status"))
    assert sink.pieces == bodies(messages)
    assert sink.ended == fin

    ours = RAW_QUIC.worker_exchange(FramingRecorder())
    assert isinstance(sink.head, ResponseHead)
    written = ours.encode_head(sink.head) + b"".join(map(ours.encode_body, sink.pieces)) + ours.encode_end()
    if head[-1][0] == b"x-status":  # an engine's own x-status is replaced in its place there; ours stands last
        assert written == raw


def test_probe_is_written_as_captured() -> None:
    probe = ROUTER["health_probe"]
    head = entries(probe["messages"])
    ours = RAW_QUIC.router_exchange(FramingRecorder()).encode_head(RequestHead(b"GET", b"/health", head[2:]))
    assert ours == bytes.fromhex(probe["router_to_worker"])
    assert request_headers_to_worker(head[2:]) == head[2:]


@pytest.mark.parametrize("name", ["handshake_no_token", "handshake_with_token"])
def test_captured_handshake_is_understood_and_written_alike(name: str) -> None:
    raw, answer = (bytes.fromhex(WORKER[name][way]) for way in ("worker_to_router", "router_to_worker"))
    hello = RouterHandshake().receive(raw, True)
    assert hello is not None
    assert (hello.token is not None) == (name == "handshake_with_token")
    assert WorkerHandshake().hello(*hello) == raw
    assert RouterHandshake().accept() == answer
    assert WorkerHandshake().receive(answer, True) == (True, "")


@pytest.mark.parametrize(
    ("captured", "reason"),
    [(WORKER["handshake_refused"]["router_to_worker"], "authentication failed")]
    + [(h["ack"], h["reason"]) for h in ROUTER["handshakes"].values() if not h["accepted"]],
)
def test_captured_refusal_is_read_and_written_alike(captured: str, reason: str) -> None:
    raw = bytes.fromhex(captured)
    assert WorkerHandshake().receive(raw, True) == (False, reason)
    assert RouterHandshake().refuse(reason) == raw


@pytest.mark.parametrize("captured", WORKER["registrations_first_3s"] + WORKER["registrations_two_models"])
def test_captured_registration_decodes(captured: dict[str, Any]) -> None:
    message = stargate_pb2.InferenceServerRegistration.FromString(bytes.fromhex(captured["hex"]))
    assert MessageToDict(message, preserving_proto_field_name=True) == captured["json"]


def test_captured_acks_and_watch_message_decode() -> None:
    for ack_hex in (WORKER["ack_hex"], ROUTER["first_ack_hex"]):
        ack = stargate_pb2.InferenceServerAck.FromString(bytes.fromhex(ack_hex))
        assert ack.reverse_tunnel_target == ack.reverse_tunnel_pylon_dial_addr
        assert ack.SerializeToString() == bytes.fromhex(ack_hex)
    captured = ROUTER["watch_first_message"]
    message = stargate_pb2.WatchStargatesResponse.FromString(bytes.fromhex(captured["hex"]))
    assert [info.advertise_addr for info in message.stargates] == [
        told["advertise_addr"] for told in captured["json"]["stargates"]
    ]
    assert message.SerializeToString() == bytes.fromhex(captured["hex"])
