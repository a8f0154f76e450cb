"""`Ranges` against a plain set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from tunnel_protocol.quic.ranges import Ranges

spans = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda span: (span[0], span[0] + span[1]))


@given(st.lists(st.one_of(spans, st.integers(1, 8), st.just("reaches"))))
def test_ranges_are_a_sorted_set_of_numbers(steps):
    ranges, model = Ranges(), set()
    for step in steps:
        if isinstance(step, tuple):
            ranges.add(*step)
            model.update(range(*step))
        elif step == "reaches":
            offset = min(model, default=0)
            reached = offset
            while reached in model:
                model.discard(reached)
                reached += 1
            assert ranges.reaches(offset) == reached
        elif model:
            start, stop = ranges.take(step)
            assert start == min(model)
            assert 0 < stop - start <= step
            assert set(range(start, stop)) <= model
            model.difference_update(range(start, stop))
        numbers = [n for start, stop in zip(ranges.starts, ranges.stops, strict=True) for n in range(start, stop)]
        assert numbers == sorted(model)
        gaps = zip(ranges.stops, ranges.starts[1:], strict=False)
        assert all(stop < start for stop, start in gaps), "touching ranges are one range"
