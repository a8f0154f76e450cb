"""The raw-quic framing, told as conversations: what each role sends, what it makes of what it hears."""

import pytest

from support.framing_recorder import FramingRecorder
from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.framing import RouterExchange, WorkerExchange
from tunnel_protocol.head import HeaderList, RequestHead, ResponseHead
from tunnel_protocol.raw_quic import RAW_QUIC

HEAD = capnp.encode_headers([(b"content-type", b"text/plain"), (b"x-status", b"200")])
REQUEST = capnp.encode_headers([(b"x-method", b"POST"), (b"x-path", b"/v1/responses"), (b"x-model", b"m")])
BODY = capnp.encode_body(b"hello")
TRAILERS = capnp.encode_trailers([(b"x-checksum", b"1")])


def router() -> tuple[RouterExchange, FramingRecorder]:
    sink = FramingRecorder()
    return RAW_QUIC.router_exchange(sink), sink


def worker() -> tuple[WorkerExchange, FramingRecorder]:
    sink = FramingRecorder()
    return RAW_QUIC.worker_exchange(sink), sink


def head_with(*status: bytes) -> bytes:
    return capnp.encode_headers([(b"a", b"1"), *((b"x-status", value) for value in status)])


def test_its_name_is_the_one_of_the_configuration() -> None:
    assert RAW_QUIC.name == "raw-quic"


def test_request_crosses_from_router_to_worker() -> None:
    ours, _ = router()
    theirs, heard = worker()
    head = RequestHead(b"POST", b"/v1/chat/completions?a=%20b", [(b"x-model", b"m"), (b"x-a", b"1"), (b"x-a", b"2")])
    theirs.receive(ours.encode_head(head) + ours.encode_body(b"one") + ours.encode_body(b"two"), False)
    theirs.receive(ours.encode_end(), True)
    assert heard.head == head
    assert heard.pieces == [b"one", b"two"]
    assert heard.ended


def test_response_crosses_from_worker_to_router() -> None:
    ours, _ = worker()
    theirs, heard = router()
    head = ResponseHead(429, [(b"retry-after", b"2"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])
    theirs.receive(ours.encode_head(head), False)
    assert heard.head == head
    theirs.receive(ours.encode_body(b"data: 1\n\n"), False)
    assert heard.pieces == [b"data: 1\n\n"]
    assert not heard.ended
    theirs.receive(b"", True)
    assert heard.ended


def test_method_and_path_come_first_and_win_over_entries_of_the_caller() -> None:
    ours, _ = router()
    theirs, heard = worker()
    raw = ours.encode_head(RequestHead(b"GET", b"/health", [(b"x-path", b"/admin"), (b"x-method", b"DELETE")]))
    assert [name for name, _ in capnp.decode_message(raw).entries] == [b"x-method", b"x-path", b"x-path", b"x-method"]  # type: ignore[union-attr]
    theirs.receive(raw, True)
    assert heard.head == RequestHead(b"GET", b"/health", [])


def test_status_of_the_worker_is_the_only_one_and_last() -> None:
    ours, _ = worker()
    raw = ours.encode_head(ResponseHead(503, [(b"x-status", b"200"), (b"a", b"1")]))
    assert capnp.decode_message(raw).entries == [(b"a", b"1"), (b"x-status", b"503")]  # type: ignore[union-attr]


def test_empty_piece_of_body_is_not_written_and_not_reported() -> None:
    ours, _ = router()
    assert ours.encode_body(b"") == b""
    theirs, heard = worker()
    theirs.receive(REQUEST + capnp.encode_body(b"") + BODY + capnp.encode_body(b""), True)
    assert heard.pieces == [b"hello"]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([b"200"], 200),
        ([b"204", b"500"], 204),
        ([b"999"], 999),
        ([b"+200"], 200),
        ([b"0200"], 200),
        ([], 502),
        ([b""], 502),
        ([b"abc", b"200"], 502),
        ([b"99"], 502),
        ([b"0"], 502),
        ([b"-200"], 502),
        ([b" 200"], 502),
        ([b"1000"], 502),
        ([b"65736"], 502),
        ([b"2" * 5000], 502),
    ],
)
def test_first_status_counts_and_what_is_no_status_reads_as_502(values: list[bytes], status: int) -> None:
    ours, heard = router()
    ours.receive(head_with(*values) + BODY, True)
    assert heard.head == ResponseHead(status, [(b"a", b"1")])
    assert heard.pieces == [b"hello"]


@pytest.mark.parametrize("status", [b"100", b"101", b"103", b"199", b"+100"])
def test_interim_status_is_a_protocol_error(status: bytes) -> None:
    ours, heard = router()
    with pytest.raises(ProtocolError, match="interim status"):
        ours.receive(head_with(status) + BODY, True)
    assert heard.head is None


@pytest.mark.parametrize(
    "entries",
    [
        [(b"x-path", b"/")],
        [(b"x-method", b"GET")],
        [(b"x-method", b""), (b"x-path", b"/")],
        [(b"x-method", b"GET"), (b"x-path", b"")],
        [(b"x-method", b"G T"), (b"x-path", b"/")],
        [(b"x-method", b"GET"), (b"x-path", b"/a b")],
        [(b"x-method", b"GET"), (b"x-path", b"/\t")],
        [],
    ],
)
def test_request_head_without_usable_method_and_path_is_a_protocol_error(entries: HeaderList) -> None:
    theirs, heard = worker()
    with pytest.raises(ProtocolError, match="without a usable x-method and x-path"):
        theirs.receive(capnp.encode_headers(entries), True)
    assert heard.head is None


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"", "expected header message, got none"),
        (BODY, "expected header message, got body"),
        (capnp.encode_body(b""), "expected header message, got body"),
        (TRAILERS, "expected header message, got trailer"),
        (HEAD + HEAD, "expected body message, got header"),
        (HEAD + BODY + HEAD, "expected body message, got header"),
        (HEAD + BODY[:9], "end of stream inside a message"),
        (
            HEAD + b"\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\xff\xff" + bytes(6),
            "unknown QuicMessage discriminant 65535",
        ),
    ],
)
def test_message_out_of_its_place_is_a_protocol_error(stream: bytes, reason: str) -> None:
    ours, heard = router()
    with pytest.raises(ProtocolError, match=f"^{reason}$"):
        ours.receive(stream, True)
    assert not heard.ended


def test_everything_before_a_fault_arrives_even_in_the_same_piece() -> None:
    ours, heard = router()
    with pytest.raises(ProtocolError):
        ours.receive(HEAD + BODY + BODY + HEAD + BODY, True)
    assert heard.head == ResponseHead(200, [(b"content-type", b"text/plain")])
    assert heard.pieces == [b"hello", b"hello"]
    assert not heard.ended


def test_nothing_follows_a_fault() -> None:
    ours, heard = router()
    with pytest.raises(ProtocolError):
        ours.receive(HEAD + HEAD, False)
    ours.receive(BODY, False)
    ours.receive(b"", True)
    assert heard.pieces == []
    assert not heard.ended


def test_trailers_end_the_body_and_what_follows_is_nobody_s_business() -> None:
    ours, heard = router()
    ours.receive(HEAD + BODY + TRAILERS + BODY + b"\xff\xff", False)
    assert heard.pieces == [b"hello"]
    assert heard.ended
    ours.receive(HEAD, False)
    ours.receive(b"\xff" * 9, True)


def test_trailers_and_fin_in_one_piece_end_it_once() -> None:
    ours, heard = router()
    ours.receive(HEAD + TRAILERS, True)
    assert heard.ended


def test_large_body_arrives_in_pieces_before_it_is_complete() -> None:
    ours, heard = router()
    stream = HEAD + capnp.encode_body(b"x" * 200_000) + BODY
    ours.receive(stream[:5000], False)
    assert 0 < len(b"".join(heard.pieces)) < 5000
    ours.receive(stream[5000:], True)
    assert b"".join(heard.pieces) == b"x" * 200_000 + b"hello"


def test_head_the_wire_cannot_carry_is_refused_before_anything_is_written() -> None:
    ours, _ = router()
    with pytest.raises(ProtocolError, match="non-ASCII header value for 'x-name'"):
        ours.encode_head(RequestHead(b"GET", b"/", [(b"x-name", b"Jos\xe9")]))
    with pytest.raises(ProtocolError, match="too many raw QUIC tunnel headers: 4097"):
        ours.encode_head(RequestHead(b"GET", b"/", [(b"a", b"1")] * 4095))
