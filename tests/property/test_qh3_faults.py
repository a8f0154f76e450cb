"""Why there is no QUIC engine on qh3: what stands in its way, shown with qh3 alone. docs/performance.md, "A second engine".

Each test holds while the fault is there. One that fails after an upgrade is good news: look whether the others still hold,
and decide again.
"""

import heapq
import random
import ssl

import pytest
from quic_simulation import Recorder, Weather, World, identity

qh3 = pytest.importorskip("qh3")

from qh3._hazmat import QuicConnectionCore  # noqa: E402 - only if qh3 is there
from qh3.quic import events  # noqa: E402
from qh3.quic.configuration import QuicConfiguration  # noqa: E402
from qh3.quic.connection import QuicConnection  # noqa: E402

CLIENT, SERVER = ("192.0.2.1", 40_000), ("192.0.2.2", 50_072)
WINDOW = 20_000
PROMISED_ACK_DELAY_S = 0.025


class Side:
    """One qh3 connection and what it received; `echo` sends everything back."""

    def __init__(self, address, *, echo):
        self.address = address
        self.echo = echo
        self.quic = None
        self.received = {}
        self.finished = set()
        self.established = False
        self.raised = []

    def take_events(self):
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.established = True
            elif isinstance(event, events.StreamDataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                if event.end_stream:
                    self.finished.add(event.stream_id)
                if self.echo:
                    self.quic.send_stream_data(event.stream_id, event.data, event.end_stream)

    def poll(self, now):
        """All that the core wants sent. Its own loop would lose what came out before an exception."""
        datagrams = []
        try:
            while (transmit := self.quic._core.poll_transmit(now)) is not None:
                datagrams.append(transmit[0])
        except (ValueError, RuntimeError) as error:
            self.raised.append(str(error))
        return datagrams


class Pair:
    """A client and a server of qh3, past their handshake, on a virtual clock and a network like `quic_simulation`'s."""

    def __init__(self, seed=0, weather=None, *, server_bytes=1_200, window=1_250_000, probing=True):
        self.random = random.Random(seed)
        self.weather = Weather(delay_s=0.005)
        self.now = 1_000.0
        self.queue = []
        self.sent = 0
        self.largest = {}
        self.client, self.server = Side(CLIENT, echo=False), Side(SERVER, echo=True)
        self.server_configuration = QuicConfiguration(
            is_client=False, max_stream_data=window, max_datagram_size=server_bytes
        )
        self.server_configuration.load_cert_chain(identity().cert_pem, identity().key_pem)
        configuration = QuicConfiguration(
            is_client=True,
            server_name="stargate",
            verify_mode=ssl.CERT_NONE,
            max_datagram_size=1_200,
            probe_datagram_size=probing,
        )
        self.client.quic = QuicConnection(configuration=configuration)
        self.client.quic.connect(SERVER, self.now)
        self.tick(self.client)
        assert self.run(lambda: self.client.established and self.server.established, 5)
        self.run(lambda: False, 1)
        self.weather = weather or self.weather
        self.largest = {}

    def tick(self, side):
        side.take_events()
        for data in side.poll(self.now):
            self.send(side, data)

    def send(self, side, data):
        weather, rng = self.weather, self.random
        self.largest[side] = max(self.largest.get(side, 0), len(data))
        if len(data) > weather.mtu or rng.random() < weather.loss:
            return
        self.sent += 1
        at = self.now + weather.delay_s + rng.random() * weather.jitter_s
        heapq.heappush(self.queue, (at, self.sent, side is self.client, data))

    def write(self, data, *, fin=True):
        """The client opens a stream."""
        stream_id = self.client.quic.get_next_available_stream_id()
        self.client.quic.send_stream_data(stream_id, data, fin)
        return stream_id

    def run(self, until, seconds):
        """Let time pass until the condition holds; False if it does not."""
        end = self.now + seconds
        while not until():
            due = []
            for side in (self.client, self.server):
                timer = None if side.quic is None else side.quic.get_timer()
                if timer is not None:
                    due.append((max(timer, self.now + 0.001), 1, side))
            if self.queue:
                due.append((self.queue[0][0], 0, None))
            at, _, side = min(due, key=lambda entry: entry[:2], default=(end, 0, None))
            if at >= end:
                self.now = end
                return False
            self.now = max(self.now, at)
            if side is None:
                side = self.deliver()
            else:
                side.quic.handle_timer(self.now)
            self.tick(side)
        return True

    def deliver(self):
        _, _, to_server, data = heapq.heappop(self.queue)
        side, source = (self.server, CLIENT) if to_server else (self.client, SERVER)
        if side.quic is None:
            side.quic = QuicConnection(
                configuration=self.server_configuration, original_destination_connection_id=data[6 : 6 + data[5]]
            )
        side.quic.receive_datagram(data, source, self.now)
        return side

    def echoes(self, count, size):
        """Start so many echoes; a condition that holds when all have come back."""
        stream_ids = [self.write(bytes(size)) for _ in range(count)]
        self.tick(self.client)
        return lambda: self.client.finished.issuperset(stream_ids)


# --- credit ----------------------------------------------------------------------------------------------------------


def test_one_stream_cannot_be_held_back_without_all_others():
    """Taking an event grants its stream credit, and events of all streams come in one order."""
    pair = Pair(window=WINDOW)
    client, core = pair.client.quic, pair.server.quic._core
    slow, other = pair.write(bytes(100_000), fin=False), pair.write(b"other", fin=False)

    def settle():
        """What the client may send arrives; nobody takes the server's events."""
        for _ in range(100):
            pair.now += 0.01
            client.handle_timer(pair.now)
            for data in pair.client.poll(pair.now):
                core.receive_datagram(data, CLIENT, pair.now)
            core.handle_timer(pair.now)
            for data in pair.server.poll(pair.now):
                client.receive_datagram(data, SERVER, pair.now)

    settle()
    assert client.get_send_buffer_size(slow) == 100_000 - WINDOW, "nothing taken, nothing granted"
    taken = []
    while (event := core.next_event()) is not None:
        taken += [event[1]] if event[0] == "stream_data" else []
    assert taken.index(slow) < taken.index(other), "the other stream can be read only after the slow one"
    settle()
    assert client.get_send_buffer_size(slow) == 100_000 - 2 * WINDOW, "which has got a whole window for it"


def test_the_core_has_no_call_to_grant_or_withhold_credit_of_a_stream():
    assert {name for name in vars(QuicConnectionCore) if not name.startswith("_")} == {
        "active_local_streams",
        "active_path",
        "apply_peer_transport_parameters",
        "bytes_in_flight",
        "can_send_stream",
        "change_connection_id",
        "close",
        "congestion_window",
        "discard_keys",
        "get_send_buffer_size",
        "get_timer",
        "handle_timer",
        "handshake_complete",
        "handshake_confirmed",
        "has_events",
        "install_packet_key",
        "latest_rtt",
        "local_error",
        "loss_total",
        "next_event",
        "open_stream",
        "outstanding_application_packets",
        "poll_transmit",
        "pto_count",
        "pto_total",
        "receive_datagram",
        "receive_gro_buffer",
        "receive_key_phase",
        "receive_many_datagrams",
        "received_authenticated_packet",
        "reject_zero_rtt",
        "request_key_update",
        "reset_stream",
        "restore_send_packet_number",
        "send_crypto",
        "send_datagram",
        "send_key_phase",
        "send_ping",
        "send_stream",
        "set_initial_token",
        "set_version",
        "should_wait_for_ack",
        "smoothed_rtt",
        "state",
        "stop_sending",
        "stream_limits",
        "version",
    }


# --- acknowledgements and losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("streams", "acknowledgements"), [(1, 1), (60, 0)])
def test_no_acknowledgement_leaves_while_the_congestion_window_is_full(streams, acknowledgements):
    """They must leave within the promised delay (RFC 9000 section 13.2.1) and do not count (RFC 9002 section 7)."""
    pair = Pair()
    assert pair.run(pair.echoes(1, 100), 5)
    for _ in range(streams):
        pair.write(bytes(3_000))
    assert pair.client.poll(pair.now), "as much as the congestion window allows; it goes astray"
    pair.server.quic.send_stream_data(1, b"asks for an acknowledgement")
    (data,) = pair.server.poll(pair.now)
    pair.client.quic.receive_datagram(data, SERVER, pair.now)
    pair.client.quic.handle_timer(pair.now + PROMISED_ACK_DELAY_S)
    assert len(pair.client.poll(pair.now + PROMISED_ACK_DELAY_S)) == acknowledgements


def test_two_peers_with_full_congestion_windows_wait_for_each_other():
    """Sixty echoes of 3,000 bytes over a network that reorders and loses nothing."""
    weather = Weather(delay_s=0.005, jitter_s=0.01)
    pairs = [Pair(seed, weather) for seed in range(5)]
    assert not all(pair.run(pair.echoes(60, 3_000), 20) for pair in pairs)

    world = World(0, weather).connect()
    world.server.accept = Echo
    recorders = []
    for _ in range(60):
        recorders.append(Recorder())
        world.client.engine.open_stream(recorders[-1]).write(bytes(3_000), fin=True)
    world.run(lambda: all(recorder.fin for recorder in recorders), 3)


class Echo(Recorder):
    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def on_data(self, data, fin):
        super().on_data(data, fin)
        self.stream.write(data, fin=fin)


def test_losses_can_make_the_core_fail():
    """A stream ended while a frame of it was reserved: what shared the packet with it stays reserved and is never sent."""
    for seed in range(1_500):
        pair = Pair(seed, Weather(delay_s=0.005, loss=0.2))
        done = pair.echoes(5, 50_000)
        pair.run(lambda pair=pair, done=done: done() or pair.client.raised or pair.server.raised, 20)
        if "reserved stream is missing" in pair.client.raised + pair.server.raised:
            return
    pytest.fail("no run failed")


# --- datagram size ---------------------------------------------------------------------------------------------------


def test_a_server_never_looks_for_larger_datagrams():
    pair = Pair()
    assert pair.run(pair.echoes(5, 200_000), 20)
    assert pair.largest[pair.client] > 1_400
    assert pair.largest[pair.server] <= 1_200


def test_a_server_that_starts_with_larger_datagrams_never_falls_back():
    pair = Pair(server_bytes=1_452, probing=False)
    assert pair.run(pair.echoes(1, 20_000), 5)
    pair.weather = Weather(delay_s=0.005, mtu=1_300)
    assert not pair.run(pair.echoes(1, 20_000), 60)


def test_a_client_that_found_larger_datagrams_never_falls_back():
    pair = Pair()
    assert pair.run(pair.echoes(5, 200_000), 20)
    pair.weather = Weather(delay_s=0.005, mtu=1_300)
    assert not pair.run(pair.echoes(1, 20_000), 60)
