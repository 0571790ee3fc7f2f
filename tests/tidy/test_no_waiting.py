"""Tests wait for what happens, never for time to pass.

Those of `tests/chaos` are excepted: there the time that a fault lasts is the test.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tidy.source import dotted, name_of, python_files, tree

SLEEPS = frozenset({"time.sleep", "asyncio.sleep", "sleep", "anyio.sleep", "trio.sleep"})


def sleeps(module: ast.Module) -> list[int]:
    """List the lines that sleep; asyncio.sleep(0) only lets others run, and is no wait."""
    return [
        node.lineno
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and dotted(node.func) in SLEEPS
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]


WAITING = [path for path in python_files("tests") if "chaos" not in path.parts]


@pytest.mark.parametrize("path", WAITING, ids=name_of)
def test_no_sleep(path: Path) -> None:
    assert sleeps(tree(path)) == []


def test_the_check_itself_finds() -> None:
    source = "import time\ntime.sleep(1)\nawait asyncio.sleep(0)\nawait asyncio.sleep(0.1)\n"
    assert sleeps(ast.parse(source)) == [2, 4]
