"""Commands that the pages name exist: `make X` in the Makefile, `blackroad X` in the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from blackroad.cli.main import main
from tests.tidy.source import ROOT, name_of, python_files, tree

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Only what is meant to be typed counts: code in back-quotes and lines of code blocks.
_CODE = re.compile(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
_MAKE = re.compile(r"(?:^|[\s;&|(])(?:sudo )?make ([a-z][a-z-]*)", re.MULTILINE)
_PROGRAM = re.compile(
    r"(?:^|(?<!from)(?<!import)[\s;&|(/])blackroad((?: --?[a-z-]+)*)((?: [a-z]+)+)"
    r"(?=[\s;&|)`.,]|$)",
    re.MULTILINE,
)


def code_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return "\n".join(block or inline for block, inline in _CODE.findall(text))


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def program() -> click.Group:
    assert isinstance(main, click.Group)
    return main


def exists(words: list[str]) -> bool:
    """Tell whether the first of `words` is a command, and so on inside a group of commands."""
    command: click.Command = program()
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        if found is None:
            return False
        command = found
    return True


def texts(module: ast.Module) -> Iterator[tuple[int, str]]:
    """List the strings of a file with their lines, docstrings left out."""
    told = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    assert sorted(set(_MAKE.findall(code_of(page))) - targets()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_program_commands_exist(page: Path) -> None:
    asked = {words.strip() for _options, words in _PROGRAM.findall(code_of(page))}
    assert sorted(words for words in asked if not exists(words.split())) == []


def test_hints_name_commands_that_exist() -> None:
    """What an error tells people to type has to work."""
    wrong = [
        f"{name_of(path)}:{line}: {command}"
        for path in python_files("blackroad")
        for line, text in texts(tree(path))
        for command in re.findall(r"`blackroad ([a-z][a-z-]*)", text)
        if not exists([command])
    ]
    assert wrong == []


def test_every_target_is_in_the_help() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## ", text, re.MULTILINE))
    assert explained == targets()
