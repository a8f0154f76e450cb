"""A body is patched as text: what is not patched stays to the byte, and what cannot be used is told."""

import json

import pytest

from router.openai.errors import RequestError
from router.openai.json_body import CONTAINERS, DOUBLED, NESTING, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"model":"a"}', b'{"model":NEW}'),
        (b' {"a" : 1.50,"model" :  "a" , "b":[ ]}\n', b' {"a" : 1.50,"model" :  NEW , "b":[ ]}\n'),
        (b"{}", b'{"model":NEW}'),
        (b" { } ", b' { "model":NEW} '),
        (b'{"a":{"model":"x"}}', b'{"a":{"model":"x"},"model":NEW}'),
        (b'{"a":"model","model":1}', b'{"a":"model","model":NEW}'),
        (b'{"a":"\\"model","model":1}', b'{"a":"\\"model","model":NEW}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":NEW}'),
        (b'{"model":"a","b":1,"model":"c"}', b'{"model":NEW,"b":1,"model":NEW}'),
        (b'{"model":"a","model":"a"}', b'{"model":NEW,"model":NEW}'),
        (b'{"model":[1,"]",{"b":[]}],"model":12}', b'{"model":NEW,"model":NEW}'),
        (b'{"model":1,"model":12}', b'{"model":NEW,"model":NEW}'),
        (b'{"model":12,"model":1}', b'{"model":NEW,"model":NEW}'),
        (b'{"model":{"a":"\\"}"},"model":"b" }', b'{"model":NEW,"model":NEW }'),
        (b'{"\\u00e9":1,"model":null}', b'{"\\u00e9":1,"model":NEW}'),
        ('{"é":"\\u0065","model":1}'.encode(), '{"é":"\\u0065","model":NEW}'.encode()),
    ],
)
def test_only_the_value_of_a_member_is_replaced(text, expected):
    assert parse(text).replaced({"model": b"NEW"}) == expected


def test_several_members_are_replaced_and_added_at_once():
    found = parse(b'{"stream":false,"x":1,"model":"a"}').replaced(
        {"model": b'"b"', "stream": b"true", "y": b"{}", "z": b"1"}
    )
    assert found == b'{"stream":true,"x":1,"model":"b","y":{},"z":1}'


def test_a_member_is_taken_out_with_its_comma():
    assert parse(b'{"a":1,"usage":null}').without("usage") == b'{"a":1}'
    assert parse(b'{"usage": {"b":2} , "a" :1}').without("usage") == b'{"a" :1}'
    assert parse(b'{"a":1}').without("usage") == b'{"a":1}'
    assert parse(b'{"usage":1}').without("usage") == b"{}"


def test_values_are_read_as_the_client_wrote_them():
    body = parse(b'{"a": 1.50 ,"b":null,"a":2}')
    assert {name: bytes(value) for name, value in body.members.items()} == {"a": b"2", "b": b"null"}
    assert (body.is_null("a"), body.is_null("b"), body.is_null("c")) == (False, True, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "The request body is empty. Send a JSON object."),
        (b"  \n", "The request body is empty. Send a JSON object."),
        (b"{bad", "The request body is not valid JSON: error at byte 1."),
        (b'{"a":1}xx', "The request body is not valid JSON: error at byte 8."),
        (b'{"a":1', "The request body is not valid JSON: it is cut, or has an escape that is half of a character."),
        (
            b'{"a":"\\ud83d"}',
            "The request body is not valid JSON: it is cut, or has an escape that is half of a character.",
        ),
        (b"[]", "The request body must be a JSON object."),
        (b"3", "The request body must be a JSON object."),
        (b'{"a":NaN}', "The request body is not valid JSON: error at byte 5."),
        (b'{"a":Infinity}', "The request body is not valid JSON: error at byte 5."),
        (b'{"a":"\xff"}', "The request body is not UTF-8 (at byte 6). Send JSON in UTF-8."),
        (b'{"\xff":1}', "The request body is not UTF-8 (at byte 2). Send JSON in UTF-8."),
        (b"\xef\xbb\xbf{}", "The request body is not valid JSON: error at byte 0."),
    ],
)
def test_what_is_no_json_object_is_told_with_its_place(text, message):
    with pytest.raises(RequestError) as refused:
        parse(text)
    refusal = refused.value.refusal
    assert (refusal.status, refusal.code, refusal.message) == (400, "invalid_json", message)


def test_nesting_is_bounded():
    most = NESTING.pieces
    deep = b"[" * (most - 1) + b"]" * (most - 1)
    assert parse(b'{"a":%b}' % deep)
    for text in (b'{"a":[%b]}' % deep, b'{"a":' + b'{"b":[' * 50_000 + b"]}" * 50_000 + b"}"):
        with pytest.raises(RequestError, match="nested deeper than 128 levels"):
            parse(text)
    brackets = "[" * 1000
    assert parse(json.dumps({"a": brackets, "b": [[]] * 200}).encode())


def test_containers_are_bounded():
    most = CONTAINERS.pieces
    assert parse(b'{"a":[' + b"[]," * (most - 3) + b"[]]}")
    for text in (b'{"a":[' + b"[]," * most + b"[]]}", b'{"a":[' + b'{"b":1},' * most + b"[]]}"):
        with pytest.raises(RequestError, match="arrays and objects"):
            parse(text)


def test_an_earlier_value_of_a_doubled_member_is_bounded():
    size = DOUBLED.bytes
    small = b'{"model":["%b"],"model":"a"}' % (b"x" * (size - 100))
    assert parse(small).replaced({"model": b"1"}) == b'{"model":1,"model":1}'
    with pytest.raises(RequestError, match="member twice"):
        parse(b'{"model":[%b 1],"model":"a"}' % (b'"x",' * (size // 4))).replaced({"model": b"1"})
