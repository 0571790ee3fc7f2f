"""What the log of a daemon looks like to people."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from blackroad import logs


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_words_of_others_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.setup("text", "info", "at\x1btic")
    log.info(
        "task.failed",
        called="\x1b]0;evil\x07",
        user="Ren\xe9e",
        text="one\ntwo",
        nodes=["\x9b31m", {"\x1b": "\u2028"}],
    )
    [line] = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "\\x1b]0;evil\\x07" in line
    assert "Ren\xe9e" in line
    assert "one\\ntwo" in line


def test_json_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("json", "info", "attic").info("task.failed", called="\x1b]0;evil\x07")
    assert "\\u001b]0;evil\\u0007" in capsys.readouterr().err
