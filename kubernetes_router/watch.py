"""`WatchStargates`, answered from the list of targets: the list at once, after every change, and as a heartbeat.

Source: docs/kubernetes-router.md, "Watch".
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kubernetes_router.call import Call
from kubernetes_router.grpc_messages import RESPONSE_HEAD, framed
from kubernetes_router.http2.stream import Http2Stream
from kubernetes_router.targets import Target, TargetList
from tunnel_protocol.control.stargate_pb2 import StargateInfo, WatchStargatesResponse

LEAVING_S: Final = 60.0
"""How long a router that left the list is still published while registrations to it run."""


class WatchCall(Call):
    """One watch. A worker that reads slowly gets the newest list, and none of those in between."""

    def __init__(self, stream: Http2Stream, on_over: Callable[[Call], None]) -> None:
        super().__init__(stream, on_over)
        self._waiting: bytes | None = None
        stream.send_headers(RESPONSE_HEAD)

    def send(self, message: bytes) -> None:
        """Send a list, now or when the one before has been sent."""
        if self.stream.unsent:
            self._waiting = message
        else:
            self.stream.send(message)

    def on_sent(self, _size: int) -> None:
        """Send what waits."""
        if self._waiting is not None and not self.stream.unsent:
            waiting, self._waiting = self._waiting, None
            self.stream.send(waiting)


class WatchPublisher:
    """Makes the messages, the same for all watches.

    A router that leaves the list while workers are registered with it is being shut down. It stays published until those
    registrations have ended, at most `LEAVING_S` seconds: workers close the tunnel of a router that they no longer find in
    the list, and would cut the responses that the router is still finishing.
    """

    def __init__(
        self,
        targets: TargetList,
        *,
        grpc_port: int,
        dial_addr: str,
        remote_urls: Sequence[str],
        heartbeat_s: float,
    ) -> None:
        """`grpc_port` is published with every host name; workers dial `dial_addr`, and also watch `remote_urls`."""
        self._targets = targets
        self._grpc_port = grpc_port
        self._dial_addr = dial_addr
        self._remote_urls = tuple(remote_urls)
        self._heartbeat_s = heartbeat_s
        self.registered: Callable[[str], bool] = _nobody_is_registered
        """Whether a registration with this pod runs; set by the listener."""
        self._leaving: dict[str, tuple[Target, float]] = {}
        self._published: dict[str, Target] = {}
        self._message: bytes | None = None
        self._watches: set[WatchCall] = set()
        self._changed = asyncio.Event()
        targets.on_changed(self._publish)

    @property
    def open(self) -> int:
        """Number of open watches."""
        return len(self._watches)

    def add(self, watch: WatchCall) -> None:
        """Send the list to `watch`, as soon as there is one, until it is over."""
        self._watches.add(watch)
        if self._message is not None:
            watch.send(self._message)

    def remove(self, watch: WatchCall) -> None:
        """Send nothing more to `watch`."""
        self._watches.discard(watch)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._changed.wait()
            except TimeoutError:
                if self._leaving:
                    self._publish()
                else:
                    self._send()

    def registration_over(self) -> None:
        """A registration has ended, perhaps the last one of a router that left the list."""
        if any(not self.registered(pod_name) for pod_name in self._leaving):
            self._publish()

    def _note_leaving(self, listed: dict[str, Target]) -> None:
        now = asyncio.get_running_loop().time()
        for pod_name, target in self._published.items():
            if pod_name not in listed and pod_name not in self._leaving:
                self._leaving[pod_name] = target, now + LEAVING_S
        self._leaving = {
            pod_name: (target, until)
            for pod_name, (target, until) in self._leaving.items()
            if pod_name not in listed and now < until and self.registered(pod_name)
        }

    def _publish(self) -> None:
        listed = {target.pod_name: target for target in self._targets.sorted_by_pod_name()}
        self._note_leaving(listed)
        self._published = listed | {pod_name: target for pod_name, (target, _) in self._leaving.items()}
        message = WatchStargatesResponse(
            stargates=[
                StargateInfo(
                    stargate_id=target.pod_name,
                    advertise_addr=f"{self._targets.host(target)}:{self._grpc_port}",
                    grpc_pylon_dial_addr=self._dial_addr,
                )
                for _, target in sorted(self._published.items())
            ],
            watch_stargate_urls=self._remote_urls,
        )
        self._message = framed(message.SerializeToString())
        self._send()
        self._changed.set()

    def _send(self) -> None:
        if self._message is not None:
            for watch in list(self._watches):
                watch.send(self._message)


def _nobody_is_registered(_pod_name: str) -> bool:
    return False
