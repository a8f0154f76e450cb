"""The options of the port for OpenAI clients, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Literal

from router.config.operator_options import OperatorOptions
from router.config.option import option, switch
from router.config.option_values import (
    aliases,
    count_above_zero,
    forbidden_status,
    front_mode,
    milliseconds,
    milliseconds_above_zero,
    open_or_closed,
    origins,
    text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiOptions(OperatorOptions):
    """Options of the port for OpenAI clients, of its keys, limits and usage."""

    openai_listen_addr: str | None = option(
        "--openai-listen-addr",
        "IP:PORT",
        text,
        default=None,
        help="TCP: requests of OpenAI clients; needs --openai-keys-file, --openai-auth-endpoint or --openai-open. Without it there "
        "is no such port.",
        env="STARGATE_OPENAI_LISTEN_ADDR",
        added=True,
        section="OpenAI clients: the port",
    )
    openai_tls_cert_path: str | None = option(
        "--openai-tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Serve that port with TLS and this certificate chain.",
        env="STARGATE_OPENAI_TLS_CERT_PATH",
        added=True,
    )
    openai_tls_key_path: str | None = option(
        "--openai-tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of that chain.",
        env="STARGATE_OPENAI_TLS_KEY_PATH",
        added=True,
    )
    openai_mode: Literal["openai", "gateway"] = option(
        "--openai-mode",
        "MODE",
        front_mode,
        default="openai",
        help="'openai', or 'gateway' for clients of the LLM API gateway: its names of models, answers and numbers.",
        env="STARGATE_OPENAI_MODE",
        added=True,
    )
    openai_default_routing_key: str | None = option(
        "--openai-default-routing-key",
        "KEY",
        text,
        default=None,
        help="Routing key of models that OpenAI clients name without one; those registered without a routing key come first.",
        env="STARGATE_OPENAI_DEFAULT_ROUTING_KEY",
        added=True,
    )
    openai_alias: tuple[tuple[str, str], ...] = option(
        "--openai-alias",
        "NAME=MODEL",
        aliases,
        default=(),
        help="A further name of a model, for names that no worker has registered; repeat it or separate with commas.",
        env="STARGATE_OPENAI_ALIASES",
        added=True,
        repeats=True,
    )
    openai_max_body_bytes: int | None = option(
        "--openai-max-body-bytes",
        "BYTES",
        count_above_zero,
        default=None,
        help="Largest body of an OpenAI client; a larger one is answered 413. Without it that of --proxy-max-replay-body-bytes.",
        env="STARGATE_OPENAI_MAX_BODY_BYTES",
        added=True,
    )
    openai_head_timeout_ms: int = option(
        "--openai-head-timeout-ms",
        "MS",
        milliseconds,
        default=0,
        help="Answer 504 if no worker has begun to answer this long after a request of an OpenAI client arrived; 0 leaves it to "
        "the limits of routing and attempts.",
        env="STARGATE_OPENAI_HEAD_TIMEOUT_MS",
        added=True,
    )
    openai_idle_timeout_ms: int = option(
        "--openai-idle-timeout-ms",
        "MS",
        milliseconds,
        default=0,
        help="End an answer to an OpenAI client whose worker sends nothing for this long; 0 waits for ever.",
        env="STARGATE_OPENAI_IDLE_TIMEOUT_MS",
        added=True,
    )
    openai_total_timeout_ms: int = option(
        "--openai-total-timeout-ms",
        "MS",
        milliseconds,
        default=0,
        help="End an answer to an OpenAI client that takes longer than this, from the end of its request; 0 never does.",
        env="STARGATE_OPENAI_TOTAL_TIMEOUT_MS",
        added=True,
    )
    openai_keepalive_ms: int = option(
        "--openai-keepalive-ms",
        "MS",
        milliseconds,
        default=15_000,
        help="Send a comment after this much silence in a stream, so that nothing on the way closes it; 0 never does.",
        env="STARGATE_OPENAI_KEEPALIVE_MS",
        added=True,
    )
    openai_cors_origin: tuple[str, ...] = option(
        "--openai-cors-origin",
        "ORIGIN",
        origins,
        default=(),
        help="Origin whose web pages may use the front, or '*'; repeat it or separate with commas. Without it no page may.",
        env="STARGATE_OPENAI_CORS_ORIGINS",
        added=True,
        repeats=True,
    )
    openai_keys_file: str | None = option(
        "--openai-keys-file",
        "PATH",
        text,
        default=None,
        help="File of API keys, their rights and limits; `keys add` makes it. Clients of the OpenAI front need one of them.",
        env="STARGATE_OPENAI_KEYS_FILE",
        added=True,
        section="OpenAI clients: keys, limits, usage",
    )
    openai_keys_poll_ms: int = option(
        "--openai-keys-poll-ms",
        "MS",
        milliseconds_above_zero,
        default=1_000,
        help="How often that file is looked at for changes.",
        env="STARGATE_OPENAI_KEYS_POLL_MS",
        added=True,
    )
    openai_open: bool = switch(
        "--openai-open",
        help="Serve OpenAI clients without keys, each with all rights.",
        env="STARGATE_OPENAI_OPEN",
        added=True,
    )
    openai_open_anywhere: bool = switch(
        "--openai-open-anywhere",
        help="Allow --openai-open on an address that is not of the loopback.",
        env="STARGATE_OPENAI_OPEN_ANYWHERE",
        added=True,
    )
    openai_forbidden_status: Literal[403, 404] = option(
        "--openai-forbidden-status",
        "STATUS",
        forbidden_status,
        default=404,
        help="Answer to a key without the right to a model: '404', as if the model did not exist, or '403'.",
        env="STARGATE_OPENAI_FORBIDDEN_STATUS",
        added=True,
    )
    openai_auth_endpoint: str | None = option(
        "--openai-auth-endpoint",
        "URL",
        text,
        default=None,
        help="NVCF API that is asked (gRPC, AuthLlmInvocation) about API keys that are not in the file; http:// or https://. "
        "Its credential is in the file of --secrets-path.",
        env="STARGATE_OPENAI_AUTH_ENDPOINT",
        added=True,
    )
    openai_auth_timeout_ms: int = option(
        "--openai-auth-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=2_000,
        help="Limit for one question to that API.",
        env="STARGATE_OPENAI_AUTH_TIMEOUT_MS",
        added=True,
    )
    openai_auth_cache_ms: int = option(
        "--openai-auth-cache-ms",
        "MS",
        milliseconds,
        default=30_000,
        help="How long an acceptance is remembered, and a refusal for a sixth of it; 0 asks every time.",
        env="STARGATE_OPENAI_AUTH_CACHE_MS",
        added=True,
    )
    openai_auth_secrets_json_path: str = option(
        "--openai-auth-secrets-json-path",
        "KEY",
        text,
        default="nvcfApiToken",
        help="Dotted path to the token for that API in the secrets file; not used with --oauth2-provider-host.",
        env="STARGATE_OPENAI_AUTH_SECRETS_JSON_PATH",
        added=True,
    )
    openai_redis_url: str | None = option(
        "--openai-redis-url",
        "URL",
        text,
        default=None,
        help="Redis in which several routers or processes count limits together: redis:// or rediss://host:port/database, without "
        "a password. Without it each process counts in its memory.",
        env="STARGATE_OPENAI_REDIS_URL",
        added=True,
    )
    openai_redis_password_path: str | None = option(
        "--openai-redis-password-path",
        "PATH",
        text,
        default=None,
        help="File with the password for Redis; read for every connection.",
        env="STARGATE_OPENAI_REDIS_PASSWORD_PATH",
        added=True,
    )
    openai_redis_timeout_ms: int = option(
        "--openai-redis-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=200,
        help="Limit for one call of Redis, its connection included.",
        env="STARGATE_OPENAI_REDIS_TIMEOUT_MS",
        added=True,
    )
    openai_redis_down: Literal["open", "closed"] = option(
        "--openai-redis-down",
        "open|closed",
        open_or_closed,
        default="open",
        help="While Redis cannot be asked: 'open' serves requests without limits, 'closed' refuses those that have some (503).",
        env="STARGATE_OPENAI_REDIS_DOWN",
        added=True,
    )
    openai_usage_log: str | None = option(
        "--openai-usage-log",
        "PATH",
        text,
        default=None,
        help="One line of JSON for each request of an OpenAI client: key id, model, tokens, times; never content.",
        env="STARGATE_OPENAI_USAGE_LOG",
        added=True,
    )
