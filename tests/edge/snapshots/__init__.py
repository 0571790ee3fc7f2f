"""Texts that people see, kept as files and reviewed as a diff.

`REWRITE=1 make test ARGS="-k snapshot"` writes what the program prints now.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent


def check(path: Path, text: str) -> None:
    """Compare with the file, or write it where that is asked for."""
    text = text.rstrip("\n") + "\n"
    if os.environ.get("REWRITE"):
        path.write_text(text, encoding="utf-8")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == before, f"{path.name} differs; see the docstring of tests/edge/snapshots"
