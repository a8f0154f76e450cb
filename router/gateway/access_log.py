"""One line per finished request: who asked for what, who answered, how long it took, how it ended. Never content."""

import logging

import structlog

_log = structlog.get_logger()


class AccessLog:
    """Writes the line. Ask `enabled` first: then what is not written costs nothing."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled and _log.bind().is_enabled_for(logging.INFO)
        """Wanted, and not below the level of the log."""

    def finished(
        self,
        *,
        request_id: str,
        routing_key: str | None,
        model: str,
        path: str,
        status: int,
        inference_server_id: str,
        attempts: int,
        first_byte_ms: float | None,
        duration_ms: float,
        body_bytes: int,
        end: str,
    ) -> None:
        """`end` is `complete`, `refused`, `client_gone`, `truncated` or `failed`."""
        if self.enabled:
            _log.info(
                "request finished",
                request_id=request_id,
                routing_key=routing_key,
                model_id=model,
                path=path,
                status=status,
                inference_server_id=inference_server_id,
                attempts=attempts,
                first_byte_ms=None if first_byte_ms is None else round(first_byte_ms, 3),
                duration_ms=round(duration_ms, 3),
                body_bytes=body_bytes,
                end=end,
            )
