"""The life of attempts at their owner: grants, leases, proofs, gangs; what they come to is judged
elsewhere.

Source  docs/protocol.md, "Grant and lease", "Gangs and isolation".  Pure.  This file must not know
clients, sessions or retries: `owner.py` judges an attempt when its last proof is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import (
    AttemptState,
    Divided,
    Grant,
    GrantFlag,
    Outcome,
    OutcomeAck,
    Reason,
    Recall,
    Ref,
    Refused,
    Renew,
    Renewed,
    Status,
)
from blackroad.errors import invariant
from blackroad.ids import Token, inc_counter, short
from blackroad.limits import (
    COLLECT_AGAIN_MS,
    DISK_PROBLEM,
    FOREVER_MS,
    GANG_ASIDE_MS,
    GANG_ASIDE_MS_MAX,
    GANG_HOLD_MS,
    GRANT_RESEND_MS,
    GRANT_RESENDS_MAX,
    LEASE_MS,
    OUTCOME_ACK_TOKENS_MAX,
    PAST_TOKENS_MAX,
    PURE_ATTEMPTS_MAX,
    RENEW_MS,
    bound_ms,
)
from blackroad.router.bundles import along, divide, ends, wished
from blackroad.router.judge import attempt_row, why_of
from blackroad.router.records import (
    Attempt,
    Cause,
    Member,
    MemberState,
    TaskState,
    Use,
    Verdict,
)

if TYPE_CHECKING:
    from blackroad.router.effects import AttemptRow, Outbox
    from blackroad.router.judge import Judge
    from blackroad.router.nodes_view import NodesView
    from blackroad.router.objects import Pins, Pulls
    from blackroad.router.records import Task

_LISTED = {
    AttemptState.WAITING: MemberState.WAITING,
    AttemptState.HELD: MemberState.HELD,
    AttemptState.RUNNING: MemberState.RUNNING,
}
# What ended like this counts as; *stopped* depends on who wanted it.
_CAUSES = {
    Status.FAILED: Cause.USER,
    Status.OUT_OF_MEMORY: Cause.USER,
    Status.TIMEOUT: Cause.USER,
    Status.CRASHED: Cause.CRASH,
    Status.LAPSED: Cause.LOSS,
    Status.NO_INPUT: Cause.LOSS,
}
_BACK_OFF = (Reason.FULL, Reason.LATE, Reason.DRAINING, Reason.NEEDS, Reason.NO_SPACE)
_SILENT = (MemberState.WRITING, MemberState.ENDED, MemberState.COLLECTING)
_HOLD, _GO = int(GrantFlag.HOLD), int(GrantFlag.GO)
_EXCLUSIVE, _DURABLE = int(GrantFlag.EXCLUSIVE), int(GrantFlag.DURABLE)

Late = tuple[bytes, Outcome]


class Attempts:
    """All live attempts of one owner."""

    def __init__(
        self,
        me: bytes,
        inc: int,
        out: Outbox,
        view: NodesView,
        pins: Pins,
        pulls: Pulls[Late],
        judge: Judge,
    ) -> None:
        self.me = me
        self.inc = inc
        # The owner's default L, for classes that state none (R-lease-16).
        self.lease_ms = LEASE_MS
        self.live: dict[Token, Attempt] = {}
        self.on_node: dict[bytes, dict[Token, Member]] = {}
        self.counters: dict[str, int] = {}
        # Told of each task's attempt that ran and came to nothing.
        self.on_lost: Callable[[Task, Attempt, int], None] | None = None
        self._out = out
        self._view = view
        self._pins = pins
        self._pulls = pulls
        self._judge = judge
        self._serial = 0
        self._acks: dict[bytes, list[Token]] = {}
        self._check_ms = FOREVER_MS

    # --- grant ------------------------------------------------------------------------------------

    def grant(
        self,
        task: Task,
        placed: Sequence[tuple[Use, bool]],
        now_ms: int,
        share: int = 0,
        more: tuple[Task, ...] = (),
    ) -> None:
        """Make an attempt on the given nodes; `placed` says of each whether it waits there.

        With `more` it is a bundle, on one node.
        """
        self._serial += 1
        token = Token(self.inc, self._serial)
        attempt = Attempt(token, task, task.cls.spec.lease_ms or self.lease_ms)
        nodes = self._view.nodes
        for use, ahead in placed:
            node = use.node
            member = Member(attempt, node, nodes[node].inc, use)
            member.share = share
            self._enter(member)
            if ahead:
                member.use.goes_ahead(member)
        self.live[token] = attempt
        task.attempts.append(attempt)
        task.state = TaskState.GRANTED
        task.tries += 1
        if more:
            attempt.more = more
            for one in more:
                one.attempts.append(attempt)
                one.state = TaskState.GRANTED
                one.tries += 1
        if task.durable:
            self._out.persist(attempt_row(task, attempt))
            self._out.when_flushed(self._written, attempt, now_ms)
        else:
            for member in attempt.members:
                self._send_grant(member, now_ms)

    def _enter(self, member: Member) -> None:
        member.attempt.members.append(member)
        member.use.live += 1
        index = self.on_node.get(member.node)
        if index is None:
            index = self.on_node[member.node] = {}
        index[member.attempt.token] = member

    def _written(self, attempt: Attempt, now_ms: int) -> None:
        """The attempt is in the journal: its Grants may leave."""
        for member in attempt.members:
            if member.state is not MemberState.WRITING:
                continue
            if member.stopping or self._view.nodes[member.node].inc != member.inc:
                self._over(member, Cause.NOTHING, "unsent", None, False, now_ms)
            else:
                self._send_grant(member, now_ms)

    def _send_grant(self, member: Member, now_ms: int) -> None:
        """Hand one Grant to the socket; its bound counts from here."""
        attempt = member.attempt
        task = attempt.task
        spec = task.cls.spec
        flags = _DURABLE if task.durable else 0
        if attempt.go:
            flags |= _GO
        elif attempt.hold:
            flags |= _HOLD
        if spec.exclusive or attempt.isolated:
            flags |= _EXCLUSIVE
        node = member.node
        lease_ms = attempt.lease_ms
        bound = now_ms + bound_ms(lease_ms)
        if member.state is MemberState.WRITING:
            member.state = MemberState.SENT
            member.first_ms = now_ms
            member.bound_ms = bound
        elif bound > member.bound_ms:
            # An earlier send may have anchored a later end; a bound never moves back.
            member.bound_ms = bound
        member.sent_ms = now_ms
        self._check_ms = min(self._check_ms, now_ms + GRANT_RESEND_MS)
        echo_ms = now_ms if node == self.me else self._view.nodes[node].stamp_ms
        self._out.send(
            node,
            Grant(
                attempt.token,
                task.id,
                task.cls.id,
                spec,
                echo_ms,
                member.inc,
                lease_ms,
                flags,
                task.code,
                task.work,
                task.tries,
                member.share,
                along(attempt.more) if attempt.more else (),
            ),
        )

    # --- what workers say -------------------------------------------------------------------------

    def on_renew(self, node: bytes, renew: Renew, now_ms: int) -> None:
        """All live attempts of mine there, at that stamp: confirm the live, refuse the rest."""
        if self._view.on_stamp(node, renew.inc, renew.stamp_ms, now_ms):
            self.on_incarnation(node, renew.inc, now_ms)
        here = self.on_node.get(node, {})
        refused = []
        for listed in renew.attempts:
            member = here.get(listed.token)
            if (
                member is None
                or member.inc != renew.inc
                or member.stopping
                or member.state is MemberState.WRITING
            ):
                refused.append(listed.token)
                continue
            bound = now_ms + bound_ms(member.attempt.lease_ms)
            member.bound_ms = max(member.bound_ms, bound)
            self._listed(member, _LISTED[listed.state], now_ms)
        self._out.send(node, Renewed(renew.inc, renew.stamp_ms, tuple(refused)))

    def _listed(self, member: Member, state: MemberState, now_ms: int) -> None:
        member.state = state
        attempt = member.attempt
        if state is MemberState.WAITING:
            if not member.ahead:
                member.use.goes_ahead(member)
        elif member.ahead:
            member.ahead = False
            member.use.ahead -= 1
        if state is not MemberState.HELD or not attempt.hold:
            return
        if attempt.adopted:
            # Nobody can know whether *go* was meant.
            self.stop(attempt, now_ms)
        elif attempt.go:
            self._send_grant(member, now_ms)
        elif not attempt.going and all(one.state is MemberState.HELD for one in attempt.members):
            self._go(attempt, now_ms)

    def _go(self, attempt: Attempt, now_ms: int) -> None:
        """All members are held: let them start; an isolated one is journaled first."""
        attempt.going = True
        attempt.task.cls.aside_ms = 0
        if attempt.task.durable and attempt.isolated:
            self._out.persist(attempt_row(attempt.task, attempt))
            self._out.when_flushed(self._gone_ahead, attempt, now_ms)
        else:
            self._gone_ahead(attempt, now_ms)

    def _gone_ahead(self, attempt: Attempt, now_ms: int) -> None:
        attempt.go = True
        for member in attempt.members:
            if member.state is MemberState.HELD and not member.stopping:
                self._send_grant(member, now_ms)

    def on_refused(self, node: bytes, refused: Refused, now_ms: int) -> None:
        """Never started there and never will: proof."""
        member = self.on_node.get(node, {}).get(refused.token)
        if member is None or member.state is MemberState.WRITING:
            return
        if refused.inc != member.inc:
            # An older life speaks only for itself: the Grant may still reach the newer one.  A
            # newer life proves that the older is over, but not that nothing started there.
            if inc_counter(refused.inc) > inc_counter(member.inc):
                self._restarted(member, now_ms)
            return
        reason = refused.reason
        self._count("refused." + reason.name.lower())
        if reason in _BACK_OFF:
            self._judge.refused(member.use, reason, now_ms)
        self._over(member, Cause.NOTHING, reason.name.lower(), None, False, now_ms)

    def on_outcome(self, node: bytes, outcome: Outcome, now_ms: int) -> None:
        """An attempt ended on its worker."""
        member = self.on_node.get(node, {}).get(outcome.token)
        if member is not None and member.attempt.more and member.inc == outcome.inc:
            divide(member, outcome.task, outcome.before, self._judge, now_ms)
        if member is None or not ends(member, outcome):
            self._late(node, outcome, now_ms)
            return
        if outcome.status is not Status.DONE:
            cause = _CAUSES.get(outcome.status)
            if cause is None:
                cause = Cause.NOTHING if member.stopping else Cause.LOSS
            ran = outcome.status is not Status.NO_INPUT
            if not ran or outcome.facts.type_name == DISK_PROBLEM:
                # Granted there again at once, it would use up its free retries in no time.
                self._judge.refused(member.use, Reason.NO_SPACE, now_ms)
            self._over(member, cause, why_of(outcome), outcome, ran, now_ms)
            self._acknowledge(node, outcome.token, now_ms)
            return
        result = outcome.result
        wanted = member is member.attempt.members[0]
        if wanted and isinstance(result, Ref) and result.digest not in self._pins:
            self._leave(member, MemberState.COLLECTING)
            member.bound_ms = FOREVER_MS
            self._pulls.wait(result, node, b"", (node, outcome))
            return
        self._done(member, outcome, now_ms)

    def on_divided(self, node: bytes, divided: Divided, now_ms: int) -> None:
        """A bundle takes long: what of it is done, and that only the next one still runs."""
        member = self.on_node.get(node, {}).get(divided.token)
        if member is None or member.inc != divided.inc or not member.attempt.more:
            return
        attempt = member.attempt
        position = len(divided.before)
        if position <= len(attempt.more):
            running = attempt.tasks()[position]
            divide(member, running.id, divided.before, self._judge, now_ms)
            self._listed(member, MemberState.RUNNING, now_ms)
            if wished(attempt.task):
                self.stop(attempt, now_ms)

    def _done(self, member: Member, outcome: Outcome, now_ms: int) -> None:
        member.use.learn(outcome.facts.run_us)
        member.attempt.task.cls.learn(outcome.facts.run_us)
        member.use.backoff_ms = 0
        self._view.forgive(member.node)
        self._over(member, None, "done", outcome, True, now_ms)
        self._acknowledge(member.node, outcome.token, now_ms)

    def _late(self, node: bytes, outcome: Outcome, now_ms: int) -> None:
        """No live member ended like this: it is being collected, or still counts, or is stale."""
        member = self._collecting(node, outcome)
        if member is not None:
            if isinstance(outcome.result, Ref):
                # If it is not on its way any more, there may be room for it by now.
                member.bound_ms = FOREVER_MS
                self._pulls.wait(outcome.result, node, b"", (node, outcome))
            return
        task = self._judge.welcomes(outcome)
        if task is None:
            self._count("outcome.stale")
        else:
            result = outcome.result
            if isinstance(result, Ref) and result.digest not in self._pins:
                self._pulls.wait(result, node, b"", (node, outcome))
                return
            self._judge.attempt_done(task, outcome, node, now_ms)
        self._acknowledge(node, outcome.token, now_ms)

    def _collecting(self, node: bytes, outcome: Outcome) -> Member | None:
        """The member whose large result is on its way here."""
        attempt = self.live.get(outcome.token)
        if attempt is None or attempt.task.id != outcome.task:
            return None
        member = attempt.members[0]
        found = member.state is MemberState.COLLECTING and member.node == node
        return member if found else None

    def on_collected(self, late: Late, now_ms: int) -> None:
        """The large result of an outcome is here, and pinned for the moment."""
        node, outcome = late
        member = self._collecting(node, outcome)
        if member is not None:
            self._done(member, outcome, now_ms)
        else:
            self._late(node, outcome, now_ms)

    def on_uncollected(self, late: Late, gone: bool, now_ms: int, *, here: bool = False) -> None:
        """The large result of an outcome cannot be had: the attempt is lost.

        What is gone is acknowledged; after a standstill the repeated Outcome may still count.
        Where the fault is that there is no room `here`, each repeated Outcome is another try.
        """
        node, outcome = late
        member = self._collecting(node, outcome)
        if here:
            if member is not None:
                member.bound_ms = now_ms + COLLECT_AGAIN_MS
            return
        if member is not None:
            self._over(member, Cause.LOSS, "result lost", None, True, now_ms)
        if gone:
            self._acknowledge(node, outcome.token, now_ms)

    def _acknowledge(self, node: bytes, token: Token, now_ms: int) -> None:
        """Let the worker forget, once all that was decided up to now is flushed."""
        self._out.when_flushed(self._owe_ack, (node, token), now_ms)

    def _owe_ack(self, ack: tuple[bytes, Token], now_ms: int) -> None:
        node, token = ack
        acks = self._acks.get(node)
        if acks is None:
            self._acks[node] = [token]
        else:
            acks.append(token)

    def send_acks(self) -> None:
        """Acknowledge everything of this turn, in few messages."""
        for node, tokens in self._acks.items():
            for at in range(0, len(tokens), OUTCOME_ACK_TOKENS_MAX):
                part = tuple(tokens[at : at + OUTCOME_ACK_TOKENS_MAX])
                self._out.send(node, OutcomeAck(part))
        self._acks.clear()

    # --- ends -------------------------------------------------------------------------------------

    def _leave(self, member: Member, state: MemberState) -> None:
        """Take a member out of every count: nothing of it runs any more."""
        member.state = state
        use = member.use
        use.live -= 1
        if member.ahead:
            member.ahead = False
            use.ahead -= 1
        elif use.ahead:
            use.promote()
        del self.on_node[member.node][member.attempt.token]
        self._judge.room(member.attempt.task.cls)

    def _over(
        self,
        member: Member,
        cause: Cause | None,
        why: str,
        outcome: Outcome | None,
        ran: bool,
        now_ms: int,
    ) -> None:
        """A member is proven ended; without a cause it is done.  The last proof is judged."""
        attempt = member.attempt
        if member.state is MemberState.COLLECTING:
            member.state = MemberState.ENDED
        else:
            self._leave(member, MemberState.ENDED)
        member.outcome = outcome
        first = attempt.members[0]
        if cause is None and member is first and outcome and isinstance(outcome.result, Ref):
            # A gang's others may take long, and nothing else keeps it here meanwhile.
            attempt.stored = outcome.result.digest
            self._pins.pin(attempt.stored)
        if ran:
            attempt.ran = True
        if cause is not None:
            if attempt.verdict is None:
                attempt.verdict = Verdict(cause, why, member.node, outcome)
            if len(attempt.members) > 1:
                self._abort(attempt, now_ms)
        if attempt.live():
            return
        task = attempt.task
        del self.live[attempt.token]
        task.attempts.remove(attempt)
        if attempt.verdict is not None:
            self._lost(attempt, now_ms)
        else:
            invariant(first.outcome is not None, "done without an outcome", attempt.token)
            if first.outcome is not None:
                self._judge.attempt_done(task, first.outcome, first.node, now_ms)
        self._pins.unpin(attempt.stored)

    def _lost(self, attempt: Attempt, now_ms: int) -> None:
        """What is left of the attempt is not done: judge each of its tasks, the last one first.

        So they stand in the queue in their order again.
        """
        tasks, attempt.more = attempt.tasks(), ()
        for one in tasks[1:]:
            one.attempts.remove(attempt)
        for one in reversed(tasks):
            attempt.task = one
            one.past = (*one.past[1 - PAST_TOKENS_MAX :], attempt.token)
            if self.on_lost is not None and attempt.ran:
                self.on_lost(one, attempt, now_ms)
            self._judge.attempt_lost(attempt, now_ms)

    def _abort(self, attempt: Attempt, now_ms: int) -> None:
        """A gang cannot be: stop it, and before it was held altogether, let it wait a while."""
        task = attempt.task
        cls = task.cls
        if not attempt.going and now_ms >= cls.aside_until_ms:
            cls.aside_ms = min(GANG_ASIDE_MS_MAX, 2 * cls.aside_ms or GANG_ASIDE_MS)
            # Two gangs that want the same nodes must not collide in step.
            spread = int.from_bytes(self.me[:4], "big") ^ (attempt.token.serial * 40_503)
            cls.aside_until_ms = now_ms + cls.aside_ms + spread % (cls.aside_ms // 2)
        self.stop(attempt, now_ms)

    def stop(self, attempt: Attempt, now_ms: int) -> None:
        """End whatever of it is not proven ended; of a bundle, once its tasks are apart."""
        if attempt.more and not all(map(wished, attempt.tasks())):
            self._ask_to_divide(attempt.members[0], now_ms)
            return
        for member in attempt.members:
            self._stop_member(member, now_ms)

    def _ask_to_divide(self, member: Member, now_ms: int) -> None:
        """Somebody's wish concerns one task of a bundle: the others must not suffer for it."""
        if not member.attempt.dividing or now_ms - member.sent_ms >= RENEW_MS:
            member.attempt.dividing = True
            member.sent_ms = now_ms
            self._check_ms = min(self._check_ms, now_ms + RENEW_MS)
            self._out.send(member.node, Recall(member.attempt.token, False))

    def _stop_member(self, member: Member, now_ms: int) -> None:
        if member.stopping or member.state in (MemberState.ENDED, MemberState.COLLECTING):
            return
        member.stopping = True
        if member.state is not MemberState.WRITING:
            member.sent_ms = now_ms
            self._check_ms = min(self._check_ms, now_ms + RENEW_MS)
            self._out.send(member.node, Recall(member.attempt.token, True))

    # --- what happens to nodes --------------------------------------------------------------------

    @staticmethod
    def _might_run(member: Member) -> bool:
        """Could a process have started there?"""
        attempt = member.attempt
        if member.state is MemberState.WRITING:
            return False
        # A gang's *go* is not journaled: of an adopted one nobody knows.
        unknown = attempt.adopted and not attempt.isolated
        return attempt.go or not attempt.hold or unknown

    def _restarted(self, member: Member, now_ms: int) -> None:
        might = self._might_run(member)
        cause = Cause.KILLER if might else Cause.NOTHING
        self._over(member, cause, "node restarted", None, might, now_ms)

    def on_incarnation(self, node: bytes, inc: int, now_ms: int) -> None:
        """A newer life of that node: nothing older runs there."""
        counter = inc_counter(inc)
        for member in list(self.on_node.get(node, {}).values()):
            if inc_counter(member.inc) < counter and member.state not in _SILENT:
                self._restarted(member, now_ms)

    def on_goodbye(self, node: bytes, inc: int, now_ms: int) -> None:
        """That life left in order and nothing of it runs."""
        for member in list(self.on_node.get(node, {}).values()):
            if member.inc == inc and member.state not in _SILENT:
                might = self._might_run(member)
                cause = Cause.LOSS if might else Cause.NOTHING
                self._over(member, cause, "node left", None, might, now_ms)

    def on_suspect(self, node: bytes, now_ms: int) -> None:
        """That node is silent: only pure tasks may run elsewhere before their bound."""
        for member in list(self.on_node.get(node, {}).values()):
            attempt = member.attempt
            spec = attempt.task.cls.spec
            if not spec.pure or spec.once or attempt.hold or attempt.abandoned:
                continue
            if member.state in _SILENT:
                continue
            for task in reversed(attempt.tasks()):
                granted = task.stop is None and task.state is TaskState.GRANTED
                if granted and len(task.attempts) < PURE_ATTEMPTS_MAX:
                    attempt.abandoned = True
                    self._judge.again(task, now_ms)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Bounds, repeated Grants and Recalls.

        Cost  one look at each live attempt a second.
        """
        if now_ms < self._check_ms:
            return
        for attempt in list(self.live.values()):
            for member in attempt.members:
                if member.state not in _SILENT:
                    self._check_member(member, now_ms)
                elif member.state is MemberState.COLLECTING:
                    self._check_collecting(member, now_ms)
        self._check_ms = now_ms + RENEW_MS if self.live else FOREVER_MS

    def next_deadline_ms(self) -> int:
        """When `tick` may next have something to do."""
        return self._check_ms

    def _check_member(self, member: Member, now_ms: int) -> None:
        attempt = member.attempt
        if now_ms >= member.bound_ms:
            self._view.avoid(member.node, now_ms, attempt.lease_ms)
            self._count("bound")
            self._over(member, Cause.LOSS, "bound passed", None, self._might_run(member), now_ms)
            return
        since_ms = now_ms - member.sent_ms
        if member.stopping:
            if since_ms >= RENEW_MS:
                member.sent_ms = now_ms
                self._out.send(member.node, Recall(attempt.token, True))
        elif attempt.dividing and any(map(wished, attempt.tasks())):
            self.stop(attempt, now_ms)
        elif attempt.hold and not attempt.going and now_ms - member.first_ms >= GANG_HOLD_MS:
            self._abort(attempt, now_ms)
        elif member.state is MemberState.SENT and since_ms >= GRANT_RESEND_MS:
            self._unlisted(member, now_ms)

    def _check_collecting(self, member: Member, now_ms: int) -> None:
        """Its result found no room here: give it up when nobody offers or wants it any more."""
        waits = member.bound_ms != FOREVER_MS
        if now_ms >= member.bound_ms or (waits and member.attempt.task.stop is not None):
            self._over(member, Cause.LOSS, "no room here for its result", None, True, now_ms)

    def _unlisted(self, member: Member, now_ms: int) -> None:
        """No Renew lists it yet: grant it again, and then give it up, for Recall moves no bound."""
        attempt = member.attempt
        late = now_ms - member.first_ms > attempt.lease_ms // 2
        if late or member.resends >= GRANT_RESENDS_MAX:
            self._stop_member(member, now_ms)
        elif self._view.fresh(member.node, attempt.lease_ms, now_ms) and (
            self._view.nodes[member.node].inc == member.inc
        ):
            member.resends += 1
            self._send_grant(member, now_ms)

    # --- restart ----------------------------------------------------------------------------------

    def adopt(self, task: Task, row: AttemptRow, now_ms: int) -> Attempt:
        """Take an attempt over from the journal: live again, with a fresh full bound from now."""
        lease_ms = row.lease_ms or task.cls.spec.lease_ms or self.lease_ms
        attempt = Attempt(row.token, task, lease_ms)
        attempt.adopted = True
        attempt.isolated = row.isolated
        attempt.hold = attempt.hold or row.isolated
        attempt.going = attempt.go = row.go
        for node, inc in row.members:
            self._view.get(node, short(node))
            member = Member(attempt, node, inc, task.cls.use(node))
            member.state = MemberState.SENT
            member.first_ms = member.sent_ms = now_ms
            member.bound_ms = now_ms + bound_ms(attempt.lease_ms)
            if attempt.hold:
                # It is not to be held anew.
                member.resends = GRANT_RESENDS_MAX
            self._enter(member)
        self.live[row.token] = attempt
        task.attempts.append(attempt)
        task.state = TaskState.GRANTED
        self._check_ms = min(self._check_ms, now_ms + RENEW_MS)
        return attempt

    def settle_adopted(self, attempt: Attempt, now_ms: int) -> None:
        """What is known of an adopted attempt at once: this node's own part is over."""
        if len(attempt.members) > 1:
            self.stop(attempt, now_ms)
        for member in list(attempt.members):
            if member.node == self.me and member.state is not MemberState.ENDED:
                self._restarted(member, now_ms)

    # --- checks -----------------------------------------------------------------------------------

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    def check(self) -> None:
        """Raise InvariantBroken where the books contradict each other."""
        for token, attempt in self.live.items():
            invariant(attempt.live(), "a dead attempt is in the table", token)
            for task in attempt.tasks():
                invariant(attempt in task.attempts, "an attempt its task does not know", token)
                queued = task.state is TaskState.QUEUED
                invariant(not queued or attempt.abandoned, "queued beside a live attempt", token)
            invariant(not attempt.more or len(attempt.members) == 1, "a bundle of a gang", token)
            for member in attempt.members:
                invariant(
                    member.state is not MemberState.SENT or member.bound_ms < FOREVER_MS,
                    "sent without a bound",
                    token,
                )
        for members in self.on_node.values():
            for token in members:
                invariant(token in self.live, "a member of no attempt", token)
