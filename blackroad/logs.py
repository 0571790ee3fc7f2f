"""How a daemon writes down what happens: readable on a terminal, JSON under a service manager."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def setup(log_format: str, level: str, node: str) -> Any:
    """Configure structlog once; return the daemon's logger."""
    structlog = _structlog()
    as_json = log_format == "json" or (
        log_format == "auto" and (bool(os.environ.get("JOURNAL_STREAM")) or not sys.stderr.isatty())
    )
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        processors.append(structlog.processors.JSONRenderer(default=str))
    else:
        # Names of tasks and nodes are somebody else's words.
        processors.append(_harmless)
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(host=node)


def _harmless(_logger: Any, _method: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Escape what could steer a terminal, wherever it stands in a line of the log."""
    return {name: _escaped(value) for name, value in facts.items()}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        if value.isprintable():
            return value
        letters = (one if one.isprintable() else ascii(one)[1:-1] for one in value)
        return "".join(letters)
    if isinstance(value, dict):
        return {_escaped(name): _escaped(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(one) for one in value]
    return value


def _structlog() -> Any:
    """Import it alone: it would take rich along for tracebacks, 6 MiB that no daemon looks at."""
    modules: dict[str, Any] = sys.modules
    alone = "rich" not in modules
    if alone:
        # Which makes its import fail.
        modules["rich"] = None
    try:
        import structlog
    finally:
        if alone:
            del modules["rich"]
    return structlog
