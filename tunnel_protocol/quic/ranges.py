"""A sorted set of disjoint half-open ranges: offsets of a stream that were acknowledged or lost, or packet numbers."""

from bisect import bisect_left, bisect_right


class Ranges:
    """Half-open ranges `[start, stop)`; touching ranges are merged."""

    __slots__ = ("starts", "stops")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.stops: list[int] = []

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, stop: int) -> None:
        """Add `[start, stop)`; `stop` must be greater than `start`."""
        starts, stops = self.starts, self.stops
        first = bisect_left(stops, start)
        after = bisect_right(starts, stop)
        if first < after:
            start = min(start, starts[first])
            stop = max(stop, stops[after - 1])
        starts[first:after] = [start]
        stops[first:after] = [stop]

    def contains(self, number: int) -> bool:
        """Whether one number is in the set."""
        index = bisect_right(self.starts, number) - 1
        return index >= 0 and number < self.stops[index]

    def drop_below(self, number: int) -> None:
        """Remove all numbers below `number`."""
        starts, stops = self.starts, self.stops
        while starts and stops[0] <= number:
            del starts[0], stops[0]
        if starts and starts[0] < number:
            starts[0] = number

    def discard(self, number: int) -> bool:
        """Remove one number; False if it was not in the set."""
        starts, stops = self.starts, self.stops
        index = bisect_right(starts, number) - 1
        if index < 0 or stops[index] <= number:
            return False
        start, stop = starts[index], stops[index]
        kept = [(low, high) for low, high in ((start, number), (number + 1, stop)) if low < high]
        starts[index : index + 1] = [low for low, _ in kept]
        stops[index : index + 1] = [high for _, high in kept]
        return True

    def take(self, size: int) -> tuple[int, int]:
        """Remove and return up to `size` numbers from the start of the first range; the set must not be empty."""
        start, stop = self.starts[0], self.stops[0]
        if stop - start > size:
            stop = self.starts[0] = start + size
        else:
            del self.starts[0], self.stops[0]
        return start, stop

    def reaches(self, offset: int) -> int:
        """If the first range begins at or before `offset`, remove it and return where it stops; else return `offset`."""
        if self.starts and self.starts[0] <= offset:
            del self.starts[0]
            return max(offset, self.stops.pop(0))
        return offset
