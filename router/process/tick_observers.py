"""Several observers of the ticks of an endpoint, as one."""

from collections.abc import Sequence

from tunnel_protocol.quic.endpoint import TickObserver


class TickObservers:
    """Passes each tick on to all; implements `TickObserver`."""

    def __init__(self, observers: Sequence[TickObserver]) -> None:
        self._observers = tuple(observers)

    def tick_begins(self) -> None:
        """See `TickObserver`."""
        for observer in self._observers:
            observer.tick_begins()

    def tick_ends(self) -> None:
        """See `TickObserver`."""
        for observer in self._observers:
            observer.tick_ends()
