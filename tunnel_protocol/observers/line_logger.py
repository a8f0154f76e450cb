"""Log lines of structlog and of the standard library into a `LineWriter`."""

import logging
from typing import Any

import structlog

from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.observers.sampler import KIND


class LineLogger:
    """What structlog writes its lines to: one method per level, all the same."""

    def __init__(self, writer: LineWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write
        self.msg = self.warn = self.fatal = self.failure = self.err = self.exception = self.log = writer.write


class LineLoggerFactory:
    """For `structlog.configure(logger_factory=...)`."""

    def __init__(self, writer: LineWriter) -> None:
        self.writer = writer
        self._logger = LineLogger(writer)

    def __call__(self, *_names: object) -> LineLogger:
        """The one logger."""
        return self._logger


class LibraryLines(logging.Handler):
    """Lines of libraries (asyncio, grpc, ...) come out like ours, with the logger's name as a field."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line to structlog. One that cannot be made (wrong arguments) is shown as it was written."""
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        # One kind per place in the library: its texts hold numbers and names.
        fields: dict[str, Any] = {"logger": record.name, KIND: f"{record.name}, {record.module} line {record.lineno}"}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - whatever the arguments' own methods raise
            message = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            fields["not_shown_because"] = type(error).__name__
        getattr(structlog.get_logger(), level)(message, **fields)
