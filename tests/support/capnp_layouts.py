"""Both forms of the canonical layouts: `capnp_layouts` as it is written, and `capnp_speedups` where it has been compiled."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tunnel_protocol import capnp_layouts


def compiled_form() -> ModuleType | None:
    """The compiled module; None if there is none or this process runs as written."""
    try:
        return importlib.import_module("tunnel_protocol.capnp_speedups")
    except ImportError:
        return None


COMPILED = compiled_form()
needs_compiled = pytest.mark.skipif(
    COMPILED is None, reason="tunnel_protocol.capnp_speedups is not compiled, or this process runs as written"
)
both_forms = pytest.mark.parametrize(
    "form", [pytest.param(capnp_layouts, id="written"), pytest.param(COMPILED, id="compiled", marks=needs_compiled)]
)


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What a call returns, with its type, or what it raises."""
    try:
        value = function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error), str(error)
    return "returned", type(value), value


class BodyReceiver:
    """Collects bodies. After so many of them it does something else."""

    def __init__(self, turn: int = -1, act: "Callable[[BodyReceiver], None] | None" = None) -> None:
        self.told: list[bytes] = []
        self.turn, self.act = turn, act
        self.on_body: Callable[[bytes], None] | None = self.take

    def take(self, content: bytes) -> None:
        self.told.append(content)
        if len(self.told) == self.turn and self.act is not None:
            self.act(self)
