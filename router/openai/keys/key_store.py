"""Reads the key file with a check of its mode, and replaces it as a whole when the command changes it."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from router.openai.keys.key_file import KEY_FILE, KeyFile, KeyFileError, decode, encode
from tunnel_protocol.small_file import SmallFileError, read_small_file

_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_key_file(path: Path) -> bytes:
    """The content of the key file. Raises `SmallFileError`, also if others than its owner have access to it.

    A file of another owner, such as a Secret that Kubernetes mounts, may be readable by its group: that is how this process
    gets at it. May block; call it through a `FileReader`.
    """
    content = read_small_file(path, KEY_FILE)
    try:
        found = path.stat()
    except OSError as error:
        raise SmallFileError(str(path), error.strerror or "cannot be examined", error.errno) from error
    mode = stat.S_IMODE(found.st_mode)
    forbidden = _GROUP_AND_OTHERS
    if found.st_uid != os.geteuid():
        forbidden &= ~stat.S_IRGRP
    if mode & forbidden:
        raise SmallFileError(str(path), f"mode {mode:04o} gives others access to it; run: chmod 600 {path}")
    return content


class KeyStore:
    """The key file as the command changes it: one change at a time, each a whole new file with mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> KeyFile:
        """The keys. Raises `SmallFileError` or `KeyFileError`."""
        return decode(read_key_file(self.path))

    @contextmanager
    def changing(self) -> Iterator["Change"]:
        """Lock out other commands, and write what `Change.file` is at the end, unless the block raises.

        A file that does not exist has no keys. Raises `SmallFileError` or `KeyFileError`.
        """
        # The target of a link is replaced, not the link.
        path = self.path.resolve()
        try:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SmallFileError(str(path.parent), error.strerror or "cannot be opened", error.errno) from error
        try:
            # On the directory: the file itself is replaced, and a lock file would be left over.
            fcntl.flock(directory, fcntl.LOCK_EX)
            change = Change(decode(read_key_file(path)) if path.exists() else KeyFile([]))
            yield change
            _replace(path, encode(change.file), directory)
        finally:
            os.close(directory)


class Change:
    """What a command makes of the file."""

    def __init__(self, file: KeyFile) -> None:
        self.file = file


def _replace(path: Path, content: bytes, directory: int) -> None:
    """Write `content` beside `path` and rename it, so that a reader sees the old file or the new one. Raises `SmallFileError`."""
    if len(content) > (KEY_FILE.bytes or 0):
        raise KeyFileError(f"larger than {KEY_FILE.bytes} bytes with this change", "the end")
    try:
        # mkstemp makes the file with mode 0600.
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise SmallFileError(str(path.parent), error.strerror or "cannot be written", error.errno) from error
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(fresh).replace(path)
        os.fsync(directory)
    except OSError as error:
        Path(fresh).unlink(missing_ok=True)
        raise SmallFileError(str(path), error.strerror or "cannot be written", error.errno) from error
