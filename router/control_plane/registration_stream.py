"""One `RegisterInferenceServer` stream from its first message to its end.

Source: docs/control-plane.md, "Life of a registration". Routing follows the worker's reports and, between two of them, its
tunnel: when the tunnel is lost the worker is withdrawn at once, when it works again the last report is applied again.
"""

import asyncio
from contextlib import suppress
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from router.control_plane.admission import RefusedError, admit, already_registered, check_unchanged, too_large
from router.control_plane.heartbeat import idle_timeout_ms
from router.control_plane.id_claim import HolderLiveness, Liveness
from router.control_plane.idle_timer import IdleTimer
from router.control_plane.immediate_update import ImmediateUpdate
from router.control_plane.inbox import Inbox, Signal
from router.control_plane.last_report import LastReport
from router.control_plane.message_limits import MessageLimitError, check_limits
from router.control_plane.registration_end import (
    CANCELLED,
    CLOSED,
    IDLE_TIMEOUT,
    READ_FAILED,
    SUPERSEDED,
    log_before_admission,
    log_deregistered,
)
from router.control_plane.registration_table import RegistrationTable
from router.control_plane.report_stream import ReportStream
from router.control_plane.unroutable_models import UnroutableModels
from router.ports.identity import Identity
from router.ports.registration_tunnels import TunnelStep, WorkerTunnels
from router.registry.registration import AlreadyRegisteredError, Registration
from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration

_log = structlog.get_logger()


class RegistrationStream:
    """Processes the messages of one worker on one stream."""

    def __init__(
        self,
        table: RegistrationTable,
        call: ReportStream,
        *,
        routing_key: str | None,
        heartbeat_ms: int | None,
        peer: str,
    ) -> None:
        self.routing_key = routing_key
        self.registration: Registration | None = None
        self.end_reason = CANCELLED
        """Metric label of the reason of the end; "cancelled" = the call was, by the worker or by a closed connection."""
        self.refused = False
        """Whether the stream was refused before admission."""
        self._end_error: str | None = "the call was cancelled, or its connection lost"
        self._table = table
        self._call = call
        self.peer = peer
        settings = table.settings
        idle_ms = idle_timeout_ms(heartbeat_ms, settings.idle_timeout_ms, settings.max_idle_timeout_ms)
        self._idle_s = None if idle_ms is None else idle_ms / 1000
        assumed_ms = settings.unknown_heartbeat_ms if heartbeat_ms is None else heartbeat_ms
        self.liveness = HolderLiveness(max(3 * assumed_ms, settings.min_silence_ms) / 1000, table.clock())
        self._inbox = Inbox()
        self._idle = IdleTimer(self._idle_s, self._inbox.idle)
        self._tunnels: WorkerTunnels | None = None
        self._last = LastReport()
        self._unroutable = UnroutableModels()
        self._immediate = ImmediateUpdate(
            table.registry, table.clock, call, table.ack, self._inbox, self._idle, self._last, self._unroutable
        )
        self._sign_of_life = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    async def run(self) -> None:
        """Serve the stream until it ends; returning means status OK. Raises `RefusedError` with the status to end with.

        The registration and its routes are removed when this returns or raises, also if it was cancelled.
        """
        self._task = asyncio.current_task()
        self._table.open.add(self)
        try:
            if not self._stopped:
                self._call.receive(self._on_message, self._on_closed)
                await self._serve()
        except asyncio.CancelledError:
            # `stop` cancels the current wait; any other cancellation comes from the gRPC call.
            if not self._stopped or self._task is None or self._task.uncancel() > 0:
                raise
        except RefusedError as refusal:
            self._ends(refusal.label, refusal.message)
            self.refused = self.registration is None
            raise
        finally:
            # No suspension point until routes, id and tunnel slot are released: after a second cancellation nothing may be
            # left to do.
            self._close()
            self._table.open.discard(self)
            if self.registration is None:
                self._log_before_admission()
            self._idle.close()
            await self._wait_closed()

    def stop(self, reason: str) -> None:
        """End the stream with OK: its routes and id are free when this returns."""
        if not self._stopped:
            self._stopped = True
            self._ends(reason, None)
            self._close()
            if self._task is not None:
                self._task.cancel()

    # When a second stream claims the id

    async def yields(self) -> bool:
        """Wait until this holder of an id is known to be alive (False), or to be dead or ended (True).

        It is dead if its tunnel was lost (one that was never up is not) and it then sends no message for three heartbeats.
        """
        claimed_at = self._table.clock()
        while self._holds_id():
            now = self._table.clock()
            verdict = self.liveness.judge(claimed_at, now)
            if verdict is not Liveness.UNDECIDED:
                return verdict is Liveness.DEAD
            self._sign_of_life.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.liveness.dead_at - now):
                    await self._sign_of_life.wait()
        return True

    def _holds_id(self) -> bool:
        return self.registration is not None and not self.registration.ended

    # Processing

    async def _serve(self) -> None:
        while True:
            self._idle.wait_begins()
            item = await self._inbox.get()
            self._idle.wait_ends()
            if item is Signal.IDLE:
                self._ends(IDLE_TIMEOUT, None)
                _log.warning(
                    "registration stream idle timeout; closing registration",
                    idle_timeout_ms=round((self._idle_s or 0) * 1000),
                    inference_server_id=self.inference_server_id,
                )
                return
            if isinstance(item, bytes):
                try:
                    await self._update(item)
                except DecodeError as error:
                    self._cannot_be_read(str(error) or type(error).__name__)
                    return
            elif item is Signal.RECOVERED:
                await self._reapply()
            else:
                self._ends(CLOSED, None)
                return

    def _cannot_be_read(self, error: str) -> None:
        _log.warning(
            "inference servers stream read failed or closed",
            error=error,
            inference_server_id=self.inference_server_id,
            peer=self.peer,
        )
        self._ends(READ_FAILED, error)

    def _on_message(self, encoded: bytes) -> None:
        """A report has come; called while bytes of the worker's connection are read."""
        self.liveness.message_received(self._table.clock())
        self._sign_of_life.set()
        if self._tunnels is not None:
            self._tunnels.reported()
        if not self._immediate.apply(encoded):
            self._inbox.put(encoded)

    def _on_closed(self) -> None:
        self._inbox.end(Signal.CLOSED)

    async def _update(self, encoded: bytes) -> None:
        if not self._last.is_repeated_by(encoded):
            message = self._last.decode(encoded)
            if message is not None:
                await self._take(encoded, message)
        registration, tunnels = self._live()
        step = await tunnels.tunnel_step()
        if step is TunnelStep.UNAVAILABLE:
            self._apply(registration, connected=False, rtt_ns=None)
            return
        connected = step is TunnelStep.CONNECTED
        rtt_ns = await tunnels.rtt_ns() if connected else None
        # The tunnel may have closed while its round trip was measured.
        self._apply(registration, connected=connected and tunnels.healthy(), rtt_ns=rtt_ns)
        self._unroutable.log(self._last.models, self.inference_server_id, without_rtt=connected and rtt_ns is None)
        await self._call.write(self._table.ack)

    async def _take(self, encoded: bytes, message: InferenceServerRegistration) -> None:
        """Check and read a report that is not that of before; the first one is admitted. Raises `RefusedError`."""
        self._check_limits(message)
        _log.debug(
            "received inference servers update",
            inference_server_id=message.inference_server_id,
            models=sorted(message.models),
        )
        if self.registration is None:
            await self._begin(message)
        else:
            self._check_unchanged(message, self.registration.identity)
        self._last.take(encoded, message)
        self._unroutable.report_changed()

    def _check_limits(self, message: InferenceServerRegistration) -> None:
        try:
            check_limits(message)
        except MessageLimitError as error:
            refusal = too_large(str(error))
            _log.warning(refusal.log_text, inference_server_id=self.inference_server_id, peer=self.peer)
            raise refusal from None

    async def _begin(self, message: InferenceServerRegistration) -> None:
        table = self._table
        try:
            identity = admit(message, self.routing_key, reverse_listener=bool(table.settings.reverse_tunnel_target))
        except RefusedError as refusal:
            _log.warning(
                refusal.log_text,
                inference_server_id=message.inference_server_id,
                inference_server_url=message.inference_server_url,
                reverse_tunnel=message.reverse_tunnel,
                error=refusal.message,
                peer=self.peer,
            )
            raise
        await self._settle_claim(identity)
        tunnels = table.make_tunnels(identity)
        self.registration = table.registry.begin(identity, tunnels)
        table.hold(identity.inference_server_id, self)
        self._tunnels = tunnels
        self._immediate.registration, self._immediate.tunnels = self.registration, tunnels
        tunnels.start(self._on_lost, self._on_recovered)

    async def _settle_claim(self, identity: Identity) -> None:
        """Return when the id is free. Raises `RefusedError` if its holder is alive, or has another routing key."""
        table = self._table
        existing = table.registry.live(identity.inference_server_id)
        if existing is None:
            return
        holder = table.holders.get(identity.inference_server_id)
        if holder is not None and holder.routing_key == self.routing_key and await holder.yields():
            if not existing.ended:
                _log.warning(
                    "taking over the id of a worker that shows no life",
                    inference_server_id=identity.inference_server_id,
                    silent_s=round(table.clock() - holder.liveness.last_received_at, 1),
                    old_peer=holder.peer,
                    new_peer=self.peer,
                )
                holder.stop(SUPERSEDED)
            if table.registry.live(identity.inference_server_id) is None:
                return
        existing = table.registry.live(identity.inference_server_id) or existing
        refusal = already_registered(str(AlreadyRegisteredError(existing)))
        _log.warning(
            refusal.log_text,
            inference_server_id=identity.inference_server_id,
            existing_url=existing.identity.url,
            existing_reverse_tunnel=existing.identity.reverse,
            peer=self.peer,
        )
        await asyncio.sleep(table.settings.duplicate_delay_ms / 1000)
        raise refusal

    def _check_unchanged(self, message: InferenceServerRegistration, identity: Identity) -> None:
        try:
            check_unchanged(message, identity)
        except RefusedError as refusal:
            _log.warning(
                refusal.log_text,
                inference_server_id=message.inference_server_id,
                inference_server_url=message.inference_server_url,
                reverse_tunnel=message.reverse_tunnel,
                cluster_id=message.cluster_id,
                registered_id=identity.inference_server_id,
            )
            raise

    async def _reapply(self) -> None:
        registration, tunnels = self._live()
        rtt_ns = await tunnels.rtt_ns()
        self._apply(registration, connected=tunnels.healthy(), rtt_ns=rtt_ns)

    def _apply(self, registration: Registration, *, connected: bool, rtt_ns: int | None) -> None:
        self._table.registry.apply(
            registration, self._last.models, connected=connected, rtt_ns=rtt_ns, now=self._table.clock()
        )

    def _live(self) -> tuple[Registration, WorkerTunnels]:
        registration, tunnels = self.registration, self._tunnels
        assert registration is not None and tunnels is not None  # noqa: S101, PT018 - it is admitted: narrows the types
        return registration, tunnels

    # Callbacks of the tunnel

    def _on_lost(self) -> None:
        self.liveness.tunnel_lost()
        registration, _ = self._live()
        self._table.registry.withdraw(registration)

    def _on_recovered(self) -> None:
        self.liveness.tunnel_recovered()
        self._sign_of_life.set()
        self._inbox.recovered()

    # End

    def _ends(self, label: str, error: str | None) -> None:
        self.end_reason, self._end_error = label, error

    def _close(self) -> None:
        if self.registration is not None and self._tunnels is not None and not self.registration.ended:
            self._table.registry.end(self.registration)
            self._table.release(self.registration.identity.inference_server_id)
            self._tunnels.retire()
            self._sign_of_life.set()
            if self._table.settings.lifecycle_logs:
                log_deregistered(self.registration, self.end_reason, self._end_error)

    async def _wait_closed(self) -> None:
        if self._tunnels is not None:
            try:
                async with asyncio.timeout(self._table.settings.teardown_ms / 1000):
                    await self._tunnels.wait_retired()
            except TimeoutError:
                _log.warning("health loop did not stop in time", inference_server_id=self.inference_server_id)

    # Log

    @property
    def inference_server_id(self) -> str | None:
        """The worker's id; None until it is admitted."""
        return None if self.registration is None else self.registration.identity.inference_server_id

    def _log_before_admission(self) -> None:
        if self._table.settings.lifecycle_logs:
            log_before_admission(self.end_reason, self._end_error, self.peer)
        elif self.end_reason in (CLOSED, READ_FAILED):
            _log.debug("register inference servers stream exited before admission", peer=self.peer)
