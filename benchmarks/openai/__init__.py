"""What proxies in front of the same engine cost: CPU per request and per chunk, latency and memory of router and others."""

from benchmarks.openai.command import run

__all__ = ["run"]
