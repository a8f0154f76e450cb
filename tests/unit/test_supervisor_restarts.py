"""When processes are started again, and which of them have the shared ports open."""

import pytest

from router.supervisor.restarts import FIRST_PAUSE_S, LONGEST_PAUSE_S, STABLE_S, RestartPolicy
from router.supervisor.supervisor import listeners


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_stable_time() -> None:
    policy = RestartPolicy()
    pauses = [policy.pause_s(0) for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert policy.pause_s(STABLE_S - 1) == LONGEST_PAUSE_S
    assert policy.pause_s(STABLE_S) == FIRST_PAUSE_S
    assert policy.restarts == 14


@pytest.mark.parametrize(
    ("ready", "listening"),
    [
        ([True, True], [True, True]),
        ([True, False], [True, False]),
        ([False, False], [True, True]),
        ([False], [True]),
        ([], []),
    ],
)
def test_those_that_are_ready_listen_and_if_none_is_all(ready: list[bool], listening: list[bool]) -> None:
    assert listeners(ready) == listening
