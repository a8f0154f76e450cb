"""How the programs of this installation are started: `python -P -m MODULE`, with the modules of this very installation."""

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The directory that holds the packages: site-packages, or a checkout."""


def command(module: str) -> list[str]:
    """The words that run `module`. `-P` keeps the working directory off the import path (Python documentation, "Command line")."""
    return [sys.executable, "-P", "-m", module]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What has to be added to the environment `inherited` for `command` to find this installation before any other module.

    Nothing for an ordinary installation; `PYTHONPATH` for a checkout, or if `PYTHONPATH` could put another module first.
    """
    path = inherited.get("PYTHONPATH", "")
    if not path and str(ROOT) in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])])}


def router() -> None:
    """Console script `stargate`: this process becomes the router. Process id, signals and exit code are the router's."""
    _become("router")


def worker() -> None:
    """Console script `stargate-client`: this process becomes the worker."""
    _become("stargate_client")


def _become(module: str) -> None:
    words = [*command(module), *sys.argv[1:]]
    os.execve(words[0], words, {**os.environ, **environment(os.environ)})  # noqa: S606 - no shell is wanted
