"""Switches that each break one rule of docs/protocol.md, to test the simulator itself.

They patch the core from outside; the product contains none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from blackroad.bus import messages as m
from blackroad.limits import KILL_GUARD_MS
from blackroad.router import attempts, worker
from blackroad.router.attempts import Attempts
from blackroad.router.effects import Outbox
from blackroad.router.owner import Owner
from blackroad.router.records import Cause, MemberState, TaskState
from blackroad.router.worker import Worker
from tests.sim.cluster import Cluster
from tests.sim.machine import Machine

Patch = tuple[Any, str, Any]


def _early(*names: str) -> list[Patch]:
    """Do not wait for the flush before these."""
    original = Outbox.when_flushed

    def when_flushed(self: Outbox, then: Any, what: Any, now_ms: int) -> None:
        if then.__name__ in names:
            then(what, now_ms)
        else:
            original(self, then, what, now_ms)

    return [(Outbox, "when_flushed", when_flushed)]


def _bound_shorter() -> list[Patch]:
    return [(attempts, "bound_ms", lambda lease_ms: lease_ms // 2)]


def _lease_from_receipt() -> list[Patch]:
    original = Worker._admit

    def admit(self: Worker, work: Any, now_ms: int) -> None:
        work.deadline_ms = now_ms + work.grant.lease_ms - KILL_GUARD_MS
        original(self, work, now_ms)

    judge = Worker._judge

    def judged(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        return judge(self, owner, replace(grant, echo_ms=min(grant.echo_ms, now_ms)), now_ms)

    def not_late(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        if grant.echo_ms <= now_ms:
            grant = replace(grant, echo_ms=now_ms)
        return judged(self, owner, grant, now_ms)

    return [(Worker, "_admit", admit), (Worker, "_judge", not_late)]


def _no_self_kill() -> list[Patch]:
    original = Worker._kill

    def kill(self: Worker, work: Any, why: str, now_ms: int) -> None:
        if why == "lapsed":
            work.deadline_ms = 2**62
        else:
            original(self, work, why, now_ms)

    return [(Worker, "_kill", kill), (Machine, "_supervise", lambda *_: None)]


def _no_supervisor() -> list[Patch]:
    return [(Machine, "_supervise", lambda *_: None)]


def _token_not_remembered() -> list[Patch]:
    return [(Worker, "_bury", lambda *_: None)]


def _no_floor() -> list[Patch]:
    def forget(self: Worker, key: Any) -> None:
        del self.tombstones[key]

    return [(Worker, "_forget", forget), (worker, "TOMBSTONE_LEASES", 0)]


def _recall_without_tombstone() -> list[Patch]:
    original = Worker.on_recall

    def on_recall(self: Worker, owner: bytes, recall: m.Recall, now_ms: int) -> None:
        key = (owner, recall.token)
        known = key in self.works or key in self.spool or key in self.tombstones
        original(self, owner, recall, now_ms)
        if not known:
            del self.tombstones[key]

    return [(Worker, "on_recall", on_recall)]


def _any_done_accepted() -> list[Patch]:
    def welcomes(self: Owner, outcome: m.Outcome) -> Any:
        task = self.tasks.get(outcome.task)
        done = outcome.status is m.Status.DONE
        return task if task is not None and done and task.state != TaskState.ENDED else None

    return [(Owner, "welcomes", welcomes)]


def _absence_is_proof() -> list[Patch]:
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        original(self, node, renew, now_ms)
        listed = {one.token for one in renew.attempts}
        for token, member in list(self.on_node.get(node, {}).items()):
            quiet = member.state is not MemberState.WRITING and token not in listed
            if quiet and member.inc == renew.inc:
                self._over(member, Cause.NOTHING, "absent", None, True, now_ms)

    return [(Attempts, "on_renew", on_renew)]


def _silence_is_proof() -> list[Patch]:
    def on_suspect(self: Attempts, node: bytes, now_ms: int) -> None:
        for member in list(self.on_node.get(node, {}).values()):
            if member.state is not MemberState.WRITING:
                self._over(member, Cause.NOTHING, "silent", None, True, now_ms)

    return [(Attempts, "on_suspect", on_suspect)]


def _incarnation_not_checked() -> list[Patch]:
    original = Worker.on_grant

    def on_grant(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> None:
        original(self, owner, replace(grant, inc=self.inc), now_ms)

    return [(Worker, "on_grant", on_grant)]


def _bound_not_moved() -> list[Patch]:
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        bounds = {t: one.bound_ms for t, one in self.on_node.get(node, {}).items()}
        original(self, node, renew, now_ms)
        for token, member in self.on_node.get(node, {}).items():
            member.bound_ms = bounds.get(token, member.bound_ms)

    return [(Attempts, "on_renew", on_renew)]


def _leftovers_alive() -> list[Patch]:
    return [(Cluster, "kill_leftovers", False)]


def _journal_issued_again() -> list[Patch]:
    original = Owner.restore

    def restore(self: Owner, rows: Any, tries: Any, ends: Any, now_ms: int) -> None:
        original(self, rows, (), ends, now_ms)

    return [(Owner, "restore", restore)]


def _ledger_ignored() -> list[Patch]:
    original = Worker._new_ledger

    def new_ledger(self: Worker, caps: Any) -> Any:
        self.slots, slots = 2 * self.slots, self.slots
        ledger = original(self, caps)
        self.slots = slots
        return ledger

    return [(Worker, "_new_ledger", new_ledger)]


def _gang_before_all_held() -> list[Patch]:
    original = Attempts._listed

    def listed(self: Attempts, member: Any, state: MemberState, now_ms: int) -> None:
        original(self, member, state, now_ms)
        attempt = member.attempt
        if state is MemberState.HELD and attempt.hold and not attempt.going:
            self._go(attempt, now_ms)

    return [(Attempts, "_listed", listed)]


def _gang_before_last_proof() -> list[Patch]:
    original = Attempts._over

    def over(self: Attempts, member: Any, cause: Any, *rest: Any) -> None:
        original(self, member, cause, *rest)
        attempt = member.attempt
        if cause is not None and attempt.live() and len(attempt.members) > 1:
            for one in attempt.members:
                if one.state not in (MemberState.ENDED, MemberState.COLLECTING):
                    original(self, one, Cause.NOTHING, "gang", None, True, rest[-1])

    return [(Attempts, "_over", over)]


def _cancel_before_proof() -> list[Patch]:
    def stop(self: Owner, task: Any, end: m.End, reason: str, now_ms: int) -> None:
        if task.state is not TaskState.ENDED:
            self._finish(task, end, reason, b"", m.Facts(), b"", now_ms)

    return [(Owner, "stop", stop)]


def _sessions_ignored() -> list[Patch]:
    return [(Owner, "end_session", lambda *_: None)]


def _future_stamps() -> list[Patch]:
    judge = Worker._judge

    def judged(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        return judge(self, owner, replace(grant, echo_ms=min(grant.echo_ms, now_ms)), now_ms)

    on_grant = _incarnation_not_checked()[0][2]
    return [(Worker, "_judge", judged), (Worker, "on_grant", on_grant)]


def _spool_early() -> list[Patch]:
    return _early("_report", "_owe_ack")


def _surplus_kept() -> list[Patch]:
    from blackroad.router.granting import Granting

    keep = lambda *_: None  # noqa: E731
    return [(Granting, "_recall_surplus", keep), (Granting, "_recall_shrunk", keep)]


# Broken safety: some invariant must notice.
SAFETY: dict[str, Callable[[], list[Patch]]] = {
    "bound_shorter": _bound_shorter,
    "lease_from_receipt": _lease_from_receipt,
    "no_self_kill": _no_self_kill,
    "no_supervisor": _no_supervisor,
    "token_not_remembered": _token_not_remembered,
    "no_floor": _no_floor,
    "recall_without_tombstone": _recall_without_tombstone,
    "any_done_accepted": _any_done_accepted,
    "accepted_before_flush": lambda: _early("_tell_accepted"),
    "ended_before_flush": lambda: _early("_tell"),
    "grant_before_flush": lambda: _early("_written"),
    "absence_is_proof": _absence_is_proof,
    "silence_is_proof": _silence_is_proof,
    "incarnation_not_checked": _incarnation_not_checked,
    "future_stamps": _future_stamps,
    "bound_not_moved": _bound_not_moved,
    "leftovers_alive": _leftovers_alive,
    "journal_issued_again": _journal_issued_again,
    "ledger_ignored": _ledger_ignored,
    "gang_before_all_held": _gang_before_all_held,
    "gang_before_last_proof": _gang_before_last_proof,
    "cancel_before_proof": _cancel_before_proof,
    "sessions_ignored": _sessions_ignored,
}
# Faults without which a mutant shows itself only after thousands of seeds.
FOCUS: dict[str, tuple[str, ...]] = {
    "lease_from_receipt": ("hold", "jitter"),
    "no_self_kill": ("cut", "one_way"),
    "no_supervisor": ("daemon_crash", "pause"),
    "token_not_remembered": ("double",),
    "no_floor": ("double", "hold"),
    "recall_without_tombstone": ("hold", "cancel"),
    "any_done_accepted": ("cut", "hold"),
    "absence_is_proof": ("jitter", "hold"),
    "incarnation_not_checked": ("hold", "daemon_crash", "double"),
    "future_stamps": ("hold", "power_cut", "double"),
    "bound_not_moved": ("jitter",),
    "leftovers_alive": ("daemon_crash",),
    "journal_issued_again": ("daemon_crash",),
    "sessions_ignored": ("client_death",),
}
# Nothing may notice: safety does not rest on these.
HARMLESS: dict[str, Callable[[], list[Patch]]] = {
    "spool_and_ack_before_flush": _spool_early,
    "surplus_not_recalled": _surplus_kept,
}
MUTANTS = SAFETY | HARMLESS


@contextmanager
def applied(name: str | None) -> Iterator[None]:
    """Break one rule for a while."""
    patches = MUTANTS[name]() if name is not None else []
    before = [(place, what, getattr(place, what)) for place, what, _ in patches]
    for place, what, value in patches:
        setattr(place, what, value)
    try:
        yield
    finally:
        for place, what, value in before:
            setattr(place, what, value)
