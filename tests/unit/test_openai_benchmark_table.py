"""`python -m benchmarks openai`: its quantiles and its table."""

import math

from benchmarks.openai.command import Row, table
from benchmarks.openai.load import quantile


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([7.0], 0.99)) == (50.0, 99.0, 7.0)
    assert math.isnan(quantile([], 0.5))


def test_a_table_has_a_line_for_each_proxy_with_medians_and_sums() -> None:
    rows = [Row("a", "one", number, 0.001 * number, 10, 1, 30, 1.0, 2.0, 3.0, 4.0, 5 * 2**20) for number in range(1, 4)]
    head, line = table(rows).splitlines()
    assert head.split()[-2:] == ["requests", "failed"]
    assert line.split() == ["a", "200", "66.7", "10", "2.00", "3.00", "4.00", "5", "30", "3"]
