"""Load balancing: chooses a candidate for a request. Configuration, algorithms and selector. Pure (docs/balancing.md)."""

from router.balancing.config import BalancingConfig, load_config
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition
from router.balancing.fields import Fields
from router.balancing.method_error import MethodError, MethodErrorCode
from router.balancing.outcome import AdmissionRejected, Choice, Chosen, NotFound, Outcome, Unavailable, Wait
from router.balancing.registration import registration
from router.balancing.request import RoutingRequest
from router.balancing.selector import Selector

__all__ = [
    "AdmissionRejected",
    "BalancingConfig",
    "Choice",
    "Chosen",
    "ConfigError",
    "Definition",
    "Fields",
    "MethodError",
    "MethodErrorCode",
    "NotFound",
    "Outcome",
    "RoutingRequest",
    "Selector",
    "Unavailable",
    "Wait",
    "load_config",
    "registration",
]
