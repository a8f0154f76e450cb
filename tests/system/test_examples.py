"""The examples do what their pages say: each runs with the commands of its README, word for word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the tree by links, with an `examples` and a `build` of its own: an installation leaves something in both."""
    tree = tmp_path / "checkout"
    tree.mkdir()
    for path in ROOT.iterdir():
        if path.name not in {"build", "examples", ".git", ".venv"} and path.suffix != ".egg-info":
            (tree / path.name).symlink_to(path)
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(EXAMPLES, tree / "examples", ignore=ignored)
    return tree


def follow(name, checkout):
    """Run the commands of a README in a shell, with the Python of this test; what `make setup` does is done. Returns the output."""
    (commands,) = re.findall(r"```sh\n(.*?)```", (checkout / "examples" / name / "README.md").read_text(), re.DOTALL)
    script = commands.replace("make setup\n", "").replace(".venv/bin/python", '"$PYTHON_OF_THIS_TEST"')
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONPATH"))}
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=checkout,
        env={**environment, "PYTHON_OF_THIS_TEST": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_package_adds_an_algorithm(checkout):
    assert "1 passed" in follow("custom_algorithm", checkout)
    assert (checkout / "build/examples/primary_standby.py").is_file()


def test_another_project_tests_with_the_plug_in(checkout):
    assert "3 passed" in follow("pytest_plugin", checkout)


def test_the_openai_sdk_streams_an_answer(checkout):
    assert follow("openai_sdk", checkout).startswith("Hello , how can I help you today")


def test_all_examples_are_listed_and_tested_here():
    assert NAMES == ["custom_algorithm", "openai_sdk", "pytest_plugin"]
    listed = re.findall(r"^- \[\w+/\]\((\w+)/README\.md\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES
