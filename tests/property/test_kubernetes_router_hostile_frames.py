"""Whatever a worker sends, the gRPC port of `stargate-k8s-router` answers it or closes: nothing is raised, nothing is kept."""

from itertools import pairwise

import h2.config
import h2.connection
import h2.exceptions
from hypothesis import given
from hypothesis import strategies as st

from kubernetes_router.grpc_listener import REGISTER, WATCH
from kubernetes_router.targets import Target
from support.http2_peer import head
from support.kubernetes_router import Door
from support.loops import run_virtual
from support.transport import WrittenTransport

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["watch", "register", "other", "data", "end", "reset", "window", "ping", "settings", "goaway"]),
        st.integers(0, 5),
    ),
    max_size=25,
)


def written_by_a_client(steps: list[tuple[str, int]]) -> bytes:
    """The bytes of a client that does this; what its own library forbids is left out."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for step, number in steps:
        stream_id = 2 * number + 1
        try:
            if step in ("watch", "register", "other"):
                path = {"watch": WATCH, "register": REGISTER, "other": b"/other"}[step]
                client.send_headers(client.get_next_available_stream_id(), head(path))
            elif step == "data":
                client.send_data(stream_id, bytes(100 * number))
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
                client._data_to_send += b"\0\0\x08\x07\0" + bytes(11) + bytes([number])
        except (h2.exceptions.ProtocolError, KeyError):
            continue
    return client.data_to_send()


async def _feed(data: bytes, cuts: list[int], changes: list[tuple[int, int]]) -> None:
    content = bytearray(data)
    for at, value in changes:
        content[at % len(content)] = value
    door = Door(heartbeat_s=60, remote_urls=(), connect_timeout_s=1)
    connection, transport = door.listener._accept(), WrittenTransport()
    connection.connection_made(transport)
    edges = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        connection.data_received(bytes(content[start:end]))
        door.targets.publish([Target(f"pod-{start}", "10.0.0.1", 1, 2)])
    connection.connection_lost(None)
    assert connection.streams == 0
    assert door.publisher.open == 0
    assert door.metrics.render().decode().count("registrations_open 0\n") == 1
    door.listener.abort()


@given(
    _STEPS,
    st.lists(st.integers(0, 5_000), max_size=8),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=6),
)
def test_any_frames_in_any_order_and_with_any_change(
    steps: list[tuple[str, int]], cuts: list[int], changes: list[tuple[int, int]]
) -> None:
    run_virtual(_feed(written_by_a_client(steps), cuts, changes))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    run_virtual(_feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data, cuts, []))
    if data:
        run_virtual(_feed(data, cuts, []))
