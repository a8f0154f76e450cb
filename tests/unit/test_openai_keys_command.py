"""`keys add|list|revoke`: what is printed, written, refused, and with which exit code."""

import io
import json
import os
import re
import stat
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from router.openai.keys import command
from router.openai.keys.key_file import decode
from router.openai.keys.key_format import digest_of


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def run(*words: str, **variables: str) -> Ended:
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STARGATE_")}
    with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, {**kept, **variables}, clear=True):
        try:
            code = command.main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "keys.json")


def test_a_key_is_printed_once_alone_and_never_kept(file: str) -> None:
    added = run("add", "--file", file, "--id", "alice", "--requests", "60-M", "--model", "m-*", "--expires-in", "90D")
    assert added.returncode == 0, added.stderr
    assert re.fullmatch(r"sk-lrr-[0-9a-f]{64}\n", added.stdout)
    key = added.stdout.strip()
    assert "not shown again" in added.stderr
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    content = Path(file).read_bytes()
    assert key.encode() not in content
    assert set(decode(content).callers()) == {digest_of(key.encode())}
    listed = run("list", STARGATE_OPENAI_KEYS_FILE=file)
    assert listed.returncode == 0
    assert re.search(r"^alice +\d{4}-\d\d-\d\d +until .+ all +m-\* +60-M requests", listed.stdout, re.MULTILINE)
    assert key not in listed.stdout + listed.stderr


def test_a_key_may_have_everything_at_once_and_the_list_is_json_if_asked_for(file: str) -> None:
    words = ["--id=b", "--routing-key=t", "--routing-key=", "--tokens=5-S,100-D", "--concurrency=3", "--priority=7"]
    more = ['--model-limits={"big": {"tokens": "1-H"}}', "--expires=2031-01-01T00:00:00", "--note=for tests"]
    assert run("add", "--file", file, *words, *more).returncode == 0
    (found,) = json.loads(run("list", "--file", file, "--json").stdout)
    assert found["routing_keys"] == ["t", ""]
    assert found["limits"] == {"tokens": "5-S,100-D", "concurrency": 3}
    assert found["model_limits"] == {"big": {"tokens": "1-H"}}
    assert (found["priority"], found["note"], found["expires"]) == (7, "for tests", "2031-01-01T00:00:00Z")
    assert len(found["digest"]) < 30
    shown = run("list", "--file", file).stdout
    for part in ("t,(none)", "5-S,100-D tokens 3 at a time; big: 1-H tokens", "until 2031-01-01", "for tests"):
        assert part in shown


def test_a_revoked_key_is_gone_and_others_stay(file: str) -> None:
    for name in ("a", "b"):
        assert run("add", "--file", file, "--id", name).returncode == 0
    assert re.search(
        r"^b +\d{4}-\d\d-\d\d +valid +all +all +none +-$", run("list", "--file", file).stdout, re.MULTILINE
    )
    assert run("revoke", "--file", file, "--id", "a").returncode == 0
    assert [one.id for one in decode(Path(file).read_bytes()).keys] == ["b"]
    again = run("revoke", "--file", file, "--id", "a")
    assert again.returncode == 1
    assert "no key with the id 'a'" in again.stderr


def test_an_id_that_exists_is_refused_and_no_key_printed(file: str) -> None:
    assert run("add", "--file", file, "--id", "a").returncode == 0
    before = Path(file).read_bytes()
    again = run("add", "--file", file, "--id", "a")
    assert (again.returncode, again.stdout) == (1, "")
    assert "there is a key with the id 'a'; revoke it first" in again.stderr
    assert Path(file).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "add|list|revoke"),
        (["add"], 2, "--id"),
        (["add", "--id", "a b"], 2, "'a b' is not 1 to 64 letters"),
        (["add", "--id", "a", "--requests", "60-m"], 2, "'60-m' is not <number>-<S|M|H|D|W>"),
        (["add", "--id", "a", "--expires", "soon"], 2, "'soon' is not a time"),
        (["add", "--id", "a", "--expires-in", "90"], 2, "for example 90D"),
        (["add", "--id", "a", "--concurrency", "0"], 2, ">= 1"),
        (["add", "--id", "a", "--model-limits", "{"], 2, "not JSON"),
        (["add", "--id", "a", "--model-limits", '{"m": {"tokns": "1-M"}}'], 2, "unknown field `tokns`"),
        (["add", "--id", "a", "--priority", "-1"], 2, "priority"),
        (["list"], 1, "No such file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(file: str, words: list[str], code: int, told: str) -> None:
    found = run(*words[:1], *(["--file", file] if words else []), *words[1:])
    assert found.returncode == code
    assert told in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
    assert not Path(file).exists()


def test_without_a_file_the_command_says_how_to_name_one() -> None:
    found = run("list")
    assert found.returncode == 2
    assert "Give --file PATH, or set STARGATE_OPENAI_KEYS_FILE" in found.stderr


def test_the_help_teaches_by_examples() -> None:
    found = run("--help")
    assert found.returncode == 0
    for part in ("keys add --file keys.json --id alice", "keys revoke", "60-M", "--expires-in 90D", "SIGHUP"):
        assert part in found.stdout
    for name in ("add", "list", "revoke"):
        assert "--file PATH" in run(name, "--help").stdout
