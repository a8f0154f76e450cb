"""Estimates tokens without a tokenizer: four bytes a token, corrected for each model by what its engines report.

Nothing is kept over a restart. Source: the estimate of the gateway, without its oddities (docs/openai-keys.md, "Token estimate").
"""

from typing import Final

from router.openai.ports import BodyFacts, Estimate, TokenEstimator, Usage
from tunnel_protocol.limit import Limit

MODELS = Limit("openai.estimated_models", pieces=1_000)
"""Models whose usage is remembered; beyond it the one without report for longest starts anew."""

BYTES_PER_TOKEN: Final = 4
TOKENS_PER_PIECE: Final = 5
"""Overhead of a message, prompt or input."""
TOKENS_PER_IMAGE: Final = 765
TOKENS_PER_LOW_IMAGE: Final = 85

LEAST_RATIO: Final = 0.25
MOST_RATIO: Final = 4.0

_KEPT: Final = 0.98
"""Weight of what was known before, at each report: about the last 50 count."""
_REPORTS_THAT_COUNT: Final = 50
_PRIOR_TOKENS: Final = 100.0
"""What the ratio 1 weighs at the beginning: a single short prompt hardly changes it."""
_REPORTS_FOR_A_MEAN: Final = 3


class _Learnt:
    """What one model reported, older reports weighing less."""

    __slots__ = ("base", "mean_output", "output", "ratio", "reported", "reports")

    def __init__(self) -> None:
        self.base = _PRIOR_TOKENS
        self.reported = _PRIOR_TOKENS
        self.output = 0.0
        self.reports = 0
        self.ratio = 1.0
        self.mean_output = 0
        """`output`, rounded up."""


class LearningEstimator(TokenEstimator):
    """The estimator of both modes of the front."""

    def __init__(self, *, correct: bool = True) -> None:
        """`correct=False`: the plain estimate, as the gateway has it; the output hint is the client's limit then."""
        self._correct = correct
        self._models: dict[str, _Learnt] = {}
        """The one without report for longest first."""

    def __len__(self) -> int:
        return len(self._models)

    def estimate(self, model: str, facts: BodyFacts) -> Estimate:
        """See `TokenEstimator.estimate`."""
        base = (
            TOKENS_PER_PIECE * facts.pieces
            + facts.text_bytes // BYTES_PER_TOKEN
            + facts.quarters
            + -(-facts.tools_bytes // BYTES_PER_TOKEN)
            + TOKENS_PER_LOW_IMAGE * facts.images_low
            + TOKENS_PER_IMAGE * facts.images
        )
        learnt = self._models.get(model)
        corrected = base if learnt is None else int(base * learnt.ratio + 0.5)
        return Estimate(corrected + facts.token_ids, base, facts.token_ids)

    def output_hint(self, model: str, most: int | None) -> int | None:
        """See `TokenEstimator.output_hint`."""
        learnt = self._models.get(model)
        if learnt is None or learnt.reports < _REPORTS_FOR_A_MEAN:
            return most
        mean = learnt.mean_output
        return most if most is not None and most < mean else mean

    def learn(self, model: str, estimate: Estimate, usage: Usage) -> None:
        """See `TokenEstimator.learn`. Reports without input tokens, which some engines send, say nothing of the ratio."""
        if not self._correct:
            return
        models = self._models
        learnt = models.get(model)
        if learnt is None:
            learnt = _Learnt()
            if len(models) >= (MODELS.pieces or 0):
                del models[next(iter(models))]
        else:
            del models[model]
        models[model] = learnt
        reported = usage.input_tokens - estimate.exact
        if estimate.base > 0 and reported > 0:
            base = learnt.base = learnt.base * _KEPT + estimate.base
            # One absurd report must not outweigh many others.
            most = estimate.base * MOST_RATIO
            learnt.reported = learnt.reported * _KEPT + min(float(reported), most)
            learnt.ratio = min(MOST_RATIO, max(LEAST_RATIO, learnt.reported / base))
        learnt.reports += 1
        share = 1 / learnt.reports if learnt.reports < _REPORTS_THAT_COUNT else 1 - _KEPT
        made = max(0, usage.output_tokens)
        learnt.output += (made - learnt.output) * share
        mean = int(learnt.output)
        learnt.mean_output = mean if mean >= learnt.output else mean + 1
