"""The one reader of JSON: every failure is a `JsonError` with a place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.balancing.affinity import VIRTUAL_NODES
from router.balancing.config import DEFINITIONS, load_config
from router.balancing.config_error import ConfigError
from router.balancing.json_document import DEPTH, DOCUMENT, JsonError, parse


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested too deeply at line 1 column 65"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'\n {"a": tru}', "Expecting value at line 2 column 8"),
        (b"9" * 5_000, "number out of range"),
        (b"1e999", "number out of range"),
        (b'{"a":[NaN]}', "number out of range: NaN"),
        (b'{"a":["\\udfff"]}', r"lone surrogate in a text at a\[0\]"),
        (b'["\\ud83d"]', r"lone surrogate in a text at \[0\]"),
        (b'"\\ud800"', "lone surrogate in a text at the document"),
        (b'{"a":{"\\ud800":1}}', "lone surrogate in a key at an object at a"),
        (b'"\\' * 500_000, "Unterminated string"),
        (b"\xff", "not UTF-8: .* at byte 0"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"", "Expecting value at line 1 column 1"),
        (b" " * ((DOCUMENT.bytes or 0) + 1), "larger than"),
        (b"[" + b"0," * ((DOCUMENT.pieces or 0) + 1) + b"0]", "more than 500000 values"),
    ],
)
def test_what_is_refused_and_where(content: bytes, reason: str) -> None:
    with pytest.raises(JsonError, match=reason):
        parse(content)


def test_depth_up_to_the_limit_and_whole_surrogate_pairs_are_fine() -> None:
    depth = DEPTH.pieces or 0
    parse(b"[" * depth + b"]" * depth)
    assert parse(b'"\\ud83d\\ude00 [[["') == "\U0001f600 [[["


def test_escaped_names_and_texts_of_a_document_are_those_without_escapes() -> None:
    plain = b'{"models": {"model-\xc3\xa4": {"algorithm": "power-of-n", "comparator": "queue-time"}}}'
    escaped = (
        b'{"mod\\u0065ls": {"model-\\u00e4": {"\\u0061lgorithm": "power\\u002dof-n", '
        b'"comparator": "\\u0071ueue-tim\\u0065"}}}'
    )
    (one,), (other,) = (load_config(content).models.items() for content in (plain, escaped))
    assert one[0] == other[0] == "model-\u00e4"
    for policy in (one[1], other[1]):
        assert policy.configured.algorithm == "power-of-n"
        assert policy.configured.settings["comparator"] == "queue-time"


@given(
    st.binary(max_size=200)
    | st.text('[]{}",:\\ud80-9.eENaIinfty\ud800', max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_nothing_else_is_ever_raised_and_what_comes_out_can_be_encoded(content: bytes) -> None:
    try:
        document = parse(content)
    except JsonError as error:
        str(error).encode()
        return
    json.dumps(document, ensure_ascii=False).encode()


def test_settings_that_would_need_endless_memory_are_refused() -> None:
    nodes = (VIRTUAL_NODES.pieces or 0) + 1
    with pytest.raises(ConfigError, match="at most 10000"):
        load_config(b'{"models":{"m":{"algorithm":"wait-and-widen","cache_affinity_virtual_nodes":%d}}}' % nodes)


def test_an_integer_beyond_every_double_is_out_of_range() -> None:
    for digits in (309, 399):
        with pytest.raises(ConfigError, match="number out of range"):
            load_config(b'{"models":{"m":{"algorithm":"random","max_input_work_seconds":%s}}}' % (b"9" * digits))


def test_the_number_of_definitions_is_bounded() -> None:
    models = {f"m{number}": "random" for number in range(DEFINITIONS.pieces or 0)}
    with pytest.raises(ConfigError, match="10001 definitions"):
        load_config(json.dumps({"models": models}).encode())


def test_the_error_about_a_huge_name_is_short() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(json.dumps({"default": "x" * 1_000_000}).encode())
    assert len(str(caught.value)) < 600
