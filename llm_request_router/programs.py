"""Starts the programs of this installation: `python -P -m MODULE`, with the modules of this installation."""

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The directory that holds the packages: site-packages, or a checkout."""


def command(module: str) -> list[str]:
    """The command that runs `module`; `-P` keeps the working directory off `sys.path` (Python manual, "Command line")."""
    return [sys.executable, "-P", "-m", module]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to the environment `inherited` so that `command` imports the modules of this installation.

    Empty for an ordinary installation; `PYTHONPATH` for a checkout, or if the inherited `PYTHONPATH` could shadow a module.
    """
    path = inherited.get("PYTHONPATH", "")
    if not path and str(ROOT) in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])])}


def router() -> None:
    """Console script `stargate`: replaces this process by the router, so process id, signals and exit code are the router's."""
    _become("router")


def worker() -> None:
    """Console script `stargate-client`: replaces this process by the worker."""
    _become("stargate_client")


def kubernetes_router() -> None:
    """Console script `stargate-k8s-router`: replaces this process by the program in front of several routers."""
    _become("kubernetes_router")


def top() -> None:
    """Console script `stargate-top`: replaces this process by the live view of a router."""
    _become("router", "top")


def _become(module: str, *first: str) -> None:
    words = [*command(module), *first, *sys.argv[1:]]
    os.execve(words[0], words, {**os.environ, **environment(os.environ)})  # noqa: S606 - no shell is wanted
