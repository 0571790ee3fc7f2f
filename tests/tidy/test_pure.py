"""Pure files: no clock, socket, thread, file, process or chance, and no order left to chance."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tidy.source import dotted, imported, name_of, pure_files, tree

BANNED_MODULES = frozenset(
    {
        *("asyncio", "concurrent", "ctypes", "datetime", "fcntl", "glob", "io", "logging", "mmap"),
        *("multiprocessing", "os", "pathlib", "psutil", "queue", "random", "secrets", "select"),
        *("selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys"),
        *("tempfile", "threading", "time", "urllib", "uuid", "zeroconf", "zmq"),
    }
)
BANNED_CALLS = frozenset(
    {
        *("open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"),
        *("hash", "id", "globals", "vars"),
    }
)
# datetime is a type of durations in units.py; asking it for the time is another thing.
ALLOWED = {("blackroad/units.py", "datetime")}
CLOCKS = frozenset({"now", "utcnow", "today", "monotonic", "perf_counter", "urandom"})


def faults(path: Path) -> list[str]:
    """List what a pure file may not do, as "line: what"."""
    found = [
        f"{line}: imports {module}"
        for module, line in imported(tree(path))
        if module.partition(".")[0] in BANNED_MODULES and (name_of(path), module) not in ALLOWED
    ]
    own_hashes: set[int] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name == "__hash__":
            # The one place that hash() is made for; what it returns decides no order.
            own_hashes = {id(inner) for inner in ast.walk(node)}
        elif isinstance(node, ast.Call) and id(node) not in own_hashes:
            called = dotted(node.func)
            last = called.rpartition(".")[2]
            if called in BANNED_CALLS or (last in CLOCKS and "." in called):
                found.append(f"{node.lineno}: calls {called}()")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global):
            found.append(f"{node.lineno}: {type(node).__name__}")
        elif isinstance(node, ast.For | ast.comprehension) and _is_set(node.iter):
            # Its order changes with PYTHONHASHSEED, and the same history must replay the same way.
            found.append(f"{node.iter.lineno}: iterates a set")
    return found


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return isinstance(node, ast.Call) and dotted(node.func) in ("set", "frozenset")


@pytest.mark.parametrize("path", pure_files(), ids=name_of)
def test_pure_file(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "1: imports time"),
        ("def f():\n    from os import path", "2: imports os"),
        ("def f(c):\n    return c.monotonic()", "2: calls c.monotonic()"),
        ("open('x')", "1: calls open()"),
        ("async def f(): ...", "1: AsyncFunctionDef"),
        ("for x in {1, 2}: pass", "1: iterates a set"),
        ("y = [x for x in set(z)]", "1: iterates a set"),
    ],
)
def test_the_check_itself_finds(
    source: str, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.tidy.test_pure.tree", lambda _path: ast.parse(source))
    monkeypatch.setattr("tests.tidy.test_pure.name_of", lambda _path: "blackroad/x.py")
    assert fault in faults(tmp_path)
