"""The router's options, each written once, and what the command line and the environment said of them.

A field is an option: its name, type and default, and by `router.config.option` its flag, environment variable and help.
Fields are named after the flags (`--dns-poll-ms` is `dns_poll_ms`); units are in the names. Options marked `added` have no
counterpart in the reference router; their defaults keep its behaviour. Those marked `later` came after its 0.11 line. No value
is a secret: paths only. docs/operations.md, "Command line", explains the rules.

They stand in modules by subject, each derived from the one before in the order of `--help`: `listener_options.py`,
`tunnel_options.py`, `request_options.py`, `worker_options.py`, `operator_options.py`, `openai_options.py`, and this one.
"""

from dataclasses import dataclass, fields
from typing import Any, Final

from router.config.explicit_uri import shown
from router.config.listener_options import DEFAULT_HOSTNAME_TEMPLATE
from router.config.openai_options import OpenAiOptions
from router.config.option import Option, option, options_of, switch
from router.config.option_values import (
    SocketAddress,
    milliseconds,
    milliseconds_above_zero,
    not_supported,
    text,
    uint32_above_zero,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OpenAiOptions):
    """All options of one process. A listen address stays text until the checks before the start parse it."""

    shutdown_drain_timeout_ms: int = option(
        "--shutdown-drain-timeout-ms",
        "MS",
        milliseconds,
        default=30_000,
        help="Time to finish what runs after SIGTERM or SIGINT; a second signal ends at once.",
        section="Start and end",
    )
    readiness_warmup_ms: int = option(
        "--readiness-warmup-ms",
        "MS",
        milliseconds,
        default=0,
        help="/readyz stays 503 for this long after the start, or until the number of routable workers is stable; everything "
        "else works meanwhile. 0 is ready at once.",
        env="STARGATE_READINESS_WARMUP_MS",
        later=True,
    )
    readiness_stabilization_sample_interval_ms: int = option(
        "--readiness-stabilization-sample-interval-ms",
        "MS",
        milliseconds_above_zero,
        default=1_000,
        help="How often routable workers are counted while /readyz warms up.",
        env="STARGATE_READINESS_STABILIZATION_SAMPLE_INTERVAL_MS",
        later=True,
    )
    readiness_stabilization_window: int = option(
        "--readiness-stabilization-window",
        "N",
        uint32_above_zero,
        default=5,
        help="How often in a row that count, above 0, must be the same as before for the warm-up to end.",
        env="STARGATE_READINESS_STABILIZATION_WINDOW",
        later=True,
    )
    lame_duck_ms: int = option(
        "--lame-duck-ms",
        "MS",
        milliseconds,
        default=0,
        help="After SIGTERM keep the HTTP port open this long with /readyz 503, serve new requests and close their "
        "connections, and keep the metrics port until the end. Part of the drain time; 0 closes both at once.",
        env="STARGATE_LAME_DUCK_MS",
        added=True,
    )
    ports_file: str | None = option(
        "--ports-file",
        "PATH",
        text,
        default=None,
        help="Once ready, write the bound addresses there as JSON.",
        env="STARGATE_PORTS_FILE",
        added=True,
    )
    routing_reservation_ttl_min_ms: int | None = option(
        "--routing-reservation-ttl-min-ms",
        "MS",
        milliseconds,
        default=None,
        help="Accepted and ignored: reservations end with the worker's next report.",
        env="STARGATE_ROUTING_RESERVATION_TTL_MIN_MS",
        later=True,
        section="Known from other releases",
        ignored=True,
    )
    routing_reservation_ttl_max_ms: int | None = option(
        "--routing-reservation-ttl-max-ms",
        "MS",
        milliseconds,
        default=None,
        help="Accepted and ignored, as the option before.",
        env="STARGATE_ROUTING_RESERVATION_TTL_MAX_MS",
        later=True,
        ignored=True,
    )
    allow_open_worker_auth: bool = switch(
        "--allow-open-worker-auth",
        help="Accepted and ignored: without --worker-auth-endpoint every worker is accepted anyway.",
        env="STARGATE_ALLOW_OPEN_WORKER_AUTH",
        later=True,
        ignored=True,
    )
    worker_auth_file: None = option(
        "--worker-auth-file",
        "PATH",
        not_supported("without it every worker would be accepted, so the start ends here; use --worker-auth-endpoint"),
        default=None,
        help="Not supported yet: the start ends with a usage error.",
        env="STARGATE_WORKER_AUTH_FILE",
        later=True,
    )
    config_file: None = option(
        "--config-file",
        "PATH",
        not_supported("its settings would be missing, so the start ends here; use options or environment variables"),
        default=None,
        help="Not supported yet: the start ends with a usage error.",
        env="STARGATE_CONFIG_FILE",
        later=True,
    )

    @property
    def reverse(self) -> bool:
        """Whether workers dial this router."""
        return self.backend_connectivity == "reverse"

    @property
    def as_of_0_18(self) -> bool:
        """Whether peers see the behaviour of the 0.18 line, not that of 0.11 (docs/compatibility.md)."""
        return self.compat == "0.18"

    @property
    def head_timeout_ms(self) -> int:
        """Limit in ms from opening a tunnel stream to the response head."""
        if self.quic_request_timeout_ms is not None:
            return self.quic_request_timeout_ms
        return 300_000 if self.as_of_0_18 else 30_000

    @property
    def hostname_template(self) -> str:
        """The template of host names for workers; an empty one counts as none."""
        return self.advertised_hostname_template or DEFAULT_HOSTNAME_TEMPLATE

    @property
    def advertised_host(self) -> str:
        """The host name of this router for workers: the template, filled in."""
        filled = self.hostname_template.replace("{pod_name}", self.pod_name or self.stargate_id)
        return filled.replace("{namespace}", self.pod_namespace or "")

    @property
    def ignored_options(self) -> list[str]:
        """The flags of options that are given and have no effect."""
        return [one.flag for one in OPTIONS if one.ignored and getattr(self, one.name) != one.default]

    def shown(self, *names: str) -> tuple[str, ...]:
        """`--flag=value` of the options with these field names that have a value: for messages, without user information."""
        values = {name: getattr(self, name) for name in names}
        return tuple(
            f"{one.flag}={_shown(values[one.name])}" for one in OPTIONS if values.get(one.name) not in (None, ())
        )

    def reported(self) -> dict[str, Any]:
        """All settings by name, for the log."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["quic_request_timeout_ms"] = self.head_timeout_ms
        return {
            name: value if value is None or isinstance(value, (bool, int)) else _shown(value)
            for name, value in values.items()
        }

    def given(self) -> dict[str, Any]:
        """Those of `reported` that differ from the default, or have none."""
        reported = self.reported()
        return {one.name: reported[one.name] for one in OPTIONS if getattr(self, one.name) != one.default}


def _shown(value: object) -> str:
    """A value in the spelling of the command line."""
    if isinstance(value, tuple) and not isinstance(value, SocketAddress):
        value = tuple("=".join(one) if isinstance(one, tuple) else one for one in value)
        return ",".join(shown(str(one)) for one in value)
    return str(value).lower() if isinstance(value, bool) else shown(str(value))


OPTIONS: Final[tuple[Option, ...]] = options_of(Settings)
"""The options in the order of `--help`."""
