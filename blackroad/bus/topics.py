"""Topics of one daemon: who publishes, who listens, what is kept, and what peers are asked.

Source  docs/protocol.md, "Topics".  Pure: `topic_wires.py` owns the sockets and tells the time.
Values are told on and never promised: what is lost on the way is counted and told to whoever
missed it, and the last value of a topic is asked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from blackroad.bus import messages as m
from blackroad.bus.last_values import LastValues
from blackroad.bus.patterns import Pattern, cover, is_name, is_reserved
from blackroad.bus.topic_kinds import Value
from blackroad.bus.topic_lines import Line, Subscription, Total
from blackroad.errors import UsageError
from blackroad.ids import U32_MAX, inc_counter
from blackroad.limits import (
    FOREVER_MS,
    PEERS_MAX,
    PUBLISH_STEP,
    PUBLISH_WAITING_BYTES_MAX,
    PUBLISH_WINDOW,
    SUBSCRIPTION_LEASE_MS,
    SUBSCRIPTIONS_MAX,
    SUBSCRIPTIONS_OF_CLIENT_MAX,
    TOPIC_ASK_MS,
    TOPIC_ASK_TIMEOUT_MS,
    TOPIC_HOLD_MS,
    TOPIC_LINES_BYTES_MAX,
    TOPICS_KEPT_MAX,
)

LOOK_MS = 250
LOOK_MS_MIN = 10
EXPIRE_MS = 1_000
TURN_OF_CLIENT = 32
DELIVER_STEP = 512
ANSWERS_STEP = 4
MATCHED_MAX = 4_096
ENVELOPE_BYTES = 200


class _Publisher:
    """What one client has published and nobody has heard yet."""

    __slots__ = ("last", "taken", "told", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[m.Publish] = deque()
        self.last = 0
        self.taken = 0
        self.told = 0


class _Peer:
    """What is known of one peer's values, and what it is asked."""

    __slots__ = (
        "answer",
        "asked",
        "cursor",
        "doubt_ms",
        "floor",
        "fresh",
        "inc",
        "mark",
        "marked",
        "next_ms",
        "prefixes",
        "skipped",
        "synced",
        "until_ms",
        "watermark",
    )

    def __init__(self, inc: int, prefixes: tuple[str, ...]) -> None:
        self.begin(inc, prefixes)

    def begin(self, inc: int, prefixes: tuple[str, ...]) -> None:
        """A life of that peer begins here: nothing of it was heard."""
        self.inc = inc
        # Values up to `floor` may be known already although they are kept no more.
        self.floor = 0
        # All last values that were published up to `watermark` have been told.
        self.watermark = 0
        # All that it had published when it last answered is known, or was counted as missed.
        self.synced = False
        # The newest of my marks that came back: it publishes to me all I wanted then.
        self.mark = 0
        self.doubt_ms = 0
        self.fresh = prefixes
        self.asked = 0
        # The question whose mark was heard: all that was published before it was heard, or lost.
        self.marked = 0
        self.answer: m.Topics | None = None
        self.skipped = False
        self.prefixes: tuple[str, ...] = ()
        self.cursor = 0
        self.until_ms = 0
        self.next_ms = 0


class Mark(NamedTuple):
    """What is published to one peer after everything it is answered about."""

    node: bytes
    mark: int
    ask: int


class _Target(NamedTuple):
    """Who of one client's subscriptions hears a topic; `late` are those that want old values."""

    line: Line
    subs: tuple[Subscription, ...]
    late: tuple[Subscription, ...]


class Topics:
    """All that one daemon knows of topics.

    What must be done stands in `spreads` (values to publish to peers), `marks` (to be published
    to one peer each), `tells` (to clients) and `sends` (to peers); whoever performs it empties
    them.
    """

    def __init__(self, me: bytes, inc: int, keep_bytes: int) -> None:
        self.me = me
        self.inc = inc
        self.own = LastValues(keep_bytes, TOPICS_KEPT_MAX)
        self.heard = LastValues(keep_bytes, TOPICS_KEPT_MAX)
        self.counters: dict[str, int] = {}
        # Beginnings of the names that somebody here wants to hear of.
        self.prefixes: tuple[str, ...] = ()
        # Counts what was added to them: so peers' marks tell what they know of it.
        self.mark = 0
        self.spreads: list[Value] = []
        self.marks: list[Mark] = []
        self.tells: list[tuple[bytes, m.Message]] = []
        self.sends: list[tuple[bytes, m.Message]] = []
        self._lines: dict[bytes, Line] = {}
        self._subs = 0
        self._total = Total(TOPIC_LINES_BYTES_MAX)
        self._matched: dict[str, tuple[_Target, ...]] = {}
        self._publishers: dict[bytes, _Publisher] = {}
        self._publishing_bytes = 0
        self._peers: dict[bytes, _Peer] = {}
        self._asks: dict[bytes, m.AskTopics] = {}
        self._ask_serial = 0
        self._seq = 0
        self._look_ms = 0
        self._look_wait_ms = LOOK_MS
        self._held: list[Subscription] = []
        self._expire_ms = 0

    def status(self) -> dict[str, int]:
        """Figures for people and tests; every loss that was noticed is among them."""
        return {
            "subscriptions": self._subs,
            "kept_own": len(self.own),
            "kept_heard": len(self.heard),
            "kept_bytes": self.own.bytes + self.heard.bytes,
            "evicted": self.own.evicted + self.heard.evicted,
            "dropped": self._total.dropped,
            "waiting_bytes": self._total.bytes + self._publishing_bytes,
            **self.counters,
        }

    # --- clients ----------------------------------------------------------------------------------

    def on_client(self, client: bytes, message: m.Message, now_ms: int) -> None:
        """One message of a program."""
        match message:
            case m.Publish():
                self._take(client, message)
            case m.Subscribe():
                self._subscribe(client, message, now_ms)
            case m.Unsubscribe():
                self._unsubscribe(client, message.sub)
            case m.Taken():
                line = self._lines.get(client)
                if line is not None:
                    line.taken(message.serial)

    def lost(self, client: bytes) -> None:
        """That program is gone, or does not read any more."""
        line = self._lines.pop(client, None)
        if line is not None:
            self._subs -= len(line.subs)
            line.close()
            self._changed()

    def _take(self, client: bytes, publish: m.Publish) -> None:
        """Put a value in line to be published; a flood of one client waits on its own."""
        publisher = self._publishers.get(client)
        if publisher is None:
            publisher = self._publishers[client] = _Publisher()
        publisher.last = max(publisher.last, publish.serial)
        size = len(publish.payload) + ENVELOPE_BYTES
        if not is_name(publish.name):
            error = "that is no name of a topic"
        elif is_reserved(publish.name):
            error = f"`{publish.name}` is reserved: daemons alone publish there"
        elif (
            len(publisher.waiting) >= PUBLISH_WINDOW
            or self._publishing_bytes + size > PUBLISH_WAITING_BYTES_MAX
        ):
            error = "too many values wait to be published"
        else:
            publisher.waiting.append(publish)
            self._publishing_bytes += size
            return
        self.count("refused")
        self.tells.append((client, m.Taken(publisher.taken, error)))

    def _subscribe(self, client: bytes, asked: m.Subscribe, now_ms: int) -> None:
        line = self._lines.get(client)
        known = line.subs.get(asked.sub) if line is not None else None
        if known is not None and known.pattern.text == asked.pattern:
            known.until_ms = now_ms + SUBSCRIPTION_LEASE_MS
            return
        try:
            pattern = Pattern(asked.pattern)
        except UsageError as error:
            self._refuse(client, asked.sub, error.message)
            return
        if line is None:
            line = Line(self._total)
        if known is None and (
            self._subs >= SUBSCRIPTIONS_MAX or len(line.subs) >= SUBSCRIPTIONS_OF_CLIENT_MAX
        ):
            self._refuse(
                client,
                asked.sub,
                f"too many subscriptions: a client may have {SUBSCRIPTIONS_OF_CLIENT_MAX}, "
                f"all clients of a daemon {SUBSCRIPTIONS_MAX}",
            )
            return
        self._lines[client] = line
        until_ms = now_ms + SUBSCRIPTION_LEASE_MS
        sub = Subscription(line, asked.sub, pattern, asked.snapshot, until_ms)
        if known is None:
            self._subs += 1
        else:
            line.remove(asked.sub)
        line.subs[asked.sub] = sub
        if asked.snapshot:
            line.snapshot(sub, self.own, self.heard)
        self._changed()
        sub.held_ms = now_ms + TOPIC_HOLD_MS
        self._held.append(sub)
        self._look_ms = 0

    def _refuse(self, client: bytes, sub: int, text: str) -> None:
        self.count("refused")
        self.tells.append((client, m.Updates(0, (sub,), (0,), error=text[:512])))

    def _unsubscribe(self, client: bytes, id_: int) -> None:
        line = self._lines.get(client)
        if line is None or line.remove(id_) is None:
            return
        self._subs -= 1
        if not line.subs:
            line.close()
            del self._lines[client]
        self._changed()

    def _changed(self) -> None:
        """Subscriptions came or went: what is to be heard of changes with them."""
        self._matched.clear()
        before = self.prefixes
        wanted = {sub.pattern.prefix for line in self._lines.values() for sub in line.subs.values()}
        self.prefixes = cover(wanted)
        if self.prefixes == before:
            return
        if not self.prefixes or not all(one.startswith(self.prefixes) for one in before):
            self.heard.narrow(self.prefixes)
        added = {one for one in self.prefixes if not (before and one.startswith(before))}
        if not added:
            return
        self.mark = self.mark % U32_MAX + 1
        for peer in self._peers.values():
            peer.fresh = cover({*peer.fresh, *added})
            peer.synced = False
        self._look_ms, self._look_wait_ms = 0, LOOK_MS_MIN

    def _match(self, name: str) -> tuple[_Target, ...]:
        found = self._matched.get(name)
        if found is None:
            if len(self._matched) >= MATCHED_MAX:
                self._matched.clear()
            found = self._matched[name] = tuple(self._targets(name))
        return found

    def _targets(self, name: str) -> list[_Target]:
        found = []
        for line in self._lines.values():
            subs = tuple(sub for sub in line.subs.values() if sub.pattern.matches(name))
            if subs:
                found.append(_Target(line, subs, tuple(sub for sub in subs if sub.snapshot)))
        return found

    def _deliver(self, value: Value, gap: int, old: bool) -> None:
        """Put a value in line for whoever listens here; `old` ones only for who wants those."""
        for line, subs, late in self._match(value.name):
            chosen = late if old else subs
            if not chosen:
                continue
            for sub in chosen if gap else ():
                sub.missed += gap
            line.add(value, chosen)

    # --- publishing -------------------------------------------------------------------------------

    def _publish(self, wall_ms: int) -> None:
        """Publish some of what waits, a few of each client at a time."""
        left = PUBLISH_STEP
        while left > 0 and self._publishers:
            waiting = [one for one in self._publishers.items() if one[1].waiting]
            if not waiting:
                break
            for _client, publisher in waiting:
                for _ in range(min(left, TURN_OF_CLIENT, len(publisher.waiting))):
                    publish = publisher.waiting.popleft()
                    publisher.taken = max(publisher.taken, publish.serial)
                    self._publishing_bytes -= len(publish.payload) + ENVELOPE_BYTES
                    self._publish_one(publish, wall_ms)
                    left -= 1
        for client, publisher in list(self._publishers.items()):
            if not publisher.waiting:
                # Refused ones are over, too.
                publisher.taken = publisher.last
            if publisher.taken > publisher.told:
                publisher.told = publisher.taken
                self.tells.append((client, m.Taken(publisher.taken)))
            if not publisher.waiting:
                del self._publishers[client]

    def announce(self, name: str, payload: bytes, wall_ms: int) -> None:
        """Publish for this daemon itself, on a topic that is reserved for daemons."""
        self._publish_one(m.Publish(0, name, payload), wall_ms)

    def _publish_one(self, publish: m.Publish, wall_ms: int) -> None:
        before = self.own.get(self.me, publish.name)
        self._seq += 1
        value = Value(
            publish.name,
            publish.payload,
            self._seq,
            self.me,
            self.inc,
            before.nth + 1 if before is not None else 1,
            wall_ms,
            publish.user,
        )
        self.own.put(value)
        self.count("published")
        self.spreads.append(value)
        self._deliver(value, 0, False)

    # --- peers ------------------------------------------------------------------------------------

    def on_topic(self, node: bytes, topic: m.Topic) -> None:
        """A peer published a value."""
        if topic.node != node or not is_name(topic.name):
            self.count("breach")
            return
        value = Value(
            topic.name,
            topic.payload,
            topic.seq,
            topic.node,
            topic.inc,
            topic.nth,
            topic.time_ms,
            topic.user,
        )
        self._news(value, answered=False)

    def on_peer(self, node: bytes, message: m.Message, now_ms: int) -> None:
        """A message of a peer on its link."""
        match message:
            case m.AskTopics():
                # One question a peer: a newer one replaces it.
                self._asks[node] = message
            case m.Topics():
                self._on_answer(node, message, now_ms)

    def _news(self, value: Value, *, answered: bool, sure: bool = True) -> bool:
        """A value of a peer, by PUB or as an answer: drop what is known, count what is missing.

        Where it is not `sure` that PUB lost it, it may still come in its turn: return False.
        """
        if not self.prefixes or not f"{value.name}/".startswith(self.prefixes):
            return True
        peer = self._peers.get(value.node)
        if peer is None:
            peer = self._peers[value.node] = _Peer(value.inc, self.prefixes)
        if value.inc != peer.inc:
            if inc_counter(value.inc) <= inc_counter(peer.inc):
                self.count("old")
                return True
            peer.begin(value.inc, self.prefixes)
        known = self.heard.get(value.node, value.name)
        gap = 0
        if known is not None and known.inc == value.inc:
            if value.seq <= known.seq:
                self.count("doubles")
                return True
            if not sure:
                return False
            gap = max(0, value.nth - known.nth - 1)
        elif known is None and value.seq <= peer.floor:
            self.count("doubles")
            return True
        elif known is None and peer.synced and not peer.floor:
            # Not among all that was told: the first of them came after that.
            gap = value.nth - 1
        for gone in self.heard.put(value):
            origin = self._peers.get(gone.node)
            if origin is not None and gone.inc == origin.inc:
                origin.floor = max(origin.floor, gone.seq)
        self.count("heard")
        if answered and peer.synced:
            self.count("repaired")
        if gap:
            self.count("missed", gap)
        # A value that was asked for is news only where it follows what was known.
        self._deliver(value, gap, old=answered and known is None and not peer.synced)
        return True

    # --- asking -----------------------------------------------------------------------------------

    def _look(self, present: Mapping[bytes, int], now_ms: int) -> None:
        """Ask those who are there: for all last values once, then for what changed since."""
        if not self.prefixes:
            self._peers.clear()
            return
        for node in [node for node in self._peers if node not in present]:
            gone = self._peers[node]
            # Whoever comes back is asked for everything.
            gone.asked, gone.answer, gone.mark, gone.next_ms = 0, None, 0, 0
            gone.synced, gone.fresh = False, self.prefixes
            if len(self._peers) > 2 * PEERS_MAX:
                del self._peers[node]
        for node, inc in present.items():
            peer = self._peers.setdefault(node, _Peer(inc, self.prefixes))
            if inc_counter(inc) > inc_counter(peer.inc):
                peer.begin(inc, self.prefixes)
            if peer.mark == self.mark or not peer.doubt_ms:
                peer.doubt_ms = now_ms
            if peer.asked and now_ms < peer.until_ms:
                continue
            if peer.answer is not None:
                # Its mark was lost: so was what it told of.
                self._conclude(node, peer, peer.answer, True, now_ms)
                continue
            if peer.asked and peer.prefixes != self.prefixes:
                # Nobody answered: what was asked for first is asked for again.
                peer.fresh = cover({*peer.fresh, *peer.prefixes})
            if peer.fresh or now_ms >= peer.next_ms or peer.mark != self.mark:
                self._ask(node, peer, now_ms)

    def _release(self, present: Mapping[bytes, int], now_ms: int) -> None:
        """Let those subscriptions say that they began which all peers publish to by now."""
        peers = [self._peers[node] for node in present if node in self._peers]
        held, self._held = self._held, []
        for sub in held:
            if now_ms < sub.held_ms and any(peer.mark != self.mark for peer in peers):
                self._held.append(sub)
            else:
                sub.held_ms = 0

    def _ask(self, node: bytes, peer: _Peer, now_ms: int) -> None:
        if peer.fresh:
            peer.prefixes, peer.fresh, peer.cursor = peer.fresh, (), 0
        else:
            peer.prefixes, peer.cursor = self.prefixes, peer.watermark
        peer.skipped = False
        self._ask_page(node, peer, now_ms)

    def _ask_page(self, node: bytes, peer: _Peer, now_ms: int) -> None:
        self._ask_serial = self._ask_serial % U32_MAX + 1
        peer.asked = self._ask_serial
        peer.until_ms = now_ms + TOPIC_ASK_TIMEOUT_MS
        self.sends.append((node, m.AskTopics(peer.asked, peer.prefixes, peer.cursor, self.mark)))

    def on_mark(self, node: bytes, mark: int, ask: int, now_ms: int) -> None:
        """All that a peer had published before it answered that question has come, or is lost."""
        peer = self._peers.get(node)
        if peer is None or mark != self.mark:
            return
        peer.marked = ask
        answer = peer.answer
        if answer is not None and answer.ask == ask:
            self._conclude(node, peer, answer, True, now_ms)
        if peer.mark != mark:
            peer.mark = mark
            # Whoever waits for it is told at once.
            self._look_ms = 0

    def _on_answer(self, node: bytes, answer: m.Topics, now_ms: int) -> None:
        peer = self._peers.get(node)
        if peer is None or answer.ask != peer.asked or peer.answer is not None:
            self.count("answers.unasked")
        elif peer.marked == answer.ask:
            self._conclude(node, peer, answer, True, now_ms)
        elif peer.mark == self.mark:
            # What PUB brings may be on its way yet: it comes in order, and then the mark.
            peer.answer = answer
            peer.until_ms = now_ms + TOPIC_ASK_TIMEOUT_MS
        else:
            # Nothing is published to me yet; where that lasts, answers are all there is.
            sure = now_ms - peer.doubt_ms >= TOPIC_ASK_TIMEOUT_MS
            self._conclude(node, peer, answer, sure, now_ms)

    def _conclude(
        self, node: bytes, peer: _Peer, answer: m.Topics, sure: bool, now_ms: int
    ) -> None:
        """Use an answer, and ask on where there is more."""
        peer.answer = None
        inc = peer.inc
        for value in answer.values:
            if value.node != node or not is_name(value.name):
                self.count("breach")
            elif not self._news(value, answered=True, sure=sure):
                peer.skipped = True
        if peer.inc != inc:
            # Another life answered than the one that was asked: it is asked anew.
            return
        last = answer.values[-1].seq if answer.values else peer.cursor
        if answer.more and last > peer.cursor:
            peer.cursor = last
            self._ask_page(node, peer, now_ms)
            return
        peer.asked = 0
        if peer.prefixes == self.prefixes and not peer.skipped:
            peer.watermark = max(peer.watermark, answer.upto)
        peer.synced = sure and not peer.fresh
        peer.next_ms = now_ms + TOPIC_ASK_MS

    def _answer(self) -> None:
        for node in list(self._asks)[:ANSWERS_STEP]:
            ask = self._asks.pop(node)
            if ask.mark:
                self.marks.append(Mark(node, ask.mark, ask.ask))
            values, more = self.own.page(ask.prefixes, ask.since)
            self.sends.append((node, m.Topics(ask.ask, self._seq, more, values)))

    # --- time -------------------------------------------------------------------------------------

    def turn(self, present: Callable[[], Mapping[bytes, int]], now_ms: int, wall_ms: int) -> None:
        """Do what is due: publish, answer, ask, deliver; each in bounds, the rest next turn.

        `present` tells which peers can be asked, and their lives.
        """
        if self._publishers:
            self._publish(wall_ms)
        if self._asks:
            self._answer()
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + self._look_wait_ms
            self._look_wait_ms = min(LOOK_MS, 2 * self._look_wait_ms)
            there = present() if self.prefixes else {}
            self._look(there, now_ms)
            if self._held:
                self._release(there, now_ms)
        if self._lines:
            if now_ms >= self._expire_ms:
                self._expire_ms = now_ms + EXPIRE_MS
                self._expire(now_ms)
            self._send_lines()

    def _expire(self, now_ms: int) -> None:
        for client, line in list(self._lines.items()):
            for sub in list(line.subs.values()):
                if now_ms >= sub.until_ms:
                    self.count("expired")
                    self._unsubscribe(client, sub.id)

    def _send_lines(self) -> None:
        left = DELIVER_STEP
        for client, line in list(self._lines.items()):
            if left <= 0 or not line.ready():
                continue
            for updates in line.take(left):
                left -= len(updates.values)
                self.tells.append((client, updates))
        if left <= 0:
            # Whoever came last this time is first the next.
            first = next(iter(self._lines))
            self._lines[first] = self._lines.pop(first)

    def next_deadline_ms(self) -> int:
        """When `turn` next has something to do; 0 means at once."""
        if self._publishers or self._asks or any(line.ready() for line in self._lines.values()):
            return 0
        return self._look_ms if self.prefixes or self._peers else FOREVER_MS

    def count(self, name: str, by: int = 1) -> None:
        """Count something that was heard, lost or refused."""
        self.counters[name] = self.counters.get(name, 0) + by
