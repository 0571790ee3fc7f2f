"""How a daemon writes down what happens: readable on a terminal, JSON under a service manager."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from types import ModuleType
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


class _Later(ModuleType):
    """Stands for a module that is loaded when somebody first looks into it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def _structlog() -> Any:
    """Import it alone: what it takes along is 8 MiB that no daemon looks at."""
    modules: dict[str, Any] = sys.modules
    # Without rich it makes tracebacks by itself; asyncio it needs for loggers that are awaited.
    stand_ins = {"rich": None, "asyncio": _Later("asyncio")}
    alone = {name: one for name, one in stand_ins.items() if name not in modules}
    modules.update(alone)
    try:
        import structlog
    finally:
        for name in alone:
            del modules[name]
    return structlog
