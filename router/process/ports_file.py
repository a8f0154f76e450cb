"""Publishes the addresses of a router to other programs: one JSON object in a file, written when requests are answered."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError
from router.process.sockets import cause_of


def write_ports_file(path: Path, bound: Mapping[str, SocketAddress | None]) -> None:
    """Write `bound` and the process id atomically. Raises `StartupError`."""
    addresses = {name: None if at is None else str(at) for name, at in bound.items()}
    write_ports_document(path, {"pid": os.getpid(), **addresses})


def write_ports_document(path: Path, document: Mapping[str, object]) -> None:
    """Write `document` atomically. Raises `StartupError`."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(msgspec.json.encode(document) + b"\n")
        unfinished.replace(path)
    except OSError as error:
        raise StartupError(
            f"failed to write ports file: {path}", cause_of(error), options=(f"--ports-file={path}",)
        ) from None
