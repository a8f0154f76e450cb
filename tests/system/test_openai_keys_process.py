"""`python -m router keys`, as a process."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from router.openai.keys.key_file import decode
from router.openai.keys.key_format import digest_of

ROOT = Path(__file__).parents[2]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STARGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "router", "keys", *words],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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


def test_a_revoked_key_is_gone_and_others_stay(file: str) -> None:
    for name in ("a", "b"):
        assert run("add", "--file", file, "--id", name).returncode == 0
    assert run("revoke", "--file", file, "--id", "a").returncode == 0
    assert [one.id for one in decode(Path(file).read_bytes()).keys] == ["b"]
    again = run("revoke", "--file", file, "--id", "a")
    assert again.returncode == 1
    assert "no key with the id 'a'" in again.stderr


def test_the_help_teaches_by_examples() -> None:
    found = run("--help")
    assert found.returncode == 0
    for part in ("keys add --file keys.json --id alice", "keys revoke", "60-M", "--expires-in 90D", "SIGHUP"):
        assert part in found.stdout
    for command in ("add", "list", "revoke"):
        assert "--file PATH" in run(command, "--help").stdout


def test_a_usage_error_is_2_and_a_file_that_cannot_be_used_is_1(file: str) -> None:
    assert run("add", "--file", file, "--id", "a b").returncode == 2
    Path(file).write_text("{")
    Path(file).chmod(0o600)
    found = run("list", "--file", file)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == f"error: {file}: Input data was truncated at the end\n"
