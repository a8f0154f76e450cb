"""What a router has told so far: the whole state, a minute of history and the last requests, out of its events."""

from typing import Final

from router.operators.live_document import SECONDS, Live, Request, Second

REQUESTS: Final = 50
"""Requests that are shown: as many as the router keeps."""


def merged(known: Live | None, update: Live) -> Live:
    """`known` after an event `update`: its state, its seconds put in place by their time, its requests before the others."""
    if known is None:
        return update
    seconds: dict[int, Second] = {one.at: one for one in known.history}
    seconds.update((one.at, one) for one in update.history)
    requests: dict[tuple[str, int], Request] = {(one.process, one.number): one for one in update.requests}
    for one in known.requests:
        requests.setdefault((one.process, one.number), one)
    newest = sorted(requests.values(), key=lambda one: one.at, reverse=True)
    return Live(
        state=update.state,
        history=[seconds[at] for at in sorted(seconds)][-SECONDS:],
        requests=newest[:REQUESTS],
    )
