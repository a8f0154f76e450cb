"""Text and figures of `top`: harmless on any terminal, and exactly as wide as they should be."""

import math
import time

import pytest

from router.top.figures import bars, count, duration, milliseconds, percent, time_of_day
from router.top.keys import HELP, KEYS, KEYS_OF_A_PAGE
from router.top.lines_view import LinesView
from router.top.printable import cells, cut, padded, printable
from router.top.spans import Role, Span, fitted, text_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpu-1", "gpu-1"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\r\nb\tc\x00\x7f", "a\\r\\nb\\tc\\x00\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200db\u2028c", "a\\u200db\\u2028c"),
        ("\ud800", "\\ud800"),
        ("\ue000", "\\ue000"),
        ("Modell für Ärzte 模型", "Modell für Ärzte 模型"),
        ("a\xa0b", "a b"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("e\u0301", "e\u0301"),
        ("e\u0301\u0301\u0301", "e\u0301\u0301\\u0301"),
        ("\u0301e", "\\u0301e"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_columns_are_counted_as_a_terminal_draws_them() -> None:
    assert [cells(text) for text in ("abc", "模型", "e\u0301")] == [3, 4, 1]
    assert cut("模型模型", 5) == "模型…"
    assert cut("模型模型", 4) == "模…"
    assert cut("abc", 3) == "abc"
    assert cut("abc", 0) == ""
    assert padded("ab", 4) == "ab  "
    assert padded("ab", 4, right=True) == "  ab"
    assert padded("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0, "0"),
        (12.34, "12.3"),
        (123.4, "123"),
        (9_999, "9,999"),
        (10_000, "10.0k"),
        (123_456_789, "123.5M"),
        (1e12, "1.0T"),
        (-20_000, "-20.0k"),
        (1e18, "1e+06T"),
    ],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert count(value) == shown


def test_durations_are_short() -> None:
    assert [milliseconds(value) for value in (None, math.nan, 0.4, 12.34, 850.4, 12_000)] == [
        *("-", "-", "0.40", "12.3", "850", "12.0s")
    ]
    assert [duration(value) for value in (None, math.inf, -1, 5, 65, 3_725, 90_000)] == [
        *("-", "-", "0.0s", "5.0s", "1m05s", "1h02m", "1d01h")
    ]
    assert (percent(1, 4), percent(1, 0)) == ("25%", "-")


def test_a_time_that_is_none_is_unknown() -> None:
    assert time_of_day(time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))) == "03:04:05"
    assert time_of_day(1e300) == "-"


def test_a_minute_is_a_small_picture() -> None:
    assert bars([0, 1, 4, 8], 4) == " ▁▄█"
    assert bars([1, 2, 3], 2) == "▆█"
    assert bars([0, 0], 5) == "  "
    assert bars([1], 0) == ""


def test_lines_are_cut_at_the_width() -> None:
    line = [Span("abc", Role.GOOD), Span("defgh"), Span("ij")]
    assert text_of(fitted(line, 10)) == "abcdefghij"
    assert fitted(line, 6) == [Span("abc", Role.GOOD), Span("de…")]
    assert fitted(line, 3) == [Span("abc", Role.GOOD), Span("")]


def test_a_page_of_text_is_scrolled_within_its_bounds() -> None:
    view = LinesView([[Span(f"line {number} "), Span("end")] for number in range(10)])

    def shown() -> list[str]:
        return [text_of(line) for line in view.window(3)]

    assert shown() == ["line 0 end", "line 1 end", "line 2 end"]
    view.scroll_pages(1)
    assert shown()[0] == "line 2 end"
    view.scroll(down=100, right=8)
    assert shown() == ["nd"] * 3
    view.scroll(right=100)
    assert shown() == ["d"] * 3
    view.scroll(down=-100, right=-100)
    assert shown()[0] == "line 0 end"


def test_keys_and_help_fit_into_80_columns() -> None:
    assert max(map(len, HELP.splitlines())) <= 78
    for line in (KEYS, KEYS_OF_A_PAGE):
        assert cells(text_of(line)) <= 80
