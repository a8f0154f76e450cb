"""Rules of limits, written `<n>-<S|M|H|D|W>`: so many in a second, minute, hour, day or week.

The syntax is that of the control plane's `tokenRateLimit`. Several rules are separated by commas; each unit at most once.
"""

import re
from enum import Enum
from typing import NamedTuple

MAX_AMOUNT = 10**15
"""Largest amount of a rule; a float holds it exactly."""

_RULE = re.compile(r"([0-9]{1,16})-([SMHDW])")
_SECOND_MS = 1_000


class Unit(Enum):
    """The period of a rule, by its letter."""

    SECOND = "S"
    MINUTE = "M"
    HOUR = "H"
    DAY = "D"
    WEEK = "W"

    @property
    def period_ms(self) -> int:
        """Its length in milliseconds."""
        return _PERIODS_MS[self]

    @property
    def word(self) -> str:
        """Its English name, for messages."""
        return self.name.lower()


_PERIODS_MS = {
    Unit.SECOND: _SECOND_MS,
    Unit.MINUTE: 60 * _SECOND_MS,
    Unit.HOUR: 3_600 * _SECOND_MS,
    Unit.DAY: 86_400 * _SECOND_MS,
    Unit.WEEK: 604_800 * _SECOND_MS,
}


class RuleError(ValueError):
    """A text is no list of rules. `reason` is what is wrong, `position` the index of the character where the rule begins."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"{reason} (at character {position + 1})")
        self.reason = reason
        self.position = position


class Rule(NamedTuple):
    """So many in a period."""

    amount: int
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount}-{self.unit.value}"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of `text`, shortest period first; none of an empty text. Blanks around a rule are ignored. Raises `RuleError`."""
    if not text.strip(" "):
        return ()
    found: dict[Unit, Rule] = {}
    position = 0
    for part in text.split(","):
        rule = _rule(part, position)
        if rule.unit in found:
            raise RuleError(f"a second rule for the {rule.unit.word}", position)
        found[rule.unit] = rule
        position += len(part) + 1
    return tuple(found[unit] for unit in Unit if unit in found)


def _rule(part: str, position: int) -> Rule:
    shown = part.strip(" ")
    match = _RULE.fullmatch(shown)
    if match is None:
        quoted = shown if len(shown) <= 24 else f"{shown[:24]}..."
        raise RuleError(f"'{quoted}' is not <number>-<S|M|H|D|W>, for example 60-M", position)
    amount = int(match[1])
    if not 1 <= amount <= MAX_AMOUNT:
        raise RuleError(f"{amount} is not in 1..={MAX_AMOUNT}", position)
    return Rule(amount, Unit(match[2]))
