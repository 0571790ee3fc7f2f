"""Programs that use the mesh over TCP: whose key each came with, and what its role may say.

Pure.  What anybody says is judged in `allowing.py`; this file must not know sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blackroad.bus.allowing import sifted
from blackroad.bus.members import Member, Role

if TYPE_CHECKING:
    from blackroad.bus.guard import Guard
    from blackroad.bus.messages import Message

VISITORS_MAX = 4_096
# The first byte of a client's handle: it came over TCP.
OVER_TCP = b"t"


class Visitors:
    """Everybody who speaks as a client over TCP; without a guard nobody is told apart."""

    def __init__(self, guard: Guard | None, tell: Callable[[bytes, Message], None]) -> None:
        self._guard = guard
        self._tell = tell
        self._keys: dict[bytes, bytes] = {}
        self.refused = 0

    def allowed(
        self, route: bytes, said: list[Message], member: Member, node: bytes
    ) -> list[Message]:
        """What that member may say here; `node` answers the rest."""
        if route not in self._keys and len(self._keys) >= VISITORS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[route] = member.key
        allowed, answers = sifted(said, member.role, node)
        self.refused += len(answers)
        for answer in answers:
            self._tell(OVER_TCP + route, answer)
        return allowed

    def role_of(self, client: bytes) -> Role:
        """What that client may do: whoever reaches this machine's own socket, everything."""
        if client[:1] != OVER_TCP:
            return Role.ADMIN
        if self._guard is None:
            return Role.SUBMIT
        member = self._guard.member(self._keys.get(client[1:], b""))
        return member.role if member is not None else Role.VIEW

    def may_hear(self, client: bytes) -> bool:
        """May that client be told anything?  The connection of a revoked one may still stand."""
        return self._guard is None or client[:1] != OVER_TCP or client[1:] in self._keys

    def leave(self) -> list[bytes]:
        """Forget whose key does not count any more; return their handles."""
        guard = self._guard
        if guard is None:
            return []
        gone = [route for route, key in self._keys.items() if guard.member(key) is None]
        for route in gone:
            del self._keys[route]
        return [OVER_TCP + route for route in gone]
