"""Routing expressions: any bytes give a result or the error with a position, in linear time, and what is printed parses back.

Whatever parameters an expression has, it is refused, or decisions with it are made.
"""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.balancing import BalancingConfig, RoutingRequest, Selector
from router.balancing.dry_run import SampleTarget
from router.balancing.expression import EXPRESSION, Expression, Parameter, ValueKind, parse_expression
from router.balancing.method_error import MethodError, MethodErrorCode

PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",;")
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.tuples(st.just(ValueKind.INTEGER), st.from_regex(r"-?[0-9]{1,15}", fullmatch=True)),
    st.tuples(st.just(ValueKind.DECIMAL), st.from_regex(r"-?[0-9]{1,12}\.[0-9]{1,3}", fullmatch=True)),
    st.tuples(st.just(ValueKind.TOKEN), st.from_regex(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]{0,8}", fullmatch=True)),
    st.tuples(st.just(ValueKind.STRING), st.text(PRINTABLE, max_size=20)),
)
METHODS = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True)
NEARLY = st.lists(
    st.sampled_from(
        [
            "pulsar",
            ";",
            "=",
            " ",
            '"',
            "\\",
            "a",
            "n",
            "-1",
            "0.5",
            "1.",
            "?1",
            ":YQ==:",
            "@1",
            ",",
            "\t",
            "é",
            "1234567890",
        ]
    ),
    max_size=40,
).map(lambda parts: "".join(parts).encode())


def content(expression: Expression) -> tuple[str, list[tuple[str, ValueKind, str]]]:
    return expression.method, [(one.name, one.kind, one.text) for one in expression.parameters]


def parsed(value: bytes) -> Expression | MethodError:
    try:
        return parse_expression(value)
    except MethodError as error:
        return error


def refusal(text: str | bytes) -> MethodError:
    with pytest.raises(MethodError) as raised:
        parse_expression(text.encode() if isinstance(text, str) else text)
    assert raised.value.code is MethodErrorCode.MALFORMED_EXPRESSION
    assert str(raised.value).endswith(f"at byte {raised.value.position}")
    return raised.value


@given(st.one_of(st.binary(max_size=2000), st.text(max_size=300).map(str.encode), NEARLY))
def test_any_bytes_are_an_expression_or_malformed_at_a_position(value: bytes) -> None:
    found = parsed(value)
    if isinstance(found, MethodError):
        assert found.code is MethodErrorCode.MALFORMED_EXPRESSION
        assert found.position is not None
        assert 0 <= found.position <= len(value)
        assert len(str(found)) < 300
        assert str(found).isprintable()
        return
    for one in found.parameters:
        assert value[one.position :].startswith(f"{one.name}=".encode())
        assert one.value_position == one.position + len(one.name) + 1
    assert content(parse_expression(str(found).encode())) == content(found)


@given(METHODS, st.dictionaries(NAMES, VALUES, max_size=8), st.integers(0, 3))
def test_a_printed_expression_parses_back(method: str, values: dict[str, tuple[ValueKind, str]], spaces: int) -> None:
    parameters = tuple(Parameter(name, kind, text, 0, 0) for name, (kind, text) in values.items())
    made = Expression(method, 0, parameters)
    assert content(parse_expression(str(made).encode())) == content(made)
    blank = " " * spaces
    spaced = blank + f";{blank}".join([method, *map(str, parameters)]) + blank
    assert content(parse_expression(spaced.encode())) == content(made)


@pytest.mark.parametrize(
    ("text", "position", "rule"),
    [
        ("pulsar;seed=a;seed=b", 14, "duplicate parameter 'seed'"),
        ("pulsar;seed", 11, "'=' expected after 'seed'"),
        ("pulsar;seed ", 11, "'=' expected after 'seed'"),
        ("pulsar ;seed=a", 6, "';' expected"),
        ("pulsar;seed =a", 11, "'=' expected"),
        ("pulsar;seed= a", 12, "must be an integer"),
        ("pulsar;seed=a ;n=1", 13, "';' expected"),
        ("pulsar;seed=a,b", 13, "','"),
        ('pulsar;seed="a,b"', 14, "','"),
        ('pulsar;seed="a;b"', 14, "';' in its string"),
        ("pulsar;\tseed=a", 7, "not printable"),
        ("pulsar;seed=é", 12, "not printable"),
        ("pulsar;", 7, "the name of a parameter"),
        ("pulsar;;seed=a", 7, "the name of a parameter"),
        ("pulsar;Seed=a", 7, "the name of a parameter"),
        ("pulsar;se-ed=a", 9, "'=' expected after 'se'"),
        ("pulsar;seed=", 12, "must be an integer"),
        ("pulsar;seed='a'", 12, "must be an integer"),
        ("1pulsar;seed=a", 0, "the name of an algorithm"),
        ('"pulsar";seed=a', 0, "the name of an algorithm"),
        (";seed=a", 0, "the name of an algorithm"),
        ("", 0, "the name of an algorithm"),
        ("random;require_input_tokens=?1", 28, "must be an integer"),
        ("pulsar;seed=:YQ==:", 12, "must be an integer"),
        ("pulsar;seed=@1", 12, "must be an integer"),
        ('pulsar;seed=%"a"', 12, "must be an integer"),
        ('pulsar;seed="a', 12, "must be an integer"),
        ('pulsar;seed="a\\b"', 12, "must be an integer"),
        ("wait-and-widen;next_bucket_unlock_factor=0.0625", 41, "after it"),
        ("wait-and-widen;next_bucket_unlock_factor=1.", 41, "after it"),
        ("wait-and-widen;next_bucket_unlock_factor=1234567890123.5", 41, "before the point"),
        ("wait-and-widen;n=1234567890123456", 17, "more than 15 digits"),
        ("wait-and-widen;n=1e2", 18, "';' expected"),
        ("wait-and-widen;n=+1", 17, "must be an integer"),
        ("wait-and-widen;n=-", 17, "must be an integer"),
    ],
)
def test_what_is_malformed_and_where(text: str, position: int, rule: str) -> None:
    error = refusal(text)
    assert error.position == position
    assert rule in str(error)


def test_length_and_number_of_parameters_are_bounded() -> None:
    longest = b"pulsar;seed=".ljust(EXPRESSION.bytes or 0, b"a")
    assert parse_expression(longest).parameters[0].text == "a" * 1012
    assert refusal(longest + b"a").position == 1024
    most = "pulsar" + "".join(f";p{number}=1" for number in range(EXPRESSION.pieces or 0))
    assert len(parse_expression(most.encode()).parameters) == 32
    assert "more than 32 parameters" in str(refusal(most + ";more=1"))


def test_values_keep_their_kind_and_strings_lose_their_escapes() -> None:
    found = parse_expression(b' power-of-n; a=-1; b=2.50;c=*tok/en:1;d="say \\"hi\\" \\\\ ";e=""  ')
    assert found.method == "power-of-n"
    assert found.position == 1
    assert [(one.name, one.kind.value, one.text) for one in found.parameters] == [
        ("a", "integer", "-1"),
        ("b", "decimal", "2.50"),
        ("c", "token", "*tok/en:1"),
        ("d", "string", 'say "hi" \\ '),
        ("e", "string", ""),
    ]
    assert str(found) == 'power-of-n;a=-1;b=2.50;c=*tok/en:1;d="say \\"hi\\" \\\\ ";e=""'


@pytest.mark.parametrize(
    "filling",
    [b" ", b";", b'"', b"\\", b'\\"', b"a", b"1", b"a=1;", b"=", b'="', b"-", b"*", b';a="\\\\', b",", b"\xff"],
)
def test_the_time_does_not_grow_faster_than_the_text(filling: bytes) -> None:
    for start in (b"pulsar;a=", b'pulsar;a="', b"", b"pulsar;"):
        value = (start + filling * 1024)[:1024]
        began = time.perf_counter()
        for _ in range(20):
            parsed(value)
        assert time.perf_counter() - began < 1.0


def test_a_long_text_is_cut_in_the_message() -> None:
    assert len(str(refusal("pulsar;" + "x" * 900))) < 200


# --- with real algorithms and parameters

SETTINGS = sorted(
    {
        "require_cache_affinity_key",
        "require_input_tokens",
        "max_input_work_seconds",
        "sample_count",
        "comparator",
        "seed",
        "consider_kv_free_tokens",
        "n",
        "max_queued",
        "max_queue_time_floor_ms",
        "max_queue_time_ceil_ms",
        "ttft_bucket_size_ms",
        "next_bucket_unlock_factor",
        "ignore_queue_time",
        "ignore_input_processing_time",
        "cache_affinity_virtual_nodes",
        "cache_affinity_backend_selection_count",
        "cache_affinity_input_tokens_scale",
        "cache_affinity_wait_ms",
        "band_widen_interval_ms",
        "fallback_max_queued",
    }
)
WORDS = ["true", "false", "0", "1", "0.5", "-1", '"0.0001"', "queue-time", '"18446744073709551615"', "9" * 15, "-0.001"]
HUGE = ["9" * 300, "-" + "9" * 300, "1" + "0" * 400]
PARAMETERS = st.dictionaries(
    st.sampled_from(SETTINGS),
    st.one_of(
        st.sampled_from(WORDS), st.sampled_from(HUGE).map(lambda digits: f'"{digits}"'), VALUES.map(lambda v: v[1])
    ),
    max_size=6,
)
POLICY = Selector(BalancingConfig(), random.Random(0))


@given(st.sampled_from(POLICY.algorithms()), PARAMETERS, st.sampled_from([None, "conversation"]), st.floats(0, 70_000))
def test_an_expression_is_refused_or_decides(
    algorithm: str, parameters: dict[str, str], affinity_key: str | None, age_ms: float
) -> None:
    assert POLICY.expressions is not None
    value = ";".join([algorithm, *(f"{name}={text}" for name, text in parameters.items())]).encode()
    try:
        definition = POLICY.expressions.resolve(value, "tenant", "m")
    except MethodError:
        return
    request = RoutingRequest(
        routing_key="tenant",
        model="m",
        input_tokens=1_000,
        received_at=0.0,
        affinity_key=affinity_key,
        request_slo_ms=1_000,
    )
    outcome = POLICY.select(
        definition,
        request,
        SampleTarget(),
        advertised=bool,
        failed_backends=set(),
        failed_clusters=set(),
        now=age_ms / 1000,
    )
    assert outcome is not None
