"""A front for OpenAI clients without a socket, for measurements in one process."""

import time

from router.config import package_settings
from router.config.settings import Settings
from router.openai.affinity import ScopedAffinity
from router.openai.estimator import LearningEstimator
from router.openai.front import Front
from router.openai.front_context import FrontContext
from router.openai.keys.authenticator import KeyAuthenticator, OpenAuthenticator
from router.openai.keys.key_file import KeyEntry
from router.openai.keys.key_format import digest_of
from router.openai.keys.key_table import KeyTable
from router.openai.limits.limiter import KeyLimiter
from router.openai.limits.memory_counter import MemoryCounter
from router.openai.model_names import KnownTargets
from router.openai.ports import Authenticator, FrontServices
from router.openai.usage import UsageCounters
from router.proxy.proxy import Proxy
from router.registry import Registry
from router.telemetry.metrics import Metrics


def front_in_memory(registry: Registry, proxy: Proxy, metrics: Metrics, options: Settings, key: str | None) -> Front:
    """A front with what `router/process` gives it; `key` is the only one that may ask, None lets everybody."""
    authenticator: Authenticator = OpenAuthenticator()
    if key is not None:
        digest = digest_of(key.encode())
        table = KeyTable({digest: KeyEntry(id="bench", digest=f"sha256:{digest.hex()}").caller()})
        refusals = metrics.openai_key_refusals_total
        authenticator = KeyAuthenticator(lambda: table, refusals, hide=True, now=time.time, remote=None)
    services = FrontServices(
        authenticator=authenticator,
        limiter=KeyLimiter(MemoryCounter(time.monotonic), metrics.openai_limit_refusals_total, open_if_unknown=False),
        estimator=LearningEstimator(),
        affinity=ScopedAffinity(),
        usage=UsageCounters(metrics),
    )
    context = FrontContext(
        package_settings.openai_front(options), services, proxy, registry, KnownTargets(time.monotonic), time.monotonic
    )
    return Front(context, metrics, is_ready=lambda: True)
