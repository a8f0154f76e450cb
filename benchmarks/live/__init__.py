"""What the live page costs the router, and how smooth it is in a browser, with many workers and targets."""

from benchmarks.live.command import run

__all__ = ["run"]
