"""Bundles at their owner: what travels together, what becomes of each task, and who may lie."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.limits import (
    BUNDLE_BYTES_MAX,
    BUNDLE_TASKS_MAX,
    BUNDLE_WORK_US,
    BUNDLES_AHEAD_MAX,
    RENEW_MS,
)
from blackroad.router.effects import Effect, Send, Tell
from blackroad.router.records import TaskState
from tests.unit.builders import (
    CLIENT,
    INC,
    ME,
    NO_FACTS,
    OTHER,
    PEER,
    SESSION,
    OwnerBench,
    digest,
    of_kind,
    outcome,
    renew,
    spec,
    submit,
    task_id,
)
from tests.unit.owner_words import (
    BOUND_MS,
    NEWER,
    OLDER,
    RUNNING,
    WAITING,
    ack,
    done,
    ended,
    forbid,
    refused,
    stop,
)

FIVE = (1, 2, 3, 4, 5)
MEAN_US = 100
CODE = m.Ref(digest(7), 100)


# --- words ----------------------------------------------------------------------------------------


def measured(bench: OwnerBench, slots: int = 1, mean_us: int = MEAN_US, **changes: Any) -> None:
    """One task of the class is done on PEER, so that it is known how long they take there."""
    bench.allow(PEER=slots)
    [first] = of_kind(bench.submit(0, **changes), m.Grant)
    bench.owner.on_outcome(PEER, outcome(first.token, 0, facts=m.Facts(run_us=mean_us)), 5)
    bench.owner.on_seen(SESSION, (task_id(0),))
    bench.turn(5)


def grants(effects: list[Effect]) -> list[list[int]]:
    """The numbers of the tasks in each Grant."""
    return [
        [number(one.task), *(number(small.task) for small in one.more)]
        for one in of_kind(effects, m.Grant)
    ]


def number(task: bytes) -> int:
    return int.from_bytes(task[-4:], "big")


def bundle(bench: OwnerBench, *numbers: int, **changes: Any) -> Token:
    """These tasks left as one attempt to PEER, and nothing more is granted."""
    measured(bench, **changes)
    [granted] = of_kind(bench.submit(*(numbers or FIVE), now_ms=10, **changes), m.Grant)
    assert len(granted.more) == len(numbers or FIVE) - 1
    forbid(bench)
    return granted.token


def said(bench: OwnerBench, now_ms: int, what: m.Message, node: bytes = PEER) -> list[Effect]:
    """A worker says something; the books are checked before and after the end of the turn."""
    match what:
        case m.Outcome():
            bench.owner.on_outcome(node, what, now_ms)
        case m.Divided():
            bench.owner.on_divided(node, what, now_ms)
        case m.Refused():
            bench.owner.on_refused(node, what, now_ms)
        case m.Renew():
            bench.owner.on_renew(node, what, now_ms)
    bench.owner.check()
    effects = bench.turn(now_ms)
    bench.owner.check()
    return effects


def early(*numbers: int) -> tuple[m.Early, ...]:
    """What these tasks came to."""
    return tuple(m.Early(b"r%d" % one, 10 * one) for one in numbers)


def divided(token: Token, *numbers: int, inc: int = INC) -> m.Divided:
    return m.Divided(token, inc, early(*numbers))


def stopped_at(token: Token, number: int, *before: int) -> m.Outcome:
    """That task was stopped, and these were done before it."""
    stop = {"status": m.Status.STOPPED, "result": b"", "facts": NO_FACTS}
    return outcome(token, number, before=early(*before), **stop)


def results(*numbers: int, node: bytes = PEER) -> Tell:
    """The message that tells of these together."""
    lines = tuple(m.Result(task_id(one), b"r%d" % one, 10 * one) for one in numbers)
    return Tell(CLIENT, m.Results(node, lines))


def states(bench: OwnerBench, *numbers: int) -> str:
    """A letter each: queued, granted, ended; - where the task is forgotten."""
    found = []
    for one in numbers or FIVE:
        task = bench.owner.tasks.get(task_id(one))
        found.append(task.state.name[0].lower() if task is not None else "-")
    return "".join(found)


def queue(bench: OwnerBench) -> list[int]:
    """The numbers of what is queued, in order."""
    return [
        number(task.id)
        for cls in bench.owner.classes.values()
        for task in cls.queue
        if task.state is TaskState.QUEUED
    ]


def counts(bench: OwnerBench, *numbers: int) -> list[tuple[int, int, int, int, int]]:
    """Tries, failures, crashes, losses, killers of these tasks."""
    tasks = [bench.owner.tasks[task_id(one)] for one in numbers or FIVE]
    return [(one.tries, one.failures, one.crashes, one.losses, one.killers) for one in tasks]


def cancel(bench: OwnerBench, now_ms: int, *numbers: int) -> list[Effect]:
    ids = tuple(task_id(one) for one in numbers)
    bench.owner.on_cancel(CLIENT, m.Cancel(ids), now_ms)
    bench.owner.check()
    return bench.turn(now_ms)


def is_empty(bench: OwnerBench) -> None:
    """Nothing is left of any task, in no book."""
    owner = bench.owner
    numbers = [number(one) for one in owner.tasks]
    owner.on_seen(SESSION, [task_id(one) for one in numbers])
    # What was cancelled may be tried again: its work stays as long as its story.
    assert (owner.tasks, owner.bytes, owner.attempts) == ({}, owner.memory.spare_bytes, {})
    assert [cls.tasks for cls in owner.classes.values()] == [0] * len(owner.classes)
    assert [cls.queued for cls in owner.classes.values()] == [0] * len(owner.classes)
    uses = [use for cls in owner.classes.values() for use in cls.uses.values()]
    assert [(use.live, use.ahead) for use in uses] == [(0, 0)] * len(uses)
    assert not any(owner.on_node.values())
    assert [one.live for one in owner.sessions.sessions.values()] in ([0], [])
    assert owner.memory.spare_bytes or CODE.digest not in owner.pins


# --- what travels together: R-bundle-1, R-bundle-2 ------------------------------------------------


def test_without_a_mean_each_goes_alone() -> None:
    """R-bundle-2: nobody knows yet that they are small."""
    bench = OwnerBench()
    bench.allow(PEER=2)
    assert grants(bench.submit(*FIVE)) == [[1], [2]]


def test_a_bundle_is_one_grant_one_slot_and_many_tasks() -> None:
    bench = OwnerBench()
    measured(bench)
    [granted] = of_kind(bench.submit(*FIVE, now_ms=10), m.Grant)
    assert (granted.task, granted.work, granted.attempt) == (task_id(1), b"work", 1)
    assert granted.more == tuple(m.Small(task_id(one), b"work") for one in FIVE[1:])
    assert (states(bench), len(bench.owner.attempts)) == ("ggggg", 1)
    [use] = [u for c in bench.owner.classes.values() for u in c.uses.values() if u.node == PEER]
    assert (use.live, use.ahead) == (1, 0)
    bench.owner.check()


def test_small_work_is_spread_before_it_is_bundled() -> None:
    """R-bundle-1: no more than an even share of the queue for each slot."""
    bench = OwnerBench()
    measured(bench, slots=2)
    assert grants(bench.submit(*FIVE, now_ms=10)) == [[1, 2, 3], [4, 5]]


def test_a_bundle_has_as_many_as_its_time_allows() -> None:
    bench = OwnerBench()
    measured(bench, mean_us=BUNDLE_WORK_US // 2)
    assert grants(bench.submit(*FIVE, now_ms=10)) == [[1, 2], [3, 4], [5]]


def test_no_bundle_is_longer_than_the_limit_and_few_wait() -> None:
    bench = OwnerBench()
    measured(bench, mean_us=1)
    found = grants(bench.submit(*range(1, 256), now_ms=10))
    found += grants(bench.submit(*range(256, 256 + 6 * BUNDLE_TASKS_MAX - 255), now_ms=10))
    assert max(map(len, found)) == BUNDLE_TASKS_MAX
    assert len(found) <= 1 + BUNDLES_AHEAD_MAX
    flat = [one for numbers in found for one in numbers]
    assert flat == list(range(1, 1 + len(flat)))


def test_the_work_of_a_bundle_is_bounded() -> None:
    """R-bundle-1: the first that does not fit ends it, and the order is kept."""
    bench = OwnerBench()
    measured(bench, mean_us=1)
    third = BUNDLE_BYTES_MAX // 3
    sizes = (third, third, third + 3, 1, 1)
    items = tuple(m.Item(task_id(n), b"w" * size) for n, size in enumerate(sizes, 1))
    assert grants(bench.submit(tasks=items, now_ms=10)) == [[1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": spec(gang=1, exclusive=True)},
        {"spec": spec(once=True)},
        {"spec": spec(timeout_ms=1000)},
        {"durable": True},
    ],
    ids=["exclusive", "once", "timeout", "durable"],
)
def test_what_is_never_bundled(changes: dict[str, Any]) -> None:
    """R-bundle-2: its attempt has its own clock, machine or row."""
    bench = OwnerBench()
    bench.allow(PEER=1)
    [first] = of_kind(bench.submit(0, **changes) + bench.flush(0), m.Grant)
    bench.owner.on_outcome(PEER, outcome(first.token, 0, facts=m.Facts(run_us=1)), 5)
    bench.turn(5)
    effects = bench.submit(*FIVE, now_ms=10, **changes) + bench.flush(10)
    assert effects
    assert all(len(one) == 1 for one in grants(effects)), grants(effects)


def test_large_work_goes_alone_and_ends_the_bundle_before_it() -> None:
    bench = OwnerBench()
    large = m.Ref(digest(9), 100_000)
    bench.owner.pins.pin(large.digest)
    measured(bench, mean_us=1)
    bench.owner.granting.table.clear()
    items = tuple(m.Item(task_id(n), large if n == 3 else b"work") for n in FIVE)
    bench.submit(tasks=items, now_ms=10)
    bench.allow(PEER=4)
    # Four slots for five tasks: at most two together.
    assert grants(bench.turn(11)) == [[1, 2], [3], [4, 5]]


def test_another_code_ends_the_bundle() -> None:
    bench = OwnerBench()
    bench.owner.pins.pin(CODE.digest)
    measured(bench, mean_us=1)
    bench.owner.granting.table.clear()
    bench.submit(1, 2, now_ms=10)
    bench.submit(3, 4, now_ms=10, code=CODE)
    bench.allow(PEER=1)
    assert [sorted(one) for one in grants(bench.turn(11))][:2] == [[1, 2], [3, 4]]


def test_another_ordinal_ends_the_bundle() -> None:
    """R-bundle-1: what was refused counts its tries on, so it goes with its equals."""
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 20, refused(token))
    assert counts(bench) == [(1, 0, 0, 0, 0)] * 5
    bench.submit(6, 7, now_ms=700)
    bench.beat(PEER, 700)
    bench.allow(PEER=1)
    assert grants(bench.turn(700))[:2] == [[1, 2, 3, 4, 5], [6, 7]]


# --- the Outcome: R-bundle-4 ----------------------------------------------------------------------


def test_a_whole_bundle_that_is_done_is_told_together() -> None:
    """R-bundle-9: those before the last in one message, each as good as an Ended."""
    bench = OwnerBench()
    token = bundle(bench)
    effects = said(bench, 100, outcome(token, 5, before=early(1, 2, 3, 4)))
    assert effects == [results(1, 2, 3, 4), done(5), ack(token)]
    assert states(bench) == "eeeee"
    told = [bench.owner.tasks[task_id(one)].ended for one in (1, 5)]
    facts = m.Facts(run_us=10)
    assert told[0] == m.Ended(task_id(1), m.End.DONE, "", b"r1", facts, PEER, 1)
    assert told[1] is not None
    assert told[1].attempts == 1
    assert bench.owner.counters["ended.done"] == 6
    assert "requeued" not in bench.owner.counters
    is_empty(bench)


def test_the_pins_of_code_are_counted_task_by_task() -> None:
    bench = OwnerBench()
    bench.owner.pins.pin(CODE.digest)
    token = bundle(bench, 1, 2, 3, code=CODE)
    bench.owner.pins.unpin(CODE.digest)
    # It was used lately, so it is kept at hand for one reason more.
    bench.owner.pins.unpin(CODE.digest)
    assert CODE.digest in bench.owner.pins
    said(bench, 100, outcome(token, 3, before=early(1, 2)))
    is_empty(bench)


def test_results_that_nobody_saw_are_repeated_as_ended() -> None:
    bench = OwnerBench()
    token = bundle(bench, 1, 2, 3)
    said(bench, 100, outcome(token, 3, before=early(1, 2)))
    bench.owner.on_seen(SESSION, (task_id(2),))
    again = of_kind(bench.tick(2_200), m.Ended)
    assert [(number(one.task), one.result) for one in again] == [(1, b"r1"), (3, b"42")]


def test_each_session_is_told_of_its_own() -> None:
    """One class may hold tasks of several sessions of one user."""
    bench = OwnerBench()
    other = b"o" * 16
    bench.owner.sessions.open(b"client-2", m.Open(other, 600_000), 0)
    measured(bench)
    bench.owner.granting.table.clear()
    bench.submit(1, 2, now_ms=10)
    bench.owner.on_submit(b"client-2", submit(3, 4, session=other), 10)
    bench.allow(PEER=1)
    [granted] = of_kind(bench.turn(10), m.Grant)
    effects = said(bench, 100, outcome(granted.token, 4, before=early(1, 2, 3)))
    to_other = Tell(b"client-2", m.Results(PEER, (m.Result(task_id(3), b"r3", 30),)))
    assert effects[:2] == [results(1, 2), to_other]
    assert [one.client for one in effects if isinstance(one, Tell)][2] == b"client-2"


@pytest.mark.parametrize(
    ("status", "reason"),
    [(m.Status.FAILED, "TaskFailed"), (m.Status.OUT_OF_MEMORY, "OutOfMemory")],
)
def test_the_status_is_that_of_the_last_one_alone(status: m.Status, reason: str) -> None:
    """R-bundle-4: those before are done, those after go back to the head, in order, untried."""
    bench = OwnerBench()
    token = bundle(bench)
    bench.submit(6, now_ms=20)
    failed = outcome(token, 3, status=status, result=b"why", facts=NO_FACTS, before=early(1, 2))
    effects = said(bench, 100, failed)
    assert effects == [
        results(1, 2),
        ended(3, m.End.FAILED, reason, result=b"why"),
        ack(token),
    ]
    assert states(bench) == "eeeqq"
    assert queue(bench) == [4, 5, 6]
    assert counts(bench, 4, 5) == [(0, 0, 0, 0, 0)] * 2


def test_a_task_that_failed_goes_alone_from_then_on() -> None:
    """R-bundle-2: alone it is judged alone, and those that never began go together again."""
    bench = OwnerBench()
    token = bundle(bench, 1, 2, 3, 4, 5, spec=spec(retries=1))
    crashed = outcome(token, 2, status=m.Status.CRASHED, result=b"", before=early(1))
    said(bench, 100, crashed)
    assert counts(bench, 2, 3) == [(1, 0, 1, 0, 0), (0, 0, 0, 0, 0)]
    assert queue(bench) == [2, 3, 4, 5]
    bench.allow(PEER=1)
    found = grants(bench.turn(110))
    assert found[0] == [2]
    assert [3, 4, 5] in [sorted(one) for one in found[1:]]


def test_an_outcome_of_the_first_leaves_the_rest_unbegun() -> None:
    """R-bundle-8: so a worker that does not know `more` is understood."""
    bench = OwnerBench()
    token = bundle(bench)
    assert said(bench, 100, outcome(token, 1)) == [done(1), ack(token)]
    assert (states(bench), queue(bench)) == ("eqqqq", [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("at", "before"),
    [
        (2, ()),  # says it was the first
        (3, (1, 2, 3)),  # and that it was before itself
        (1, (1, 2, 3, 4, 5)),  # longer than the bundle
        (1, (1, 2, 3, 4, 5, 6, 7)),
        (99, (1, 2)),  # a stranger
        (1, (1,)),
    ],
)
def test_an_outcome_that_contradicts_itself_ends_nothing(at: int, before: tuple[int, ...]) -> None:
    """R-bundle-7: it is acknowledged and dropped, and the bound ends the attempt."""
    bench = OwnerBench()
    token = bundle(bench)
    assert said(bench, 100, outcome(token, at, before=early(*before))) == [ack(token)]
    assert states(bench) == "ggggg"
    bench.tick(10 + BOUND_MS)
    bench.owner.check()
    assert (states(bench), queue(bench)) == ("qqqqq", [1, 2, 3, 4, 5])
    assert counts(bench) == [(1, 0, 0, 1, 0)] * 5
    cancel(bench, 30_000, *FIVE)
    is_empty(bench)


def test_before_of_what_is_no_bundle_is_passed_over() -> None:
    bench = OwnerBench()
    token = bench.granted(1)
    assert said(bench, 100, outcome(token, 1, before=early(7, 8))) == [done(1), ack(token)]
    is_empty(bench)


def test_a_large_result_of_the_last_one_is_pulled_while_the_others_are_told() -> None:
    bench = OwnerBench()
    token = bundle(bench, 1, 2, 3)
    large = m.Ref(digest(5), 100_000)
    effects = said(bench, 100, outcome(token, 2, result=large, before=early(1)))
    assert [one for one in effects if isinstance(one, Tell)] == [results(1)]
    assert (states(bench, 1, 2, 3), queue(bench)) == ("egq", [3])
    bench.owner.on_fetched(large.digest, 200)
    assert bench.turn(200)[-2:] == [done(2, result=large), ack(token)]


# --- Divided: R-bundle-4, R-bundle-7 --------------------------------------------------------------


def test_a_divided_bundle_is_the_attempt_of_one_task() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    assert said(bench, 100, divided(token, 1, 2)) == [results(1, 2)]
    assert (states(bench), queue(bench)) == ("eegqq", [4, 5])
    assert counts(bench, 3, 4) == [(1, 0, 0, 0, 0), (0, 0, 0, 0, 0)]
    # The Outcome says it all again, and that changes nothing.
    assert said(bench, 200, outcome(token, 3, before=early(1, 2))) == [done(3), ack(token)]
    cancel(bench, 300, 4, 5)
    is_empty(bench)


def test_an_outcome_after_a_divided_that_was_lost_says_it_all() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 60, renew(1000, (token, RUNNING)))
    effects = said(bench, 200, outcome(token, 3, before=early(1, 2)))
    assert effects == [results(1, 2), done(3), ack(token)]
    assert queue(bench) == [4, 5]


def test_what_was_divided_is_divided_once() -> None:
    """Repeated, longer or shorter: nothing is done, or taken back, twice."""
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 100, divided(token, 1, 2))
    for later in (divided(token, 1, 2), divided(token), divided(token, 1, 2, 3, 4)):
        assert said(bench, 110, later) == []
    assert (states(bench), queue(bench)) == ("eegqq", [4, 5])


def test_a_divided_after_the_outcome_is_passed_over() -> None:
    bench = OwnerBench()
    token = bundle(bench, 1, 2, 3)
    said(bench, 100, outcome(token, 2, before=early(1)))
    assert said(bench, 110, divided(token)) == []
    assert states(bench, 1, 2, 3) == "eeq"


@pytest.mark.parametrize(
    ("node", "inc"), [(OTHER, INC), (PEER, OLDER), (PEER, NEWER), (PEER, incarnation(7, 99))]
)
def test_a_divided_of_a_stranger_or_another_life_changes_nothing(node: bytes, inc: int) -> None:
    """R-bundle-7."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = bundle(bench)
    assert said(bench, 100, divided(token, 1, 2, inc=inc), node) == []
    assert said(bench, 100, divided(Token(INC, 999), 1, 2), node) == []
    assert states(bench) == "ggggg"


@pytest.mark.parametrize("count", [5, 6, 127])
def test_a_divided_longer_than_its_bundle_changes_nothing(count: int) -> None:
    """R-bundle-7: of five, four can be before the one that runs."""
    bench = OwnerBench()
    token = bundle(bench)
    assert said(bench, 100, divided(token, *range(1, count + 1))) == []
    assert states(bench) == "ggggg"


def test_an_outcome_for_another_task_than_the_one_that_was_left_is_dropped() -> None:
    """After Divided the attempt is one task's alone."""
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 100, divided(token, 1))
    assert said(bench, 110, outcome(token, 4, before=early(1, 2, 3))) == [ack(token)]
    assert states(bench) == "egqqq"


def test_no_late_word_of_the_bundle_counts_for_what_never_began() -> None:
    """R-bundle-4: they never will under that token."""
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 100, divided(token, 1))
    bench.allow(PEER=1)
    bench.beat(PEER, 110)
    [granted] = of_kind(bench.turn(110), m.Grant)[:1]
    assert granted.token > token
    assert states(bench, 3) == "g"
    # The tokens of its attempts only grow.
    assert said(bench, 120, outcome(token, 3)) == [ack(token)]
    assert states(bench, 3) == "g"


# --- losses: R-bundle-6 ---------------------------------------------------------------------------


def lose(bench: OwnerBench, token: Token, how: str) -> None:
    """End the attempt without an Outcome."""
    match how:
        case "refused":
            bench.owner.on_refused(PEER, refused(token), 100)
        case "bound":
            bench.owner.tick(10 + BOUND_MS)
        case "restart":
            bench.owner.on_incarnation(PEER, NEWER, 100)
        case "goodbye":
            bench.owner.on_goodbye(PEER, INC, 100)
    bench.owner.check()
    bench.turn(30_000)


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("refused", (1, 0, 0, 0, 0)),
        ("bound", (1, 0, 0, 1, 0)),
        ("restart", (1, 0, 0, 0, 1)),
        ("goodbye", (1, 0, 0, 1, 0)),
    ],
)
def test_of_a_lost_bundle_each_task_is_judged_by_itself(how: str, count: tuple[int, ...]) -> None:
    bench = OwnerBench()
    token = bundle(bench)
    bench.submit(6, now_ms=20)
    lose(bench, token, how)
    assert (states(bench), queue(bench)) == ("qqqqq", [1, 2, 3, 4, 5, 6])
    assert counts(bench) == [count] * 5
    assert all(token in bench.owner.tasks[task_id(one)].past for one in FIVE)
    assert bench.owner.attempts == {}
    cancel(bench, 30_001, *FIVE, 6)
    is_empty(bench)


@pytest.mark.parametrize(("how", "first"), [("refused", [1, 2, 3, 4, 5]), ("restart", [1])])
def test_what_was_counted_goes_alone_and_what_was_not_goes_together(
    how: str, first: list[int]
) -> None:
    bench = OwnerBench()
    token = bundle(bench)
    lose(bench, token, how)
    bench.meet(PEER, 60_000, NEWER, 900)
    bench.allow(PEER=1)
    assert grants(bench.turn(60_000))[0] == first


@pytest.mark.parametrize("how", ["refused", "bound", "restart", "goodbye"])
def test_a_divided_bundle_that_is_lost_loses_one_task(how: str) -> None:
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 50, divided(token, 1, 2))
    lose(bench, token, how)
    assert (states(bench), queue(bench)) == ("eeqqq", [3, 4, 5])
    assert counts(bench, 4, 5) == [(0, 0, 0, 0, 0)] * 2


def test_a_late_done_counts_for_its_own_task_alone() -> None:
    """R-bundle-6, R-outcome-2: those before it have been queued again, and run again."""
    bench = OwnerBench()
    token = bundle(bench)
    lose(bench, token, "bound")
    assert said(bench, 30_001, outcome(token, 3, before=early(1, 2))) == [
        done(3, attempts=1),
        ack(token),
    ]
    assert (states(bench), queue(bench)) == ("qqeqq", [1, 2, 4, 5])


@pytest.mark.parametrize("how", ["refused", "bound", "restart", "goodbye"])
def test_what_is_to_end_ends_with_the_loss(how: str) -> None:
    """A cancel that waits for the division ends with any other proof as well."""
    bench = OwnerBench()
    token = bundle(bench)
    cancel(bench, 20, 2, 4)
    lose(bench, token, how)
    assert (states(bench), queue(bench)) == ("qeqeq", [1, 3, 5])
    ends = [bench.owner.tasks[task_id(one)].ended for one in (2, 4)]
    assert [one.end for one in ends if one] == [m.End.CANCELLED] * 2


# --- cancel: R-bundle-3 ---------------------------------------------------------------------------


def divide(token: Token) -> Send:
    return Send(PEER, m.Recall(token, False))


def test_a_cancel_of_one_divides_and_the_others_go_on() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    assert cancel(bench, 20, 4) == [divide(token)]
    effects = said(bench, 30, divided(token, 1))
    assert effects == [results(1), ended(4, m.End.CANCELLED, "cancelled", node=b"", attempts=0)]
    assert (states(bench), queue(bench)) == ("egqeq", [3, 5])
    assert said(bench, 90, outcome(token, 2, before=early(1))) == [done(2), ack(token)]


def test_a_cancel_of_the_one_that_runs_stops_it_once_it_is_alone() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    cancel(bench, 20, 2)
    assert said(bench, 30, divided(token, 1)) == [results(1), stop(token)]
    stopped = stopped_at(token, 2, 1)
    assert said(bench, 40, stopped) == [ended(2, m.End.CANCELLED, "cancelled"), ack(token)]
    assert (states(bench), queue(bench)) == ("eeqqq", [3, 4, 5])


def test_a_cancel_of_one_that_is_done_finds_nothing_to_do() -> None:
    """Work that was done first is done."""
    bench = OwnerBench()
    token = bundle(bench)
    cancel(bench, 20, 1)
    assert said(bench, 30, divided(token, 1, 2)) == [results(1, 2)]
    assert states(bench) == "eegqq"
    # And so it is with the last one.
    cancel(bench, 40, 3)
    assert said(bench, 50, outcome(token, 3, before=early(1, 2))) == [done(3), ack(token)]


def test_a_cancel_of_one_in_a_bundle_that_waits_brings_all_back() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 15, renew(1000, (token, WAITING)))
    assert cancel(bench, 20, 1) == [divide(token)]
    effects = said(bench, 30, refused(token))
    assert effects == [ended(1, m.End.CANCELLED, "cancelled")]
    assert (states(bench), queue(bench)) == ("eqqqq", [2, 3, 4, 5])


def test_the_wish_is_repeated_until_it_is_heard_and_never_a_stop() -> None:
    """R-bundle-3: without `stop`, every R, as long as anybody else is wanted."""
    bench = OwnerBench()
    token = bundle(bench)
    said(bench, 15, renew(1000, (token, RUNNING)))
    assert cancel(bench, 20, 2) == [divide(token)]
    assert cancel(bench, 30, 3) == []
    assert bench.tick(20 + RENEW_MS) == [divide(token)]
    assert bench.tick(20 + 2 * RENEW_MS) == [divide(token)]
    said(bench, 30 + 2 * RENEW_MS, divided(token))
    assert (states(bench), queue(bench)) == ("geeqq", [4, 5])
    assert of_kind(bench.tick(20 + 4 * RENEW_MS), m.Recall) == []


def test_when_all_are_to_end_the_bundle_is_stopped() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    assert cancel(bench, 20, *FIVE) == [divide(token), stop(token)]
    stopped = stopped_at(token, 2, 1)
    said(bench, 30, stopped)
    ends = [bench.owner.tasks[task_id(one)].ended for one in FIVE]
    assert [one.end.name for one in ends if one] == ["DONE"] + ["CANCELLED"] * 4
    is_empty(bench)


def test_a_deadline_is_that_of_one_task() -> None:
    bench = OwnerBench()
    measured(bench)
    bench.owner.granting.table.clear()
    bench.submit(1, 2, now_ms=10)
    bench.submit(3, now_ms=10, deadline_ms=1_000)
    bench.allow(PEER=1)
    [granted] = of_kind(bench.turn(10), m.Grant)
    assert len(granted.more) == 2
    assert bench.tick(1_020)[0] == divide(granted.token)
    forbid(bench)
    effects = said(bench, 1_030, divided(granted.token))
    assert effects == [ended(3, m.End.EXPIRED, "deadline", node=b"", attempts=0)]
    assert states(bench, 1, 2, 3) == "gqe"


def test_the_end_of_the_session_ends_them_all() -> None:
    bench = OwnerBench()
    bench.owner.pins.pin(CODE.digest)
    token = bundle(bench, code=CODE)
    bench.owner.pins.unpin(CODE.digest)
    bench.owner.sessions.open(CLIENT, m.Open(SESSION, 1_000), 20)
    assert stop(token) in bench.tick(3_100)
    # What was divided meanwhile needs no listener either.
    said(bench, 3_110, divided(token, 1, 2))
    assert states(bench) == "--g--"
    stopped = stopped_at(token, 3)
    said(bench, 3_120, stopped)
    is_empty(bench)


# --- pure tasks on a silent node: R-demand-4 ------------------------------------------------------


def abandoned(bench: OwnerBench) -> tuple[Token, Token]:
    """A bundle of pure tasks on PEER, which fell silent, and a second attempt of them on OTHER."""
    first = bundle(bench, spec=spec(pure=True))
    said(bench, 20, renew(1000, (first, RUNNING)))
    bench.owner.on_suspect(PEER, 1_000)
    bench.owner.check()
    assert queue(bench) == list(FIVE)
    bench.owner.class_of(spec(pure=True)).use(OTHER).learn(MEAN_US)
    bench.beat(OTHER, 1_000)
    bench.allow(OTHER=1)
    [granted, *_] = of_kind(bench.turn(1_000), m.Grant)
    return first, granted.token


def test_pure_tasks_of_a_silent_node_run_again_one_by_one() -> None:
    """They are queued beside the live bundle, and what has a live attempt goes alone."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    abandoned(bench)
    assert [len(one.tasks()) for one in bench.owner.attempts.values()] == [5, 1, 1, 1, 1, 1][
        : len(bench.owner.attempts)
    ]
    assert len(bench.owner.attempts) >= 2
    bench.owner.check()


def test_the_silent_bundle_speaks_first_and_all_are_done() -> None:
    bench = OwnerBench(nodes=(PEER, OTHER))
    first, second = abandoned(bench)
    forbid(bench)
    effects = said(bench, 1_100, outcome(first, 5, before=early(1, 2, 3, 4)))
    assert states(bench) == "eeeee"
    assert stop(second, OTHER) in effects
    for token in list(bench.owner.attempts):
        said(bench, 1_200, refused(token), OTHER)
    is_empty(bench)


def test_what_ended_elsewhere_does_not_run_on_in_the_bundle() -> None:
    """R-demand-4: the other attempt is stopped; of a bundle, once it is divided."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    first, second = abandoned(bench)
    forbid(bench)
    effects = said(bench, 1_100, outcome(second, 1), OTHER)
    assert divide(first) in effects
    assert stop(first) not in effects
    # Lost on its way: said again.
    assert divide(first) in bench.tick(1_100 + RENEW_MS)
    assert stop(first) in said(bench, 2_200, divided(first))
    stopped = stopped_at(first, 1)
    said(bench, 2_300, stopped)
    assert first not in bench.owner.attempts
    assert states(bench, 1) == "e"


def test_a_bundle_whose_tasks_all_ended_elsewhere_is_stopped_at_once() -> None:
    bench = OwnerBench(nodes=(PEER, OTHER))
    first, _ = abandoned(bench)
    effects: list[Effect] = []
    now_ms = 1_100
    while "g" in states(bench) or "q" in states(bench):
        [token] = [one for one in bench.owner.attempts if one != first][:1]
        task = bench.owner.attempts[token].task
        bench.beat(OTHER, now_ms)
        effects = said(bench, now_ms, outcome(token, number(task.id)), OTHER)
        now_ms += 10
    assert stop(first) in effects
    said(bench, now_ms, refused(first))
    is_empty(bench)


def test_what_never_began_in_the_silent_bundle_goes_on_in_the_second_attempt() -> None:
    bench = OwnerBench(nodes=(PEER, OTHER))
    first, second = abandoned(bench)
    forbid(bench)
    said(bench, 1_100, divided(first))
    task = bench.owner.tasks[task_id(1)]
    assert [one.token for one in task.attempts] == [first, second]
    assert states(bench, 2) in "gq"
    said(bench, 1_200, outcome(first, 1))
    assert states(bench, 1) == "e"
    assert ME not in bench.owner.on_node or not bench.owner.on_node[ME]
