"""How the router's cost grows with running requests, tunnels, idle workers and the size of a body, as one plot."""

from benchmarks.growth.command import run

__all__ = ["run"]
