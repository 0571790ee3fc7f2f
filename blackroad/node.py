"""The pure node: membership, election, owner, worker and coordinator in one `handle`.

Source  docs/protocol.md.  Two drivers run this very class: the daemon with real sockets and
processes, and the simulator with a made-up network.  No clock, socket, thread, file or
randomness is reached from here; the router's and the discovery's machines meet only in this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from blackroad import queries
from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities, decode, encode
from blackroad.discovery.election import NEVER, Election
from blackroad.discovery.lives import Finding, Found, Lives
from blackroad.discovery.membership import Change, Membership, PeerRecord
from blackroad.errors import RemoteProtocolError
from blackroad.happenings import (
    AnyEvent,
    Drain,
    Evicted,
    Fetched,
    FetchFailed,
    Finished,
    Flushed,
    FromClient,
    FromPeer,
    Heard,
    Killed,
    Leave,
    Met,
    Overslept,
    Probed,
    Returned,
    Sensed,
    Space,
    Split,
    Tick,
)
from blackroad.ids import HEARD_BYTES, inc_counter, short
from blackroad.limits import (
    ASK_CAPABILITIES_MS,
    BEAT_GAP_MS,
    HEARD_NODES_MAX,
    LEASE_MS,
    PROTOCOL_VERSION_MAX,
)
from blackroad.router.coordinator import Coordinator
from blackroad.router.effects import KeepDrain, NewLife, Outbox, Publish, Shun
from blackroad.router.owner import Owner
from blackroad.router.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blackroad.router.effects import Effect

__all__ = [
    "AnyEvent",
    "Drain",
    "Evicted",
    "FetchFailed",
    "Fetched",
    "Finished",
    "Flushed",
    "FromClient",
    "FromPeer",
    "Heard",
    "Killed",
    "Leave",
    "Met",
    "Node",
    "Overslept",
    "Probed",
    "Returned",
    "Sensed",
    "Space",
    "Split",
    "Tick",
]

LOCAL_ROUNDS_MAX = 64
BREACH_GAP_MS = 60_000


class Node:
    """One daemon's mind."""

    def __init__(
        self,
        me: bytes,
        inc: int,
        capabilities: Capabilities,
        slots: int,
        now_ms: int,
        *,
        election_priority: int = 0,
        heartbeat_ms: int = 0,
        lease_ms: int = LEASE_MS,
        journal_base: int = 0,
    ) -> None:
        self.me = me
        self.inc = inc
        self.name = capabilities.name
        self.text = short(me)
        self.started_ms = now_ms
        self.out = Outbox(me)
        self.membership = Membership(me, heartbeat_ms)
        self.lives = Lives(me, inc)
        self.election = Election(me, inc, election_priority, now_ms)
        self.worker = Worker(me, self.text, inc, capabilities, slots, self.out)
        self.coordinator = Coordinator(me, self.out)
        self.owner = Owner(me, inc, self.out, self.worker.room_for, now_ms)
        self.owner.sessions.name = self.name
        self.owner.runs.lease_ms = self.owner.granting.lease_ms = lease_ms
        self.capabilities: dict[bytes, Capabilities] = {}
        self.digests: dict[bytes, bytes] = {}
        self.unknown_kinds = 0
        # How far the journal had come before this life, and the furthest that a peer remembers.
        self.journal_base = journal_base
        self.journal_told = 0
        self._sensed = Sensed(0, False, 0)
        self._beat_due_ms = now_ms
        self._beat_ms = -BEAT_GAP_MS
        self._lag_ms = 0
        self._asked: dict[bytes, int] = {}
        self._breached: dict[bytes, int] = {}
        self.desk = queries.Desk(self)
        view = self.owner.view.get(me, self.text)
        view.inc, view.present = inc, True
        self._set_capabilities(capabilities)

    # --- the one entrance -------------------------------------------------------------------------

    def handle(self, event: AnyEvent, now_ms: int) -> list[Effect]:
        """Apply one event; return what the world must now do, in order."""
        return list(self.handle_all((event,), now_ms))

    def handle_all(self, events: Sequence[AnyEvent], now_ms: int) -> Iterator[Effect]:
        """Apply what one turn of the loop brought, and settle once for all of it.

        What starts in the place of a task that ended comes before its owner hears of the end.
        """
        ended = False
        for event in events:
            self._apply(event, now_ms)
            ended = ended or type(event) is Finished
        if ended:
            yield from self.out.take_urgent()
        self._settle(now_ms)
        yield from self.out.take()

    def _apply(self, event: AnyEvent, now_ms: int) -> None:
        match event:
            case FromClient():
                for message in event.messages:
                    self._from_client(event.client, message, now_ms)
            case FromPeer():
                if self.lives.is_clone(event.node):
                    return
                for message in event.messages:
                    self._from_node(event.node, message, now_ms, event.inc)
            case Finished():
                self.worker.on_finished(
                    event.key, event.status, event.result, event.facts, now_ms, event.before
                )
            case Heard():
                self._heard(event.beat, now_ms)
            case Met():
                self._met(event, now_ms)
            case Tick():
                self._tick(event.lag_ms, now_ms)
            case Flushed():
                self.out.on_flushed(event.mark, now_ms)
            case Killed():
                self.worker.on_gone(event.key, now_ms, event.before)
            case Split():
                self.worker.on_split(event.key, event.before, now_ms)
            case Returned():
                self.worker.on_returned(event.key, now_ms)
            case Fetched():
                self.worker.on_fetched(event.digest, now_ms)
                self.owner.on_fetched(event.digest, now_ms)
            case FetchFailed():
                self.worker.on_fetch_failed(event.digest, event.text, now_ms)
                self.owner.on_fetch_failed(
                    event.digest, event.text, now_ms, event.gone, here=event.here
                )
            case Evicted():
                self.worker.on_evicted(event.digest)
            case Probed():
                self._set_capabilities(event.capabilities)
            case Sensed():
                self._sensed = event
            case Drain():
                self._drain(event.on, now_ms)
            case Leave():
                self._drain(True, now_ms)
                self.worker.leave(now_ms)
            case Space():
                self.worker.full = self.owner.full = event.full
                self.out.note("space.full" if event.full else "space.again")
            case Overslept():
                self.lives.on_overslept(event.gap_ms, now_ms)
                self.membership.on_overslept(event.gap_ms, now_ms)
                self.election.on_overslept(event.gap_ms, now_ms)
            case _:
                assert_never(event)

    def next_deadline_ms(self) -> int:
        """When the driver should send the next Tick at the latest."""
        if self.out.local:
            return 0
        return min(
            self._beat_due_ms,
            self.membership.next_deadline_ms(),
            self.lives.next_deadline_ms(),
            self.worker.next_deadline_ms(),
            self.owner.next_deadline_ms(),
            self.coordinator.next_deadline_ms(),
            self.desk.next_deadline_ms(),
        )

    def check(self) -> None:
        """Raise InvariantBroken where the books contradict each other."""
        self.worker.check()
        self.owner.check()

    # --- the end of every event -------------------------------------------------------------------

    def _settle(self, now_ms: int) -> None:
        """Hand over what the roles say to each other until they have nothing more to say."""
        for _ in range(LOCAL_ROUNDS_MAX):
            self._deliver_local(now_ms)
            sent = self.owner.granting.demand_seq
            self.owner.settle(now_ms)
            if self.owner.granting.demand_seq != sent:
                self.election.on_demand_sent(now_ms)
            if self.coordinator.epoch is not None:
                self._deliver_local(now_ms)
                self.coordinator.settle(now_ms)
            if not self.out.local:
                break
        woken = self.owner.sessions.woken
        if woken:
            self.desk.look_again(now_ms)
            woken.clear()

    def _deliver_local(self, now_ms: int) -> None:
        local = self.out.local
        while local:
            batch, self.out.local = local, []
            for message in batch:
                self._from_node(self.me, message, now_ms, self.inc)
            local = self.out.local

    # --- messages ---------------------------------------------------------------------------------

    def _from_node(self, node: bytes, message: m.Message, now_ms: int, inc: int) -> None:
        """One message of a peer, or of this node to itself."""
        owner, worker = self.owner, self.worker
        match message:
            case m.Grant():
                worker.on_grant(node, message, now_ms)
            case m.Outcome():
                owner.on_outcome(node, message, now_ms)
            case m.Divided():
                owner.on_divided(node, message, now_ms)
            case m.OutcomeAck():
                worker.on_outcome_ack(node, message, now_ms)
            case m.Renew():
                owner.on_renew(node, message, now_ms)
            case m.Renewed():
                worker.on_renewed(node, message, now_ms)
            case m.Refused():
                owner.on_refused(node, message, now_ms)
            case m.Recall():
                worker.on_recall(node, message, now_ms)
            case m.Demand():
                if node == self.me or self.membership.hears(node, message.inc):
                    self.coordinator.on_demand(node, message, now_ms)
            case m.Allocation():
                if owner.on_allocation(node, message, inc):
                    self.election.on_answered()
            case m.Capabilities():
                try:
                    self._learn_capabilities(node, message)
                except RemoteProtocolError as error:
                    self._breach(node, error, now_ms)
            case m.AskCapabilities():
                self.out.send(node, self._capabilities_message())
            case m.Reject() if message.reason == "clone":
                self._found(self.lives.on_refused(message.inc), now_ms)
            case m.Goodbye():
                self._changed(self.membership.on_goodbye(node, message.inc), now_ms)
            case m.Query():
                self.desk.take(message, now_ms, node, peer=True)
            case m.Reply():
                self.desk.pass_on(message, node)
            case _:
                self.unknown_kinds += 1

    def _from_client(self, client: bytes, message: m.Message, now_ms: int) -> None:
        owner = self.owner
        session = owner.sessions.of_client(client)
        if session is not None:
            session.until_ms = now_ms + session.lease_ms
        match message:
            case m.Submit():
                owner.on_submit(client, message, now_ms)
            case m.Seen() if session is not None:
                owner.on_seen(session.id, message.tasks)
            case m.Open():
                owner.sessions.open(client, message, now_ms)
            case m.Alive() if owner.sessions.touch(message.session, client, now_ms) is not None:
                pass
            case m.Cancel() if session is not None:
                owner.on_cancel(client, message, now_ms)
            case m.Alive() | m.Seen() | m.Cancel():
                self.out.tell(client, m.Reject("session", "this daemon knows no such session"))
            case m.Query():
                self.desk.take(message, now_ms, client, peer=False)
            case _:
                self.unknown_kinds += 1

    # --- drain ------------------------------------------------------------------------------------

    def _drain(self, on: bool, now_ms: int) -> None:
        on = on or not self.lives.serves
        self.worker.drain(on, now_ms)
        self.owner.view.get(self.me).draining = on
        self._beat_due_ms = now_ms

    def order_drain(self, on: bool, now_ms: int) -> None:
        """Drain or resume by somebody's order, which outlives this life (R-life-8)."""
        if self.worker.draining is not on:
            self._drain(on, now_ms)
            self.out.add(KeepDrain(on))
            self.out.note("node.draining" if on else "node.resumed", node=self.text)

    # --- presence ---------------------------------------------------------------------------------

    def _met(self, met: Met, now_ms: int) -> None:
        """A greeting came: what it tells about lives, the peer's and mine (R-life-2, R-life-3)."""
        self.journal_told = max(self.journal_told, met.your_mark)
        dead_ms = self.membership.dead_ms(self.membership.peers.get(met.node))
        self._found(self.lives.on_met(met.node, met.inc, met.your_inc, now_ms, dead_ms), now_ms)

    def _found(self, findings: list[Found], now_ms: int) -> None:
        """Two lives of one node, mine or a peer's: say so, and keep work away from there."""
        for what, node, inc, other in findings:
            facts = {
                "node": short(node),
                "inc": inc,
                "counter": inc_counter(inc),
                "other_counter": inc_counter(other),
            }
            if node != self.me:
                self._shun(node, now_ms)
                self.out.note("node.clone", mine=False, **facts)
                continue
            self._drain(True, now_ms)
            if what is Finding.DOUBT:
                self.out.note("node.doubt", **facts)
            elif what is Finding.CLONE:
                # Who is one of two must not say who gets which machine either.
                self.election.priority = NEVER
                self.out.note("node.clone", mine=True, **facts)
            else:
                self.out.note("node.amnesia", **facts, behind=self.behind())
                self.out.add(NewLife(inc_counter(other)))

    def behind(self) -> int:
        """How many groups of changes peers remember of my journal that it does not hold."""
        return max(0, self.journal_told - self.journal_base - self.out.flushed)

    def _shun(self, node: bytes, now_ms: int) -> None:
        """Two machines use that peer's identity: no link, no work, no belief."""
        self.owner.view.get(node, short(node)).draining = True
        self.coordinator.forget_node(node)
        self.coordinator.forget_owner(node)
        self.out.add(Shun(node, "clone"))
        self._elect(now_ms)

    def _heard(self, beat: m.Heartbeat, now_ms: int) -> None:
        dead_ms = self.membership.dead_ms(self.membership.peers.get(beat.node))
        found = self.lives.on_sign(beat.node, beat.inc, beat.stamp_ms, now_ms, dead_ms)
        if found:
            self._found(found, now_ms)
        if beat.node == self.me:
            return
        changes = self.membership.on_heartbeat(beat, now_ms)
        peer = self.membership.peers.get(beat.node)
        if peer is None or peer.beat is not beat:
            self._changed(changes, now_ms)
            return
        view = self.owner.view.nodes.get(beat.node)
        if view is None:
            view = self.owner.view.get(beat.node, short(beat.node))
        self.owner.view.on_stamp(beat.node, beat.inc, beat.stamp_ms, now_ms)
        view.draining = beat.supply.draining or self.lives.is_clone(beat.node)
        view.fresh_ms = self.membership.suspect_ms(peer)
        self._changed(changes, now_ms)
        self._ask_capabilities(beat, now_ms)
        self._offer_supply(peer)
        self._elect(now_ms)

    def _changed(self, changes: list[tuple[Change, PeerRecord]], now_ms: int) -> None:
        """Membership changed: the roles that rest on it are told."""
        owner = self.owner
        for change, peer in changes:
            node = peer.node
            view = owner.view.get(node, short(node))
            self.out.note("node." + change.name.lower(), node=short(node), inc=peer.inc)
            if change in (Change.JOINED, Change.RECOVERED, Change.REINCARNATED):
                self.worker.spool.owner_back(node, now_ms)
            match change:
                case Change.JOINED:
                    view.present, view.suspect = True, False
                    # Attempts of an earlier life of mine may stand with an earlier life of it.
                    owner.on_incarnation(node, peer.inc, now_ms)
                case Change.RECOVERED:
                    view.present, view.suspect = True, False
                case Change.REINCARNATED:
                    view.present, view.suspect = True, False
                    owner.on_incarnation(node, peer.inc, now_ms)
                    self.coordinator.forget_owner(node)
                case Change.SUSPECTED:
                    owner.on_suspect(node, now_ms)
                case Change.DIED:
                    view.present = False
                    owner.on_suspect(node, now_ms)
                    self.coordinator.forget(node)
                case Change.LEFT:
                    view.present = False
                    owner.on_goodbye(node, peer.inc, now_ms)
                    self.coordinator.forget(node)
                case _:
                    assert_never(change)
        if changes:
            owner.granting.interval_ms = self.membership.interval_ms
            self.coordinator.interval_ms = self.membership.interval_ms

    def _offer_supply(self, peer: PeerRecord) -> None:
        """Who follows me is in my pool; who does not is in somebody else's."""
        if self.coordinator.epoch is None:
            return
        if peer.beat.follows == self.me and not self.lives.is_clone(peer.node):
            caps = self.capabilities.get(peer.node)
            text = self.owner.view.nodes[peer.node].text
            self.coordinator.on_supply(peer.node, text, caps, peer.beat.supply)
        else:
            self.coordinator.forget_node(peer.node)
            self.coordinator.forget_owner(peer.node)

    def _elect(self, now_ms: int) -> None:
        is_clone = self.lives.is_clone
        beats = [one.beat for one in self.membership.present() if not is_clone(one.node)]
        claim_before = self.election.claim
        interval_ms = self.membership.interval_ms
        changed = self.election.step(now_ms, interval_ms, self.membership.dead_ms(), beats)
        if not changed:
            return
        claim = self.election.claim
        if claim != claim_before:
            if claim is None:
                self.coordinator.stop()
            else:
                self.coordinator.begin(claim, now_ms, (one.node for one in beats))
                self._offer_own_supply()
                for peer in self.membership.present():
                    self._offer_supply(peer)
        follows = self.election.follows
        self.owner.granting.on_follow(follows, self.owner.classes, self.election.follows_inc)
        self.out.note(
            "coordinator.changed",
            node=short(follows) if follows else "",
            epoch=self.election.follows_epoch.counter if self.election.follows_epoch else 0,
        )
        self._beat_due_ms = min(self._beat_due_ms, max(now_ms, self._beat_ms + BEAT_GAP_MS))

    def _offer_own_supply(self) -> None:
        if self.coordinator.epoch is not None:
            caps = self.capabilities[self.me]
            self.coordinator.on_supply(self.me, self.text, caps, self._supply())

    # --- capabilities -----------------------------------------------------------------------------

    def _set_capabilities(self, capabilities: Capabilities) -> None:
        self.worker.set_capabilities(capabilities)
        self.capabilities[self.me] = capabilities
        self.digests[self.me] = capabilities.digest()
        self.owner.view.on_capabilities(self.me, self.text, capabilities)
        self._capabilities_body = encode(capabilities)
        self._offer_own_supply()
        for cls in self.owner.by_id.values():
            self.owner.granting.dirty(cls)

    def _capabilities_message(self) -> m.Capabilities:
        return m.Capabilities(self.me, self.inc, self.digests[self.me], self._capabilities_body)

    def _ask_capabilities(self, beat: m.Heartbeat, now_ms: int) -> None:
        if not beat.caps_digest or self.digests.get(beat.node) == beat.caps_digest:
            return
        if now_ms - self._asked.get(beat.node, -ASK_CAPABILITIES_MS) >= ASK_CAPABILITIES_MS:
            self._asked[beat.node] = now_ms
            self.out.send(beat.node, m.AskCapabilities(beat.caps_digest))

    def _learn_capabilities(self, node: bytes, message: m.Capabilities) -> None:
        if message.node != node:
            raise RemoteProtocolError("a node may tell only its own capabilities")
        capabilities = decode(message.body)
        self.capabilities[node] = capabilities
        self.digests[node] = message.digest
        self._asked.pop(node, None)
        self.owner.view.on_capabilities(node, short(node), capabilities)
        peer = self.membership.peers.get(node)
        if peer is not None:
            self._offer_supply(peer)
        for cls in self.owner.by_id.values():
            self.owner.granting.dirty(cls)

    def _breach(self, node: bytes, error: RemoteProtocolError, now_ms: int) -> None:
        """A peer's well-formed message makes no sense: it costs a line now and then, no more."""
        if now_ms - self._breached.get(node, -BREACH_GAP_MS) >= BREACH_GAP_MS:
            self._breached[node] = now_ms
            self.out.note("peer.breach", node=short(node), error=error.message)

    # --- time -------------------------------------------------------------------------------------

    def _tick(self, lag_ms: int, now_ms: int) -> None:
        self._lag_ms = lag_ms
        self.membership.on_lag(lag_ms)
        # Leases first: after a pause nothing may be confirmed or started before that.
        self.worker.tick(now_ms)
        self._changed(self.membership.tick(now_ms), now_ms)
        self._found(self.lives.tick(now_ms), now_ms)
        self._elect(now_ms)
        self.owner.tick(now_ms)
        self.desk.tick(now_ms)
        if now_ms >= self._beat_due_ms:
            self._publish(now_ms)

    def _publish(self, now_ms: int) -> None:
        self._beat_ms = now_ms
        self._beat_due_ms = now_ms + self.membership.interval_ms
        self._offer_own_supply()
        self.out.add(Publish(self.beat(now_ms)))

    def beat(self, now_ms: int) -> m.Heartbeat:
        """This node's Heartbeat at this stamp."""
        claim = self.election.claim
        heard: tuple[bytes, ...] = ()
        if claim is not None:
            nodes = sorted(peer.node[:HEARD_BYTES] for peer in self.membership.present())
            heard = tuple(nodes[:HEARD_NODES_MAX])
        return m.Heartbeat(
            self.me,
            self.inc,
            now_ms,
            PROTOCOL_VERSION_MAX,
            claim,
            self.election.follows,
            self.election.served,
            heard,
            self._supply(),
            min(self._lag_ms, 2**31),
            self.journal_base + self.out.flushed,
            self.digests[self.me],
            self.election.priority,
            self.membership.interval_ms,
            self._sensed.receiving_kib_s,
            self._sensed.sending_kib_s,
            sum(cls.tasks for cls in self.owner.by_id.values()),
            self._sensed.cpu_percent,
            self._sensed.memory_percent,
        )

    def _supply(self) -> m.Supply:
        speed = self.capabilities[self.me].speeds.get("python", 1.0)
        return replace(
            self.worker.supply(),
            speed_permille=max(1, min(2**31, int(speed * 1000))),
            temperature_c=self._sensed.temperature_c,
            throttled=self._sensed.throttled,
            load_percent=self._sensed.load_percent,
        )
