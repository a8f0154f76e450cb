"""A few requests a second for each target in turn, so that the page has something to show."""

import http.client
import itertools
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from benchmarks.fleet.simulator import model_of


class Traffic:
    """Sends requests from a thread of its own while its context lasts."""

    def __init__(self, address: str, targets: int, per_s: float) -> None:
        self._address = address
        self._targets = targets
        self._per_s = per_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self._per_s and self._targets:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        connection = http.client.HTTPConnection(self._address, timeout=10)
        for number in itertools.count():
            due += 1 / self._per_s
            if self._stopped.wait(max(due - time.monotonic(), 0)):
                break
            model = model_of(number % self._targets, self._targets)
            headers = {"x-request-id": f"bench-{number}", "x-model": model, "x-input-tokens": "3"}
            with suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/v1/chat/completions", b"{}", headers)
                connection.getresponse().read()
        connection.close()
