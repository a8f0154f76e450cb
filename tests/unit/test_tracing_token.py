"""The access token for the collector: read for every batch, and kept when the file cannot be used."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.telemetry.otlp.access_token import SECRETS, AccessToken


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secrets.json"


def test_without_a_file_there_is_none() -> None:
    assert AccessToken(None).current() is None


@pytest.mark.parametrize(
    ("document", "token"),
    [
        ({"tracingAccessToken": "abc"}, "abc"),
        ({"tracingAccessToken": "  abc\n"}, "abc"),
        ({"tracingAccessToken": "  "}, None),
        ({"tracingAccessToken": None}, None),
        ({"other": "abc"}, None),
        (["abc"], None),
    ],
)
def test_the_token_is_trimmed_and_may_be_missing(file: Path, document: object, token: str | None) -> None:
    file.write_text(json.dumps(document))
    with capture_logs() as lines:
        assert AccessToken(str(file)).current() == token
    assert lines == []


def test_a_new_token_is_used_at_once_and_a_removed_one_no_more(file: Path) -> None:
    token = AccessToken(str(file))
    for text in ("one", "two"):
        file.write_text(json.dumps({"tracingAccessToken": text}))
        assert token.current() == text
    file.write_text("{}")
    assert token.current() is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "failed to read secrets file '{}' for tracingAccessToken: No such file or directory"),
        (b"{very-secret", "secrets file '{}' is not valid JSON"),
        (b'"\xff"', "secrets file '{}' is not valid JSON"),
        (b"[" * 100_000, "secrets file '{}' is not valid JSON"),
        (b'{"tracingAccessToken": 5}', "tracingAccessToken in secrets file is not a string"),
        (b'{"tracingAccessToken": "very-secret\\u00e4"}', "lightstep access token is not a valid gRPC metadata value"),
        (b'{"tracingAccessToken": "very\\nsecret"}', "lightstep access token is not a valid gRPC metadata value"),
        (b" " * ((SECRETS.bytes or 0) + 1), "secrets file '{}' is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_keeps_the_last_token(file: Path, content: bytes | None, reason: str) -> None:
    file.write_text('{"tracingAccessToken": "good"}')
    token = AccessToken(str(file))
    assert token.current() == "good"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with capture_logs() as lines:
        assert [token.current(), token.current()] == ["good", "good"]
    (line,) = lines
    assert line["error"] == reason.format(file)
    assert "secret" not in line["error"].replace("secrets", "")
    file.write_text('{"tracingAccessToken": "new"}')
    assert token.current() == "new"
