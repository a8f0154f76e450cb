"""What the log says when a registration stream ends: why, and which models left routing with it."""

from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from router.config import package_settings
from router.config.cli import parse
from support.control_plane import control_plane, report
from support.package_settings import DEFAULTS, REQUIRED
from support.waiting import eventually

pytestmark = pytest.mark.loop("grpc")

REMOVED = "inference server deregistered; removed from routing"
NOT_ADMITTED = "register inference servers stream exited before admission"


def about(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


async def test_an_idle_timeout_is_a_warning_with_the_models_that_left_routing() -> None:
    async with control_plane(idle_timeout_ms=1, max_idle_timeout_ms=500) as client:
        with capture_logs() as lines:
            worker, _ = await client.register("w", ("m", "a"), heartbeat_ms=100, cluster_id="c")
            assert (await worker.status())[0] is grpc.StatusCode.OK
        assert about(lines, REMOVED) == [
            {
                "event": REMOVED,
                "log_level": "warning",
                "inference_server_id": "w",
                "cluster_id": "c",
                "routing_key": None,
                "reverse_tunnel": False,
                "reason": "idle_timeout",
                "removed_model_ids": ["a", "m"],
                "error": None,
            }
        ]
        assert about(lines, NOT_ADMITTED) == []


async def test_a_shutdown_is_no_warning() -> None:
    async with control_plane() as client:
        with capture_logs() as lines:
            await client.register("w")
            waiting = await client.open()
            client.router.service.stop()
            assert (await waiting.status())[0] is grpc.StatusCode.OK
        (line,) = about(lines, REMOVED)
        assert (line["log_level"], line["reason"], line["removed_model_ids"]) == ("info", "shutdown", ["m"])
        (line,) = about(lines, NOT_ADMITTED)
        assert (line["log_level"], line["reason"], line["error"]) == ("info", "shutdown", None)


async def test_a_half_closed_a_cancelled_and_an_unreadable_stream_are_told_apart() -> None:
    async with control_plane() as client:
        with capture_logs() as lines:
            worker, _ = await client.register("w")
            await worker.call.done_writing()
            await worker.status()
        (line,) = about(lines, REMOVED)
        assert (line["log_level"], line["reason"], line["error"]) == ("warning", "stream_closed", None)

        with capture_logs() as lines:
            worker, tunnels = await client.register("w")
            tunnels.step_gate.clear()
            tunnels.waiting_in_step.clear()
            await worker.send(report("w", "m"))
            await tunnels.waiting_in_step.wait()
            worker.call.cancel()
            await eventually(lambda: about(lines, REMOVED))
        (line,) = about(lines, REMOVED)
        assert (line["reason"], line["error"]) == ("stream_read", "the call was cancelled, or its connection lost")

        with capture_logs() as lines:
            call = client.control_channel.stream_stream("/stargate.StargateControlPlane/RegisterInferenceServer")()
            await call.write(report("w", "m").SerializeToString())
            await call.read()
            await call.write(b"\xff\xff\xff")
            assert await call.read() is grpc.aio.EOF
        (line,) = about(lines, REMOVED)
        assert line["reason"] == "stream_read"
        assert "parsing message" in line["error"]
        assert about(lines, "inference servers stream read failed or closed")


async def test_an_update_that_is_refused_ends_with_its_reason() -> None:
    async with control_plane() as client:
        with capture_logs() as lines:
            worker, _ = await client.register("w")
            await worker.send(report("w", "m", cluster_id="another"))
            assert (await worker.status())[0] is grpc.StatusCode.INVALID_ARGUMENT
        (line,) = about(lines, REMOVED)
        assert (line["reason"], line["error"]) == ("update_rejected", "cluster_id changed")


async def test_a_stream_that_ends_before_its_admission_is_a_warning() -> None:
    async with control_plane() as client:
        with capture_logs() as lines:
            worker = await client.open()
            await worker.call.done_writing()
            await worker.status()
            refused = await client.open()
            await refused.send(report("", "m"))
            await refused.status()
        first, second = about(lines, NOT_ADMITTED)
        assert (first["log_level"], first["reason"], first["error"]) == ("warning", "stream_closed", None)
        assert (second["reason"], second["error"]) == ("update_rejected", "inference_server_id is empty")
        assert about(lines, REMOVED) == []


async def test_with_the_older_release_line_an_end_is_not_logged_with_its_models() -> None:
    as_of_0_11 = package_settings.control_plane(
        parse([*REQUIRED, "--compat=0.11"], {}), DEFAULTS.advertise_addr, reverse_address=None
    )
    assert not as_of_0_11.lifecycle_logs
    async with control_plane(lifecycle_logs=False) as client:
        with capture_logs() as lines:
            registered, _ = await client.register("w")
            await registered.call.done_writing()
            await registered.status()
            waiting = await client.open()
            await waiting.call.done_writing()
            await waiting.status()
            refused = await client.open()
            await refused.send(report("", "m"))
            await refused.status()
        assert about(lines, REMOVED) == []
        (line,) = about(lines, NOT_ADMITTED)
        assert line["log_level"] == "debug"
