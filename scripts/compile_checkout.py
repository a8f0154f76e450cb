"""`scripts/compile`: the compiled form of this checkout, in a directory of its own below `build/compiled`.

It is built in a directory with another name and renamed when it is complete and the sources are still the same: a process
finds all of it or nothing. What is compiled of these sources already is left as it is, whatever was compiled in between.

`LLM_ROUTER_COMPILE` in the environment: `0` does without, `require` makes it an error if nothing can be compiled.
Exit status 0 if the program can run, compiled or as written; 1 otherwise.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tunnel_protocol import compiled_form  # noqa: E402 - this file is run by its path

KEPT = 5
"""How many compiled forms a checkout has at most, of all interpreters together; those last used by this program stay."""

_ASIDE = ".aside-"

Build = Callable[[Path, Path], int]
"""Compiles into a directory, with the output into a log; returns an exit status. It may leave the directory empty."""


def compile_checkout(root: Path, wish: str, build: Build, *, once: bool) -> int:
    """Have the compiled form of the sources in `root` at hand, if that is wished; returns the exit status.

    With `once` this is for `make setup`, which must be quick when nothing changed: a checkout that was compiled before, of
    other sources or without success, is not compiled again unless `wish` is `require`.
    """
    if wish == "0":
        if not once:
            _say("nothing is compiled: LLM_ROUTER_COMPILE is 0")
        return 0
    (root / compiled_form.FORMS).mkdir(parents=True, exist_ok=True)
    with _alone(root / compiled_form.FORMS):
        _remove_beside_sources(root)
        sources = compiled_form.manifest(root)
        form = compiled_form.form_of(root, sources)
        if form.is_dir():
            os.utime(form)
            if not once:
                _say(f"compiled already: {form.relative_to(root)}")
            return 0
        if once and wish != "require" and compiled_form.attempted(root).exists():
            _say("the program runs as written, there is no compiled form of these sources; make compile makes one")
            return 0
        return _made(root, sources, form, build, required=wish == "require")


def _made(root: Path, sources: str, form: Path, build: Build, *, required: bool) -> int:
    log = root / "build/compile.log"
    new = form.with_name(f"{_ASIDE}new")
    new.mkdir()
    _say("compiling (some minutes; LLM_ROUTER_COMPILE=0 does without) ...")
    try:
        failed = build(new, log) != 0
        nothing = not compiled_form.modules_of(new)
        if failed or (nothing and required):
            _say(f"error: compilation failed; the last lines of {log.relative_to(root)}:", *_last_lines(log, 15))
            return 1
        if compiled_form.manifest(root) != sources:
            _say("error: sources changed while they were compiled; run it again")
            return 1
        compiled_form.attempted(root).touch()
        if nothing:
            _say(f"the program runs as written; the last lines of {log.relative_to(root)}:", *_last_lines(log, 3))
            return 0
        (new / compiled_form.MANIFEST).write_text(sources)
        new.rename(form)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _say(f"compiled: {form.relative_to(root)}")
    _prune(root)
    return 0


def build_by_setuptools(root: Path) -> Build:
    """How the modules of `root` are compiled: see setup.py."""

    def build(into: Path, log: Path) -> int:
        words = ["build_ext", "--build-lib", str(into), "--build-temp", str(root / "build/temp"), "--parallel", "2"]
        with log.open("wb") as output:
            return subprocess.run(
                [sys.executable, "setup.py", "--quiet", *words],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                close_fds=False,  # it holds the lock, too: if this program is killed, the compilers still run
                check=False,
            ).returncode

    return build


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One compilation of a checkout at a time: they write the same files on their way. What an ended one left is removed."""
    with (place / ".lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("this checkout is being compiled; waiting for that ...")
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when all that have it end, however that is
        for left in place.glob(f"{_ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _remove_beside_sources(root: Path) -> None:
    """Earlier versions compiled in place. Such files are not used; they would be by other programs that import a module."""
    left = compiled_form.beside_sources(root)
    left += [root / f"{package}_compiled__mypyc{compiled_form.SUFFIX}" for package in compiled_form.PACKAGES]
    for path in left:
        path.unlink(missing_ok=True)


def _prune(root: Path) -> None:
    forms = [path for path in (root / compiled_form.FORMS).iterdir() if path.is_dir() and path.name[0] != "."]
    for path in sorted(forms, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        aside = path.with_name(f"{_ASIDE}{path.name}")
        path.rename(aside)  # found whole or not at all
        shutil.rmtree(aside, ignore_errors=True)


def _last_lines(log: Path, count: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]


def _say(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr)


def main(arguments: list[str]) -> int:
    """`--once` is for scripts/setup, see `compile_checkout`."""
    if arguments not in ([], ["--once"]):
        _say("usage: scripts/compile [--once]")
        return 2
    wish = os.environ.get("LLM_ROUTER_COMPILE", "1")
    return compile_checkout(ROOT, wish, build_by_setuptools(ROOT), once=bool(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
