"""Keeps the member list of a running daemon: gossip, the door, orders, the change of keys.

Edge.  What a record means is judged in `bus/members.py`, what an order does in
`store/registrar.py`; this file spreads what is new and keeps it on disk.  It must not know
sockets: `send` takes a message for a linked peer, and the daemon is told by callbacks.

Spreading.  News go to all links at once, and again after 0.3 s and 1 s, since links may lose
messages.  Every ten seconds, and on each new link, peers compare digests and tell each other all
where they differ.  What came as part of a whole list is not told on: the others compare as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from blackroad.bus import keys
from blackroad.bus import messages as m
from blackroad.bus.admission import MEMBERS_PAGE_MAX, Member, Record, Role
from blackroad.bus.door import Door
from blackroad.bus.issuing import rotation
from blackroad.bus.members import body_of, pages
from blackroad.errors import BlackroadError, StateDirectoryProblem
from blackroad.ids import text32
from blackroad.limits import FOREVER_MS
from blackroad.store.registrar import Registrar

if TYPE_CHECKING:
    from blackroad.store.keyring import Keyring

ECHOES_MS: Final = (300, 1_000)
ASK_MS: Final = 10_000
ANSWER_GAP_MS: Final = 1_000
SAVE_MS: Final = 1_000
FLOOD_MAX: Final = 32
# Records looked at in one turn: signatures of a whole list must not hold the loop.
STEP_RECORDS: Final = 32
WAITING_PAGES_MAX: Final = 256
PAGE_BYTES_MAX: Final = 60 * 1024
MUTE_MS: Final = 60_000
ROTATE_ASK_MS: Final = 2_000
# The new key is used when everybody had the time to hear of it.
ROTATE_SPREAD_MS: Final = 2_000


class Keeper:
    """One daemon's share in keeping the list."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        send: Callable[[bytes, m.Message], object],
        linked: Callable[[], Iterable[bytes]],
        endpoints: Callable[[], tuple[str, ...]],
        door_endpoints: Callable[[], tuple[str, ...]],
        wall_ms: Callable[[], int],
        clock: Callable[[], int],
        pending_joins: bool = True,
    ) -> None:
        self.keyring = keyring
        self._send = send
        self._linked = linked
        self._endpoints = endpoints
        self._wall_ms = wall_ms
        self._clock = clock
        self._pending_joins = pending_joins
        self.registrar = Registrar(keyring, wall_ms=wall_ms, door_endpoints=door_endpoints)
        self.registrar.on_issued = self._issued
        self.registrar.on_door = self._open_door
        self.registrar.clock = clock
        # Set by the daemon.  Members changed; the door has another key; this node has other keys.
        self.on_changed: Callable[[list[Record]], None] = lambda _news: None
        self.on_door: Callable[[], None] = lambda: None
        self.on_reload: Callable[[], None] = lambda: None
        self.counters: dict[str, int] = {}
        self.problem = ""
        self._pages: deque[tuple[bytes, tuple[Record, ...], bool]] = deque()
        self._echoes: list[tuple[int, tuple[Record, ...]]] = []
        self._ask_due_ms = 0
        self._save_due_ms = FOREVER_MS
        self._answered_ms: dict[bytes, int] = {}
        self._asked_ms: dict[bytes, int] = {}
        self._muted_until_ms: dict[bytes, int] = {}
        self._rotate_due_ms = 0 if keyring.rotating() else FOREVER_MS
        self._rotate_turn = 0
        self._signed_ms = 0
        self._make_door()

    @property
    def door(self) -> Door | None:
        """The server's side of joining; None where this node is no admin."""
        return self.registrar.door

    @property
    def expelled(self) -> bool:
        """Was this node's own key revoked?"""
        own = self.keyring.member()
        return own is not None and own.revoked

    def door_told(self) -> bytes:
        """The door's public key, to be announced; b"" where nobody may ask without a token."""
        return self.keyring.door[0] if self.door is not None and self._pending_joins else b""

    def order(self, query: m.Query, role: Role) -> bytes:
        """Carry out one `cluster.*` order; return the answer.

        Raises  RemoteProtocolError with a text for people.
        """
        body = self.registrar.order(query.name, query.args, role)
        if query.name == "cluster.rotate":
            self._rotate_due_ms = self._clock()
        return body

    # --- the door ---------------------------------------------------------------------------------

    def _make_door(self) -> None:
        keyring = self.keyring
        self.registrar.door = None
        if keyring.door[1] and keyring.admin:
            self.registrar.door = Door(
                self.registrar.issuer,
                self._let_in,
                keyring.door,
                keyring.name,
                self._endpoints,
                pending_joins=self._pending_joins,
                serial=keyring.door_serial,
            )

    def _let_in(self, record: Record) -> None:
        try:
            self.registrar.issue([record])
        except StateDirectoryProblem as error:
            # It counts in memory and at the joiner, and is kept as soon as the disk allows.
            self._took([record])
            self._flood([record], self._clock())
            self._unsaved(error, self._clock())

    def _open_door(self) -> None:
        self._make_door()
        self.on_door()
        for node in self._linked():
            self._tell_door(node)

    def _tell_door(self, node: bytes) -> None:
        """Tell the door's secret to another admin, and to nobody else."""
        if self.door is not None and self._role_of(node) >= Role.ADMIN:
            self._send(node, m.DoorKey(self.keyring.door_serial, self.keyring.door[1]))

    def _role_of(self, node: bytes) -> int:
        members = self.keyring.members
        member = members.of_node(node)
        if member is None or members.by_key(member.key, self._wall_ms()) is None:
            return 0
        return member.role

    def _on_door_key(self, node: bytes, told: m.DoorKey) -> None:
        keyring = self.keyring
        known = (keyring.door_serial, keyring.door[1])
        if self._role_of(node) < Role.ADMIN or not keyring.admin:
            self._count("door.unwanted")
        elif (told.serial, told.secret) > known:
            self.registrar.take_door(told.secret, keys.curve_public(told.secret), told.serial)

    # --- gossip -----------------------------------------------------------------------------------

    def on_link(self, node: bytes, now_ms: int) -> None:
        """A link was opened: compare lists."""
        self._ask(node, now_ms)
        self._tell_door(node)

    def on_gossip(self, node: bytes, message: m.Message, now_ms: int) -> None:
        """Take one message about members from the owner of that link."""
        if self._muted_until_ms.get(node, 0) > now_ms:
            self._count("gossip.muted")
            return
        try:
            match message:
                case m.Members():
                    self._on_members(node, message, now_ms)
                case m.AskMembers():
                    self._on_ask(node, message, now_ms)
                case m.DoorKey():
                    self._on_door_key(node, message)
                case m.Rotate():
                    self._on_rotate(node, message)
        except StateDirectoryProblem as error:
            # What was merged counts in memory; the next save tries to keep it again.
            self._unsaved(error, now_ms)

    def _on_members(self, node: bytes, told: m.Members, now_ms: int) -> None:
        if len(self._pages) >= WAITING_PAGES_MAX:
            self._count("gossip.full")
            return
        whole = len(told.records) > FLOOD_MAX
        for at in range(0, len(told.records), STEP_RECORDS):
            self._pages.append((node, told.records[at : at + STEP_RECORDS], whole))
        self._step(now_ms)

    def _on_ask(self, node: bytes, asked: m.AskMembers, now_ms: int) -> None:
        members = self.keyring.members
        if asked.digest == members.digest:
            return
        # At most one whole list a second for each peer, however often it asks.
        if now_ms - self._answered_ms.get(node, -ANSWER_GAP_MS) < ANSWER_GAP_MS:
            return
        self._answered_ms[node] = now_ms
        for page in pages(members.records(), MEMBERS_PAGE_MAX, PAGE_BYTES_MAX):
            self._send(node, m.Members(members.digest, page))
        self._ask(node, now_ms)

    def _ask(self, node: bytes, now_ms: int) -> None:
        if now_ms - self._asked_ms.get(node, -ANSWER_GAP_MS) >= ANSWER_GAP_MS:
            self._asked_ms[node] = now_ms
            self._send(node, m.AskMembers(self.keyring.members.digest))

    def _step(self, now_ms: int) -> None:
        """Look at one part of what peers told."""
        if not self._pages:
            return
        node, records, whole = self._pages.popleft()
        members = self.keyring.members
        forged = members.forged
        news = members.merge(records, self._wall_ms())
        if members.forged > forged:
            # An honest peer has verified what it tells on.
            self._muted_until_ms[node] = now_ms + MUTE_MS
            self._count("gossip.forged")
        if not news:
            return
        self._save_due_ms = min(self._save_due_ms, now_ms + SAVE_MS)
        if not whole:
            self._flood(news, now_ms, but=node)
        self._took(news)

    def _flood(self, news: list[Record], now_ms: int, but: bytes = b"") -> None:
        for page in pages(news, MEMBERS_PAGE_MAX, PAGE_BYTES_MAX):
            self._spread(page, but)
            self._echoes += [(now_ms + after_ms, page) for after_ms in ECHOES_MS]

    def _spread(self, page: tuple[Record, ...], but: bytes = b"") -> None:
        told = m.Members(self.keyring.members.digest, page)
        for node in self._linked():
            if node != but:
                self._send(node, told)

    def _issued(self, news: list[Record]) -> None:
        self._flood(news, self._clock())
        self._took(news)

    def _took(self, news: list[Record]) -> None:
        """The list has changed: act on it, and vouch for new admins where the root's key is."""
        if (self.door is not None) != bool(self.keyring.door[1] and self.keyring.admin):
            self._make_door()
            self.on_door()
        self.on_changed(news)
        if self._rotate_due_ms != FOREVER_MS and not self._signed_ms:
            self._rotate_due_ms = self._clock()
        if self.keyring.root_secret:
            more = [
                one for one in self.registrar.issuer.countersign(news) if not self._has_by_root(one)
            ]
            if more:
                self.registrar.issue(more)

    def _has_by_root(self, record: Record) -> bool:
        what = body_of(record)
        return isinstance(what, Member) and any(
            one.body == record.body
            for one in self.keyring.members.records_by(self.keyring.members.root_public)
        )

    # --- other keys -------------------------------------------------------------------------------

    def _on_rotate(self, node: bytes, told: m.Rotate) -> None:
        """A member asks, over the link of its old key, that another one follows it."""
        member = self.keyring.members.of_node(node)
        if not self.keyring.admin or member is None or not self._role_of(node):
            self._count("rotate.unwanted")
            return
        try:
            self.registrar.issue(
                self.registrar.issuer.follow(
                    member, told.key, told.sign_key, told.proof, self._wall_ms()
                )
            )
        except StateDirectoryProblem:
            raise
        except BlackroadError:
            self._count("rotate.refused")

    def _rotate(self, now_ms: int) -> None:
        """Ask for a record of the next keys until there is one; then change to them."""
        made = self.keyring.rotating()
        if made is None:
            self._rotate_due_ms = FOREVER_MS
            return
        if self.keyring.members.by_key(made.curve_public) is None:
            self._ask_rotation(made)
            self._rotate_due_ms = now_ms + ROTATE_ASK_MS
        elif not self._signed_ms:
            self._signed_ms = now_ms
            self._rotate_due_ms = now_ms + ROTATE_SPREAD_MS
        elif self.keyring.switch():
            self._rotate_due_ms, self._signed_ms = FOREVER_MS, 0
            self.on_reload()

    def _ask_rotation(self, made: keys.NodeKeys) -> None:
        admins = [node for node in self._linked() if self._role_of(node) >= Role.ADMIN]
        if not admins:
            return
        self._rotate_turn += 1
        root = self.keyring.members.root_public
        said = rotation(root, self.keyring.own.node, made.curve_public)
        proof = keys.sign(made.sign_secret, said)
        asked = admins[self._rotate_turn % len(admins)]
        self._send(asked, m.Rotate(made.curve_public, made.sign_public, proof))

    # --- time -------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int:
        """When `tick` has something to do."""
        if self._pages:
            return 0
        echo_ms = min((due_ms for due_ms, _ in self._echoes), default=FOREVER_MS)
        return min(self._ask_due_ms, self._save_due_ms, self._rotate_due_ms, echo_ms)

    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        self._step(now_ms)
        due = [page for due_ms, page in self._echoes if due_ms <= now_ms]
        self._echoes = [one for one in self._echoes if one[0] > now_ms]
        for page in due:
            self._spread(page)
        if now_ms >= self._ask_due_ms:
            self._ask_due_ms = now_ms + ASK_MS
            here = list(self._linked())
            for node in here:
                self._ask(node, now_ms)
                self._tell_door(node)
            for table in (self._answered_ms, self._asked_ms, self._muted_until_ms):
                for gone in table.keys() - set(here):
                    del table[gone]
        try:
            if now_ms >= self._save_due_ms:
                self._save_due_ms = FOREVER_MS
                self.keyring.save_members()
                self.problem = ""
            if now_ms >= self._rotate_due_ms:
                self._rotate(now_ms)
        except StateDirectoryProblem as error:
            self._unsaved(error, now_ms)

    def _unsaved(self, error: StateDirectoryProblem, now_ms: int) -> None:
        self.problem = error.message
        self._save_due_ms = now_ms + ASK_MS
        if self._rotate_due_ms <= now_ms:
            self._rotate_due_ms = now_ms + ASK_MS

    def status(self) -> dict[str, Any]:
        """What `blackroad doctor` and the query `driver` show."""
        members = self.keyring.members
        return {
            "cluster": text32(self.keyring.cluster_id),
            "members": len(members.members()),
            "digest": text32(members.digest),
            "forged": members.forged,
            "refused": members.refused,
            "problem": self.problem,
            "door": dict(self.door.counters) if self.door else {},
            "gossip": dict(self.counters),
        }

    def _count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1
