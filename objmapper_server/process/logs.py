"""The server's log on standard error: one line a message, as text or JSON."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final, Literal

from objmapper_client.errors import printable
from objmapper_server.escaped_json import escape_control_characters

#: The parent of the loggers of all modules of the server.
LOG: Final = logging.getLogger("objmapper_server")

Format = Literal["text", "json"]


def log_to_stderr(form: Format) -> None:
    """Log this package's messages of level INFO and above; a program calls it once, at its start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


class TextLines(logging.Formatter):
    """Lines of the form ``objmapper: message``. With OBJMAPPER_DEBUG=1 an exception's traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = f"objmapper: {printable(record.getMessage())}"
        if record.exc_info and os.environ.get("OBJMAPPER_DEBUG"):
            line += f"\n{self.formatException(record.exc_info)}"
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields of ``extra={"facts": …}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(document, ensure_ascii=False, default=str)
        return escape_control_characters(text.encode(errors="backslashreplace")).decode()
