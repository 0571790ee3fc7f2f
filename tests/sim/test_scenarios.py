"""Each scenario in plain text leads to the history that is written below its commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.story import FOLDER, told

STORIES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    """Rewrite them with `python -m tests.sim.story --rewrite`, and read the difference."""
    text = path.read_text(encoding="utf-8")
    assert told(text).splitlines() == text.splitlines()


def test_there_are_stories() -> None:
    assert len(STORIES) >= 14
