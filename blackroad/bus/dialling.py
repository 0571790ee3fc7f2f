"""Addresses where somebody may be: greeted until somebody answers, whoever that is.

Source  docs/protocol.md, "Opening a link".  Edge.  All addresses of one node are greeted at once,
and the first to answer wins; while another one may be better it is asked again now and then.  What
follows from an answer is the transport's business; this file must not know links, lives or
sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blackroad.bus.addresses import ORDINARY, Addresses
from blackroad.bus.asides import send_alone
from blackroad.bus.link import GREET_MS_MAX, RETRY_MS
from blackroad.bus.sockets import connect
from blackroad.limits import FOREVER_MS, HINTS_MAX, PEERS_MAX

if TYPE_CHECKING:
    from blackroad.bus.messages import Hello, Message
    from blackroad.bus.sockets import Bus, Socket

DIAL_MS: Final = 1_000
# In a closed cluster only its owner's key opens an address; whose it is, is found by trying.
KEYS_AT_ONCE: Final = 4
KEY_MS: Final = 400
KEY_MS_MAX: Final = 3_200
# So often the owner that was named is tried before all the others are.
NAMED_TRIES: Final = 3
# Addresses of one node that are greeted at a time, and for how long before others get a turn.
RACE_MAX: Final = 8
RACE_MS: Final = 3_000
# Containers, tunnels and the like start later: they win only where nothing else answers.
LATE_MS: Final = 300
# A better address is asked so often whether it works (again): soon after a move, then rarely.
PROBE_SOON_MS: Final = 5_000
PROBE_MS: Final = 60_000
PROBE_LASTS_MS: Final = 3_000
# An address that nobody answered from for so long has had its chance: it makes room for others.
CHANCE_MS: Final = 5_000
DIALS_MAX: Final = 1_024
MDNS: Final = "mdns"
TOLD: Final = "told"


class Attempt(NamedTuple):
    """What became of one address, for people."""

    endpoint: str
    source: str
    node: bytes
    # "waits" for a connection, "silent" after a greeting, or the reason of a refusal.
    result: str


class _Dial:
    """An address that somebody hinted at; who is there is not known yet."""

    __slots__ = (
        "at",
        "born_ms",
        "due_ms",
        "endpoint",
        "every_ms",
        "key_ms",
        "node",
        "refused",
        "retry_ms",
        "round_ms",
        "rounds",
        "said_ms",
        "sockets",
        "source",
        "tries",
        "turn_ms",
        "until_ms",
    )

    def __init__(
        self, endpoint: str, node: bytes, source: str, due_ms: int, now_ms: int, until_ms: int
    ) -> None:
        self.endpoint = endpoint
        self.node = node
        self.source = source
        self.born_ms = now_ms
        self.until_ms = until_ms
        # By the key that each expects of who answers.
        self.sockets: dict[bytes, Socket] = {}
        self.due_ms = due_ms
        self.every_ms = DIAL_MS
        self.retry_ms = RETRY_MS
        self.tries = 0
        # Why somebody there will not have it.
        self.refused = ""
        self.said_ms = 0
        # How long the answer took, -1 before there is one.
        self.round_ms = -1
        self.at = 0
        self.rounds = 0
        self.key_ms = KEY_MS
        self.turn_ms = due_ms


class _Place:
    """What is known of where one node is."""

    __slots__ = (
        "addresses",
        "at",
        "owed",
        "probe_due_ms",
        "probing_ms",
        "skip",
        "source",
        "turn_ms",
        "until_ms",
        "wait_ms",
    )

    def __init__(self) -> None:
        self.addresses = Addresses()
        # Where it is spoken to; nowhere while a race is on.
        self.at = ""
        # What goes to it before anything else, on whichever connection comes to be.
        self.owed: Message | None = None
        self.probe_due_ms = FOREVER_MS
        # How long until they are asked again after that.
        self.wait_ms = PROBE_SOON_MS
        # Since when better addresses are being asked, 0 while they are not.
        self.probing_ms = 0
        # Of more addresses than are greeted at once: which are, and when the next ones are.
        self.skip = 0
        self.turn_ms = FOREVER_MS
        # Who says that it is there, and how long that is worth a try.
        self.source = TOLD
        self.until_ms = FOREVER_MS


class Dialler:
    """All addresses that were hinted at, and the connections that try them."""

    def __init__(
        self,
        bus: Bus,
        greeting: Callable[[str, bytes], Hello],
        known: Callable[[str], bool],
        keys_for: Callable[[bytes], Sequence[bytes]],
        count: Callable[[str], None],
        own: Callable[[str], bool],
    ) -> None:
        """Greet with `greeting(endpoint, node)`, node b"" where a stranger might read it.

        A hint without a node is left where its address is `known`; one's `own` is never dialled.
        `keys_for(node)` lists what may be behind an address of that node, of any node for b"";
        without keys it is [b""].
        """
        self._bus = bus
        self._greeting = greeting
        self._known = known
        self._own = own
        self._keys_for = keys_for
        self._count = count
        self._dials: dict[tuple[bytes, str], _Dial] = {}
        self._places: dict[bytes, _Place] = {}
        self._due_ms = FOREVER_MS
        self._stale = True
        # A node answered there and is to be spoken to on that connection from now on.
        self.on_found: Callable[[bytes, str, Socket, int], None] = lambda *_found: None

    def __contains__(self, endpoint: str) -> bool:
        return any(there == endpoint for _, there in self._dials)

    def unanswered(self) -> list[str]:
        """Addresses that were hinted at, and where nobody has said a word yet."""
        # Better addresses of somebody who is being spoken to are no unanswered hints.
        return [
            dial.endpoint
            for dial in self._dials.values()
            if not dial.refused and not self._at(dial.node)
        ]

    def attempts(self) -> list[Attempt]:
        """What is being tried, and what came of it so far."""
        return [
            Attempt(
                dial.endpoint,
                dial.source,
                dial.node,
                dial.refused or ("silent" if dial.said_ms else "waits"),
            )
            for dial in self._dials.values()
        ]

    # --- addresses --------------------------------------------------------------------------------

    def hint(
        self,
        endpoint: str,
        now_ms: int,
        until_ms: int = FOREVER_MS,
        node: bytes = b"",
        source: str = "static",
    ) -> None:
        """Somebody may be there, perhaps `node`; greet until somebody answers, or until then."""
        if self._own(endpoint):
            return
        self._stale = True
        if not node:
            if not self._known(endpoint):
                self._enter(endpoint, node, source, now_ms, now_ms, until_ms)
            return
        place = self._place(node)
        if place is None:
            return
        news = place.addresses.learn((endpoint,), told=False)
        if place.at:
            if news:
                self._probe_soon(node, place, now_ms + PROBE_SOON_MS)
            return
        if not any(dial.node == node for dial in self._dials.values()):
            place.source, place.until_ms = source, until_ms
        self._start(node, place, now_ms)

    def learn(self, node: bytes, endpoints: Iterable[str], now_ms: int) -> None:
        """The node itself says that it listens there."""
        place = self._place(node)
        if place is None:
            return
        there = [endpoint for endpoint in endpoints if not self._own(endpoint)]
        news = place.addresses.learn(there, told=True)
        if news and place.at:
            self._stale = True
            self._probe_soon(node, place, now_ms + PROBE_SOON_MS)

    def addresses(self, node: bytes) -> list[str]:
        """Where others may look for that node, the likely addresses first."""
        place = self._places.get(node)
        if place is None:
            return []
        there = place.addresses.told()
        return [place.at, *(one for one in there if one != place.at)] if place.at else there

    def _place(self, node: bytes) -> _Place | None:
        place = self._places.get(node)
        if place is None:
            if len(self._places) >= PEERS_MAX + HINTS_MAX and not self._forget_one():
                self._count("hint.full")
                return None
            place = self._places[node] = _Place()
        return place

    def _forget_one(self) -> bool:
        """Make room: whoever was only hinted at, and is not being tried, is forgotten first."""
        tried = {dial.node for dial in self._dials.values()}
        for node, place in self._places.items():
            if not place.at and node not in tried:
                del self._places[node]
                return True
        return False

    def _at(self, node: bytes) -> str:
        place = self._places.get(node)
        return place.at if place is not None else ""

    def _enter(
        self, endpoint: str, node: bytes, source: str, due_ms: int, now_ms: int, until_ms: int
    ) -> None:
        if (node, endpoint) in self._dials or not self._room(source, now_ms):
            return
        dial = _Dial(endpoint, node, source, due_ms, now_ms, until_ms)
        # Only an address that can be connected is kept; late ones are connected in their time.
        if due_ms > now_ms or self._next_keys(dial, now_ms):
            self._dials[node, endpoint] = dial
        elif node in self._places:
            self._places[node].addresses.forget(endpoint)

    def _room(self, source: str, now_ms: int) -> bool:
        if len(self._dials) >= DIALS_MAX:
            return False
        if source == TOLD:
            return True
        hinted = [dial for dial in self._dials.values() if dial.source != TOLD]
        if len(hinted) < HINTS_MAX:
            return True
        # A flood of inventions must not keep a new peer out for long.
        for dial in hinted:
            if dial.source == MDNS and now_ms - dial.born_ms >= CHANCE_MS:
                self._end(dial)
                self._count("hint.evicted")
                return True
        self._count("hint.full")
        return False

    # --- races ------------------------------------------------------------------------------------

    def race(self, node: bytes, now_ms: int) -> None:
        """Greet that node at all its addresses, until it answers at one."""
        place = self._places.get(node)
        if place is None:
            return
        self._stale = True
        if place.at:
            self.lost(node)
        place.source, place.until_ms = TOLD, FOREVER_MS
        running = [dial for dial in self._dials.values() if dial.node == node]
        for dial in running:
            dial.source, dial.until_ms = TOLD, FOREVER_MS
        if len(running) < min(RACE_MAX, len(place.addresses)):
            self._start(node, place, now_ms)

    def _start(self, node: bytes, place: _Place, now_ms: int) -> None:
        """Greet at as many addresses as may be greeted at once; others get their turn later."""
        there = place.addresses.ordered()
        if place.skip >= len(there):
            place.skip = 0
        chosen = there[place.skip : place.skip + RACE_MAX]
        best = min((one.rank for one in chosen), default=ORDINARY)
        for one in chosen:
            late_ms = LATE_MS if one.rank > max(ORDINARY, best) else 0
            due_ms = now_ms + late_ms
            self._enter(one.endpoint, node, place.source, due_ms, now_ms, place.until_ms)
        if len(there) <= RACE_MAX:
            place.turn_ms = FOREVER_MS
        elif place.turn_ms == FOREVER_MS:
            place.turn_ms = now_ms + RACE_MS

    def _next_turn(self, node: bytes, place: _Place, now_ms: int) -> None:
        for dial in [dial for dial in self._dials.values() if dial.node == node]:
            self._end(dial)
        place.skip += RACE_MAX
        place.turn_ms = FOREVER_MS
        self._start(node, place, now_ms)

    def owe(self, node: bytes, message: Message) -> bool:
        """Say that to the node now and on each connection that comes to be."""
        place = self._places.get(node)
        if place is not None:
            place.owed = message
        return self.say(node, message)

    def say(self, node: bytes, message: Message) -> bool:
        """Say that on all connections that try to reach the node; return whether one took it.

        On all of them, for which one leads to the node is what has to be found out.
        """
        sockets = [
            socket
            for dial in self._dials.values()
            if dial.node == node
            for socket in dial.sockets.values()
        ]
        return sum(send_alone(socket, message) for socket in sockets) > 0

    def lost(self, node: bytes) -> None:
        """The connection to that node is no more."""
        place = self._places.get(node)
        if place is not None:
            self._stale = True
            place.at, place.probing_ms, place.probe_due_ms = "", 0, FOREVER_MS
            self._end_all(node)

    def forget(self, node: bytes) -> None:
        """That node is not sought any more."""
        self._stale = True
        self._places.pop(node, None)
        self._end_all(node)

    def _end_all(self, node: bytes) -> None:
        for dial in [dial for dial in self._dials.values() if dial.node == node]:
            self._end(dial)

    # --- answers ----------------------------------------------------------------------------------

    def answered(
        self, node: bytes, key: bytes, endpoint: str, now_ms: int, in_use: str = ""
    ) -> None:
        """That node, which has that key, answered there; `on_found` is told if that is the winner.

        `in_use` is the address at which the caller has a connection of its own.
        """
        self._stale = True
        dial = self._dial_at(node, key, endpoint)
        if dial is None and in_use != endpoint:
            # An answer to what has been decided otherwise meanwhile.
            return
        place = self._place(node)
        if place is None:
            return
        if dial is None:
            if place.at != endpoint:
                self._settle(node, place, endpoint, now_ms)
            return
        if dial.round_ms < 0:
            dial.round_ms = max(0, now_ms - dial.said_ms)
        place.addresses.answered(endpoint, now_ms, dial.round_ms)
        if place.at and dial.node == node:
            self._probe_answered(node, place, dial, key, now_ms)
        elif place.at and not place.addresses.is_better(endpoint, place.at):
            self.resolve(endpoint)
        else:
            self._won(node, place, dial, key, now_ms)

    def _dial_at(self, node: bytes, key: bytes, endpoint: str) -> _Dial | None:
        """The greeting that was answered: the one meant for that node, if there are several."""
        there = [dial for dial in self._dials.values() if dial.endpoint == endpoint]
        there.sort(key=lambda dial: (dial.node != node, bool(dial.node)))
        return next((dial for dial in there if dial.said_ms and key in dial.sockets), None)

    def _won(self, node: bytes, place: _Place, dial: _Dial, key: bytes, now_ms: int) -> None:
        socket = dial.sockets.pop(key)
        if place.owed is not None:
            # It may have been owed only since that greeting, and to another address.
            send_alone(socket, place.owed)
        self.resolve(dial.endpoint)
        self._settle(node, place, dial.endpoint, now_ms)
        self.on_found(node, dial.endpoint, socket, now_ms)

    def _settle(self, node: bytes, place: _Place, endpoint: str, now_ms: int) -> None:
        """That is where the node is: the race is over."""
        self._end_all(node)
        place.at, place.owed = endpoint, None
        place.probing_ms, place.skip, place.turn_ms = 0, 0, FOREVER_MS
        place.probe_due_ms = FOREVER_MS
        self._probe_soon(node, place, now_ms + PROBE_SOON_MS)

    def resolve(self, endpoint: str) -> None:
        """Who is behind that hint is known now: the hint has done its work."""
        self._stale = True
        for dial in [dial for dial in self._dials.values() if dial.endpoint == endpoint]:
            # In a closed mesh the others still expect somebody else there, and cannot be fooled.
            if not (dial.node and self._bus.closed):
                self._end(dial)

    def is_me(self, endpoint: str) -> None:
        """Nobody but this very daemon is there."""
        self.resolve(endpoint)
        for place in self._places.values():
            place.addresses.forget(endpoint)

    def is_other(self, node: bytes, endpoint: str) -> None:
        """Another life of that node answered there than the one that counts."""
        self.resolve(endpoint)
        dial = self._dials.get((node, endpoint))
        if dial is not None:
            self._end(dial)
        place = self._places.get(node)
        if place is not None:
            place.addresses.forget(endpoint)

    def refuse(self, endpoint: str, reason: str, now_ms: int) -> bytes:
        """Somebody there will not have it: ask again, but rarely; return whom it was meant for."""
        node = b""
        self._stale = True
        for dial in self._dials.values():
            if dial.endpoint == endpoint:
                # Who was a peer once may be one again soon.
                longer_ms = 2 * dial.every_ms if dial.node and dial.refused else DIAL_MS
                dial.every_ms = min(GREET_MS_MAX, longer_ms if dial.node else GREET_MS_MAX)
                dial.refused = reason
                dial.due_ms = now_ms + dial.every_ms
                node = node or dial.node
        return node

    def twin(self, endpoint: str) -> None:
        """Another one of me is there: go on greeting, so that both notice how long it lives."""
        for dial in self._dials.values():
            if dial.endpoint == endpoint:
                dial.tries, dial.every_ms, dial.refused = 0, DIAL_MS, "clone"

    # --- better addresses -------------------------------------------------------------------------

    def _probe_soon(self, node: bytes, place: _Place, due_ms: int) -> None:
        """Something is new: one answer that came late must not decide for long."""
        place.wait_ms = PROBE_SOON_MS
        self._plan_probe(node, place, due_ms)

    def _plan_probe(self, node: bytes, place: _Place, due_ms: int) -> None:
        if place.probing_ms or not place.addresses.rivals(place.at):
            return
        # A mesh that came up at once does not probe at once.
        place.probe_due_ms = min(place.probe_due_ms, due_ms + 4 * node[-1])

    def probe_all(self, now_ms: int) -> None:
        """Networks of this machine came or went: other addresses may be better than before."""
        self._stale = True
        for node, place in self._places.items():
            if place.at:
                self._probe_soon(node, place, now_ms + DIAL_MS)

    def _probe(self, node: bytes, place: _Place, now_ms: int) -> None:
        """Greet at every address that may be better, and at the one in use, to compare them."""
        place.probing_ms = max(1, now_ms)
        until_ms = place.probe_due_ms = now_ms + PROBE_LASTS_MS
        for endpoint in [place.at, *place.addresses.rivals(place.at)[: RACE_MAX - 1]]:
            self._enter(endpoint, node, TOLD, now_ms, now_ms, until_ms)

    def _probe_answered(
        self, node: bytes, place: _Place, dial: _Dial, key: bytes, now_ms: int
    ) -> None:
        if dial.endpoint != place.at and place.addresses.is_better(dial.endpoint, place.at):
            self._won(node, place, dial, key, now_ms)
            return
        # Once is enough: whether it is worth a move is known when the others have answered, too.
        dial.due_ms = dial.until_ms
        if all(one.round_ms >= 0 for one in self._dials.values() if one.node == node):
            self._judge(node, place, now_ms)

    def _judge(self, node: bytes, place: _Place, now_ms: int) -> None:
        """End a probe: move to where an answer came from so much sooner, or stay."""
        here = self._dials.get((node, place.at))
        here_ms = PROBE_LASTS_MS if here is None or here.round_ms < 0 else here.round_ms
        answers = [
            one
            for one in self._dials.values()
            if one.node == node and one is not here and one.round_ms >= 0 and one.sockets
        ]
        place.probing_ms, place.probe_due_ms = 0, FOREVER_MS
        for one in sorted(answers, key=lambda one: one.round_ms):
            if place.addresses.is_worth_it(one.endpoint, one.round_ms, place.at, here_ms):
                self._won(node, place, one, next(iter(one.sockets)), now_ms)
                return
        self._end_all(node)
        self._plan_probe(node, place, now_ms + place.wait_ms)
        place.wait_ms = min(PROBE_MS, 2 * place.wait_ms)

    # --- time -------------------------------------------------------------------------------------

    def begin_again(self) -> None:
        """What was said there was said by a life that is over."""
        self._stale = True
        for dial in self._dials.values():
            dial.due_ms = 0

    def tick(self, now_ms: int) -> None:
        """Greet where that is due."""
        self._stale = True
        for node, place in list(self._places.items()):
            if now_ms >= place.turn_ms and not place.at:
                self._next_turn(node, place, now_ms)
            elif now_ms >= place.probe_due_ms and place.probing_ms:
                self._judge(node, place, now_ms)
            elif now_ms >= place.probe_due_ms:
                self._probe(node, place, now_ms)
        for dial in list(self._dials.values()):
            if now_ms >= dial.until_ms:
                self._end(dial)
            elif now_ms >= dial.due_ms and self._dials.get((dial.node, dial.endpoint)) is dial:
                self._dial(dial, now_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to do.

        Cost  nothing while nothing changed: with a thousand peers it is asked in every turn.
        """
        if self._stale:
            self._stale = False
            times = [dial.due_ms for dial in self._dials.values()]
            for place in self._places.values():
                times += (place.probe_due_ms, place.turn_ms)
            self._due_ms = min(times, default=FOREVER_MS)
        return self._due_ms

    def _dial(self, dial: _Dial, now_ms: int) -> None:
        if not dial.sockets and not self._next_keys(dial, now_ms):
            self._end(dial)
            return
        place = self._places.get(dial.node)
        owed = place.owed if place is not None and not place.at else None
        sure = self._bus.closed or self._is_proven(dial)
        hello = self._greeting(dial.endpoint, dial.node if sure else b"")
        said = False
        for socket in dial.sockets.values():
            if send_alone(socket, hello):
                said = True
                if owed is not None:
                    send_alone(socket, owed)
        if said:
            dial.tries += 1
            # From the first greeting on: an answer does not tell which one it answers.
            dial.said_ms = dial.said_ms or max(1, now_ms)
            if dial.tries > 3:
                dial.every_ms = min(GREET_MS_MAX, 2 * dial.every_ms)
            dial.due_ms = now_ms + dial.every_ms
            dial.turn_ms = dial.due_ms + dial.key_ms
            dial.retry_ms = RETRY_MS
            return
        if now_ms >= dial.turn_ms:
            self._next_keys(dial, now_ms)
        # Not connected yet: look again soon, without having said anything; and ever more
        # rarely, for a seed that is switched off must not keep this daemon awake.
        dial.due_ms = now_ms + dial.retry_ms
        dial.retry_ms = min(DIAL_MS, 2 * dial.retry_ms)

    def _is_proven(self, dial: _Dial) -> bool:
        """Did that very node answer there before?"""
        place = self._places.get(dial.node)
        known = place.addresses.of(dial.endpoint) if place is not None else None
        return known is not None and known.answered_ms > 0

    # --- keys -------------------------------------------------------------------------------------

    def _next_keys(self, dial: _Dial, now_ms: int) -> bool:
        """Expect the next few keys there; return False where the address makes no sense."""
        keys = list(self._keys_for(dial.node))
        if not dial.node or (dial.source != TOLD and (dial.rounds >= NAMED_TRIES or not keys)):
            keys = list(self._keys_for(b""))
        if dial.at >= len(keys):
            dial.at = 0
            dial.rounds += 1
            # A slow network needs longer for a handshake than the first rounds allow.
            dial.key_ms = min(KEY_MS_MAX, 2 * dial.key_ms)
        wanted = keys[dial.at : dial.at + KEYS_AT_ONCE]
        dial.at += KEYS_AT_ONCE
        dial.turn_ms = now_ms + dial.key_ms
        if wanted == list(dial.sockets):
            return True
        self._drop(dial)
        if len(keys) > KEYS_AT_ONCE:
            dial.retry_ms = RETRY_MS
        for key in wanted:
            socket = self._bus.peer(key)
            if not connect(socket, dial.endpoint):
                self._bus.drop(socket)
                self._count("hint.bad")
                return False
            dial.sockets[key] = socket
        return True

    def _end(self, dial: _Dial) -> None:
        if self._dials.get((dial.node, dial.endpoint)) is dial:
            del self._dials[dial.node, dial.endpoint]
        self._drop(dial)

    def _drop(self, dial: _Dial) -> None:
        for socket in dial.sockets.values():
            self._bus.drop(socket)
        dial.sockets.clear()
