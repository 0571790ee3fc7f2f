"""The owner: the one master of the tasks that were submitted here.

Source  docs/protocol.md, "Submit", "Outcome", "Cancel".  Pure: events in, effects into the Outbox,
in order.  This file must not know who coordinates beyond a node id, nor how bytes travel: where to
grant is decided in `granting.py`, attempts live in `attempts.py`, clients in `sessions.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from blackroad.bus.messages import (
    Busy,
    Cancel,
    Early,
    End,
    Ended,
    Facts,
    Item,
    Outcome,
    Reason,
    Ref,
    Rejected,
    Status,
    Submit,
)
from blackroad.digest import blake2b
from blackroad.errors import RemoteProtocolError, invariant
from blackroad.limits import (
    CRASH_RETRIES,
    INFRASTRUCTURE_RETRIES,
    KILLER_ENDINGS_MAX,
    OWNER_BYTES_MAX,
    OWNER_TASKS_MAX,
    UNDECIDED_MS,
    UNDECIDED_SUBMITS_MAX,
)
from blackroad.requirements import from_wire
from blackroad.router import bulk, restart
from blackroad.router.arrivals import Arrivals, missing_objects
from blackroad.router.attempts import Attempts, Late
from blackroad.router.effects import AttemptRow, EndRow, ForgetRow, Outbox, TaskRow
from blackroad.router.granting import Granting
from blackroad.router.judge import attempt_row
from blackroad.router.memory import Memory
from blackroad.router.nodes_view import NodesView
from blackroad.router.objects import Pins, Pulls
from blackroad.router.records import (
    Attempt,
    Cause,
    ClassState,
    Task,
    TaskState,
    Use,
    same_content,
)
from blackroad.router.refusing import NO_SPACE, unplaceable
from blackroad.router.sessions import Sessions

if TYPE_CHECKING:
    from blackroad.bus.messages import Allocation, ClassSpec, Payload
    from blackroad.requirements import Ask

_NO_FACTS = Facts()
_REASONS = {
    Status.FAILED: "TaskFailed",
    Status.TIMEOUT: "TaskTimeout",
    Status.OUT_OF_MEMORY: "OutOfMemory",
}
# Of these the work is kept as long as the outcome, so that a person can try it again.
_KEPT = (End.FAILED, End.QUARANTINED)


class Owner:
    """Tasks and outcomes of one daemon's life."""

    def __init__(
        self,
        me: bytes,
        inc: int,
        out: Outbox,
        room_here: Callable[[Ask], int],
        started_ms: int,
    ) -> None:
        self.me = me
        self.inc = inc
        self.out = out
        self.started_ms = started_ms
        # No room on disk for new durable tasks; those accepted go on.
        self.full = False
        self.tasks: dict[bytes, Task] = {}
        self.memory = Memory(self.let_go)
        self.classes: dict[ClassSpec, ClassState] = {}
        self.by_id: dict[int, ClassState] = {}
        self.bytes = 0
        self.view = NodesView(me)
        self.sessions = Sessions(me, inc, out)
        self.pins = Pins(out)
        # Functions that were used lately, oldest first.
        self.warm_code: dict[bytes, None] = {}
        self._results: Pulls[Late] = Pulls(out)
        self._arrivals = Arrivals(me, out, self.pins)
        self.runs = Attempts(me, inc, out, self.view, self.pins, self._results, self)
        self.granting = Granting(me, inc, self.view, out, room_here, self.runs.grant)
        self.counters = self.runs.counters
        self.attempts = self.runs.live
        self.on_node = self.runs.on_node
        self.on_renew = self.runs.on_renew
        self.on_refused = self.runs.on_refused
        self.on_outcome = self.runs.on_outcome
        self.on_divided = self.runs.on_divided
        self.on_incarnation = self.runs.on_incarnation
        self.on_goodbye = self.runs.on_goodbye
        self.on_flushed = out.on_flushed
        # Whoever records outcomes gets them as they are told: once each.
        self.on_ended: Callable[[Sequence[Task]], None] | None = None
        self._class_serial = 0
        self._undecided: list[tuple[bytes, Submit]] = []
        self._deadlines: list[tuple[int, bytes]] = []

    # --- submit -----------------------------------------------------------------------------------

    def on_submit(self, client: bytes, submit: Submit, now_ms: int) -> None:
        """Take tasks of one class; the same id again gets the same answer."""
        session = self.sessions.touch(submit.session, client, now_ms)
        if session is None:
            self._reject(client, submit.tasks, "session", "open a session first")
            return
        try:
            from_wire(submit.spec.needs)
        except RemoteProtocolError as error:
            self._reject(client, submit.tasks, "needs", str(error)[:512])
            return
        if session.user and not submit.spec.user:
            submit = replace(submit, spec=replace(submit.spec, user=session.user))
        # A copy that waits would be taken on when this one is over and forgotten.
        first = submit.tasks[0].task
        self._undecided = [one for one in self._undecided if one[1].tasks[0].task != first]
        seen = self.memory.seen_by(session.id, submit.tasks)
        if seen:
            # Said before Seen and read after it: what is over is not begun again.
            self.sessions.accepted(client, tuple(seen))
            submit = replace(submit, tasks=tuple(i for i in submit.tasks if i.task not in seen))
        if not submit.tasks or self._arrivals.repeated(client, submit):
            return
        missing = missing_objects(submit, self.tasks, self.pins)
        if missing and not (self.full and submit.durable):
            self._arrivals.wait(client, submit, missing)
        else:
            self._accept(client, submit, now_ms)

    def _reject(self, client: bytes, items: Sequence[Item], reason: str, text: str) -> None:
        ids = tuple(item.task for item in items)
        self.out.tell(client, Rejected(ids, reason, text))

    def _accept(self, client: bytes, submit: Submit, now_ms: int) -> None:
        """All bytes are here: decide, journal, answer."""
        if submit.session not in self.sessions.sessions:
            self._reject(client, submit.tasks, "session", "the session is over")
            return
        fresh = self._fresh(client, submit, now_ms)
        if not fresh:
            return
        if self.full and submit.durable:
            self._reject(client, fresh, "no_space", NO_SPACE)
            return
        room = self.sessions.room(submit.session, len(fresh)) and not self.crowded(len(fresh))
        if not room or len(self._undecided) >= UNDECIDED_SUBMITS_MAX:
            self.out.tell(client, Busy("tasks", 1000, tuple(item.task for item in fresh)))
            return
        if not submit.wait_for_node and not self.placeable(submit.spec):
            if self._undecided_yet(now_ms):
                self._undecided.append((client, submit))
            else:
                self.out.tell(client, unplaceable(submit.spec, fresh, self.view))
            return
        self._take(client, submit, fresh, now_ms)

    def _fresh(self, client: bytes, submit: Submit, now_ms: int) -> list[Item]:
        """Tasks of a Submit that are new here; those known are answered, other ones refused."""
        # One Submit may name a task twice, as a client does that repeats itself.
        first = {item.task: item for item in submit.tasks}
        if len(first) == len(submit.tasks) and self.tasks.keys().isdisjoint(first):
            return list(submit.tasks)
        first.clear()
        known = []
        for item in submit.tasks:
            task = self.tasks.get(item.task)
            same = first.setdefault(item.task, item) == item
            if task is not None and same_content(task, submit, item):
                known.append(task)
            elif task is not None or not same:
                text = "this id was used for different work"
                self._reject(client, (item,), "conflict", text)
        if known:
            self._answer_known(client, submit.session, known, now_ms)
        return [item for item in first.values() if item.task not in self.tasks]

    def crowded(self, more: int) -> bool:
        """Are the bounds reached beyond which this owner takes nothing?"""
        return len(self.tasks) + more > OWNER_TASKS_MAX or self.bytes > OWNER_BYTES_MAX

    def _undecided_yet(self, now_ms: int) -> bool:
        """Might nodes that can run it still be joining?"""
        return not self.granting.answered_seq and now_ms - self.started_ms < UNDECIDED_MS

    def _answer_known(self, client: bytes, session: bytes, known: list[Task], now_ms: int) -> None:
        ids = tuple(task.id for task in known)
        if any(task.durable for task in known):
            self.out.when_flushed(self._tell_accepted, (client, ids), now_ms)
        else:
            self._tell_accepted((client, ids), now_ms)
        for task in known:
            if task.durable:
                # Who asks again wants to be told, whoever asked first.
                if task.ended is None:
                    self.sessions.count(task.session, -1)
                    self.sessions.count(session, 1)
                task.session = session
            if task.ended is not None:
                self.out.when_flushed(self._tell_again, (session, task.ended), now_ms)

    def _tell_accepted(self, told: tuple[bytes, tuple[bytes, ...]], now_ms: int) -> None:
        self.sessions.accepted(*told)

    def _tell_again(self, told: tuple[bytes, Ended], now_ms: int) -> None:
        self.sessions.ended(*told, now_ms)

    def _take(self, client: bytes, submit: Submit, items: list[Item], now_ms: int) -> None:
        cls = self.class_of(submit.spec)
        durable = submit.durable
        session = submit.session
        tasks = [
            Task(
                item.task,
                cls,
                cls.spec,
                session,
                submit.code,
                item.work,
                durable,
                now_ms,
                submit.wait_for_node,
            )
            for item in items
        ]
        self.enter_all(tasks)
        if submit.deadline_ms:
            for task in tasks:
                self.set_deadline(task, now_ms + submit.deadline_ms)
        if durable:
            self._persist_all(tasks, submit)
        cls.queue.extend(tasks)
        cls.queued += len(tasks)
        self.sessions.count(session, len(items))
        self.granting.dirty(cls)
        if not durable:
            self.sessions.attach(session, items)
        cls.active_ms = now_ms
        ids = tuple(item.task for item in items)
        if durable:
            self.out.when_flushed(self._tell_accepted, (client, ids), now_ms)
        else:
            # No client waits for it, and an outcome often comes first.
            self.sessions.accepted(client, ids, lazy=True)

    def _persist_all(self, tasks: list[Task], submit: Submit) -> None:
        spec, waits, deadline_ms = submit.spec, submit.wait_for_node, submit.deadline_ms
        for task in tasks:
            self.out.persist(TaskRow(task.id, spec, task.code, task.work, waits, deadline_ms))

    def enter_all(self, tasks: Sequence[Task]) -> None:
        """Put new tasks of one class and one code into the books."""
        bulk.enter(self, tasks)

    def class_of(self, spec: ClassSpec) -> ClassState:
        cls = self.classes.get(spec)
        if cls is None:
            self._class_serial += 1
            cls = ClassState(self._class_serial, spec, from_wire(spec.needs))
            self.classes[spec] = cls
            self.by_id[cls.id] = cls
            self.granting.demand_changed(urgent=True)
        return cls

    def set_deadline(self, task: Task, deadline_ms: int) -> None:
        task.deadline_ms = deadline_ms
        heapq.heappush(self._deadlines, (deadline_ms, task.id))

    def placeable(self, spec: ClassSpec) -> bool:
        """Could the present nodes, if idle, run this?"""
        able = sum(1 for view in self.view.present() if self.view.fits(view.node, spec.needs))
        return able >= spec.gang

    # --- objects ----------------------------------------------------------------------------------

    def on_fetched(self, digest: bytes, now_ms: int) -> None:
        """An object that a submit or an outcome waits for is here, flushed and checked."""
        arrivals = self._arrivals.fetched(digest)
        results = self._results.over(digest)
        if not arrivals and not results:
            return
        self.pins.pin(digest)
        for arrival in arrivals:
            self._accept(arrival.client, arrival.submit, now_ms)
            self._arrivals.over(arrival)
        for late in results:
            self.runs.on_collected(late, now_ms)
        self.pins.unpin(digest)

    def on_fetch_failed(
        self, digest: bytes, text: str, now_ms: int, gone: bool = True, *, here: bool = False
    ) -> None:
        """An object cannot be had: refuse the submit, or count the attempt as lost.

        Where this node has no room for it (`here`), the attempt is not lost for that.
        """
        reason = "no_space" if here else "no_object"
        for arrival in self._arrivals.failed(digest):
            self._reject(arrival.client, arrival.submit.tasks, reason, text[:512])
            self._arrivals.over(arrival)
        for late in self._results.over(digest):
            self.runs.on_uncollected(late, gone, now_ms, here=here)

    def on_allocation(self, node: bytes, allocation: Allocation, inc: int) -> bool:
        """Take a coordinator's table; return whether it answers a Demand of mine."""
        return self.granting.on_allocation(node, allocation, self.by_id, inc)

    # --- what attempts come to --------------------------------------------------------------------

    def early(
        self, tasks: Sequence[Task], before: Sequence[Early], node: bytes, now_ms: int
    ) -> None:
        """These tasks of a bundle are done."""
        bulk.end(self, tasks, before, node, now_ms)

    def unbegun(self, tasks: Sequence[Task], now_ms: int) -> None:
        """These tasks of a bundle never began there, and never will: no late word of it counts."""
        for task in reversed(tasks):
            if task.state is not TaskState.GRANTED or task.attempts:
                continue
            task.tries -= 1
            if task.stop is not None:
                end, reason = task.stop
                self.finish(task, end, reason, b"", _NO_FACTS, b"", now_ms)
            else:
                self._queue_again(task, now_ms)

    def attempt_done(self, task: Task, outcome: Outcome, node: bytes, now_ms: int) -> None:
        """Work that was *done* first is done, whatever was wished meanwhile."""
        if task.state is not TaskState.ENDED:
            self.finish(task, End.DONE, "", outcome.result, outcome.facts, node, now_ms)

    def welcomes(self, outcome: Outcome) -> Task | None:
        """The task that an outcome without a live attempt still counts for: R-outcome-2."""
        task = self.tasks.get(outcome.task)
        if task is None or outcome.status is not Status.DONE or task.state is TaskState.ENDED:
            return None
        spec = task.cls.spec
        own = outcome.token in task.past
        if spec.pure:
            return task if own or outcome.token.inc != self.inc else None
        alone = task.state is TaskState.QUEUED and not task.attempts and spec.gang == 1
        return task if own and alone else None

    def attempt_lost(self, attempt: Attempt, now_ms: int) -> None:
        """The last proof of an attempt that is not done: stop, give up, or queue again."""
        task = attempt.task
        verdict = attempt.verdict
        if task.state is TaskState.ENDED or verdict is None:
            return
        task.last_status = verdict.why
        outcome = verdict.outcome
        facts = outcome.facts if outcome is not None else _NO_FACTS
        if task.stop is not None:
            if not task.attempts:
                end, reason = task.stop
                self.finish(task, end, reason, b"", facts, verdict.node, now_ms)
            return
        if attempt.abandoned and (task.state is TaskState.QUEUED or task.attempts):
            self._count_abandoned(task, verdict.cause)
            return
        self._judge(attempt, verdict.cause, outcome, facts, verdict.node, now_ms)

    def _count_abandoned(self, task: Task, cause: Cause) -> None:
        """Another attempt decides, but what a pure task does to its nodes counts in any case."""
        if cause is Cause.LOSS:
            task.losses += 1
        elif cause is Cause.KILLER:
            task.killers += 1
            queued = task.state is TaskState.QUEUED
            if queued and task.killers >= KILLER_ENDINGS_MAX and not task.cls.spec.isolated:
                task.cls.queue.remove(task)
                task.cls.queued -= 1
                self.isolate(task)
                task.cls.queue.append(task)
                task.cls.queued += 1
                self.granting.dirty(task.cls)

    def _judge(
        self,
        attempt: Attempt,
        cause: Cause,
        outcome: Outcome | None,
        facts: Facts,
        node: bytes,
        now_ms: int,
    ) -> None:
        """Count an ending and decide: R-outcome-4, R-isolate-1."""
        task = attempt.task
        spec = task.cls.spec
        once = spec.once and attempt.ran
        end, reason = End.FAILED, ""
        if cause is Cause.USER and outcome is not None:
            task.failures += 1
            if once or task.failures > spec.retries:
                reason = _REASONS[outcome.status]
        elif cause is Cause.CRASH:
            task.crashes += 1
            if once or task.crashes > CRASH_RETRIES:
                reason = "WorkerCrashed"
        elif once:
            end, reason = End.UNKNOWN, "lost"
        elif cause is Cause.KILLER:
            task.killers += 1
            if attempt.isolated and task.killers > KILLER_ENDINGS_MAX:
                end, reason = End.QUARANTINED, "poison"
        elif cause is Cause.LOSS:
            task.losses += 1
            if task.losses > INFRASTRUCTURE_RETRIES:
                reason = "Infrastructure"
                facts = Facts(text=f"lost {task.losses} times, last: {task.last_status}"[:512])
        if not reason:
            self._requeue(task, attempt, now_ms)
            return
        result = outcome.result if outcome is not None and end is End.FAILED else b""
        if isinstance(result, Ref) and result.digest not in self.pins:
            result = b""
        self.finish(task, end, reason, result, facts, node, now_ms)

    def _requeue(self, task: Task, attempt: Attempt, now_ms: int) -> None:
        if task.killers >= KILLER_ENDINGS_MAX and not task.cls.spec.isolated:
            self.isolate(task)
        if task.durable:
            self.out.persist(attempt_row(task, attempt))
        self._queue_again(task, now_ms)

    def _queue_again(self, task: Task, now_ms: int) -> None:
        cls = task.cls
        task.state = TaskState.QUEUED
        task.queued_ms = now_ms
        cls.queue.appendleft(task)
        cls.queued += 1
        cls.active_ms = now_ms
        self.granting.dirty(cls)
        self.count("requeued")

    def again(self, task: Task, now_ms: int) -> None:
        """A pure task's node is silent: another attempt may run beside that one."""
        if task.killers >= KILLER_ENDINGS_MAX and not task.cls.spec.isolated:
            self.isolate(task)
        self._queue_again(task, now_ms)

    def room(self, cls: ClassState) -> None:
        """Something of this class ended: there may be room for the next."""
        self.granting.dirty(cls)

    def refused(self, use: Use, reason: Reason, now_ms: int) -> None:
        """That worker would not take this class now."""
        self.granting.back_off(use, reason, now_ms)

    def isolate(self, task: Task) -> None:
        """Two nodes went down under it: from now on it runs alone."""
        task.cls.tasks -= 1
        task.cls = self.class_of(replace(task.cls.spec, exclusive=True, isolated=True))
        task.cls.tasks += 1
        self.out.note("task.isolated", task=task.id)

    # --- the outcome ------------------------------------------------------------------------------

    def finish(
        self,
        task: Task,
        end: End,
        reason: str,
        result: Payload,
        facts: Facts,
        node: bytes,
        now_ms: int,
    ) -> None:
        """Set the one outcome; tell it once it is flushed where that was promised."""
        invariant(task.state is not TaskState.ENDED, "an outcome is set once", task.id)
        cls = task.cls
        if task.state is TaskState.QUEUED:
            cls.queued -= 1
        task.state = TaskState.ENDED
        task.stop = None
        self.sessions.count(task.session, -1)
        cls.tasks -= 1
        cls.active_ms = now_ms
        ended = Ended(task.id, end, reason, result, facts, node, task.tries)
        task.ended = ended
        for attempt in task.attempts:
            self.runs.stop(attempt, now_ms)
        if isinstance(result, Ref):
            self.pins.pin(result.digest)
        self.count(_ENDED[end])
        self.ease(task)
        if task.durable:
            self.memory.retain(task.id, now_ms)
            self.out.persist(EndRow(task.id, end, reason, result, facts, node, task.tries))
            self.out.when_flushed(self._tell, task, now_ms)
        else:
            self._tell(task, now_ms)

    def ease(self, task: Task) -> None:
        """The work of an ended task is only kept where somebody may want to try it again."""
        if task.ended is None or task.ended.end is End.DONE:
            self.let_go(task)
        elif task.ended.end not in _KEPT:
            self.memory.spare(task)

    def let_go(self, task: Task) -> None:
        """The work of this task is not needed any more."""
        if not task.kept:
            return
        task.kept = False
        self.memory.spent(task)
        work = task.work
        if isinstance(work, Ref):
            self.pins.unpin(work.digest)
        else:
            self.bytes -= len(work)
            if task.durable:
                task.content = blake2b(work, digest_size=32).digest()
            if task.durable or task.id not in self.tasks:
                # Who repeats an attached Submit is answered by comparing the work itself.
                task.work = b""
        if task.code is not None:
            self.pins.unpin(task.code.digest)

    def _tell(self, task: Task, now_ms: int) -> None:
        ended = task.ended
        if ended is None or self.tasks.get(task.id) is not task:
            return
        if self.on_ended is not None:
            self.on_ended((task,))
        told = self.sessions.ended(task.session, ended, now_ms)
        self.sessions.wake(task.id)
        if not told and not task.durable:
            self.forget(task)

    def on_seen(self, session: bytes, ids: Sequence[bytes]) -> None:
        """The client has these outcomes: attached tasks need not be remembered."""
        bulk.seen(self, session, ids)

    def forget(self, task: Task) -> None:
        """Take an ended task out of the books; its story is remembered for a while."""
        del self.tasks[task.id]
        ended = task.ended
        if ended is None:
            return
        if isinstance(ended.result, Ref):
            self.pins.unpin(ended.result.digest)
        if task.durable or ended.end is End.DONE:
            self.let_go(task)
        else:
            self.memory.spare(task)
        self.memory.seen(task)

    def forget_durable(self, id_: bytes) -> None:
        """Retention is over for an ended durable task."""
        task = self.tasks.get(id_)
        if task is not None and task.ended is not None and task.durable:
            self.out.persist(ForgetRow(id_))
            self.forget(task)

    # --- cancel, deadline, session end ------------------------------------------------------------

    def on_cancel(self, client: bytes, cancel: Cancel, now_ms: int) -> None:
        """A wish: the answer is the outcome."""
        for id_ in cancel.tasks:
            task = self.tasks.get(id_)
            if task is not None:
                self.stop(task, End.CANCELLED, "cancelled", now_ms)

    def stop(self, task: Task, end: End, reason: str, now_ms: int) -> None:
        """End a task without an outcome: at once if nothing runs, else after the last proof."""
        if task.state is TaskState.ENDED or task.stop is not None:
            return
        if not task.attempts:
            self.finish(task, end, reason, b"", _NO_FACTS, b"", now_ms)
            return
        if task.state is TaskState.QUEUED:
            task.state = TaskState.GRANTED
            task.cls.queued -= 1
        task.stop = (end, reason)
        if task.durable:
            # A wish that was told as taken must outlive this life.
            self.out.persist(attempt_row(task, task.attempts[-1]))
        for attempt in task.attempts:
            self.runs.stop(attempt, now_ms)

    def end_session(self, session: bytes, now_ms: int) -> None:
        """The client is gone: its attached tasks end, its outcomes need no listener."""
        for id_ in self.sessions.drop(session):
            task = self.tasks.get(id_)
            if task is None:
                continue
            if task.ended is not None:
                self.forget(task)
            else:
                self.stop(task, End.CANCELLED, "session ended", now_ms)

    # --- nodes, time, settle ----------------------------------------------------------------------

    def on_suspect(self, node: bytes, now_ms: int) -> None:
        """That node is silent: nothing new there, and only pure tasks may run elsewhere."""
        self.view.get(node).suspect = True
        self.runs.on_suspect(node, now_ms)

    def tick(self, now_ms: int) -> None:
        """Bounds, repetitions, deadlines, sessions."""
        self.granting.tick(now_ms)
        for session in self.sessions.tick(now_ms):
            self.end_session(session, now_ms)
        self.runs.tick(now_ms)
        for over in self.memory.due(now_ms):
            self.forget_durable(over)
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now_ms:
            _, id_ = heapq.heappop(deadlines)
            task = self.tasks.get(id_)
            if task is not None and task.deadline_ms <= now_ms:
                self.stop(task, End.EXPIRED, "deadline", now_ms)

    def settle(self, now_ms: int) -> None:
        """End of a turn: grant what fits, acknowledge, state the demand."""
        if self._undecided and not self._undecided_yet(now_ms):
            undecided, self._undecided = self._undecided, []
            for client, submit in undecided:
                self._accept(client, submit, now_ms)
        self.granting.review(now_ms, self.classes)
        self.granting.settle(now_ms, self.classes, self.by_id)
        self.runs.send_acks()

    def next_deadline_ms(self) -> int:
        """When `tick` or `settle` may next have something to do."""
        soonest = min(
            self.granting.next_deadline_ms(),
            self.sessions.next_deadline_ms(),
            self.runs.next_deadline_ms(),
        )
        if self._undecided:
            soonest = min(soonest, self.started_ms + UNDECIDED_MS)
        if self._deadlines:
            soonest = min(soonest, self._deadlines[0][0])
        return soonest

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happened."""
        self.counters[name] = self.counters.get(name, 0) + by

    # --- restart ----------------------------------------------------------------------------------

    def restore(
        self,
        rows: Sequence[TaskRow],
        attempts: Sequence[AttemptRow],
        ends: Sequence[EndRow],
        now_ms: int,
    ) -> None:
        """Take over what an earlier life of this owner left in the journal."""
        restart.restore(self, rows, attempts, ends, now_ms)

    # --- checks -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantBroken where the books contradict each other."""
        self.runs.check()
        for cls in self.classes.values():
            queued = sum(1 for task in cls.queue if task.state is TaskState.QUEUED)
            invariant(queued == cls.queued, "queued count differs", cls.spec.name, cls.queued)
            for use in cls.uses.values():
                invariant(0 <= use.ahead <= use.live, "waiting exceeds live", cls.spec.name)
        for task in self.tasks.values():
            if task.state is TaskState.GRANTED:
                invariant(task.attempts, "granted without an attempt", task.id)
            live = [one for one in task.attempts if not one.abandoned]
            pure = task.cls.spec.pure
            invariant(pure or len(task.attempts) <= 1, "two live attempts", task.id)
            invariant(len(live) <= 1, "two attempts that count", task.id)


_ENDED = {end: f"ended.{end.name.lower()}" for end in End}
