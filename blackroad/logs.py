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
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(host=node)


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
