"""`RegisterInferenceServer` over real gRPC: admission, updates, acks, ends."""

import asyncio
import gc
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from router.control_plane.admission import RefusedError
from router.control_plane.registration_stream import RegistrationStream
from router.control_plane.worker_auth import StaticAuthenticator
from router.grpc.call import framed
from router.ports.tunnels import TunnelStep
from router.registry import TargetKey
from support.control_plane import ControlPlaneInMemory, FakeTunnels, control_plane, report
from support.registered_worker import ACTIVE, INACTIVE
from support.waiting import eventually
from tunnel_protocol.control import stargate_pb2

pytestmark = pytest.mark.loop("grpc")


TOKENS = StaticAuthenticator({"token-a": "tenant-a", "token-b": " tenant-b ", "open": ""})


async def test_headers_come_before_the_first_message_is_read() -> None:
    async with control_plane() as client:
        worker = await client.open()  # waits for response headers without having written anything
        await worker.update(report("w", "m"))


async def test_a_later_message_beyond_a_bound_ends_its_registration_and_no_other() -> None:
    async with control_plane() as client:
        await client.register("v")
        worker, _ = await client.register("w")
        await worker.send(report("w", "m" * 1_100))
        code, text = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "registration.model_name" in text
        assert client.router.routable("m") == ["v"]


async def test_an_equal_report_is_acknowledged_and_applied_but_not_read_again() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w", last_mean_input_tps=10.0)
        (before,) = client.router.registry.target(TargetKey(None, "m")).candidates()[0].cluster.backends()
        tunnels.rtt = 9_000_000
        await worker.update(report("w", "m", last_mean_input_tps=10.0))
        (after,) = client.router.registry.target(TargetKey(None, "m")).candidates()[0].cluster.backends()
        assert after.stats is before.stats
        assert (after.rtt_ns, after.received_at > before.received_at) == (9_000_000, True)
        await worker.update(report("w", "m", last_mean_input_tps=11.0))
        assert client.router.registry.target(TargetKey(None, "m")).candidates()[0].last_mean_input_tps == 11.0
        await worker.send(report("w", "m", url="quic://127.0.0.1:9"))
        assert await worker.status() == (grpc.StatusCode.INVALID_ARGUMENT, "inference_server_url changed")


async def test_a_worker_whose_report_stays_the_same_is_withdrawn_and_published_with_its_tunnel() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.lose()
        assert client.router.routable("m") == []
        tunnels.step = TunnelStep.REVERSE_DISCONNECTED
        await worker.update(report("w", "m"))
        assert client.router.routable("m") == []
        tunnels.step = None
        tunnels.recover()
        await worker.update(report("w", "m"))
        assert client.router.routable("m") == ["w"]


@pytest.mark.parametrize("refused", [report("x" * 2_000, "m"), report("w", "m", url="http://engine:1")])
async def test_a_refused_registration_leaves_nothing_that_only_the_collector_finds(refused: Any) -> None:
    """Messages of 1.6 MB, 12 MB decoded: 117 of them held 1.5 GB until the next full collection."""
    async with control_plane() as client:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                worker = await client.open()
                await worker.send(refused)
                assert (await worker.status())[0] is grpc.StatusCode.INVALID_ARGUMENT
            held = (RegistrationStream, RefusedError)
            await eventually(lambda: not any(isinstance(one, held) for one in gc.get_objects()))
        finally:
            gc.enable()


async def test_live_id_is_refused_to_a_second_stream_and_keeps_serving() -> None:
    async with control_plane() as client:
        await client.register("w")
        second = await client.open()
        await second.send(report("w", "m"))
        assert await second.status() == (
            grpc.StatusCode.ALREADY_EXISTS,
            "inference_server_id 'w' is already registered",
        )
        assert client.router.routable("m") == ["w"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (report("", "m"), "inference_server_id is empty"),
        (
            stargate_pb2.InferenceServerRegistration(inference_server_id="w"),
            "inference_server_url is empty",
        ),
        (
            report("w", url="http://10.0.0.1:80"),
            "invalid inference_server_url: inference_server_url scheme must be quic",
        ),
        (
            report("w", url="quic://10.0.0.1:80", reverse=True),
            "invalid inference_server_url: inference_server_url scheme must be http or https",
        ),
    ],
)
async def test_bad_first_message_ends_the_stream_with_its_reason(message: Any, text: str) -> None:
    async with control_plane() as client:
        worker = await client.open()
        await worker.send(message)
        assert await worker.status() == (grpc.StatusCode.INVALID_ARGUMENT, text)
        assert client.router.registry.registrations() == []


async def test_reverse_worker_is_refused_without_a_reverse_listener() -> None:
    async with control_plane(reverse_tunnel_target="") as client:
        worker = await client.open()
        await worker.send(report("w", reverse=True))
        assert await worker.status() == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "reverse tunnel flag set but no reverse tunnel config",
        )


async def test_direct_worker_is_admitted_by_a_router_in_reverse_mode() -> None:
    async with control_plane() as client:
        await client.register("w")
        assert client.router.routable("m") == ["w"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"reverse": True, "url": "quic://127.0.0.1:8443"}, "reverse tunnel flag changed"),
        ({"url": "quic://127.0.0.1:9"}, "inference_server_url changed"),
        ({"server_id": "x", "cluster_id": "c"}, "inference_server_id changed"),
        ({"cluster_id": "d"}, "cluster_id changed"),
        ({"cluster_id": ""}, "cluster_id changed"),
    ],
)
async def test_changed_identity_ends_the_registration(change: dict[str, Any], text: str) -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w", cluster_id="c")
        later = {"server_id": "w", "cluster_id": "c", **change}
        await worker.send(report(later.pop("server_id"), "m", **later))
        assert await worker.status() == (grpc.StatusCode.INVALID_ARGUMENT, text)
        assert client.router.routable("m") == []
        assert client.router.registry.live("w") is None


async def test_empty_cluster_and_own_id_are_the_same_cluster() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w")
        await worker.update(report("w", "m", cluster_id="w"))
        await worker.update(report("w", "m", cluster_id=""))


async def test_routing_key_comes_from_authentication_trimmed() -> None:
    async with control_plane(authenticator=TOKENS) as client:
        await client.register("a", credential="token-a")
        await client.register("b", credential="token-b")
        await client.register("c", credential="open")
        assert client.router.routable("m", "tenant-a") == ["a"]
        assert client.router.routable("m", "tenant-b") == ["b"]
        assert client.router.routable("m") == ["c"]


@pytest.mark.parametrize("authorization", ["Bearer nonsense", "bearer token-a", "Basic token-a", None])
async def test_refused_token_fails_the_call_before_any_headers(authorization: str | None) -> None:
    async with control_plane(authenticator=TOKENS) as client:
        metadata = [] if authorization is None else [("authorization", authorization)]
        call = client.control.RegisterInferenceServer(metadata=metadata)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call.details() == "authentication failed"
        assert b'registrations_refused_total{reason="authentication"} 1' in client.router.shown_metrics()


async def test_status_and_model_changes_take_effect_with_their_update() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w", ("m", "n"))
        assert (client.router.routable("m"), client.router.routable("n")) == (["w"], ["w"])
        message = report("w", "m", "n")
        message.models["n"].status = INACTIVE
        await worker.update(message)
        assert (client.router.routable("m"), client.router.routable("n")) == (["w"], [])
        assert client.router.registry.is_advertised(TargetKey(None, "n"))
        await worker.update(report("w", "m"))
        assert not client.router.registry.is_advertised(TargetKey(None, "n"))
        message.models["n"].status = 7
        await worker.update(message)
        assert client.router.routable("n") == []
        await worker.update(report("w"))
        assert client.router.registry.all_active_models() == []


async def test_model_without_stats_is_inactive_but_advertised() -> None:
    async with control_plane() as client:
        worker = await client.open()
        message = report("w", "m")
        message.models["m"].ClearField("stats")
        await worker.update(message)
        assert client.router.routable("m") == []
        assert client.router.registry.is_advertised(TargetKey(None, "m"))


async def test_active_gauge_follows_and_stays_at_zero() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w")
        assert client.router.gauge("m") == "1"
        await worker.update(report("w", "m", status=INACTIVE))
        assert client.router.gauge("m") == "0"
        await worker.update(report("w", "other", status=INACTIVE))
        assert client.router.gauge("other") is None


async def test_acks_carry_the_same_two_addresses_for_every_worker() -> None:
    async with control_plane(reverse_tunnel_dial_addr=" lb.example:444 ") as client:
        direct = await client.open()
        reverse = await client.open()
        expected = stargate_pb2.InferenceServerAck(
            reverse_tunnel_target="router-0.stargate.external:50072",
            reverse_tunnel_pylon_dial_addr="lb.example:444",
        )
        for _ in range(30):
            assert await direct.update(report("d", "m")) == expected
            assert await reverse.update(report("r", "m", reverse=True)) == expected


@pytest.mark.parametrize(
    ("settings", "target", "dial"),
    [
        ({"reverse_tunnel_target": ""}, "", ""),
        ({"reverse_tunnel_target": "", "reverse_tunnel_dial_addr": "x:1"}, "", ""),
        ({"reverse_tunnel_target": "h:1", "reverse_tunnel_dial_addr": "  "}, "h:1", "h:1"),
    ],
)
async def test_ack_without_listener_is_empty_and_without_override_names_the_target(
    settings: dict[str, str], target: str, dial: str
) -> None:
    async with control_plane(**settings) as client:
        worker = await client.open()
        ack = await worker.update(report("w", "m"))
        assert (ack.reverse_tunnel_target, ack.reverse_tunnel_pylon_dial_addr) == (target, dial)


async def test_reverse_worker_is_routable_only_once_its_tunnel_is_connected() -> None:
    async with control_plane() as client:
        worker = await client.open()
        await worker.update(report("w", "m", reverse=True))
        assert client.router.routable("m") == []
        await worker.update(report("w", "m", reverse=True))
        assert client.router.routable("m") == []
        client.router.tunnels["w"].open_connection = True
        await worker.update(report("w", "m", reverse=True))
        assert client.router.routable("m") == ["w"]


async def test_active_worker_without_round_trip_is_withdrawn_but_acknowledged() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.rtt = None
        await worker.update(report("w", "m"))
        assert client.router.routable("m") == []
        tunnels.rtt = 0  # as good a round trip as any
        await worker.update(report("w", "m"))
        assert client.router.routable("m") == ["w"]


async def test_unreachable_direct_worker_gets_no_ack_and_loses_its_routes() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.step = TunnelStep.UNAVAILABLE
        await worker.send(report("w", "m"))
        await eventually(lambda: client.router.routable("m") == [])
        assert client.router.registry.is_advertised(TargetKey(None, "m"))
        tunnels.step = TunnelStep.CONNECTED
        assert await worker.update(report("w", "m"))
        assert client.router.routable("m") == ["w"]
        await worker.call.done_writing()
        assert (await worker.status())[0] is grpc.StatusCode.OK  # and no second ack came in between


async def test_tunnel_lost_while_its_round_trip_was_measured_is_not_published() -> None:
    async with control_plane() as client:

        class Losing(FakeTunnels):
            async def rtt_ns(self) -> int | None:
                self.open_connection = False
                return 1

        client.router.make_tunnels = Losing  # type: ignore[assignment,method-assign]
        client.router.service._streams.make_tunnels = Losing
        worker = await client.open()
        await worker.update(report("w", "m"))
        assert client.router.routable("m") == []


async def test_half_close_ends_the_registration_with_ok() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        await worker.call.done_writing()
        assert (await worker.status())[0] is grpc.StatusCode.OK
        assert client.router.routable("m") == []
        assert tunnels.retired.is_set()
        await client.register("w")


async def test_half_close_before_any_message_ends_with_ok() -> None:
    async with control_plane() as client:
        worker = await client.open()
        await worker.call.done_writing()
        assert (await worker.status())[0] is grpc.StatusCode.OK


async def test_cancelled_stream_gives_back_everything() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        worker.call.cancel()
        await eventually(lambda: client.router.registry.live("w") is None)
        assert client.router.routable("m") == []
        assert tunnels.retired.is_set()
        await client.register("w")
        # The end of the worker's half may be seen before the cancellation of the call.
        reasons = (
            b'registrations_ended_total{reason="cancelled"} 1',
            b'registrations_ended_total{reason="closed"} 1',
        )
        await eventually(lambda: any(reason in client.router.shown_metrics() for reason in reasons))


async def test_cancelled_stream_that_waits_for_its_tunnel_gives_back_everything() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.step_gate.clear()
        tunnels.waiting_in_step.clear()
        await worker.send(report("w", "m"))
        await tunnels.waiting_in_step.wait()
        worker.call.cancel()
        await eventually(lambda: client.router.registry.live("w") is None)


async def test_undecodable_message_ends_the_registration_with_ok() -> None:
    async with control_plane() as client:
        call = client.control_channel.stream_stream("/stargate.StargateControlPlane/RegisterInferenceServer")()
        await call.write(report("w", "m").SerializeToString())
        await call.read()
        assert client.router.routable("m") == ["w"]
        await call.write(b"\xff\xff\xff")
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert client.router.registry.live("w") is None


async def test_message_beyond_four_mebibytes_ends_the_registration() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w")
        await worker.send(report("w", "m" * (5 << 20)))
        code, _ = await worker.status()
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        await eventually(lambda: client.router.registry.live("w") is None)


async def test_silent_registration_ends_with_ok_after_its_idle_timeout() -> None:
    async with control_plane(idle_timeout_ms=1, max_idle_timeout_ms=500) as client:
        worker, _ = await client.register("w", heartbeat_ms=100)
        assert (await worker.status())[0] is grpc.StatusCode.OK
        assert client.router.registry.live("w") is None
        assert client.router.routable("m") == []


async def test_silence_before_the_first_message_ends_the_stream_too() -> None:
    async with control_plane(idle_timeout_ms=10, max_idle_timeout_ms=10) as client:
        worker = await client.open()
        assert (await worker.status())[0] is grpc.StatusCode.OK


async def test_shutdown_ends_streams_with_ok_and_frees_ids_at_once() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        waiting = await client.open()
        second = await client.open()
        await second.send(report("w", "m"))
        assert (await second.status())[0] is grpc.StatusCode.ALREADY_EXISTS
        client.router.service.stop()
        assert client.router.routable("m") == []
        assert client.router.registry.live("w") is None
        assert tunnels.retired.is_set()
        assert (await worker.status())[0] is grpc.StatusCode.OK
        assert (await waiting.status())[0] is grpc.StatusCode.OK
        late = await client.open()
        assert (await late.status())[0] is grpc.StatusCode.OK


async def test_the_tunnels_are_told_of_each_report_also_while_an_update_waits_for_them() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.step_gate.clear()
        for _ in range(3):
            await worker.send(report("w", "m"))
        await eventually(lambda: tunnels.reports == 3)


async def test_shutdown_interrupts_an_update_that_waits_for_its_tunnel() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.step_gate.clear()
        tunnels.waiting_in_step.clear()
        await worker.send(report("w", "m"))
        await tunnels.waiting_in_step.wait()
        client.router.service.stop()
        assert (await worker.status())[0] is grpc.StatusCode.OK


async def test_teardown_does_not_wait_for_a_stuck_health_loop() -> None:
    async with control_plane(teardown_ms=1) as client:
        worker, tunnels = await client.register("w")
        tunnels.health_loop_hangs = True
        await worker.call.done_writing()
        assert (await worker.status())[0] is grpc.StatusCode.OK


async def test_health_loop_starts_at_admission() -> None:
    async with control_plane() as client:
        client.router.prepare_tunnels = lambda tunnels: tunnels.step_gate.clear()
        worker = await client.open()
        await worker.send(report("w", "m"))
        await eventually(lambda: "w" in client.router.tunnels and client.router.tunnels["w"].started)
        client.router.tunnels["w"].step_gate.set()
        await worker.ack()


async def test_lost_worker_leaves_routing_at_once_and_returns_with_its_last_report() -> None:
    async with control_plane() as client:
        _, tunnels = await client.register("w", ("m", "n"))
        tunnels.lose()
        assert (client.router.routable("m"), client.router.routable("n")) == ([], [])
        assert client.router.registry.is_advertised(TargetKey(None, "m"))
        assert client.router.registry.live("w") is not None
        tunnels.recover(rtt=9)
        await eventually(lambda: client.router.routable("m") == ["w"])
        target = client.router.registry.target(TargetKey(None, "n"))
        assert target is not None
        assert target.candidates()[0].rtt_ns == 9


async def test_lost_worker_that_reported_inactive_stays_out_when_it_recovers() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.lose(closed=False)
        await worker.update(report("w", "m", status=INACTIVE))
        tunnels.recover()
        await worker.update(report("w", "n", status=ACTIVE))
        assert (client.router.routable("m"), client.router.routable("n")) == ([], ["w"])


async def test_id_of_a_lost_and_silent_worker_passes_to_its_successor() -> None:
    async with control_plane(authenticator=TOKENS, min_silence_ms=20) as client:
        old, tunnels = await client.register("w", credential="token-a", heartbeat_ms=1)
        tunnels.lose()
        successor, new_tunnels = await client.register("w", credential="token-a", heartbeat_ms=1)
        assert new_tunnels is not tunnels
        assert tunnels.retired.is_set()
        assert (await old.status())[0] is grpc.StatusCode.OK
        assert client.router.routable("m", "tenant-a") == ["w"]
        await successor.update(report("w", "m"))
        assert b'registrations_ended_total{reason="superseded"} 1' in client.router.shown_metrics()


async def test_lost_worker_that_still_reports_keeps_its_id() -> None:
    async with control_plane(min_silence_ms=60_000) as client:
        worker, tunnels = await client.register("w")
        tunnels.lose()
        second = await client.open()
        await second.send(report("w", "m"))
        reports = asyncio.create_task(_send_for_ever(worker))
        assert (await second.status())[0] is grpc.StatusCode.ALREADY_EXISTS
        reports.cancel()


async def test_lost_worker_that_reports_while_its_update_waits_for_the_tunnel_keeps_its_id() -> None:
    async with control_plane(min_silence_ms=60_000) as client:
        worker, tunnels = await client.register("w")
        tunnels.lose()
        tunnels.step_gate.clear()
        second = await client.open()
        await second.send(report("w", "m"))
        reports = asyncio.create_task(_send_for_ever(worker))
        assert (await second.status())[0] is grpc.StatusCode.ALREADY_EXISTS
        reports.cancel()


async def _send_for_ever(worker: Any) -> None:
    while True:
        await worker.send(report("w", "m"))
        await asyncio.sleep(0.01)


async def test_lost_worker_that_recovers_while_its_id_is_claimed_keeps_it() -> None:
    async with control_plane(min_silence_ms=60_000) as client:
        _, tunnels = await client.register("w")
        tunnels.lose()
        holder = client.router.service._streams.holders["w"]
        second = await client.open()
        await second.send(report("w", "m"))
        await eventually(lambda: len(client.router.service._streams.open) == 2 and bool(holder._sign_of_life._waiters))
        tunnels.recover()
        assert (await second.status())[0] is grpc.StatusCode.ALREADY_EXISTS
        await eventually(lambda: client.router.routable("m") == ["w"])


async def test_claim_succeeds_at_once_when_the_lost_holder_leaves_by_itself() -> None:
    async with control_plane(min_silence_ms=60_000) as client:
        old, tunnels = await client.register("w")
        tunnels.lose()
        holder = client.router.service._streams.holders["w"]
        second = await client.open()
        await second.send(report("w", "m"))
        await eventually(lambda: bool(holder._sign_of_life._waiters))
        old.call.cancel()
        await second.ack()
        assert client.router.routable("m") == ["w"]


async def test_only_one_of_two_claimants_gets_the_id() -> None:
    async with control_plane(min_silence_ms=30) as client:
        _, tunnels = await client.register("w", heartbeat_ms=1)
        tunnels.lose()
        claimants = [await client.open() for _ in range(2)]
        for claimant in claimants:
            await claimant.send(report("w", "m"))
        results = await asyncio.gather(*(claimant.call.read() for claimant in claimants), return_exceptions=True)
        assert sum(isinstance(result, stargate_pb2.InferenceServerAck) for result in results) == 1
        refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
        assert [error.code() for error in refused] == [grpc.StatusCode.ALREADY_EXISTS]


async def test_differently_keyed_worker_never_takes_over_a_lost_id() -> None:
    async with control_plane(authenticator=TOKENS, min_silence_ms=1) as client:
        _, tunnels = await client.register("w", credential="token-a", heartbeat_ms=0)
        tunnels.lose()
        for token in ("token-b", "open"):
            stranger = await client.open(credential=token)
            await stranger.send(report("w", "m"))
            assert (await stranger.status())[0] is grpc.StatusCode.ALREADY_EXISTS
        assert client.router.registry.live("w") is not None


async def test_worker_that_never_had_a_tunnel_keeps_its_id() -> None:
    async with control_plane(min_silence_ms=1) as client:
        first = await client.open(heartbeat_ms=0)
        await first.update(report("w", "m", reverse=True))
        second = await client.open()
        await second.send(report("w", "m", reverse=True))
        assert (await second.status())[0] is grpc.StatusCode.ALREADY_EXISTS


async def test_unusable_heartbeat_means_the_longest_timeout() -> None:
    async with control_plane(idle_timeout_ms=60_000, max_idle_timeout_ms=20) as client:
        worker = await client.open(heartbeat_ms="soon")
        assert (await worker.status())[0] is grpc.StatusCode.OK


async def test_reading_goes_on_while_an_update_waits_and_nothing_is_skipped() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w")
        tunnels.step_gate.clear()
        for number in range(30):
            await worker.send(report("w", f"m{number}"))
        tunnels.step_gate.set()
        for _ in range(30):
            await worker.ack()
        assert client.router.registry.all_active_models() == ["m29"]


async def test_registered_streams_are_counted() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w")
        await client.register("v")
        assert b"registered_streams 2" in client.router.shown_metrics()
        await worker.call.done_writing()
        await worker.status()
        await eventually(lambda: b"registered_streams 1" in client.router.shown_metrics())


async def test_two_workers_of_one_cluster_share_one_candidate() -> None:
    async with control_plane() as client:
        first = await client.open()
        second = await client.open()
        await first.update(report("a", "alpha", "s", cluster_id="c", last_mean_input_tps=11, queued_input_size=3))
        await second.update(report("b", "s", "beta", cluster_id="c", last_mean_input_tps=31, queued_input_size=11))
        message = report("a", "alpha", "s", cluster_id="c", last_mean_input_tps=11, queued_input_size=3)
        message.models["s"].stats.CopyFrom(stargate_pb2.ModelStats(last_mean_input_tps=17, queued_input_size=5))
        await first.update(message)
        message = report("b", "s", "beta", cluster_id="c", last_mean_input_tps=31, queued_input_size=11)
        message.models["s"].stats.CopyFrom(stargate_pb2.ModelStats(last_mean_input_tps=23, queued_input_size=7))
        await second.update(message)
        assert _figures(client.router, "alpha") == [(11, 3, 1)]
        assert _figures(client.router, "s") == [(40, 12, 2)]
        assert _figures(client.router, "beta") == [(31, 11, 1)]
        await first.call.done_writing()
        await first.status()
        assert _figures(client.router, "alpha") == []
        assert _figures(client.router, "s") == [(23, 7, 1)]
        assert _figures(client.router, "beta") == [(31, 11, 1)]


def _figures(router: ControlPlaneInMemory, model: str) -> list[tuple[float, int, int]]:
    target = router.registry.target(TargetKey(None, model))
    if target is None:
        return []
    return [(c.last_mean_input_tps, c.queued_input_size, c.active_backend_count) for c in target.candidates()]


async def test_tenants_do_not_share_a_cluster_of_the_same_name() -> None:
    async with control_plane(authenticator=TOKENS) as client:
        first, _ = await client.register("a", credential="token-a", cluster_id="c")
        await client.register("b", credential="token-b", cluster_id="c")
        await first.update(report("a", "m", cluster_id="c", status=INACTIVE))
        assert client.router.routable("m", "tenant-a") == []
        assert client.router.routable("m", "tenant-b") == ["b"]


async def test_worker_that_reads_no_acks_blocks_only_itself() -> None:
    async with control_plane(idle_timeout_ms=0) as client:
        deaf, _ = await client.register("deaf")
        for _ in range(50):
            await deaf.send(report("deaf", "m"))
        other, _ = await client.register("other")
        await other.update(report("other", "m"))


async def test_an_update_is_logged_with_its_models_in_order() -> None:
    async with control_plane() as client:
        with capture_logs() as lines:
            await client.register("w", ("b", "c", "a"))
        (models,) = [line["models"] for line in lines if line["event"] == "received inference servers update"]
        assert models == ["a", "b", "c"]


async def test_a_report_that_needs_no_wait_is_acknowledged_without_the_task_of_its_stream() -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w", last_mean_input_tps=10.0)
        tunnels.settled, steps = True, tunnels.steps
        for tps in (10.0, 11.0, 11.0):
            await worker.update(report("w", "m", last_mean_input_tps=tps))
            (shown,) = client.router.registry.target(TargetKey(None, "m")).candidates()
            assert shown.last_mean_input_tps == tps
        assert (tunnels.steps, tunnels.reports) == (steps, 3)
        assert client.router.service._streams.holders["w"].registration is not None
        await worker.send(report("w", "m" * 1_100))
        code, text = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "registration.model_name" in text


async def test_a_later_report_that_cannot_be_decoded_ends_its_registration() -> None:
    async with control_plane() as client:
        _, tunnels = await client.register("w")
        tunnels.settled = True
        (call,) = client.router.server._calls
        with capture_logs() as logs:
            call.on_data(framed(b"\xff\xff"))
            await eventually(lambda: client.router.registry.live("w") is None)
        assert "inference servers stream read failed or closed" in [line["event"] for line in logs]


@pytest.mark.parametrize("settled", [True, False])
async def test_an_equal_report_in_another_encoding_is_not_read_again(settled: bool) -> None:
    async with control_plane() as client:
        worker, tunnels = await client.register("w", ("m", "n"))
        tunnels.settled = settled
        (before,) = client.router.registry.target(TargetKey(None, "m")).candidates()[0].cluster.backends()
        parts = [report("w", model).SerializeToString() for model in ("m", "n")]
        assert parts[0] + parts[1] != parts[1] + parts[0]
        (call,) = client.router.server._calls
        for encoded in (parts[0] + parts[1], parts[1] + parts[0]):
            call.on_data(framed(encoded))
            await worker.ack()
        (after,) = client.router.registry.target(TargetKey(None, "m")).candidates()[0].cluster.backends()
        assert after.stats is before.stats
