"""What people read of a verdict: within 80 columns, and the same whatever came out."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.cli import chaos_report
from blackroad.cli.chaos_history import Finding, Verdict
from blackroad.cli.chaos_nemesis import FAULTS

FACTS: dict[str, Any] = {
    "collapsed": [],
    "kept": "",
    "again": "blackroad chaos --seed a1b2c3 --minutes 2 --nodes 3 --rate 4",
}


def full() -> Verdict:
    return Verdict(
        tasks=12_345,
        accepted=9_876,
        rejected=3,
        open=2,
        starts=13_000,
        ends={"done": 12_000, "owner lost": 300, "unknown": 40, "cancelled": 5},
        reruns=655,
        rerun_share=0.0531,
        faults=dict.fromkeys(FAULTS, 123),
        recoveries_ms={"kill": [20, 4_016], "flap coordinator": [24_500]},
        thawed=2,
        damaged=1,
    )


def told(capsys: pytest.CaptureFixture[str], verdict: Verdict, **facts: Any) -> str:
    chaos_report.tell(verdict, {**FACTS, **facts})
    return capsys.readouterr().out


def test_all_figures_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, full())
    assert max(map(len, text.splitlines())) <= 80, text
    for word in ("12,345", "5.3%", "24.5 s", "20 ms", "unknown (once)", *FAULTS):
        assert word in text


@pytest.mark.parametrize(
    ("verdict", "facts", "words"),
    [
        (Verdict(tasks=1, faults={"kill": 1}), {}, "every promise held"),
        (Verdict(tasks=1), {}, "nothing was tried"),
        (Verdict(tasks=1, faults={"kill": 1}, open=1), {}, "as far as was waited for"),
        (Verdict(lost=[Finding("t1", "no end")]), {}, "a promise was broken"),
        (Verdict(faults={"kill": 1}), {"collapsed": ["mesh-1\nlast words"]}, "broken"),
        (Verdict(faults={"kill": 1}), {"kept": "/tmp/x"}, "kept: /tmp/x"),
    ],
)
def test_the_last_word(
    capsys: pytest.CaptureFixture[str], verdict: Verdict, facts: dict[str, Any], words: str
) -> None:
    assert words in told(capsys, verdict, **facts)


def test_findings_are_told_and_many_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Verdict(lost=[Finding(f"t{number}", "it has no end") for number in range(25)])
    text = told(capsys, broken)
    assert "lost: t0: it has no end" in text
    assert "15 more" in text
    assert FACTS["again"] in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65.9, "1:05"), (3_723, "1:02:03"), (-1, "0:00")]
)
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert chaos_report.clock(seconds) == text


def test_everything_that_will_be_hit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    chaos_report.announce({"mesh-1": 4711, "mesh-2": 4712}, False, 1.5, "7")
    text = capsys.readouterr().out
    assert "mesh-1  process 4711" in text
    assert "1 min 30 s, seed 7" in text
    assert max(map(len, text.splitlines())) <= 80
