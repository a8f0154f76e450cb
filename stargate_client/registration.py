"""One registration with one router: a gRPC stream of heartbeats, and the tunnel to the address in its acks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import grpc
import grpc.aio
import structlog

from stargate_client.certificate_failures import CertificateFailures, CertificateRefusedError, Operation
from stargate_client.router_address import RouterAddress
from stargate_client.router_channel import router_channel
from stargate_client.settings import WorkerSettings, read_token
from stargate_client.tunnel import ReverseTunnel, StreamAcceptor, TunnelEndpoint
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.settings import QuicSettings

_log = structlog.get_logger()

RETRY_S = 1.0
ACK_TIMEOUT_S = 30.0
"""Seconds without any answer to a report after which the registration ends, and the worker registers again.

gRPC pings do not suffice, because a proxy answers them even if the router behind it is gone. A router that waits for the tunnel
answers after 10 s (`--reverse-tunnel-connect-timeout-ms`; fixed in the reference), so the deadline applies whether or not the
tunnel is connected: the tunnel of a router that is gone is lost too. A router with a longer wait gets a new registration each time,
and the worker dials it at once, which is what it waits for.
"""
_LAST_UPDATE_S = 0.5
RETIRED = Limit("worker.retired_tunnels", pieces=8)
"""Tunnels of registrations with one router that have ended, whose requests still run; beyond it the oldest one is closed."""

_MAX_RETIRED = RETIRED.pieces or 0


class UnansweredError(Exception):
    """A router has not answered reports for `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s:g} s")
        self.timeout_s = timeout_s


class Registration:
    """Keeps a worker registered with one router until cancelled."""

    def __init__(
        self,
        router: RouterAddress,
        settings: WorkerSettings,
        trust: ssl.SSLContext,
        service: StreamAcceptor,
        quic: QuicSettings,
        models: Callable[[bool], dict[str, stargate_pb2.InferenceServerModelRegistration]],
        *,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        channel_options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        """`channel_options`: gRPC channel arguments besides those of every worker."""
        self.router = router
        self._ack_timeout_s = ack_timeout_s
        self._channel_options = channel_options
        self._settings = settings
        self._trust = trust
        self._failures = CertificateFailures(Operation.REGISTER, router.dial.target)
        self._service = service
        self._quic = quic
        self._models = models
        self._wake = asyncio.Event()
        self._stopping = False
        # Each ack answers one message. `_last_update` is the number of the message that reports all models as inactive.
        self._sent = 0
        self._acknowledged = 0
        self._last_update: int | None = None
        self._left = asyncio.Event()
        # The tunnels of earlier registrations, oldest first.
        self._retired: dict[asyncio.Task[None], None] = {}
        # The ack timeout of the open stream, if any; armed while a report is unanswered.
        self._unanswered: asyncio.Timeout | None = None

    def poke(self) -> None:
        """Send a report now."""
        self._wake.set()

    async def run(self) -> None:
        """Register, and register again when the registration ends, until cancelled."""
        try:
            await self._keep_registered()
        finally:
            retired = list(self._retired)
            for task in retired:
                task.cancel()
            if retired:
                await asyncio.wait(retired)

    async def _keep_registered(self) -> None:
        while True:
            try:
                await self._register()
            except grpc.aio.AioRpcError as error:
                _log.warning(
                    "registration ended", router=self.router.authority, code=error.code().name, error=error.details()
                )
            except UnansweredError as error:
                _log.warning("registration unanswered", router=self.router.authority, timeout_s=error.timeout_s)
            except CertificateRefusedError as error:
                self._failures.refused(error.kind)
            except OSError as error:
                _log.warning("registration not possible", router=self.router.authority, error=str(error))
            await asyncio.sleep(RETRY_S)

    async def _register(self) -> None:
        metadata = [("x-stargate-registration-heartbeat-ms", str(self._settings.update_interval_ms))]
        token = read_token(self._settings)
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        tunnel = ReverseTunnel(self._settings, self._service, self._quic, self.poke)
        address, options = self.router, self._channel_options
        async with router_channel(address.dial, address.authority, self._trust, options) as channel:
            self._failures.accepted()
            unanswered = self._unanswered = asyncio.timeout(None)
            stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
            call = stub.RegisterInferenceServer(self._updates(tunnel, unanswered), metadata=metadata)
            dialling = asyncio.create_task(tunnel.run())
            try:
                async with unanswered:
                    async for ack in call:
                        # Any ack counts: a router may drop older reports, because each report is complete.
                        unanswered.reschedule(None)
                        tunnel.point_to(_endpoint_of(ack))
                        self._acknowledged += 1
                        if self._last_update is not None and self._acknowledged >= self._last_update:
                            self._left.set()
            except TimeoutError as error:
                if unanswered.expired():
                    raise UnansweredError(self._ack_timeout_s) from error
                raise
            finally:
                self._unanswered = None
                self._sent = self._acknowledged = 0
                self._left.set()
                call.cancel()
                self._retire(tunnel, dialling)
        _log.info("registration stream ended", router=self.router.authority)

    def _retire(self, tunnel: ReverseTunnel, serving: asyncio.Task[None]) -> None:
        """Let the requests of the tunnel end; meanwhile the worker registers again and dials another one."""
        if len(self._retired) >= _MAX_RETIRED:
            next(iter(self._retired)).cancel()
        self._retired[serving] = None
        serving.add_done_callback(self._on_retired_ended)
        if tunnel.connected:
            tunnel.retire()
        else:
            serving.cancel()

    def _on_retired_ended(self, serving: asyncio.Task[None]) -> None:
        self._retired.pop(serving, None)
        if not serving.cancelled() and (error := serving.exception()) is not None:
            _log.error("reverse tunnel failed", router=self.router.authority, exc_info=error)

    async def _updates(
        self, tunnel: ReverseTunnel, unanswered: asyncio.Timeout
    ) -> AsyncIterator[stargate_pb2.InferenceServerRegistration]:
        # gRPC may request reports for a call that has ended; such a report must not count for the next call.
        while self._unanswered is unanswered:
            self._wake.clear()
            self._sent += 1
            if self._stopping and self._last_update is None:
                self._last_update = self._sent
            if unanswered.when() is None:
                unanswered.reschedule(asyncio.get_running_loop().time() + self._ack_timeout_s)
            yield self._message(connected=tunnel.connected)
            try:
                async with asyncio.timeout(self._settings.update_interval_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _message(self, *, connected: bool) -> stargate_pb2.InferenceServerRegistration:
        return stargate_pb2.InferenceServerRegistration(
            inference_server_id=self._settings.inference_server_id,
            inference_server_url=self._settings.engine_url,
            models=self._models(connected and not self._stopping),
            reverse_tunnel=True,
            cluster_id=self._settings.cluster_id,
        )

    async def leave(self) -> None:
        """Report all models as inactive from now on. Returns when the router has acknowledged this, or after 0.5 s.

        The tunnel must be closed only after that: a router that reads a report of a worker without a tunnel first waits for the tunnel
        (10 s in the reference) and meanwhile still chooses that worker.
        """
        self._stopping = True
        if not self._sent:
            return
        self._left.clear()
        self.poke()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_UPDATE_S):
                await self._left.wait()


def _endpoint_of(ack: stargate_pb2.InferenceServerAck) -> TunnelEndpoint | None:
    target, dial = ack.reverse_tunnel_target.strip(), ack.reverse_tunnel_pylon_dial_addr.strip()
    return TunnelEndpoint(target, dial) if target and dial else None
