"""The worker: the only authority over this machine's slots, memory and devices.

Source  docs/protocol.md, "Grant and lease".  Pure: stamps are this node's own boot-time clock,
given as `now_ms`.  This file must not know where tasks come from beyond their owner's node id,
nor how a process is started or killed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from blackroad.bus.messages import (
    Divided,
    Early,
    Facts,
    Grant,
    GrantFlag,
    Outcome,
    OutcomeAck,
    Reason,
    Recall,
    Ref,
    Refused,
    Renewed,
    Status,
    Supply,
)
from blackroad.errors import RemoteProtocolError, invariant
from blackroad.limits import (
    AHEAD_LATE_MS,
    BUNDLE_LATE_MS,
    FOREVER_MS,
    FORGET_STEP,
    KILL_GUARD_MS,
    LEASE_MS,
    TOMBSTONE_LEASES,
    TOMBSTONES_MAX,
    WAITING_BYTES_MAX,
    WAITING_PER_SLOT_MAX,
)
from blackroad.requirements import Ledger, fits, from_wire
from blackroad.router import ahead
from blackroad.router.bundles import may_bundle
from blackroad.router.effects import Divide, Extend, Kill, Outbox
from blackroad.router.objects import Pins, Pulls
from blackroad.router.renewing import Renewing
from blackroad.router.spool import Spool
from blackroad.router.works import Crowd, State, Tombstone, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blackroad.bus.messages import Payload
    from blackroad.capabilities import Capabilities
    from blackroad.ids import Token
    from blackroad.requirements import Ask
    from blackroad.router.effects import Key, SpoolRow

_HOLD = int(GrantFlag.HOLD)
_GO = int(GrantFlag.GO)
_EXCLUSIVE = int(GrantFlag.EXCLUSIVE)
_DURABLE = int(GrantFlag.DURABLE)


_WHY_STATUS = {
    "stop": Status.STOPPED,
    "leave": Status.STOPPED,
    "lapsed": Status.LAPSED,
    "timeout": Status.TIMEOUT,
}


class Worker:
    """Books, rules and clock of one machine's work."""

    def __init__(
        self, me: bytes, me_text: str, inc: int, caps: Capabilities, slots: int, out: Outbox
    ) -> None:
        self.me = me
        self.inc = inc
        self.caps = caps
        self.slots = slots
        self.draining = False
        # No room on disk: what must be flushed or fetched cannot be promised.
        self.full = False
        self.works: dict[Key, Work] = {}
        self.waiting: OrderedDict[Key, Work] = OrderedDict()
        # Of those in state WAITING, what lies with a process already; it is not in `waiting`.
        self.handed: dict[Key, Work] = {}
        self.tombstones: dict[Key, Tombstone] = {}
        # Of each owner: no unknown token up to this one ever starts.
        self.floors: dict[bytes, Token] = {}
        self.renewing = Renewing(inc, out)
        self._crowds: dict[tuple[bytes, int], Crowd] = {}
        self.running = 0
        self.held = 0
        self.done = 0
        self.known: set[bytes] = set()
        self.counters: dict[str, int] = {}
        self._out = out
        self._me_text = me_text
        self._exclusive: Key | None = None
        self._waiting_bytes = 0
        self._pins = Pins(out)
        self.spool = Spool(out, self._pins, self._settled)
        self._pulls: Pulls[Work] = Pulls(out)
        # No deadline is over before this.
        self._check_ms = FOREVER_MS
        self.ledger = self._new_ledger(caps)

    def _new_ledger(self, caps: Capabilities) -> Ledger:
        gpus = [device.memory_bytes for device in caps.gpus()]
        return Ledger(self.slots * 10_000, caps.memory_bytes, gpus)

    def set_capabilities(self, caps: Capabilities) -> None:
        """Take what the hardware probe found; the ledger grows once nothing is out."""
        self.caps = caps
        if not self.ledger.leases():
            self.ledger = self._new_ledger(caps)

    # --- Grant ------------------------------------------------------------------------------------

    def on_grant(self, owner: bytes, grant: Grant, now_ms: int) -> None:
        """Start, queue, hold or refuse one attempt: R-lease-7, R-lease-8."""
        key = (owner, grant.token)
        work = self.works.get(key)
        if work is not None:
            self._repeated(work, grant, now_ms)
            return
        if self.spool.again(key, now_ms) or self._buried(key, now_ms):
            return
        if grant.inc != self.inc:
            self._refuse(key, Reason.INCARNATION, now_ms)
            return
        ask, reason = self._judge(owner, grant, now_ms)
        if ask is None:
            self._bury(key, reason, now_ms)
            self._refuse(key, reason, now_ms)
            return
        deadline_ms = grant.echo_ms + grant.lease_ms - KILL_GUARD_MS
        work = Work(key, grant, ask, deadline_ms, self._crowd(owner, grant))
        self._admit(work, now_ms)

    def _crowd(self, owner: bytes, grant: Grant) -> Crowd:
        """The newest Grant of a class says how many of it may run."""
        crowd = self._crowds.get((owner, grant.cls))
        if crowd is None:
            crowd = Crowd(may_bundle(grant.spec))
        crowd.share = grant.share
        return crowd

    def _buried(self, key: Key, now_ms: int) -> bool:
        """Must this token never start?  Then say so again, and remember it longer."""
        tombstone = self.tombstones.pop(key, None)
        if tombstone is None:
            return False
        tombstone.touched_ms = now_ms
        self.tombstones[key] = tombstone
        self._refuse(key, tombstone.reason, now_ms)
        return True

    def _judge(self, owner: bytes, grant: Grant, now_ms: int) -> tuple[Ask | None, Reason]:
        floor = self.floors.get(owner)
        if (floor is not None and grant.token <= floor) or grant.echo_ms > now_ms:
            return None, Reason.LATE
        # *Go* only ever follows *hold*: a token that is to go but is not held here lapsed.
        if now_ms >= grant.echo_ms + grant.lease_ms - KILL_GUARD_MS or grant.flags & _GO:
            return None, Reason.LATE
        if self.draining:
            return None, Reason.DRAINING
        if grant.more and grant.flags & (_HOLD | _EXCLUSIVE | _DURABLE):
            return None, Reason.NEEDS
        if self.full and self._needs_space(grant):
            return None, Reason.NO_SPACE
        try:
            requirement = from_wire(grant.spec.needs)
        except RemoteProtocolError:
            return None, Reason.NEEDS
        index = fits(requirement, self.caps, self._me_text)
        if index < 0:
            return None, Reason.NEEDS
        return requirement.alternatives[index], Reason.FULL

    def _needs_space(self, grant: Grant) -> bool:
        """Must its outcome be flushed, or something be fetched for it?"""
        parts = (grant.code, grant.work)
        lacks = any(isinstance(part, Ref) and part.digest not in self.known for part in parts)
        return lacks or bool(grant.flags & _DURABLE)

    def _admit(self, work: Work, now_ms: int) -> None:
        """Put a sound grant where it belongs, or refuse it for want of room."""
        if work.grant.flags & _HOLD:
            if self._reserve(work):
                self._keep(work, State.HELD)
                self.held += 1
                self._ask_for_objects(work)
                self.renewing.tell(work.key[0], now_ms)
                return
        elif not self.waiting and not work.crowd.full() and self._reserve(work):
            self._keep(work, State.RUNNING)
            self.running += 1
            work.crowd.running += 1
            self._ask_for_objects(work)
            self._begin(work, now_ms)
            return
        elif (
            self.queued < WAITING_PER_SLOT_MAX * self.slots
            and self._waiting_bytes + work.bytes <= WAITING_BYTES_MAX
        ):
            self._keep(work, State.WAITING)
            self.waiting[work.key] = work
            self._waiting_bytes += work.bytes
            self._ask_for_objects(work)
            self._start_waiting(now_ms)
            return
        self._bury(work.key, Reason.FULL, now_ms)
        self._refuse(work.key, Reason.FULL, now_ms)

    def _repeated(self, work: Work, grant: Grant, now_ms: int) -> None:
        """The same token again: never a second start."""
        if work.state is not State.HELD:
            return
        if grant.flags & _GO and grant.inc == self.inc and now_ms < work.deadline_ms:
            self.held -= 1
            self.running += 1
            work.crowd.running += 1
            work.state = State.RUNNING
            self._begin(work, now_ms)
        else:
            self.renewing.tell(work.key[0], now_ms)

    def _keep(self, work: Work, state: State) -> None:
        work.state = state
        self.works[work.key] = work
        self.renewing.keep(work)
        crowd = work.crowd
        if not crowd.live:
            self._crowds[work.key[0], work.grant.cls] = crowd
        crowd.live += 1
        self._check_ms = min(self._check_ms, work.deadline_ms)

    # --- room, start, end -------------------------------------------------------------------------

    def _reserve(self, work: Work) -> bool:
        """Take the attempt's resources from the ledger, or nothing."""
        if self._exclusive is not None:
            return False
        exclusive = bool(work.grant.flags & _EXCLUSIVE)
        if exclusive and self.ledger.leases():
            return False
        work.lease = self.ledger.take(work.ask)
        if work.lease is None:
            return False
        if exclusive:
            self._exclusive = work.key
        return True

    def _begin(self, work: Work, now_ms: int) -> None:
        """Start the process of a running attempt, once all it needs is here."""
        if work.missing or work.begun or work.lease is None or now_ms >= work.deadline_ms:
            return
        self._begun(work, now_ms)

    def _begun(self, work: Work, now_ms: int) -> None:
        """From now on there is a process."""
        work.begun = True
        work.started_ms = now_ms
        grant = work.grant
        if grant.spec.timeout_ms:
            self._check_ms = min(self._check_ms, now_ms + grant.spec.timeout_ms)
        if grant.more:
            self._check_ms = min(self._check_ms, now_ms + BUNDLE_LATE_MS)
        self._out.add(ahead.start_of(work))
        ahead.opened(work)

    def _start_waiting(self, now_ms: int) -> None:
        """Start what waits, oldest first; what needs more than is free does not stop the rest."""
        if not self.queued or self._exclusive is not None:
            return
        started = []
        for key, work in self.waiting.items():
            if self.ledger.exhausted:
                break
            if now_ms >= work.deadline_ms or work.crowd.full():
                continue
            if self._reserve(work):
                started.append(key)
                work.state = State.RUNNING
                self.running += 1
                work.crowd.running += 1
                self._begin(work, now_ms)
            elif work.ask.cpu_units <= 10_000 and not work.ask.gpu and not work.ask.memory_bytes:
                break
        for key in started:
            self._waiting_bytes -= self.waiting.pop(key).bytes
        self._call_back()
        self._hand_ahead(now_ms)

    # --- handing ahead ----------------------------------------------------------------------------

    def _hand_ahead(self, now_ms: int) -> None:
        """Give what starts next to the processes that come free next: R-ahead-1."""
        waiting = self.waiting
        while waiting:
            key = next(iter(waiting))
            work = waiting[key]
            leader = ahead.leader_of(work, now_ms)
            if leader is None:
                return
            del waiting[key]
            self.handed[key] = work
            ahead.hand(work, leader, self._out, now_ms)
            self._check_ms = min(self._check_ms, now_ms + AHEAD_LATE_MS)

    def _call_back(self) -> None:
        """Nothing lies with a busy process while there is a free place: R-ahead-4."""
        if not self.handed or self.ledger.exhausted:
            return
        places: dict[Ask, int] = {}
        for work in self.handed.values():
            if work.crowd.full():
                continue
            left = places.get(work.ask)
            if left is None:
                left = self.ledger.room_for(work.ask)
            if left:
                ahead.ask_back(work, self._out)
                left -= 1
            places[work.ask] = left

    def on_returned(self, key: Key, now_ms: int) -> None:
        """What was handed ahead has not begun, and will not where it lay."""
        work = self.handed.pop(key, None)
        if work is None:
            return
        ahead.returned(work)
        self.waiting[key] = work
        self.waiting.move_to_end(key, last=False)
        if work.reason is not None:
            self._drop(work, work.reason, now_ms)
        self._start_waiting(now_ms)

    def _succeed(self, work: Work, now_ms: int) -> None:
        """The one before it is over: it takes that place, and may have begun there: R-ahead-3."""
        del self.handed[work.key]
        ahead.parted(work)
        invariant(self._reserve(work), "no room for what follows in a place that came free")
        self._waiting_bytes -= work.bytes
        work.state = State.RUNNING
        self.running += 1
        work.crowd.running += 1
        self._check_ms = min(self._check_ms, work.deadline_ms)
        self._begun(work, now_ms)
        reason, work.reason = work.reason, None
        if work.stop:
            self._kill(work, work.stop, now_ms)
        elif reason is Reason.RECALLED and work.grant.more:
            self._out.add(Divide(work.key))

    # --- ends -------------------------------------------------------------------------------------

    def _release(self, work: Work) -> None:
        """Give back what the attempt held; it is no longer live."""
        key = work.key
        del self.works[key]
        crowd = work.crowd
        crowd.open.pop(key, None)
        crowd.live -= 1
        if not crowd.live:
            del self._crowds[key[0], work.grant.cls]
        if work.lease is not None:
            self.ledger.give(work.lease)
            work.lease = None
        if self._exclusive == key:
            self._exclusive = None
        self.renewing.release(work)
        for part in (work.grant.code, work.grant.work):
            if isinstance(part, Ref):
                self._pins.unpin(part.digest)

    def on_finished(
        self,
        key: Key,
        status: Status,
        result: Payload,
        facts: Facts,
        now_ms: int,
        before: tuple[Early, ...] = (),
    ) -> None:
        """The attempt's processes are gone, and this is what it left."""
        work = self.works.get(key)
        if work is None or work.state not in (State.RUNNING, State.ENDING):
            return
        if work.state is State.ENDING and status is not Status.DONE:
            status = _WHY_STATUS.get(work.why, status)
        self.running -= 1
        work.crowd.running -= 1
        self.done += 1 + len(before)
        last = work.task_at(len(before))
        if status is Status.DONE:
            ahead.learn(work, facts, before)
        self._end(work, Outcome(key[1], last, self.inc, status, result, facts, before), now_ms)
        if work.follower is not None:
            self._succeed(work.follower, now_ms)
        self._start_waiting(now_ms)

    def on_split(self, key: Key, before: tuple[Early, ...], now_ms: int) -> None:
        """A bundle that takes long is divided: its owner may use what did not begin elsewhere."""
        work = self.works.get(key)
        if work is not None and work.grant.more:
            self._out.send(key[0], Divided(key[1], self.inc, before))

    def on_gone(self, key: Key, now_ms: int, before: tuple[Early, ...] = ()) -> None:
        """A killed attempt is proven gone and left no result."""
        work = self.works.get(key)
        if work is not None and work.state is State.ENDING:
            status = _WHY_STATUS.get(work.why, Status.STOPPED)
            self.on_finished(key, status, b"", Facts(text=work.why), now_ms, before)

    def _kill(self, work: Work, why: str, now_ms: int) -> None:
        if work.state is not State.RUNNING:
            return
        work.state, work.why = State.ENDING, why
        work.crowd.open.pop(work.key, None)
        if work.begun:
            self._out.add(Kill(work.key, why))
        else:
            self.on_gone(work.key, now_ms)

    def _drop(self, work: Work, reason: Reason, now_ms: int) -> None:
        """Give back an attempt that never started; of one handed ahead that has to be asked."""
        if work.after is not None:
            work.reason = reason
            ahead.ask_back(work, self._out)
            return
        self._unlist(work)
        self._release(work)
        self._bury(work.key, reason, now_ms)
        self._refuse(work.key, reason, now_ms)

    def _unlist(self, work: Work) -> None:
        if work.state is State.WAITING:
            del self.waiting[work.key]
            self._waiting_bytes -= work.bytes
        elif work.state is State.HELD:
            self.held -= 1
        else:
            self.running -= 1
            work.crowd.running -= 1

    def _end(self, work: Work, outcome: Outcome, now_ms: int) -> None:
        """An attempt ended: its outcome is owed."""
        self._release(work)
        durable = bool(work.grant.flags & _DURABLE)
        self.spool.owe(work.key, outcome, durable, now_ms)

    def _settled(self, key: Key, now_ms: int) -> None:
        """Nobody asks for that outcome any more: remember the token."""
        self._bury(key, Reason.LATE, now_ms)

    def restore(self, rows: Sequence[SpoolRow], now_ms: int) -> None:
        """Take over outcomes that an earlier life owes, and send them."""
        self.spool.restore(rows, now_ms)

    # --- other messages ---------------------------------------------------------------------------

    def on_recall(self, owner: bytes, recall: Recall, now_ms: int) -> None:
        """Give back unless started; with `stop`, end it whatever it does."""
        key = (owner, recall.token)
        work = self.works.get(key)
        if work is None:
            if not self.spool.again(key, now_ms) and not self._buried(key, now_ms):
                self._bury(key, Reason.RECALLED, now_ms)
                self._refuse(key, Reason.RECALLED, now_ms)
        elif work.state in (State.WAITING, State.HELD):
            if recall.stop:
                work.stop = "stop"
            self._drop(work, Reason.RECALLED, now_ms)
            self._start_waiting(now_ms)
        elif recall.stop:
            self._kill(work, "stop", now_ms)
        elif work.grant.more and work.begun and work.state is State.RUNNING:
            self._out.add(Divide(key))

    def on_renewed(self, owner: bytes, renewed: Renewed, now_ms: int) -> None:
        """Move the deadlines of what that very Renew listed and the owner did not refuse."""
        refused = frozenset(renewed.refused)
        # Newest first: what was handed ahead is to have no sooner deadline than the one before it.
        for work in self.renewing.confirmed(owner, renewed):
            if work.key[1] in refused:
                self._owner_refuses(work, now_ms)
            elif now_ms < work.deadline_ms:
                deadline_ms = renewed.stamp_ms + work.grant.lease_ms - KILL_GUARD_MS
                if deadline_ms > work.deadline_ms:
                    work.deadline_ms = deadline_ms
                    if work.begun or work.after is not None:
                        self._out.add(Extend(work.key, deadline_ms))
        self._start_waiting(now_ms)

    def _owner_refuses(self, work: Work, now_ms: int) -> None:
        if work.state is State.RUNNING:
            self._kill(work, "stop", now_ms)
        elif work.state in (State.WAITING, State.HELD):
            work.stop = "stop"
            self._drop(work, Reason.RECALLED, now_ms)

    def on_outcome_ack(self, owner: bytes, ack: OutcomeAck, now_ms: int) -> None:
        """The owner has the outcome: forget the result, remember the token."""
        for token in ack.tokens:
            self.spool.acknowledged((owner, token), now_ms)

    def drain(self, on: bool, now_ms: int) -> None:
        """Take nothing new and hand back what has not started; or take work again."""
        self.draining = on
        if on:
            for work in [w for w in self.works.values() if w.state in (State.WAITING, State.HELD)]:
                self._drop(work, Reason.DRAINING, now_ms)

    def leave(self, now_ms: int) -> None:
        """End what runs, nobody having asked for it but this node's own keeper: R-life-8."""
        for work in list(self.works.values()):
            work.stop = "leave"
            self._kill(work, "leave", now_ms)

    # --- objects ----------------------------------------------------------------------------------

    def _ask_for_objects(self, work: Work) -> None:
        """Fetch what the attempt lacks; all it needs stays here while it is live."""
        for ref in (work.grant.code, work.grant.work):
            if not isinstance(ref, Ref):
                continue
            self._pins.pin(ref.digest)
            if ref.digest not in self.known:
                work.missing.add(ref.digest)
                self._pulls.wait(ref, work.key[0], b"", work)

    def on_fetched(self, digest: bytes, now_ms: int) -> None:
        """An object is here."""
        self.known.add(digest)
        for work in self._pulls.over(digest):
            work.missing.discard(digest)
            if work.state is State.RUNNING and self.works.get(work.key) is work:
                self._begin(work, now_ms)

    def on_fetch_failed(self, digest: bytes, text: str, now_ms: int) -> None:
        """An object cannot be had: what needs it cannot run here."""
        for work in self._pulls.over(digest):
            if self.works.get(work.key) is not work or work.begun:
                continue
            if work.state is State.ENDING:
                continue
            self._unlist(work)
            facts = Facts(text=text[:512])
            outcome = Outcome(work.key[1], work.grant.task, self.inc, Status.NO_INPUT, b"", facts)
            self._end(work, outcome, now_ms)
        self._start_waiting(now_ms)

    def on_evicted(self, digest: bytes) -> None:
        """An object left the store: ask again when it is needed."""
        self.known.discard(digest)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Deadlines first, then repetitions and Renews."""
        if now_ms >= self._check_ms:
            self._check(now_ms)
        self.spool.tick(now_ms)
        self.renewing.tick(now_ms)
        horizon_ms = now_ms - TOMBSTONE_LEASES * LEASE_MS
        for _ in range(FORGET_STEP):
            key = next(iter(self.tombstones), None)
            if key is None or self.tombstones[key].touched_ms >= horizon_ms:
                break
            self._forget(key)

    def _check(self, now_ms: int) -> None:
        """Look at every deadline; note when the next one comes."""
        dropped = False
        for work in list(self.works.values()):
            if work.state is State.RUNNING:
                timeout_ms = work.grant.spec.timeout_ms
                if now_ms >= work.deadline_ms:
                    self._kill(work, "lapsed", now_ms)
                elif timeout_ms and work.begun and now_ms - work.started_ms >= timeout_ms:
                    self._kill(work, "timeout", now_ms)
                elif work.whole and work.begun and now_ms - work.started_ms >= BUNDLE_LATE_MS:
                    work.whole = False
                    self._out.add(Divide(work.key))
            elif work.state is not State.ENDING and now_ms >= work.deadline_ms:
                self._drop(work, Reason.LAPSED, now_ms)
                dropped = True
            elif work.after is not None and now_ms - work.handed_ms >= AHEAD_LATE_MS:
                ahead.ask_back(work, self._out)
        if dropped:
            self._start_waiting(now_ms)
        self._check_ms = self._soonest_ms()

    def _soonest_ms(self) -> int:
        soonest = FOREVER_MS
        for work in self.works.values():
            if work.state is State.ENDING or work.reason is not None:
                continue
            soonest = min(soonest, work.deadline_ms)
            if work.after is not None and not work.asked_back:
                soonest = min(soonest, work.handed_ms + AHEAD_LATE_MS)
            timeout_ms = work.grant.spec.timeout_ms
            if timeout_ms and work.begun:
                soonest = min(soonest, work.started_ms + timeout_ms)
            if work.whole and work.begun:
                soonest = min(soonest, work.started_ms + BUNDLE_LATE_MS)
        return soonest

    def next_deadline_ms(self) -> int:
        """When `tick` may next have something to do."""
        return min(self._check_ms, self.renewing.due_ms, self.spool.due_ms)

    # --- Refused, tombstones ----------------------------------------------------------------------

    def _refuse(self, key: Key, reason: Reason, now_ms: int) -> None:
        self.counters[reason.name] = self.counters.get(reason.name, 0) + 1
        self._out.send(key[0], Refused(key[1], self.inc, now_ms, reason))

    def _bury(self, key: Key, reason: Reason, now_ms: int) -> None:
        self.tombstones.pop(key, None)
        self.tombstones[key] = Tombstone(reason, now_ms)
        if len(self.tombstones) > TOMBSTONES_MAX:
            self._forget(next(iter(self.tombstones)))

    def _forget(self, key: Key) -> None:
        """Forget a token for good: of its owner no unknown token up to it starts from now on."""
        del self.tombstones[key]
        owner, token = key
        floor = self.floors.get(owner)
        if floor is None or token > floor:
            self.floors[owner] = token

    # --- questions --------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """How many are accepted and not known to have started."""
        return len(self.waiting) + len(self.handed)

    def supply(self) -> Supply:
        """The ledger as Heartbeats tell it."""
        totals, free = self.ledger.totals, self.ledger.free()
        return Supply(
            cpu_units=totals.cpu_units,
            memory_bytes=totals.memory_bytes,
            gpu_bytes=totals.gpus,
            free_cpu_units=free.cpu_units,
            free_memory_bytes=free.memory_bytes,
            running=self.running + self.held,
            waiting=self.queued,
            draining=self.draining,
            done=self.done,
        )

    def room_for(self, ask: Ask) -> int:
        """How many more attempts of this ask could start here now."""
        if self.draining or self._exclusive is not None or self.queued:
            return 0
        return self.ledger.room_for(ask)

    def check(self) -> None:
        """Raise InvariantBroken where the books contradict each other."""
        self.ledger.check()
        works = self.works.values()
        states = [work.state for work in works]
        crowds = self._crowds.values()
        out = sum(1 for work in works if work.lease is not None)
        invariant(out == self.ledger.leases(), "leases and ledger differ")
        invariant(states.count(State.WAITING) == self.queued, "waiting queue differs")
        follows = [work for work in works if work.after is not None]
        invariant(len(follows) == len(self.handed), "what is handed ahead differs")
        invariant(all(one.after.follower is one for one in follows if one.after), "wrong follower")
        ready = [one for crowd in crowds for one in crowd.open.values()]
        invariant(all(one.state is State.RUNNING for one in ready), "what is over may be followed")
        invariant(all(self.works.get(one.key) is one for one in ready), "followed beyond its end")
        invariant(states.count(State.HELD) == self.held, "held count differs")
        busy = states.count(State.RUNNING) + states.count(State.ENDING)
        invariant(busy == self.running, "running count differs")
        invariant(sum(crowd.running for crowd in crowds) == busy, "running by class differs")
        invariant(len(self.tombstones) <= TOMBSTONES_MAX, "too many tombstones")
        invariant(
            self.renewing.live() == len(works),
            "live count differs",
        )
        invariant(not any(key in self.spool for key in self.works), "live and ended at once")
        invariant(
            all(
                self._check_ms <= work.deadline_ms
                for work in works
                if work.state is not State.ENDING and work.reason is None
            ),
            "a deadline would be missed",
        )
