"""Settings of metrics."""

from typing import Final

METRICS_PREFIX: Final = "stargate_"
"""Default prefix of every metric name; existing dashboards use it."""
