"""A sum of floats that terms can be taken out of again without leaving a rounding error behind.

Every finite float is an integer over a power of two, so the sum is kept as one integer over the largest power met so far;
it is the same whatever order terms came and went in, and is rounded once, when read.
"""

import math


class ExactSum:
    """Sum of finite floats; the caller keeps infinities and NaN out."""

    __slots__ = ("_numerator", "_shift")

    def __init__(self) -> None:
        self._numerator = 0
        self._shift = 0

    def add(self, term: float, sign: int = 1) -> None:
        """Put a finite `term` in, or with `sign` -1 take out one that was put in before."""
        numerator, denominator = term.as_integer_ratio()
        shift = denominator.bit_length() - 1
        if shift > self._shift:
            self._numerator <<= shift - self._shift
            self._shift = shift
        self._numerator += sign * numerator << (self._shift - shift)

    def value(self) -> float:
        """The sum, correctly rounded; infinite if it is beyond the largest float."""
        try:
            return self._numerator / (1 << self._shift)
        except OverflowError:
            return math.inf if self._numerator > 0 else -math.inf
