"""The routing policy in effect: read from the load-balancer file at start, swapped whole when the file changes.

A changed file is validated before anything of it is used; a bad one is told once and the last good one stays. What is active is
visible as a log line, and as digest and algorithm in a metric (docs/operations.md, "Metrics").
"""

import asyncio
import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import structlog

from router.balancing import BalancingConfig, ConfigError, Selector, load_config
from router.balancing.algorithm import MakeAlgorithm, installed_algorithms
from router.settings import Settings
from router.sockets import cause_of
from router.startup_checks import StartupError, causes_of
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()

MAX_CONFIG_BYTES = 4 << 20


class Policy:
    """Owns the selector; `look` is called periodically."""

    def __init__(
        self,
        path: Path | None,
        content: bytes | None,
        config: BalancingConfig,
        further: Mapping[str, MakeAlgorithm],
        metrics: Metrics,
    ) -> None:
        # Load balancing needs speed, not secrecy, of its random numbers.
        self.selector = Selector(config, random.Random(), further)  # noqa: S311
        self._further = frozenset(further)
        self._path = path
        self._active = content
        self._refused: bytes | None = None
        self._metrics = metrics
        self._info: tuple[str, str] | None = None
        self._tell(config)

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> "Policy":
        """Read the file, if one is configured. Raises `StartupError`."""
        further = _further()
        if settings.lb_config_path is None:
            return cls(None, None, BalancingConfig(), further, metrics)
        path = Path(settings.lb_config_path)
        try:
            content = _read(path)
        except OSError as error:
            raise StartupError(f"failed to read lb config file: {settings.lb_config_path}", cause_of(error)) from None
        try:
            config = load_config(content, frozenset(further))
        except ConfigError as error:
            raise StartupError(
                f"failed to parse lb config file: {settings.lb_config_path}", *causes_of(error)
            ) from None
        try:
            return cls(path, content, config, further, metrics)
        except ConfigError as error:
            raise StartupError("failed to create load balancer router", *causes_of(error)) from None

    async def look(self) -> None:
        """Read the file once more and swap the policy if it changed and is valid."""
        if self._path is None:
            return
        try:
            content = await asyncio.to_thread(_read, self._path)
        except OSError as error:
            self._refuse(None, cause_of(error))
            return
        if content == self._active:
            self._refused = None
            self._metrics.lb_config_last_reload_success.set(1)
        elif content != self._refused:
            try:
                config = load_config(content, self._further)
                self.selector.replace_config(config)
            except ConfigError as error:
                self._refuse(content, ": ".join(causes_of(error)))
            else:
                self._active, self._refused = content, None
                self._metrics.lb_config_reloads_total.inc(("success",))
                self._tell(config)

    def _refuse(self, content: bytes | None, why: str) -> None:
        self._metrics.lb_config_last_reload_success.set(0)
        told = b"" if content is None else content
        if told != self._refused:
            self._refused = told
            self._metrics.lb_config_reloads_total.inc(("rejected",))
            _log.warning("load balancer config rejected; retaining the last good one", path=str(self._path), error=why)

    def _tell(self, config: BalancingConfig) -> None:
        digest = "none" if self._active is None else hashlib.sha256(self._active).hexdigest()[:12]
        if self._info is not None:
            self._metrics.lb_config_info.remove(self._info)
        self._info = (digest, config.default_lb)
        self._metrics.lb_config_info.set(1, self._info)
        self._metrics.lb_config_last_reload_success.set(1)
        _log.info(
            "load balancer config loaded",
            default_lb=config.default_lb,
            model_overrides=len(config.model_overrides),
            hash=digest,
        )

    @property
    def watched(self) -> bool:
        """Whether there is a file to look at again."""
        return self._path is not None


def _further() -> Mapping[str, MakeAlgorithm]:
    """Algorithms of installed packages; one that cannot be loaded stops the start instead of vanishing."""
    try:
        return installed_algorithms()
    except (ImportError, AttributeError) as error:
        raise StartupError("failed to create load balancer router", *causes_of(error)) from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise OSError(27, f"larger than {MAX_CONFIG_BYTES} bytes")
    return content
