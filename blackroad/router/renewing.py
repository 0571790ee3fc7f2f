"""Renew: what a worker tells each owner of its live attempts, and what the answers confirm.

Source  docs/protocol.md, R-lease-10 and R-lease-13.  Pure.  This file must not know what becomes
of an attempt that is confirmed or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import AttemptState, Listed, Renew
from blackroad.limits import FOREVER_MS, RENEW_MS, RENEW_TOKENS_MAX
from blackroad.router.works import Correspondent, State

if TYPE_CHECKING:
    from blackroad.bus.messages import Renewed
    from blackroad.router.effects import Outbox
    from blackroad.router.works import Work

_LISTED = {
    State.WAITING: AttemptState.WAITING,
    State.HELD: AttemptState.HELD,
    State.RUNNING: AttemptState.RUNNING,
    State.ENDING: AttemptState.RUNNING,
}


class Renewing:
    """The live attempts by their owners, and when each owner hears of them next."""

    def __init__(self, inc: int, out: Outbox) -> None:
        self.owners: dict[bytes, Correspondent] = {}
        # No Renew is due before this.
        self.due_ms = FOREVER_MS
        self._inc = inc
        self._out = out

    def keep(self, work: Work) -> None:
        """An attempt is live from now on."""
        node = work.key[0]
        owner = self.owners.get(node)
        if owner is None:
            owner = self.owners[node] = Correspondent()
        owner.live[work.key] = work
        grant = work.grant
        due_ms = grant.echo_ms + min(RENEW_MS, grant.lease_ms // 4)
        if due_ms < owner.due_ms:
            owner.due_ms = due_ms
            self.due_ms = min(self.due_ms, due_ms)

    def release(self, work: Work) -> None:
        """It is live no more."""
        owner = self.owners[work.key[0]]
        del owner.live[work.key]
        if not owner.live:
            owner.due_ms = FOREVER_MS

    def confirmed(self, node: bytes, renewed: Renewed) -> list[Work]:
        """The live attempts that the Renew of that very stamp listed, the newest first."""
        owner = self.owners.get(node)
        if renewed.inc != self._inc or owner is None:
            return []
        listed = next((t for stamp, t in owner.lists if stamp == renewed.stamp_ms), None)
        if listed is None:
            return []
        return [work for key, work in reversed(owner.live.items()) if key[1] in listed]

    def tick(self, now_ms: int) -> None:
        """Send the Renews that are due."""
        if now_ms < self.due_ms:
            return
        for node, owner in self.owners.items():
            if owner.due_ms <= now_ms:
                self.tell(node, now_ms)
        self.due_ms = min((one.due_ms for one in self.owners.values()), default=FOREVER_MS)

    def tell(self, node: bytes, now_ms: int) -> None:
        """List the live attempts of one owner at this stamp; what is too much comes next."""
        owner = self.owners[node]
        if owner.lists and owner.lists[-1][0] >= now_ms:
            # The answer to a shorter list must not confirm what only a longer one names.
            owner.due_ms = owner.lists[-1][0] + 1
            self.due_ms = min(self.due_ms, owner.due_ms)
            return
        keys = [key for key in owner.rest if key in owner.live] or list(owner.live)
        owner.rest = keys[RENEW_TOKENS_MAX:]
        listed = []
        every_ms = RENEW_MS
        for key in keys[:RENEW_TOKENS_MAX]:
            work = owner.live[key]
            listed.append(Listed(key[1], _LISTED[work.state]))
            every_ms = min(every_ms, work.grant.lease_ms // 4)
        if not listed:
            owner.due_ms = FOREVER_MS
            return
        owner.due_ms = now_ms + (1 if owner.rest else every_ms)
        self.due_ms = min(self.due_ms, owner.due_ms)
        owner.lists.append((now_ms, frozenset(one.token for one in listed)))
        self._out.send(node, Renew(self._inc, now_ms, tuple(listed)))

    def live(self) -> int:
        """How many attempts are live."""
        return sum(len(owner.live) for owner in self.owners.values())
