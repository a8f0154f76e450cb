"""The metrics of several processes as those of one router: which are added up, and what stands for gauges. Without I/O.

Counters and histograms are sums, which never fall: what a process had counted stays in them when it ends. A gauge is the sum too if
it counts what each process has for itself, and else the lowest or highest value. See docs/operations.md, "Several processes".
"""

from collections.abc import Iterable, Mapping
from typing import Final

from router.supervisor.metric_page import MetricFamily

HIGHEST: Final = frozenset(
    {"active_inference_servers", "build_info", "discovery_routers", "draining", "lb_config_info", "not_ready"}
)
"""Gauges, without prefix, whose highest value is shown: each process sees the same workers, or 1 is true of any."""

LOWEST: Final = frozenset(
    {
        "lb_config_last_reload_success",
        "look_again_last_success_timestamp_seconds",
        "openai_keys",
        "openai_keys_last_reload_success",
        "tls_certificate_expiry_seconds",
        "tls_last_reload_success",
        "tls_last_reload_timestamp_seconds",
    }
)
"""Gauges, without prefix, whose lowest value is shown: the process that is worst off."""

_LOWEST_OF_THE_SYSTEM: Final = frozenset({"process_start_time_seconds", "process_max_fds"})
_ADDED: Final = ("counter", "histogram")

Page = Mapping[str, MetricFamily]


class MetricSum:
    """Adds up pages, and keeps the counters and histograms of processes that ended."""

    def __init__(self, prefix: str) -> None:
        """`prefix` stands before the names of the router's own families."""
        self._prefix = prefix
        self._ended: dict[str, MetricFamily] = {}

    def retire(self, page: Page) -> None:
        """A process has ended, and `page` was its last: what it counted stays in the sum."""
        for family in page.values():
            if family.kind in _ADDED:
                _add(self._ended.setdefault(family.name, _empty(family)), family, "sum")

    def total(self, pages: Iterable[Page]) -> dict[str, MetricFamily]:
        """The families of all processes; `pages` are those of the running ones."""
        total: dict[str, MetricFamily] = {}
        for page in (self._ended, *pages):
            for family in page.values():
                _add(total.setdefault(family.name, _empty(family)), family, self._rule(family))
        return total

    def _rule(self, family: MetricFamily) -> str:
        if family.kind in _ADDED:
            return "sum"
        name = family.name.removeprefix(self._prefix)
        if name in HIGHEST:
            return "highest"
        return "lowest" if name in LOWEST or family.name in _LOWEST_OF_THE_SYSTEM else "sum"


def counted(page: Page) -> Page:
    """Only the counters and histograms of `page`."""
    return {name: family for name, family in page.items() if family.kind in _ADDED}


def _empty(family: MetricFamily) -> MetricFamily:
    return MetricFamily(family.name, family.help, family.kind)


def _add(into: MetricFamily, family: MetricFamily, rule: str) -> None:
    samples = into.samples
    for series, value in family.samples.items():
        if series not in samples:
            samples[series] = value
        elif rule == "sum":
            samples[series] += value
        else:
            samples[series] = max(samples[series], value) if rule == "highest" else min(samples[series], value)
