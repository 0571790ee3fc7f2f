"""Outcomes that a worker owes: kept and told again until their owners acknowledge them.

Source  docs/protocol.md, "Outcome".  Pure.  This file must not know how attempts run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from blackroad.bus.messages import Facts, Outcome, Ref, Status
from blackroad.limits import (
    FOREVER_MS,
    OUTCOME_RESEND_MS,
    OUTCOME_RESEND_MS_MAX,
    SPOOL_BYTES_MAX,
    SPOOL_MS_MAX,
)
from blackroad.router.effects import Outbox, SpoolRow, UnspoolRow

if TYPE_CHECKING:
    from blackroad.router.effects import Key
    from blackroad.router.objects import Pins

_DROPPED = "its result was dropped: nobody fetched it, and the room for results was used up"


class Spooled:
    """An outcome that its owner has not acknowledged."""

    __slots__ = (
        *("bytes", "durable", "early_bytes", "key", "outcome"),
        *("resend_after_ms", "resend_ms", "since_ms"),
    )

    def __init__(self, key: Key, outcome: Outcome, durable: bool, now_ms: int) -> None:
        self.key = key
        self.outcome = outcome
        self.durable = durable
        self.since_ms = now_ms
        result = outcome.result
        # What is done of a bundle is small, and goes last where there is no room.
        self.early_bytes = sum([len(one.result) for one in outcome.before])
        self.bytes = self.early_bytes + (result.size if isinstance(result, Ref) else len(result))
        self.resend_after_ms = OUTCOME_RESEND_MS
        self.resend_ms = FOREVER_MS


class Spool:
    """All of them, oldest first; `settled` hears of each that nobody asks for any more."""

    def __init__(self, out: Outbox, pins: Pins, settled: Callable[[Key, int], None]) -> None:
        self.owed: dict[Key, Spooled] = {}
        self.bytes = 0
        self.dropped = 0
        self.due_ms = FOREVER_MS
        self._out = out
        self._pins = pins
        self._settled = settled

    def __contains__(self, key: Key) -> bool:
        return key in self.owed

    def owe(self, key: Key, outcome: Outcome, durable: bool, now_ms: int) -> None:
        """Take an outcome; a durable one is flushed before it is told."""
        spooled = Spooled(key, outcome, durable, now_ms)
        self._keep(spooled, now_ms)
        if durable:
            self._out.persist(SpoolRow(key[0], outcome))
            self._out.when_flushed(self._report, spooled, now_ms)
        else:
            self._report(spooled, now_ms)

    def _keep(self, spooled: Spooled, now_ms: int) -> None:
        self.owed[spooled.key] = spooled
        self.bytes += spooled.bytes
        if isinstance(spooled.outcome.result, Ref):
            self._pins.pin(spooled.outcome.result.digest)
        while self.bytes > SPOOL_BYTES_MAX:
            others = [one for one in self.owed.values() if one.bytes and one is not spooled]
            if not others:
                return
            large = (one for one in others if one.bytes > one.early_bytes)
            self._lighten(next(large, others[0]))

    def _lighten(self, spooled: Spooled) -> None:
        """Drop a result for want of room; how its attempt ended is still owed.

        Whoever forgot that too would refuse the token as one that never started.
        """
        self.dropped += 1
        outcome = spooled.outcome
        if spooled.bytes == spooled.early_bytes:
            # Without them it names a place in its bundle that is not its own: the owner drops it,
            # and its bound then ends the attempt.
            spooled.outcome = replace(outcome, before=())
            self.bytes -= spooled.bytes
            spooled.bytes = spooled.early_bytes = 0
            return
        if isinstance(outcome.result, Ref):
            self._pins.unpin(outcome.result.digest)
        status = Status.LAPSED if outcome.status is Status.DONE else outcome.status
        facts = Facts(outcome.facts.run_us, text=_DROPPED)
        spooled.outcome = replace(outcome, status=status, result=b"", facts=facts)
        self.bytes -= spooled.bytes - spooled.early_bytes
        spooled.bytes = spooled.early_bytes
        if spooled.durable:
            self._out.persist(SpoolRow(spooled.key[0], spooled.outcome))

    def again(self, key: Key, now_ms: int) -> bool:
        """Tell it again, where that attempt has ended and is not acknowledged."""
        spooled = self.owed.get(key)
        if spooled is None:
            return False
        if spooled.resend_ms != FOREVER_MS:
            # Else it is being written, and told when that is done.
            self._report(spooled, now_ms)
        return True

    def owner_back(self, owner: bytes, now_ms: int) -> None:
        """It was away, and would start again what ended long ago: tell it now, not when due.

        Cost  one look at each, and nodes come seldom.
        """
        for key, spooled in self.owed.items():
            if key[0] == owner and spooled.resend_ms != FOREVER_MS:
                spooled.resend_after_ms = OUTCOME_RESEND_MS
                self._report(spooled, now_ms)

    def _report(self, spooled: Spooled, now_ms: int) -> None:
        if self.owed.get(spooled.key) is not spooled:
            return
        spooled.resend_ms = now_ms + spooled.resend_after_ms
        self.due_ms = min(self.due_ms, spooled.resend_ms)
        self._out.send(spooled.key[0], spooled.outcome)

    def acknowledged(self, key: Key, now_ms: int) -> None:
        """Its owner has it."""
        spooled = self.owed.get(key)
        if spooled is not None:
            self._let_go(spooled, now_ms)

    def _let_go(self, spooled: Spooled, now_ms: int) -> None:
        key = spooled.key
        del self.owed[key]
        self.bytes -= spooled.bytes
        if isinstance(spooled.outcome.result, Ref):
            self._pins.unpin(spooled.outcome.result.digest)
        if spooled.durable:
            self._out.persist(UnspoolRow(key[0], key[1]))
        self._settled(key, now_ms)

    def _give_up(self, spooled: Spooled, now_ms: int) -> None:
        self.dropped += 1
        self._let_go(spooled, now_ms)

    def restore(self, rows: Sequence[SpoolRow], now_ms: int) -> None:
        """Take over what an earlier life owes, and tell it."""
        for row in rows:
            spooled = Spooled((row.owner, row.outcome.token), row.outcome, True, now_ms)
            self._keep(spooled, now_ms)
            self._report(spooled, now_ms)

    def tick(self, now_ms: int) -> None:
        """Repeat what is due; give up what is too old.

        Cost  one look at each, but only when one of them is due.
        """
        if now_ms < self.due_ms:
            return
        for spooled in list(self.owed.values()):
            if now_ms - spooled.since_ms >= SPOOL_MS_MAX:
                self._give_up(spooled, now_ms)
            elif now_ms >= spooled.resend_ms:
                spooled.resend_after_ms = min(OUTCOME_RESEND_MS_MAX, 2 * spooled.resend_after_ms)
                self._report(spooled, now_ms)
        self.due_ms = min((one.resend_ms for one in self.owed.values()), default=FOREVER_MS)
