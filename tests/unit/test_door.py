"""The door: tokens, guesses, approval by phrase, and what an answer holds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec.structs import replace

from blackroad.bus import codec, door, issuing, keys
from blackroad.bus import messages as m
from blackroad.bus.door import Door, find_asking, phrase_of
from blackroad.bus.issuing import Issuer
from blackroad.bus.members import Member, MemberList, Record, Role
from blackroad.errors import UsageError
from blackroad.limits import DOOR_FRAME_BYTES_MAX
from tests.unit.cluster_words import (
    HOUR_MS,
    ROOT,
    ROOT_KEY,
    WALL_MS,
    by,
    curve_secret,
    gone,
    invite,
    made,
    member,
    own,
    pair,
)

ADMIN = Role.ADMIN
SECRET = b"s" * 16
DOOR_SECRET = curve_secret("door")
DOOR_KEY = keys.curve_public(DOOR_SECRET)
CLUSTER = keys.fingerprint(ROOT_KEY)
NOW_MS = 1_000_000
PLACES = tuple(f"tcp://10.0.0.{i}:7701" for i in range(3))


class Scene:
    """A door of the admin `a`, and the list that it fills."""

    def __init__(self, *records: Record, root: bool = False, **more: Any) -> None:
        self.members = MemberList(ROOT_KEY)
        self.members.merge([made("a", role=ADMIN), *records], WALL_MS)
        self.issued: list[Record] = []
        self.issuer = Issuer(own("a"), self.members, ROOT.secret if root else b"")
        given: dict[str, Any] = {"pending_joins": True, "serial": 5, **more}
        places = given.pop("places", PLACES)
        self.door = Door(
            self.issuer, self.issue, (DOOR_KEY, DOOR_SECRET), "home", lambda: places, **given
        )
        self.now_ms = NOW_MS
        self.wall_ms = WALL_MS

    def issue(self, record: Record) -> None:
        self.issued.append(record)
        self.members.merge([record], self.wall_ms)

    def say(self, said: m.Join, name: str = "n", address: str = "10.0.0.9") -> m.DoorMessage:
        """What the door answers to whoever holds the keys of that name."""
        return self.door.handle(said, own(name).curve_public, address, self.now_ms, self.wall_ms)

    def reason(self, said: m.Join, name: str = "n", address: str = "10.0.0.9") -> str:
        """Why it says no."""
        answer = self.say(said, name, address)
        assert isinstance(answer, m.Denied), answer
        assert answer.text
        assert answer.wall_ms == self.wall_ms
        return answer.reason


def join(name: str = "n", *, sign: str = "", nonce: bytes = b"n" * 16, **more: Any) -> m.Join:
    """A joiner's first message, without a token."""
    signer = pair(sign or name)
    said = issuing.joining(DOOR_KEY, own(name).curve_public, nonce)
    given: dict[str, Any] = {"name": name, "wall_ms": WALL_MS, **more}
    return m.Join(1, signer.public, keys.sign(signer.secret, said), nonce, **given)


def token(name: str = "n", ident: str = "i", secret: bytes = SECRET, **more: Any) -> m.Join:
    """A joiner's first message with a token."""
    given: dict[str, Any] = {"cluster": CLUSTER, **more}
    return join(name, invite=ident.encode().ljust(8, b"."), secret=secret, **given)


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_lets_in_and_says_all_that_the_first_link_needs() -> None:
    """R-join-5."""
    scene = Scene(by("a", invite("i")))
    answer = scene.say(token())
    assert isinstance(answer, m.Joined)
    assert (answer.name, answer.root, answer.endpoints) == ("home", ROOT_KEY, PLACES)
    assert (answer.door_serial, answer.door_secret) == (0, b"")
    joiner = MemberList(answer.root)
    joiner.merge(answer.records, WALL_MS)
    assert joiner.by_key(own("n").curve_public) == member("n", invite=invite("i").id)
    assert joiner.by_key(own("a").curve_public) is not None
    assert len(scene.issued) == 1


def test_an_admin_is_told_the_secret_of_the_door_and_nobody_else() -> None:
    scene = Scene(by("a", invite("i", role=ADMIN)), root=True)
    answer = scene.say(token())
    assert isinstance(answer, m.Joined)
    assert (answer.door_serial, answer.door_secret) == (5, DOOR_SECRET)
    # The root vouches itself where its key is: no admin rests on another.
    assert [one.signer for one in scene.members.chain(own("n").node)] == [ROOT_KEY]


def test_a_token_is_used_up_by_members_and_not_by_repetition() -> None:
    scene = Scene(by("a", invite("i", uses=2)))
    first = scene.say(token())
    assert scene.say(token()) == first
    assert isinstance(scene.say(token("m"), "m"), m.Joined)
    assert scene.reason(token("x"), "x") == "used_up"
    assert len(scene.issued) == 2
    # Whoever is in may ask again even so: its answer may have been lost.
    assert isinstance(scene.say(token("m"), "m"), m.Joined)


@pytest.mark.parametrize(
    ("kept", "said", "reason"),
    [
        ({"expires_ms": WALL_MS}, {}, "expired"),
        ({"serial": 2, "revoked": True}, {}, "token_revoked"),
        ({}, {"secret": b"x" * 16}, "token"),
        ({}, {"secret": b""}, "token"),
        ({}, {"ident": "j"}, "token"),
        ({}, {"cluster": b"c" * 16}, "cluster"),
        ({"expires_ms": WALL_MS}, {"secret": b"x" * 16}, "token"),
        ({"serial": 2, "revoked": True}, {"secret": b"x" * 16}, "token"),
    ],
)
def test_a_bad_token_is_refused_with_its_reason(
    kept: dict[str, Any], said: dict[str, Any], reason: str
) -> None:
    """Without the secret nothing is told of the token, not even that there is one."""
    scene = Scene(by("a", invite("i", **kept)))
    assert scene.reason(token(**said)) == reason
    assert scene.issued == []


def test_a_secret_is_compared_whether_there_is_such_a_token_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time it takes does not tell which tokens exist."""
    compared: list[tuple[bytes, bytes]] = []
    scene = Scene(by("a", invite("i")))

    def same(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(keys, "same", same)
    assert scene.reason(token()) == scene.reason(token(ident="nobody")) == "token"
    assert [len(one) for pair_ in compared for one in pair_] == [32] * 4


def test_a_token_raises_a_role_and_a_member_who_is_there_uses_nothing_up() -> None:
    scene = Scene(
        made("n", "a", Role.SUBMIT), by("a", invite("i")), by("a", invite("v", role=Role.VIEW))
    )
    assert isinstance(scene.say(token(ident="v")), m.Joined)
    assert scene.issued == []
    assert isinstance(scene.say(token()), m.Joined)
    found = scene.members.by_key(own("n").curve_public)
    assert found is not None
    assert (found.role, found.serial) == (Role.NODE, 2)


def test_members_by_a_token_may_expire() -> None:
    scene = Scene(by("a", invite("i", role=Role.SUBMIT, member_ms=HOUR_MS)))
    scene.say(token())
    key = own("n").curve_public
    assert scene.members.by_key(key, WALL_MS + HOUR_MS - 1) is not None
    assert scene.members.by_key(key, WALL_MS + HOUR_MS) is None


def test_a_machine_set_up_anew_is_noted_as_following_its_namesake() -> None:
    """Same name, another key."""
    scene = Scene(made("n", "a"), by("a", invite("i")))
    scene.say(replace(token("reborn"), name="n"), "reborn")
    found = scene.members.of_node(own("reborn").node)
    assert found is not None
    assert (found.name, found.replaces) == ("n", own("n").node)
    assert scene.members.by_key(own("n").curve_public) is not None


# --- who may not, whatever it brings --------------------------------------------------------------


def test_a_revoked_key_never_comes_back() -> None:
    scene = Scene(made("n", "a"), gone("n", "a"), by("a", invite("i")))
    assert scene.reason(token()) == "key_revoked"
    assert scene.reason(join()) == "key_revoked"


def test_nobody_can_put_down_anothers_signing_key_as_its_own() -> None:
    """Else its revocation would revoke the other one."""
    scene = Scene(by("a", invite("i", uses=9)))
    assert scene.reason(replace(token(), sign_key=pair("a").public)) == "proof"
    assert scene.reason(token("n", sign="a")) == "taken"
    assert scene.reason(token("n", sign="root")) == "taken"
    # A proof that was made for another key or another attempt does not count either.
    assert scene.reason(token("m"), "n") == "proof"


def test_a_full_list_takes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MEMBERS_MAX", 1)
    assert Scene(by("a", invite("i"))).reason(token()) == "full"


def test_only_a_join_is_answered() -> None:
    scene = Scene()
    denied = m.Denied("x", "y", 1)
    answer = scene.door.handle(denied, own("n").curve_public, "10.0.0.9", NOW_MS, WALL_MS)
    assert isinstance(answer, m.Denied)
    assert answer.reason == "version"


# --- guesses --------------------------------------------------------------------------------------


def test_an_address_has_five_failures_a_minute() -> None:
    """Row 44: guesses are rate-limited."""
    scene = Scene(by("a", invite("i")))
    for n in range(5):
        assert scene.reason(token(f"g{n}", secret=bytes(16)), f"g{n}") == "token"
    answer = scene.say(token("g9", secret=bytes(16)), "g9")
    assert isinstance(answer, m.Denied)
    assert (answer.reason, answer.retry_after_ms) == ("busy", 60_000)
    # Even the right token has to wait there; from elsewhere it need not.
    assert scene.reason(token()) == "busy"
    assert isinstance(scene.say(token(), address="10.0.0.7"), m.Joined)
    scene.now_ms += 60_000
    assert isinstance(scene.say(token()), m.Joined)


def test_ten_thousand_guesses_are_sixty_a_minute() -> None:
    scene = Scene(by("a", invite("i")))
    judged = 0
    guess = token(secret=bytes(16))
    for n in range(10_000):
        judged += scene.reason(guess, address=f"10.{n % 199}.{n % 251}.7") != "busy"
        scene.now_ms += 6
    assert judged == 60
    assert scene.issued == []
    assert scene.door.counters["busy"] == 9_940
    assert len(scene.door._limiter._failures) <= 60


def test_a_whole_network_of_version_6_is_one_address() -> None:
    scene = Scene(by("a", invite("i")))
    for n in range(5):
        scene.say(token(secret=bytes(16)), address=f"2001:db8:1:2::{n}")
    assert scene.reason(token(), address="2001:db8:1:2:9::9") == "busy"
    assert isinstance(scene.say(token(), address="2001:db8:1:3::1"), m.Joined)
    mapped = Scene(by("a", invite("i")))
    for _ in range(5):
        mapped.say(token(secret=bytes(16)), address="::ffff:10.0.0.9")
    assert mapped.reason(token(), address="10.0.0.9") == "busy"


# --- without a token ------------------------------------------------------------------------------


def test_who_asks_without_a_token_waits_for_the_same_phrase_on_both_sides() -> None:
    scene = Scene()
    said = join()
    answer = scene.say(said)
    assert isinstance(answer, m.Pending)
    assert (answer.name, answer.node_name, answer.left_ms) == ("home", "a", 600_000)
    [waiting] = scene.door.asking(NOW_MS)
    shown = phrase_of(DOOR_KEY, own("n").curve_public, said, answer.nonce, answer.root)
    assert (waiting.phrase, waiting.name, waiting.node) == (shown, "n", own("n").node)
    scene.door.approve(find_asking([waiting], shown.upper().replace("-", " ")), Role.NODE, WALL_MS)
    joined = scene.say(said)
    assert isinstance(joined, m.Joined)
    assert joined.root == answer.root
    assert scene.door.asking(NOW_MS) == []


def test_a_man_in_the_middle_shows_another_phrase() -> None:
    """He has his own door key towards the joiner, and his own key towards the door."""
    scene = Scene()
    seen_by_joiner = phrase_of(
        keys.curve_public(curve_secret("mallory")),
        own("n").curve_public,
        join(),
        b"any nonce at all",
        ROOT_KEY,
    )
    scene.say(join("mallory"), "mallory")
    [waiting] = scene.door.asking(NOW_MS)
    assert waiting.phrase != seen_by_joiner
    with pytest.raises(UsageError, match="nobody waits here"):
        find_asking([waiting], seen_by_joiner)


def test_the_phrase_changes_with_everything_that_somebody_in_between_could_change() -> None:
    key, other = own("n").curve_public, own("m").curve_public
    said, nonce = join(), b"d" * 16
    phrases = {
        phrase_of(DOOR_KEY, key, said, nonce, ROOT_KEY),
        phrase_of(other, key, said, nonce, ROOT_KEY),
        phrase_of(DOOR_KEY, other, said, nonce, ROOT_KEY),
        phrase_of(DOOR_KEY, key, join(sign="m"), nonce, ROOT_KEY),
        phrase_of(DOOR_KEY, key, join(nonce=b"m" * 16), nonce, ROOT_KEY),
        phrase_of(DOOR_KEY, key, said, b"e" * 16, ROOT_KEY),
        phrase_of(DOOR_KEY, key, said, nonce, other),
    }
    assert len(phrases) == 7
    assert all(len(one) == 4 * 5 + 3 for one in phrases)


def test_the_doors_nonce_is_new_for_every_attempt() -> None:
    scene = Scene()
    first = scene.say(join())
    scene.now_ms += 1
    second = scene.say(join(nonce=b"m" * 16))
    assert isinstance(first, m.Pending)
    assert isinstance(second, m.Pending)
    assert first.nonce != second.nonce
    assert len(scene.door.asking(NOW_MS)) == 1


def test_asking_whether_it_was_approved_is_no_attempt() -> None:
    scene = Scene()
    said = join()
    answers = []
    for _ in range(100):
        answers.append(scene.say(said))
        scene.now_ms += 1_000
    assert all(isinstance(one, m.Pending) for one in answers)
    assert len({one.nonce for one in answers if isinstance(one, m.Pending)}) == 1


def test_asking_ends_after_ten_minutes() -> None:
    scene = Scene()
    scene.say(join())
    assert scene.door.asking(NOW_MS + 599_999)
    assert scene.door.asking(NOW_MS + 600_000) == []


def test_so_many_may_wait_and_so_many_from_one_place() -> None:
    scene = Scene()
    for n in range(4):
        assert isinstance(scene.say(join(f"p{n}"), f"p{n}"), m.Pending)
    assert scene.reason(join("p4"), "p4") == "crowded"
    for n in range(12):
        answer = scene.say(join(f"q{n}"), f"q{n}", address=f"10.1.{n}.1")
        assert isinstance(answer, m.Pending)
    assert scene.reason(join("late"), "late", address="10.9.9.9") == "crowded"
    assert len(scene.door.asking(NOW_MS)) == 16


def test_a_door_may_take_tokens_only() -> None:
    assert Scene(pending_joins=False).reason(join()) == "no_token"


def test_names_are_made_fit_to_print() -> None:
    """Row 49."""
    scene = Scene()
    scene.say(replace(join(), name="\x1b[31mroot\n$(id)"))
    [waiting] = scene.door.asking(NOW_MS)
    assert waiting.name.isprintable()
    assert "\x1b" not in waiting.name


def test_who_is_meant_must_be_one() -> None:
    scene = Scene()
    for name, address in (("p", "10.0.0.1"), ("q", "10.0.0.2")):
        scene.say(replace(join(name), name="same"), name, address)
    waiting = scene.door.asking(NOW_MS)
    with pytest.raises(UsageError, match="2 machines"):
        find_asking(waiting, "same")
    assert find_asking(waiting, waiting[1].phrase) is waiting[1]
    with pytest.raises(UsageError, match="nobody"):
        find_asking(waiting, "")


# --- answers --------------------------------------------------------------------------------------


def test_the_longest_answer_fits_a_frame_of_the_door() -> None:
    names = ["a", "b" * 60, "c" * 60, "d" * 60]
    chain = [made(after, before, ADMIN) for before, after in itertools.pairwise(names)]
    members = MemberList(ROOT_KEY)
    members.merge([made("a", role=ADMIN), *chain, by(names[-1], invite("i"))], WALL_MS)
    issuer = Issuer(own(names[-1]), members)
    far = Door(
        issuer,
        lambda record: members.merge([record], WALL_MS) and None,
        (DOOR_KEY, DOOR_SECRET),
        "h" * 64,
        lambda: tuple("tcp://" + f"{n}".ljust(122, "x") for n in range(16)),
        pending_joins=True,
    )
    answer = far.handle(token(), own("n").curve_public, "10.0.0.9", NOW_MS, WALL_MS)
    assert isinstance(answer, m.Joined)
    assert len(answer.records) == 5
    assert 4 <= len(answer.endpoints) <= 8
    assert len(codec.frame_of((codec.encode(answer),))) <= DOOR_FRAME_BYTES_MAX


def test_an_admin_too_far_from_the_root_says_so() -> None:
    names = [f"a{n}".ljust(60, "x") for n in range(14)]
    chain = [made(names[0], role=ADMIN)]
    chain += [made(b, a, ADMIN) for a, b in itertools.pairwise(names)]
    members = MemberList(ROOT_KEY)
    members.merge([*chain, by(names[-1], invite("i"))], WALL_MS)
    far = Door(
        Issuer(own(names[-1]), members),
        lambda record: members.merge([record], WALL_MS) and None,
        (DOOR_KEY, DOOR_SECRET),
        "home",
        lambda: PLACES,
        pending_joins=True,
    )
    answer = far.handle(token(), own("n").curve_public, "10.0.0.9", NOW_MS, WALL_MS)
    assert isinstance(answer, m.Denied)
    assert answer.reason == "deep"


# --- issuing --------------------------------------------------------------------------------------


def test_revoking_an_admin_keeps_whom_it_had_let_in() -> None:
    scene = Scene(made("b", role=ADMIN), made("n", "b"), made("s", "b", Role.SUBMIT))
    done = scene.issuer.revoke(own("b").node, WALL_MS)
    scene.members.merge(done.records, WALL_MS)
    assert {one.name for one in done.kept} == {"n", "s"}
    inside = {one.name for one in scene.members.members() if scene.members.by_key(one.key)}
    assert inside == {"a", "n", "s"}


def test_an_admin_cannot_revoke_what_makes_it_one() -> None:
    scene = Scene(made("b", "a", ADMIN))
    maker = Issuer(own("b"), scene.members)
    with pytest.raises(UsageError, match="cannot be revoked from here"):
        maker.revoke(own("a").node, WALL_MS)
    # The root vouches for it: then it can.
    vouched = Issuer(own("a"), scene.members, ROOT.secret).countersign([made("b", "a", ADMIN)])
    scene.members.merge(vouched, WALL_MS)
    done = maker.revoke(own("a").node, WALL_MS)
    scene.members.merge(done.records, WALL_MS)
    assert scene.members.by_key(own("a").curve_public) is None
    assert scene.members.by_key(own("b").curve_public) is not None


def test_nobody_revokes_itself_or_twice() -> None:
    scene = Scene(made("n", "a"))
    with pytest.raises(UsageError, match="cannot revoke itself"):
        scene.issuer.revoke(own("a").node, WALL_MS)
    scene.members.merge(scene.issuer.revoke(own("n").node, WALL_MS).records, WALL_MS)
    with pytest.raises(UsageError, match="no member any more"):
        scene.issuer.revoke(own("n").node, WALL_MS)


def follow(scene: Scene, old: Member, name: str, signer: str = "") -> list[Record]:
    key = own(name).curve_public
    said = issuing.rotation(ROOT_KEY, old.node, key)
    proof = keys.sign(pair(signer or name).secret, said)
    return scene.issuer.follow(old, key, pair(name).public, proof, WALL_MS)


def test_a_key_that_follows_another_overlaps_with_it() -> None:
    scene = Scene(made("n", "a"))
    scene.members.merge(follow(scene, member("n"), "n2"), WALL_MS)
    old, new = own("n").curve_public, own("n2").curve_public
    found = scene.members.by_key(new, WALL_MS)
    assert found is not None
    assert (found.name, found.replaces, found.role) == ("n", own("n").node, Role.NODE)
    assert scene.members.by_key(old, WALL_MS + 599_999) is not None
    assert scene.members.by_key(old, WALL_MS + 600_000) is None


def test_an_admin_that_changes_keys_keeps_whom_it_had_let_in() -> None:
    scene = Scene(made("n", "a"))
    scene.members.merge(follow(scene, member("a", ADMIN), "a2"), WALL_MS)
    scene.members.merge([made("late", "a2")], WALL_MS)
    inside = {one.name for one in scene.members.members() if scene.members.by_key(one.key)}
    assert inside == {"a", "n", "late"}
    assert scene.members.by_key(own("a2").curve_public, WALL_MS + HOUR_MS) is not None


def test_keys_that_are_not_proved_or_somebodys_already_cannot_follow() -> None:
    scene = Scene(made("n", "a"), made("m", "a"))
    with pytest.raises(UsageError, match="not proved"):
        follow(scene, member("n"), "n2", signer="m")
    with pytest.raises(UsageError, match="on the member list already"):
        follow(scene, member("n"), "m")
