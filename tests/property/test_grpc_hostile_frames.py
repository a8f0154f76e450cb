"""Whatever a peer sends to the gRPC server, it answers, or closes by the rules: nothing else is raised, and what is held is bounded."""

from contextlib import suppress

import h2.config
import h2.connection
import h2.exceptions
from hypothesis import given
from hypothesis import strategies as st

from router.grpc import frames, header_blocks
from router.grpc.call import Call
from router.grpc.header_blocks import Headers, MalformedRequestError
from router.grpc.http2_connection import CONNECTION_WINDOW, Http2Connection
from router.grpc.status import Status
from router.grpc.stream import Http2Stream

_HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "r"),
    (":path", "/s/M"),
    ("content-type", "application/grpc"),
]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "data", "message", "end", "reset", "window", "ping", "settings", "trailers"]),
        st.integers(0, 5),
    ),
    max_size=30,
)


def written_by_a_client(steps: list[tuple[str, int]]) -> bytes:
    """The bytes of a client that does this; what its own library forbids is left out."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for step, number in steps:
        stream_id = 2 * number + 1
        try:
            if step == "open":
                client.send_headers(client.get_next_available_stream_id(), _HEAD, end_stream=number == 0)
            elif step == "data":
                client.send_data(stream_id, bytes(100 * number), pad_length=number)
            elif step == "message":
                client.send_data(stream_id, b"\0\0\0\0\3abc")
            elif step == "end":
                client.end_stream(stream_id)
            elif step == "reset":
                client.reset_stream(stream_id)
            elif step == "window":
                client.increment_flow_control_window(1 + number, stream_id if number % 2 else None)
            elif step == "ping":
                client.ping(b"12345678")
            elif step == "settings":
                client.update_settings({4: 1_000 * number})
            else:
                client.send_headers(stream_id, [("x", "y")], end_stream=True)
        except (h2.exceptions.ProtocolError, KeyError):
            continue
    return client.data_to_send()


class Server:
    """Answers each message with another, and some calls early."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.connection = Http2Connection(self._on_request, lambda: None)

    def _on_request(self, stream: Http2Stream, headers: Headers) -> None:
        try:
            head = header_blocks.read_head(headers)
        except MalformedRequestError:
            self.connection.reset(stream, frames.ErrorCode.PROTOCOL_ERROR)
            return
        call = Call(self.connection, stream, "peer", head.metadata, lambda _call: None)
        stream.receiver = call
        self.calls.append(call)
        number = len(self.calls)
        if number % 3 == 0:
            call.end(Status.UNAVAILABLE, "early")
        elif number % 3 == 1:
            call.receive(call.write_now, lambda: call.end(Status.OK))


@given(
    _STEPS,
    st.lists(st.integers(1, 400), max_size=20),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=4),
)
def test_a_peer_is_answered_or_told_why_not(
    steps: list[tuple[str, int]], cuts: list[int], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(written_by_a_client(steps))
    for at, value in changes:
        content[at % len(content)] = value
    server = Server()
    data, at = bytes(content), 0
    try:
        for cut in [*cuts, len(data)]:
            server.connection.receive(data[at : at + cut], float(at))
            server.connection.take_output()
            at += cut
    except frames.Http2Error as error:
        server.connection.fail(error)
    else:
        if not changes:  # what the library of a client has written is right
            assert server.connection.settled
    assert sum(len(call._partial) for call in server.calls) <= (CONNECTION_WINDOW.bytes or 0) + len(data)
    server.connection.lost()
    assert all(call.over for call in server.calls)
    assert server.connection.partial_bytes == 0
    assert server.connection.streams == {}


@given(st.binary(max_size=3_000))
def test_any_bytes_after_the_preface_are_frames_or_an_error(data: bytes) -> None:
    server = Server()
    with suppress(frames.Http2Error):
        server.connection.receive(frames.PREFACE + frames.settings({}) + data, 0.0)
    server.connection.lost()
