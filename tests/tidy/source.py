"""What the tidy tests share: the files of the project and their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "blackroad"

# The state machines and all they are made of.  A whole folder counts with every file in it.
PURE = (
    "blackroad/asks.py",
    "blackroad/bus/codec.py",
    "blackroad/bus/door.py",
    "blackroad/bus/last_values.py",
    "blackroad/bus/link.py",
    "blackroad/bus/members.py",
    "blackroad/bus/messages.py",
    "blackroad/bus/pasts.py",
    "blackroad/bus/patterns.py",
    "blackroad/bus/tokens.py",
    "blackroad/bus/topic_lines.py",
    "blackroad/bus/topics.py",
    "blackroad/capabilities.py",
    "blackroad/discovery/election.py",
    "blackroad/discovery/lives.py",
    "blackroad/discovery/membership.py",
    "blackroad/errors.py",
    "blackroad/events.py",
    "blackroad/glance.py",
    "blackroad/happenings.py",
    "blackroad/history/records.py",
    "blackroad/ids.py",
    "blackroad/ledger.py",
    "blackroad/limits.py",
    "blackroad/node.py",
    "blackroad/queries.py",
    "blackroad/requirements.py",
    "blackroad/router/",
    "blackroad/tui/banner.py",
    "blackroad/tui/details.py",
    "blackroad/tui/model.py",
    "blackroad/tui/rota.py",
    "blackroad/tui/sheet.py",
    "blackroad/tui/sheets.py",
    "blackroad/tui/words.py",
    "blackroad/units.py",
)


def python_files(*folders: str) -> list[Path]:
    """List the Python files below `folders` of the project, in one order everywhere."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def pure_files() -> list[Path]:
    """List the files in which nothing may happen but computing."""
    found: list[Path] = []
    for name in PURE:
        found += python_files(name) if name.endswith("/") else [ROOT / name]
    return found


@cache
def tree(path: Path) -> ast.Module:
    """Parse one file, once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """Return the path as people write it, from the root of the project."""
    return path.relative_to(ROOT).as_posix()


def imported(module: ast.Module) -> Iterator[tuple[str, int]]:
    """List the absolute modules that a file imports anywhere in it, with their lines."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def dotted(node: ast.expr) -> str:
    """Return "time.sleep" for the expression time.sleep, "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
