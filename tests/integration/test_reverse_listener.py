"""The reverse handshake over real QUIC: every refusal in its order, every misbehaviour at its sender's cost only."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

import certs
from router.ports.tunnels import TunnelError, TunnelStep
from router.tunnels.pending import PER_SERVER_ID
from support.reverse_listener import CERTIFICATE, HEAD_WITH_QUERY, SETTINGS, Caller, Tokens, reverse_listener, serves
from support.scripted_worker import answer_to
from support.waiting import eventually
from tunnel_protocol import capnp
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls

# --- accepted --------------------------------------------------------------------------------------------------------


async def test_a_registered_worker_is_accepted_and_serves():
    async with reverse_listener(Tokens({"t": "fn-1"})) as harness:
        registration = harness.register(routing_key="fn-1")
        with capture_logs() as logs:
            worker = await harness.tunnel("w1", "t")
        caller = Caller()
        exchange = await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=False)
        assert exchange.send_body(b"par")
        assert exchange.send_body(b"ts")
        exchange.end_body()
        request = await worker.next_request()
        await request.until(lambda r: r.complete)
        assert (request.head.method, request.head.path) == (b"POST", b"/v1/chat/completions?x=1")
        assert request.head.headers[-3:] == HEAD_WITH_QUERY.headers
        assert request.body == b"parts"
        request.answer(201, b"done")
        assert await caller.done() == (201, b"done", None)
        lines = {line["event"]: line for line in logs}
        assert lines["reverse handshake authenticated"]["inference_server_id"] == "w1"
        assert lines["reverse handshake authenticated"]["routing_key"] == "fn-1"
        established = lines["reverse tunnel connection established"]
        assert established["log_level"] == "info"
        assert established["inference_server_id"] == "w1"


async def test_a_handshake_in_single_bytes_is_accepted():
    async with reverse_listener() as harness:
        harness.register()
        worker = await harness.dial()
        talk = await worker.open()
        for byte in capnp.encode_handshake("w1", "token"):
            talk.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await answer_to(talk) == (True, "")  # without any FIN


async def test_the_token_reaches_the_authenticator_as_it_was_presented():
    async with reverse_listener() as harness:
        for token in (None, "", "secret"):
            worker = await harness.dial()
            await worker.handshake("nobody", token)
        assert harness.tokens.seen == [None, "", "secret"]


async def test_requests_sent_before_the_answer_to_the_handshake_was_read_are_served():
    async with reverse_listener() as harness:
        registration = harness.register()
        await registration.tunnels.tunnel_step()
        worker = await harness.dial()
        caller = Caller()

        async def open_at_once():
            assert await registration.tunnels.tunnel_step() is TunnelStep.CONNECTED
            await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=True)

        opening = asyncio.create_task(open_at_once())
        talk = await worker.open()
        talk.send(capnp.encode_handshake("w1", None), fin=True)
        request = await worker.next_request()
        request.answer()
        assert (await caller.done())[0] == 200
        assert await answer_to(talk) == (True, "")
        await opening


async def test_a_probe_through_the_tunnel_takes_less_than_a_second_and_carries_the_documented_head():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        rtt_ns = await registration.tunnels.rtt_ns()
        assert 0 < rtt_ns < 1_000_000_000
        (probe,) = worker.probes
        assert (probe.head.method, probe.head.path) == (b"GET", b"/health")
        assert probe.head.headers[-3:] == [
            (b"x-request-id", b"stargate-health-w1"),
            (b"x-model", b"stargate-health"),
            (b"x-input-tokens", b"0"),
        ]
        assert probe.body == b""


# --- refused, in order -----------------------------------------------------------------------------------------------


REFUSALS = [
    ("", "bad", "empty inference_server_id"),
    ("unknown", "bad", "authentication failed"),
    ("live", "bad", "authentication failed"),
    ("unknown", "k1", "unauthorized inference_server_id"),
    ("direct", "k1", "unauthorized inference_server_id"),
    ("live", "k2", "routing key mismatch"),
    ("live", None, "routing key mismatch"),
    ("live", "k1", "duplicate connection"),
]


@pytest.mark.parametrize(("worker_id", "token", "reason"), REFUSALS)
async def test_a_refusal_names_the_first_check_that_failed_and_arrives_before_the_close(worker_id, token, reason):
    async with reverse_listener(Tokens({"k1": "fn-1", "k2": "fn-2"})) as harness:
        live = harness.register("live", routing_key="fn-1")
        harness.register("direct", routing_key="fn-1", reverse=False)
        first = await harness.tunnel("live", "k1")
        second = await harness.dial()
        assert await second.handshake(worker_id, token) == (False, reason)
        assert await second.why_closed() == (0, "")
        assert await serves(live, first)


async def test_refusals_are_logged_with_what_an_operator_needs():
    async with reverse_listener(Tokens({"k2": "fn-2"})) as harness:
        harness.register(routing_key="fn-1")
        with capture_logs() as logs:
            for worker_id, token in (("w1", "bad"), ("nobody", None), ("w1", "k2")):
                await (await harness.dial()).handshake(worker_id, token)
        lines = [line for line in logs if line["log_level"] == "warning"]
        assert [line["event"] for line in lines] == [
            "reverse handshake authentication failed",
            "reverse handshake NACK: unauthorized inference_server_id",
            "reverse handshake NACK: routing key mismatch",
        ]
        assert (lines[0]["error"], lines[0]["inference_server_id"]) == ("unknown worker token", "w1")
        assert lines[0]["peer"] == "127.0.0.1"
        assert harness.metrics.worker_credential_failures_total.value(("tunnel_token", "w1", "127.0.0.1")) == 1
        reasons = ("authentication failed", "unauthorized inference_server_id", "routing key mismatch")
        assert [harness.metrics.reverse_handshakes_total.value((reason,)) for reason in reasons] == [1, 1, 1]
        assert (lines[2]["quic_routing_key"], lines[2]["stored_routing_key"]) == ("fn-2", "fn-1")
        assert not any("bad" in str(value) for line in logs for value in line.values())


# --- duplicates and replacement --------------------------------------------------------------------------------------


async def test_a_tunnel_that_has_closed_is_replaced():
    async with reverse_listener() as harness:
        registration = harness.register()
        first = await harness.tunnel()
        with capture_logs() as logs:
            await first.close()
            await eventually(lambda: not registration.tunnels.healthy())
        assert {"event": "reverse tunnel connection closed, removed from pool", "log_level": "warning"} | {
            "inference_server_id": "w1"
        } in logs
        second = await harness.tunnel()
        assert await serves(registration, second)


async def test_of_two_racing_handshakes_one_wins():
    async with reverse_listener() as harness:
        registration = harness.register()
        harness.tokens.gate = asyncio.Event()
        workers = [await harness.dial(), await harness.dial()]
        racing = [asyncio.create_task(worker.handshake("w1")) for worker in workers]
        await eventually(lambda: harness.tokens.waiting == 2)
        harness.tokens.gate.set()
        results = await asyncio.gather(*racing)
        assert sorted(results) == [(False, "duplicate connection"), (True, "")]
        assert await serves(registration, workers[results.index((True, ""))])


async def test_a_successor_under_the_same_id_starts_without_a_connection_and_gets_its_own():
    async with reverse_listener() as harness:
        old = harness.register()
        first = await harness.tunnel()
        harness.end(old)
        successor = harness.register()
        assert not successor.tunnels.healthy()
        second = await harness.tunnel()
        with pytest.raises(TunnelError):
            await old.tunnels.open(HEAD_WITH_QUERY, Caller(), end=True)
        await first.close()
        assert await serves(successor, second)


async def test_a_registration_that_ends_during_the_handshake_is_unauthorized():
    async with reverse_listener() as harness:
        registration = harness.register()
        harness.tokens.gate = asyncio.Event()
        worker = await harness.dial()
        asking = asyncio.create_task(worker.handshake("w1"))
        await eventually(lambda: harness.tokens.waiting == 1)
        harness.end(registration)
        harness.tokens.gate.set()
        assert await asking == (False, "unauthorized inference_server_id")


async def test_a_worker_that_leaves_during_its_authentication_is_forgotten():
    async with reverse_listener() as harness:
        registration = harness.register()
        harness.tokens.gate = asyncio.Event()
        worker = await harness.dial()
        talk = await worker.open()
        talk.send(capnp.encode_handshake("w1", None), fin=True)
        await eventually(lambda: harness.tokens.waiting == 1)
        await worker.close()
        await eventually(lambda: harness.listener.pending == 0)
        harness.tokens.gate.set()
        await asyncio.sleep(0)
        assert not registration.tunnels.healthy()


# --- misbehaviour ----------------------------------------------------------------------------------------------------


async def costs_only_its_sender(harness, misbehave, reason=""):
    """`misbehave(worker)` gets that worker's connection closed; a worker beside it connects and serves."""
    registration = harness.register()
    bad = await harness.dial()
    await misbehave(bad)
    good = await harness.tunnel()
    assert await serves(registration, good)
    assert await bad.why_closed() == (0, reason)
    assert await serves(registration, good)
    assert harness.listener.pending == 0


def garbage(data, *, fin):
    async def misbehave(worker):
        talk = await worker.open()
        talk.send(data, fin=fin)

    return misbehave


MALFORMED = {
    "nothing": (b"", True),
    "a torn message": (capnp.encode_handshake("w1", None)[:-3], True),
    "too many segments": (b"\xff\xff\xff\x7f" + bytes(12), False),
    "an announced gibibyte": (b"\x00\x00\x00\x00\xff\xff\xff\x07", False),
    "pointers to nowhere": (b"\x00\x00\x00\x00\x01\x00\x00\x00" + b"\xfc\xff\xff\x7f\x00\x00\x02\x00", True),
    "an id that is not UTF-8": (capnp.encode_handshake("w1", None).replace(b"w1", b"\xff\xfe"), True),
    "http": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", True),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_handshake_costs_only_its_sender(case):
    async with reverse_listener() as harness:
        data, fin = MALFORMED[case]
        await costs_only_its_sender(harness, garbage(data, fin=fin))


async def test_an_oversized_handshake_costs_only_its_sender():
    async with reverse_listener() as harness:
        data = capnp.encode_handshake("w1", "x" * harness.settings.max_handshake_bytes)
        await costs_only_its_sender(harness, garbage(data, fin=True))


async def test_a_stalled_handshake_costs_only_its_sender():
    async with reverse_listener(settings=replace(SETTINGS, handshake_timeout_ms=300)) as harness:
        await costs_only_its_sender(harness, garbage(capnp.encode_handshake("w1", None)[:9], fin=False))


async def test_a_connection_that_says_nothing_costs_only_its_sender():
    async with reverse_listener(settings=replace(SETTINGS, handshake_timeout_ms=300)) as harness:

        async def silent(_):
            await eventually(lambda: harness.listener.pending == 1)

        await costs_only_its_sender(harness, silent)


async def test_an_abandoned_handshake_costs_only_its_sender():
    async with reverse_listener() as harness:

        async def abandon(worker):
            talk = await worker.open()
            talk.send(capnp.encode_handshake("w1", None)[:9])
            await asyncio.sleep(0)
            talk.stream.reset(0)

        await costs_only_its_sender(harness, abandon)


async def test_a_hanging_authentication_ends_with_the_handshake_deadline():
    async with reverse_listener(settings=replace(SETTINGS, handshake_timeout_ms=300)) as harness:
        harness.register()
        harness.tokens.gate = asyncio.Event()
        worker = await harness.dial()
        talk = await worker.open()
        talk.send(capnp.encode_handshake("w1", None), fin=True)
        assert await worker.why_closed() == (0, "")
        assert harness.listener.pending == 0


async def test_streams_a_worker_opens_after_its_handshake_are_refused():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        talk = await worker.open()
        talk.send(b"hello?")
        await talk.until(lambda t: t.reset and t.stopped)
        assert await serves(registration, worker)


async def test_when_too_many_are_silent_the_oldest_makes_way_and_the_newcomer_gets_in():
    async with reverse_listener(settings=replace(SETTINGS, max_pending_handshakes=2)) as harness:
        registration = harness.register()
        silent = [await harness.dial(), await harness.dial()]
        await eventually(lambda: harness.listener.pending == 2)
        worker = await harness.tunnel()
        await eventually(lambda: sum(peer.connection.error is not None for peer in silent) == 1)
        assert await serves(registration, worker)
        assert harness.listener.pending == 1


async def test_claims_of_one_id_compete_with_each_other_only():
    async with reverse_listener() as harness:
        harness.register()
        harness.tokens.gate = asyncio.Event()
        claiming = [await harness.dial() for _ in range(PER_SERVER_ID.pieces + 1)]
        for peer in claiming:
            (await peer.open()).send(capnp.encode_handshake("w1", None), fin=True)
        await eventually(lambda: sum(peer.connection.error is not None for peer in claiming) == 1)
        other = await harness.dial()
        (await other.open()).send(capnp.encode_handshake("w2", None), fin=True)
        await eventually(lambda: harness.listener.pending == PER_SERVER_ID.pieces + 1)
        assert sum(peer.connection.error is not None for peer in claiming) == 1


# --- exchanges on a real tunnel --------------------------------------------------------------------------------------


async def test_requests_beyond_the_workers_stream_limit_wait_their_turn():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel(settings=QuicSettings(max_streams_bidi=2))
        callers = [Caller() for _ in range(6)]
        opening = [
            asyncio.create_task(registration.tunnels.open(HEAD_WITH_QUERY, caller, end=True)) for caller in callers
        ]
        first = [await worker.next_request(), await worker.next_request()]
        assert sum(task.done() for task in opening) == 2
        assert registration.tunnels.free_streams() == 0
        for request in first:
            request.answer(200, b"1")
        for _ in range(4):
            (await worker.next_request()).answer(200, b"2")
        results = [await caller.done() for caller in callers]
        assert results == [(200, b"1", None)] * 2 + [(200, b"2", None)] * 4


async def test_a_caller_that_gives_up_waiting_for_a_stream_leaves_the_queue():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel(settings=QuicSettings(max_streams_bidi=1))
        blocker = Caller()
        await registration.tunnels.open(HEAD_WITH_QUERY, blocker, end=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await registration.tunnels.open(HEAD_WITH_QUERY, Caller(), end=True)
        (await worker.next_request()).answer()
        await blocker.done()
        assert await serves(registration, worker)


async def test_loss_of_the_tunnel_in_the_middle_of_a_response_is_never_a_clean_end():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        caller = Caller()
        await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=True)
        request = await worker.next_request()
        request.send_head()
        request.send_body(b"half")
        await eventually(lambda: caller.body == b"half")
        await worker.close()
        status, body, error = await caller.done()
        assert (status, body) == (200, b"half")
        assert "connection to inference server 'w1' is closed" in error.reason


async def test_a_broken_response_costs_its_stream_and_not_its_neighbour():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        bad, good = Caller(), Caller()
        await registration.tunnels.open(HEAD_WITH_QUERY, bad, end=False)
        await registration.tunnels.open(HEAD_WITH_QUERY, good, end=True)
        broken, fine = await worker.next_request(), await worker.next_request()
        broken.send(b"\xff" * 64)
        assert (await bad.done())[2] is not None
        await broken.until(lambda r: r.stopped and r.reset)
        fine.answer(200, b"fine")
        assert await good.done() == (200, b"fine", None)


async def test_a_cancelled_request_is_reset_and_stopped_at_the_worker():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        exchange = await registration.tunnels.open(HEAD_WITH_QUERY, Caller(), end=False)
        request = await worker.next_request()
        exchange.cancel()
        await request.until(lambda r: r.stopped and r.reset)
        assert await serves(registration, worker)


async def test_a_request_counts_as_accepted_once_the_worker_has_all_of_it():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        caller = Caller()
        exchange = await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=False)
        assert not exchange.upload_acknowledged()
        exchange.send_body(b"x" * 100_000)
        exchange.end_body()
        request = await worker.next_request()
        await eventually(exchange.upload_acknowledged)
        request.stream.reset(0)
        assert (await caller.done())[2].accepted


async def test_retiring_a_registration_leaves_its_running_responses_alone():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        caller = Caller()
        await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=True)
        request = await worker.next_request()
        request.send_head()
        harness.end(registration)
        request.send_body(b"still")
        await eventually(lambda: caller.body == b"still")
        assert not worker.closed.done()
        request.send_body(b" here")
        request.end()
        assert await caller.done() == (200, b"still here", None)
        assert await worker.why_closed() == (0, "")


async def test_a_worker_that_stops_answering_probes_is_lost_and_recovers():
    settings = replace(SETTINGS, health_interval_ms=50, silence_ms=200)
    async with reverse_listener(settings=settings) as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        story = []
        registration.tunnels.start(lambda: story.append("lost"), lambda: story.append("recovered"))
        await eventually(lambda: len(worker.probes) > 2)
        worker.answers_probes = False
        await eventually(lambda: story == ["lost"])
        assert registration.tunnels.healthy()
        worker.answers_probes = True
        worker.probes[-1].answer()
        await eventually(lambda: story == ["lost", "recovered"])
        harness.end(registration)
        await registration.tunnels.wait_retired()


# --- identity of the listener, drain, shutdown -----------------------------------------------------------------------


async def test_a_verifying_worker_connects_with_the_right_anchor_and_only_with_it():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel(trust_pem=CERTIFICATE.cert_pem)
        assert await registration.tunnels.rtt_ns() is not None
        assert await serves(registration, worker)
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(ConnectionClosedError):
                    await harness.dial(trust_pem=certs.make_self_signed(["stargate"]).cert_pem)
            counted = ("router_certificate", "", "127.0.0.1")
            await eventually(lambda: harness.metrics.worker_credential_failures_total.value(counted) == 2)
        told = [line for line in logs if "this router's certificate" in line["event"]]
        assert [(line["log_level"], line["peer"]) for line in told] == [("warning", "127.0.0.1")]


async def test_a_replaced_certificate_is_for_new_handshakes_and_leaves_tunnels_alone():
    renewed = certs.make_self_signed(["stargate"])
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel(trust_pem=CERTIFICATE.cert_pem)
        harness.listener.replace_tls(ServerTls(renewed.cert_pem, renewed.key_pem))
        assert await serves(registration, worker)
        second = harness.register("w2")
        with pytest.raises((OSError, Exception)):
            await harness.dial(trust_pem=CERTIFICATE.cert_pem)
        assert await serves(second, await harness.tunnel("w2", trust_pem=renewed.cert_pem))
        assert await serves(registration, worker)


async def test_draining_refuses_new_connections_and_keeps_every_tunnel():
    async with reverse_listener() as harness:
        registration = harness.register()
        worker = await harness.tunnel()
        harness.listener.stop_accepting()
        with pytest.raises((OSError, Exception)):
            await harness.dial()
        assert await serves(registration, worker)


async def test_shutdown_tells_every_connection_even_one_that_never_spoke():
    async with reverse_listener() as harness:
        harness.register()
        worker = await harness.tunnel()
        silent = await harness.dial()
        await eventually(lambda: harness.listener.pending == 1)
        await harness.listener.close()
        assert await worker.why_closed() == (0, "shutdown")
        assert await silent.why_closed() == (0, "shutdown")
        assert harness.listener.pending == 0


async def test_the_listener_tells_where_it_listens():
    with capture_logs() as logs:
        async with reverse_listener() as harness:
            assert logs == [
                {"event": "reverse tunnel listener started", "log_level": "info", "addr": f"127.0.0.1:{harness.port}"}
            ]
