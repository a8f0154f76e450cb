"""The active routing policy: read from the load-balancer file at start, replaced as a whole when the file changes.

A changed file is validated before any part of it is used; an invalid one is logged once and the last valid policy is kept.
The active policy is shown in a log line, and by digest and algorithm in a metric (docs/operations.md, "Metrics").
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from router.balancing import BalancingConfig, ConfigError, Selector, load_config
from router.balancing.algorithm import MakeAlgorithm, installed_algorithms
from router.balancing.dry_run import dry_run
from router.balancing.json_document import DOCUMENT
from router.balancing.settings import CURRENT, BalancingSettings
from router.config import package_settings
from router.config.settings import Settings
from router.config.startup_checks import StartupError, causes_of
from router.operators.live_document import Policy as PolicyState
from router.telemetry.metrics import Metrics
from tunnel_protocol.small_file import FileReader, SmallFileError, read_small_file

_log = structlog.get_logger()


class Policy:
    """Owns the selector; `poll` is called periodically."""

    def __init__(
        self,
        path: Path | None,
        content: bytes | None,
        config: BalancingConfig,
        plugins: Mapping[str, MakeAlgorithm],
        metrics: Metrics,
        reader: FileReader | None = None,
        settings: BalancingSettings = CURRENT,
    ) -> None:
        self._reader = reader or FileReader()
        self._looking = asyncio.Lock()
        # The random numbers of load balancing must be fast, not secret.
        self.selector = Selector(config, random.Random(), plugins, settings)  # noqa: S311
        self._plugins = plugins
        self._settings = settings
        self._path = path
        self._active = content
        self._refused: bytes | None = None
        self._unreadable: str | None = None
        self._metrics = metrics
        self._info: tuple[str, str] | None = None
        self._loaded_at = 0.0
        self._reloads = 0
        self._rejected: str | None = None
        self._tell(config)

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> "Policy":
        """Read the file, if one is configured. Raises `StartupError`."""
        plugins = _installed()
        balancing = package_settings.balancing(settings)
        if settings.lb_config_path is None:
            return cls(None, None, BalancingConfig(), plugins, metrics, settings=balancing)
        path = Path(settings.lb_config_path)
        options = settings.shown("lb_config_path")
        reader = FileReader()
        try:
            content, config = reader.run(str(path), lambda: _read(path, plugins, balancing))
        except SmallFileError as error:
            raise StartupError(f"failed to read lb config file: {path}", _cause(error), options=options) from None
        except ConfigError as error:
            failure_text = "failed to create load balancer router"
            if error.stage == "parse":
                failure_text = f"failed to parse lb config file: {path}"
            raise StartupError(failure_text, *causes_of(error), options=options) from None
        return cls(path, content, config, plugins, metrics, reader, balancing)

    async def poll(self) -> None:
        """Read the file, and replace the policy if it changed and a dry run with it succeeds."""
        async with self._looking:
            await self._poll_once()

    async def _poll_once(self) -> None:
        path, active, refused, plugins, settings = (
            self._path,
            self._active,
            self._refused,
            self._plugins,
            self._settings,
        )
        if path is None:
            return

        def read() -> tuple[bytes, BalancingConfig | ConfigError | None]:
            content = read_small_file(path, DOCUMENT)
            if content in (active, refused):
                return content, None
            try:
                return content, _usable(content, plugins, settings)
            except ConfigError as error:
                return content, error

        try:
            content, config = await self._reader.result(str(path), read)
        except SmallFileError as error:
            self._refuse(None, _cause(error))
            return
        if content == active:
            self._refused = self._unreadable = self._rejected = None
            self._metrics.lb_config_last_reload_success.set(1)
        elif isinstance(config, ConfigError):
            self._refuse(content, ": ".join(causes_of(config)))
        elif config is not None:
            try:
                self.selector.replace_config(config)
            except ConfigError as error:
                self._refuse(content, ": ".join(causes_of(error)))
            else:
                self._active, self._refused, self._unreadable = content, None, None
                self._metrics.lb_config_reloads_total.inc(("success",))
                self._reloads += 1
                self._tell(config)

    def _refuse(self, content: bytes | None, why: str) -> None:
        """Log a refused file: once per distinct content, and once per distinct error of a file that cannot be read."""
        self._metrics.lb_config_last_reload_success.set(0)
        self._rejected = why
        if content is None and why == self._unreadable:
            return
        self._unreadable = why if content is None else None
        if content is not None and content == self._refused:
            return
        self._refused = content
        self._metrics.lb_config_reloads_total.inc(("rejected",))
        _log.warning("load balancer config rejected; retaining the last good one", path=str(self._path), error=why)

    def _tell(self, config: BalancingConfig) -> None:
        digest = "none" if self._active is None else hashlib.sha256(self._active).hexdigest()[:12]
        if self._info is not None:
            self._metrics.lb_config_info.remove(self._info)
        self._info = (digest, config.default_lb)
        self._loaded_at = time.time()
        self._rejected = None
        self._metrics.lb_config_info.set(1, self._info)
        self._metrics.lb_config_last_reload_success.set(1)
        _log.info(
            "load balancer config loaded",
            default_lb=config.default_lb,
            model_overrides=len(config.model_overrides),
            hash=digest,
        )

    def state(self) -> PolicyState:
        """The policy in force, for the pages of the operators."""
        digest, default_lb = self._info or ("none", "")
        return PolicyState(
            digest=digest,
            default_algorithm=default_lb,
            loaded_at=round(self._loaded_at, 3),
            reloads=self._reloads,
            rejected=self._rejected,
        )

    @property
    def watched(self) -> bool:
        """Whether a file is configured that has to be polled."""
        return self._path is not None


def _installed() -> Mapping[str, MakeAlgorithm]:
    """The algorithms of installed packages. Raises `StartupError` for one that cannot be loaded."""
    try:
        return installed_algorithms()
    except (ImportError, AttributeError) as error:
        raise StartupError("failed to create load balancer router", *causes_of(error)) from None


def _read(
    path: Path, plugins: Mapping[str, MakeAlgorithm], settings: BalancingSettings
) -> tuple[bytes, BalancingConfig]:
    content = read_small_file(path, DOCUMENT)
    return content, _usable(content, plugins, settings)


def _usable(content: bytes, plugins: Mapping[str, MakeAlgorithm], settings: BalancingSettings) -> BalancingConfig:
    """Parse a document and do a dry run with the policy. Raises `ConfigError`."""
    config = load_config(content, plugins, settings)
    dry_run(config, plugins, settings)
    return config


def _cause(error: SmallFileError) -> str:
    return error.reason if error.error_number is None else f"{error.reason} (os error {error.error_number})"
