"""A page of figures: bounded, in one piece, and unbroken by any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.errors import InvariantBroken
from blackroad.metrics import names
from blackroad.metrics.page import Folded, Page, words
from tests.metrics.reading import read, value, values

HOSTILE = 'a"b\\c\nd\x1b[31m{}\r\0,e="f'


def test_every_figure_is_of_the_project_or_the_promised_alias() -> None:
    for metric in names.METRICS.values():
        assert metric.name.startswith("blackroad_") or metric.name == "cluster_jobs_total"
        assert metric.help.endswith(".")
        assert "\n" not in metric.help
        assert "\\" not in metric.help
        assert (metric.kind == names.COUNTER) == metric.name.endswith("_total"), metric.name
        assert (
            bool(metric.labels) == (metric.series_max > 1)
            or metric.kind == names.HISTOGRAM
            or (metric.name == "blackroad_node_info")
        )


def test_all_caps_together_are_within_the_cap_of_the_page() -> None:
    assert sum(metric.series_max for metric in names.METRICS.values()) <= names.SERIES_MAX


def test_a_page_is_read_back_as_it_was_meant() -> None:
    page = Page()
    page.one("blackroad_slots", 2.5)
    page.one("blackroad_draining", True)
    page.many("blackroad_tasks", [(("queued",), 3), (("ended",), 10**15)])
    series = read(page.body())
    assert value(series, "blackroad_slots") == 2.5
    assert value(series, "blackroad_draining") == 1
    assert values(series, "blackroad_tasks") == {("queued",): 3, ("ended",): 10**15}
    assert page.series == 4


def test_no_name_breaks_a_line() -> None:
    page = Page()
    page.many("blackroad_peer_up", [(("k3f7", HOSTILE), 1)])
    body = page.body()
    assert b"\x1b" not in body
    assert b"\0" not in body
    [(labels, number)] = values(read(body), "blackroad_peer_up").items()
    assert number == 1
    assert labels[1].replace("\N{REPLACEMENT CHARACTER}", "") == 'a"b\\cd[31m{},e="f'


@given(st.text(max_size=200))
def test_any_text_is_one_value_of_one_label(text: str) -> None:
    page = Page()
    page.many("blackroad_tasks_queued", [((text,), 7)])
    [(labels, number)] = values(read(page.body()), "blackroad_tasks_queued").items()
    assert number == 7
    assert len(labels[0]) <= names.LABEL_CHARS_MAX
    assert labels[0].isprintable()
    if text.isprintable() and len(text) <= names.LABEL_CHARS_MAX:
        assert labels == (text,)


def test_what_is_not_in_the_list_is_not_shown() -> None:
    with pytest.raises(InvariantBroken, match="no such figure"):
        Page().one("blackroad_made_up", 1)
    page = Page()
    page.one("blackroad_slots", 1)
    with pytest.raises(InvariantBroken, match="twice"):
        page.one("blackroad_slots", 1)


def test_a_figure_with_more_series_than_it_may_have_is_a_fault_of_ours() -> None:
    rows = [((str(at),), 1) for at in range(4)]
    with pytest.raises(InvariantBroken, match="too many series"):
        Page().many("blackroad_tasks", rows)


def test_beyond_the_cap_lines_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackroad.metrics.page.SERIES_MAX", 4)
    page = Page()
    page.one("blackroad_slots", 1)
    page.many("blackroad_tasks", [((state,), 1) for state in ("queued", "granted", "ended")])
    page.many("blackroad_nodes", [(("alive",), 3), (("dead",), 1)])
    page.spread("blackroad_task_run_seconds", [1] * 65, names.RUN_POWERS, 1e-6, 1.0)
    assert len(read(page.body())) == page.series == 4
    assert page.cut == 2 + len(names.RUN_POWERS) + 3


def test_a_histogram_counts_what_lies_at_or_below_each_bound() -> None:
    counts = [0] * 65
    # 1024 us is the first bound itself, 1025 us lies in the next one.
    for us in (0, 1, 1024, 1025, 2**40, 2**41):
        counts[(us - 1).bit_length() if us else 0] += 1
    page = Page()
    page.spread("blackroad_task_run_seconds", counts, names.RUN_POWERS, 1e-6, 9.5)
    series = read(page.body())
    buckets = values(series, "blackroad_task_run_seconds_bucket")
    assert buckets["0.001024",] == 3
    assert buckets["0.004096",] == 4
    assert buckets["1099511.63",] == 5
    assert buckets["+Inf",] == value(series, "blackroad_task_run_seconds_count") == 6
    assert value(series, "blackroad_task_run_seconds_sum") == 9.5
    assert list(buckets.values()) == sorted(buckets.values())


def test_names_beyond_the_cap_share_one_value() -> None:
    folded = Folded(2)
    assert [folded.value(text) for text in ("a", "b", "c", "a", "d")] == [
        "a",
        "b",
        "other",
        "a",
        "other",
    ]
    assert folded.folded == 2


def test_names_that_look_alike_on_the_page_are_one() -> None:
    folded = Folded(10)
    long = "x" * 70
    assert folded.value(long + "1") == folded.value(long + "2")
    assert folded.value("a\0") == folded.value("a\1")


def test_counters_are_told_by_two_words_and_capped() -> None:
    counters = {"object.damaged.k3f7": 2, "object.damaged.m5c7": 3, "breach": 1}
    assert words(counters.items(), 5) == [(("breach",), 1), (("object.damaged",), 5)]
    many = {f"word.{at:03}": 1 for at in range(200)}
    told = dict(words(many.items(), 64))
    assert len(told) == 65
    assert told["other",] == 136
