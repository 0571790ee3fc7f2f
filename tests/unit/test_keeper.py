"""Daemons that keep one list: gossip over links that lose messages, orders, other keys."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from blackroad import keeper as keeping
from blackroad.bus import messages as m
from blackroad.bus.members import MemberList, Record, Role, signed
from blackroad.errors import RemoteProtocolError
from blackroad.ids import short, text32
from blackroad.keeper import Keeper
from blackroad.store import identity
from blackroad.store.keyring import Keyring
from tests.unit.cluster_words import (
    ROOT,
    ROOT_KEY,
    WALL_MS,
    curve_secret,
    invite,
    made,
    member,
    own,
    pair,
)
from tests.unit.test_door import DOOR_KEY, DOOR_SECRET, join

ADMIN = Role.ADMIN


class Net:
    """Keepers that are linked with each other, their clock, and what is on its way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_ms = 1_000
        self.keepers: dict[bytes, Keeper] = {}
        self.names: dict[str, bytes] = {}
        self.sent: list[tuple[str, str, m.Message]] = []
        self.lost: set[tuple[str, str]] = set()
        self.reloaded: list[str] = []
        self.doors: list[str] = []
        self._way: deque[tuple[bytes, bytes, m.Message]] = deque()

    def add(self, name: str, *records: Record, root: bool = False, door: bool = True) -> Keeper:
        """A daemon with the keys of that name; it knows these records."""
        kept = Keyring(self.path / name)
        keys = own(name)
        with kept.locked():
            identity.ensure_keys(kept.state)
            identity.write_keys(kept.state, keys.curve_secret, keys.curve_public)
            kept._write_pair("signing.json", (keys.sign_secret, keys.sign_public))
            kept.prepare()
            members = MemberList(ROOT_KEY)
            members.merge(records, WALL_MS)
            has_door = door and members.signs(keys.sign_public)
            at_door = (DOOR_KEY, DOOR_SECRET if has_door else b"", int(has_door))
            kept.establish("home", members, at_door, (), ROOT.secret if root else b"")
        node = keys.node
        made_ = Keeper(
            kept,
            send=lambda to, message: self._send(node, to, message),
            linked=lambda: [other for other in self.keepers if other != node],
            endpoints=lambda: ("tcp://10.0.0.1:7701",),
            door_endpoints=lambda: ("tcp://10.0.0.1:7700",),
            wall_ms=lambda: WALL_MS + self.now_ms,
            clock=lambda: self.now_ms,
        )
        made_.on_reload = lambda: self.reloaded.append(name)
        made_.on_door = lambda: self.doors.append(name)
        self.keepers[node] = made_
        self.names[name] = node
        return made_

    def name_of(self, node: bytes) -> str:
        return next(name for name, one in self.names.items() if one == node)

    def _send(self, source: bytes, to: bytes, message: m.Message) -> None:
        way = (self.name_of(source), self.name_of(to))
        self.sent.append((*way, message))
        if way not in self.lost:
            self._way.append((source, to, message))

    def link(self) -> None:
        """All links are opened."""
        for node, one in self.keepers.items():
            for other in self.keepers:
                if other != node:
                    one.on_link(other, self.now_ms)

    def run(self, for_ms: int = 0) -> None:
        """Let time pass, and everything arrive."""
        until_ms = self.now_ms + for_ms
        while True:
            while self._way:
                source, to, message = self._way.popleft()
                self.keepers[to].on_gossip(source, message, self.now_ms)
            due_ms = min(one.next_deadline_ms() for one in self.keepers.values())
            if due_ms > until_ms and not self._way:
                self.now_ms = until_ms
                return
            self.now_ms = max(self.now_ms, min(due_ms, until_ms))
            for one in self.keepers.values():
                one.tick(self.now_ms)

    def ask(self, name: str, order: str, asker: Role = ADMIN, /, **args: Any) -> dict[str, Any]:
        """Give an order to one of them, as somebody with that role."""
        query = m.Query(1, b"", f"cluster.{order}", msgspec.msgpack.encode(args))
        body = self.keepers[self.names[name]].order(query, asker)
        told: dict[str, Any] = msgspec.msgpack.decode(body)
        return told

    def inside(self, name: str) -> set[str]:
        """Who may come in, as one of them sees it."""
        members = self.keepers[self.names[name]].keyring.members
        wall_ms = WALL_MS + self.now_ms
        return {one.name for one in members.members() if members.by_key(one.key, wall_ms)}

    def agree(self) -> bool:
        return len({one.keyring.members.digest for one in self.keepers.values()}) == 1


@pytest.fixture
def net(tmp_path: Path) -> Net:
    """Two admins and two nodes that know each other."""
    found = Net(tmp_path)
    start = [made("a", role=ADMIN), made("b", role=ADMIN), made("n", "a"), made("m", "a")]
    for name in "abnm":
        found.add(name, *start, root=name == "a")
    return found


# --- spreading ------------------------------------------------------------------------------------


def test_a_newcomer_and_the_old_ones_learn_of_each_other(net: Net) -> None:
    issuer = net.keepers[net.names["a"]].registrar.issuer
    record = issuer.sign(member("late"))
    net.keepers[net.names["a"]].keyring.members.merge([record], WALL_MS)
    net.add("late", made("a", role=ADMIN), record)
    net.link()
    net.run(keeping.ASK_MS)
    assert net.agree()
    assert net.inside("late") == {"a", "b", "n", "m", "late"}


def test_a_revocation_is_told_to_all_at_once(net: Net) -> None:
    """R-join-3: within two seconds, and here without any time passing."""
    changed: list[str] = []
    net.keepers[net.names["n"]].on_changed = lambda _news: changed.append("n")
    net.ask("a", "revoke", what="m")
    net.run(0)
    assert [net.inside(name) for name in "abn"] == [{"a", "b", "n"}] * 3
    assert changed == ["n"]
    assert net.keepers[net.names["m"]].expelled


def test_news_arrive_where_the_first_two_tellings_are_lost(net: Net) -> None:
    net.lost = {("a", "n"), ("b", "n"), ("m", "n")}
    net.ask("a", "revoke", what="m")
    net.run(400)
    assert "m" in net.inside("n")
    net.lost = set()
    net.run(700)
    assert "m" not in net.inside("n")


def test_a_long_list_is_not_told_on_but_compared(tmp_path: Path) -> None:
    net = Net(tmp_path)
    start = [made("a", role=ADMIN), made("n", "a"), made("m", "a")]
    many = [made(f"x{i}", "a") for i in range(200)]
    net.add("a", *start, *many)
    net.add("n", *start)
    net.add("m", *start)
    net.link()
    net.run(2 * keeping.ASK_MS)
    assert net.agree()
    told = [one for one in net.sent if isinstance(one[2], m.Members) and one[0] in "nm"]
    assert sum(len(one[2].records) for one in told if isinstance(one[2], m.Members)) < 1_000
    assert max(len(one[2].records) for one in net.sent if isinstance(one[2], m.Members)) <= 128


def test_peers_who_agree_say_little(net: Net) -> None:
    net.link()
    net.run(60_000)
    assert not [one for one in net.sent if isinstance(one[2], m.Members)]
    # A digest each for each link every ten seconds, and between admins the door's key.
    assert len(net.sent) <= 7 * 12 + 7 * 2 + 2


def test_a_peer_that_tells_forgeries_is_not_heard_for_a_while(net: Net) -> None:
    keeper = net.keepers[net.names["n"]]
    forged = replace(made("evil", "a"), signature=bytes(64))
    keeper.on_gossip(net.names["m"], m.Members(bytes(16), (forged,)), net.now_ms)
    true = m.Members(bytes(16), (made("late", "a"),))
    keeper.on_gossip(net.names["m"], true, net.now_ms)
    assert "late" not in net.inside("n")
    keeper.on_gossip(net.names["b"], true, net.now_ms)
    assert "late" in net.inside("n")
    assert keeper.counters == {"gossip.forged": 1, "gossip.muted": 1}
    net.run(keeping.MUTE_MS)
    keeper.on_gossip(net.names["m"], m.Members(bytes(16), (made("w", "a"),)), net.now_ms)
    assert "w" in net.inside("n")


def test_asking_again_and_again_gets_one_list_a_second(net: Net) -> None:
    keeper = net.keepers[net.names["a"]]
    for _ in range(100):
        keeper.on_gossip(net.names["n"], m.AskMembers(bytes(16)), net.now_ms)
    assert len([one for one in net.sent if isinstance(one[2], m.Members)]) == 1


def test_signatures_of_a_long_list_do_not_hold_the_loop(net: Net) -> None:
    keeper = net.keepers[net.names["n"]]
    many = tuple(made(f"x{i}", "a") for i in range(128))
    keeper.on_gossip(net.names["m"], m.Members(bytes(16), many), net.now_ms)
    assert len(net.inside("n")) == 4 + keeping.STEP_RECORDS
    assert keeper.next_deadline_ms() <= net.now_ms
    net.run(0)
    assert len(net.inside("n")) == 4 + 128


def test_what_peers_tell_is_bounded(net: Net) -> None:
    keeper = net.keepers[net.names["n"]]
    told = m.Members(bytes(16), tuple(made(f"x{i}", "stranger") for i in range(128)))
    for _ in range(200):
        keeper.on_gossip(net.names["m"], told, net.now_ms)
    assert len(keeper._pages) <= keeping.WAITING_PAGES_MAX + 4
    assert keeper.counters["gossip.full"] > 0


def test_the_list_is_kept_over_a_restart(net: Net) -> None:
    net.ask("a", "revoke", what="m")
    net.run(keeping.SAVE_MS)
    again = Keyring(net.path / "n")
    assert again.load()
    assert again.members.by_key(own("m").curve_public) is None


def test_a_full_disk_costs_no_revocation(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = net.keepers[net.names["n"]]

    def full(*_args: object) -> None:
        raise identity.StateDirectoryProblem("cannot write: no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(identity, "write_flushed", full)
        keeper.on_gossip(net.names["a"], m.Members(bytes(16), (made("late", "a"),)), net.now_ms)
        net.run(keeping.SAVE_MS)
        assert "late" in net.inside("n")
        assert "no space" in keeper.problem
    net.run(keeping.ASK_MS)
    assert keeper.problem == ""
    again = Keyring(net.path / "n")
    assert again.load()
    assert again.members.of_node(own("late").node) is not None


# --- admins ---------------------------------------------------------------------------------------


def test_the_root_vouches_for_an_admin_that_another_admin_made(net: Net) -> None:
    keeper = net.keepers[net.names["b"]]
    keeper.registrar.issue([keeper.registrar.issuer.sign(member("c", ADMIN))])
    net.run(0)
    members = net.keepers[net.names["n"]].keyring.members
    assert [one.signer for one in members.chain(own("c").node)] == [ROOT_KEY]
    assert net.agree()


def test_a_revoked_admin_takes_its_tokens_and_the_door_key_with_it(net: Net) -> None:
    net.ask("b", "token")
    net.run(0)
    before = net.keepers[net.names["a"]].keyring.door
    told = net.ask("a", "revoke", what="b")
    assert told["door_changed"] is True
    net.run(0)
    after = net.keepers[net.names["a"]].keyring.door
    assert after != before
    # One door with another key, and one that is closed.
    assert sorted(net.doors) == ["a", "b"]
    assert net.keepers[net.names["b"]].door is None
    assert net.ask("a", "tokens") == {"tokens": []}
    # The one that was put out is not told the new key, nor is a node.
    told_to = {to for _, to, one in net.sent if isinstance(one, m.DoorKey) and one.serial == 2}
    assert told_to == set()
    assert net.keepers[net.names["b"]].keyring.door == before


def test_admins_share_the_key_of_the_door_and_nodes_never_get_it(tmp_path: Path) -> None:
    net = Net(tmp_path)
    start = [made("a", role=ADMIN), made("b", role=ADMIN), made("c", role=ADMIN), made("n", "a")]
    net.add("a", *start)
    net.add("b", *start, door=False)
    net.add("c", *start)
    net.add("n", *start)
    assert net.keepers[net.names["b"]].door is None
    net.link()
    net.run(0)
    assert net.keepers[net.names["b"]].keyring.door == (DOOR_KEY, DOOR_SECRET)
    assert net.keepers[net.names["b"]].door is not None
    net.ask("a", "revoke", what="c")
    net.run(0)
    new = net.keepers[net.names["a"]].keyring.door
    assert net.keepers[net.names["b"]].keyring.door == new != (DOOR_KEY, DOOR_SECRET)
    assert {to for _, to, one in net.sent if isinstance(one, m.DoorKey)} <= {"a", "b", "c"}
    assert net.doors.count("b") == 2


def test_a_node_cannot_change_the_door(net: Net) -> None:
    keeper = net.keepers[net.names["a"]]
    before = keeper.keyring.door
    keeper.on_gossip(net.names["n"], m.DoorKey(99, curve_secret("evil")), net.now_ms)
    assert keeper.keyring.door == before
    keeper = net.keepers[net.names["n"]]
    keeper.on_gossip(net.names["a"], m.DoorKey(99, curve_secret("evil")), net.now_ms)
    assert keeper.keyring.door[1] == b""


# --- orders ---------------------------------------------------------------------------------------


def test_who_may_only_look_may_look(net: Net) -> None:
    told = net.ask("n", "members", Role.VIEW)
    assert (told["cluster"], told["role"], told["node"]) == ("home", "node", text32(own("n").node))
    rows = {row["name"]: (row["role"], row["state"], row["by"]) for row in told["members"]}
    assert rows == {
        "a": ("admin", "member", "root"),
        "b": ("admin", "member", "root"),
        "n": ("node", "member", "a"),
        "m": ("node", "member", "a"),
    }


@pytest.mark.parametrize(
    "order", ["token", "tokens", "token_revoke", "approve", "revoke", "rotate"]
)
def test_orders_need_the_role_admin(net: Net, order: str) -> None:
    args = {"what": "n"} if order in ("token_revoke", "approve", "revoke") else {}
    with pytest.raises(RemoteProtocolError, match="needs the role admin"):
        net.ask("a", order, Role.NODE, **args)
    if order != "rotate":
        with pytest.raises(RemoteProtocolError, match=r"no admin of the cluster\nrun this on "):
            net.ask("n", order, ADMIN, **args)


def test_orders_that_make_no_sense_say_why(net: Net) -> None:
    for order, args, words in [
        ("nonsense", {}, "knows no query"),
        ("token", {"uses": 0}, "uses"),
        ("token", {"role": "king"}, "no role"),
        ("token", {"bogus": 1}, "bogus"),
        ("token", {"role": "admin", "member_ms": 5}, "do not expire"),
        ("revoke", {"what": "nobody"}, "there are: a, b, m, n"),
        ("revoke", {"what": "n", "replaced": True}, "was replaced"),
        ("revoke", {"what": "a"}, "cannot revoke itself"),
        ("token_revoke", {"what": "zzzzzz"}, "no token begins"),
        ("approve", {"what": "lusab-babad-gutih-tugad"}, "nobody waits here"),
    ]:
        with pytest.raises(RemoteProtocolError, match=words):
            net.ask("a", order, **args)


def test_a_token_is_made_listed_and_ended(net: Net) -> None:
    told = net.ask("a", "token", role="submit", uses=3, for_ms=60_000)
    assert told["token"].startswith("br1-")
    net.run(0)
    [row] = net.ask("b", "tokens")["tokens"]
    assert (row["role"], row["uses"], row["used"], row["state"]) == ("submit", 3, 0, "valid")
    assert "token" not in row
    assert net.ask("b", "token_revoke", what=row["id"][:6])["state"] == "revoked"
    net.run(0)
    assert net.ask("a", "tokens")["tokens"][0]["state"] == "revoked"


def test_a_namesake_is_shown_as_following_and_one_order_ends_the_old(net: Net) -> None:
    """A machine that was set up anew: same name, another key."""
    again = replace(member("again"), name="n", replaces=own("n").node)
    keeper = net.keepers[net.names["a"]]
    keeper.registrar.issue([keeper.registrar.issuer.sign(again)])
    net.run(0)
    rows = {row["node"]: row for row in net.ask("b", "members")["members"]}
    old = rows[text32(own("n").node)]
    assert (old["state"], old["replaced_by"]) == ("replaced", short(own("again").node))
    with pytest.raises(RemoteProtocolError, match=r"stands for 2 members[^\n]*replaced"):
        net.ask("a", "revoke", what="n")
    told = net.ask("a", "revoke", what="n", replaced=True)
    assert [row["node"] for row in told["revoked"]] == [text32(own("n").node)]
    net.run(0)
    members = net.keepers[net.names["m"]].keyring.members
    assert members.by_key(own("n").curve_public) is None
    assert members.by_key(own("again").curve_public) is not None


def test_who_waits_is_listed_for_admins_and_let_in_by_the_phrase(net: Net) -> None:
    door = net.keepers[net.names["a"]].door
    assert door is not None
    said = join("late")
    asked = door.handle(said, own("late").curve_public, "10.0.0.9", net.now_ms, WALL_MS)
    assert isinstance(asked, m.Pending)
    [row] = net.ask("a", "members")["pending"]
    assert (row["name"], row["address"]) == ("late", "10.0.0.9")
    assert net.ask("a", "members", Role.VIEW)["pending"] == []
    told = net.ask("a", "approve", what=row["phrase"], role="submit")
    assert (told["name"], told["role"]) == ("late", "submit")
    net.run(0)
    assert "late" in net.inside("m")


# --- other keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n", "a", "b"])
def test_a_node_changes_its_keys_when_all_have_heard(net: Net, name: str) -> None:
    old = own(name)
    told = net.ask(name, "rotate")
    assert told["signed"] is (name != "n")
    net.run(keeping.ROTATE_SPREAD_MS - 1)
    assert net.reloaded == []
    net.run(keeping.ROTATE_ASK_MS)
    assert net.reloaded == [name]
    again = Keyring(net.path / name)
    assert again.load()
    assert text32(again.own.node) == told["node"]
    assert again.role == (ADMIN if name in "ab" else Role.NODE)
    assert again.admin is (name in "ab")
    wall_ms = WALL_MS + net.now_ms
    for keeper in net.keepers.values():
        members = keeper.keyring.members
        assert members.by_key(again.own.curve_public, wall_ms) is not None
        assert members.by_key(old.curve_public, wall_ms) is not None
        assert members.by_key(old.curve_public, wall_ms + 600_000) is None


def test_only_a_member_may_change_and_only_with_a_proof(net: Net) -> None:
    keeper = net.keepers[net.names["a"]]
    said = m.Rotate(own("x").curve_public, pair("x").public, bytes(64))
    keeper.on_gossip(net.names["n"], said, net.now_ms)
    keeper.on_gossip(own("stranger").node, said, net.now_ms)
    assert keeper.counters == {"rotate.refused": 1, "rotate.unwanted": 1}
    assert "x" not in net.inside("a")


def test_an_order_of_another_cluster_means_nothing(net: Net) -> None:
    root = pair("other")
    foreign = signed(member("a", ADMIN), root.public, *root)
    keeper = net.keepers[net.names["n"]]
    keeper.on_gossip(net.names["m"], m.Members(bytes(16), (foreign,)), net.now_ms)
    assert net.inside("n") == {"a", "b", "n", "m"}
    assert keeper.keyring.members.invites() == []
    assert invite().secret_hash not in keeper.keyring.members.digest
