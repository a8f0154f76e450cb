"""Writes log lines of structlog and of the standard library's `logging` to a `LineWriter`."""

import logging
from typing import Any

import structlog

from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.observers.sampler import KIND


class LineLogger:
    """The logger that structlog writes to: one method per level, all the same."""

    def __init__(self, writer: LineWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write
        self.msg = self.warn = self.fatal = self.failure = self.err = self.exception = self.log = writer.write


class LineLoggerFactory:
    """A logger factory for `structlog.configure(logger_factory=...)`."""

    def __init__(self, writer: LineWriter) -> None:
        self.writer = writer
        self._logger = LineLogger(writer)

    def __call__(self, *_names: object) -> LineLogger:
        """The logger, the same for all names."""
        return self._logger


class LibraryLines(logging.Handler):
    """Passes log records of libraries (asyncio, grpc, ...) to structlog, with the logger's name as a field."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record with structlog. If its arguments do not fit its message, the message is logged without them."""
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        # One sampling kind per source line of the library, because its texts contain numbers and names.
        fields: dict[str, Any] = {"logger": record.name, KIND: f"{record.name}, {record.module} line {record.lineno}"}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - methods of the arguments can raise anything
            message = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            fields["not_shown_because"] = type(error).__name__
        getattr(structlog.get_logger(), level)(message, **fields)
