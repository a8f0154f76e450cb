"""The gRPC service that workers call: `RegisterInferenceServer` and `WatchStargates`.

Source: docs/control-plane.md. Initial metadata is sent before any read: workers wait for it before their first message.
"""

import time
import traceback
from collections.abc import Callable, Mapping

import structlog

from router.control_plane.admission import RefusedError
from router.control_plane.heartbeat import HEARTBEAT_METADATA, BadHeartbeat, parse_heartbeat_ms
from router.control_plane.registration_end import SHUTDOWN
from router.control_plane.registration_stream import RegistrationStream
from router.control_plane.registration_table import RegistrationTable
from router.control_plane.settings import ControlPlaneSettings
from router.control_plane.watch import WatchCell
from router.control_plane.worker_auth import bearer_token
from router.grpc.call import Call
from router.grpc.server import Handler
from router.grpc.status import CallError, Status
from router.ports.authentication import AuthenticationError, Authenticator
from router.ports.registration_tunnels import MakeTunnels
from router.registry.registry import Registry
from router.telemetry.credential_failures import Credential, CredentialFailures
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()

CONTROL_PLANE = "stargate.StargateControlPlane"


class ControlPlane:
    """The service; `stop` ends all its streams."""

    def __init__(
        self,
        registry: Registry,
        authenticator: Authenticator,
        make_tunnels: MakeTunnels,
        watch: WatchCell,
        settings: ControlPlaneSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._watch = watch
        self._settings = settings
        self._metrics = metrics
        self._streams = RegistrationTable(registry, make_tunnels, settings, metrics, clock=clock)
        self._credential_failures = CredentialFailures(metrics)
        self._stopping = False

    def stop(self) -> None:
        """Drain: end every stream with OK; all routes are removed when this returns, and later calls end at once."""
        self._stopping = True
        self._watch.close()
        for stream in list(self._streams.open):
            stream.stop(SHUTDOWN)

    def methods(self) -> Mapping[str, Handler]:
        """Its methods by name."""
        return {"RegisterInferenceServer": self._register_inference_server, "WatchStargates": self._watch_stargates}

    async def _register_inference_server(self, call: Call) -> None:
        """Serve one worker's registration until its stream ends."""
        peer = call.peer
        heartbeat_ms = _heartbeat_ms(call.first_value(HEARTBEAT_METADATA))
        routing_key = await self._authenticate(call.first_value("authorization"), peer)
        call.send_initial_metadata()
        if self._stopping:
            return
        _log.info("register inference servers stream opened", stargate_id=self._settings.stargate_id, peer=peer)
        refusal = await self._run_stream(
            RegistrationStream(
                self._streams,
                call,
                routing_key=routing_key,
                heartbeat_ms=heartbeat_ms,
                peer=peer,
            ),
            peer,
        )
        if refusal is not None:
            call.end(*refusal)

    async def _run_stream(self, stream: RegistrationStream, peer: str) -> tuple[Status, str] | None:
        """Run `stream` to its end; None, or the status and text with which it was refused.

        The frames of the refusal are cleared: they must not keep the stream, or a message of megabytes, alive until the next full
        garbage collection.
        """
        try:
            await stream.run()
        except RefusedError as error:
            traceback.clear_frames(error.__traceback__)
            return error.code, error.message
        finally:
            self._log_ended(stream, peer)
        return None

    async def _watch_stargates(self, call: Call) -> None:
        """Stream the routers to register with: now, and whenever they are published again."""
        await call.read()  # it has no fields
        call.send_initial_metadata()
        _log.info(
            "watch stargates stream opened",
            stargate_id=self._settings.stargate_id,
            advertise_addr=self._settings.advertise_addr,
            dns_name=self._settings.dns_name,
            peer=call.peer,
        )
        seen = 0
        while (newer := await self._watch.newer(seen)) is not None:
            seen, response = newer
            await call.write(response.SerializeToString())

    async def _authenticate(self, authorization: str | bytes | None, peer: str) -> str | None:
        try:
            routing_key = await self._authenticator.routing_key(bearer_token(authorization))
        except AuthenticationError as error:
            self._credential_failures.failed(Credential.REGISTRATION_TOKEN, error.cause_text, host=_host(peer))
            self._metrics.registrations_refused_total.inc(("authentication",))
            raise CallError(Status.UNAUTHENTICATED, "authentication failed") from None
        self._credential_failures.passed(Credential.REGISTRATION_TOKEN, host=_host(peer))
        _log.debug("worker authenticated", peer=peer, routing_key=routing_key)
        return routing_key

    def _log_ended(self, stream: RegistrationStream, peer: str) -> None:
        if stream.refused:
            self._metrics.registrations_refused_total.inc((stream.end_reason,))
        elif stream.registration is not None:
            self._metrics.registrations_ended_total.inc((stream.end_reason,))
        _log.info(
            "register inference servers stream closed",
            inference_server_id=stream.inference_server_id,
            reason=stream.end_reason,
            peer=peer,
        )


def _heartbeat_ms(value: str | bytes | None) -> int | None:
    heartbeat = parse_heartbeat_ms(value)
    if isinstance(heartbeat, BadHeartbeat):
        wanted = "ascii" if heartbeat is BadHeartbeat.NOT_ASCII else "integer"
        _log.warning(
            f"{HEARTBEAT_METADATA} must be {wanted} milliseconds; using configured registration max idle timeout"
        )
        return None
    return heartbeat


def _host(peer: str) -> str:
    """The IP address in a gRPC peer such as `ipv4:10.0.0.1:1234` or `ipv6:[::1]:1234`."""
    return peer.partition(":")[2].rpartition(":")[0].strip("[]")
