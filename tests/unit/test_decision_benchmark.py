"""The benchmark of decisions: all its scenarios run, and the deterministic ones decide as other implementations do."""

import argparse

import pytest

from benchmarks.decision import measure, scenarios


def run(name, *, candidates=8, iterations=1000, warmup=100):
    (row,) = [row for row in scenarios() if row.name == name]
    options = argparse.Namespace(candidates=candidates, iterations=iterations, warmup=warmup, cache_keys=1024)
    return measure(row, options)


@pytest.mark.parametrize(
    ("name", "checksum", "top", "times"),
    [
        ("round-robin-one-excluded", 6475216469051506218, "cluster-0001", 143),
        ("round-robin-multi-excluded", 13257754035362561808, "cluster-0002", 167),
    ],
)
def test_round_robin_rows_equal_those_of_the_reference(name, checksum, top, times):
    row = run(name)
    assert (row["checksum"], row["top_backend"], row["top_backend_choices"]) == (checksum, top, times)


def test_there_are_23_scenarios_and_each_decides_every_time():
    names = [row.name for row in scenarios()]
    assert len(set(names)) == 23
    for name in names:
        row = run(name, iterations=50, warmup=5)
        assert row["choices"] == 50
