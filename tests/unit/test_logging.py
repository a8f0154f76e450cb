"""Log lines: format, levels, and what never gets into them."""

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.telemetry.logging import FrequentLine, Levels, set_up


@pytest.fixture
def lines() -> Iterator[Callable[..., list[str]]]:
    def log(call: Callable[[Any], None], form: Any = "text", *, process: str | None = None, **env: str) -> list[str]:
        out = io.StringIO()
        set_up(form, env, out, cache=False, process=process)
        call(structlog.get_logger())
        return out.getvalue().split("\n")[:-1]

    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    hook = sys.unraisablehook
    yield log
    sys.unraisablehook = hook
    logging.captureWarnings(False)
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_a_line_is_time_level_message_and_fields(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.info("load balancer config loaded", default_lb="power-of-n", model_overrides=0))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  INFO load balancer config loaded default_lb=power-of-n model_overrides=0",
        line,
    )


def test_texts_are_quoted_and_absent_values_are_none(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.warning("x", component="stargate-reverse-listener", key=None, yes=True))
    assert line.endswith(' WARN x component="stargate-reverse-listener" key=None yes=true')


def test_names_stand_bare_unless_they_could_be_taken_for_something_else(lines: Callable[..., list[str]]) -> None:
    (plain,) = lines(lambda log: log.info("x", inference_server_id="w-1", model_id="org/model:7b", routing_key=None))
    assert plain.endswith(" x inference_server_id=w-1 model_id=org/model:7b routing_key=None")
    (odd,) = lines(lambda log: log.info("x", inference_server_id="w 1", model_id="a=b", requested_algorithm=""))
    assert odd.endswith(' x inference_server_id="w 1" model_id="a=b" requested_algorithm=""')


def test_a_peer_can_neither_break_a_line_nor_colour_it(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.info("x", model='a"\nb\x1b[31m', error="c\r\nd"))
    assert line.isprintable()
    assert r"\"\nb\x1b[31m" in line


def test_long_values_are_cut(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.info("x", model="a" * 100_000))
    assert len(line) < 2_200


@pytest.mark.parametrize("name", ["authorization", "token", "auth_token", "client_secret", "prompt", "Cookie"])
def test_fields_named_like_secrets_are_masked(lines: Callable[..., list[str]], name: str) -> None:
    (line,) = lines(lambda log: log.info("x", **{name: "hunter2"}))
    assert "hunter2" not in line


def test_no_colour_without_a_terminal(lines: Callable[..., list[str]]) -> None:
    assert "\x1b" not in lines(lambda log: log.error("x"))[0]


def test_json_lines_are_one_object_each(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.error("it broke", worker="w", count=3), "json")
    document = json.loads(line)
    assert document.pop("timestamp").endswith("Z")
    assert document == {"level": "ERROR", "message": "it broke", "worker": "w", "count": 3}


def test_lines_of_libraries_look_like_ours(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda _log: logging.getLogger("asyncio").error("task %s", "failed"))
    assert line.endswith('ERROR task failed logger="asyncio"')


@pytest.mark.parametrize(
    ("expression", "own"),
    [
        (None, logging.INFO),
        ("", logging.INFO),
        ("debug", logging.DEBUG),
        ("TRACE", logging.DEBUG),
        ("warn", logging.WARNING),
        ("warn,stargate=debug", logging.DEBUG),
        ("debug,stargate=error", logging.ERROR),
        ("h2=debug", logging.INFO),
        ("nonsense", logging.INFO),
    ],
)
def test_rust_log_names_the_level(expression: str | None, own: int) -> None:
    assert Levels.of(expression).own == own


def test_lines_below_the_level_are_not_written(lines: Callable[..., list[str]]) -> None:
    assert lines(lambda log: log.info("x"), RUST_LOG="warn") == []


SOME_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=30), st.binary(max_size=9)
)


@pytest.mark.parametrize("form", ["text", "json"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.tuples(*[SOME_VALUES] * 4))
def test_a_frequent_line_reads_like_any_other(
    lines: Callable[..., list[str]], form: str, values: tuple[Any, ...]
) -> None:
    fields = ("request_id", "model_id", "error", "auth_token")
    usual = lines(lambda log: log.info("it happened", **dict(zip(fields, values, strict=True))), form)
    frequent = lines(lambda _log: FrequentLine("it happened", *fields).write(*values), form)
    assert [_without_time(line) for line in frequent] == [_without_time(line) for line in usual]


def _without_time(line: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "", line, count=1)


def test_a_frequent_line_below_the_level_is_not_written(lines: Callable[..., list[str]]) -> None:
    assert lines(lambda _log: FrequentLine("x").write(), RUST_LOG="warn") == []


def test_long_names_and_nested_secrets_are_cut_and_masked_too(lines: Callable[..., list[str]]) -> None:
    for form in ("text", "json"):
        (line,) = lines(lambda log: log.info("x", model_id="a" * 9_000, config={"auth_token": "hunter2"}), form)
        assert len(line) < 2_200
        assert "hunter2" not in line


ODD_VALUES = st.one_of(
    st.text(st.characters(categories=["Cs", "Cc", "L"]), max_size=9),
    st.binary(max_size=9),
    st.floats(),
    st.integers(),
    st.dictionaries(st.text(st.characters(categories=["Cs", "L"]), max_size=3), st.binary(max_size=3), max_size=2),
    st.lists(st.text(st.characters(categories=["Cs"]), max_size=3), max_size=2),
    st.builds(object),
)


@pytest.mark.parametrize("form", ["text", "json"])
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=st.text(st.characters(categories=["Cs", "Cc", "L"]), max_size=9), values=st.tuples(*[ODD_VALUES] * 3))
def test_no_value_whatever_it_is_keeps_a_line_from_being_one(
    lines: Callable[..., list[str]], form: str, event: str, values: tuple[Any, ...]
) -> None:
    fields = dict(zip(("model_id", "error", "what"), values, strict=True))
    usual = lines(lambda log: log.warning(event, **fields), form)
    frequent = lines(lambda _log: FrequentLine("x", *fields).write(*values), form)
    for (line,) in (usual, frequent):
        line.encode()
        if form == "json":
            assert json.loads(line)["level"] in ("WARN", "INFO")


def test_a_lone_surrogate_is_shown_as_its_escape(lines: Callable[..., list[str]]) -> None:
    (line,) = lines(lambda log: log.warning("rejected", error="bad \udc80", more={"\udfff": 1}), "json")
    document = json.loads(line)
    assert (document["error"], document["more"]) == ("bad \\udc80", {"\\udfff": 1})
    (line,) = lines(lambda log: log.warning("rejected", error="bad \udc80"))
    assert line.endswith("error=bad \\udc80")


def test_a_traceback_can_neither_colour_the_log_nor_fill_it(lines: Callable[..., list[str]]) -> None:
    error = ValueError("\x1b[31m" + "a" * 100_000)
    error.__traceback__ = None
    found = lines(lambda log: log.error("it broke", exc_info=error))
    assert found[1].startswith("ValueError: \\x1b[31maaa")
    assert all(line.isprintable() for line in found)
    assert sum(map(len, found)) < 25_000


def test_what_python_cannot_raise_is_a_line(lines: Callable[..., list[str]]) -> None:
    class Unkempt:
        def __del__(self) -> None:
            raise RuntimeError("left over")

    def lose(_log: Any) -> None:
        Unkempt()

    (line,) = lines(lose)
    assert "ERROR" in line
    assert line.endswith("error=RuntimeError('left over')")


def test_lines_of_several_processes_say_which_wrote_them(lines: Callable[..., list[str]]) -> None:
    def call(log: Any) -> None:
        log.info("one", a=1)
        log.info("two", stargate_id="own")
        for frequent in (FrequentLine("three", "a"), FrequentLine("four", "stargate_id")):
            frequent.write("own")

    shown = [line.split(" INFO ")[1] for line in lines(call, process="r-1")]
    assert shown == [
        "one a=1 stargate_id=r-1",
        "two stargate_id=own",
        'three a="own" stargate_id=r-1',
        "four stargate_id=own",
    ]
    found = [json.loads(line) for line in lines(call, "json", process="r-1")]
    assert [line["stargate_id"] for line in found] == ["r-1", "own", "r-1", "own"]
