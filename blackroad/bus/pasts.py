"""Lives of peers, beyond the links to them: the newest, where another one was, who is refused.

Source  docs/protocol.md, R-link-6, R-life-2, R-life-3.  Pure.  This file must not know who is
alive: a life stays known when its link is long gone, so that its node can be reminded of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blackroad.ids import inc_counter
from blackroad.limits import PEERS_MAX

if TYPE_CHECKING:
    from collections.abc import Container


class Past(NamedTuple):
    """The newest life that was heard of a node, and how far its journal had come."""

    inc: int = 0
    mark: int = 0


NOTHING = Past()


class Pasts:
    """What is kept of every node that was ever heard of, at most PEERS_MAX of them."""

    def __init__(self) -> None:
        self._newest: dict[bytes, Past] = {}
        # By node: an inbox of another life than the one that counts, and that life.
        self._formers: dict[bytes, tuple[str, int]] = {}
        # By node: the lives that are refused, the newest last, and where they listen.
        self._shunned: dict[bytes, tuple[list[int], list[tuple[str, int]]]] = {}

    def of(self, node: bytes) -> Past:
        """The newest life of that node."""
        return self._newest.get(node, NOTHING)

    def remember(self, node: bytes, inc: int, mark: int, linked: Container[bytes]) -> None:
        """Hear of a life of that node, by whatever path; who is linked is never forgotten."""
        known = self._newest.get(node)
        if known is None:
            if len(self._newest) >= PEERS_MAX:
                gone = next((one for one in self._newest if one not in linked), None)
                if gone is None:
                    return
                for book in (self._newest, self._formers, self._shunned):
                    book.pop(gone, None)
            self._newest[node] = Past(inc, mark)
        elif inc_counter(inc) > inc_counter(known.inc) or mark > known.mark:
            newest = max(known.inc, inc, key=inc_counter)
            self._newest[node] = Past(newest, max(known.mark, mark))

    def elsewhere(self, node: bytes, endpoint: str, inc: int) -> None:
        """Another life of that node than the newest was met there."""
        if node in self._newest:
            self._formers[node] = (endpoint, inc)

    # --- clones -----------------------------------------------------------------------------------

    def shun(self, node: bytes, endpoint: str, inc: int) -> None:
        """Refuse the newest life of that node, which listens there, and the one beside it."""
        there = [self._formers[node]] if node in self._formers else []
        if endpoint:
            there.append((endpoint, inc))
        lives = [one for _, one in there] + [self.of(node).inc]
        self._shunned[node] = (sorted(lives, key=inc_counter), there)

    def where(self, node: bytes) -> list[tuple[str, int]]:
        """Where the refused lives of that node listen; empty for a node that is not refused."""
        return self._shunned[node][1] if node in self._shunned else []

    def shunned(self) -> dict[bytes, list[str]]:
        """All nodes whose identity two machines use, and where these listen, as far as is known."""
        return {
            node: list(dict.fromkeys(endpoint for endpoint, _ in there))
            for node, (_, there) in self._shunned.items()
        }

    def is_shunned(self, node: bytes, inc: int) -> bool:
        """Is that life one of those refused?

        A newer one is judged anew; an older one that is new here only has to learn its age.
        """
        shunned = self._shunned.get(node)
        if shunned is not None and inc_counter(inc) > inc_counter(shunned[0][-1]):
            del self._shunned[node]
            return False
        return shunned is not None and inc in shunned[0]
