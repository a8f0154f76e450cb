"""What registered workers cost a router that has nothing to do: CPU, memory, and how soon they are back after a restart."""

from benchmarks.fleet.command import run

__all__ = ["run"]
