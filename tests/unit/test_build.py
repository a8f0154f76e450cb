"""The build identity that logs and metrics show."""

import tomllib
from pathlib import Path

import pytest

from router.process import build

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_that_of_the_package() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["version"] == build.VERSION


def test_the_image_says_which_commit_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARGATE_COMMIT", "0123456789abcdef0123")
    assert build.commit() == "0123456789ab"


def test_without_a_checkout_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STARGATE_COMMIT", raising=False)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "router" / "process" / "build.py"))
    assert build.commit() == "unknown"
