"""Discovers the routers to register with: follows `WatchStargates` streams, starting at the seed address."""

import asyncio
import ssl
from collections.abc import Callable

import grpc
import grpc.aio
import structlog

from stargate_client.certificate_failures import CertificateFailures, CertificateRefusedError, Operation
from stargate_client.router_address import GrpcAddress, RouterAddress, parse_grpc_address
from stargate_client.router_channel import router_channel
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc

_log = structlog.get_logger()

RETRY_S = 1.0
KEEP_LOST_S = 10.0
"""Seconds that routers stay known after the stream that named them broke."""


class RouterDiscovery:
    """Follows the watch streams; calls `on_routers` with the union of their routers when it changes."""

    def __init__(
        self, seed: GrpcAddress, trust: ssl.SSLContext, on_routers: Callable[[frozenset[RouterAddress]], None]
    ) -> None:
        self._seed = seed
        self._trust = trust
        self._on_routers = on_routers
        self._snapshots: dict[GrpcAddress, stargate_pb2.WatchStargatesResponse] = {}
        self._watches: dict[GrpcAddress, asyncio.Task[None]] = {}
        self._forgetting: dict[GrpcAddress, asyncio.TimerHandle] = {}
        self._told: frozenset[RouterAddress] | None = None

    async def run(self) -> None:
        """Watch until cancelled. Raises what a failed watch raised."""
        try:
            self._follow()
            while True:
                done, _ = await asyncio.wait(self._watches.values(), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a watch only ends when cancelled; another end is an internal error, which is raised here
                    self._watches = {url: one for url, one in self._watches.items() if one is not task}
        finally:
            for timer in self._forgetting.values():
                timer.cancel()
            for task in self._watches.values():
                task.cancel()
            await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def _watch(self, address: GrpcAddress) -> None:
        failures = CertificateFailures(Operation.WATCH, address.target)
        while True:
            try:
                async with router_channel(address, address.target, self._trust) as channel:
                    failures.accepted()
                    stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
                    async for snapshot in stub.WatchStargates(stargate_pb2.WatchStargatesRequest()):
                        self._remember(address, snapshot)
            except grpc.aio.AioRpcError as error:
                _log.warning("router watch lost", address=address.target, code=error.code().name)
            except CertificateRefusedError as error:
                failures.refused(error.kind)
            except OSError as error:
                _log.warning("router watch not possible", address=address.target, error=str(error))
            if address in self._snapshots and address not in self._forgetting:
                loop = asyncio.get_running_loop()
                self._forgetting[address] = loop.call_later(KEEP_LOST_S, self._forget, address)
            await asyncio.sleep(RETRY_S)

    def _remember(self, address: GrpcAddress, snapshot: stargate_pb2.WatchStargatesResponse) -> None:
        timer = self._forgetting.pop(address, None)
        if timer is not None:
            timer.cancel()
        self._snapshots[address] = snapshot
        self._follow()

    def _forget(self, address: GrpcAddress) -> None:
        self._forgetting.pop(address, None)
        if self._snapshots.pop(address, None) is not None:
            self._follow()

    def _follow(self) -> None:
        wanted = self._reachable()
        for address in wanted - self._watches.keys():
            self._watches[address] = asyncio.get_running_loop().create_task(self._watch(address))
        for address in self._watches.keys() - wanted:
            self._watches.pop(address).cancel()
            self._snapshots.pop(address, None)
        routers = frozenset(
            router for address in wanted if address in self._snapshots for router in _routers(self._snapshots[address])
        )
        if routers != self._told and (routers or self._told is not None):
            self._told = routers
            self._on_routers(routers)

    def _reachable(self) -> set[GrpcAddress]:
        found, new = {self._seed}, [self._seed]
        while new:
            snapshot = self._snapshots.get(new.pop())
            for url in snapshot.watch_stargate_urls if snapshot is not None else ():
                address = parse_grpc_address(url)
                if address.target and address not in found:
                    found.add(address)
                    new.append(address)
        return found


def _routers(snapshot: stargate_pb2.WatchStargatesResponse) -> list[RouterAddress]:
    by_id: dict[str, RouterAddress] = {}
    for info in snapshot.stargates:
        identity = parse_grpc_address(info.advertise_addr)
        if not identity.target:
            identity = parse_grpc_address(info.stargate_id)
        if identity.target:
            dial = parse_grpc_address(info.grpc_pylon_dial_addr)
            router = RouterAddress(identity.target, dial if dial.target else identity)
            by_id[info.stargate_id.strip() or router.authority] = router
    return list(by_id.values())
