"""Words for tests of the owner: what it sends, what workers say, where a task is."""

from __future__ import annotations

from typing import Any

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.router.effects import (
    AttemptRow,
    Effect,
    Send,
    Tell,
)
from blackroad.router.records import TaskState
from tests.unit.builders import (
    CLIENT,
    INC,
    NO_FACTS,
    PEER,
    OwnerBench,
    of_kind,
    renew,
    spec,
    task_id,
)

NEWER, OLDER = incarnation(8, 1), incarnation(6, 1)
WAITING, HELD, RUNNING = m.AttemptState.WAITING, m.AttemptState.HELD, m.AttemptState.RUNNING
BOUND_MS = 24_000
OWN = Token(INC, 1)
GANG = spec(gang=2)


def grant_of(token: Token, number: int = 1, **changes: Any) -> Send:
    """The Grant that PEER gets for task `number`."""
    to = changes.pop("to", PEER)
    fields: dict[str, Any] = {
        "token": token,
        "task": task_id(number),
        "cls": 1,
        "spec": spec(),
        "echo_ms": 500,
        "inc": INC,
        "lease_ms": 20_000,
        "flags": 0,
        "code": None,
        "work": b"work",
        "attempt": 1,
        "share": 4,
    }
    return Send(to, m.Grant(**{**fields, **changes}))


def accepted(*numbers: int) -> Tell:
    return Tell(CLIENT, m.Accepted(tuple(task_id(number) for number in numbers)))


def taken(*numbers: int) -> Tell:
    """Attached tasks are accepted in company."""
    return Tell(CLIENT, m.Accepted(tuple(task_id(number) for number in numbers)), lazy=True)


def ended(number: int, end: m.End, reason: str = "", **changes: Any) -> Tell:
    fields = {"result": b"", "facts": NO_FACTS, "node": PEER, "attempts": 1, **changes}
    return Tell(CLIENT, m.Ended(task_id(number), end, reason, **fields))


def done(number: int = 1, **changes: Any) -> Tell:
    fields = {"result": b"42", "facts": m.Facts(run_us=5000), **changes}
    return ended(number, m.End.DONE, **fields)


def ack(*tokens: Token, to: bytes = PEER) -> Send:
    return Send(to, m.OutcomeAck(tokens))


def stop(token: Token, to: bytes = PEER) -> Send:
    return Send(to, m.Recall(token, True))


def rejected(effects: list[Effect]) -> list[tuple[str, int]]:
    return [(one.reason, len(one.tasks)) for one in of_kind(effects, m.Rejected)]


def says(bench: OwnerBench, now_ms: int, what: m.Message, node: bytes = PEER) -> list[Effect]:
    """A worker says something; the turn ends; the books are checked."""
    match what:
        case m.Outcome():
            bench.owner.on_outcome(node, what, now_ms)
        case m.Refused():
            bench.owner.on_refused(node, what, now_ms)
        case m.Renew():
            bench.owner.on_renew(node, what, now_ms)
    bench.owner.check()
    return bench.turn(now_ms)


def state(bench: OwnerBench, number: int = 1) -> TaskState:
    return bench.owner.tasks[task_id(number)].state


def forbid(bench: OwnerBench) -> None:
    """No more grants: what is queued stays queued."""
    bench.owner.granting.table.clear()


def running(bench: OwnerBench, token: Token, now_ms: int = 100) -> None:
    """Let PEER list the attempt as running, and grant nothing more."""
    forbid(bench)
    says(bench, now_ms, renew(1000, (token, RUNNING)))


def durable(bench: OwnerBench, now_ms: int = 0, **changes: Any) -> Token:
    """A durable task whose Grant has left."""
    bench.allow(PEER=4)
    bench.submit(1, durable=True, now_ms=now_ms, **changes)
    [granted] = of_kind(bench.flush(now_ms), m.Grant)
    return granted.token


def row_of(token: Token, **changes: Any) -> AttemptRow:
    fields: dict[str, Any] = {
        "members": ((PEER, INC),),
        "isolated": False,
        "go": False,
        "tries": 1,
        "crashes": 0,
        "losses": 0,
        "killers": 0,
        "lease_ms": 20_000,
    }
    return AttemptRow(task_id(1), token, **{**fields, **changes})


def refused(token: Token, reason: m.Reason = m.Reason.RECALLED, inc: int = INC) -> m.Refused:
    return m.Refused(token, inc, 2000, reason)


def killed_twice(bench: OwnerBench, **changes: Any) -> int:
    """Two nodes go down under task 1; return the incarnation of PEER that is up then."""
    bench.granted(**changes)
    for counter in (8, 9):
        inc = incarnation(counter, 1)
        bench.meet(PEER, 100 * counter, inc)
        bench.owner.on_incarnation(PEER, inc, 100 * counter)
        if bench.mark:
            bench.turn(100 * counter)
            bench.flush(100 * counter)
        else:
            bench.turn(100 * counter)
    return incarnation(9, 1)
