"""A failing history becomes a small one that fails for the same reason, and can be read."""

from __future__ import annotations

import json

import pytest

from tests.sim import __main__ as command
from tests.sim import mutants, search, shrink

NAME = "ledger_ignored"


def failing() -> search.Case:
    return search.Case(mutants.saved()[NAME].seed, NAME)


def test_only_what_is_needed_stays() -> None:
    """With a made-up judge: the history fails as long as these two are in it."""
    case = search.Case(7, "")
    parts = shrink.names(case)
    needed = {parts[2][0], parts[4][-1]}
    small = shrink.smallest(case, "X", lambda one: "" if needed & set(one.drop) else "X")
    left = {name for kind in shrink.names(small) for name in kind}
    assert needed <= left
    assert left - needed <= {"none"}


def test_a_mutant_s_history_shrinks() -> None:
    case = failing()
    small = shrink.smallest(case)
    assert search.play(small).rule == search.play(case).rule
    before, after = (sum(map(len, shrink.names(one))) for one in (case, small))
    assert after < before / 2
    told = shrink.told(small)
    assert told[-1].startswith("replay: make sim SEED=")
    assert any("submit#" in text for text in told)


def test_what_does_not_fail_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="breaks nothing"):
        shrink.smallest(search.Case(7), check=lambda _: "")


def test_the_command_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--start", "7", "--seeds", "2"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["seeds"], last["failed"]) == (2, 0)
    assert set(last) == {"seeds", "failed", "seconds", "seeds_per_hour"}


def test_the_command_fails_and_says_how_to_replay(capsys: pytest.CaptureFixture[str]) -> None:
    seed = str(failing().seed)
    assert command.main(["--start", seed, "--seeds", "1", "--mutant", NAME]) == 1
    said = capsys.readouterr().out
    assert f"make sim SEED={seed}" in said
    assert json.loads(said.splitlines()[-1])["failed"] == 1


def test_the_command_prints_what_a_seed_drew(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seed", "7", "--options"]) == 0
    said = capsys.readouterr().out
    assert "weather" in said
    assert "submit#0" in said
