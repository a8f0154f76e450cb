"""Certificates that may change while the program runs: loaded at the start, polled, reported in metrics and logs."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from certs import Identity, IdentityError, Rejected, Reloaded, Watcher, load_identity, not_after
from kubernetes_router.metrics import Metrics
from router.config.startup_checks import StartupError
from tunnel_protocol.small_file import FileReader, SmallFileError

_log = structlog.get_logger()


class WatchedIdentity:
    """A mounted certificate and key."""

    def __init__(
        self, cert_path: str, key_path: str, material: str, metrics: Metrics, check: Callable[[Identity], None] | None
    ) -> None:
        """Load both files; `material` is the label in metrics. `check` refuses (`IdentityError`) a pair that cannot be served.

        Raises `StartupError`.
        """
        self._material = material
        self._metrics = metrics
        self._reader = FileReader()

        def read() -> Identity:
            found = load_identity(cert_path, key_path, datetime.now(UTC))
            if check is not None:
                check(found)
            return found

        try:
            self.identity = self._reader.run(cert_path, read)
        except IdentityError as error:
            causes = (error.reason, error.detail) if error.detail else (error.reason,)
            raise StartupError(f"load TLS material {material}", *causes) from None
        except SmallFileError as error:
            raise StartupError(f"load TLS material {material}", str(error)) from None
        self._watcher = Watcher(cert_path, key_path, self.identity, check)
        self._expires_at = 0.0
        self._activated()

    def expired(self) -> bool:
        """Whether the certificate in use has expired."""
        return time.time() > self._expires_at

    async def poll_every(self, interval_s: float, activate: Callable[[Identity], None]) -> None:
        """Look at the files every `interval_s` seconds, and pass each new valid pair to `activate`, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            await self.poll(activate)

    async def poll(self, activate: Callable[[Identity], None]) -> None:
        """Look at the files once."""
        try:
            found = await self._reader.result(self._watcher.cert_path, lambda: self._watcher.poll(datetime.now(UTC)))
        except SmallFileError as error:
            found = self._watcher.reject(IdentityError("the TLS files cannot be read", error.reason))
        if isinstance(found, Reloaded):
            activate(found.identity)
            self.identity = found.identity
            self._activated()
            self._metrics.tls_reloads_total.inc((self._material, "success"))
            _log.info("TLS material reloaded", material_type=self._material)
        elif isinstance(found, Rejected):
            self._metrics.tls_reloads_total.inc((self._material, "rejected"))
            _log.warning(
                "TLS material reload rejected; retaining last-known-good configuration",
                material_type=self._material,
                error=str(found.error),
            )

    def _activated(self) -> None:
        self._expires_at = not_after(self.identity).timestamp()
        self._metrics.tls_certificate_expiry_seconds.set(int(self._expires_at), (self._material,))
