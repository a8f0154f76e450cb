"""Every decoder of bytes that somebody else wrote: how it is called, and which errors are its own.

A decoder is right if any input makes it return or raise one of `errors`, in time, and holding no more than a few times what came in.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

import certs
from kubernetes_router.relay.client_hello import server_name
from kubernetes_router.relay.core import Open, RelayCore
from kubernetes_router.relay.initial_packets import FirstFlightError, crypto_frames
from router.balancing import ConfigError, load_config
from router.balancing.expression import parse_expression
from router.balancing.json_document import JsonError, parse
from router.balancing.method_error import MethodError
from router.config.cli import HelpRequested, UsageError, VersionRequested
from router.config.cli import parse as parse_command_line
from router.control_plane.admission import RefusedError, admit
from router.control_plane.message_limits import MessageLimitError, check_limits
from router.control_plane.messages import model_updates
from router.grpc import header_blocks
from router.grpc.call import Call
from router.grpc.frames import ErrorCode, Http2Error
from router.grpc.header_blocks import MalformedRequestError
from router.grpc.header_decoder import HeaderDecoder, Headers
from router.grpc.http2_connection import HEADER_BLOCK, Http2Connection
from router.grpc.status import Status
from router.grpc.stream import Http2Stream
from router.http1.request_parser import BrokenBodyError, RequestParser
from router.http1.request_parser import RefusedError as RequestRefusedError
from router.http1.target import BadTargetError, host_is_valid, origin_form
from router.openai import client_body, gateway_checks, gateway_estimate
from router.openai.aggregation import ChunkAggregator
from router.openai.body_facts import facts_of, output_limit, prefix_of, session_of
from router.openai.chunk_rewriter import ChunkRewriter, EngineStreamError
from router.openai.endpoints import CHAT, EMBEDDINGS, ENDPOINTS, RESPONSES
from router.openai.engine_errors import is_envelope, wrapped
from router.openai.errors import RequestError
from router.openai.keys import key_file
from router.openai.keys.bearer import presented_key
from router.openai.keys.key_file import KeyFileError
from router.openai.keys.key_format import digest_of
from router.openai.keys.nvcf_answers import UnusableAnswerError, caller_of
from router.openai.limits.redis_script import outcomes
from router.openai.limits.rule import RuleError, parse_rules
from router.openai.response_events import ResponseEvents
from router.ports.tunnels import TunnelError
from router.tunnels.addresses import dial_target
from router.tunnels.dial_policy import check_dialled_address
from stargate_client.sse import EventCutter, EventTooLargeError, kind_of
from tunnel_protocol import capnp
from tunnel_protocol.control import llm_gateway_pb2, stargate_pb2
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError
from tunnel_protocol.handshake import RouterHandshake, WorkerHandshake
from tunnel_protocol.quic import packets
from tunnel_protocol.quic.address_validation import AddressValidation, InitialHeader, is_retry_token
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.crypto_stream import CryptoBufferError, CryptoStream
from tunnel_protocol.quic.engine import destination_cid
from tunnel_protocol.quic.receive_half import StreamError
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import NULL_HANDLER, BidirectionalStream, StreamCallbacks
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC

STRANGER = ("192.0.2.9", 4_000)


class Decoder(NamedTuple):
    """One thing to feed bytes to."""

    name: str
    feed: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()


class Sink:
    """Takes a head, a body and an end in this order, and nothing else."""

    def __init__(self) -> None:
        self.body = 0
        self.ended = False

    def on_head(self, head: object) -> None:
        assert not self.ended

    def on_body(self, data: bytes) -> None:
        assert not self.ended
        self.body += len(data)

    def on_end(self) -> None:
        assert not self.ended
        self.ended = True


class Requests:
    """The owner of a parser that wants everything."""

    def __init__(self) -> None:
        self.begun = 0

    def request_begun(self, request: object) -> None:
        self.begun += 1

    def request_complete(self, request: object) -> None: ...

    def set_body_reading(self, reading: bool) -> None: ...

    def invite_body(self) -> None: ...


class GrpcPeer:
    """A gRPC server on one connection, in memory: it answers each message with another, ends some calls early, and others not at all."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.messages: list[bytes] = []
        self.over: list[Call] = []
        self.connection = Http2Connection(self._on_request, lambda: None)

    def _on_request(self, stream: Http2Stream, headers: Headers) -> None:
        try:
            head = header_blocks.read_head(headers)
        except MalformedRequestError:
            self.connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        call = Call(self.connection, stream, "peer", head.fields, self.over.append)
        stream.receiver = call
        self.calls.append(call)
        number = len(self.calls)
        if number % 4 == 0:
            call.end(Status.UNAVAILABLE, "early")
        elif number % 4 != 3:
            call.receive(lambda message: self._answer(call, message), lambda: call.end(Status.OK))

    def _answer(self, call: Call, message: bytes) -> None:
        self.messages.append(message)
        call.write_now(message)

    def held_bytes(self) -> int:
        """Parts of messages that wait."""
        return sum(len(call._partial) for call in self.calls)

    def close(self) -> None:
        """The connection is over: nothing of it is kept."""
        self.connection.lost()
        assert len(self.over) == len(self.calls)
        assert (self.connection.partial_bytes, self.connection.streams) == (0, {})


class EngineCallbacks:
    """Whom a QUIC connection tells."""

    def on_work(self) -> None: ...

    def on_established(self) -> None: ...

    def on_peer_stream(self, stream: object) -> None: ...

    def on_stream_credit(self) -> None: ...

    def on_connection_id(self, connection_id: bytes) -> None: ...

    def on_connection_id_retired(self, connection_id: bytes) -> None: ...

    def on_closed(self, error: Exception) -> None: ...


def _exchange(role: Callable[[Sink], Any]) -> Callable[[bytes], object]:
    def feed(data: bytes) -> None:
        exchange = role(Sink())
        exchange.receive(data[: len(data) // 3], False)
        exchange.receive(data[len(data) // 3 :], False)
        exchange.receive(b"", True)

    return feed


def _http(data: bytes) -> int:
    owner = Requests()
    parser = RequestParser(owner, lambda: 0.0)
    for start in (0, len(data) // 2):
        parser.feed(data[start : len(data) // 2] if not start else data[start:])
    return owner.begun


def _grpc(data: bytes) -> int:
    """What the gRPC server does with the bytes of a connection, in three pieces and in turns of the event loop."""
    peer = GrpcPeer()
    first, second = _halves(data)
    try:
        for part in (*_halves(first), second):
            more = peer.connection.receive(part, 1.0, 100)
            while more:
                more = peer.connection.receive(b"", 1.0, 100)
            peer.connection.take_output()
            assert peer.held_bytes() <= len(data)
    except Http2Error as error:
        peer.connection.fail(error)
        raise
    finally:
        peer.close()
    return len(peer.messages)


def _header_block(data: bytes) -> int:
    return len(HeaderDecoder(HEADER_BLOCK.bytes or 0).decode(data))


def _frames(data: bytes) -> int:
    owner = StreamCallbacks()
    owner.poll_scheduled = True
    stream = BidirectionalStream(owner, 0, b"\0", NULL_HANDLER, window=1_250_000, send_limit=0, high_water=1)
    at = packets.read_stream_frames(data, 0, {0: stream})
    assert stream.receive_half.held_bytes <= len(data)
    return at


def _acks(data: bytes) -> object:
    return packets.read_ack(data, 0)


def _crypto(data: bytes) -> int:
    stream, at = CryptoStream(from_client=True), 0
    while at + 3 <= len(data):
        offset, size = int.from_bytes(data[at : at + 2], "big"), data[at + 2]
        stream.receive(offset, data[at + 3 : at + 3 + size])
        at += 3 + size
        assert stream.held_bytes() <= len(data)
    return stream.received


class Strangers:
    """A server's end that takes first datagrams."""

    def __init__(self) -> None:
        identity = certs.make_self_signed(["stargate"])
        self._factory = AioquicFactory(QuicSettings(), ServerTls(identity.cert_pem, identity.key_pem))
        self._validation = AddressValidation()

    def datagram(self, data: bytes) -> None:
        """What the endpoint does with a datagram of no known connection."""
        destination_cid(data)
        header = InitialHeader.parse(data)
        if header is not None:
            is_retry_token(header.token)
            self._validation.original_cid(header, STRANGER, 1.0)
        self._factory.answer_version(data)
        if not self._factory.starts_connection(data):
            return
        engine = self._factory.accept(data, STRANGER, EngineCallbacks(), 1.0)
        if engine is not None:
            engine.deliver()
            engine.poll(1.0)
            engine.abandon(_GONE)
            engine.deliver()
            engine.discard()


_GONE = ConnectionClosedError(None, "gone", by_peer=False)


class RelayEvents:
    """Whom a relay tells."""

    def outcome(self, *_: object) -> None: ...

    def dropped(self, _reason: object) -> None: ...


def _relayed(data: bytes) -> None:
    """What a relay does with a datagram of a stranger, and with the same one from a router."""
    core = RelayCore(
        lambda _name: ("10.0.0.1", 1),
        lambda _tag: [("10.0.0.1", 1)],
        AioquicFactory(QuicSettings(), None),
        RelayEvents(),
        idle_s=60.0,
    )
    for now in (1.0, 2.0):
        path = core.path_of(data, STRANGER, now)
        for action in () if path is not None else core.receive(data, STRANGER, now):
            if isinstance(action, Open):
                path = action.path
        if path is not None:
            core.receive_from_router(path, data, now)
    core.expire(9.0)
    core.end_all()


def _initial_frames(data: bytes) -> int:
    size = sum(len(content) for _, content in crypto_frames(data))
    assert size <= len(data)
    return size


def _registration(data: bytes) -> object:
    message = stargate_pb2.InferenceServerRegistration.FromString(data)
    check_limits(message)
    model_updates(message)
    return admit(message, None, reverse_listener=True)


def _watch(data: bytes) -> object:
    return stargate_pb2.WatchStargatesResponse.FromString(data)


def _auth(data: bytes) -> object:
    return llm_gateway_pb2.AuthLlmWorkerResponse.FromString(data)


def _caller(data: bytes) -> object:
    """What the NVCF API says of a caller."""
    caller = caller_of(llm_gateway_pb2.AuthLlmInvocationResponse.FromString(data), "f")
    return caller.limit_scopes("f", "m"), caller.may_use("f", "m"), caller.routing_method("m")


def _key_file(data: bytes) -> object:
    return [caller.limit_scopes("k", "m") for caller in key_file.decode(data).callers().values()]


def _authorization(data: bytes) -> object:
    authorization, _, api_key = data.partition(b"\0")
    key = presented_key(authorization or None, api_key)
    return None if key is None else digest_of(key)


def _redis_answer(data: bytes) -> object:
    return outcomes(_text(data), [2, 0])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _words(data: bytes) -> object:
    return parse_command_line(_text(data).replace("\0", " ").split("\n"), {})


def _url(data: bytes) -> object:
    target = dial_target(_text(data))
    check_dialled_address(target, is_ours=lambda _ip, _port: False)
    return target


def _target(data: bytes) -> object:
    host_is_valid(data)
    return origin_form(b"GET", data)


def _openai_body(data: bytes) -> None:
    for endpoint in ENDPOINTS.values():
        body = client_body.read(endpoint, data, None)
        body.for_worker("another")
        facts_of(endpoint, body.json)
        prefix_of(endpoint, body.json)
        session_of(endpoint, body.json)
        output_limit(endpoint, body.json)


def _gateway_body(data: bytes) -> None:
    key = gateway_checks.routing_key_of(data, b"application/json")
    for endpoint in (CHAT, RESPONSES, EMBEDDINGS):
        document = gateway_checks.decode(endpoint, data, b"application/json")
        gateway_estimate.chat_tokens(document, "m")
        gateway_estimate.responses_tokens(document, "m")
        gateway_estimate.embeddings_tokens(document.get("input"))
        gateway_checks.check_types(endpoint, document)
        gateway_checks.model_of(document, key)
        gateway_checks.check_contents(endpoint, document)


def _openai_chunks(data: bytes) -> bytes:
    rewriter = ChunkRewriter(b'"f/m"', keep_usage=False)
    return b"".join(rewriter.feed(part) for part in _halves(data))


def _openai_answer(data: bytes) -> bytes:
    aggregator = ChunkAggregator(b'"f/m"')
    for part in _halves(data):
        aggregator.feed(part)
    return aggregator.answer()


def _openai_responses(data: bytes) -> bytes:
    events = ResponseEvents(b'"f/m"', collect=False)
    return b"".join(events.feed(part) for part in _halves(data))


def _halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


def _events(data: bytes) -> list[object]:
    cutter = EventCutter()
    return [kind_of(event) for part in (data[: len(data) // 2], data[len(data) // 2 :]) for event in cutter.feed(part)]


def _pair(data: bytes) -> None:
    cert, _, key = data.partition(b"\0")
    certs.validate(certs.Identity(cert, key), datetime.now(UTC))


def _trust(data: bytes) -> object:
    return certs.parse_trust_bundle(data)


def all_decoders() -> list[Decoder]:
    """Every decoder, made anew."""
    return [
        Decoder("capnp_message", capnp.decode_message, (ProtocolError,)),
        Decoder("capnp_handshake", capnp.decode_handshake, (ProtocolError,)),
        Decoder("capnp_handshake_ack", capnp.decode_handshake_ack, (ProtocolError,)),
        Decoder("handshake_of_worker", lambda data: RouterHandshake().receive(data, True), (ProtocolError,)),
        Decoder("handshake_of_router", lambda data: WorkerHandshake().receive(data, True), (ProtocolError,)),
        Decoder("raw_quic_response", _exchange(RAW_QUIC.router_exchange), (ProtocolError,)),
        Decoder("raw_quic_request", _exchange(RAW_QUIC.worker_exchange), (ProtocolError,)),
        Decoder("quic_stream_frames", _frames, (StreamError,)),
        Decoder("quic_ack_frame", _acks, (IndexError,)),
        Decoder("quic_crypto_stream", _crypto, (CryptoBufferError,)),
        Decoder("quic_first_datagram", Strangers().datagram),
        Decoder("relay_datagram", _relayed),
        Decoder("relay_initial_frames", _initial_frames, (FirstFlightError,)),
        Decoder("relay_client_hello", server_name, (FirstFlightError,)),
        Decoder("http_request", _http, (RequestRefusedError, BrokenBodyError)),
        Decoder("grpc_connection", _grpc, (Http2Error,)),
        Decoder("grpc_header_block", _header_block, (Http2Error,)),
        Decoder("http_target", _target, (BadTargetError,)),
        Decoder("registration", _registration, (DecodeError, MessageLimitError, RefusedError)),
        Decoder("watch_response", _watch, (DecodeError,)),
        Decoder("auth_response", _auth, (DecodeError,)),
        Decoder("caller_answer", _caller, (DecodeError, UnusableAnswerError)),
        Decoder("api_key_file", _key_file, (KeyFileError,)),
        Decoder("api_key_header", _authorization),
        Decoder("limit_rules", lambda data: parse_rules(_text(data)), (RuleError,)),
        Decoder("redis_answer", _redis_answer),
        Decoder("openai_body", _openai_body, (RequestError,)),
        Decoder("openai_gateway_body", _gateway_body, (RequestError,)),
        Decoder("openai_chunks", _openai_chunks, (EngineStreamError,)),
        Decoder("openai_whole_answer", _openai_answer, (EngineStreamError,)),
        Decoder("openai_response_events", _openai_responses, (EngineStreamError,)),
        Decoder("openai_engine_error", lambda data: wrapped(500, data, "/v1/x") if not is_envelope(data) else None),
        Decoder("json_document", parse, (JsonError,)),
        Decoder("policy", load_config, (ConfigError,)),
        Decoder("routing_expression", parse_expression, (MethodError,)),
        Decoder("command_line", _words, (UsageError, HelpRequested, VersionRequested)),
        Decoder("dialled_url", _url, (TunnelError,)),
        Decoder("server_sent_events", _events, (EventTooLargeError,)),
        Decoder("certificate_pair", _pair, (certs.IdentityError,)),
        Decoder("trust_bundle", _trust, (certs.IdentityError, OSError)),
    ]
