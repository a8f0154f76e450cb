"""The options of requests and their routing, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Literal

from router.config.option import option, switch
from router.config.option_values import (
    count_above_zero,
    dropped_headers,
    error_bodies,
    milliseconds,
    text,
    true_or_false,
    uint32,
    uint64,
)
from router.config.tunnel_options import TunnelOptions
from router.http1.settings import CONNECTIONS
from router.proxy.settings import REPLAY_COPY, REPLAY_TOTAL


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions(TunnelOptions):
    """The HTTP port, attempts and choice of a worker."""

    proxy_max_connect_retries: int = option(
        "--proxy-max-connect-retries",
        "N",
        uint32,
        default=2,
        help="Per request: further attempts after tunnel failures.",
        env="STARGATE_PROXY_MAX_CONNECT_RETRIES",
        section="Requests",
    )
    proxy_max_request_retries: int = option(
        "--proxy-max-request-retries",
        "N",
        uint32,
        default=2,
        help="Per request: further attempts after retryable answers (429, 503).",
        env="STARGATE_PROXY_MAX_REQUEST_RETRIES",
    )
    proxy_max_replay_body_bytes: int = option(
        "--proxy-max-replay-body-bytes",
        "BYTES",
        uint64,
        default=REPLAY_COPY.bytes or 0,
        help="Body copy kept per request for retries; a longer declared body is refused with 413.",
        env="STARGATE_PROXY_MAX_REPLAY_BODY_BYTES",
    )
    proxy_require_pylon_retry_signal: bool = option(
        "--proxy-require-pylon-retry-signal",
        "BOOL",
        true_or_false,
        default=True,
        help="Retry 429 and 503 only when the worker marks them as retryable.",
        env="STARGATE_PROXY_REQUIRE_PYLON_RETRY_SIGNAL",
    )
    proxy_retry_budget_header: str = option(
        "--proxy-retry-budget-header",
        "NAME",
        text,
        default="x-stargate-max-wait-ms",
        help="Request header with the retry budget in milliseconds; empty turns budgets off.",
        env="STARGATE_PROXY_RETRY_BUDGET_HEADER",
    )
    proxy_max_replay_total_bytes: int = option(
        "--proxy-max-replay-total-bytes",
        "BYTES",
        uint64,
        default=REPLAY_TOTAL.bytes or 0,
        help="Body copies kept over all requests; beyond it requests are forwarded without a copy and cannot be "
        "retried.",
        env="STARGATE_PROXY_MAX_REPLAY_TOTAL_BYTES",
        added=True,
    )
    proxy_response_idle_timeout_ms: int = option(
        "--proxy-response-idle-timeout-ms",
        "MS",
        milliseconds,
        default=0,
        help="Break off a response whose worker sends nothing for this long; 0 waits for ever.",
        env="STARGATE_PROXY_RESPONSE_IDLE_TIMEOUT_MS",
        added=True,
    )
    http_head_timeout_ms: int = option(
        "--http-head-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Answer 408 and close if a request head takes longer than this from its first byte; idle connections are "
        "not meant; 0 waits for ever.",
        env="STARGATE_HTTP_HEAD_TIMEOUT_MS",
        added=True,
    )
    http_body_timeout_ms: int = option(
        "--http-body-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Answer 408 and close if a client sends nothing of its body for this long while it is read; a slow but "
        "steady upload is not meant; 0 waits for ever.",
        env="STARGATE_HTTP_BODY_TIMEOUT_MS",
        added=True,
    )
    http_max_connections: int = option(
        "--http-max-connections",
        "N",
        count_above_zero,
        default=CONNECTIONS.pieces or 0,
        help="Client connections open at a time; further ones are closed at once, as they are when file descriptors "
        "run out.",
        env="STARGATE_HTTP_MAX_CONNECTIONS",
        added=True,
    )
    proxy_no_repeat_accepted: bool = switch(
        "--proxy-no-repeat-accepted",
        help="With --compat 0.11: never send a request again that a worker has received in full, so that nothing is "
        "generated twice. With 0.18 that is so without it, from when the request was handed to the tunnel.",
        env="STARGATE_PROXY_NO_REPEAT_ACCEPTED",
        added=True,
    )
    error_bodies: Literal["contract", "json"] = option(
        "--error-bodies",
        "FORM",
        error_bodies,
        default="contract",
        help="Bodies of the router's own error answers: 'contract' (most are empty) or 'json' (the empty ones get a reason "
        "in the shape of OpenAI's errors).",
        env="STARGATE_ERROR_BODIES",
        added=True,
    )
    trust_routing_method: bool = option(
        "--trust-routing-method",
        "true|false",
        true_or_false,
        default=True,
        help="Whether x-routing-method of a request chooses the algorithm. false: the header is ignored.",
        env="STARGATE_TRUST_ROUTING_METHOD",
        added=True,
    )
    proxy_drop_request_headers: tuple[str, ...] = option(
        "--proxy-drop-request-headers",
        "NAME",
        dropped_headers,
        default=(),
        help="Headers of clients that no worker gets, for example those by which an engine is steered; repeat it or "
        "separate with commas.",
        env="STARGATE_PROXY_DROP_REQUEST_HEADERS",
        added=True,
        repeats=True,
    )
    lb_config_path: str | None = option(
        "--lb-config-path",
        "PATH",
        text,
        default=None,
        help="Load-balancer configuration (JSON); without it power-of-n, and every algorithm on request.",
    )
    lb_config_poll_ms: int = option(
        "--lb-config-poll-ms",
        "MS",
        milliseconds,
        default=10_000,
        help="How often that file is looked at for changes; 0 reads it once.",
        env="STARGATE_LB_CONFIG_POLL_MS",
        added=True,
    )
