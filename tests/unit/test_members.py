"""The member list: what counts, whatever the order, and what nobody can bring about."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from blackroad.bus import keys, members
from blackroad.bus.members import (
    INVITE_KEPT_MS,
    INVITES_MAX,
    Member,
    MemberList,
    Record,
    Role,
    body_of,
    pages,
)
from tests.unit.cluster_words import (
    HOUR_MS,
    ROOT,
    ROOT_KEY,
    WALL_MS,
    by,
    gone,
    invite,
    made,
    member,
    own,
    pair,
)

ADMIN = Role.ADMIN


def listed(*records: Record) -> MemberList:
    found = MemberList(ROOT_KEY)
    found.merge(records, WALL_MS)
    return found


def names(found: MemberList) -> set[str]:
    """Who may come in."""
    return {one.name for one in found.members() if found.by_key(one.key, WALL_MS)}


# --- what counts ----------------------------------------------------------------------------------


def test_the_root_makes_an_admin_and_the_admin_makes_members() -> None:
    """R-join-1."""
    found = listed(made("a", role=ADMIN), made("n", "a"), made("v", "a", Role.VIEW))
    assert names(found) == {"a", "n", "v"}
    assert found.by_key(own("n").curve_public) == member("n")
    assert found.of_node(own("v").node) == member("v", Role.VIEW)
    assert found.node_keys() == [one.key for one in found.members() if one.name in ("a", "n")]


def test_nobody_else_can_sign() -> None:
    """A node, a stranger, somebody whom a node made an admin, and another cluster's root."""
    start = [made("a", role=ADMIN), made("n", "a")]
    found = listed(*start, made("x", "n"), made("y", "stranger"), made("z", "n", ADMIN))
    found.merge([made("w", "z"), made("u", "u", ADMIN)], WALL_MS)
    other = by("root", member("o"), root=pair("other").public)
    found.merge([other], WALL_MS)
    assert names(found) == {"a", "n"}
    assert found.forged == 1


@pytest.mark.parametrize("field", ["body", "signature", "signer", "kind"])
def test_a_forged_record_changes_nothing(field: str) -> None:
    found = listed(made("a", role=ADMIN))
    before = found.digest, found.version
    record = made("n", "a")
    other = made("n", "a", ADMIN)
    value: object = {
        "body": other.body,
        "signature": other.signature,
        "signer": ROOT_KEY,
        "kind": members.INVITE,
    }[field]
    assert found.merge([replace(record, **{field: value})], WALL_MS) == []
    assert (found.digest, found.version) == before
    assert found.forged == 1
    # And the true one still counts: nothing was kept in its place.
    assert found.merge([record], WALL_MS) == [record]


def test_a_node_id_that_is_not_the_keys_own_makes_no_sense() -> None:
    """Row 43: a node claims another node's id, with its own key."""
    thief = replace(member("n"), node=own("victim").node)
    found = listed(made("a", role=ADMIN), by("a", thief))
    assert names(found) == {"a"}
    assert found.forged == 1


def test_a_record_that_came_before_its_signer_waits_for_it() -> None:
    found = listed(made("n", "b"), made("b", "a", ADMIN))
    assert found.members() == []
    news = found.merge([made("a", role=ADMIN)], WALL_MS)
    assert names(found) == {"a", "b", "n"}
    assert len(news) == 3


def test_a_forged_record_cannot_keep_the_true_one_out_while_both_wait() -> None:
    true = made("n", "a")
    found = listed(replace(true, body=made("n", "a", ADMIN).body), true)
    found.merge([made("a", role=ADMIN)], WALL_MS)
    assert found.by_key(own("n").curve_public) == member("n")


def test_kinds_of_a_newer_version_are_left_out_and_are_no_forgery() -> None:
    found = listed(made("a", role=ADMIN), replace(made("n", "a"), kind=77))
    assert (names(found), found.forged) == ({"a"}, 0)


# --- which of several -----------------------------------------------------------------------------


def test_the_higher_serial_wins_and_an_old_one_changes_nothing() -> None:
    """A role taken back cannot be brought back by showing the old record again."""
    before, after = made("n", "a", ADMIN), made("n", "a", Role.VIEW, serial=2)
    found = listed(made("a", role=ADMIN), before, after)
    assert found.by_key(own("n").curve_public) == member("n", Role.VIEW, serial=2)
    assert found.merge([before], WALL_MS) == []
    found.merge([made("x", "n")], WALL_MS)
    assert names(found) == {"a", "n"}


def test_revoked_wins_over_any_serial() -> None:
    found = listed(made("a", role=ADMIN), made("n", "a"), gone("n", "a"))
    assert found.by_key(own("n").curve_public) is None
    found.merge([made("n", "a", serial=99)], WALL_MS)
    assert names(found) == {"a"}
    assert found.of_node(own("n").node) is not None


def test_expiry_is_a_matter_of_the_clock_that_asks() -> None:
    found = listed(made("a", role=ADMIN), made("s", "a", Role.SUBMIT, expires_ms=WALL_MS + 5))
    key = own("s").curve_public
    assert found.by_key(key, WALL_MS + 4) is not None
    assert found.by_key(key, WALL_MS + 5) is None
    assert found.by_key(key) is not None


# --- revoked admins -------------------------------------------------------------------------------


def test_what_a_revoked_admin_signed_is_void_unless_signed_anew() -> None:
    """R-join-1."""
    two = [made("a", role=ADMIN), made("b", role=ADMIN)]
    found = listed(*two, made("m", "b"), made("n", "b"), made("n", "a"), gone("b", "a", ADMIN))
    assert names(found) == {"a", "n"}
    found.merge([made("late", "b"), made("evil", "b", ADMIN)], WALL_MS)
    found.merge([made("child", "evil")], WALL_MS)
    assert names(found) == {"a", "n"}


def test_two_admins_who_revoke_each_other_are_both_out() -> None:
    one = [made("a", role=ADMIN), made("b", role=ADMIN)]
    cuts = [gone("a", "b", ADMIN), gone("b", "a", ADMIN)]
    assert names(listed(*one, *cuts)) == set()
    assert listed(*one, *cuts).digest == listed(*cuts, *one).digest


def test_the_root_voids_the_revocations_of_a_stolen_admin_key() -> None:
    """However late they come, and whoever brings them."""
    found = listed(made("a", role=ADMIN), made("b", role=ADMIN), made("n", "a"))
    found.merge([gone("a", "b", ADMIN), gone("n", "b")], WALL_MS)
    assert names(found) == {"b"}
    found.merge([gone("b", "root", ADMIN)], WALL_MS)
    assert names(found) == {"a", "n"}
    found.merge([gone("n", "b"), made("x", "b")], WALL_MS)
    assert names(found) == {"a", "n"}


def test_a_signing_key_is_revoked_with_its_owner_whoever_else_claims_it() -> None:
    twin = replace(member("twin", ADMIN), sign_key=pair("b").public)
    found = listed(made("a", role=ADMIN), made("b", role=ADMIN), by("b", twin))
    found.merge([gone("b", "root", ADMIN), by("root", twin)], WALL_MS)
    found.merge([made("x", "b")], WALL_MS)
    assert names(found) == {"a"}


def test_the_chain_leads_from_a_member_to_the_root_by_the_shortest_way() -> None:
    start = [made("a", role=ADMIN), made("b", "a", ADMIN), made("c", "b", ADMIN), made("n", "c")]
    found = listed(*start)
    assert [body_of(one) for one in found.chain(own("n").node)] == [
        member("n"),
        member("c", ADMIN),
        member("b", ADMIN),
        member("a", ADMIN),
    ]
    # Admins who sign each other must not lead in a circle.
    found.merge([made("a", "c", ADMIN), made("c", "root", ADMIN)], WALL_MS)
    signers = [one.signer for one in found.chain(own("n").node)]
    assert signers == [pair("c").public, ROOT_KEY]
    assert found.chain(own("nobody").node) == []


# --- merging --------------------------------------------------------------------------------------


def test_merging_returns_what_is_news_and_counts_versions() -> None:
    found = MemberList(ROOT_KEY)
    a, n = made("a", role=ADMIN), made("n", "a")
    assert found.merge([a], WALL_MS) == [a]
    assert found.merge([a, n], WALL_MS) == [n]
    version = found.version
    assert found.merge([a, n], WALL_MS) == []
    assert found.version == version


def test_what_is_here_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [made("a", role=ADMIN), *(made(f"n{i}", "a") for i in range(20))]
    found = listed(*records)

    def never(*_args: bytes) -> bool:
        raise AssertionError("verified again")

    monkeypatch.setattr(keys, "verifies", never)
    assert found.merge(records, WALL_MS) == []
    assert found.copy().digest == found.digest
    with pytest.raises(AssertionError, match="verified again"):
        found.merge([made("new", "a")], WALL_MS)


def test_the_digest_is_that_of_the_list_and_its_cluster() -> None:
    one, other = listed(made("a", role=ADMIN)), listed(made("b", role=ADMIN))
    assert len(one.digest) == 16
    assert one.digest != other.digest
    assert MemberList(ROOT_KEY).digest != MemberList(pair("x").public).digest


_NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def _records(draw: st.DrawFn) -> Record:
    """Any record of a small world: often valid, sometimes void or forged."""
    signer = draw(st.sampled_from(["root", "root", "a", "b", "c", "stranger"]))
    serial, revoked = draw(st.integers(1, 2)), draw(st.booleans())
    if draw(st.integers(0, 5)) == 0:
        what = invite(draw(_NAMES), serial=serial, revoked=revoked)
        return by(signer, what)
    role = draw(st.sampled_from([Role.ADMIN, Role.ADMIN, Role.NODE]))
    record = made(draw(_NAMES), signer, role, serial=serial, revoked=revoked)
    if draw(st.integers(0, 9)) == 0:
        return replace(record, signature=bytes(64))
    return record


@settings(max_examples=80, deadline=None)
@given(st.lists(_records(), max_size=24), st.data())
def test_the_order_and_the_parts_do_not_matter(records: list[Record], data: st.DataObject) -> None:
    """R-join-2: merging is commutative, associative and idempotent."""
    whole = listed(*records)
    mixed = data.draw(st.permutations(records))
    cut = data.draw(st.integers(0, len(mixed)))
    parts = MemberList(ROOT_KEY)
    for part in (mixed[:cut], mixed[cut:], mixed[:cut]):
        parts.merge(part, WALL_MS)
    one_by_one = MemberList(ROOT_KEY)
    for record in reversed(mixed):
        one_by_one.merge([record], WALL_MS)
    for other in (parts, one_by_one, whole.copy()):
        assert other.digest == whole.digest
        assert other.members() == whole.members()
        assert other.invites() == whole.invites()
        assert names(other) == names(whole)


@settings(max_examples=80, deadline=None)
@given(st.lists(_records(), max_size=16), st.lists(_records(), max_size=16))
def test_lists_that_have_told_each_other_all_are_equal(
    one: list[Record], other: list[Record]
) -> None:
    """R-join-2: only what counts is told, and each side may hold what only the other can judge."""
    left, right = listed(*one), listed(*other)
    for _ in range(len(one) + len(other) + 1):
        left.merge(right.records(), WALL_MS)
        right.merge(left.records(), WALL_MS)
    assert left.digest == right.digest
    assert left.members() == right.members()


@settings(max_examples=100, deadline=None)
@given(st.lists(_records(), max_size=24))
def test_who_is_in_has_a_chain_and_who_is_revoked_is_out(records: list[Record]) -> None:
    found = listed(*records)
    for one in found.members():
        if found.by_key(one.key):
            chain = found.chain(one.node)
            assert chain[-1].signer == ROOT_KEY
            alone = MemberList(ROOT_KEY)
            alone.merge(chain, WALL_MS)
            assert alone.by_key(one.key) is not None
    for record in records:
        what = body_of(record)
        revoked = isinstance(what, Member) and what.revoked and record.signer == ROOT.public
        if revoked and record.signature != bytes(64):
            assert isinstance(what, Member)
            assert found.by_key(what.key) is None


# --- invites and bounds ---------------------------------------------------------------------------


def test_uses_of_an_invite_are_the_members_that_carry_it() -> None:
    one = invite("i", uses=3)
    found = listed(made("a", role=ADMIN), by("a", one))
    assert (found.invite(one.id), found.uses(one.id)) == (one, 0)
    found.merge([made("n", "a", invite=one.id), made("m", "a", invite=one.id)], WALL_MS)
    assert found.uses(one.id) == 2
    found.merge([made("n", "a", invite=one.id, serial=2, revoked=True)], WALL_MS)
    assert found.uses(one.id) == 2


def test_invites_are_forgotten_long_after_they_expired() -> None:
    one = invite("i")
    record = by("a", one)
    found = listed(made("a", role=ADMIN), record)
    late_ms = one.expires_ms + INVITE_KEPT_MS
    found.merge([], late_ms - 1)
    assert found.invites() == [one]
    found.merge([], late_ms)
    assert found.invites() == []
    assert found.merge([record], late_ms) == []


def test_an_invite_without_end_is_not_forgotten() -> None:
    one = invite("i", expires_ms=0)
    found = listed(made("a", role=ADMIN), by("a", one))
    found.merge([], WALL_MS * 2)
    assert found.invites() == [one]


def test_a_list_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_MAX", 10)
    found = listed(made("a", role=ADMIN), *(made(f"n{i}", "a") for i in range(12)))
    assert len(found.members()) == 10
    assert found.refused == 3
    # Whoever is on it can still be put out.
    last = next(one for one in found.members() if one.name != "a")
    found.merge([gone(last.name, "a")], WALL_MS)
    assert found.by_key(last.key) is None


def test_what_waits_for_a_signer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "WAITING_MAX", 8)
    found = listed(made("a", role=ADMIN))
    found.merge([made(f"x{i}", "stranger") for i in range(50)], WALL_MS)
    assert len(found._waiting) == 8
    # A batch of any length that counts is taken whole.
    assert len(found.merge([made(f"n{i}", "a") for i in range(50)], WALL_MS)) == 50


def test_a_whole_cluster_of_admins_signs_in_one_batch_in_any_order() -> None:
    start = [made("n0", role=ADMIN)]
    start += [made(f"n{i}", f"n{i - 1}", ADMIN) for i in range(1, 30)]
    assert len(names(listed(*reversed(start)))) == 30


def test_pages_hold_so_many_and_so_much() -> None:
    records = [made(f"n{i}", "a") for i in range(10)]
    assert [len(page) for page in pages(records, 4, 10**6)] == [4, 4, 2]
    size = len(records[0].body) + 112
    assert [len(page) for page in pages(records, 128, 3 * size)] == [3, 3, 3, 1]
    assert list(pages([], 4, 100)) == []


def test_there_is_room_for_what_the_page_promises() -> None:
    assert (members.MEMBERS_MAX, INVITES_MAX) == (4096, 1024)
    assert HOUR_MS < INVITE_KEPT_MS
