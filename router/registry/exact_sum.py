"""A sum of floats from which terms can be subtracted again without a rounding error.

Every finite float is an integer over a power of two, so the sum is kept as one integer over the largest power so far. It
does not depend on the order in which terms are added and subtracted, and is rounded once, when read.
"""

import math


class ExactSum:
    """Sum of finite floats; the caller must not pass infinities or NaN."""

    __slots__ = ("_numerator", "_shift")

    def __init__(self) -> None:
        self._numerator = 0
        self._shift = 0

    def add(self, term: float, sign: int = 1) -> None:
        """Add a finite `term`, or with `sign` -1 subtract one that was added before."""
        numerator, denominator = term.as_integer_ratio()
        shift = denominator.bit_length() - 1
        if shift > self._shift:
            self._numerator <<= shift - self._shift
            self._shift = shift
        self._numerator += sign * numerator << (self._shift - shift)

    def value(self) -> float:
        """The sum, correctly rounded; infinite if it is larger than the largest float."""
        try:
            return self._numerator / (1 << self._shift)
        except OverflowError:
            return math.inf if self._numerator > 0 else -math.inf
