"""A child process of a test: its output goes to a file, waiting for it has a deadline, and it is always ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.01


class ProcessEndedError(RuntimeError):
    """A process ended or missed a deadline. The message contains the end of its log."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}\n{log[-3_000:]}")
        self.log = log


class Process:
    """A running command; standard output and standard error go to one file."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        """Start `command` in its own session, so that it and its children can be ended together."""
        self.name = name
        self.command = tuple(command)
        self.log_path = directory / f"{name}.log"
        with self.log_path.open("wb") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code: None while it runs, negative if a signal ended it."""
        return self._child.poll()

    def log(self) -> str:
        """The output of the process so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.exit_code is None:
            self._child.send_signal(number)

    def wait(self, timeout_s: float = 10) -> int:
        """Wait for the end; returns the exit code. Raises `ProcessEndedError` if it still runs after `timeout_s` seconds."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessEndedError(f"{self.name} still runs after {timeout_s} s", self.log()) from None

    def until(self, condition: Callable[[], T | None], what: str, timeout_s: float = 15) -> T:
        """Wait for a true `condition()` and return it. Raises `ProcessEndedError` at the process's end or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if self.exit_code is not None:
                raise ProcessEndedError(f"{self.name} ended with {self.exit_code} before {what}", self.log())
            if time.monotonic() > deadline:
                raise ProcessEndedError(f"{self.name}: not within {timeout_s} s: {what}", self.log())
            time.sleep(_POLL_S)

    def until_logged(self, text: str, timeout_s: float = 15) -> str:
        """Wait until `text` is in the log; returns its line. Raises `ProcessEndedError` like `until`."""

        def line() -> str | None:
            return next((one for one in self.log().splitlines() if text in one), None)

        return self.until(line, f"the line {text!r}", timeout_s)

    def stop(self, timeout_s: float = 5) -> int:
        """Send SIGTERM, and SIGKILL after `timeout_s` seconds; returns the exit code."""
        self.send(signal.SIGTERM)
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL to the process and its children; returns the exit code."""
        if self.exit_code is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        return self._child.wait(5)
