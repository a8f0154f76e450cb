"""The TLS identity served to workers: loaded or generated at start, replaced when its files change.

The files are read once at start, so that the served bytes are those that later versions are compared with. See
docs/operations.md, "TLS".
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from certs import (
    Identity,
    IdentityError,
    Rejected,
    Reloaded,
    Watcher,
    covers,
    load_identity,
    make_self_signed,
    not_after,
)
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.operators.live_document import Certificate
from router.process.http_tls import HttpTls
from router.telemetry.metrics import Metrics
from tunnel_protocol.quic.aioquic_handshake.dry_run import UnusableIdentityError, dry_run
from tunnel_protocol.quic.tls import ServerTls, server_name_for
from tunnel_protocol.small_file import FileReader, SmallFileError

_log = structlog.get_logger()

TUNNELS = "server_identity"
"""`material_type` in metrics of the identity of the UDP port."""
GRPC = "grpc_server_identity"
"""`material_type` in metrics of the identity of the gRPC ports."""
OPENAI = "openai_server_identity"
"""`material_type` in metrics of the identity of the port for OpenAI clients."""
_COMPONENTS = {TUNNELS: "stargate-reverse-listener", GRPC: "stargate-grpc", OPENAI: "stargate-openai"}
_WARN_BEFORE_S = (7 * 86_400, 86_400, 3_600)


class ServedIdentity:
    """The identity served now, its expiry, and the check for a new one."""

    def __init__(
        self,
        identity: Identity,
        watcher: Watcher | None,
        metrics: Metrics,
        reader: FileReader | None = None,
        material: str = TUNNELS,
    ) -> None:
        self.identity = identity
        self._reader = reader or FileReader()
        self._material = material
        self._component = {"component": _COMPONENTS[material], "material_type": material}
        self._looking = asyncio.Lock()
        self._watcher = watcher
        self._metrics = metrics
        self._expires_at = float("inf")
        self._warned_s = float("inf")
        self._expiry_reported = False
        if watcher is not None:
            self._activated()

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> "ServedIdentity":
        """Load the configured certificate and key, or generate a self-signed pair. Raises `StartupError`."""
        cert_path, key_path = settings.tls_cert_path, settings.tls_key_path
        if cert_path is None or key_path is None:
            _log.info("no TLS cert/key provided, generating self-signed certificate")
            return cls(make_self_signed(), None, metrics)
        failure_text = "load initial reverse listener TLS server identity"
        options = settings.shown("tls_cert_path", "tls_key_path")
        return cls._mounted(cert_path, key_path, metrics, TUNNELS, check_usable, failure_text, options)

    @classmethod
    def load_grpc(cls, settings: Settings, metrics: Metrics) -> "ServedIdentity | None":
        """Load the pair of the gRPC ports; None if none is configured. Raises `StartupError`."""
        cert_path, key_path = settings.grpc_tls_cert_path, settings.grpc_tls_key_path
        if cert_path is None or key_path is None:
            return None
        failure_text = "load gRPC TLS server identity"
        options = settings.shown("grpc_tls_cert_path", "grpc_tls_key_path")
        return cls._mounted(cert_path, key_path, metrics, GRPC, check_usable_for_grpc, failure_text, options)

    @classmethod
    def load_openai(cls, settings: Settings, metrics: Metrics) -> "ServedIdentity | None":
        """Load the pair of the port for OpenAI clients; None if none is configured. Raises `StartupError`."""
        cert_path, key_path = settings.openai_tls_cert_path, settings.openai_tls_key_path
        if cert_path is None or key_path is None:
            return None
        failure_text = "load OpenAI TLS server identity"
        options = settings.shown("openai_tls_cert_path", "openai_tls_key_path")
        return cls._mounted(cert_path, key_path, metrics, OPENAI, check_usable_for_http, failure_text, options)

    @classmethod
    def _mounted(
        cls,
        cert_path: str,
        key_path: str,
        metrics: Metrics,
        material: str,
        check: Callable[[Identity], None],
        failure_text: str,
        options: Sequence[str],
    ) -> "ServedIdentity":
        reader = FileReader()

        def read() -> Identity:
            found = load_identity(cert_path, key_path, datetime.now(UTC))
            check(found)
            return found

        try:
            identity = reader.run(cert_path, read)
        except IdentityError as error:
            causes = (error.reason, error.detail) if error.detail else (error.reason,)
            raise StartupError(failure_text, *causes, options=options) from None
        except SmallFileError as error:
            raise StartupError(failure_text, str(error), options=options) from None
        return cls(identity, Watcher(cert_path, key_path, identity, check), metrics, reader, material)

    @property
    def mounted(self) -> bool:
        """Whether the identity was loaded from files, which may change."""
        return self._watcher is not None

    def expired(self) -> bool:
        """Whether the served certificate chain has expired; False for a generated one."""
        return time.time() > self._expires_at

    def state(self) -> Certificate:
        """The certificate that is served, for the pages of the operators."""
        end = not_after(self.identity).timestamp()
        return Certificate(
            name=self._material,
            not_after=end,
            days_left=round((end - time.time()) / 86_400, 2),
            generated=not self.mounted,
            last_reload_ok=self._watcher is None or not self._watcher.rejecting,
        )

    def log_coverage(self, settings: Settings, port: int) -> None:
        """Log a warning if the certificate does not cover the name that workers verify."""
        if not self.mounted:
            return
        target = f"{settings.advertised_host}:{port}"
        name = server_name_for((settings.reverse_tunnel_pylon_dial_addr or "").strip() or target, target)
        if not covers(self.identity, name):
            _log.warning(
                "the served TLS certificate does not cover the name workers ask for", **self._component, name=name
            )

    async def poll(self, activate: Callable[[Identity], None]) -> None:
        """Read the files; if the pair is new and valid, pass it to `activate`, which serves it from then on."""
        watcher = self._watcher
        if watcher is None:
            return
        async with self._looking:
            await self._poll_once(watcher, activate)

    async def _poll_once(self, watcher: Watcher, activate: Callable[[Identity], None]) -> None:
        try:
            found = await self._reader.result(watcher.cert_path, lambda: watcher.poll(datetime.now(UTC)))
        except SmallFileError as error:
            found = watcher.reject(IdentityError("the TLS files cannot be read", str(error)))
        if isinstance(found, Reloaded):
            activate(found.identity)
            self.identity = found.identity
            self._activated()
            self._metrics.tls_reloads_total.inc((self._material, "success"))
            self._metrics.tls_last_reload_timestamp_seconds.set(int(time.time()), (self._material,))
            _log.info("TLS material reloaded", **self._component, result="success")
        elif isinstance(found, Rejected):
            self._metrics.tls_reloads_total.inc((self._material, "rejected"))
            _log.warning(
                "TLS material reload rejected; retaining last-known-good configuration",
                **self._component,
                error=str(found.error),
                result="rejected",
            )
        self._metrics.tls_last_reload_success.set(0 if watcher.rejecting else 1, (self._material,))
        self._log_expiry()

    def _activated(self) -> None:
        end = not_after(self.identity)
        self._expires_at = end.timestamp()
        self._warned_s = float("inf")
        self._expiry_reported = False
        self._metrics.tls_certificate_expiry_seconds.set(int(self._expires_at), (self._material,))
        self._metrics.tls_last_reload_success.set(1, (self._material,))

    def _log_expiry(self) -> None:
        left_s = self._expires_at - time.time()
        if left_s <= 0:
            if not self._expiry_reported:
                self._expiry_reported = True
                _log.warning("the served TLS certificate has expired; not ready", **self._component)
            return
        due = [limit for limit in _WARN_BEFORE_S if left_s <= limit < self._warned_s]
        if due:
            self._warned_s = min(due)
            _log.warning("the served TLS certificate expires soon", **self._component, seconds_left=int(left_s))


def check_usable(identity: Identity) -> None:
    """Do the TLS handshake of a tunnel with the pair, as workers will. Raises `IdentityError`."""
    try:
        dry_run(ServerTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem))
    except UnusableIdentityError as error:
        raise IdentityError("TLS server identity cannot be used", str(error)) from error


def check_usable_for_grpc(identity: Identity) -> None:
    """Do the TLS handshake of a gRPC port with the pair. Raises `IdentityError`."""
    # With the gRPC library of 14 MiB, which few routers need.
    from router.control_plane import grpc_dry_run

    try:
        grpc_dry_run.dry_run(identity.cert_pem, identity.key_pem)
    except grpc_dry_run.UnusableGrpcIdentityError as error:
        raise IdentityError("TLS server identity cannot be used", str(error)) from error


def check_usable_for_http(identity: Identity) -> None:
    """Make a TLS context with the pair. Raises `IdentityError`."""
    try:
        HttpTls(identity)
    except ssl.SSLError as error:
        raise IdentityError("TLS server identity cannot be used", error.reason or str(error)) from error
