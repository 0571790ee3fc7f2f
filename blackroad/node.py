"""The pure node: membership, election, owner, worker and coordinator in one `handle`.

Source  docs/protocol.md.  Two drivers run this very class: the daemon with real sockets and
processes, and the simulator with a made-up network.  No clock, socket, thread, file or
randomness is reached from here; the router's and the discovery's machines meet only in this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from msgspec import Struct

from blackroad import queries
from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities, decode, encode
from blackroad.discovery.election import Election
from blackroad.discovery.membership import Change, Membership, PeerRecord, PeerState
from blackroad.errors import RemoteProtocolError
from blackroad.ids import HEARD_BYTES, short
from blackroad.limits import (
    ASK_CAPABILITIES_MS,
    BEAT_GAP_MS,
    HEARD_NODES_MAX,
    LEASE_MS,
    PROTOCOL_VERSION_MAX,
    QUERY_MS,
    RELAYS_MAX,
)
from blackroad.router.coordinator import Coordinator
from blackroad.router.effects import Lookup, Outbox, Publish
from blackroad.router.owner import Owner
from blackroad.router.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blackroad.router.effects import Effect, Key

LOCAL_ROUNDS_MAX = 64

DRIVER_QUERIES = frozenset({"logs", "driver", "put", "get"})


class Event(Struct, frozen=True, gc=False):
    """Base of all events."""


class Heard(Event, frozen=True, gc=False):
    """A Heartbeat came on SUB."""

    beat: m.Heartbeat


class FromPeer(Event, frozen=True, gc=False):
    """Messages of one multipart came from a peer's link; `inc` is the life it belongs to."""

    node: bytes
    messages: Sequence[m.Message]
    inc: int = 0


class FromClient(Event, frozen=True, gc=False):
    """Messages came from a client of this daemon."""

    client: bytes
    messages: Sequence[m.Message]


class Finished(Event, frozen=True, gc=False):
    """An attempt's processes are gone and left this."""

    key: Key
    status: m.Status
    result: m.Payload
    facts: m.Facts


class Killed(Event, frozen=True, gc=False):
    """A killed attempt is proven gone."""

    key: Key


class Fetched(Event, frozen=True, gc=False):
    """An object is here, checked."""

    digest: bytes


class FetchFailed(Event, frozen=True, gc=False):
    """An object cannot be had: all holders say so (`gone`), or it stands still for too long."""

    digest: bytes
    text: str
    gone: bool = True


class Evicted(Event, frozen=True, gc=False):
    """An object left the store."""

    digest: bytes


class Flushed(Event, frozen=True, gc=False):
    """Everything persisted up to `mark` is on disk."""

    mark: int


class Probed(Event, frozen=True, gc=False):
    """The hardware probe ended."""

    capabilities: Capabilities


class Sensed(Event, frozen=True, gc=False):
    """What the machine's sensors say now."""

    temperature_c: int
    throttled: bool
    load_percent: int


class Drain(Event, frozen=True, gc=False):
    """Take nothing new (or take work again)."""

    on: bool


class Overslept(Event, frozen=True, gc=False):
    """The driver's loop stood still for so long."""

    gap_ms: int


class Tick(Event, frozen=True, gc=False):
    """Time is now."""

    lag_ms: int = 0


AnyEvent = (
    Heard
    | FromPeer
    | FromClient
    | Finished
    | Killed
    | Fetched
    | FetchFailed
    | Evicted
    | Flushed
    | Probed
    | Sensed
    | Drain
    | Overslept
    | Tick
)


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
    ) -> None:
        self.me = me
        self.inc = inc
        self.name = capabilities.name
        self.text = short(me)
        self.started_ms = now_ms
        self.out = Outbox(me)
        self.membership = Membership(me, heartbeat_ms)
        self.election = Election(me, inc, election_priority, now_ms)
        self.worker = Worker(me, self.text, inc, capabilities, slots, self.out)
        self.coordinator = Coordinator(me, self.out)
        self.owner = Owner(me, inc, self.out, self.worker.room_for, now_ms)
        self.owner.sessions.name = self.name
        self.owner.runs.lease_ms = lease_ms
        self.capabilities: dict[bytes, Capabilities] = {}
        self.digests: dict[bytes, bytes] = {}
        self.unknown_kinds = 0
        self._sensed = Sensed(0, False, 0)
        self._beat_due_ms = now_ms
        self._beat_ms = -BEAT_GAP_MS
        self._lag_ms = 0
        self._asked: dict[bytes, int] = {}
        # By the number of the relayed query: client, its number, until when, whom it asks.
        self._relays: dict[int, tuple[bytes, int, int, bytes]] = {}
        self._relay_serial = 0
        self._waiting: list[queries.Waiting] = []
        view = self.owner.view.get(me, self.text)
        view.inc, view.present = inc, True
        self._set_capabilities(capabilities)

    # --- the one entrance -------------------------------------------------------------------------

    def handle(self, event: AnyEvent, now_ms: int) -> list[Effect]:
        """Apply one event; return what the world must now do, in order."""
        self._apply(event, now_ms)
        self._settle(now_ms)
        return self.out.take()

    def handle_all(self, events: Sequence[AnyEvent], now_ms: int) -> list[Effect]:
        """Apply what one turn of the loop brought, and settle once for all of it."""
        for event in events:
            self._apply(event, now_ms)
        self._settle(now_ms)
        return self.out.take()

    def _apply(self, event: AnyEvent, now_ms: int) -> None:
        match event:
            case FromClient():
                for message in event.messages:
                    self._from_client(event.client, message, now_ms)
            case FromPeer():
                for message in event.messages:
                    self._from_node(event.node, message, now_ms, event.inc)
            case Finished():
                self.worker.on_finished(event.key, event.status, event.result, event.facts, now_ms)
            case Heard():
                self._heard(event.beat, now_ms)
            case Tick():
                self._tick(event.lag_ms, now_ms)
            case Flushed():
                self.out.on_flushed(event.mark, now_ms)
            case Killed():
                self.worker.on_gone(event.key, now_ms)
            case Fetched():
                self.worker.on_fetched(event.digest, now_ms)
                self.owner.on_fetched(event.digest, now_ms)
            case FetchFailed():
                self.worker.on_fetch_failed(event.digest, event.text, now_ms)
                self.owner.on_fetch_failed(event.digest, event.text, now_ms, event.gone)
            case Evicted():
                self.worker.on_evicted(event.digest)
            case Probed():
                self._set_capabilities(event.capabilities)
            case Sensed():
                self._sensed = event
            case Drain():
                self.worker.drain(event.on, now_ms)
                self.owner.view.get(self.me).draining = event.on
                self._beat_due_ms = now_ms
            case Overslept():
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
            self.worker.next_deadline_ms(),
            self.owner.next_deadline_ms(),
            self.coordinator.next_deadline_ms(),
            min((one.until_ms for one in self._waiting), default=2**62),
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
            self._answer_waiting(now_ms)
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
                self.coordinator.on_demand(node, message, now_ms)
            case m.Allocation():
                if owner.on_allocation(node, message, inc):
                    self.election.on_answered()
            case m.Capabilities():
                self._learn_capabilities(node, message)
            case m.AskCapabilities():
                self.out.send(node, self._capabilities_message())
            case m.Goodbye():
                self._changed(self.membership.on_goodbye(node, message.inc), now_ms)
            case m.Query():
                self._query(message, now_ms, node, peer=True)
            case m.Reply():
                self._relay_reply(message, node)
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
                self._query(message, now_ms, client, peer=False)
            case _:
                self.unknown_kinds += 1

    # --- queries ----------------------------------------------------------------------------------

    def _query(self, query: m.Query, now_ms: int, asker: bytes, *, peer: bool) -> None:
        """Answer from here, or relay once to the node concerned."""
        if query.target not in (b"", self.me):
            if peer:
                self._reply(query, asker, peer, error="a query is relayed once only")
            else:
                self._relay(query, now_ms, asker)
            return
        if query.name in DRIVER_QUERIES:
            self.out.add(Lookup(asker, peer, query.query, query.name, query.args))
            return
        try:
            if query.name == "cancel":
                queries.cancel(self, query, now_ms)
            body = queries.answer(self, query, now_ms)
        except queries.NotYet as waiting:
            until_ms = now_ms + waiting.wait_ms
            self._waiting.append(queries.Waiting(query, asker, peer, until_ms))
            return
        except RemoteProtocolError as error:
            self._reply(query, asker, peer, error=error.message)
            return
        self._reply(query, asker, peer, body=body)

    def _answer_waiting(self, now_ms: int) -> None:
        """Look again at queries that wait for a task to end."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            try:
                body = queries.answer(self, one.query, now_ms, final=now_ms >= one.until_ms)
            except queries.NotYet:
                self._waiting.append(one)
                continue
            except RemoteProtocolError as error:
                self._reply(one.query, one.asker, one.peer, error=error.message)
                continue
            self._reply(one.query, one.asker, one.peer, body=body)

    def _reply(
        self, query: m.Query, asker: bytes, peer: bool, *, body: bytes = b"", error: str = ""
    ) -> None:
        for reply in queries.pages(query.query, self.me, body, error):
            if peer:
                self.out.send(asker, reply)
            else:
                self.out.tell(asker, reply)

    def _relay(self, query: m.Query, now_ms: int, client: bytes) -> None:
        peer = self.membership.peers.get(query.target)
        if peer is None or peer.state in (PeerState.DEAD, PeerState.LEFT):
            self._reply(query, client, False, error="unreachable: that node is not in the mesh")
            return
        self._relay_serial += 1
        if len(self._relays) >= RELAYS_MAX:
            del self._relays[next(iter(self._relays))]
        until_ms = now_ms + QUERY_MS
        self._relays[self._relay_serial] = (client, query.query, until_ms, query.target)
        self.out.send(
            query.target, m.Query(self._relay_serial, query.target, query.name, query.args)
        )

    def _relay_reply(self, reply: m.Reply, node: bytes) -> None:
        relay = self._relays.get(reply.query)
        if relay is None or relay[3] != node:
            return
        if reply.last:
            del self._relays[reply.query]
        client, query, _, _ = relay
        self.out.tell(client, m.Reply(query, node, reply.page, reply.last, reply.body, reply.error))

    # --- presence ---------------------------------------------------------------------------------

    def _heard(self, beat: m.Heartbeat, now_ms: int) -> None:
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
        view.draining = beat.supply.draining
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
                    self.coordinator.forget_node(node)
                    self.coordinator.forget_owner(node)
                case Change.LEFT:
                    view.present = False
                    owner.on_goodbye(node, peer.inc, now_ms)
                    self.coordinator.forget_node(node)
                    self.coordinator.forget_owner(node)
                case Change.CLONE:
                    pass
                case _:
                    assert_never(change)
        if changes:
            owner.granting.interval_ms = self.membership.interval_ms
            self.coordinator.interval_ms = self.membership.interval_ms

    def _offer_supply(self, peer: PeerRecord) -> None:
        """Who follows me is in my pool; who does not is in somebody else's."""
        if self.coordinator.epoch is None:
            return
        if peer.beat.follows == self.me:
            caps = self.capabilities.get(peer.node)
            text = self.owner.view.nodes[peer.node].text
            self.coordinator.on_supply(peer.node, text, caps, peer.beat.supply)
        else:
            self.coordinator.forget_node(peer.node)
            self.coordinator.forget_owner(peer.node)

    def _elect(self, now_ms: int) -> None:
        beats = [peer.beat for peer in self.membership.present()]
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
                self.coordinator.begin(claim, now_ms)
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

    # --- time -------------------------------------------------------------------------------------

    def _tick(self, lag_ms: int, now_ms: int) -> None:
        self._lag_ms = lag_ms
        self.membership.on_lag(lag_ms)
        # Leases first: after a pause nothing may be confirmed or started before that.
        self.worker.tick(now_ms)
        self._changed(self.membership.tick(now_ms), now_ms)
        self._elect(now_ms)
        self.owner.tick(now_ms)
        if self._waiting and any(one.until_ms <= now_ms for one in self._waiting):
            self._answer_waiting(now_ms)
        self._drop_stale_relays(now_ms)
        if now_ms >= self._beat_due_ms:
            self._publish(now_ms)

    def _drop_stale_relays(self, now_ms: int) -> None:
        while self._relays:
            first = next(iter(self._relays))
            client, query, until_ms, _ = self._relays[first]
            if until_ms > now_ms:
                return
            del self._relays[first]
            error = "unreachable: no answer within 2 s"
            self.out.tell(client, m.Reply(query, b"", 0, True, b"", error))

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
            self.out.mark,
            self.digests[self.me],
            self.election.priority,
            self.membership.interval_ms,
        )

    def _supply(self) -> m.Supply:
        supply = self.worker.supply()
        speed = self.capabilities[self.me].speeds.get("python", 1.0)
        return m.Supply(
            supply.cpu_units,
            supply.memory_bytes,
            supply.gpu_bytes,
            supply.free_cpu_units,
            supply.free_memory_bytes,
            supply.running,
            supply.waiting,
            supply.draining,
            max(1, min(2**31, int(speed * 1000))),
            self._sensed.temperature_c,
            self._sensed.throttled,
            self._sensed.load_percent,
            supply.done,
        )
