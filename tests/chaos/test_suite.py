"""The suite itself: its table, and one row from end to end where there is root for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blackroad.cli.chaos_history import Finding, Verdict
from tests.chaos import places
from tests.chaos.__main__ import DOCUMENT, all_rows
from tests.chaos.scene import Outcome, Row, Scene
from tests.chaos.table import BEGIN, END, in_words, order, write

FAULTS = [*map(str, range(1, 26)), "33", "34"]


def nothing(scene: Scene) -> None:
    raise AssertionError("not to be played")


def outcome(number: str, figure: str, *wrong: str) -> Outcome:
    return Outcome(Row(number, "a | fault", "holds", nothing), [figure], list(wrong))


def test_every_row_of_the_fault_table_has_a_function() -> None:
    numbers = [row.number for row in all_rows()]
    assert [number for number in numbers if number.isdigit()] == FAULTS
    assert len({row.play for row in all_rows()}) == len(numbers) == len(set(numbers))


def test_rows_that_ran_replace_their_lines_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    write(path, [outcome("10", "1 s"), outcome("2", "2 s", "late"), outcome("C1", "3 s")], False)
    skipped = outcome("10", "9 s")
    skipped.skipped = "no compiler"
    write(path, [outcome("2", "4 s"), skipped], True)
    text = path.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in rows] == ["| 2", "| 10", "| C1"]
    assert "4 s (quick)" in rows[0]
    assert "| yes |" in rows[0]
    assert "a / fault" in rows[1]
    assert "9 s" not in text


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="marks"):
        write(path, [outcome("1", "x")], False)
    assert path.read_text() == "nothing"


def test_a_row_with_a_finding_says_so() -> None:
    one = outcome("7", "10 tasks", "lost: t1: no end")
    one.verdict = Verdict(tasks=10, lost=[Finding("t1", "no end")])
    assert not one.passed
    assert "FAILED" in in_words(one)
    assert "lost 1" in in_words(one)
    assert sorted(["C1", "10", "2"], key=order) == ["2", "10", "C1"]


def test_the_page_has_its_marks() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_without_root_the_suite_is_skipped_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in places.missing()


@pytest.mark.slow
@pytest.mark.edge
def test_a_row_from_end_to_end() -> None:
    why = places.missing()
    if why:
        pytest.skip(f"chaos: {why}")
    words = [sys.executable, "-m", "tests.chaos", "--quick", "--rows", "6", "--no-write"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 results came from the spool" in done.stdout
