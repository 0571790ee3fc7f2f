"""The whole node: local loop, presence, election and capabilities through the one entrance."""

from __future__ import annotations

from typing import Any

import pytest

from bench.lonely import Lonely
from blackroad.bus import messages as m
from blackroad.capabilities import encode
from blackroad.ids import HEARD_BYTES, Epoch, Token, incarnation
from blackroad.node import (
    Drain,
    Finished,
    Flushed,
    FromPeer,
    Heard,
    Killed,
    Node,
    Overslept,
    Probed,
    Sensed,
    Tick,
)
from blackroad.requirements import Needs
from blackroad.router.effects import Effect, Kill, Note, Persist, Publish, Send, Start, Tell
from tests.unit.builders import (
    CLIENT,
    INC,
    ME,
    NO_FACTS,
    OTHER,
    PEER,
    SESSION,
    beat,
    caps,
    client,
    grant,
    make_node,
    messages,
    of_kind,
    outcome,
    spec,
    submit,
    task_id,
)

NEWER = incarnation(8, 1)
TOKEN = Token(INC, 1)
KEY = (ME, TOKEN)
OPEN = m.Open(SESSION, 600_000)


def opened(now_ms: int = 0, **changes: Any) -> Node:
    """A node with one client session and nobody to follow yet."""
    node = make_node(1, now_ms, **changes)
    node.handle(client(OPEN), now_ms)
    return node


def reigning() -> Node:
    """A lonely node that has claimed and listened: it is its own coordinator."""
    node = opened()
    for now_ms in range(0, 3000, 50):
        node.handle(Tick(), now_ms)
    assert node.election.claim == Epoch(1, ME)
    return node


def follower(*others: m.Heartbeat) -> Node:
    """A node that follows PEER."""
    node = opened()
    for other in others:
        node.handle(Heard(other), 100)
    node.handle(Heard(claimant(100)), 100)
    assert node.election.follows == PEER
    return node


def claimant(stamp_ms: int, **changes: Any) -> m.Heartbeat:
    claim = {"claim": Epoch(5, PEER), "follows": PEER, "heard": (ME[:HEARD_BYTES],)}
    return beat(PEER, stamp_ms, **{**claim, **changes})


def done_task(node: Node, now_ms: int) -> list[Effect]:
    finished = Finished(KEY, m.Status.DONE, b"42", m.Facts(run_us=9))
    effects = node.handle(finished, now_ms)
    node.check()
    return effects


ENDED = Tell(CLIENT, m.Ended(task_id(1), m.End.DONE, "", b"42", m.Facts(run_us=9), ME, 1))


# --- the local loop -------------------------------------------------------------------------------


def test_a_single_node_runs_a_task_before_any_coordinator_is_elected() -> None:
    """R-demand-5, R-path-4: it follows nobody, so its own worker starts in the same call."""
    node = opened()
    effects = node.handle(client(submit(1)), 10)
    assert effects == [
        Tell(CLIENT, m.Accepted((task_id(1),)), lazy=True),
        Start(KEY, task_id(1), spec(), None, b"work", 1, (), 10 + 19_000),
    ]
    assert done_task(node, 50) == [ENDED]
    assert KEY not in node.worker.spool


def test_a_node_that_is_its_own_coordinator_starts_a_task_in_one_call() -> None:
    """R-path-4: Demand, Allocation, Grant are function calls: accepted and started at once."""
    node = reigning()
    effects = node.handle(client(submit(1)), 3000)
    assert [type(one) for one in effects] == [Tell, Start]
    assert node.coordinator.owners[ME].demand.classes[0].queued == 1
    [ended] = of_kind(done_task(node, 3100), m.Ended)
    assert ended.end is m.End.DONE


def test_more_than_fits_starts_as_slots_become_free() -> None:
    """R-lease-7: two slots, five tasks, never more than two at once."""
    node = reigning()
    started = of_kind(node.handle(client(submit(1, 2, 3, 4, 5)), 3000), Start)
    assert len(started) == 2
    for at in range(60):
        now_ms = 3100 + 100 * at
        done = [one.key for one in started[at : at + 1]]
        for key in done:
            ends = Finished(key, m.Status.DONE, b"", m.Facts(run_us=2_000_000))
            started += of_kind(node.handle(ends, now_ms), Start)
        started += of_kind(node.handle(Tick(), now_ms + 50), Start)
        assert node.worker.running <= 2
        node.check()
    assert len({one.task for one in started}) == len(started) == 5
    assert len(node.owner.attempts) == 0


def test_a_durable_task_waits_for_two_flushes() -> None:
    """R-submit-1, R-lease-1: Accepted and Start after the first, Ended after the last."""
    node = opened()
    [written] = node.handle(client(submit(1, durable=True)), 10)
    assert isinstance(written, Persist)
    started = node.handle(Flushed(written.mark), 20)
    assert [type(one) for one in started] == [Tell, Start]
    told: list[Effect] = []
    marks = of_kind(done_task(node, 50), Persist)
    while marks:
        more = node.handle(Flushed(marks.pop().mark), 60)
        marks += of_kind(more, Persist)
        told += more
    assert of_kind(told, Tell) == [ENDED]
    assert KEY not in node.worker.spool


def test_cancel_kills_and_is_told_when_the_process_is_gone() -> None:
    """R-cancel-1, R-cancel-3: through owner and worker of one node."""
    node = opened()
    node.handle(client(submit(1)), 10)
    assert node.handle(client(m.Cancel((task_id(1),))), 20) == [Kill(KEY, "stop")]
    effects = node.handle(Killed(KEY), 30)
    [ended] = of_kind(effects, m.Ended)
    assert (ended.end, ended.reason) == (m.End.CANCELLED, "cancelled")


@pytest.mark.parametrize(
    "said", [m.Cancel((task_id(1),)), m.Seen((task_id(1),)), m.Alive(b"x" * 16)]
)
def test_without_a_session_only_open_and_query_are_heard(said: m.Message) -> None:
    """Section 5: -, anything else but Query: Reject *session*."""
    node = opened()
    node.handle(client(submit(1)), 10)
    stranger = type(client())(b"stranger", (said,))
    [told] = of_kind(node.handle(stranger, 20), m.Reject)
    assert told.reason == "session"
    assert node.owner.tasks[task_id(1)].stop is None


@pytest.mark.parametrize("said", [m.Cancel((task_id(9),)), m.Seen(()), m.Query(1, b"", "nodes")])
def test_any_message_extends_the_session(said: m.Message) -> None:
    """Section 5: open, any message: lease counts from now."""
    node = opened()
    node.handle(client(said), 5000)
    assert node.owner.sessions.sessions[SESSION].until_ms == 605_000


# --- presence -------------------------------------------------------------------------------------


def test_it_publishes_every_interval() -> None:
    """R-life-6: Heartbeat every H, with the stamp of now."""
    node = opened()
    sent = {at: of_kind(node.handle(Tick(), at), Publish) for at in range(0, 1001, 50)}
    assert [at for at, one in sent.items() if one] == [0, 250, 500, 750, 1000]
    told = sent[500][0].beat
    assert (told.node, told.inc, told.stamp_ms, told.interval_ms) == (ME, INC, 500, 250)
    assert told.supply.cpu_units == 20_000
    assert told.caps_digest == caps("n1").digest()


def test_sensors_and_lag_are_told() -> None:
    """Heartbeat: load, temperature and loop lag, for people."""
    node = opened()
    node.handle(Sensed(71, True, 88), 10)
    node.handle(Tick(lag_ms=33), 20)
    told = node.beat(30)
    assert (told.supply.temperature_c, told.supply.throttled, told.supply.load_percent) == (
        71,
        True,
        88,
    )
    assert told.loop_lag_ms == 33


def test_a_new_peer_is_asked_for_its_capabilities() -> None:
    """Capabilities: AskCapabilities, from a peer that lacks them; not twice in a row."""
    node = opened()
    effects = node.handle(Heard(beat(PEER, 1)), 100)
    asked = m.AskCapabilities(caps().digest())
    assert effects == [
        Note("node.joined", {"node": effects[0].facts["node"], "inc": INC}),
        Send(PEER, asked),
    ]
    assert node.handle(Heard(beat(PEER, 2)), 200) == []
    body = encode(caps())
    node.handle(FromPeer(PEER, (m.Capabilities(PEER, INC, caps().digest(), body),)), 250)
    assert node.handle(Heard(beat(PEER, 3)), 900) == []
    assert node.owner.placeable(spec(Needs(node="attic").to_wire()))


def test_it_answers_who_asks_for_its_capabilities() -> None:
    node = opened()
    asked = FromPeer(PEER, (m.AskCapabilities(caps("n1").digest()),))
    mine = m.Capabilities(ME, INC, caps("n1").digest(), encode(caps("n1")))
    assert node.handle(asked, 10) == [Send(PEER, mine)]


def test_a_probe_that_ends_later_raises_the_supply() -> None:
    """Probed: what was found out after the start is told to everybody."""
    node = opened()
    before = node.beat(0)
    node.handle(Probed(caps("n1", memory_bytes=2**34)), 10)
    after = node.beat(20)
    assert after.caps_digest != before.caps_digest
    assert after.supply.memory_bytes == 2**34


def test_drain_is_published_and_ends_when_asked() -> None:
    """R-life-8: flag in Heartbeat; nothing new is taken."""
    node = opened()
    node.handle(Drain(True), 10)
    [told] = of_kind(node.handle(Tick(), 10), Publish)
    assert told.beat.supply.draining is True
    assert not of_kind(node.handle(client(submit(1)), 20), Start)
    assert of_kind(node.handle(Drain(False), 30), Start) or of_kind(node.handle(Tick(), 200), Start)


def test_goodbye_of_a_peer_is_proof() -> None:
    """R-lease-3: through the membership to the owner."""
    node = follower()
    told = granted_to_peer(node)
    node.handle(FromPeer(PEER, (m.Goodbye(INC),)), 300)
    assert told.token not in node.owner.attempts
    assert node.owner.tasks[task_id(1)].losses == 1


def test_a_restart_of_a_peer_is_proof() -> None:
    """R-lease-3, R-link-6: a newer incarnation told by Heartbeat."""
    node = follower()
    told = granted_to_peer(node)
    node.handle(Heard(beat(PEER, 5, NEWER)), 300)
    assert told.token not in node.owner.attempts
    assert node.owner.tasks[task_id(1)].killers == 1


def test_a_silent_peer_is_no_proof() -> None:
    """R-path-2, R-lease-3: from a missing Heartbeat nobody concludes more than silence."""
    node = follower()
    told = granted_to_peer(node)
    for now_ms in range(500, 20_000, 500):
        node.handle(Tick(), now_ms)
    assert told.token in node.owner.attempts


def granted_to_peer(node: Node) -> m.Grant:
    body = encode(caps())
    node.handle(FromPeer(PEER, (m.Capabilities(PEER, INC, caps().digest(), body),)), 110)
    node.handle(client(submit(1, spec=spec(Needs(node="attic").to_wire()))), 120)
    [cls] = node.owner.by_id
    seq = node.owner.granting.demand_seq
    rows = (m.Row(cls, PEER, 1),)
    told = FromPeer(PEER, (m.Allocation(Epoch(5, PEER), 1, INC, seq, rows),), INC)
    [granted] = of_kind(node.handle(told, 200), m.Grant)
    assert (granted.inc, granted.echo_ms) == (INC, 100)
    return granted


# --- worker for others ----------------------------------------------------------------------------


def test_work_of_another_owner_is_reported_to_it() -> None:
    """Warm stream: Grant, Outcome, OutcomeAck."""
    node = opened()
    key = (PEER, grant().token)
    [started] = node.handle(FromPeer(PEER, (grant(),)), 1000)
    assert (type(started), started.key) == (Start, key)
    effects = node.handle(Finished(key, m.Status.DONE, b"42", NO_FACTS), 1100)
    assert effects == [Send(PEER, outcome(grant().token, facts=NO_FACTS))]
    assert key in node.worker.spool
    assert node.handle(FromPeer(PEER, (m.OutcomeAck((key[1],)),)), 1200) == []
    assert key not in node.worker.spool


def test_leases_end_before_anything_is_heard() -> None:
    """R-lease-11: after a pause the worker looks at its clock first."""
    node = opened()
    node.handle(FromPeer(PEER, (grant(),)), 1000)
    effects = node.handle(Tick(), 500_000)
    assert of_kind(effects, Kill) == [Kill((PEER, grant().token), "lapsed")]
    assert effects.index(of_kind(effects, Kill)[0]) == 0


# --- election -------------------------------------------------------------------------------------


def test_a_claim_is_published_at_once() -> None:
    """Section 10: claim; Heartbeat at once, with whom it hears."""
    node = opened()
    node.handle(Heard(beat(PEER, 1)), 1200)
    claimed = [
        (at, one.beat)
        for at in range(1250, 1400, 10)
        for one in of_kind(node.handle(Tick(), at), Publish)
    ]
    at, told = next((at, told) for at, told in claimed if told.claim)
    assert at <= 1300
    assert (told.claim, told.heard, told.follows) == (Epoch(1, ME), (PEER[:HEARD_BYTES],), ME)


def test_a_follower_states_its_demand_and_is_served_by_the_answer() -> None:
    """R-demand-7, R-elect-1: every follower sends one, even an empty one."""
    node = opened()
    effects = node.handle(Heard(claimant(100)), 100)
    [told] = of_kind(effects, m.Demand)
    assert told.classes == ()
    assert node.beat(110).served is False
    answer = m.Allocation(Epoch(5, PEER), 1, INC, told.seq, ())
    node.handle(FromPeer(PEER, (answer,), INC), 150)
    assert node.beat(160).served is True


def test_an_unanswered_follower_goes_its_own_way() -> None:
    """R-elect-1, S14: a coordinator that publishes but receives nothing."""
    node = follower()
    for now_ms in range(150, 12_000, 50):
        node.handle(Heard(claimant(now_ms)), now_ms)
        node.handle(Tick(), now_ms)
    assert node.election.follows == ME
    assert node.election.claim == Epoch(6, ME)


def test_stepping_down_forgets_demands_and_supplies() -> None:
    """R-alloc-1: stepping down, it forgets all three."""
    node = reigning()
    assert node.coordinator.nodes
    node.handle(Heard(claimant(1, claim=Epoch(2, PEER))), 3000)
    assert node.election.follows == PEER
    assert (node.coordinator.epoch, node.coordinator.nodes, node.coordinator.owners) == (
        None,
        {},
        {},
    )


def test_a_late_demand_of_a_dead_owner_is_nobodys_wish() -> None:
    """R-alloc-1: nobody would ever take it back, and its class would keep its places."""
    node = opened()
    node.handle(Heard(beat(PEER, 100, follows=ME)), 100)
    for now_ms in range(150, 3000, 50):
        node.handle(Tick(), now_ms)
    assert node.election.claim is not None
    wants = m.Demand(INC, 7, (), ())
    node.handle(FromPeer(PEER, (wants,), INC), 3000)
    assert PEER not in node.coordinator.owners
    node.handle(Heard(beat(PEER, 3100, follows=ME)), 3100)
    node.handle(FromPeer(PEER, (wants,), INC), 3100)
    assert node.coordinator.owners[PEER].demand == wants


def test_a_late_demand_of_an_earlier_life_is_dropped() -> None:
    """R-alloc-1: the present life says itself what it wants."""
    node = reigning()
    node.handle(Heard(beat(PEER, 3000, follows=ME, inc=incarnation(9, 1))), 3000)
    node.handle(FromPeer(PEER, (m.Demand(incarnation(8, 1), 7, (), ()),), 0), 3010)
    assert PEER not in node.coordinator.owners
    node.handle(FromPeer(PEER, (m.Demand(incarnation(9, 1), 1, (), ()),), 0), 3020)
    assert PEER in node.coordinator.owners


def test_a_coordinator_pools_only_who_follows_it() -> None:
    """R-alloc-1: in a partition each node is in one pool."""
    node = reigning()
    body = encode(caps())
    node.handle(FromPeer(PEER, (m.Capabilities(PEER, INC, caps().digest(), body),)), 3000)
    node.handle(Heard(beat(PEER, 1, follows=ME)), 3010)
    assert PEER in node.coordinator.nodes
    node.handle(Heard(beat(PEER, 2, follows=OTHER)), 3020)
    assert PEER not in node.coordinator.nodes


def test_a_sleeper_accuses_nobody() -> None:
    """R-elect-4, S28: it reads its whole inbox before it judges anybody."""
    node = follower(beat(OTHER, 1))
    effects = node.handle(Overslept(60_000), 60_100)
    effects += node.handle(Tick(), 60_100)
    assert not [one for one in of_kind(effects, Note) if "died" in one.name]
    assert node.election.follows == PEER


def test_the_next_deadline_never_lies_in_the_past_for_long() -> None:
    """A driver that ticks when it is told must get on: no standing still, no spinning."""
    node = follower()
    granted_to_peer(node)
    now_ms, ticks = 300, 0
    while now_ms < 40_000:
        node.handle(Tick(), now_ms)
        due_ms = node.next_deadline_ms()
        assert due_ms > now_ms - 1000
        now_ms = max(due_ms, now_ms + 1)
        ticks += 1
    assert ticks < 1500


def test_what_no_node_says_is_counted() -> None:
    """R-frame-2: a message that nobody here listens to does no harm."""
    node = opened()
    assert messages(node.handle(FromPeer(PEER, (m.Alive(SESSION),)), 10)) == []
    assert node.unknown_kinds == 1


def test_a_peer_that_speaks_for_another_costs_a_line_a_minute() -> None:
    """R-frame-4: what makes no sense is counted, and everybody else goes on."""
    node = make_node()
    body = encode(caps("forged"))
    forged = m.Capabilities(OTHER, INC, caps("forged").digest(), body)
    told = [node.handle(FromPeer(PEER, [forged], INC), at) for at in (0, 59_999, 60_000)]
    notes = [[one.name for one in of_kind(effects, Note)] for effects in told]
    assert notes == [["peer.breach"], [], ["peer.breach"]]
    assert OTHER not in node.capabilities


def test_what_starts_next_does_not_wait_for_what_became_of_the_last() -> None:
    one = Lonely()
    one.queue(2_000)
    while not one.node.worker.waiting:
        one.turn(10)
    start = one._started[0]
    done = Finished(start.key, m.Status.FAILED, b"", m.Facts(type_name="ValueError"))
    effects = one.node.handle_all([done], one.now_ms + 1)
    first = next(effect for effect in effects if isinstance(effect, Start | Tell))
    assert isinstance(first, Start)
    ended = one.node.owner.counters.get("ended.failed", 0)
    told = [effect for effect in effects if isinstance(effect, Tell)]
    assert not ended
    assert told
    assert one.node.owner.counters["ended.failed"] == 1
