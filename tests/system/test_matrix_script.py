"""`scripts/matrix` finds the Pythons that run, names those that are missing, and runs what it is told."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("awk", "bash", "cat", "cksum", "dirname", "grep", "head", "mkdir", "sed", "tail", "touch", "tr")

PYTHON = '#!/bin/sh\necho "{0}"\n'  # asked for its version only
SHIM = "#!/bin/sh\necho no such version >&2\nexit 127\n"
UV = """#!/bin/sh
# Makes an environment whose Python notes its words and ends as it is told; lists one Python of its own.
case $1 in
    venv) for last; do :; done; mkdir -p "$last/bin"; cp "$0.python" "$last/bin/python" ;;
    python) echo "cpython-3.13.1-linux $(dirname "$0")/managed/python3.13" ;;
esac
"""


class Place:
    """A tree with the script, and a PATH with nothing but a few tools and what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.tree, self.tools = root / "tree", root / "tools"
        for name in ("scripts", "requirements"):
            shutil.copytree(ROOT / name, self.tree / name)
        self.tools.mkdir()
        for name in (*TOOLS, "cp"):
            found = shutil.which(name)
            assert found is not None, name
            (self.tools / name).symlink_to(found)

    def put(self, name: str, text: str) -> None:
        path = self.tools / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.tree / "scripts/matrix", *words],
            env={"PATH": str(self.tools), "HOME": str(self.tree)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.put("python3.11", PYTHON.format("3.11"))
    place.put("python3.12", SHIM)
    return place


def with_uv(place: Place, exit_code: int) -> None:
    place.put("uv", UV)
    place.put("uv.python", f'#!/bin/sh\necho "$@"\nexit {exit_code}\n')
    place.put("managed/python3.13", PYTHON.format("3.13"))


def test_what_does_not_run_is_not_found(place: Place) -> None:
    status, told = place.run("--list")
    assert status == 0
    assert f"Python 3.11: {place.tools}/python3.11\n" in told
    assert "not found: Python 3.12 3.13 3.14 " in told


def test_pythons_that_uv_or_pyenv_keep_are_found(place: Place) -> None:
    with_uv(place, 0)
    shutil.copytree(place.tools / "managed", place.tree / ".pyenv/versions/3.14.2/bin")
    kept = place.tree / ".pyenv/versions/3.14.2/bin/python3.14"
    kept.write_text(PYTHON.format("3.14"))
    kept.chmod(0o755)
    told = place.run("--list")[1]
    assert f"Python 3.13: {place.tools}/managed/python3.13\n" in told
    assert f"Python 3.14: {kept}\n" in told


def test_each_python_that_is_there_runs_the_tests_and_the_missing_are_named(place: Place) -> None:
    with_uv(place, 0)
    status, told = place.run("3.11", "3.13", "--", "tests/unit", "-x")
    assert status == 0
    for version in ("3.11", "3.13"):
        assert f"{version}: -m pytest -n 2 --dist loadfile -q tests/unit -x\n" in told
    assert told.endswith("passed: 3.11 3.13; failed: none; not found: 3.12 3.14\n")


def test_failing_tests_fail_the_command_after_the_other_runs(place: Place) -> None:
    with_uv(place, 1)
    status, told = place.run("3.11", "3.13")
    assert status == 1
    assert told.endswith("passed: none; failed: 3.11 3.13; not found: 3.12 3.14\n")


def test_a_python_that_is_named_and_missing_is_a_failure(place: Place) -> None:
    with_uv(place, 0)
    status, told = place.run("3.12")
    assert status == 1
    assert "3.12: not found\n" in told


def test_without_uv_it_says_how_to_get_it(place: Place) -> None:
    place.put("python3", "#!/bin/sh\necho no network\nexit 1\n")
    status, told = place.run("3.11")
    assert status == 1
    assert "no network\nerror: uv is missing" in told
    assert "`pip install -r requirements/matrix.txt`" in told


@pytest.mark.parametrize("word", ["3.10", "lowets", "tests/unit"])
def test_a_word_that_is_none_is_refused(place: Place, word: str) -> None:
    status, told = place.run(word)
    assert status == 2
    assert word in told
