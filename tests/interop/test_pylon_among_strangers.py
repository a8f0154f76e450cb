"""The reference's worker proves its address when strangers keep our router busy."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from support.processes import OURS, Stack, worker_arguments
from support.waiting import wait_until
from tunnel_protocol.quic.admission import UNPROVED_PER_ADDRESS

pytestmark = pytest.mark.interop

RETRY = 0xF0


def first_packet() -> bytes:
    configuration = QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE, server_name="stargate")
    connection = QuicConnection(configuration=configuration)
    connection.connect(("127.0.0.1", 1), now=0.0)
    data, _ = connection.datagrams_to_send(now=0.0)[0]
    return data


@contextmanager
def strangers(port: int) -> Iterator[socket.socket]:
    """Handshakes of this host that never go on: from now on everybody here has to prove the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        for _ in range(2 * (UNPROVED_PER_ADDRESS.pieces or 0)):
            sender.sendto(first_packet(), ("127.0.0.1", port))
        yield sender


def is_asked_for_proof(sender: socket.socket, port: int) -> bool:
    """Whether one more stranger gets a Retry."""
    sender.sendto(first_packet(), ("127.0.0.1", port))
    return sender.recv(2_048)[0] & RETRY == RETRY


def test_the_worker_follows_the_retry(stack: Stack, pylon: str) -> None:
    engine = stack.engine()
    router = stack.router(OURS)
    with strangers(router.quic) as sender:
        wait_until(lambda: is_asked_for_proof(sender, router.quic), 5, "strangers have to prove their address")
        stack.start("pylon", [pylon, *worker_arguments(engine, router.grpc)])
        wait_until(router.serves, 10, "a request is served")
        wait_until(lambda: is_asked_for_proof(sender, router.quic), 5, "strangers still have to")
