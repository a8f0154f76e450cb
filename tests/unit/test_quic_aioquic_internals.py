"""What we use of aioquic's private side is still there, and still does what our replacements assume.

A failure here after an upgrade means: read the changed source, adapt `tunnel_protocol/quic/aioquic_handshake`, then the
fingerprints below.
"""

import hashlib
import inspect
from importlib.metadata import version

import pytest
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

PINNED = "1.7.2"

REPLACED_OR_RELIED_UPON = {
    # Replaced: our version must be compared with the new source.
    "QuicConnection._handle_crypto_frame": (QuicConnection._handle_crypto_frame, "e77f8695"),
    "QuicConnection._update_traffic_key": (QuicConnection._update_traffic_key, "44917755"),
    "QuicConnection._replenish_connection_ids": (QuicConnection._replenish_connection_ids, "73b127ef"),
    "QuicConnection._write_application": (QuicConnection._write_application, "c37bf643"),
    # Relied upon for what is done without 1-RTT keys, and in which order.
    "QuicConnection.receive_datagram": (QuicConnection.receive_datagram, "3c7f2982"),
    "QuicConnection.datagrams_to_send": (QuicConnection.datagrams_to_send, "f4eb22c8"),
    "QuicConnection._payload_received": (QuicConnection._payload_received, "612b6775"),
    "QuicConnection._parse_transport_parameters": (QuicConnection._parse_transport_parameters, "0da95a03"),
    # Relied upon for how a handshake ends.
    "QuicConnection.close": (QuicConnection.close, "f24ea1b2"),
    "QuicConnection._close_begin": (QuicConnection._close_begin, "d8cdcfd4"),
    "QuicConnection._close_end": (QuicConnection._close_end, "7e32d958"),
    "QuicConnection.handle_timer": (QuicConnection.handle_timer, "8ebd76a1"),
    "QuicConnection.get_timer": (QuicConnection.get_timer, "07184a05"),
    # Relied upon for which references a handshake that has ended is cut out of.
    "QuicConnection._initialize": (QuicConnection._initialize, "6a41681e"),
}

CONNECTION_ATTRIBUTES = [
    "_close_at",
    "_close_event",
    "_close_pending",
    "_configuration",
    "_crypto_buffers",
    "_crypto_streams",
    "_cryptos",
    "_cryptos_initial",
    "_events",
    "_handshake_complete",
    "_host_cids",
    "_is_client",
    "_local_initial_source_connection_id",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_loss",
    "_network_paths",
    "_peer_cid",
    "_quic_logger",
    "_retry_source_connection_id",
    "_spaces",
    "_state",
    "_streams",
    "_QuicConnection__frame_handlers",
]

CONNECTION_METHODS = [
    "_close_end",
    "_handle_crypto_frame",
    "_initialize",
    "_parse_transport_parameters",
    "_payload_received",
    "_replenish_connection_ids",
    "_update_traffic_key",
    "_write_application",
]


def fingerprint(function):
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:8]


def client():
    return QuicConnection(configuration=QuicConfiguration(is_client=True))


def test_the_version_is_the_pinned_one():
    assert version("aioquic") == PINNED


@pytest.mark.parametrize("name", REPLACED_OR_RELIED_UPON)
def test_what_we_replace_or_rely_upon_has_not_changed(name):
    function, known = REPLACED_OR_RELIED_UPON[name]
    assert fingerprint(function) == known


def test_attributes_of_a_connection_are_there():
    quic = client()
    assert [name for name in CONNECTION_ATTRIBUTES if not hasattr(quic, name)] == []
    assert [name for name in CONNECTION_METHODS if not callable(getattr(quic, name, None))] == []


def test_the_round_trip_time_of_a_handshake_is_where_it_was():
    loss = client()._loss
    assert (loss._rtt_initialized, loss._rtt_smoothed, loss._rtt_variance) == (False, 0.0, 0.0)


def test_what_a_connection_that_ends_lets_go_of_is_there():
    quic = client()
    quic.connect(("192.0.2.1", 4_433), now=1.0)
    assert quic._loss._send_probe == quic._send_probe
    assert quic.tls.alpn_cb == quic._alpn_handler
    assert quic.tls.update_traffic_key_cb == quic._update_traffic_key
    for table in (quic._cryptos_initial, quic._cryptos, quic._crypto_streams, quic._crypto_buffers, quic._spaces):
        assert type(table) is dict
        assert table
    names = ("_client_handle_certificate_verify", "_server_handle_hello", "_cadata", "_peer_certificate")
    assert [name for name in (*names, "_peer_certificate_chain") if not hasattr(quic.tls, name)] == []


def test_repeated_and_whole_crypto_data_go_through_the_receiver_that_counts_from_its_start():
    quic = client()
    quic.connect(("192.0.2.1", 4_433), now=1.0)
    assert quic._crypto_streams[connection.tls.Epoch.INITIAL].receiver.starting_offset() == 0


def test_the_frame_table_is_bound_to_overridable_methods():
    handlers = client()._QuicConnection__frame_handlers
    handler, epochs = handlers[0x06]
    assert handler.__func__ is QuicConnection._handle_crypto_frame
    assert connection.tls.Epoch.HANDSHAKE in epochs
