"""What is tested: a small client of a chat endpoint behind the router, as another project might have it."""

import http.client
import json
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit


class ModelNotServedError(Exception):
    """Nobody serves the model."""


class BusyError(Exception):
    """The model is known, and nobody can take the request now."""


class ChatClient:
    """Asks one model; the headers are those that the router routes by."""

    def __init__(self, url: str, model: str) -> None:
        self._address = urlsplit(url).netloc
        self._model = model

    def words(self, question: str) -> Iterator[str]:
        """The answer, piece by piece as it is made. Raises `ModelNotServedError` or `BusyError` instead of a first piece."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            message = {"model": self._model, "stream": True, "messages": [{"role": "user", "content": question}]}
            connection.request("POST", "/v1/chat/completions", json.dumps(message), self._headers(question))
            response = connection.getresponse()
            if response.status == 404:
                raise ModelNotServedError(self._model)
            if response.status == 503:
                raise BusyError(self._model)
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if data and data != b"[DONE]":
                    yield json.loads(data)["choices"][0]["delta"].get("content") or ""
        finally:
            connection.close()

    def _headers(self, question: str) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "x-request-id": str(uuid.uuid4()),
            "x-model": self._model,
            "x-input-tokens": str(len(question) // 4 + 1),
        }
