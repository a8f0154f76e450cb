"""Which build this is: version and commit, for the first log line and a metric."""

import os
from pathlib import Path

VERSION = "0.1.0"
"""The only place; pyproject.toml takes it from here."""

_SHORT = 12


def commit() -> str:
    """The short commit: what the image was built with, else that of the checkout it runs from, else `unknown`."""
    built_from = os.environ.get("STARGATE_COMMIT", "").strip()
    return built_from[:_SHORT] or _checked_out(Path(__file__).resolve().parents[2] / ".git") or "unknown"


def described() -> dict[str, str]:
    """Version and commit, by the names of the first log line."""
    return {"version": VERSION, "commit_short_sha": commit()}


def _checked_out(git: Path) -> str | None:
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head[:_SHORT]
        name = head.removeprefix("ref: ")
        loose = git / name
        if loose.exists():
            return loose.read_text(encoding="ascii").strip()[:_SHORT]
        packed = (git / "packed-refs").read_text(encoding="ascii").splitlines()
        return next((line.split()[0][:_SHORT] for line in packed if line.endswith(f" {name}")), None)
    except (OSError, ValueError):
        return None
