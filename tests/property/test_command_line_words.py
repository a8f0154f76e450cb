"""Arbitrary words, environments and log values: a usage error or settings, one printable line, and never anything else."""

import contextlib
import io

import structlog
from hypothesis import given
from hypothesis import strategies as st

from router.config.cli import HelpRequested, UsageError, VersionRequested, parse
from router.config.settings import OPTIONS
from router.telemetry.logging import Levels, set_up

REQUIRED = ["--stargate-id=r", "--advertise-addr=127.0.0.1:1", "--stargate-discovery-dns-name=x"]
FLAGS = st.sampled_from([option.flag for option in OPTIONS])
WORDS = st.one_of(
    st.text(max_size=20),
    FLAGS,
    st.tuples(FLAGS, st.text(max_size=20)).map("=".join),
    st.tuples(FLAGS, st.integers().map(str)).map("=".join),
)
ENVIRONMENT = st.dictionaries(
    st.sampled_from([option.env for option in OPTIONS if option.env]), st.text(max_size=12), max_size=4
)


@given(st.lists(WORDS, max_size=6), ENVIRONMENT)
def test_any_words_give_settings_or_a_usage_error(words: list[str], environment: dict[str, str]) -> None:
    with contextlib.suppress(HelpRequested, UsageError, VersionRequested):
        assert parse([*REQUIRED, *words], environment).stargate_id == "r"


@given(st.text(max_size=40))
def test_any_level_expression_is_understood(expression: str) -> None:
    assert Levels.of(expression).own >= 10


@given(st.text(), st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.floats()))
def test_any_event_is_one_printable_line(message: str, value: object) -> None:
    out = io.StringIO()
    set_up("text", {}, out, cache=False)
    try:
        structlog.get_logger().info(message, field=value)
    finally:
        structlog.reset_defaults()
    assert out.getvalue().endswith("\n")
    assert out.getvalue()[:-1].isprintable()
