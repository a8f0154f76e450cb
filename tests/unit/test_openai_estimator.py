"""The estimate of tokens without a tokenizer, and what it learns from reports."""

import pytest

from router.openai import estimator as estimator_module
from router.openai.estimator import MODELS, LearningEstimator
from router.openai.ports import BodyFacts, Estimate, Usage
from tunnel_protocol.limit import Limit


@pytest.mark.parametrize(
    ("facts", "tokens"),
    [
        (BodyFacts(text_bytes=2, pieces=1), 5),  # one user message `hi`
        (BodyFacts(text_bytes=4, pieces=1), 6),
        (BodyFacts(text_bytes=12, pieces=1), 8),  # four CJK characters
        (BodyFacts(text_bytes=8, pieces=2), 12),
        (BodyFacts(text_bytes=5, pieces=1), 6),  # responses, `hello`
        (BodyFacts(quarters=3, pieces=1), 8),  # embeddings, `hello world`
        (BodyFacts(quarters=2, pieces=2), 12),  # embeddings, ["a", "b"]
        (BodyFacts(token_ids=700), 700),
        (BodyFacts(images=1, images_low=2, pieces=1), 5 + 765 + 170),
        (BodyFacts(tools_bytes=101), 26),
        (BodyFacts(), 0),
    ],
)
def test_before_anything_is_learnt(facts: BodyFacts, tokens: int) -> None:
    assert LearningEstimator().estimate("m", facts).tokens == tokens


def teach(estimator: LearningEstimator, model: str, factor: float, reports: int, output: int = 100) -> None:
    for _ in range(reports):
        found = estimator.estimate(model, BodyFacts(text_bytes=4_000, pieces=1))
        estimator.learn(model, found, Usage(round(found.base * factor), output))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 3.0])
def test_the_estimate_approaches_what_a_model_reports(factor: float) -> None:
    estimator = LearningEstimator()
    teach(estimator, "m", factor, 50)
    found = estimator.estimate("m", BodyFacts(text_bytes=40_000, pieces=10))
    assert found.base == 10_050
    assert found.tokens == pytest.approx(10_050 * factor, rel=0.02)
    assert estimator.estimate("other", BodyFacts(text_bytes=4_000)).tokens == 1_000


def test_the_correction_is_clamped_and_one_absurd_report_does_not_outweigh_others() -> None:
    estimator = LearningEstimator()
    teach(estimator, "low", 0.01, 500)
    teach(estimator, "high", 100, 500)
    facts = BodyFacts(text_bytes=4_000)
    assert estimator.estimate("low", facts).tokens == 250
    assert estimator.estimate("high", facts).tokens == 4_000
    teach(estimator, "m", 1.0, 50)
    estimator.learn("m", estimator.estimate("m", facts), Usage(10**12, 0))
    assert estimator.estimate("m", facts).tokens < 1_200


def test_a_single_short_prompt_hardly_changes_the_correction() -> None:
    estimator = LearningEstimator()
    estimator.learn("m", estimator.estimate("m", BodyFacts(text_bytes=2, pieces=1)), Usage(15, 1))
    assert estimator.estimate("m", BodyFacts(text_bytes=4_000)).tokens < 1_150


def test_token_ids_are_exact_and_not_corrected() -> None:
    estimator = LearningEstimator()
    teach(estimator, "m", 2.0, 200)
    found = estimator.estimate("m", BodyFacts(text_bytes=400, token_ids=1_000))
    assert found.tokens == pytest.approx(1_200, abs=5)
    for _ in range(400):
        estimator.learn("m", found, Usage(1_000 + 100, 0))
    assert estimator.estimate("m", BodyFacts(text_bytes=400)).tokens == pytest.approx(100, rel=0.05)


def test_a_report_without_input_tokens_says_nothing_of_the_ratio() -> None:
    estimator = LearningEstimator()
    for _ in range(100):
        estimator.learn("m", Estimate(1_000, 1_000), Usage(0, 50))
        estimator.learn("m", Estimate(0, 0), Usage(9, 50))
    assert estimator.estimate("m", BodyFacts(text_bytes=4_000)).tokens == 1_000


def test_the_output_hint_is_the_clients_limit_capped_by_the_mean_output() -> None:
    estimator = LearningEstimator()
    assert estimator.output_hint("m", None) is None
    assert estimator.output_hint("m", 4_096) == 4_096
    teach(estimator, "m", 1.0, 2, output=200)
    assert estimator.output_hint("m", 4_096) == 4_096, "two reports are no mean"
    teach(estimator, "m", 1.0, 1, output=200)
    assert estimator.output_hint("m", 4_096) == 200
    assert estimator.output_hint("m", 16) == 16
    assert estimator.output_hint("m", None) == 200
    teach(estimator, "m", 1.0, 300, output=50)
    hint = estimator.output_hint("m", None)
    assert hint is not None
    assert 50 <= hint <= 52


def test_without_correction_nothing_is_learnt() -> None:
    estimator = LearningEstimator(correct=False)
    teach(estimator, "m", 2.0, 100)
    assert estimator.estimate("m", BodyFacts(quarters=77)).tokens == 77
    assert estimator.output_hint("m", 9) == 9
    assert len(estimator) == 0


def test_models_are_bounded_and_the_one_without_report_for_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MODELS.pieces is not None
    monkeypatch.setattr(estimator_module, "MODELS", Limit("models", pieces=3))
    estimator = LearningEstimator()
    teach(estimator, "kept", 2.0, 100)
    for i in range(20):
        teach(estimator, f"m{i}", 2.0, 1)
        teach(estimator, "kept", 2.0, 1)
        estimator.estimate(f"unknown-{i}", BodyFacts(text_bytes=4))
        assert len(estimator) <= 3
    assert estimator.estimate("kept", BodyFacts(text_bytes=4_000)).tokens > 1_900
    assert estimator.estimate("m0", BodyFacts(text_bytes=4_000)).tokens == 1_000
