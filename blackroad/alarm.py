"""Raises the alarm about tasks that nobody places: asks the coordinator first whether it knows why.

Edge.  What is suspicious, and what explains it, is decided in `router/watchdog.py`.  This file must
not know rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blackroad.bus.messages import Query, Reply
from blackroad.limits import QUERY_MS
from blackroad.router import why as explaining
from blackroad.router.watchdog import Suspicion, Watchdog, verdict

if TYPE_CHECKING:
    from blackroad.bus.messages import Message
    from blackroad.node import Node

# Numbers of relayed questions begin at 1.
FIRST_QUERY: Final = 2**61
ANSWER_BYTES_MAX: Final = 2**22
PAGE_BYTES: Final = 1_024


@dataclass(slots=True)
class _Asked:
    suspicion: Suspicion
    node: bytes
    until_ms: int
    pages: list[bytes]
    heard_bytes: int = 0


class Alarm:
    """Watches the tasks of one owner."""

    def __init__(
        self,
        node: Node,
        send: Callable[[bytes, Message], object],
        tell: Callable[..., None],
    ) -> None:
        self._node = node
        self._send = send
        self._tell = tell
        self._dog = Watchdog()
        self._serial = FIRST_QUERY
        self._asked: dict[int, _Asked] = {}

    def tick(self, now_ms: int) -> None:
        """Once a second: look, ask, and give up on who does not answer."""
        for serial, asked in list(self._asked.items()):
            if now_ms >= asked.until_ms:
                del self._asked[serial]
                self._judge(asked.suspicion, None, now_ms)
        node = self._node
        if not any(cls.queued for cls in node.owner.by_id.values()):
            return
        peers = node.membership.present()
        supplies = {peer.node: peer.beat.supply for peer in peers}
        supplies[node.me] = node.beat(now_ms).supply
        for suspicion in self._dog.look(node.owner, supplies, now_ms):
            self._ask(suspicion, now_ms)

    def take(self, node: bytes, found: list[Message], now_ms: int) -> list[Message]:
        """Take the answers to what was asked here; return the rest."""
        if not self._asked:
            return found
        rest = []
        for message in found:
            asked = self._asked.get(message.query) if isinstance(message, Reply) else None
            if asked is None or asked.node != node or not isinstance(message, Reply):
                rest.append(message)
            else:
                self._on_reply(message, asked, now_ms)
        return rest

    def _ask(self, suspicion: Suspicion, now_ms: int) -> None:
        node = self._node
        cls = suspicion.task.cls.id
        coordinator = node.owner.granting.coordinator
        if not coordinator:
            self._judge(suspicion, None, now_ms)
        elif coordinator == node.me:
            pool = explaining.pool(node.coordinator, node.me, cls, now_ms)
            self._judge(suspicion, pool, now_ms)
        else:
            self._serial += 1
            until_ms = now_ms + QUERY_MS
            self._asked[self._serial] = _Asked(suspicion, coordinator, until_ms, [])
            args = msgspec.msgpack.encode({"owner": node.me, "cls": cls})
            self._send(coordinator, Query(self._serial, coordinator, "pool", args))

    def _on_reply(self, reply: Reply, asked: _Asked, now_ms: int) -> None:
        asked.pages.append(reply.body)
        # An empty page is a page, too.
        asked.heard_bytes += len(reply.body) + PAGE_BYTES
        if not reply.last and asked.heard_bytes <= ANSWER_BYTES_MAX:
            return
        del self._asked[reply.query]
        pool = None if reply.error else explaining.read_pool(b"".join(asked.pages))
        self._judge(asked.suspicion, pool, now_ms)

    def _judge(self, suspicion: Suspicion, pool: dict[str, Any] | None, now_ms: int) -> None:
        facts = verdict(self._node.owner, suspicion, pool, now_ms)
        if facts is None:
            self._dog.settled(suspicion)
        else:
            self._tell("task.stuck", **facts)
