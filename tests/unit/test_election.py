"""Election: everybody's last Heartbeat in, belief and claim out."""

from __future__ import annotations

import pytest

from blackroad.bus.messages import Heartbeat
from blackroad.discovery.election import NEVER, Election
from blackroad.ids import HEARD_BYTES, Epoch, incarnation
from tests.unit.builders import FOURTH, INC, ME, OTHER, PEER, beat, node_id

H, DEAD = 250, 1250
MINE = PEER  # the node under test has a better candidate (ME) below it and two above
NEWER = incarnation(8, 1)


def election(me: bytes = MINE, priority: int = 0, started_ms: int = 0) -> Election:
    return Election(me, INC, priority, started_ms)


def step(one: Election, now_ms: int, *beats: Heartbeat) -> bool:
    return one.step(now_ms, H, DEAD, beats)


def claimant(node: bytes, counter: int, *heard: bytes, **changes: object) -> Heartbeat:
    names = heard or (ME, PEER, OTHER, FOURTH)
    short = tuple(name[:HEARD_BYTES] for name in names if name != node)
    return beat(node, claim=Epoch(counter, node), follows=node, heard=short, **changes)


def follower(node: bytes, of: bytes, served: bool = True, **changes: object) -> Heartbeat:
    return beat(node, follows=of, served=served, **changes)


def old(one: Election) -> Election:
    """Make it older than 2 T_dead and leaderless since 10 000."""
    step(one, 9_999, claimant(OTHER, 3))
    assert one.follows == OTHER
    step(one, 10_000)
    assert one.follows == b""
    return one


def test_alone_it_claims_after_t_dead() -> None:
    """R-elect-3: within 2 T_dead of the start the time is T_dead + rank * 2 H."""
    one = election()
    assert step(one, DEAD - 1) is False
    assert step(one, DEAD) is True
    assert (one.claim, one.follows, one.follows_inc) == (Epoch(1, MINE), MINE, INC)
    assert step(one, DEAD + 100) is False


@pytest.mark.parametrize(
    ("others", "rank"),
    [
        ((beat(ME),), 1),
        ((beat(OTHER),), 0),
        ((beat(OTHER, priority=1),), 1),
        ((beat(ME), beat(OTHER, priority=5)), 2),
        ((beat(ME, priority=-1),), 0),
        ((beat(ME, priority=NEVER),), 0),
    ],
)
def test_better_candidates_go_first(others: tuple[Heartbeat, ...], rank: int) -> None:
    """R-elect-3: rank counts better candidates heard: higher priority, then lower node id."""
    one = election()
    wait_ms = DEAD + rank * 2 * H
    assert step(one, wait_ms - 1, *others) is False
    assert step(one, wait_ms, *others) is True


def test_later_the_wait_is_three_heartbeats() -> None:
    """R-elect-3: 3 H + rank * 2 H, counted from the loss of the last acceptable claimant."""
    one = old(election())
    assert step(one, 10_749, beat(OTHER)) is False
    assert step(one, 10_750, beat(OTHER)) is True
    assert one.claim == Epoch(4, MINE)


def test_who_shall_never_coordinate_never_claims() -> None:
    """Section 10: priority -128 never claims."""
    one = election(priority=NEVER)
    assert step(one, 1_000_000) is False
    assert one.claim is None


def test_it_follows_the_highest_acceptable_epoch() -> None:
    """R-elect-1, R-elect-2: heard names me; the highest epoch, counter before node."""
    one = election()
    assert step(one, 100, claimant(ME, 4), claimant(OTHER, 4)) is True
    assert (one.follows, one.follows_epoch) == (OTHER, Epoch(4, OTHER))
    assert step(one, 200, claimant(ME, 5), claimant(OTHER, 4)) is True
    assert one.follows == ME


def test_a_claimant_that_does_not_hear_me_is_not_acceptable() -> None:
    """R-elect-1: its `heard` names me."""
    one = election()
    assert step(one, 100, claimant(ME, 9, OTHER)) is False
    assert one.follows == b""


def test_a_claim_in_another_name_is_none() -> None:
    """R-elect-1: an epoch carries the name of who claims it."""
    one = election()
    assert step(one, 100, beat(ME, claim=Epoch(9, OTHER), heard=(MINE[:HEARD_BYTES],))) is False


def test_a_one_way_claimant_is_challenged_with_a_higher_epoch() -> None:
    """R-elect-3: highest counter seen + 1, the unacceptable ones' too."""
    one = election()
    assert step(one, DEAD + 2 * H, claimant(ME, 41, OTHER)) is True
    assert one.claim == Epoch(42, MINE)


def test_belief_ends_with_the_claim() -> None:
    """R-elect-2: a Heartbeat without it ends both."""
    one = election()
    step(one, 100, claimant(ME, 4))
    assert step(one, 200, beat(ME)) is True
    assert (one.follows, one.follows_epoch, one.served) == (b"", None, False)


def test_belief_ends_when_the_claimant_is_no_longer_heard() -> None:
    """Table: the followed one is dead: follow nobody, start the elect time."""
    one = election()
    step(one, 9_000, claimant(ME, 4))
    assert step(one, 10_000) is True
    assert one.follows == b""
    assert step(one, 10_749) is False
    assert step(one, 10_750) is True


def test_a_claimant_steps_down_before_a_higher_one() -> None:
    """R-elect-2: a claimant that finds a higher acceptable one steps down."""
    one = election()
    step(one, DEAD)
    assert step(one, DEAD + 10, claimant(ME, 1)) is False
    assert one.claim == Epoch(1, MINE)
    assert step(one, DEAD + 20, claimant(OTHER, 2, ME)) is False
    assert step(one, DEAD + 30, claimant(OTHER, 1)) is True
    assert (one.claim, one.follows) == (None, OTHER)


def test_a_supported_claimant_is_not_challenged() -> None:
    """R-elect-3: followed and served by more than half of the others: one lonely node."""
    one = election()
    deaf = claimant(ME, 4, OTHER, FOURTH)
    others = (follower(OTHER, ME), follower(FOURTH, ME), beat(node_id(5)))
    assert step(one, 100_000, deaf, *others) is False
    assert one.claim is None


@pytest.mark.parametrize(
    "others",
    [
        (),
        (follower(OTHER, ME, served=False), beat(FOURTH)),
        # Two lonely ones of three: neither may wait for the third for ever.
        (follower(OTHER, ME), beat(FOURTH)),
        (follower(OTHER, ME), beat(FOURTH), beat(node_id(5))),
        (follower(OTHER, FOURTH), beat(FOURTH)),
    ],
)
def test_an_unsupported_claimant_is_challenged(others: tuple[Heartbeat, ...]) -> None:
    """R-elect-3: more than half of the others, and they must have been served."""
    one = old(election())
    assert step(one, 100_000, claimant(ME, 4, OTHER, FOURTH), *others) is True
    assert one.claim == Epoch(5, MINE)


# --- distrust -------------------------------------------------------------------------------------


def unanswered(asked_ms: int = 1000) -> Election:
    one = election()
    step(one, 500, claimant(ME, 4))
    one.on_demand_sent(asked_ms)
    one.on_demand_sent(asked_ms + 400)
    return one


def test_an_unanswered_demand_makes_distrust() -> None:
    """R-elect-1: when my Demand stays unanswered for 2 T_dead, counted from the first."""
    one = unanswered()
    assert step(one, 1000 + 2 * DEAD - 1, claimant(ME, 4)) is False
    assert step(one, 1000 + 2 * DEAD, claimant(ME, 4)) is True
    assert one.follows == b""
    step(one, 1000 + 2 * DEAD + 3 * H + 2 * H, claimant(ME, 4))
    assert one.claim == Epoch(5, MINE)


def test_an_answer_ends_the_count_and_serves() -> None:
    """R-elect-1: `served` says that I have had an answer."""
    one = unanswered()
    assert one.served is False
    one.on_answered()
    assert one.served is True
    assert step(one, 90_000, claimant(ME, 4)) is False
    assert one.follows == ME


def test_distrust_lasts_eight_t_dead() -> None:
    """R-elect-1: for 8 T_dead."""
    one = unanswered()
    start_ms = 1000 + 2 * DEAD
    step(one, start_ms, claimant(ME, 4), follower(OTHER, ME))
    assert step(one, start_ms + 8 * DEAD - 1, claimant(ME, 4), follower(OTHER, ME)) is False
    assert step(one, start_ms + 8 * DEAD, claimant(ME, 4), follower(OTHER, ME)) is True
    assert (one.follows, one.served) == (ME, False)


@pytest.mark.parametrize("supported", [False, True])
def test_distrust_grows_for_who_does_not_answer_again(supported: bool) -> None:
    """R-elect-1: doubled up to 32 T_dead, unless it serves most others."""
    one = election(priority=NEVER)
    beats = (claimant(ME, 4), follower(OTHER, ME, served=supported))
    now_ms, lasted = 500, []
    for _ in range(4):
        step(one, now_ms, *beats)
        one.on_demand_sent(now_ms)
        now_ms += 2 * DEAD
        step(one, now_ms, *beats)
        [until_ms] = one.distrusted.values()
        lasted.append((until_ms - now_ms) // DEAD)
        now_ms = until_ms
    assert lasted == ([8, 8, 8, 8] if supported else [8, 16, 32, 32])


def test_an_answer_makes_up_for_earlier_silence() -> None:
    one = unanswered()
    step(one, 1000 + 2 * DEAD, claimant(ME, 4), follower(OTHER, ME, served=False))
    again_ms = 1000 + 10 * DEAD
    step(one, again_ms, claimant(ME, 4), follower(OTHER, ME, served=False))
    assert (one.follows, one.distrust_deads()) == (ME, 16)
    one.on_answered()
    assert one.distrust_deads() == 8


def test_distrust_ends_with_a_new_incarnation() -> None:
    """R-elect-1: this node in this incarnation; or until it shows a new one."""
    one = unanswered()
    start_ms = 1000 + 2 * DEAD
    step(one, start_ms, claimant(ME, 4), follower(OTHER, ME))
    assert step(one, start_ms + 10, claimant(ME, 5, inc=NEWER), follower(OTHER, ME)) is True
    assert (one.follows, one.follows_inc) == (ME, NEWER)


def test_a_sleeper_distrusts_nobody() -> None:
    """R-elect-4: what was not answered while I slept is nobody's fault."""
    one = unanswered()
    one.on_overslept(60_000, 61_100)
    assert step(one, 61_100, claimant(ME, 4)) is False
    assert step(one, 61_000 + 2 * DEAD - 1, claimant(ME, 4)) is False
    assert step(one, 61_000 + 2 * DEAD, claimant(ME, 4)) is True


def test_a_sleeper_does_not_claim_at_once() -> None:
    """R-elect-4: it was leaderless for as long as it listened."""
    one = old(election())
    one.on_overslept(60_000, 70_100)
    assert step(one, 70_100, beat(OTHER)) is False
    assert step(one, 70_750, beat(OTHER)) is True


def test_a_coordinator_does_not_distrust_itself() -> None:
    """R-elect-1 is about others: a claimant's own Demand goes by function call."""
    one = election()
    step(one, DEAD)
    one.on_demand_sent(DEAD)
    assert step(one, DEAD + 100_000) is False
    assert one.claim == Epoch(1, MINE)


def test_another_coordinator_starts_unserved() -> None:
    """Table: follow the higher one, `served` off; the Demand's silence counts anew."""
    one = unanswered()
    one.on_answered()
    one.on_demand_sent(1100)
    step(one, 1200, claimant(OTHER, 9))
    assert (one.follows, one.served) == (OTHER, False)
    assert step(one, 1200 + 10 * DEAD, claimant(OTHER, 9)) is False


def test_a_restarted_coordinator_is_followed_anew() -> None:
    """R-elect-1: its new incarnation has given me no answer yet."""
    one = unanswered()
    one.on_answered()
    assert step(one, 1200, claimant(ME, 5, inc=NEWER)) is True
    assert (one.follows_inc, one.served) == (NEWER, False)


def test_a_new_epoch_of_the_same_life_changes_no_belief() -> None:
    """R-elect-2: the epoch is taken over, the following goes on."""
    one = unanswered()
    one.on_answered()
    assert step(one, 1200, claimant(ME, 6)) is False
    assert (one.follows_epoch, one.served) == (Epoch(6, ME), True)
