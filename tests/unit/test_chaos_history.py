"""Hand-made histories, one for each verdict, and properties of all of them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from blackroad.cli.chaos_history import (
    BEAT_MS,
    KILL_GUARD_MS,
    Verdict,
    judge,
    parse,
    percentile,
)

Line = dict[str, Any]


def said(what: str, boot_ms: int, task: str = "t1", **facts: Any) -> Line:
    return {"what": what, "task": task, **facts, "boot_ms": boot_ms}


def sign(what: str, boot_ms: int, serial: int = 1, node: str = "attic", **facts: Any) -> Line:
    return {
        "what": what,
        "task": "t1",
        "attempt": serial,
        "token": f"7/{serial}",
        "node": node,
        "pid": 100 + serial,
        **facts,
        "boot_ms": boot_ms,
    }


def attempt(
    start_ms: int,
    last_ms: int,
    serial: int = 1,
    node: str = "attic",
    stop: bool = True,
    **facts: Any,
) -> list[Line]:
    """An attempt with all of its beats; without a stop it was killed."""
    beats = [sign("beat", at, serial, node) for at in range(start_ms + BEAT_MS, last_ms, BEAT_MS)]
    end = sign("stop", last_ms, serial, node, result=f"7/{serial}")
    start = sign("start", start_ms, serial, node, **facts)
    return [start, *beats, end if stop else sign("beat", last_ms, serial, node)]


def fault(boot_ms: int, node: str = "attic", what: str = "fault", **facts: Any) -> Line:
    return {"what": what, "name": "kill", "node": node, **facts, "boot_ms": boot_ms}


def taken(**facts: Any) -> list[Line]:
    return [said("submitted", 0, **facts), said("accepted", 1)]


def done(boot_ms: int, serial: int = 1) -> Line:
    return said("ended", boot_ms, end="done", result=f"7/{serial}")


def written(*lines: Line | list[Line]) -> bytes:
    flat = [one for line in lines for one in (line if isinstance(line, list) else [line])]
    return b"".join(json.dumps(line).encode() + b"\n" for line in flat)


def judged(*lines: Line | list[Line], deadline_ms: int | None = None) -> Verdict:
    return judge(parse(written(*lines)), deadline_ms)


def kinds(found: Verdict) -> list[str]:
    return [kind for kind, _ in found.findings]


# --- nothing broken -------------------------------------------------------------------------------


def test_a_task_that_ran_once_breaks_nothing() -> None:
    found = judged(taken(), attempt(10, 300), done(310))
    assert found.holds
    assert (found.tasks, found.accepted, found.starts, found.ends) == (1, 1, 1, {"done": 1})
    assert (found.reruns, found.rerun_share, found.recoveries_ms) == (0, 0.0, {})


def test_nothing_at_all_breaks_nothing() -> None:
    found = judge(parse(b""))
    assert found.holds
    assert (found.tasks, found.rerun_share, found.recovery_ms(50)) == (0, 0.0, None)


def test_a_killed_attempt_stops_counting_with_its_last_sign() -> None:
    found = judged(
        taken(),
        attempt(10, 300, stop=False),
        fault(320),
        attempt(2_000, 2_500, serial=2, node="shed"),
        done(2_600, 2),
    )
    assert found.holds
    assert (found.starts, found.reruns, found.rerun_share) == (2, 1, 1.0)
    assert found.recoveries_ms == {"kill": [1_680]}
    assert found.faults == {"kill": 1}


def test_two_attempts_that_both_stopped_are_no_double() -> None:
    # The first one's outcome was lost with its node: at least once is what is promised.
    found = judged(taken(), attempt(10, 100), attempt(900, 990, serial=2), done(1_000, 2))
    assert found.holds
    assert found.reruns == 1


# --- lost -----------------------------------------------------------------------------------------


def test_accepted_without_an_end_is_lost() -> None:
    found = judged(taken(), attempt(10, 300))
    assert kinds(found) == ["lost"]
    assert "no end" in found.lost[0].text


def test_an_end_after_the_deadline_came_too_late() -> None:
    lines = [*taken(), *attempt(10, 300), done(310)]
    assert judged(lines, deadline_ms=310).holds
    assert kinds(judged(lines, deadline_ms=309)) == ["lost"]


def test_what_nobody_waited_for_is_open() -> None:
    found = judge(parse(written(taken(), attempt(10, 300))), awaited=False)
    assert found.holds
    assert found.open == 1


def test_a_rejected_task_is_neither_accepted_nor_lost() -> None:
    found = judged(said("submitted", 0), said("rejected", 5))
    assert found.holds
    assert (found.accepted, found.rejected) == (0, 1)
    again = judged(said("submitted", 0), said("rejected", 5), said("accepted", 9), done(20))
    assert (again.accepted, again.rejected) == (1, 0)


def test_what_was_never_accepted_cannot_be_lost() -> None:
    assert judged(said("submitted", 0), attempt(10, 300)).holds


def test_an_attached_task_may_go_with_its_owner_and_a_durable_one_not() -> None:
    gone = said("ended", 400, end="owner lost")
    assert judged(taken(durable=False), attempt(10, 300, stop=False), gone).holds
    assert kinds(judged(taken(), attempt(10, 300, stop=False), gone)) == ["lost"]


def test_an_end_that_no_task_has_is_lost() -> None:
    assert kinds(judged(taken(), said("ended", 5, end="TimeoutError"))) == ["lost"]


# --- doubled --------------------------------------------------------------------------------------


def test_the_same_outcome_told_twice_is_one() -> None:
    assert judged(taken(), attempt(10, 300), done(310), done(900)).holds


def test_two_outcomes_are_doubled() -> None:
    found = judged(taken(), attempt(10, 300), done(310), said("ended", 400, end="failed"))
    assert kinds(found) == ["doubled"]
    assert found.ends == {"done": 1}


def test_two_results_are_doubled() -> None:
    found = judged(
        taken(), attempt(10, 100), attempt(200, 300, serial=2), done(310, 1), done(320, 2)
    )
    assert kinds(found) == ["doubled"]


def test_a_result_that_no_attempt_made_is_doubled() -> None:
    assert kinds(judged(taken(), attempt(10, 300), done(310, serial=9))) == ["doubled"]


def test_a_once_task_that_ran_twice_is_doubled() -> None:
    runs = [*attempt(10, 100, stop=False), *attempt(900, 990, serial=2)]
    assert judged(taken(), runs, done(1_000, 2)).holds
    assert kinds(judged(taken(once=True), runs, done(1_000, 2))) == ["doubled"]


def test_a_token_that_started_twice_is_doubled() -> None:
    found = judged(taken(), attempt(10, 100), sign("start", 400), done(500))
    assert "doubled" in kinds(found)
    assert found.reruns == 1


# --- overlapping ----------------------------------------------------------------------------------


def test_two_attempts_at_once_overlap() -> None:
    found = judged(
        taken(),
        attempt(10, 600, stop=False),
        attempt(500, 900, serial=2, node="shed"),
        done(910, 2),
    )
    assert kinds(found) == ["overlapping"]
    assert "600" in found.overlapping[0].text


def test_one_sign_within_another_attempt_is_enough() -> None:
    late = sign("beat", 700)
    found = judged(
        taken(), attempt(10, 300, stop=False), attempt(500, 900, serial=2), late, done(910, 2)
    )
    assert kinds(found) == ["overlapping"]


def test_an_overlap_shorter_than_a_beat_shows_by_the_lock() -> None:
    first = attempt(10, 300, stop=False)
    second = attempt(310, 500, serial=2, node="shed", alone=False)
    assert kinds(judged(taken(), first, second, done(510, 2))) == ["overlapping"]


def test_an_overlap_is_told_once() -> None:
    second = attempt(200, 500, serial=2, alone=False)
    assert len(judged(taken(), attempt(10, 300), second, done(510, 2)).overlapping) == 1


def test_pure_tasks_may_overlap() -> None:
    both = [*attempt(10, 600), *attempt(500, 900, serial=2, alone=False)]
    assert judged(taken(pure=True), both, done(610)).holds
    assert not judged(taken(), both, done(610)).holds


def test_an_attempt_after_the_end_overlaps() -> None:
    found = judged(taken(), attempt(10, 100), done(110), attempt(400, 500, serial=2))
    assert kinds(found) == ["overlapping"]
    assert "end was told at 110" in found.overlapping[0].text


def test_a_cancelled_task_must_be_gone() -> None:
    killed = attempt(10, 300, stop=False)
    assert judged(taken(), killed, said("ended", 301, end="cancelled")).holds
    assert kinds(judged(taken(), killed, said("ended", 299, end="cancelled"))) == ["overlapping"]


# --- frozen ---------------------------------------------------------------------------------------


def frozen(boot_ms: int, until_ms: int | None, node: str = "attic") -> list[Line]:
    heal = [] if until_ms is None else [fault(until_ms, node, "heal", frozen=True)]
    return [fault(boot_ms, node, frozen=True), *heal]


def test_a_frozen_attempt_does_not_run() -> None:
    found = judged(
        taken(),
        attempt(10, 300, stop=False),
        frozen(310, 9_000),
        attempt(5_000, 5_500, serial=2, node="shed", alone=False),
        done(5_600, 2),
    )
    assert found.holds
    assert found.recoveries_ms == {"kill": [4_690]}


def test_a_thawed_attempt_has_the_guard_to_be_killed_in() -> None:
    def told(last_ms: int) -> Verdict:
        return judged(
            taken(),
            attempt(10, 300, stop=False),
            frozen(310, 9_000),
            sign("beat", 9_000),
            sign("beat", last_ms),
            attempt(8_000, 9_900, serial=2, node="shed"),
            done(9_950, 2),
        )

    assert told(9_000 + 100).holds
    assert told(9_000 + 100).thawed == 2
    beyond = told(9_001 + KILL_GUARD_MS)
    assert set(kinds(beyond)) == {"overlapping"}
    assert beyond.thawed == 0


def test_a_thaw_excuses_no_other_node() -> None:
    found = judged(
        taken(),
        attempt(10, 300, stop=False),
        frozen(310, 9_000, node="loft"),
        attempt(320, 500, serial=2, node="shed", alone=False),
        done(600, 2),
    )
    assert kinds(found) == ["overlapping"]


def test_an_attempt_that_outlives_its_freeze_counts_before_and_after() -> None:
    long = [*attempt(10, 300, stop=False), *attempt(2_000, 9_000)[1:]]
    freeze = frozen(310, 2_000)
    assert judged(taken(), long, freeze, done(9_010)).holds
    for start_ms in (200, 4_000):
        other = attempt(start_ms, start_ms + 90, serial=2, node="shed")
        assert "overlapping" in kinds(judged(taken(), long, freeze, other, done(9_010)))
    between = attempt(600, 700, serial=2, node="shed")
    assert "overlapping" not in kinds(judged(taken(), long, freeze, between, done(9_010)))


def test_a_freeze_without_end_excuses_the_lock() -> None:
    second = attempt(25_000, 25_100, serial=2, node="shed", alone=False)
    found = judged(
        taken(), attempt(10, 300, stop=False), frozen(310, None), second, done(25_200, 2)
    )
    assert found.holds


# --- order ----------------------------------------------------------------------------------------


def test_tokens_must_grow() -> None:
    found = judged(taken(), attempt(10, 100, serial=5), attempt(300, 400, serial=4), done(500, 4))
    assert kinds(found) == ["disordered"]


def test_tokens_are_compared_as_numbers_incarnation_first() -> None:
    first = [{**line, "token": "9/100"} for line in attempt(10, 100)]
    second = [{**line, "token": "10/2"} for line in attempt(300, 400, serial=2)]
    assert judged(taken(), first, second, done(500, 2)).holds


# --- recovery -------------------------------------------------------------------------------------


def test_only_a_fault_of_its_own_node_ended_an_attempt() -> None:
    killed, again = attempt(10, 300, stop=False), attempt(900, 990, serial=2)
    told = [*taken(), *killed, *again, done(1_000, 2)]
    assert judged(told, fault(280), fault(310, node="shed")).recovery_ms(99) == 620
    assert judged(told, fault(310, node="*")).recovery_ms(50) == 590
    assert judged(told, fault(5)).recovery_ms(50, "kill") == 895
    assert judged(told, fault(800)).recoveries_ms == {}


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 50) is None
    assert percentile([5], 99) == 5
    assert percentile(list(range(1, 101)), 50) == 50
    assert percentile(list(range(1, 101)), 99) == 99


# --- what is written badly ------------------------------------------------------------------------


def test_a_torn_last_line_is_counted_and_passed_over() -> None:
    data = written(taken(), attempt(10, 300), done(310))
    found = judge(parse(data + b'{"what":"beat","task":"t'))
    assert found.holds
    assert found.damaged == 1


def test_a_whole_line_behind_a_torn_one_is_read() -> None:
    torn = written(taken(), attempt(10, 300)) + b'{"what":"beat","ta' + written(done(310))
    found = judge(parse(torn))
    assert found.holds
    assert (found.damaged, found.ends) == (1, {"done": 1})


def test_lines_that_say_nothing_are_damaged() -> None:
    bad = [
        b"[]",
        b"7",
        b"null",
        b'{"what":"start"}',
        b'{"what":"start","task":"t","token":"x","node":"n","pid":1,"boot_ms":1}',
        b'{"what":"start","task":"t","token":"1/2","node":"n","pid":"1","boot_ms":1}',
        b'{"what":"ended","task":"t","boot_ms":1}',
        b'{"what":"fault","boot_ms":1}',
        b'{"what":"other","task":"t","boot_ms":1}',
        b'{"what":"accepted","task":"t","boot_ms":"1"}',
        b'{"what":"accepted","task":"t","boot_ms":1.5}',
        b"\xff\xfe",
    ]
    found = parse(b"\n".join(bad) + b"\n\n")
    assert found.damaged == len(bad)
    assert judge(found).holds


# --- properties -----------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, 400)), min_size=1, max_size=5)


@given(spans)
def test_overlap_is_found_exactly_where_two_spans_meet(found: list[tuple[int, int]]) -> None:
    found = sorted(set(found))
    truth = any(
        start < other + length and other < start + run
        for at, (start, run) in enumerate(found)
        for other, length in found[at + 1 :]
    )
    runs = [attempt(at, at + run, serial) for serial, (at, run) in enumerate(found, 1)]
    verdict = judged(taken(), *runs)
    assert bool(verdict.overlapping) == truth


@given(spans, st.randoms(use_true_random=False))
def test_the_order_of_lines_says_nothing(found: list[tuple[int, int]], chance: Any) -> None:
    starts = sorted({start for start, _ in found})
    runs = [
        line
        for serial, (at, run) in enumerate(zip(starts, (run for _, run in found), strict=False), 1)
        for line in attempt(at, at + run, serial, stop=run % 2 == 0)
    ]
    lines = [*taken(), *runs, fault(50), done(5_000)]
    turned = list(lines)
    chance.shuffle(turned)
    assert judged(turned).as_data() == judged(lines).as_data()


@given(st.binary(max_size=300), st.integers(0, 2_000))
def test_no_bytes_break_the_reader(garbage: bytes, cut: int) -> None:
    data = written(taken(), attempt(10, 300), done(310))
    judge(parse(garbage))
    judge(parse(data[:cut] + garbage + b"\n" + data))
