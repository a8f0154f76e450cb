"""Active models that are not routable are logged once, when each becomes so."""

from structlog.testing import capture_logs

from router.control_plane.unroutable_models import UnroutableModels
from router.registry.stats import ModelStats, ModelUpdate

READY = ModelUpdate(True, ModelStats())
BARE = ModelUpdate(True, None)
NO_RTT = "active model registration missing connection RTT; skipping routing update"
NO_STATS = "missing model stats in registration; setting model status to inactive"


def logged(models, found, *, without_rtt, changed=False):
    if changed:
        models.report_changed()
    with capture_logs() as lines:
        models.log(found, "w", without_rtt=without_rtt)
    return [(line["event"], line["model_id"]) for line in lines]


def test_a_model_without_stats_and_models_without_a_round_trip_are_logged_once():
    models = UnroutableModels()
    found = {"b": READY, "a": BARE, "c": ModelUpdate(False, None)}
    assert logged(models, found, without_rtt=False) == [(NO_STATS, "a")]
    assert logged(models, found, without_rtt=False) == []
    assert logged(models, found, without_rtt=True) == [(NO_RTT, "b")]
    assert logged(models, found, without_rtt=True) == []
    assert logged(models, found, without_rtt=False) == []
    assert logged(models, found, without_rtt=True) == [(NO_RTT, "b")]


def test_another_report_is_looked_at_again():
    models = UnroutableModels()
    assert logged(models, {"a": READY}, without_rtt=False) == []
    assert logged(models, {"a": BARE}, without_rtt=False, changed=True) == [(NO_STATS, "a")]
    assert logged(models, {"a": BARE, "b": BARE}, without_rtt=False, changed=True) == [(NO_STATS, "b")]
