"""The lines above the tables: the router, its policy and certificates, and the last minute."""

from typing import Final

from router.operators.live_document import Certificate, Live, Second
from router.top.figures import bars, count, duration, milliseconds
from router.top.printable import printable
from router.top.spans import Line, Role, Span

_FEW_DAYS: Final = 14
"""Days left to a certificate from which on it is a warning."""

_MANY_DAYS: Final = 3650
_WIDE: Final = 145
"""Columns of a terminal from which on the last minute is in full words."""

_GAP: Final = Span("  ")


def overview(live: Live, width: int) -> list[Line]:
    """Four lines for a terminal of `width` columns; what does not fit is cut by the terminal."""
    return [_router(live), _load(live), _policy(live), _minute(live.history, width)]


def _router(live: Live) -> Line:
    router = live.state.router
    line: Line = [Span(printable(router.stargate_id), Role.CHOSEN), _GAP, Span(printable(router.version))]
    if router.commit and router.commit != "unknown":
        line.append(Span(f" ({printable(router.commit)[:12]})"))
    line += [_GAP, Span("up ", Role.LABEL), Span(duration(router.uptime_s)), _GAP]
    if router.draining:
        line.append(Span("DRAINING", Role.WARNING))
    elif router.ready:
        line.append(Span("ready", Role.GOOD))
    else:
        line.append(Span(printable(f"NOT READY: {'; '.join(router.not_ready)}"), Role.BAD))
    if len(router.processes) > 1:
        serving = sum(one.serving for one in router.processes)
        restarts = sum(one.restarts for one in router.processes)
        role = Role.PLAIN if serving == len(router.processes) else Role.BAD
        line += [_GAP, Span("processes ", Role.LABEL), Span(f"{serving}/{len(router.processes)}", role)]
        if restarts:
            line += [Span(f" ({restarts} restarts)", Role.WARNING)]
    return line


def _load(live: Live) -> Line:
    state = live.state
    healthy = sum(one.state == "healthy" for one in state.workers)
    line: Line = [
        *(Span("in flight ", Role.LABEL), Span(count(state.router.in_flight)), _GAP),
        *(Span("waiting ", Role.LABEL), Span(count(state.router.waiting)), _GAP),
        *(Span("workers ", Role.LABEL), Span(f"{healthy}/{len(state.workers)} healthy"), _GAP),
        *(Span("tok/s ", Role.LABEL), Span(count(sum(one.output_tps for one in state.workers))), _GAP),
        *(Span("queued ", Role.LABEL), Span(count(sum(one.queue for one in state.workers)))),
    ]
    if state.left_out:
        line += [_GAP, Span(f"{count(state.left_out)} rows are not shown", Role.WARNING)]
    return line


def _policy(live: Live) -> Line:
    policy, now = live.state.policy, live.state.router.now
    line: Line = [Span("policy ", Role.LABEL), Span(printable(policy.default_algorithm))]
    if policy.digest not in {"none", ""}:
        line.append(Span(f" {printable(policy.digest)[:12]}"))
        line.append(Span(f", loaded {duration(max(0.0, now - policy.loaded_at))} ago"))
    if policy.rejected is not None:
        line.append(Span(printable(f", NEW FILE REFUSED: {policy.rejected}"), Role.BAD))
    line += [_GAP, Span("certificates" if live.state.certificates else "no certificates", Role.LABEL)]
    for one in sorted(live.state.certificates, key=lambda certificate: certificate.days_left):
        line += [Span(" "), _certificate(one)]
    return line


def _certificate(one: Certificate) -> Span:
    left = f"{max(0.0, one.days_left):.0f}d" if one.days_left < _MANY_DAYS else ">10y"
    text = f"{printable(one.name)} {left}"
    if one.days_left <= 0:
        return Span(f"{text} EXPIRED", Role.BAD)
    if not one.last_reload_ok:
        return Span(f"{text} RELOAD FAILED", Role.BAD)
    if one.generated:
        text += " generated"
    return Span(text, Role.WARNING if one.days_left < _FEW_DAYS else Role.GOOD)


def _minute(history: list[Second], width: int) -> Line:
    is_wide = width >= _WIDE
    requests = [one.requests for one in history]
    errors = sum(one.errors for one in history)
    last = requests[-1] if requests else 0
    line: Line = [
        Span("last minute " if is_wide else "1 min ", Role.LABEL),
        Span(bars(requests, 60 if is_wide else min(60, max(12, width - 68)))),
    ]
    line.append(Span(f" {count(last)}/s"))
    line.append(Span(f", {count(sum(requests))} requests, " if is_wide else " ", Role.LABEL))
    line.append(
        Span(f"{count(errors)} errors" if is_wide else f"{count(errors)} err", Role.BAD if errors else Role.PLAIN)
    )
    # A second without an answer has no quantiles: the latest that has them.
    first = next((one.first_token_ms for one in reversed(history) if one.first_token_ms), None)
    total = next((one.total_ms for one in reversed(history) if one.total_ms), None)
    titles = ("first token ", "total ") if is_wide else ("first ", "total ")
    shown = [(title, found) for title, found in zip(titles, (first, total), strict=True) if found is not None]
    if shown:
        line += [_GAP, Span("ms p50/p99 ", Role.LABEL)]
    for title, found in shown:
        line += [Span(title, Role.LABEL), Span(f"{milliseconds(found.p50)}/{milliseconds(found.p99)} ")]
    return line
