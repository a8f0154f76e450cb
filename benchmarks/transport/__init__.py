"""Throughput and cost of the tunnel encodings; `python -m benchmarks transport --help` tells the rest."""

from benchmarks.transport.command import run

__all__ = ["run"]
