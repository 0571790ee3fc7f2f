"""Pure: what tasks, their submitter and the nemesis wrote down, and what follows from it.

A history is a file of JSON objects, one a line, each appended by one write.  Tasks write for
themselves, so that the judge believes no daemon; all times are `boot_ms`, the boot-time clock of
the one machine on which everything runs.

    {"what": "start", "task", "attempt", "token", "node", "pid", "boot_ms", "alone"}
    {"what": "beat" | "stop", the same without "alone", "result" (stop only)}
    {"what": "submitted", "task", "durable", "pure", "once", "boot_ms"}
    {"what": "accepted" | "rejected", "task", "boot_ms"}
    {"what": "ended", "task", "end", "result", "boot_ms"}
    {"what": "fault" | "heal", "name", "node", "frozen", "boot_ms"}

A token is "incarnation/serial".  `alone` is false where the task's lock, which the kernel takes
from a process that dies, was still held by another process.  `frozen` marks a fault that stops
task processes without ending them.  What is not said is: durable, not pure, not once, alone, not
frozen.

An attempt without a stop was killed, nobody knows when.  Two things bound that moment: it lived at
its last sign (a beat comes every 50 ms), and it held its lock until it died.  So an overlap is
proven by signs of one attempt between those of another, or by a start that was not alone; and an
attempt that was killed stops counting with its last sign.

This file must not know files, clocks, daemons or how anything is shown.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

BEAT_MS: Final = 50
# After a thaw the supervisor has this long to kill what should be over (K of the protocol).
KILL_GUARD_MS: Final = 1_000
# A fault this long after the last sign may be the one that silenced an attempt.
SILENCE_MS: Final = 4 * BEAT_MS
EVERYWHERE: Final = "*"
ENDS: Final = ("done", "failed", "cancelled", "expired", "quarantined", "unknown")
# How an attached task may end beside: with the life of its owner, or of its session.
OWNER_LOST: Final = "owner lost"


# --- what was written -----------------------------------------------------------------------------


@dataclass(slots=True)
class Attempt:
    """One attempt, as it told of itself."""

    task: str
    number: int
    token: tuple[int, int]
    node: str
    pid: int
    alone: bool = True
    starts: int = 0
    start_ms: int = 0
    stop_ms: int | None = None
    result: str | None = None
    signs_ms: list[int] = field(default_factory=list)

    def name(self) -> str:
        """Tell which one it is."""
        inc, serial = self.token
        return f"attempt {self.number} ({inc}/{serial}) on {self.node}"


@dataclass(slots=True)
class Task:
    """One task: what its submitter was told, and its attempts in the order of their starts."""

    name: str
    durable: bool = True
    pure: bool = False
    once: bool = False
    submitted_ms: int | None = None
    accepted_ms: int | None = None
    rejected: bool = False
    ended: list[tuple[int, str, str | None]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)


class Fault(NamedTuple):
    """Something done to a node, or its end."""

    boot_ms: int
    name: str
    node: str
    frozen: bool


@dataclass(slots=True)
class History:
    """All that was written; `damaged` counts lines that cannot be read."""

    tasks: dict[str, Task] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    heals: list[Fault] = field(default_factory=list)
    damaged: int = 0


class _Malformed(Exception):
    """A line that is no event."""


def parse(data: bytes) -> History:
    """Read a history; a torn line, as a killed writer leaves it, is counted and passed over."""
    found = History()
    events: list[dict[str, Any]] = []
    for line in data.split(b"\n"):
        if line.strip():
            events += _events(line, found)
    attempts: dict[tuple[str, str], Attempt] = {}
    for event in sorted(events, key=lambda event: int(event["boot_ms"])):
        try:
            _take(found, attempts, event)
        except _Malformed:
            found.damaged += 1
    for task in found.tasks.values():
        task.attempts.sort(key=lambda one: one.start_ms)
    return found


def _events(line: bytes, found: History) -> Iterator[dict[str, Any]]:
    """Read one line; a whole event behind a torn one is read all the same."""
    at = 0
    while at >= 0:
        event = _object(line[at:])
        if event is not None:
            yield event
            return
        if not at:
            found.damaged += 1
        at = line.find(b"{", at + 1)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or type(event.get("boot_ms")) is not int:
        return None
    return event


def _take(found: History, attempts: dict[tuple[str, str], Attempt], event: dict[str, Any]) -> None:
    what, boot_ms = event.get("what"), int(event["boot_ms"])
    if what in ("fault", "heal"):
        fault = Fault(
            boot_ms, _text(event, "name"), _text(event, "node"), bool(event.get("frozen"))
        )
        (found.faults if what == "fault" else found.heals).append(fault)
        return
    name = _text(event, "task")
    if what in ("start", "beat", "stop"):
        _take_sign(found, attempts, name, event)
        return
    task = found.tasks.setdefault(name, Task(name))
    if what == "submitted":
        task.durable = bool(event.get("durable", True))
        task.pure = bool(event.get("pure", False))
        task.once = bool(event.get("once", False))
        task.submitted_ms = boot_ms if task.submitted_ms is None else task.submitted_ms
    elif what == "accepted":
        task.accepted_ms = boot_ms if task.accepted_ms is None else task.accepted_ms
    elif what == "rejected":
        task.rejected = True
    elif what == "ended":
        result = event.get("result")
        task.ended.append((boot_ms, _text(event, "end"), None if result is None else str(result)))
    else:
        raise _Malformed


def _take_sign(
    found: History, attempts: dict[tuple[str, str], Attempt], name: str, event: dict[str, Any]
) -> None:
    token = _text(event, "token")
    boot_ms = int(event["boot_ms"])
    inc, _, serial = token.partition("/")
    if not (inc.isdecimal() and serial.isdecimal()):
        raise _Malformed
    number, pid = event.get("attempt", 0), event.get("pid", 0)
    if type(number) is not int or type(pid) is not int:
        raise _Malformed
    attempt = attempts.get((name, token))
    if attempt is None:
        node = _text(event, "node")
        attempt = Attempt(name, number, (int(inc), int(serial)), node, pid, start_ms=boot_ms)
        attempts[name, token] = attempt
        found.tasks.setdefault(name, Task(name)).attempts.append(attempt)
    attempt.signs_ms.append(boot_ms)
    if event["what"] == "start":
        attempt.starts += 1
        attempt.alone = attempt.alone and event.get("alone", True) is True
    elif event["what"] == "stop":
        attempt.stop_ms = boot_ms
        if event.get("result") is not None:
            attempt.result = str(event["result"])


def _text(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    if not isinstance(value, str) or not value:
        raise _Malformed
    return value


# --- the verdict ----------------------------------------------------------------------------------


class Finding(NamedTuple):
    """One broken promise: which task, and what its history shows."""

    task: str
    text: str


@dataclass(slots=True)
class Verdict:
    """What a history proves; times in milliseconds, None where nothing was measured.

    `lost` were accepted and have no end, `open` too, but nobody waited for it; `doubled` have two
    outcomes, a result nobody made, or ran again though they must not; `overlapping` ran twice at
    once, or after their end; `disordered` started under a token that does not grow.
    """

    tasks: int = 0
    accepted: int = 0
    rejected: int = 0
    open: int = 0
    starts: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    lost: list[Finding] = field(default_factory=list)
    doubled: list[Finding] = field(default_factory=list)
    overlapping: list[Finding] = field(default_factory=list)
    disordered: list[Finding] = field(default_factory=list)
    thawed: int = 0
    reruns: int = 0
    rerun_share: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    recoveries_ms: dict[str, list[int]] = field(default_factory=dict)
    damaged: int = 0

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """Every broken promise with the name of its kind."""
        kinds = ("lost", "doubled", "overlapping", "disordered")
        return [(kind, found) for kind in kinds for found in getattr(self, kind)]

    @property
    def holds(self) -> bool:
        """Whether no promise was broken."""
        return not self.findings

    def recovery_ms(self, percent: int, fault: str = "") -> int | None:
        """A percentile of the times from a fault, or any, to the next start of what it ended."""
        if fault:
            return percentile(self.recoveries_ms.get(fault, ()), percent)
        return percentile([one for each in self.recoveries_ms.values() for one in each], percent)

    def as_data(self) -> dict[str, Any]:
        """The figures for programs; findings in words, 100 of each kind at most."""
        told = {
            kind: [f"{one.task}: {one.text}" for one in getattr(self, kind)[:100]]
            for kind in ("lost", "doubled", "overlapping", "disordered")
        }
        return {
            "tasks": self.tasks,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "open": self.open,
            "starts": self.starts,
            "ends": self.ends,
            **{kind: len(getattr(self, kind)) for kind in told},
            "reruns": self.reruns,
            "rerun_share": round(self.rerun_share, 4),
            "recovered": sum(map(len, self.recoveries_ms.values())),
            "recovery_p50_ms": self.recovery_ms(50),
            "recovery_p99_ms": self.recovery_ms(99),
            "faults": {
                name: {
                    "times": times,
                    "recovered": len(self.recoveries_ms.get(name, ())),
                    "recovery_p50_ms": self.recovery_ms(50, name),
                    "recovery_p99_ms": self.recovery_ms(99, name),
                }
                for name, times in self.faults.items()
            },
            "thawed": self.thawed,
            "damaged_lines": self.damaged,
            "findings": {kind: lines for kind, lines in told.items() if lines},
        }


def percentile(values: Sequence[int], percent: int) -> int | None:
    """The smallest value that at least so many per cent do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def judge(history: History, deadline_ms: int | None = None, *, awaited: bool = True) -> Verdict:
    """Say which promises a history breaks; ends told after `deadline_ms` came too late.

    Without `awaited` an accepted task may still be under way, and is none that was lost.

    Cost  linear in signs; quadratic in the attempts of one task.
    """
    found = Verdict(tasks=len(history.tasks), damaged=history.damaged)
    frozen = _Frozen(history)
    for task in history.tasks.values():
        _judge_ends(task, deadline_ms, awaited, found)
        signs = {}
        for attempt in task.attempts:
            signs[attempt.token], excused = frozen.counted(attempt)
            found.thawed += excused
        _judge_starts(task, found)
        if not task.pure:
            found.overlapping += _overlaps(task, signs, frozen)
            found.overlapping += _late(task, signs)
        found.starts += sum(max(1, one.starts) for one in task.attempts)
        found.reruns += max(0, sum(max(1, one.starts) for one in task.attempts) - 1)
    found.rerun_share = found.reruns / found.tasks if found.tasks else 0.0
    found.faults = dict(sorted(Counter(fault.name for fault in history.faults).items()))
    for name, recovery_ms in _recoveries(history):
        found.recoveries_ms.setdefault(name, []).append(recovery_ms)
    return found


def _judge_ends(task: Task, deadline_ms: int | None, awaited: bool, found: Verdict) -> None:
    told = [
        (end, result)
        for boot_ms, end, result in task.ended
        if deadline_ms is None or boot_ms <= deadline_ms
    ]
    known = ENDS if task.durable else (*ENDS, OWNER_LOST)
    if told:
        found.ends[told[0][0]] = found.ends.get(told[0][0], 0) + 1
    found.rejected += task.rejected and task.accepted_ms is None
    if task.accepted_ms is not None:
        found.accepted += 1
        if not told and not awaited:
            found.open += 1
        elif not told:
            found.lost.append(Finding(task.name, "it was accepted and has no end"))
    for end in dict.fromkeys(end for end, _ in told if end not in known):
        found.lost.append(Finding(task.name, f"its end was told as {end!r}"))
    if len(set(told)) > 1:
        words = " and ".join(sorted({_outcome(end, result) for end, result in told}))
        found.doubled.append(Finding(task.name, f"it ended as {words}"))
    made = {one.result for one in task.attempts if one.result is not None}
    for end, result in dict.fromkeys(told):
        if end == "done" and result is not None and made and result not in made:
            found.doubled.append(Finding(task.name, f"no attempt made its result {result[:40]}"))


def _outcome(end: str, result: str | None) -> str:
    return end if result is None else f"{end} with {result[:40]}"


def _judge_starts(task: Task, found: Verdict) -> None:
    for attempt in task.attempts:
        if attempt.starts > 1:
            text = f"{attempt.name()} started {attempt.starts} times"
            found.doubled.append(Finding(task.name, text))
    if task.once and len(task.attempts) > 1:
        text = "it must run once, and had " + ", ".join(one.name() for one in task.attempts)
        found.doubled.append(Finding(task.name, text))
    if task.pure:
        # Two at a time are allowed, and a network may turn their order round.
        return
    for before, after in zip(task.attempts, task.attempts[1:], strict=False):
        if after.token <= before.token:
            text = f"{after.name()} started after {before.name()}"
            found.disordered.append(Finding(task.name, text))


class _Frozen:
    """When the task processes of a node stood still."""

    def __init__(self, history: History) -> None:
        self._spans: dict[str, list[tuple[int, int | None]]] = {}
        heals = [heal for heal in history.heals if heal.frozen]
        for fault in history.faults:
            if fault.frozen:
                ends = (
                    heal.boot_ms
                    for heal in heals
                    if (heal.name, heal.node) == (fault.name, fault.node)
                    and heal.boot_ms >= fault.boot_ms
                )
                span = (fault.boot_ms, min(ends, default=None))
                self._spans.setdefault(fault.node, []).append(span)

    def spans(self, node: str) -> list[tuple[int, int | None]]:
        """From when to when a node's processes stood still; None: for good."""
        if not self._spans:
            return []
        return self._spans.get(node, []) + self._spans.get(EVERYWHERE, [])

    def at(self, node: str, boot_ms: int) -> bool:
        """Whether a node's processes stood still at this time."""
        return any(
            start <= boot_ms + BEAT_MS and (end is None or boot_ms <= end + KILL_GUARD_MS)
            for start, end in self.spans(node)
        )

    def counted(self, attempt: Attempt) -> tuple[list[list[int]], int]:
        """The runs of signs that count, and how many signs are excused.

        While a machine stands still nothing runs on it.  When it goes on, an attempt whose lease
        has ended may give a few signs before its supervisor has killed it; if it was not killed
        within the guard, they count.
        """
        signs = attempt.signs_ms
        runs, excused, begin = [], 0, 0
        for start, end in sorted(self.spans(attempt.node), key=lambda span: span[0]):
            if end is None or start > signs[-1] or end < signs[begin]:
                continue
            cut = max(begin, bisect_left(signs, end))
            if signs[-1] <= end + KILL_GUARD_MS and attempt.stop_ms is None and cut:
                excused += len(signs) - cut
                signs = signs[:cut]
                break
            if begin < cut:
                runs.append(signs[begin:cut])
            begin = cut
        if begin < len(signs):
            runs.append(signs[begin:])
        return runs, excused


def _overlaps(
    task: Task, signs: dict[tuple[int, int], list[list[int]]], frozen: _Frozen
) -> Iterator[Finding]:
    for number, after in enumerate(task.attempts):
        proven = False
        for before in task.attempts[:number]:
            if any(
                one[0] < other[-1] and other[0] < one[-1]
                for one in signs[before.token]
                for other in signs[after.token]
            ):
                last_ms = signs[before.token][-1][-1]
                text = (
                    f"{after.name()} started at {after.start_ms} ms, {before.name()} "
                    f"ran until {last_ms} ms or longer"
                )
                yield Finding(task.name, text)
                proven = True
        if not after.alone and not proven and not _excused(task, number, frozen):
            text = f"{after.name()} started while a process of an earlier one was alive"
            yield Finding(task.name, text)


def _excused(task: Task, number: int, frozen: _Frozen) -> bool:
    """Whether an earlier attempt may have held the lock without running."""
    start_ms = task.attempts[number].start_ms
    return any(
        before.stop_ms is None and frozen.at(before.node, start_ms)
        for before in task.attempts[:number]
    )


def _late(task: Task, signs: dict[tuple[int, int], list[list[int]]]) -> Iterator[Finding]:
    ends_ms = [boot_ms for boot_ms, end, _ in task.ended if end in ENDS]
    if not ends_ms:
        return
    for attempt in task.attempts:
        runs = signs[attempt.token]
        last_ms = runs[-1][-1] if runs else attempt.start_ms
        if runs and last_ms > ends_ms[0]:
            text = f"{attempt.name()} ran at {last_ms} ms, its end was told at {ends_ms[0]} ms"
            yield Finding(task.name, text)


# --- recovery -------------------------------------------------------------------------------------


def _recoveries(history: History) -> Iterator[tuple[str, int]]:
    """Times from the fault that ended an attempt to the next start of its task, with its name."""
    by_node: dict[str, list[Fault]] = {}
    for fault in sorted(history.faults):
        by_node.setdefault(fault.node, []).append(fault)
    for task in history.tasks.values():
        for before, after in zip(task.attempts, task.attempts[1:], strict=False):
            if before.stop_ms is not None:
                continue
            until_ms = min(before.signs_ms[-1] + SILENCE_MS, after.start_ms)
            from_ms = before.start_ms - SILENCE_MS
            near = (by_node.get(before.node, ()), by_node.get(EVERYWHERE, ()))
            hit = _last_between(near, from_ms, until_ms)
            if hit is not None:
                yield hit.name, after.start_ms - hit.boot_ms


def _last_between(faults: Iterable[Sequence[Fault]], from_ms: int, until_ms: int) -> Fault | None:
    found = []
    for each in faults:
        at = bisect_right(each, until_ms, key=lambda fault: fault.boot_ms)
        if at and each[at - 1].boot_ms >= from_ms:
            found.append(each[at - 1])
    return max(found, default=None)
