"""Version and commit of this build, for `--version`, the first log line and a metric."""

import os
from pathlib import Path

VERSION = "0.1.0"
"""The version; pyproject.toml reads it from here."""

UNKNOWN = "unknown"
"""The commit of a build that does not tell it."""

_SHORT = 12


def commit() -> str:
    """The short commit: that of the image, else that of the checkout the program runs from, else `unknown`."""
    built_from = os.environ.get("STARGATE_COMMIT", "").strip()
    return built_from[:_SHORT] or _checked_out(Path(__file__).resolve().parents[2] / ".git") or UNKNOWN


def build_version() -> str:
    """The version this build was given (STARGATE_BUILD_VERSION), else its commit, else the version of the program."""
    given = os.environ.get("STARGATE_BUILD_VERSION", "").strip()
    if given:
        return given
    known = commit()
    return VERSION if known == UNKNOWN else known


def described() -> dict[str, str]:
    """The build, by field names of the first log line."""
    return {"version": build_version(), "commit_short_sha": commit(), "release": VERSION}


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
