"""One subject a file, one screen a function, 100 columns a line, nothing left for later."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.tidy.source import dotted, name_of, python_files, tree

FILE_LINES_MAX = 700
TEST_FILE_LINES_MAX = 1000
FUNCTION_LINES_MAX = 80
COLUMNS_MAX = 100

OURS = python_files("blackroad")
CODE = python_files("blackroad", "tests", "bench")
# Spelt in two parts, or this file would find itself.
LEFT_FOR_LATER = re.compile("TO" + "DO|FIX" + "ME|XX" + "X|<<<<" + "<<<|breakpoint" + r"\(\)")


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    most = FILE_LINES_MAX if path in OURS else TEST_FILE_LINES_MAX
    assert len(lines) <= most, f"{len(lines)} lines: two subjects?"
    long = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX]
    assert long == [], f"lines wider than {COLUMNS_MAX} columns"
    left = [number for number, line in enumerate(lines, 1) if LEFT_FOR_LATER.search(line)]
    assert left == [], "lines that leave something for later"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_functions_fit_a_screen(path: Path) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == {}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_each_file_says_what_it_is_for(path: Path) -> None:
    if tree(path).body:
        assert ast.get_docstring(tree(path)), "no docstring"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_invariants_stay_on_under_optimisation(path: Path) -> None:
    asserted = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert) and not narrows(node.test)
    ]
    assert asserted == [], "python -O removes assert; use errors.invariant"


def narrows(test: ast.expr) -> bool:
    """Tell whether an assert only tells the type checker what a line above made sure of."""
    if isinstance(test, ast.BoolOp):
        return all(narrows(part) for part in test.values)
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot)
    return isinstance(test, ast.Call) and dotted(test.func) == "isinstance"
