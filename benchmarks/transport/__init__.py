"""Throughput and CPU cost of the tunnel encodings; see `python -m benchmarks transport --help`."""

from benchmarks.transport.command import run

__all__ = ["run"]
