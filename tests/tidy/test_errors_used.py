"""Every exception class is raised, caught or explained; none is defined elsewhere."""

from __future__ import annotations

import ast
import re

from blackroad import errors
from tests.tidy.source import PACKAGE, ROOT, name_of, python_files, tree

NAMES = sorted(
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.BlackroadError)
)


def test_every_class_is_used_or_documented() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in python_files("blackroad")
        if path != PACKAGE / "errors.py"
    )
    docs = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    words = set(re.findall(r"\w+", code))
    words |= set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in docs)))
    # A family that is never raised itself is used through its members.
    families = {base.__name__ for name in NAMES for base in getattr(errors, name).__mro__[1:]}
    assert [name for name in NAMES if name not in words | families] == []


def test_public_exceptions_live_in_one_file() -> None:
    elsewhere = [
        f"{name_of(path)}: {node.name}"
        for path in python_files("blackroad")
        if path != PACKAGE / "errors.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and any(isinstance(base, ast.Name) and base.id in NAMES for base in node.bases)
    ]
    assert elsewhere == []


def test_each_class_has_its_line_and_its_exit_code() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    for name in NAMES:
        found = getattr(errors, name)
        assert found.__doc__, name
        assert found.exit_code in codes, name
