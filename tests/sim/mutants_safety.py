"""Mutants that break a promise: some invariant must notice each of them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from blackroad.bus import messages as m
from blackroad.limits import KILL_GUARD_MS
from blackroad.router import attempts, worker
from blackroad.router.attempts import Attempts
from blackroad.router.effects import Outbox
from blackroad.router.nodes_view import NodesView
from blackroad.router.owner import Owner
from blackroad.router.records import Cause, MemberState, TaskState
from blackroad.router.worker import Worker
from tests.sim.cluster import Cluster
from tests.sim.machine import Machine
from tests.sim.mutants import SAFETY, Patch, mutant


def early(*names: str) -> list[Patch]:
    """Do not wait for the flush before these."""
    original = Outbox.when_flushed

    def when_flushed(self: Outbox, then: Any, what: Any, now_ms: int) -> None:
        if then.__name__ in names:
            then(what, now_ms)
        else:
            original(self, then, what, now_ms)

    return [(Outbox, "when_flushed", when_flushed)]


# --- leases -------------------------------------------------------------------------------------


@mutant(SAFETY, "lease-4")
def bound_shorter() -> list[Patch]:
    """The owner's bound is shorter than the lease."""
    return [(attempts, "bound_ms", lambda lease_ms: lease_ms // 2)]


@mutant(SAFETY, "lease-7", focus=("hold", "jitter"), story="grant_on_its_way")
def lease_from_receipt() -> list[Patch]:
    """The lease counts from the receipt of the Grant."""
    admit, judge = Worker._admit, Worker._judge

    def admitted(self: Worker, work: Any, now_ms: int) -> None:
        work.deadline_ms = now_ms + work.grant.lease_ms - KILL_GUARD_MS
        admit(self, work, now_ms)

    def judged(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        if grant.echo_ms <= now_ms:
            grant = replace(grant, echo_ms=now_ms)
        return judge(self, owner, grant, now_ms)

    return [(Worker, "_admit", admitted), (Worker, "_judge", judged)]


@mutant(SAFETY, "lease-11", focus=("cut", "one_way"), story="cut_off")
def no_self_kill() -> list[Patch]:
    """Neither worker nor supervisor ends an attempt whose deadline passed."""
    original = Worker._kill

    def kill(self: Worker, work: Any, why: str, now_ms: int) -> None:
        if why == "lapsed":
            work.deadline_ms = 2**62
        else:
            original(self, work, why, now_ms)

    return [(Worker, "_kill", kill), (Machine, "_supervise", lambda *_: None)]


@mutant(SAFETY, "lease-11", focus=("daemon_crash", "pause"), story="daemon_stands_still")
def no_supervisor() -> list[Patch]:
    """Only the daemon watches deadlines."""
    return [(Machine, "_supervise", lambda *_: None)]


@mutant(SAFETY, "lease-4", focus=("jitter",))
def bound_not_moved_by_renewed() -> list[Patch]:
    """A Renewed extends the lease and leaves the bound where it was."""
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        bounds = {t: one.bound_ms for t, one in self.on_node.get(node, {}).items()}
        original(self, node, renew, now_ms)
        for token, member in self.on_node.get(node, {}).items():
            member.bound_ms = bounds.get(token, member.bound_ms)

    return [(Attempts, "on_renew", on_renew)]


@mutant(SAFETY, "lease-4", story="second_grant")
def bound_not_moved_by_grant() -> list[Patch]:
    """A repeated Grant leaves the bound where it was."""
    original = Attempts._send_grant

    def send_grant(self: Attempts, member: Any, now_ms: int) -> None:
        first = member.state is MemberState.WRITING
        bound = member.bound_ms
        original(self, member, now_ms)
        if not first:
            member.bound_ms = bound

    return [(Attempts, "_send_grant", send_grant)]


@mutant(SAFETY, "lease-7", focus=("hold", "daemon_crash", "double"))
def incarnation_of_grant_not_checked() -> list[Patch]:
    """A Grant to an earlier life starts in the present one."""
    original = Worker.on_grant

    def on_grant(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> None:
        original(self, owner, replace(grant, inc=self.inc), now_ms)

    return [(Worker, "on_grant", on_grant)]


@mutant(SAFETY, "lease-10", story="renewed_of_another_boot")
def incarnation_of_renewed_not_checked() -> list[Patch]:
    """A Renewed for an earlier life moves deadlines of the present one."""
    original = Worker.on_renewed

    def on_renewed(self: Worker, owner: bytes, renewed: m.Renewed, now_ms: int) -> None:
        original(self, owner, replace(renewed, inc=self.inc), now_ms)

    return [(Worker, "on_renewed", on_renewed)]


@mutant(SAFETY, "lease-10", focus=("jitter", "one_way"), story="renewed_of_another_boot")
def any_renewed_extends() -> list[Patch]:
    """A Renewed extends every attempt, whatever the Renew of its stamp listed."""

    def on_renewed(self: Worker, owner: bytes, renewed: m.Renewed, now_ms: int) -> None:
        correspondent = self.renewing.owners.get(owner)
        for work in list(correspondent.live.values()) if correspondent else []:
            deadline_ms = renewed.stamp_ms + work.grant.lease_ms - KILL_GUARD_MS
            if deadline_ms > work.deadline_ms:
                work.deadline_ms = deadline_ms
                if work.begun:
                    self._out.add(worker.Extend(work.key, deadline_ms))

    return [(Worker, "on_renewed", on_renewed)]


@mutant(SAFETY, "lease-7", focus=("hold", "power_cut", "double"))
def future_stamps_believed() -> list[Patch]:
    """A Grant of an earlier boot, whose echo lies in the future, is taken as fresh."""
    judge = Worker._judge

    def judged(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        return judge(self, owner, replace(grant, echo_ms=min(grant.echo_ms, now_ms)), now_ms)

    on_grant = incarnation_of_grant_not_checked()[0][2]
    return [(Worker, "_judge", judged), (Worker, "on_grant", on_grant)]


@mutant(SAFETY, "lease-4", focus=("power_cut", "cut"), story="smaller_stamps")
def stamp_kept_across_incarnations() -> list[Patch]:
    """The largest stamp ever heard of a node is echoed to its next life, and that believes it."""
    judge, on_stamp = Worker._judge, NodesView.on_stamp

    def kept(self: NodesView, node: bytes, inc: int, stamp_ms: int, now_ms: int) -> bool:
        before = self.get(node).stamp_ms
        newer = on_stamp(self, node, inc, stamp_ms, now_ms)
        view = self.get(node)
        view.stamp_ms = max(before, view.stamp_ms)
        return newer

    def judged(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> Any:
        return judge(self, owner, replace(grant, echo_ms=min(grant.echo_ms, now_ms)), now_ms)

    return [(NodesView, "on_stamp", kept), (Worker, "_judge", judged)]


# --- tokens -------------------------------------------------------------------------------------


@mutant(SAFETY, "lease-7", focus=("double",))
def token_not_remembered() -> list[Patch]:
    """A worker keeps no tombstones."""
    return [(Worker, "_bury", lambda *_: None)]


@mutant(SAFETY, "lease-9", focus=("double", "hold"))
def no_floor() -> list[Patch]:
    """Tokens are forgotten at once and leave no floor."""

    def forget(self: Worker, key: Any) -> None:
        del self.tombstones[key]

    return [(Worker, "_forget", forget), (worker, "TOMBSTONE_LEASES", 0)]


@mutant(SAFETY, "cancel-2", focus=("hold", "cancel"))
def recall_without_tombstone() -> list[Patch]:
    """A Recall of an unknown token is answered and not remembered."""
    original = Worker.on_recall

    def on_recall(self: Worker, owner: bytes, recall: m.Recall, now_ms: int) -> None:
        key = (owner, recall.token)
        known = key in self.works or key in self.spool or key in self.tombstones
        original(self, owner, recall, now_ms)
        if not known:
            self.tombstones.pop(key, None)

    return [(Worker, "on_recall", on_recall)]


@mutant(SAFETY, "lease-7", focus=("double", "hold"), story="refused_twice")
def refused_without_tombstone() -> list[Patch]:
    """A Grant is refused, and a copy of it that comes later is judged anew."""
    original = Worker.on_grant

    def on_grant(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> None:
        key = (owner, grant.token)
        known = key in self.works or key in self.spool or key in self.tombstones
        original(self, owner, grant, now_ms)
        if not known:
            self.tombstones.pop(key, None)

    return [(Worker, "on_grant", on_grant)]


@mutant(SAFETY, "outcome-2", focus=("cut", "hold"), story="late_on_the_same_node")
def any_done_accepted() -> list[Patch]:
    """Every *done* of a task that has not ended is its outcome."""

    def welcomes(self: Owner, outcome: m.Outcome) -> Any:
        task = self.tasks.get(outcome.task)
        done = outcome.status is m.Status.DONE
        return task if task is not None and done and task.state != TaskState.ENDED else None

    return [(Owner, "welcomes", welcomes)]


def _taken_for(self: Attempts, node: bytes, outcome: m.Outcome, same: Any) -> m.Outcome:
    """The outcome as that of a live attempt on this node which `same` takes it for."""
    for token, member in self.on_node.get(node, {}).items():
        live = member.state is not MemberState.WRITING
        if live and member.attempt.task.id == outcome.task and same(token):
            return replace(outcome, token=token, inc=member.inc)
    return outcome


@mutant(SAFETY, "outcome-2", focus=("cut", "hold"), story="late_on_the_same_node")
def outcome_matched_by_task() -> list[Patch]:
    """Any Outcome of a task from a node ends whatever attempt of it lives there."""
    original = Attempts.on_outcome

    def on_outcome(self: Attempts, node: bytes, outcome: m.Outcome, now_ms: int) -> None:
        original(self, node, _taken_for(self, node, outcome, lambda _: True), now_ms)

    return [(Attempts, "on_outcome", on_outcome)]


@mutant(SAFETY, "outcome-2", focus=("daemon_crash", "cut"), story="same_serial_next_life")
def serial_without_incarnation() -> list[Patch]:
    """Tokens of two lives of an owner are the same if their serials are."""
    original = Attempts.on_outcome

    def on_outcome(self: Attempts, node: bytes, outcome: m.Outcome, now_ms: int) -> None:
        serial = outcome.token.serial
        taken = _taken_for(self, node, outcome, lambda token: token.serial == serial)
        original(self, node, taken, now_ms)

    return [(Attempts, "on_outcome", on_outcome)]


# --- flush --------------------------------------------------------------------------------------


@mutant(SAFETY, "submit-1")
def accepted_before_flush() -> list[Patch]:
    """Accepted is said before the task is flushed."""
    return early("_tell_accepted")


@mutant(SAFETY, "submit-1")
def ended_before_flush() -> list[Patch]:
    """Ended is said before the outcome is flushed."""
    return early("_tell")


@mutant(SAFETY, "lease-1")
def grant_before_flush() -> list[Patch]:
    """A Grant leaves before the journal names its token."""
    return early("_written")


@mutant(SAFETY, "submit-8", focus=("daemon_crash",))
def forgotten_before_seen() -> list[Patch]:
    """A durable outcome is forgotten as soon as it is told."""
    original = Owner._tell

    def tell(self: Owner, task: Any, now_ms: int) -> None:
        original(self, task, now_ms)
        if task.durable:
            self.forget_durable(task.id)

    return [(Owner, "_tell", tell)]


# --- proofs -------------------------------------------------------------------------------------


@mutant(SAFETY, "lease-3", focus=("jitter", "hold"))
def absence_is_proof() -> list[Patch]:
    """What a Renew does not list is over."""
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        original(self, node, renew, now_ms)
        listed = {one.token for one in renew.attempts}
        for token, member in list(self.on_node.get(node, {}).items()):
            quiet = member.state is not MemberState.WRITING and token not in listed
            if quiet and member.inc == renew.inc:
                self._over(member, Cause.NOTHING, "absent", None, True, now_ms)

    return [(Attempts, "on_renew", on_renew)]


@mutant(SAFETY, "lease-3")
def silence_is_proof() -> list[Patch]:
    """What runs on a suspect node is over."""

    def on_suspect(self: Attempts, node: bytes, now_ms: int) -> None:
        for member in list(self.on_node.get(node, {}).values()):
            if member.state is not MemberState.WRITING:
                self._over(member, Cause.NOTHING, "silent", None, True, now_ms)

    return [(Attempts, "on_suspect", on_suspect)]


@mutant(SAFETY, "life-1", focus=("daemon_crash",))
def leftovers_alive() -> list[Patch]:
    """A daemon serves while attempts of its earlier life still run."""
    return [(Cluster, "kill_leftovers", False)]


@mutant(SAFETY, "lease-12", focus=("daemon_crash",))
def journal_issued_again() -> list[Patch]:
    """An owner that starts queues what its journal says is running."""
    original = Owner.restore

    def restore(self: Owner, rows: Any, tries: Any, ends: Any, now_ms: int) -> None:
        original(self, rows, (), ends, now_ms)

    return [(Owner, "restore", restore)]


@mutant(SAFETY, "gang-1")
def gang_before_last_proof() -> list[Patch]:
    """A gang is queued again when its first member is lost."""
    original = Attempts._over

    def over(self: Attempts, member: Any, cause: Any, *rest: Any) -> None:
        original(self, member, cause, *rest)
        attempt = member.attempt
        if cause is not None and attempt.live() and len(attempt.members) > 1:
            for one in attempt.members:
                if one.state not in (MemberState.ENDED, MemberState.COLLECTING):
                    original(self, one, Cause.NOTHING, "gang", None, True, rest[-1])

    return [(Attempts, "_over", over)]


@mutant(SAFETY, "cancel-1")
def cancel_before_proof() -> list[Patch]:
    """Cancelled is told while the task may still run."""

    def stop(self: Owner, task: Any, end: m.End, reason: str, now_ms: int) -> None:
        if task.state is not TaskState.ENDED:
            self.finish(task, end, reason, b"", m.Facts(), b"", now_ms)

    return [(Owner, "stop", stop)]


# --- room and gangs -----------------------------------------------------------------------------


@mutant(SAFETY, "lease-7")
def ledger_ignored() -> list[Patch]:
    """A worker's ledger has twice its slots."""
    original = Worker._new_ledger

    def new_ledger(self: Worker, caps: Any) -> Any:
        self.slots, slots = 2 * self.slots, self.slots
        ledger = original(self, caps)
        self.slots = slots
        return ledger

    return [(Worker, "_new_ledger", new_ledger)]


@mutant(SAFETY, "limit-1", focus=("tiny_limits",))
def waiting_unbounded() -> list[Patch]:
    """A worker lets any number of attempts wait."""
    original = Worker._admit

    def admit(self: Worker, work: Any, now_ms: int) -> None:
        self.slots, slots = 10**9, self.slots
        original(self, work, now_ms)
        self.slots = slots

    return [(Worker, "_admit", admit)]


@mutant(SAFETY, "gang-1")
def gang_before_all_held() -> list[Patch]:
    """*go* leaves when the first member is held."""
    original = Attempts._listed

    def listed(self: Attempts, member: Any, state: MemberState, now_ms: int) -> None:
        original(self, member, state, now_ms)
        attempt = member.attempt
        if state is MemberState.HELD and attempt.hold and not attempt.going:
            self._go(attempt, now_ms)

    return [(Attempts, "_listed", listed)]
