"""Work sent to a cluster since its workers last reported: added at once, dropped at the worker's next report.

Source: docs/control-plane.md, "Reservations". The effect of a reservation on the queue time map is a step: its own priority
and all less urgent ones wait `delta` longer. Steps commute, so the map is built from totals, in any order of reservations.
"""

from collections.abc import Callable, Mapping

from router.registry.stats import NO_ESTIMATES
from tunnel_protocol.queue_time import queue_time_delta_ms
from tunnel_protocol.unsigned import MAX_U64


class Reservation:
    """One attempt's work on one worker of one cluster, from `RoutedCluster.reserve`."""

    __slots__ = ("_ledger", "delta_ms", "inference_server_id", "input_tokens", "live", "priority")

    def __init__(self, ledger: "Reservations", inference_server_id: str, input_tokens: int, priority: int) -> None:
        self._ledger = ledger
        self.inference_server_id = inference_server_id
        self.input_tokens = input_tokens
        self.priority = priority
        self.live = True
        self.delta_ms: int | None = None
        """Milliseconds it adds to the queue time from its priority on, as `Reservations` last computed; None = unknown."""

    def release(self) -> None:
        """Remove the work before the worker's next report. No effect if it has been removed already."""
        if self.live:
            self._ledger.release(self)


class Reservations:
    """The ledger of one cluster: all its pending reservations as running totals."""

    __slots__ = ("_by_server", "_on_release", "_steps", "_tps", "_unknown", "count", "tokens")

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._on_release = on_release
        self.count = 0
        self.tokens = 0
        self._by_server: dict[str, list[Reservation]] = {}
        # Per priority: milliseconds added to it and to all less urgent ones, and number of reservations. Valid for the
        # throughput `_tps`; None until the first read. A reservation of 0 tokens adds no time, only its priority as a key.
        self._steps: dict[int, list[int]] | None = None
        self._tps = 0.0
        self._unknown = 0

    def add(self, reservation: Reservation) -> None:
        """Add `reservation` to the totals."""
        self._by_server.setdefault(reservation.inference_server_id, []).append(reservation)
        self.count += 1
        self.tokens += reservation.input_tokens
        if self._steps is not None:
            self._step_up(reservation, self._steps)

    def release(self, reservation: Reservation) -> None:
        """Remove one reservation and report the change."""
        of_server = self._by_server[reservation.inference_server_id]
        of_server.remove(reservation)
        if not of_server:
            del self._by_server[reservation.inference_server_id]
        self._forget(reservation)
        self._on_release()

    def drop_server(self, inference_server_id: str) -> None:
        """Remove all reservations on one worker, which has reported or is no longer routable."""
        for reservation in self._by_server.pop(inference_server_id, ()):
            self._forget(reservation)

    def drop_all(self) -> None:
        """Remove all reservations: the cluster has no worker any more."""
        for inference_server_id in list(self._by_server):
            self.drop_server(inference_server_id)

    def queue_times(self, base: Mapping[int, int], input_tps: float) -> Mapping[int, int]:
        """`base` (milliseconds by priority) plus pending reservations at `input_tps` tokens a second; empty if unknown."""
        if not base or not self.count:
            return base
        steps = self._steps_at(input_tps)
        if self._unknown:
            return NO_ESTIMATES
        reported = added = 0
        queue_times: dict[int, int] = {}
        for priority in sorted(base.keys() | steps.keys()):
            reported = base.get(priority, reported)
            if priority in steps:
                added += steps[priority][0]
            queue_times[priority] = min(reported + added, MAX_U64)
        return queue_times

    def _steps_at(self, input_tps: float) -> dict[int, list[int]]:
        steps = self._steps
        if steps is None or self._tps != input_tps:
            self._steps = steps = {}
            self._tps = input_tps
            self._unknown = 0
            for of_server in self._by_server.values():
                for reservation in of_server:
                    self._step_up(reservation, steps)
        return steps

    def _step_up(self, reservation: Reservation, steps: dict[int, list[int]]) -> None:
        delta_ms = reservation.delta_ms = queue_time_delta_ms(reservation.input_tokens, self._tps)
        if delta_ms is None:
            self._unknown += 1
            return
        step = steps.get(reservation.priority)
        if step is None:
            steps[reservation.priority] = [delta_ms, 1]
        else:
            step[0] += delta_ms
            step[1] += 1

    def _forget(self, reservation: Reservation) -> None:
        reservation.live = False
        self.count -= 1
        self.tokens -= reservation.input_tokens
        if self._steps is None:
            return
        if reservation.delta_ms is None:
            self._unknown -= 1
            return
        step = self._steps[reservation.priority]
        step[0] -= reservation.delta_ms
        step[1] -= 1
        if not step[1]:
            del self._steps[reservation.priority]
