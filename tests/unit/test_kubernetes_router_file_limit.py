"""The limit of open files of `stargate-k8s-router`."""

import resource

import pytest
from structlog.testing import capture_logs

from kubernetes_router.file_limit import files_needed, raise_file_limit

NEEDED = files_needed()
NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "after", "warned"),
    [
        (1_024, 1_048_576, NEEDED, False),
        (1_024, NONE, NEEDED, False),
        (1_024, 4_096, 4_096, True),
        (NEEDED, NEEDED, None, False),
        (NONE, NONE, None, False),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, after: int | None, warned: bool
) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    with capture_logs() as logs:
        raise_file_limit()
    assert made == ([] if after is None else [(after, hard)])
    assert bool(logs) is warned


def test_the_bounds_of_peers_fit() -> None:
    assert NEEDED > 10_000
