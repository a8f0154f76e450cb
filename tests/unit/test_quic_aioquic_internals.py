"""What we use of aioquic's private side is still there, and still does what our replacements assume.

A failure here after an upgrade means: read the changed source, adapt `tunnel_protocol/quic/aioquic_handshake`, then the
fingerprints below.
"""

import hashlib
import inspect
from importlib.metadata import version

import pytest
from aioquic.quic import connection, crypto, packet, packet_builder, rangeset, recovery
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import CipherSuite

from tunnel_protocol.quic.packet_space import AckRanges, PacketSpace, ReceivedPacketNumbers, SentPacket

PINNED = "1.7.2"

REPLACED_OR_IMITATED = {
    # Replaced: our version must be compared with the new source.
    "QuicConnection._write_application": (QuicConnection._write_application, "c37bf643"),
    "QuicConnection._handle_stream_frame": (QuicConnection._handle_stream_frame, "8c79348a"),
    "QuicConnection._handle_reset_stream_frame": (QuicConnection._handle_reset_stream_frame, "0a180184"),
    "QuicConnection._handle_stop_sending_frame": (QuicConnection._handle_stop_sending_frame, "57b0b54a"),
    "QuicConnection._handle_max_stream_data_frame": (QuicConnection._handle_max_stream_data_frame, "c94e4873"),
    "QuicConnection._handle_stream_data_blocked_frame": (QuicConnection._handle_stream_data_blocked_frame, "84c6344e"),
    "QuicConnection._unblock_streams": (QuicConnection._unblock_streams, "cfde0b02"),
    "QuicConnection._get_or_create_stream": (QuicConnection._get_or_create_stream, "aee09c84"),
    "QuicConnection._write_connection_limits": (QuicConnection._write_connection_limits, "02c42c54"),
    "QuicConnection._handle_crypto_frame": (QuicConnection._handle_crypto_frame, "e77f8695"),
    # Relied upon for bounds that are not ours.
    "QuicConnection._handle_retire_connection_id_frame": (
        QuicConnection._handle_retire_connection_id_frame,
        "4f53abae",
    ),
    "QuicConnection._handle_new_connection_id_frame": (QuicConnection._handle_new_connection_id_frame, "8a802ee5"),
    "QuicConnection._handle_path_challenge_frame": (QuicConnection._handle_path_challenge_frame, "8ca41485"),
    "QuicConnection._add_network_path": (QuicConnection._add_network_path, "4135b581"),
    # Imitated by the short ways.
    "QuicConnection.receive_datagram": (QuicConnection.receive_datagram, "3c7f2982"),
    "QuicConnection.datagrams_to_send": (QuicConnection.datagrams_to_send, "f4eb22c8"),
    "QuicConnection._payload_received": (QuicConnection._payload_received, "612b6775"),
    "QuicConnection._flush_builder": (QuicConnection._flush_builder, "ac4bd66d"),
    "QuicConnection._write_ack_frame": (QuicConnection._write_ack_frame, "dc0bde63"),
    "QuicConnection._handle_ack_frame": (QuicConnection._handle_ack_frame, "a9cf2707"),
    "QuicPacketRecovery.on_ack_received": (recovery.QuicPacketRecovery.on_ack_received, "1a7c6934"),
    "QuicPacketRecovery.on_packet_sent": (recovery.QuicPacketRecovery.on_packet_sent, "a83baa6e"),
    "QuicPacketRecovery._on_packets_lost": (recovery.QuicPacketRecovery._on_packets_lost, "77a0ba75"),
    "QuicPacketBuilder._end_packet": (packet_builder.QuicPacketBuilder._end_packet, "585948d0"),
    "CryptoContext.decrypt_packet": (crypto.CryptoContext.decrypt_packet, "fe94c52f"),
    "CryptoPair.encrypt_packet": (crypto.CryptoPair.encrypt_packet, "f2442948"),
    "CryptoPair.decrypt_packet": (crypto.CryptoPair.decrypt_packet, "2d2c3a3b"),
    "CryptoPair._update_key": (crypto.CryptoPair._update_key, "4dddcfab"),
    "apply_key_phase": (crypto.apply_key_phase, "f0cdd78e"),
    "push_ack_frame": (packet.push_ack_frame, "121c5234"),
    "pull_ack_frame": (packet.pull_ack_frame, "4226facf"),
    # Relied upon for how a connection ends.
    "QuicConnection.close": (QuicConnection.close, "f24ea1b2"),
    "QuicConnection._close_begin": (QuicConnection._close_begin, "d8cdcfd4"),
    "QuicConnection._close_end": (QuicConnection._close_end, "7e32d958"),
    "QuicConnection.handle_timer": (QuicConnection.handle_timer, "8ebd76a1"),
    "QuicConnection.get_timer": (QuicConnection.get_timer, "07184a05"),
    # Relied upon for which references a connection that has ended is cut out of.
    "QuicConnection._initialize": (QuicConnection._initialize, "6a41681e"),
}

CONNECTION_ATTRIBUTES = [
    "_ack_delay",
    "_ack_eliciting_sent_since_receipt",
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
    "_handshake_confirmed",
    "_handshake_done_pending",
    "_host_cid_seq",
    "_host_cids",
    "_is_client",
    "_local_ack_delay_exponent",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_local_next_stream_id_bidi",
    "_logger",
    "_loss",
    "_max_datagram_size",
    "_network_paths",
    "_packet_number",
    "_pacing_at",
    "_peer_cid",
    "_ping_pending",
    "_probe_pending",
    "_quic_logger",
    "_remote_ack_delay_exponent",
    "_remote_max_data",
    "_remote_max_data_used",
    "_remote_max_stream_data_bidi_local",
    "_remote_max_stream_data_bidi_remote",
    "_remote_max_streams_bidi",
    "_remote_preferred_address",
    "_retire_connection_ids",
    "_retry_source_connection_id",
    "_spaces",
    "_spin_bit",
    "_state",
    "_streams",
    "_QuicConnection__frame_handlers",
]

CONNECTION_METHODS = [
    "_assert_stream_can_receive",
    "_assert_stream_can_send",
    "_close_end",
    "_confirm_handshake",
    "_handle_crypto_frame",
    "_handle_max_data_frame",
    "_handle_max_streams_bidi_frame",
    "_handle_retire_connection_id_frame",
    "_idle_timeout",
    "_initialize",
    "_on_ack_delivery",
    "_on_connection_limit_delivery",
    "_on_new_connection_id_delivery",
    "_parse_transport_parameters",
    "_payload_received",
    "_replenish_connection_ids",
    "_write_ack_frame",
    "_write_handshake_done_frame",
    "_write_new_connection_id_frame",
    "_write_path_challenge_frame",
    "_write_path_response_frame",
    "_write_ping_frame",
    "_write_retire_connection_id_frame",
]

LOSS_ATTRIBUTES = [
    "_cc",
    "_detect_loss",
    "_on_packets_lost",
    "_pacer",
    "_pto_count",
    "_rtt_first_sample_time",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
    "_send_probe",
    "_time_of_last_sent_ack_eliciting_packet",
    "max_ack_delay",
    "spaces",
]

SPACE_ATTRIBUTES = [
    "ack_at",
    "ack_eliciting_in_flight",
    "ack_queue",
    "expected_packet_number",
    "largest_acked_packet",
    "largest_received_packet",
    "largest_received_time",
    "loss_time",
    "received_packets",
    "sent_packets",
]


def fingerprint(function):
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:8]


def client():
    return QuicConnection(configuration=QuicConfiguration(is_client=True))


def test_the_version_is_the_pinned_one():
    assert version("aioquic") == PINNED


@pytest.mark.parametrize("name", REPLACED_OR_IMITATED)
def test_what_we_replace_or_imitate_has_not_changed(name):
    function, known = REPLACED_OR_IMITATED[name]
    assert fingerprint(function) == known


def test_attributes_of_a_connection_are_there():
    quic = client()
    assert [name for name in CONNECTION_ATTRIBUTES if not hasattr(quic, name)] == []
    assert [name for name in CONNECTION_METHODS if not callable(getattr(quic, name, None))] == []


def test_attributes_of_loss_recovery_are_there():
    loss = client()._loss
    assert [name for name in LOSS_ATTRIBUTES if not hasattr(loss, name)] == []
    assert {"_max_datagram_size"} <= vars(loss._pacer).keys()
    assert {"_max_datagram_size", "congestion_window"} <= vars(loss._cc).keys()
    assert loss._cc.bytes_in_flight == 0
    space = recovery.QuicPacketSpace()
    assert [name for name in SPACE_ATTRIBUTES if not hasattr(space, name)] == []


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


def test_bounds_of_the_library_that_we_rely_on():
    assert connection.MAX_NETWORK_PATHS == 8
    assert connection.MAX_REMOTE_CHALLENGES == 32
    assert connection.MAX_ACK_RANGES == 64
    assert connection.MAX_PENDING_RETIRES == 100


def test_our_record_of_a_sent_packet_has_all_fields_of_the_librarys():
    theirs = set(packet_builder.QuicSentPacket.__dataclass_fields__)
    ours = SentPacket(1, 2.0, 3, [], in_flight=True, epoch=None, packet_type=None)
    assert {name for name in theirs if not hasattr(ours, name)} == {"quic_logger_frames"}


def test_our_packet_space_has_all_that_the_librarys_has():
    ours, theirs = PacketSpace(ack_after_bytes=1, least_counted_bytes=1, ack_delay_s=0.0), recovery.QuicPacketSpace()
    assert [name for name in vars(theirs) if not hasattr(ours, name)] == []
    for mine, its in ((AckRanges, rangeset.RangeSet), (ReceivedPacketNumbers, recovery.QuicPacketNumberWindow)):
        public = {name for name in vars(its) if not name.startswith("_")}
        # `bounds` is asked of what a peer acknowledges, which is the library's own.
        assert {name for name in public if not hasattr(mine, name)} <= {"bounds"}


def test_what_is_made_of_keys_is_where_it_was():
    context = crypto.CryptoPair().recv
    context.setup(cipher_suite=CipherSuite.AES_128_GCM_SHA256, secret=bytes(32), version=1)
    assert context.hp._is_chacha20 is False
    assert context.hp._mask(bytes(16)) == context.hp._encryptor.update(bytes(16))
    assert context.aead._nonce(5) == (context.aead._iv ^ 5).to_bytes(12, "big")


def test_packet_protection_is_reached_as_before():
    pair = crypto.CryptoPair()
    pair.setup_initial(cid=bytes(8), is_client=True, version=1)
    assert {"_update_key_requested", "recv", "send"} <= vars(pair).keys()
    assert len(pair.send.hp._mask(bytes(16))) >= 5
    nonce = pair.send.aead._nonce(7)
    assert pair.send.aead._aead.encrypt(nonce, b"x", b"") == pair.send.aead.encrypt(b"x", b"", 7)


def test_the_frame_table_is_bound_to_overridable_methods():
    handlers = client()._QuicConnection__frame_handlers
    handler, epochs = handlers[0x08]
    assert handler.__func__ is QuicConnection._handle_stream_frame
    assert connection.tls.Epoch.ONE_RTT in epochs
