"""The build identity that logs and metrics show."""

import re
import tomllib
from pathlib import Path

import pytest

from router.telemetry import build

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_of_the_package_is_taken_from_the_program() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["dynamic"] == ["version"]
    assert document["tool"]["setuptools"]["dynamic"]["version"] == {"attr": f"{build.__name__}.VERSION"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", build.VERSION)


def test_the_version_has_its_place_in_the_changelog() -> None:
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == build.VERSION


def test_the_image_says_which_commit_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARGATE_COMMIT", "0123456789abcdef0123")
    assert build.commit() == "0123456789ab"


def test_without_a_checkout_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STARGATE_COMMIT", raising=False)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "router" / "process" / "build.py"))
    assert build.commit() == "unknown"


def test_the_version_of_a_build_is_the_one_it_was_given_else_its_commit_else_that_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "__file__", str(tmp_path / "router" / "process" / "build.py"))
    monkeypatch.delenv("STARGATE_COMMIT", raising=False)
    monkeypatch.setenv("STARGATE_BUILD_VERSION", "")
    assert build.build_version() == build.VERSION
    monkeypatch.setenv("STARGATE_COMMIT", "0123456789abcdef0123")
    assert build.build_version() == "0123456789ab"
    monkeypatch.setenv("STARGATE_BUILD_VERSION", "0.18.0-7")
    assert build.build_version() == "0.18.0-7"
    assert build.described()["version"] == "0.18.0-7"
