"""What is remembered of models that have or had workers."""

from router.openai.model_names import KNOWN, SEEN_S, KnownTargets, split
from router.registry import TargetKey


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_of_the_first_worker_stays() -> None:
    clock, wall = Clock(), Clock()
    known = KnownTargets(clock, wall)
    key = TargetKey(None, "m")
    known.note(key, 1)
    wall.now = 200.0
    known.note(key, 0)
    known.note(key, 2)
    assert (known.created(key), known.created(TargetKey("k", "m"))) == (100, 200)


def test_a_target_counts_as_served_for_a_time_after_its_last_worker() -> None:
    clock = Clock()
    known = KnownTargets(clock)
    key = TargetKey(None, "m")
    assert not known.was_served(key)
    known.note(key, 1)
    clock.now += SEEN_S * 2
    assert known.was_served(key)
    known.note(key, 0)
    clock.now += SEEN_S - 1
    assert known.was_served(key)
    clock.now += 1
    assert not known.was_served(key)


def test_known_targets_are_bounded() -> None:
    known = KnownTargets(Clock())
    for number in range((KNOWN.pieces or 0) + 5):
        known.note(TargetKey(None, str(number)), 1)
    assert len(known) == KNOWN.pieces
    assert not known.was_served(TargetKey(None, "4"))
    assert known.was_served(TargetKey(None, "5"))


def test_names_are_split_at_the_first_slash_and_only_uuids_are_made_lower_case() -> None:
    assert split("F/a/b") == TargetKey("F", "a/b")
    uuid = "0AF76519-16CD-43DD-8448-EB211C80319C"
    assert split(f"{uuid}/m") == TargetKey(uuid.lower(), "m")
    assert split("{" + uuid + "}/m") == TargetKey("{" + uuid + "}", "m")
    assert [split(name) for name in ("m", "/m", "f/", "/", "")] == [None] * 5
