"""What the measurements make of their figures: medians, ratios, verdicts, tables, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import docs, peers, systems, table, targets
from bench.jobs import Diary, slow
from bench.runner import Figures, Plan, cells, show

assert peers


def row(system: str, work: str, metric: str, value: Any, others: float = 0.0) -> dict[str, Any]:
    return {
        "system": system, "work": work, "metric": metric, "value": value, "unit": "",
        "repeat": 0, "others_percent": others,
    }  # fmt: skip


def noops(**rates: float) -> list[dict[str, Any]]:
    return [row(name.replace("_", "-"), "noop", "one 1000", rate) for name, rate in rates.items()]


def verdict(rows: list[dict[str, Any]], target: str) -> targets.Verdict:
    [found] = [one for one in targets.verdicts(Figures(rows)) if one.target == target]
    return found


# --- medians --------------------------------------------------------------------------------------


def test_the_median_is_of_the_undisturbed_repeats() -> None:
    rows = [
        row("a", "noop", "one 1", value, others) for value, others in ((1, 0), (3, 5), (99, 50))
    ]
    assert Figures(rows).number("a", "noop", "one 1") == 2
    assert Figures(rows).disturbed() == 50


def test_disturbed_repeats_count_where_there_are_no_others() -> None:
    rows = [row("a", "noop", "one 1", value, 50) for value in (1, 2, 9)]
    assert Figures(rows).number("a", "noop", "one 1") == 2


def test_words_are_no_numbers() -> None:
    figures = Figures([row("a", "kill", "outcome", "all delivered")] * 2)
    assert figures.number("a", "kill", "outcome") is None
    assert figures.word("a", "kill", "outcome") == "all delivered"


def test_the_largest_number_of_tasks_counts_that_was_measured() -> None:
    rows = [row("a", "noop", "one 1000", 5.0), row("a", "noop", "one 10000", 7.0)]
    rows += [row("a", "noop", "one 100000", "left out"), row("a", "noop", "map 100000", 9.0)]
    assert Figures(rows).largest("a", "noop", "one") == (10_000, 7.0)
    assert Figures(rows).largest("b", "noop", "one") is None


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (12.34, "12.3"), (0.1234, "0.123"), ("no", "no")]
)
def test_show(value: object, text: str) -> None:
    assert show(value) == text


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "met"), [(2_000.0, True), (1_999.0, False)])
def test_a_ratio_is_met_from_the_target_on(rate: float, met: bool) -> None:
    found = verdict(noops(blackroad=rate, zmq_raw=1_000.0), "≥ 2 x zmq-raw")
    assert found.met is met
    assert found.measured.startswith("2.00")


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {one.met for one in targets.verdicts(Figures([]))} == {None}
    assert verdict(noops(blackroad=1.0), "≥ 2 x zmq-raw").met is None


def test_a_time_may_be_shorter() -> None:
    rows = [row("zmq-raw", "latency", "p50", 100.0), row("blackroad", "latency", "p50", 80.0)]
    assert verdict(rows, "p50 ≤ 0.8 x zmq-raw").met is True
    rows[1]["value"] = 81.0
    assert verdict(rows, "p50 ≤ 0.8 x zmq-raw").met is False


def test_the_best_peer_is_no_yardstick_and_not_ourselves() -> None:
    rows = [row(name, "payload", "1 MiB", value) for name, value in (
        ("blackroad", 100.0), ("zmq-raw", 400.0), ("tcp-socket", 900.0), ("joblib", 50.0),
    )]  # fmt: skip
    assert verdict(rows, "≥ 2 x best peer").measured.endswith("(100 / 50.0)")


@pytest.mark.parametrize(
    ("delivered", "raised", "met"), [(200, 0, True), (199, 0, False), (200, 1, False)]
)
def test_a_kill_may_cost_nothing(delivered: int, raised: int, met: bool) -> None:
    rows = [row("blackroad", "kill", "delivered", delivered)]
    rows += [row("blackroad", "kill", "raised", raised)]
    assert verdict(rows, "all delivered, none raised").met is met


# --- what is run, and what is shown ---------------------------------------------------------------


def test_what_is_compared_runs_one_after_the_other() -> None:
    plan = Plan(("zmq-raw", "mp-pool"), ("noop", "latency"), repeats=2)
    order = list(cells(plan))
    assert order[:2] == [(0, "noop", "zmq-raw"), (0, "noop", "mp-pool")]
    assert len(order) == 8


def test_systems_of_one_workload_do_no_other() -> None:
    plan = Plan(("zmq-raw", "blackroad-pair", "tls-socket"), ("noop", "pair", "bulk"), repeats=1)
    assert list(cells(plan)) == [
        (0, "noop", "zmq-raw"),
        (0, "pair", "blackroad-pair"),
        (0, "bulk", "blackroad-pair"),
        (0, "bulk", "tls-socket"),
    ]


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reasons = {name: one.missing() for name, one in systems.REGISTRY.items() if one.modules}
    assert len(reasons) >= 7
    assert all("pip install" in reason for reason in reasons.values())


def test_the_table_has_a_line_for_each_system_and_empty_cells_stay_in_place() -> None:
    figures = Figures([*noops(blackroad=4.0, zmq_raw=2.0), row("mp-pool", "latency", "p50", 9.0)])
    lines = table.aligned(table.systems(figures))
    assert [line.split()[0] for line in lines[2:]] == ["blackroad", "zmq-raw", "mp-pool"]
    assert lines[2].split()[1:3] == ["4", "2"]
    column = lines[0].index("p50 us")
    assert lines[4][column : column + 6].strip() == "9"


@pytest.mark.parametrize("words", [["--systems", "zmq"], ["--work", "sleep"], ["dance"]])
def test_unknown_names_are_refused_with_the_known_ones(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "there are: " in capsys.readouterr().err


def test_the_list_names_every_system_and_workload(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--list"])
    assert command.main() == 0
    told = capsys.readouterr().out
    assert all(name in told for name in (*systems.REGISTRY, "noop", "bulk"))


# --- the page -------------------------------------------------------------------------------------

REPORT = {
    "machine": {
        "cores": 2, "processor": "P", "memory_gib": 1, "kernel": "6", "python": "3", "when": "now",
        "versions": {"numpy": "2"},
    },
    "skipped": {"ray": "not installed"},
    "rows": noops(blackroad=4.0, zmq_raw=2.0),
}  # fmt: skip


def test_only_the_block_of_the_page_is_rewritten() -> None:
    page = f"before\n<!-- figures: {docs.HOW} -->\nold\n<!-- end of figures -->\nafter\n"
    new = docs.replaced(page, "figures", ["new"])
    assert new == page.replace("old", "\nnew\n")
    assert docs.replaced(new, "figures", ["new"]) == new


def test_a_page_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block"):
        docs.replaced("nothing here", "figures", [])


def test_the_page_of_the_project_has_its_blocks() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    for name in ("figures", "growth"):
        assert docs.replaced(page, name, ["x"]) != page


def test_the_page_tells_targets_systems_and_what_was_not_measured() -> None:
    text = "\n".join(docs.figures(REPORT))
    assert "| no-op tasks, each its own | ≥ 2 x zmq-raw | 2.00 (4 / 2) | yes |" in text
    assert "| blackroad | 4 | 2 |" in text
    assert "Not measured here: ray." in text


@pytest.mark.parametrize("flags", [{"quick": True, "whole": True}, {"quick": False}])
def test_a_quick_or_broken_off_run_is_not_put_into_the_page(
    flags: dict[str, bool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(docs, "KEPT", tmp_path / "kept.json")
    last = tmp_path / "last.json"
    last.write_text(json.dumps({**REPORT, **flags}))
    assert docs.write(last) == 2
    assert docs.write(tmp_path / "nothing.json") == 2
    assert "make bench" in capsys.readouterr().err


# --- tasks that write down what they do -----------------------------------------------------------


def test_the_diary_finds_what_ran_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.jobs.STEP_S", 0.0)
    diary = Diary(tmp_path / "log")
    assert diary.starts() == []
    for number in (1, 2, 2):
        slow(number, str(diary.path))
    with diary.path.open("a") as file:
        file.write("start 1 77\n")
    assert [number for number, _ in diary.starts()] == [1, 2, 2, 1]
    assert diary.twice() == (2, 1)
