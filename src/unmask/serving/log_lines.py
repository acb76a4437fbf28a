"""Log lines: JSON objects for programs, text for people."""

import json
import logging
import time


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields of a request's record."""

    def format(self, entry: logging.LogRecord) -> str:
        """Return the line; a traceback is one of its fields."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(entry.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(entry.msecs):03}Z",
            "level": entry.levelname.lower(),
            "logger": entry.name,
            "message": entry.getMessage(),
            **entry.__dict__.get("fields", {}),
        }
        if entry.exc_info:
            line["traceback"] = self.formatException(entry.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """A line for people."""

    def format(self, entry: logging.LogRecord) -> str:
        """Return time, level, message, and the fields of a request's record."""
        fields = entry.__dict__.get("fields", {})
        parts = [time.strftime("%H:%M:%S", time.localtime(entry.created)), entry.levelname.lower()]
        parts += [entry.getMessage(), *(f"{name}={value}" for name, value in fields.items())]
        if entry.exc_info:
            parts.append("\n" + self.formatException(entry.exc_info))
        return " ".join(parts)
