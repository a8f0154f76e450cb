"""Clients that ask again and again, each for a streamed answer that it reads to its end, and what came of it."""

import http.client
import json
import threading
from collections import Counter

from support.processes import INTEROP_MODEL

_BODY = json.dumps({"model": INTEROP_MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})


class SteadyClients:
    """Every second client keeps its connection, the others make one for each request. Nothing is asked twice."""

    def __init__(self, port: int, count: int, *, tokens: int = 10, delay_ms: int = 60) -> None:
        self._port = port
        self._tokens = tokens
        self._headers = {
            "content-type": "application/json",
            "x-request-id": "rolling",
            "x-model": INTEROP_MODEL,
            "x-input-tokens": "10",
            "x-tokens": str(tokens),
            "x-delay-ms": str(delay_ms),
        }
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        """How often: `complete`, the status of an error, or what was wrong."""
        self._threads = [threading.Thread(target=self._run, args=(index % 2 == 0,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def complete(self) -> int:
        """Number of complete answers so far."""
        return self.outcomes["complete"]

    def stop(self) -> None:
        """Let the running requests end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, keeps: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stopping.is_set():
            try:
                outcome = self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
                connection.close()
            if not keeps:
                connection.close()
            with self._lock:
                self.outcomes[outcome] += 1
            if outcome != "complete":
                self._stopping.wait(0.1)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        connection.request("POST", "/v1/chat/completions", _BODY, self._headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return str(answer.status)
        if body.count(b"data: ") != self._tokens + 1 or not body.endswith(b"data: [DONE]\n\n"):
            return "not all of the answer"
        return "complete"
