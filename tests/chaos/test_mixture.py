"""Twenty seconds of `make chaos`: all attacks at once, and nobody else notices."""

import pytest
from mixture import attacks_named, run

from support.attacks import ATTACKS

SECONDS = 20.0


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_honest_requests_are_answered_beside_all_attacks_and_the_memory_returns():
    report = run(SECONDS, attacks_named(""))
    assert report.wrong() == [], "\n".join(report.lines())


def test_attacks_are_chosen_by_their_names():
    assert [type(one) for one in attacks_named("")] == list(ATTACKS)
    assert [one.name() for one in attacks_named("crypto_gaps,hangups")] == ["crypto_gaps", "hangups"]
    with pytest.raises(ValueError, match="unknown attacks: nonsense"):
        attacks_named("nonsense")
