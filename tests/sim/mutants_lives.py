"""Mutants about what a node is and has: its lives, its disk, its objects, its repeated submits."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from blackroad.bus import messages as m
from blackroad.discovery.lives import Lives
from blackroad.router.attempts import Attempts
from blackroad.router.memory import Memory
from blackroad.router.owner import Owner
from blackroad.router.spool import Spool
from tests.sim.machine import Machine
from tests.sim.mutants import LIVENESS, SAFETY, Patch, mutant
from tests.sim.objects import Objects, Span

# --- lives --------------------------------------------------------------------------------------


@mutant(SAFETY, "life-1", focus=("daemon_crash",))
def counter_not_raised() -> list[Patch]:
    """A daemon starts under the counter of its last life."""
    original = Machine._serve

    def serve(self: Machine) -> None:
        self.disk.counter = max(0, self.disk.counter - 1)
        original(self)

    return [(Machine, "_serve", serve)]


@mutant(LIVENESS, "life-2", focus=("roll_back",), story="forgotten_lives")
def amnesia_ignored() -> list[Patch]:
    """A node that is told of lives it does not remember goes on in its own."""
    return [(Lives, "_on_told", lambda *_: [])]


@mutant(LIVENESS, "life-3", focus=("clone",), story="two_of_one")
def clone_ignored() -> list[Patch]:
    """Two lives of one identity are both spoken to."""
    return [(Lives, "on_sign", lambda *_: [])]


# --- disk ---------------------------------------------------------------------------------------


@mutant(SAFETY, "limit-1", focus=("full_disk",), story="no_room")
def space_ignored() -> list[Patch]:
    """An owner takes durable work while its disk has no room."""
    original = Owner._accept

    def accept(self: Owner, *rest: Any) -> None:
        self.full, full = False, self.full
        original(self, *rest)
        self.full = full

    return [(Owner, "_accept", accept)]


@mutant(SAFETY, "submit-8", story="kept_for_its_time")
def retention_too_short() -> list[Patch]:
    """Durable outcomes are kept for a minute."""
    original = Memory.due

    def due(self: Memory, now_ms: int) -> Any:
        old = [task for task, since in self._retained.items() if now_ms - since >= 60_000]
        for task in old:
            del self._retained[task]
            yield task
        yield from original(self, now_ms)

    return [(Memory, "due", due)]


# --- objects ------------------------------------------------------------------------------------


@mutant(SAFETY, "object-1", focus=("flips",), story="flipped_bits")
def digest_not_checked() -> list[Patch]:
    """An object is used whatever its bytes are."""
    original = Objects.on_chunk

    def on_chunk(self: Objects, digest: bytes, offset: int, span: Span) -> None:
        if digest in self.pulls and not span.fine:
            self._world.observer.unfit.add((self._machine.index, digest))
        original(self, digest, offset, Span(span.bytes, True))

    return [(Objects, "on_chunk", on_chunk)]


@mutant(SAFETY, "outcome-3", story="result_on_its_way")
def ack_before_stored() -> list[Patch]:
    """A *done* is told and acknowledged before its large result is here."""
    original = Attempts.on_outcome

    def on_outcome(self: Attempts, node: bytes, outcome: m.Outcome, now_ms: int) -> None:
        member = self.on_node.get(node, {}).get(outcome.token)
        large = isinstance(outcome.result, m.Ref) and outcome.status is m.Status.DONE
        if member is not None and large and member.inc == outcome.inc:
            self._done(member, outcome, now_ms)
        else:
            original(self, node, outcome, now_ms)

    return [(Attempts, "on_outcome", on_outcome)]


@mutant(SAFETY, "object-2", focus=("evict",), story="evicted_result")
def result_not_pinned() -> list[Patch]:
    """A worker does not pin the result that it owes."""
    original = Spool._keep

    def keep(self: Spool, spooled: Any, now_ms: int) -> None:
        original(self, spooled, now_ms)
        if isinstance(spooled.outcome.result, m.Ref):
            self._pins.unpin(spooled.outcome.result.digest)

    return [(Spool, "_keep", keep)]


# --- submits ------------------------------------------------------------------------------------


@mutant(SAFETY, "submit-4", story="named_twice")
def twins_in_one_submit() -> list[Patch]:
    """A Submit that names a task twice makes two tasks of it."""
    original = Owner._take

    def take(self: Owner, client: bytes, submit: m.Submit, items: Any, now_ms: int) -> None:
        fresh = {item.task for item in items}
        original(self, client, submit, [i for i in submit.tasks if i.task in fresh], now_ms)

    return [(Owner, "_take", take)]


@mutant(SAFETY, "submit-4", focus=("daemon_crash",), story="asked_again")
def repeated_submit_taken_again() -> list[Patch]:
    """A Submit of a task that is known and ended queues it once more."""
    original = Owner.on_submit

    def on_submit(self: Owner, client: bytes, submit: m.Submit, now_ms: int) -> None:
        for item in submit.tasks:
            task = self.tasks.get(item.task)
            if task is not None and task.ended is not None:
                self.forget(task)
        original(self, client, replace(submit), now_ms)

    return [(Owner, "on_submit", on_submit)]
