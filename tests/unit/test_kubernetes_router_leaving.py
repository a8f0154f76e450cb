"""A router that leaves the list stays published while workers are registered with it (docs/kubernetes-router.md, "Watch")."""

import asyncio

import pytest

from kubernetes_router.targets import HostnameTemplate, Target, TargetList
from kubernetes_router.watch import LEAVING_S, WatchPublisher
from tunnel_protocol.control.stargate_pb2 import WatchStargatesResponse

pytestmark = pytest.mark.loop("virtual")

FRAME_BYTES = 5
OLD, NEW = (Target(pod_name=name, ip="10.0.0.1", grpc_port=1, quic_port=2) for name in ("old", "new"))


class Watch:
    def __init__(self) -> None:
        self.lists: list[list[str]] = []

    def send(self, message: bytes) -> None:
        response = WatchStargatesResponse.FromString(message[FRAME_BYTES:])
        self.lists.append([one.stargate_id for one in response.stargates])


class Rig:
    def __init__(self) -> None:
        self.registered = {"old"}
        self.targets = TargetList(HostnameTemplate("{pod_name}.routers", "ns"))
        self.publisher = WatchPublisher(
            self.targets, grpc_port=50071, dial_addr="http://door:50071", remote_urls=(), heartbeat_s=5
        )
        self.publisher.registered = lambda pod_name: pod_name in self.registered
        self.watch = Watch()
        self.publisher.add(self.watch)  # type: ignore[arg-type]


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_a_router_without_registrations_leaves_at_once(rig: Rig) -> None:
    rig.registered.clear()
    rig.targets.publish([OLD, NEW])
    rig.targets.publish([NEW])
    assert rig.watch.lists == [["new", "old"], ["new"]]


async def test_a_router_leaves_when_its_last_registration_has_ended(rig: Rig) -> None:
    rig.targets.publish([OLD, NEW])
    rig.targets.publish([NEW])
    rig.publisher.registration_over()
    assert rig.watch.lists == [["new", "old"], ["new", "old"]]
    rig.registered.clear()
    rig.publisher.registration_over()
    assert rig.watch.lists[-1] == ["new"]
    rig.publisher.registration_over()
    assert len(rig.watch.lists) == 3


async def test_a_router_that_comes_back_is_published_as_it_is_now(rig: Rig) -> None:
    rig.targets.publish([OLD])
    rig.targets.publish([])
    rig.targets.publish([OLD])
    rig.registered.clear()
    rig.publisher.registration_over()
    assert rig.watch.lists == [["old"]] * 3


async def test_a_router_whose_registrations_never_end_leaves_after_a_minute(rig: Rig) -> None:
    rig.targets.publish([OLD, NEW])
    rig.targets.publish([NEW])
    heartbeats = asyncio.create_task(rig.publisher.run())
    await asyncio.sleep(LEAVING_S - 6)
    assert rig.watch.lists[-1] == ["new", "old"]
    await asyncio.sleep(12)
    assert rig.watch.lists[-1] == ["new"]
    heartbeats.cancel()
    await asyncio.gather(heartbeats, return_exceptions=True)
