"""What can be set about metrics."""

from typing import Final

METRICS_PREFIX: Final = "stargate_"
"""Put before every metric name, if nothing else is said: what existing dashboards know."""
