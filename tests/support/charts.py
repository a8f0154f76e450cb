"""The arguments with which the charts of the reference start a router, as they are rendered into its pod.

Charts 1.9 (August 2026) to 1.13, namespace `nvcf`. `$(NAME)` is filled in by the kubelet.
"""

from typing import NamedTuple

HEADLESS = "llm-request-router-headless.nvcf.svc.cluster.local"
FRONT = "llm-request-router-backend-router.nvcf.svc.cluster.local"

STATEFUL_3 = (
    "--stargate-id=$(POD_NAME)",
    "--listen-addr=0.0.0.0:50071",
    "--http-listen-addr=0.0.0.0:8000",
    "--advertise-addr=$(POD_IP):50071",
    f"--stargate-discovery-dns-name={HEADLESS}",
    "--pod-name=$(POD_NAME)",
    "--pod-namespace=$(POD_NAMESPACE)",
    f"--advertised-hostname-template={{pod_name}}.{HEADLESS}",
    "--shutdown-drain-timeout-ms=30000",
    "--quic-connect-timeout-ms=2000",
    "--quic-request-timeout-ms=30000",
    "--metrics-port=9090",
    "--backend-connectivity=reverse",
    "--reverse-tunnel-listen-addr=0.0.0.0:50072",
    "--reverse-tunnel-pylon-dial-addr=$(POD_IP):50072",
    "--reverse-tunnel-connect-timeout-ms=10000",
    "--worker-auth-endpoint=http://api.nvcf.svc.cluster.local:9090",
    "--secrets-path=/vault/secrets/secrets.json",
    "--secrets-json-path=nvcfApiToken",
    "--quic-insecure",
)
"""Three replicas of a StatefulSet with the default values of chart 1.9."""

HEARTBEAT = "--watch-heartbeat-ms=5000"
WARM_UP = "--readiness-warmup-ms=60000"
STABILIZATION = ("--readiness-stabilization-sample-interval-ms=1000", "--readiness-stabilization-window=5")


def changed(
    base: tuple[str, ...], *given: str, without: tuple[str, ...] = (), after: str | None = None
) -> tuple[str, ...]:
    """`base` with `given`: in place of what it has of the same flag, else behind the flag `after`, or at the end."""
    replaced = {flag_of(word): word for word in given}
    kept = [replaced.pop(flag_of(word), word) for word in base if flag_of(word) not in without]
    at = len(kept) if after is None else [flag_of(word) for word in kept].index(after) + 1
    return (*kept[:at], *(word for word in given if flag_of(word) in replaced), *kept[at:])


def flag_of(word: str) -> str:
    """`--flag` of `--flag=value`."""
    return word.partition("=")[0]


_ONE = ("--disable-dns-discovery", "--advertised-hostname-template=llm-request-router.nvcf.svc.cluster.local")
_DIAL = "--reverse-tunnel-pylon-dial-addr"
_AUTH = ("--worker-auth-endpoint", "--secrets-path", "--secrets-json-path")
_REVERSE = ("--backend-connectivity", "--reverse-tunnel-listen-addr", _DIAL)
_TLS = ("--tls-cert-path=/etc/stargate/tls/tls.crt", "--tls-key-path=/etc/stargate/tls/tls.key")
_FRONT_BARE = (f"--grpc-pylon-dial-addr={FRONT}:50071", f"{_DIAL}={FRONT}:50072")
_TRACING = "--otel-endpoint=http://collector.observability.svc.cluster.local:4317"
_FRONT = (f"--grpc-pylon-dial-addr=http://{FRONT}:50071", f"{_DIAL}={FRONT}:50072")

DEPLOYMENT_3 = changed(
    changed(STATEFUL_3, *_FRONT, after="--reverse-tunnel-listen-addr"),
    HEARTBEAT,
    after="--advertised-hostname-template",
)
"""Three replicas of a Deployment behind the backend router, chart 1.12.1."""
DEPLOYMENT_1 = changed(DEPLOYMENT_3, *_ONE, without=("--grpc-pylon-dial-addr", _DIAL))


class Row(NamedTuple):
    """One way to render a chart."""

    chart: str
    values: str
    arguments: tuple[str, ...]

    @property
    def warms_up(self) -> bool:
        """Whether the router is not ready at once."""
        return any(word.startswith("--readiness-warmup-ms=") and not word.endswith("=0") for word in self.arguments)


def _of_1_9() -> list[Row]:
    three = STATEFUL_3
    one = changed(three, *_ONE, without=(_DIAL,))
    rows = {
        "default": three,
        "1 replica": changed(one, without=("--disable-dns-discovery",)),
        "1 replica, discovery.disableDnsDiscovery": one,
        "kubernetes.advertisedHostnameTemplate": changed(
            three, "--advertised-hostname-template={pod_name}.{namespace}.example"
        ),
        "discovery.*": changed(
            three,
            "--stargate-discovery-dns-name=routers.other.svc.cluster.local",
            "--dns-poll-ms=500",
            "--dns-resolver-ttl-ms=0",
            HEARTBEAT,
        ),
        "transport.reverseTunnelListenAddr empty": changed(three, without=_REVERSE),
        "loadBalancer.config": changed(three, "--lb-config-path=/etc/llm-request-router/lb-config.json"),
        "tls.* with quicInsecure": changed(three, *_TLS),
        "tls.* without quicInsecure": changed(three, *_TLS, without=("--quic-insecure",)),
        "auth.workerAuthEndpoint empty": changed(three, without=_AUTH),
        "vault.noVaultAnnotations": changed(three, without=_AUTH[1:]),
        "observability.tracing": changed(three, _TRACING),
        "terminationGracePeriod 5 s": changed(three, "--shutdown-drain-timeout-ms=5000"),
        "large timeouts as Helm prints them": changed(
            three, "--quic-request-timeout-ms=3e+06", "--shutdown-drain-timeout-ms=1.2e+06"
        ),
    }
    return [Row("1.9", values, arguments) for values, arguments in rows.items()]


def _of_1_12_and_1_13() -> list[Row]:
    stateful = changed(STATEFUL_3, HEARTBEAT, after="--advertised-hostname-template")
    remote = ("--remote-stargate-url=https://east.example:50071", "--remote-stargate-url=https://west.example")
    cleartext = ("--remote-stargate-url=http://east.example:50071", "--allow-insecure-remote-watch-http")
    rows = []
    for chart, timing in (("1.12.1", ()), ("1.12.2", (WARM_UP,)), ("1.13", (WARM_UP, *STABILIZATION))):
        three, one, pinned = (
            changed(base, *timing, after="--shutdown-drain-timeout-ms")
            for base in (DEPLOYMENT_3, DEPLOYMENT_1, stateful)
        )
        rows += [
            Row(chart, "default", three),
            Row(chart, "1 replica", one),
            Row(chart, "workload.kind StatefulSet", pinned),
            Row(chart, "observability.tracing", changed(three, _TRACING)),
        ]
    three = changed(DEPLOYMENT_3, WARM_UP, *STABILIZATION, after="--shutdown-drain-timeout-ms")
    more = {
        "discovery.remoteWatchUrls": (*three, *remote),
        "discovery.allowInsecureRemoteWatchHttp": (*three, *cleartext),
        "readiness.warmupMs 0": changed(three, "--readiness-warmup-ms=0"),
        "readiness.*": changed(
            three,
            "--readiness-warmup-ms=5000",
            "--readiness-stabilization-sample-interval-ms=250",
            "--readiness-stabilization-window=12",
        ),
        "backendRouter.pylonGrpcDialAddress https": changed(three, "--grpc-pylon-dial-addr=https://front.example"),
        "quic request timeout of the 0.18 line": changed(three, "--quic-request-timeout-ms=300000"),
        "auth.allowOpen (branch)": changed(three, "--allow-open-worker-auth", without=_AUTH),
        "tls.* without quicInsecure": changed(three, *_TLS, without=("--quic-insecure",)),
    }
    return rows + [Row("1.13", values, arguments) for values, arguments in more.items()]


ROWS: tuple[Row, ...] = (*_of_1_9(), *_of_1_12_and_1_13())
"""Every documented value at least once, with 1 and 3 replicas; they start as they are."""

BARE_ADDRESS = Row("1.10 and 1.11", "backendRouter.enabled", changed(STATEFUL_3, *_FRONT_BARE, HEARTBEAT))
"""Starts with `--compat 0.11` only: the dial address has no scheme."""

CREDENTIALS_FILE = Row(
    "branch",
    "auth.credentialsSecret",
    changed(DEPLOYMENT_3, "--worker-auth-file=/etc/stargate/worker-auth/credentials.yaml", without=_AUTH),
)
CONFIG_FILE = Row("branch", "configuration file", ("--config-file=/etc/stargate/stargate.toml",))
