"""The statistic that weights the clusters of a rendezvous ranking, as a setting of the algorithms that rank."""

from typing import Final

from router.balancing.config_error import ConfigError
from router.balancing.fields import Fields

LAST_MEAN_INPUT_TPS: Final = "last-mean-input-tps"
MAX_INPUT_TPS: Final = "max-input-tps"


def read_rendezvous_weight(fields: Fields) -> str:
    """Read the setting `rendezvous_weight`."""
    return fields.choice("rendezvous_weight", (MAX_INPUT_TPS, LAST_MEAN_INPUT_TPS), LAST_MEAN_INPUT_TPS)


def check_rendezvous_weight(weight: str) -> None:
    """Refuse a weight that no worker can report. Raises `ConfigError` (stage `build`)."""
    if weight != LAST_MEAN_INPUT_TPS:
        raise ConfigError(
            f"rendezvous_weight {weight} cannot be used: the worker protocol does not carry max_input_tps yet", "build"
        )
