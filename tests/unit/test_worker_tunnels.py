import asyncio
from functools import partial
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from router.ports.identity import Identity
from router.ports.tunnels import TunnelError, TunnelStep
from router.telemetry.metrics import Metrics
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.reverse_tunnels import ReverseTunnels
from router.tunnels.tunnel import Tunnel
from support.fake_quic import HEAD, FakeConnection, LineFraming, RecordingSink
from support.package_settings import tunnel_settings

SETTINGS = tunnel_settings()
PROBE = b"HGET /health\n"


def now():
    return asyncio.get_running_loop().time()


def identity(*, reverse, worker_id="w1"):
    return Identity(worker_id, worker_id, "quic://127.0.0.1:4433", None, reverse)


class Worker(FakeConnection):
    """A connection whose peer answers every health probe with `status`, at once, unless it is frozen."""

    def __init__(self, status=200, *, frozen=False):
        super().__init__()
        self.status = status
        self.frozen = frozen
        self.unanswered = []
        self.before_return = self.opened

    def opened(self, stream):
        asyncio.get_running_loop().call_soon(self.request, stream)

    def request(self, stream):
        if stream.sent == PROBE:
            if self.frozen:
                self.unanswered.append(stream)
            else:
                self.answer(stream)

    def answer(self, stream):
        stream.handler.on_data(b"H%d\nBok\n" % self.status, True)

    def thaw(self):
        self.frozen = False
        for stream in self.unanswered:
            self.answer(stream)
        self.unanswered.clear()


class Story:
    """What the control plane hears of a worker, with the time."""

    def __init__(self):
        self.events = []

    def start(self, tunnels):
        tunnels.start(lambda: self.events.append(("lost", now())), lambda: self.events.append(("recovered", now())))

    @property
    def names(self):
        return [name for name, _ in self.events]


def reverse_with(connection, settings=SETTINGS, worker_id="w1"):
    tunnels = ReverseTunnels(identity(reverse=True, worker_id=worker_id), settings, Metrics())
    return tunnels, install(tunnels, connection)


def install(tunnels, connection):
    tunnel = Tunnel(connection, LineFraming(), tunnels.identity.inference_server_id)
    assert tunnels.complete_install(tunnels.begin_install(), tunnel)
    return tunnel


def record_time(times, connection, stream):
    times.append(now())
    connection.opened(stream)


async def finish(tunnels):
    tunnels.retire()
    await tunnels.wait_retired()


# --- reverse: the step of an update ----------------------------------------------------------------------------------


@pytest.mark.loop("virtual")
async def test_the_first_step_of_a_reverse_worker_never_waits():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED
    assert now() == 0


@pytest.mark.loop("virtual")
async def test_the_round_trip_is_settled_once_the_worker_knows_its_address_and_is_connected():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    install(tunnels, Worker())
    tunnels.health.rtt_ns = 7
    assert tunnels.settled_rtt_ns() is None
    await tunnels.tunnel_step()
    assert tunnels.settled_rtt_ns() == 7


@pytest.mark.loop("virtual")
async def test_a_later_step_waits_for_the_tunnel_and_goes_on_as_soon_as_it_is_there():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    await tunnels.tunnel_step()
    asyncio.get_running_loop().call_later(3, install, tunnels, Worker())
    assert await tunnels.tunnel_step() is TunnelStep.CONNECTED
    assert now() == 3


@pytest.mark.loop("virtual")
async def test_a_step_without_a_tunnel_gives_up_after_the_connect_timeout_and_says_so():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    await tunnels.tunnel_step()
    with capture_logs() as logs:
        assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED
    assert now() == 10
    assert logs == [
        {
            "event": "reverse tunnel connection not received within timeout",
            "log_level": "error",
            "inference_server_id": "w1",
            "timeout_secs": 10,
        }
    ]


@pytest.mark.loop("virtual")
async def test_a_waiting_step_ends_at_once_when_the_registration_ends():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    await tunnels.tunnel_step()
    asyncio.get_running_loop().call_later(1, tunnels.retire)
    assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED
    assert now() == 1
    assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED


@pytest.mark.loop("virtual")
async def test_a_closed_connection_does_not_count_as_connected():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    await tunnels.tunnel_step()
    connection.closed = True
    assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED


# --- generations -----------------------------------------------------------------------------------------------------


@pytest.mark.loop("virtual")
async def test_a_retired_generation_never_borrows_its_successors_connection():
    old, _ = reverse_with(Worker())
    await finish(old)
    successor, _ = reverse_with(Worker())
    with pytest.raises(TunnelError) as caught:
        await old.open(HEAD, RecordingSink(), end=True)
    assert caught.value.reason == "no connection for exact inference server registration 'w1'"
    await successor.open(HEAD, RecordingSink(), end=True)


@pytest.mark.loop("virtual")
async def test_a_late_close_of_an_old_generations_connection_leaves_the_new_one_alone():
    old, old_tunnel = reverse_with(Worker())
    old.retire()
    successor, _ = reverse_with(Worker())
    old.connection_closed(old_tunnel)
    successor.connection_closed(old_tunnel)
    assert successor.healthy()


@pytest.mark.loop("virtual")
async def test_retiring_leaves_running_exchanges_alone_and_closes_the_connection_after_the_last():
    connection = FakeConnection()
    tunnels, _ = reverse_with(connection)
    sinks = [RecordingSink(), RecordingSink()]
    for sink in sinks:
        await tunnels.open(HEAD, sink, end=True)
    tunnels.retire()
    assert not tunnels.healthy()
    for stream in connection.streams:
        assert not connection.closed
        stream.handler.on_data(b"H200\nBx\n", True)
    assert [sink.events for sink in sinks] == [[200, b"x", "end"]] * 2
    assert connection.closes == [(0, "")]


async def test_a_reverse_worker_is_never_dialled():
    tunnels = ReverseTunnels(identity(reverse=True), SETTINGS, Metrics())
    with pytest.raises(TunnelError):
        await tunnels.reconnect()


# --- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.loop("virtual")
async def test_probes_follow_each_other_one_second_after_completion():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    Story().start(tunnels)
    await asyncio.sleep(3.5)
    assert [stream.sent for stream in connection.streams] == [PROBE] * 4
    assert tunnels.health.rtt_ns is not None
    await finish(tunnels)
    await asyncio.sleep(3)
    assert len(connection.streams) == 4


@pytest.mark.loop("virtual")
async def test_workers_that_registered_at_about_the_same_time_are_probed_in_one_tick():
    times = {}
    fleet = []
    for number in range(4):
        connection = Worker()
        connection.before_return = partial(record_time, times.setdefault(number, []), connection)
        tunnels, _ = reverse_with(connection, worker_id=f"w{number}")
        fleet.append(tunnels)
        Story().start(tunnels)
        await asyncio.sleep(0.01 if number < 2 else 0.1)
    await asyncio.sleep(4)
    later = [found[1:4] for found in times.values()]
    assert later[0] == later[1] == later[2]
    assert later[3] != later[2]
    for found in times.values():
        pauses = [after - before for before, after in pairwise(found)]
        assert all(0.975 <= round(pause, 6) <= 1.025 for pause in pauses)
    for tunnels in fleet:
        await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_round_trip_asked_for_before_the_first_turn_is_measured_at_once():
    tunnels, _ = reverse_with(Worker())
    assert await tunnels.rtt_ns() is not None
    assert now() == 0


async def test_no_connection_means_no_round_trip():
    assert await ReverseTunnels(identity(reverse=True), SETTINGS, Metrics()).rtt_ns() is None


@pytest.mark.loop("virtual")
async def test_a_health_check_with_another_status_leaves_no_round_trip_and_is_logged_once():
    connection = Worker(status=503)
    tunnels, _ = reverse_with(connection)
    story = Story()
    with capture_logs() as logs:
        story.start(tunnels)
        await asyncio.sleep(5)
        assert await tunnels.rtt_ns() is None
    assert [line["event"] for line in logs] == ["health check failed"]
    assert logs[0]["error"] == "health check answered with status 503"
    assert not connection.closed
    assert story.events == []
    connection.status = 204
    assert await tunnels.rtt_ns() is not None
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_worker_that_vanishes_without_a_word_is_lost_within_three_seconds_and_recovers_with_its_answer():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(10.01)
    connection.frozen = True
    await asyncio.sleep(10)
    assert story.names == ["lost"]
    assert story.events[0][1] - 10.01 <= 3
    assert not connection.closed
    assert await tunnels.tunnel_step() is TunnelStep.REVERSE_DISCONNECTED
    assert await tunnels.tunnel_step() is TunnelStep.CONNECTED  # acks go on; nothing is routable without a round trip
    assert await tunnels.rtt_ns() is None
    connection.thaw()
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert story.names == ["lost", "recovered"]
    assert await tunnels.rtt_ns() is not None
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_worker_whose_responses_flow_is_alive_however_long_its_health_check_takes():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await tunnels.open(HEAD, RecordingSink(), end=True)
    busy = connection.streams[-1]
    busy.handler.on_data(b"H200\n", False)
    await asyncio.sleep(0.5)
    connection.frozen = True
    for _ in range(10):
        await asyncio.sleep(1)
        busy.handler.on_data(b"Btoken\n", False)
    assert story.events == []
    await asyncio.sleep(4)
    assert story.names == ["lost"]
    await finish(tunnels)


def all_streams_in_use(connection):
    """From now on streams are opened only when the returned event is set."""
    credit = asyncio.Event()
    open_stream = connection.open_stream
    connection.free_streams = 0

    async def wait_for_credit(handler):
        await credit.wait()
        return await open_stream(handler)

    connection.open_stream = wait_for_credit
    return credit


@pytest.mark.loop("virtual")
async def test_a_worker_with_all_streams_in_use_is_alive_as_long_as_it_acknowledges():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(0.5)
    credit = all_streams_in_use(connection)

    def acknowledge():
        connection.last_received_at = now()

    connection.ping = lambda: asyncio.get_running_loop().call_later(0.01, acknowledge)
    await asyncio.sleep(20)
    assert story.events == []
    credit.set()
    await asyncio.sleep(2)
    assert tunnels.health.rtt_ns is not None
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_worker_that_vanishes_with_all_streams_in_use_is_lost_within_three_seconds():
    connection = Worker()
    tunnels, _ = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(0.5)
    all_streams_in_use(connection)
    connection.last_received_at = now()
    await asyncio.sleep(3)
    assert story.names == ["lost"]
    assert connection.pings
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_closed_reverse_tunnel_is_a_loss_at_once_and_the_next_one_a_recovery():
    connection = Worker()
    tunnels, tunnel = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(1.5)
    with capture_logs() as logs:
        connection.closed = True
        tunnels.connection_closed(tunnel)
    assert story.names == ["lost"]
    assert logs[0] == {
        "event": "reverse tunnel connection closed, removed from pool",
        "log_level": "warning",
        "inference_server_id": "w1",
    }
    assert await tunnels.rtt_ns() is None
    install(tunnels, Worker())
    assert await tunnels.rtt_ns() is not None
    assert story.names == ["lost", "recovered"]
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_nothing_is_reported_after_the_registration_ended():
    connection = Worker(frozen=True)
    tunnels, tunnel = reverse_with(connection)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(1)
    await finish(tunnels)
    connection.closed = True
    tunnels.connection_closed(tunnel)
    await asyncio.sleep(60)
    assert story.events == []


@pytest.mark.loop("virtual")
async def test_a_silent_tunnel_gives_way_to_the_workers_new_one():
    frozen = Worker(frozen=True)
    tunnels, _ = reverse_with(frozen)
    story = Story()
    story.start(tunnels)
    assert tunnels.begin_install() is None
    assert tunnels.silent_since() is None
    began = now()
    await asyncio.sleep(3)
    assert story.names == ["lost"]
    assert began <= tunnels.silent_since() <= began + 1
    tunnels.reported()
    install(tunnels, Worker())
    await asyncio.sleep(31)
    assert story.names == ["lost", "recovered"]
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_the_tunnel_of_a_worker_that_is_silent_as_a_whole_is_not_for_others():
    frozen = Worker()
    tunnels, tunnel = reverse_with(frozen)
    story = Story()
    story.start(tunnels)
    await asyncio.sleep(0.5)
    tunnels.reported()
    frozen.frozen = True  # half a second before the next probe
    await asyncio.sleep(4)
    assert story.names == ["lost"]
    assert tunnel.suspected
    assert tunnels.begin_install() is None
    frozen.thaw()
    tunnels.reported()
    await asyncio.sleep(0)
    assert story.names == ["lost", "recovered"]
    assert tunnels.begin_install() is None
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_tunnel_that_closed_gives_way_whether_its_worker_reports_or_not():
    connection = Worker(frozen=True)
    tunnels, tunnel = reverse_with(connection)
    Story().start(tunnels)
    await asyncio.sleep(3)
    assert tunnels.begin_install() is None
    connection.closed = True
    tunnels.connection_closed(tunnel)
    install(tunnels, Worker())
    await finish(tunnels)


# --- direct ----------------------------------------------------------------------------------------------------------


class Dialer:
    """Dials fake connections, takes `delay` seconds, fails while `error` is set."""

    def __init__(self, count=1):
        self.count = count
        self.error = None
        self.delay = 0.0
        self.sets = []

    async def __call__(self, tunnels):
        await asyncio.sleep(self.delay)
        if self.error:
            raise TunnelError(self.error)
        connections = [Worker() for _ in range(self.count)]
        self.sets.append(connections)
        return [Tunnel(connection, LineFraming(), "w1") for connection in connections]


def direct_with(dialer):
    return DirectTunnels(identity(reverse=False), SETTINGS, Metrics(), dialer, clock=now)


def close(tunnels, connection):
    connection.closed = True
    for tunnel in tunnels.slot.members:
        if tunnel.connection is connection:
            tunnels.connection_closed(tunnel)


@pytest.mark.loop("virtual")
async def test_the_first_step_dials_a_direct_worker_and_its_round_trip_is_known_within_the_same_update():
    dialer = Dialer(count=3)
    tunnels = direct_with(dialer)
    assert await tunnels.tunnel_step() is TunnelStep.CONNECTED
    assert len(tunnels.slot.members) == 3
    assert await tunnels.rtt_ns() is not None


@pytest.mark.loop("virtual")
async def test_an_unreachable_direct_worker_is_unavailable_at_once_if_it_never_was_connected():
    dialer = Dialer()
    dialer.error = "quic connect timed out"
    tunnels = direct_with(dialer)
    with capture_logs() as logs:
        assert await tunnels.tunnel_step() is TunnelStep.UNAVAILABLE
    assert logs == [
        {
            "event": "quic preconnect failed",
            "log_level": "warning",
            "inference_server_id": "w1",
            "inference_server_url": "quic://127.0.0.1:4433",
            "error": "quic connect timed out",
        }
    ]


@pytest.mark.loop("virtual")
async def test_a_direct_worker_that_was_connected_has_two_seconds_of_grace():
    dialer = Dialer()
    tunnels = direct_with(dialer)
    await tunnels.tunnel_step()
    close(tunnels, dialer.sets[0][0])
    dialer.error = "quic connect timed out"
    steps = []
    for _ in range(4):
        steps.append(await tunnels.tunnel_step())
        await asyncio.sleep(1)
    assert steps == [TunnelStep.CONNECTED, TunnelStep.CONNECTED, TunnelStep.UNAVAILABLE, TunnelStep.UNAVAILABLE]
    dialer.error = None
    assert await tunnels.tunnel_step() is TunnelStep.CONNECTED


@pytest.mark.loop("virtual")
async def test_a_direct_worker_is_lost_only_after_the_grace_so_that_attempts_can_reconnect_it():
    dialer = Dialer()
    tunnels = direct_with(dialer)
    await tunnels.tunnel_step()
    story = Story()
    story.start(tunnels)
    close(tunnels, dialer.sets[0][0])
    assert story.events == []
    await tunnels.reconnect()
    await asyncio.sleep(5)
    assert story.events == []
    close(tunnels, dialer.sets[1][0])
    await asyncio.sleep(5)
    assert story.names == ["lost"]
    await finish(tunnels)


@pytest.mark.loop("virtual")
async def test_a_direct_set_that_lost_a_member_is_rebuilt_whole_and_the_old_one_closes_when_idle():
    dialer = Dialer(count=2)
    tunnels = direct_with(dialer)
    await tunnels.tunnel_step()
    old = dialer.sets[0]
    sink = RecordingSink()
    await tunnels.open(HEAD, sink, end=True)
    running = next(connection for connection in old if connection.streams)
    close(tunnels, next(connection for connection in old if not connection.streams))
    assert await tunnels.tunnel_step() is TunnelStep.CONNECTED
    assert not tunnels.slot.needs_replenishing()
    assert not running.closed
    running.streams[0].handler.on_data(b"H200\n", True)
    assert sink.events == [200, "end"]
    assert running.closed


@pytest.mark.loop("virtual")
async def test_a_failed_replenishment_is_only_logged():
    dialer = Dialer(count=2)
    tunnels = direct_with(dialer)
    await tunnels.tunnel_step()
    close(tunnels, dialer.sets[0][0])
    dialer.error = "quic connect timed out"
    with capture_logs() as logs:
        assert await tunnels.tunnel_step() is TunnelStep.CONNECTED
    assert [line["event"] for line in logs] == ["failed to replenish direct tunnel connection set"]
    assert tunnels.healthy()


@pytest.mark.loop("virtual")
async def test_a_failed_reconnect_keeps_the_old_set():
    dialer = Dialer()
    tunnels = direct_with(dialer)
    await tunnels.tunnel_step()
    dialer.error = "refused"
    with pytest.raises(TunnelError, match="refused"):
        await tunnels.reconnect()
    assert tunnels.healthy()


@pytest.mark.loop("virtual")
async def test_concurrent_reconnects_share_one_dial_which_survives_a_caller_that_gives_up():
    dialer = Dialer()
    dialer.delay = 1
    tunnels = direct_with(dialer)
    callers = [asyncio.create_task(tunnels.reconnect()) for _ in range(5)]
    await asyncio.sleep(0.5)
    callers[0].cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] + [type(None)] * 4
    assert len(dialer.sets) == 1
    assert tunnels.healthy()


@pytest.mark.loop("virtual")
async def test_a_registration_that_ends_while_dialling_is_unavailable_and_keeps_no_connection():
    dialer = Dialer()
    dialer.delay = 1
    tunnels = direct_with(dialer)
    asyncio.get_running_loop().call_later(0.5, tunnels.retire)
    assert await tunnels.tunnel_step() is TunnelStep.UNAVAILABLE
    assert now() == 0.5
    await tunnels.wait_retired()
    assert await tunnels.tunnel_step() is TunnelStep.UNAVAILABLE
    assert dialer.sets == []
