"""A program in a real terminal: tmux draws it, keys are typed into it, its screen is read back."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest

from support.waiting import wait_until

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
"""For tests that need it; Debian's package is called tmux."""


class Terminal:
    """One program in a terminal of its own; ended by `close` or as a context manager."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command` in `size` columns and lines. The terminal stays when the program has ended."""
        self._directory = Path(tempfile.mkdtemp(prefix="tmux-"))
        columns, lines = size
        configuration = self._directory / "tmux.conf"
        configuration.write_text(
            "set -g default-terminal screen-256color\nset -g remain-on-exit on\nset -g remain-on-exit-format ''\n"
            "set -g status off\nset -s escape-time 0\n"
        )
        # tmux does not always reap its child, so a shell notes how it ended.
        self._status = self._directory / "status"
        command = ["sh", "-c", '"$@"; echo $? >"$0"', str(self._status), *command]
        variables = [word for name, value in (environment or {}).items() for word in ("-e", f"{name}={value}")]
        self._tmux("-f", str(configuration), "new-session", "-d", *("-x", str(columns), "-y", str(lines)), *variables,
                   *("-c", str(cwd)), *command)  # fmt: skip

    def press(self, *keys: str) -> None:
        """Type keys by the names of tmux (`Down`, `Enter`), one after another."""
        for key in keys:
            self._tmux("send-keys", key)

    def write(self, text: str) -> None:
        """Type this text."""
        self._tmux("send-keys", "-l", text)

    def click(self, column: int, line: int) -> None:
        """Press and release the left button there, counted from 0 (xterm, "SGR mouse")."""
        self.write("".join(f"\x1b[<0;{column + 1};{line + 1}{end}" for end in "Mm"))

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def screen(self, *, styles: bool = False) -> str:
        """What is on the screen, with escape sequences for its styles if wished."""
        return self._tmux("capture-pane", "-p", *(["-e"] if styles else []))

    def shows(self, *wanted: str, within_s: float = 20) -> str:
        """Wait until all of these are on the screen; returns it."""
        return self.until(lambda text: all(one in text for one in wanted), f"it shows {wanted}", within_s)

    def until(self, condition: Callable[[str], object], what: str, within_s: float = 20) -> str:
        """Wait until `condition` holds for the screen; returns it."""
        found = ""

        def holds() -> bool:
            nonlocal found
            found = self.screen()
            return bool(condition(found))

        try:
            wait_until(holds, within_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen:\n{found}") from None
        return found

    @property
    def pid(self) -> int:
        """Process id of the program."""
        (program,) = psutil.Process(int(self._tmux("display-message", "-p", "#{pane_pid}"))).children()
        return program.pid

    def exit_code(self, within_s: float = 10) -> int:
        """Wait for the program's end; returns its exit code as a shell gives it."""
        wait_until(self._status.exists, within_s, "the program ends")
        wait_until(self._status.read_text, within_s, "its exit code is written")
        return int(self._status.read_text())

    def close(self) -> None:
        """End the terminal, and the program with it."""
        self._tmux("kill-server", check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _tmux(self, *words: str, check: bool = True) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in {"TMUX", "NO_COLOR"}}
        done = subprocess.run(
            ["tmux", "-S", str(self._directory / "socket"), "-u", *words],
            env={**environment, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and kind is not None and issubclass(kind, Exception):
            error.add_note(f"--- the screen\n{self._tmux('capture-pane', '-p', check=False)}")
        self.close()
