"""How an algorithm gets in: as one file beside the built-in ones, or as an entry point, by the same registration."""

import json
import random
import sys
from importlib import import_module
from pathlib import Path

import pytest

import router.balancing.algorithms
from router.balancing import (
    BalancingConfig,
    Choice,
    Chosen,
    ConfigError,
    Definition,
    MethodError,
    Selector,
    load_config,
    registration,
)
from router.balancing.algorithm import installed_algorithms
from router.balancing.catalog import Catalog, builtin_algorithms
from router.balancing.explain import explain
from router.balancing.registration import NoSettings
from support.balancing import FakeCandidate, FakeTarget, request

ONE_FILE = '''
"""`sticky-site`: the clusters of one site first, the one with the fewest running requests among them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.fields import Fields
from router.balancing.outcome import Choice
from router.balancing.registration import registration
from router.balancing.request import RoutingRequest


@dataclass(frozen=True)
class StickySiteSettings:
    """Settings."""

    site: str
    spread: int

    @classmethod
    def read(cls, fields: Fields) -> "StickySiteSettings":
        """From a configuration."""
        site = fields.text("site")
        if site == "":
            fields.refuse("sticky-site site must not be empty")
        return cls(site or "a", fields.unsigned("spread", 1))


class StickySite:
    """Stateless; its own balancer."""

    def __init__(self, settings: StickySiteSettings, random: Random) -> None:
        self._site = settings.site

    def balancer(self, routing_key: str | None, model: str) -> "StickySite":
        """Itself."""
        return self

    def may_take(self, request: RoutingRequest, candidate: Candidate) -> bool:
        """Only those of the site."""
        return candidate.cluster_id.startswith(self._site)

    def explanation(
        self, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float
    ) -> Explanation:
        """Who is of another site."""
        return Explanation({c.cluster_id: "other site" for c in candidates if not self.may_take(request, c)}, {})

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """The least busy one."""
        left = [c for c in candidates if c.cluster_id not in excluded and self.may_take(request, c)]
        return Choice(min(left, key=lambda c: c.num_running_queries)) if left else None


ALGORITHM = registration("sticky-site", StickySiteSettings.read, StickySite, aliases=("sticky",))
'''


@pytest.fixture
def one_more_file(tmp_path, monkeypatch):
    """The package of built-in algorithms with one file more; nothing else is touched."""
    (tmp_path / "sticky_site.py").write_text(ONE_FILE)
    package = router.balancing.algorithms
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop(f"{package.__name__}.sticky_site", None)
    package.__dict__.pop("sticky_site", None)


def target():
    return FakeTarget(
        FakeCandidate("a1", last_mean_input_tps=100.0, num_running_queries=2),
        FakeCandidate("a2", last_mean_input_tps=100.0, num_running_queries=1),
        FakeCandidate("b1", last_mean_input_tps=100.0, queued_input_size=1000),
    )


def choose(policy, method=None, model="m"):
    asked = request(model_id=model)
    return policy.select(
        policy.resolve(model, method),
        asked,
        target(),
        advertised=bool,
        failed_backends=set(),
        failed_clusters=set(),
        now=0.0,
    )


def document(**settings):
    return json.dumps({"models": {"m": {"algorithm": "sticky-site", **settings}}}).encode()


def test_one_file_adds_an_algorithm_to_configuration_and_header(one_more_file):
    content = {
        "default": "random",
        "request_algorithms": {"sticky": "sticky-site"},
        "models": {"m": {"algorithm": "sticky", "site": "b", "require_cache_affinity_key": True}},
    }
    policy = Selector(load_config(json.dumps(content).encode()), random.Random(0))
    configured = policy.resolve("m", None)
    assert (configured.algorithm, configured.require_cache_affinity_key) == ("sticky-site", True)
    assert choose(policy).candidate.cluster_id == "b1"
    assert policy.knows("Sticky_Site")
    assert choose(policy, "Sticky_Site", "unlisted").candidate.cluster_id == "a2"


def test_one_file_is_offered_without_a_configuration(one_more_file):
    assert choose(Selector(BalancingConfig(), random.Random(0)), "sticky").candidate.cluster_id == "a2"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"zeta": 1, "seed": None}, "sticky-site config does not support field(s): seed, zeta"),
        ({"spread": -1, "site": 5}, "invalid type: integer `-1`, expected an unsigned integer for `spread`"),
        ({"site": 5, "spread": -1}, "invalid type: integer `5`, expected a string for `site`"),
        ({"site": "", "max_input_work_seconds": "x"}, 'invalid type: string "x", expected a number'),
        ({"site": "", "spread": 1}, "sticky-site site must not be empty"),
    ],
)
def test_the_settings_of_one_file_are_checked_in_the_order_of_the_document(one_more_file, settings, error):
    with pytest.raises(ConfigError) as refused:
        load_config(document(**settings))
    assert error in str(refused.value)
    assert refused.value.stage == "parse"


def test_what_one_file_rules_out_does_not_count_for_admission_and_is_explained(one_more_file):
    policy = Selector(load_config(document(max_input_work_seconds=1)), random.Random(0))
    assert isinstance(choose(policy), Chosen)  # b1 has work for ten seconds, but is never asked
    told = explain(policy, request(model_id="m"), None, target(), advertised=True, excluded={"a1"}, now=0.0)
    assert {row["cluster_id"]: row["rule"] for row in told["candidates"]} == {
        "a1": "retry-excluded",
        "a2": "eligible",
        "b1": "other site",
    }
    assert told["admission"]["counted_clusters"] == ["a2"]


def test_a_name_that_is_none_is_answered_with_those_there_are(one_more_file):
    with pytest.raises(ConfigError) as refused:
        load_config(b'{"default":"nope"}')
    assert str(refused.value) == (
        "unknown variant `nope`, expected one of `power-of-n`, `wait-and-widen`, `round-robin`, `random`, `pulsar`, "
        "`pulsar-wait-and-widen`, `sticky-site`, `power-of-two`, `powerOf2`, `powerOfN`, `powerof2`, `powerofn`, "
        "`groq-multiregion`, `pulsar-multiregion`, `sticky`"
    )


def test_the_file_of_the_page_is_an_algorithm(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "balancing.md").read_text()
    section = page.partition("## Adding an algorithm")[2]
    (tmp_path / "least_busy.py").write_text(section.partition("```python\n")[2].partition("```")[0])
    package = router.balancing.algorithms
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    entry = {"algorithm": "least-busy", "most": 1}
    policy = Selector(load_config(json.dumps({"models": {"m": entry}}).encode()), random.Random(0))
    assert choose(policy).candidate.cluster_id == "b1"
    with pytest.raises(ConfigError, match="least-busy most must not be 0"):
        load_config(json.dumps({"models": {"m": {**entry, "most": 0}}}).encode())


class Point:
    """An entry point, as installed."""

    def __init__(self, name, loaded):
        self.name = name
        self._loaded = loaded

    def load(self):
        return self._loaded


def test_an_entry_point_may_name_the_registration_that_a_built_in_file_has(one_more_file):
    announced = import_module("router.balancing.algorithms.sticky_site").ALGORITHM
    router.balancing.algorithms.__path__.pop()
    assert "sticky-site" not in builtin_algorithms()
    plugins = installed_algorithms([Point("by-site", announced)])
    policy = Selector(load_config(b'{"default":"sticky","models":{"m":"by-site"}}', plugins), random.Random(0), plugins)
    assert policy.resolve("other", None).algorithm == "by-site"
    assert choose(policy).candidate.cluster_id == "a2"
    with pytest.raises(ConfigError, match=r"by-site config does not support field\(s\): n"):
        load_config(b'{"models":{"m":{"algorithm":"by-site","n":1}}}', plugins)
    with pytest.raises(ConfigError, match="sticky-site site must not be empty") as refused:
        Selector(BalancingConfig(Definition("by-site", {"site": ""}), {}), random.Random(0), plugins)
    assert refused.value.stage == "build"
    with pytest.raises(MethodError, match="unknown routing method"):
        Selector(BalancingConfig(), random.Random(0)).resolve("m", "by-site")


def test_names_go_before_aliases_and_built_in_ones_before_plugins():
    def make(settings, rng):
        raise AssertionError

    greedy = registration("greedy", NoSettings.read, make, aliases=("random", "plain", "powerof2"))
    catalog = Catalog({"greedy": greedy, "plain": make, "random": make})
    assert [catalog.from_file(name) for name in ("greedy", "plain", "random", "powerof2")] == [
        "greedy",
        "plain",
        "random",
        "power-of-n",
    ]
    assert catalog.maker("random") is builtin_algorithms()["random"]
    assert catalog.registration("plain") is None


def test_settings_of_a_plain_callable_are_its_own_business():
    seen = {}

    def plain(settings, rng):
        seen.update(settings)
        raise ConfigError("not today")

    settings = {"n": "x", "comparator": "mine", "gone": None, "require_input_tokens": True}
    content = json.dumps({"models": {"m": {"algorithm": "plain", **settings}}}).encode()
    with pytest.raises(ConfigError, match=r"^not today$") as refused:
        Selector(load_config(content, {"plain": plain}), random.Random(0), {"plain": plain})
    assert refused.value.stage == "build"
    assert seen == {"n": "x", "comparator": "mine", "require_input_tokens": True}


@pytest.mark.parametrize("algorithm", ["pulsar", "pulsar-wait-and-widen"])
def test_rankings_admit_by_the_clusters_that_can_be_taken(algorithm):
    entry = {"algorithm": algorithm, "consider_kv_free_tokens": True, "max_input_work_seconds": 1}
    policy = Selector(load_config(json.dumps({"models": {"m": entry}}).encode()), random.Random(0))
    pool = FakeTarget(
        FakeCandidate("low", last_mean_input_tps=100.0, kv_cache_free_tokens=1, queued_input_size=10**6),
        FakeCandidate("free", last_mean_input_tps=100.0, kv_cache_free_tokens=100),
        FakeCandidate("no-rate", kv_cache_free_tokens=100, queued_input_size=10**6),
    )
    asked = request(model_id="m", input_tokens=10)
    outcome = policy.select(
        policy.resolve("m", None),
        asked,
        pool,
        advertised=bool,
        failed_backends=set(),
        failed_clusters=set(),
        now=0.0,
    )
    assert outcome.candidate.cluster_id == "free"


def test_a_ranking_without_anybody_is_explained_without_ranks():
    policy = Selector(load_config(b'{"default":"pulsar"}'), random.Random(0))
    told = explain(policy, request(), None, FakeTarget(FakeCandidate("a")), advertised=True, excluded=set(), now=0.0)
    assert (told["candidates"][0]["rule"], "rank" in told["candidates"][0]) == ("no valid throughput", False)


def test_a_choice_moves_to_another_backend_of_its_cluster():
    candidate = FakeCandidate("a")
    chosen = Chosen(candidate, candidate.cluster, "b1", 3, True, 7)
    moved = chosen.on("b2")
    assert (chosen.backend, moved.backend) == ("b1", "b2")
    assert (moved.candidate, moved.cluster, moved.rank_depth, moved.skipped_for_kv, moved.expected_queue_ms) == (
        candidate,
        candidate.cluster,
        3,
        True,
        7,
    )
    assert Choice(candidate).rank_depth == 1
