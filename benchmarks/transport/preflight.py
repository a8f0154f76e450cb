"""Checks whether this machine is suitable for measurements; a check is ok, a warning (strict mode: a failure) or unknown."""

import msgspec

from benchmarks.transport.environment import Environment

_BUSY = 0.75


class Check(msgspec.Struct, frozen=True):
    """The result of one check; `status` is `ok`, `warning`, `failure` or `unknown`."""

    name: str
    status: str
    detail: str


def preflight(facts: Environment, mode: str) -> list[Check]:
    """Results of all checks. There are failures only in `mode` `strict`; a fact that cannot be read is `unknown`."""
    limit = _BUSY * facts.usable_cpus
    load = None if facts.load_average is None else facts.load_average[0]
    governor, randomisation, watchdog = facts.cpu_governor, facts.address_space_randomisation, facts.nmi_watchdog
    rows: list[tuple[str, bool | None, str]] = [
        ("optimised build", not facts.runtime_profile.startswith("debug"), facts.runtime_profile),
        ("CPU governor", None if governor is None else governor == "performance", _said(governor, "performance")),
        (
            "address-space randomisation",
            None if randomisation is None else randomisation == 0,
            _said(randomisation, "0 (kernel.randomize_va_space)"),
        ),
        ("NMI watchdog", None if watchdog is None else watchdog == 0, _said(watchdog, "0 (kernel.nmi_watchdog)")),
        ("load of one minute", None if load is None else load <= limit, _said(load, f"{limit:g} at most")),
    ]
    bad = "failure" if mode == "strict" else "warning"
    return [Check(name, "unknown" if fit is None else "ok" if fit else bad, detail) for name, fit, detail in rows]


def _said(value: float | str | None, wanted: str) -> str:
    return "cannot be read" if value is None else f"{value}; wanted: {wanted}"
