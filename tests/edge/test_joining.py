"""Joining over real sockets: with a token, without one, and everything that must not work."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from blackroad import joining
from blackroad.bus import codec, keys
from blackroad.bus import messages as m
from blackroad.bus.members import Role
from blackroad.bus.sockets import Bus, Poller, connect, drain, key_pair, send
from blackroad.errors import Busy, JoinRefused, StateDirectoryProblem, Unreachable
from blackroad.joining import DoorPlace, Outcome, join_by_approval, join_by_token
from blackroad.store import keyring
from blackroad.store.keyring import Keyring
from tests.edge.doors import MESH_PLACE, DoorThread, lasting, state, wall_ms
from tests.edge.meshes import Daemon, Mesh, answered, command, until
from tests.unit.cluster_words import ROOT_KEY, by, gone, invite, made

pytestmark = pytest.mark.edge
# Long enough for a busy machine; nothing that goes well waits for it.
LONG_MS = 30_000
SHORT_MS = 700


@pytest.fixture
def door() -> Iterator[DoorThread]:
    """An open door; `i` is a token of it that counts."""
    made_ = DoorThread(lasting())
    yield made_
    made_.close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# --- with a token ---------------------------------------------------------------------------------


def test_a_token_makes_a_member_with_all_keys_on_disk(door: DoorThread, tmp_path: Path) -> None:
    ring = Keyring(state(tmp_path))
    outcome = join_by_token(ring, door.token(), "shed", timeout_ms=LONG_MS)
    assert outcome == Outcome(
        "home",
        keys.fingerprint(ROOT_KEY),
        ring.own.node,
        "shed",
        Role.NODE,
        door.endpoint,
        0,
    )
    after = Keyring(tmp_path / "n")
    assert after.load()
    assert (after.role, after.admin, after.seeds) == (Role.NODE, False, (MESH_PLACE,))
    assert after.door == (door.public, b"")
    assert {one.name for one in after.members.members()} == {"a", "shed"}
    found = door.members.by_key(after.own.curve_public)
    assert found is not None
    assert found.sign_key == after.own.sign_public


def test_an_admin_gets_the_doors_secret(tmp_path: Path) -> None:
    door = DoorThread(lasting(role=Role.ADMIN))
    try:
        ring = Keyring(state(tmp_path))
        join_by_token(ring, door.token(), "b", timeout_ms=LONG_MS)
        assert (ring.door, ring.admin) == ((door.public, door.secret), True)
    finally:
        door.close()


@pytest.mark.parametrize(
    ("kept", "said", "words"),
    [
        ({"expires_ms": wall_ms() - 1_000}, {}, "has expired"),
        ({"serial": 2, "revoked": True}, {}, "was revoked"),
        ({}, {"secret": b"x" * 16}, "no such token"),
        ({}, {"ident": "j"}, "no such token"),
    ],
)
def test_a_bad_token_is_refused_and_leaves_no_cluster(
    tmp_path: Path, kept: dict[str, Any], said: dict[str, Any], words: str
) -> None:
    """Row 44."""
    door = DoorThread(lasting(**kept))
    try:
        ring = Keyring(state(tmp_path))
        with pytest.raises(JoinRefused, match=words) as found:
            join_by_token(ring, door.token(**said), "shed", timeout_ms=LONG_MS)
        assert "token create" in found.value.hint
        assert not keyring.exists(tmp_path / "n")
        assert len(door.members.members()) == 1
    finally:
        door.close()


def test_a_token_for_one_lets_one_in(tmp_path: Path) -> None:
    door = DoorThread(lasting(uses=1))
    try:
        first = Keyring(state(tmp_path, "one"))
        join_by_token(first, door.token(), "one", timeout_ms=LONG_MS)
        # The same machine again: its answer may have been lost.
        join_by_token(first, door.token(), "one", timeout_ms=LONG_MS)
        with pytest.raises(JoinRefused, match="used as often"):
            join_by_token(Keyring(state(tmp_path, "two")), door.token(), "two", timeout_ms=LONG_MS)
    finally:
        door.close()


def test_nobody_is_told_the_secret_but_who_holds_the_doors_key(
    door: DoorThread, tmp_path: Path
) -> None:
    """The token of one cluster, and the door of another one at its address."""
    other = replace(door.token(), door_key=key_pair()[1])
    with pytest.raises(JoinRefused, match="holds the key") as found:
        join_by_token(Keyring(state(tmp_path)), other, "n", timeout_ms=SHORT_MS)
    assert found.value.because == (f"{door.endpoint}: somebody listens, but cannot prove the key",)
    assert door.heard == []


def test_a_token_of_another_cluster_is_refused_by_a_door_with_the_same_key(
    door: DoorThread, tmp_path: Path
) -> None:
    wrong = replace(door.token(), cluster=b"c" * 16)
    with pytest.raises(JoinRefused, match="another cluster"):
        join_by_token(Keyring(state(tmp_path)), wrong, "n", timeout_ms=LONG_MS)


def test_the_root_key_must_have_the_fingerprint_of_the_token(
    door: DoorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen door key alone does not make anybody join another cluster."""
    handle = door.door.handle

    def lie(*args: Any) -> m.DoorMessage:
        answer = handle(*args)
        return replace(answer, root=bytes(32)) if isinstance(answer, m.Joined) else answer

    monkeypatch.setattr(door.door, "handle", lie)
    with pytest.raises(JoinRefused, match="comes from another cluster"):
        join_by_token(Keyring(state(tmp_path)), door.token(), "n", timeout_ms=LONG_MS)
    assert not keyring.exists(tmp_path / "n")


def test_an_answer_without_a_record_of_this_machine_is_no_answer(
    door: DoorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = door.door.handle

    def lie(*args: Any) -> m.DoorMessage:
        answer = handle(*args)
        if isinstance(answer, m.Joined):
            return replace(answer, records=(made("a", role=Role.ADMIN), made("x", "x")))
        return answer

    monkeypatch.setattr(door.door, "handle", lie)
    with pytest.raises(JoinRefused, match="no signed record"):
        join_by_token(Keyring(state(tmp_path)), door.token(), "n", timeout_ms=LONG_MS)


# --- addresses ------------------------------------------------------------------------------------


def test_the_first_address_that_answers_is_taken(door: DoorThread, tmp_path: Path) -> None:
    """And only one is told the secret, though all were knocked at."""
    dead = [f"tcp://127.0.0.1:{free_port()}" for _ in range(3)]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mute = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        token = door.token(*dead, mute, "tcp://no.such.host.invalid:7700", door.endpoint)
        outcome = join_by_token(Keyring(state(tmp_path)), token, "n", timeout_ms=LONG_MS)
    assert outcome.endpoint == door.endpoint
    assert len(door.heard) == 1


def test_an_answer_that_is_lost_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "ANSWER_MS", 100)
    door = DoorThread(lasting(uses=1), silent=2)
    try:
        join_by_token(Keyring(state(tmp_path)), door.token(), "n", timeout_ms=LONG_MS)
        assert len(door.heard) >= 3
    finally:
        door.close()


def test_what_was_tried_is_told_one_address_a_line(tmp_path: Path) -> None:
    dead = f"tcp://127.0.0.1:{free_port()}"
    token = DoorToken(dead, "tcp://no.such.host.invalid:7700")
    with pytest.raises(Unreachable, match="no admin of the cluster") as found:
        join_by_token(Keyring(state(tmp_path)), token, "n", timeout_ms=SHORT_MS)
    lines = sorted(found.value.because)
    assert lines[0] == f"{dead}: nobody listens there"
    assert lines[1].startswith("tcp://no.such.host.invalid:7700: no such address")


def test_a_token_without_addresses_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="the token names none"):
        join_by_token(Keyring(state(tmp_path)), DoorToken(), "n", timeout_ms=SHORT_MS)


def DoorToken(*places: str) -> Any:
    """A token of a door that is not there."""
    from blackroad.bus.tokens import InviteText

    return InviteText(b"c" * 16, key_pair()[1], b"i" * 8, b"s" * 16, places)


# --- guesses --------------------------------------------------------------------------------------


def test_guesses_are_limited_and_the_limit_is_told(door: DoorThread, tmp_path: Path) -> None:
    """Row 44."""
    guess = door.token(secret=b"x" * 16)
    ring = Keyring(state(tmp_path))
    for _ in range(5):
        with pytest.raises(JoinRefused):
            join_by_token(ring, guess, "n", timeout_ms=LONG_MS)
    with pytest.raises(Busy, match="too many failed attempts") as found:
        join_by_token(ring, door.token(), "n", timeout_ms=SHORT_MS)
    assert 0 < found.value.retry_after_ms <= 60_000
    assert "try again in" in found.value.hint


def test_ten_thousand_guesses_on_one_connection(door: DoorThread) -> None:
    """None is let in, five are judged, and an honest joiner from elsewhere is none the worse."""
    ring_keys = keys.NodeKeys(b"n" * 16, *key_pair(), *keys.new_signing())
    bus = Bus(ring_keys)
    one = bus.newcomer(door.public)
    connect(one, door.endpoint)
    poller = Poller()
    poller.watch(one)
    guess = joining._join(ring_keys, door.public, "n", b"n" * 16, door.token(secret=b"x" * 16))
    frames = [codec.encode_header(0, 0), codec.frame_of((codec.encode(guess),))]
    answered, judged, sent, lost, quiet = 0, 0, 0, 0, 0
    try:
        while answered < 10_000:
            while sent - answered < 32 and sent < 10_000 and send(one, frames):
                sent += 1
            quiet = 0 if poller.wait(50) else quiet + 1
            if quiet > 40:
                # A door drops what a socket does not take at once; who wants an answer asks again.
                lost, sent, quiet = lost + sent - answered, answered, 0
            for found in drain(one):
                [answer], _ = codec.DOOR.decode(found[1])
                assert isinstance(answer, m.Denied)
                answered += 1
                judged += answer.reason != "busy"
    finally:
        bus.close()
    assert judged <= 5 <= judged + lost
    assert len(door.members.members()) == 1


# --- this machine ---------------------------------------------------------------------------------


def test_a_machine_does_not_leave_its_cluster_by_accident(door: DoorThread, tmp_path: Path) -> None:
    ring = Keyring(state(tmp_path))
    join_by_token(ring, door.token(), "n", timeout_ms=LONG_MS)
    with pytest.raises(JoinRefused, match="belongs to the cluster `home` already"):
        join_by_token(ring, replace(door.token(), cluster=b"c" * 16), "n", timeout_ms=SHORT_MS)
    with pytest.raises(JoinRefused, match="already"):
        _approved(ring, door)


def test_a_revoked_machine_needs_another_key(door: DoorThread, tmp_path: Path) -> None:
    ring = Keyring(state(tmp_path))
    first = join_by_token(ring, door.token(), "n", timeout_ms=LONG_MS)
    member = door.members.of_node(first.node)
    assert member is not None
    door.members.merge([by("a", replace(member, revoked=True, serial=2))], wall_ms())
    with pytest.raises(JoinRefused, match="revoked for good") as found:
        join_by_token(ring, door.token(), "n", timeout_ms=LONG_MS)
    assert "--new-key" in found.value.hint
    again = join_by_token(ring, door.token(), "n", timeout_ms=LONG_MS, new_key=True)
    assert again.node != first.node
    after = Keyring(tmp_path / "n")
    assert after.load()
    assert (after.own.node, after.role) == (again.node, Role.NODE)


def test_a_machine_set_up_anew_follows_its_namesake(door: DoorThread, tmp_path: Path) -> None:
    first = join_by_token(Keyring(state(tmp_path, "1")), door.token(), "shed", timeout_ms=LONG_MS)
    again = join_by_token(Keyring(state(tmp_path, "2")), door.token(), "shed", timeout_ms=LONG_MS)
    found = door.members.of_node(again.node)
    assert found is not None
    assert found.replaces == first.node


def test_a_clock_that_is_off_is_noticed(tmp_path: Path) -> None:
    door = DoorThread(lasting(expires_ms=wall_ms() + 30 * 3_600_000))
    door.wall_off_ms = 5 * 3_600_000
    try:
        outcome = join_by_token(Keyring(state(tmp_path)), door.token(), "n", timeout_ms=LONG_MS)
    finally:
        door.close()
    assert -5.01 * 3_600_000 < outcome.clock_off_ms < -4.99 * 3_600_000
    assert "behind the admin's" in joining.describe_clock(outcome.clock_off_ms)


def test_a_token_that_expired_by_a_wrong_clock_says_whose(tmp_path: Path) -> None:
    door = DoorThread(lasting())
    door.wall_off_ms = 24 * 3_600_000
    try:
        with pytest.raises(JoinRefused, match="has expired") as found:
            join_by_token(Keyring(state(tmp_path)), door.token(), "n", timeout_ms=LONG_MS)
    finally:
        door.close()
    [line] = found.value.because
    assert "ahead of this machine's" in line


def test_damaged_keys_are_told_before_anybody_is_asked(door: DoorThread, tmp_path: Path) -> None:
    ring = Keyring(state(tmp_path))
    join_by_token(ring, door.token(), "n", timeout_ms=LONG_MS)
    (ring.path / keyring.MEMBERS_FILE).write_bytes(b"?" * 100)
    heard = len(door.heard)
    with pytest.raises(StateDirectoryProblem, match="damaged"):
        join_by_token(Keyring(tmp_path / "n"), door.token(), "n", timeout_ms=LONG_MS)
    assert len(door.heard) == heard


# --- without a token ------------------------------------------------------------------------------


def _place(door: DoorThread) -> DoorPlace:
    return DoorPlace(door.public, (door.endpoint,), "abc")


def _approved(ring: Keyring, door: DoorThread) -> Outcome:
    """Ask, and let the admin approve the phrase that is shown."""

    def approve(phrase: str, pending: m.Pending) -> None:
        assert (pending.name, pending.node_name) == ("home", "a")
        [waiting] = [one for one in door.door.asking(0) if one.phrase == phrase]
        door.door.approve(waiting, Role.SUBMIT, wall_ms())

    return join_by_approval(ring, _place(door), "shed", timeout_ms=LONG_MS, on_phrase=approve)


def test_an_admin_approves_the_phrase_that_is_shown(door: DoorThread, tmp_path: Path) -> None:
    ring = Keyring(state(tmp_path))
    outcome = _approved(ring, door)
    assert (outcome.cluster, outcome.role, outcome.name) == ("home", Role.SUBMIT, "shed")
    assert ring.members.by_key(ring.own.curve_public) is not None


def test_nobody_approves(door: DoorThread, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="nobody has approved"):
        join_by_approval(
            Keyring(state(tmp_path)),
            _place(door),
            "shed",
            timeout_ms=SHORT_MS,
            on_phrase=lambda *_shown: None,
        )
    assert not keyring.exists(tmp_path / "n")


def test_a_man_in_the_middle_cannot_show_the_same_phrase(door: DoorThread, tmp_path: Path) -> None:
    """He announces his own door and asks at the real one; the admin sees other words."""
    mallory = DoorThread()
    shown: list[str] = []
    seen: list[str] = []
    inner = Keyring(state(tmp_path, "m"))

    def relay(phrase: str, _pending: m.Pending) -> None:
        shown.append(phrase)
        # What the joiner said goes on to the real door under the only keys that he has.
        with pytest.raises(Unreachable):
            join_by_approval(
                inner,
                _place(door),
                "shed",
                timeout_ms=SHORT_MS,
                on_phrase=lambda *_shown: None,
            )
        seen.extend(one.phrase for one in door.door.asking(0))

    try:
        with pytest.raises(Unreachable):
            join_by_approval(
                Keyring(state(tmp_path)),
                _place(mallory),
                "shed",
                timeout_ms=SHORT_MS,
                on_phrase=relay,
            )
    finally:
        mallory.close()
    assert len(shown) == len(seen) == 1
    assert shown != seen


# --- real daemons ---------------------------------------------------------------------------------


def alive(daemon: Daemon) -> set[str]:
    rows = answered(daemon, "nodes")["nodes"]
    return {row["name"] for row in rows if row["state"] == "alive"}


def in_the_membership(daemon: Daemon) -> set[str]:
    rows = answered(daemon, "nodes")["nodes"]
    return {row["name"] for row in rows if row["state"] not in ("dead", "left")}


def inside(daemon: Daemon) -> dict[str, str]:
    return {row["name"]: row["state"] for row in answered(daemon, "members")["members"]}


@pytest.fixture(scope="module")
def closed() -> Iterator[Mesh]:
    """An admin and a node that joined with the line that `init` printed, both running before."""
    mesh = Mesh(BLACKROAD_LISTEN="127.0.0.1", BLACKROAD_JOIN_PORT="0", BLACKROAD_PEERS="")
    try:
        for name in ("gate", "shed"):
            mesh.add(name)
        for one in mesh.daemons:
            one.wait()
        gate, shed = mesh.daemons
        line = answered(gate, "init", "--name", "workshop")["command"]
        said = command(shed, *line.split()[1:])
        assert said.returncode == 0, said.stderr
        assert "workshop" in said.stdout
        until(lambda: alive(gate) == alive(shed) == {"gate", "shed"}, "both in sight")
        yield mesh
    finally:
        mesh.close()


def test_two_commands_and_a_task_runs_across(closed: Mesh) -> None:
    gate, shed = closed.daemons
    done = command(gate, "submit", "--wait", "--node", "shed", "--", "echo", "hello")
    assert (done.returncode, done.stdout.strip()) == (0, "hello")
    assert inside(gate) == inside(shed) == {"gate": "member", "shed": "member"}


def test_orders_need_an_admins_machine(closed: Mesh) -> None:
    gate, shed = closed.daemons
    refused = command(shed, "token", "create")
    assert refused.returncode == 2
    assert "run this on gate" in refused.stderr
    again = command(gate, "init")
    assert again.returncode == 2
    assert "`workshop` already" in again.stderr


def test_bad_tokens_at_a_real_daemon(closed: Mesh, tmp_path: Path) -> None:
    """Expired tokens are tried at the door of this file; here used, ended, altered, foreign."""
    gate, _ = closed.daemons
    late = Daemon(closed, "late", {"BLACKROAD_LISTEN": "127.0.0.1", "BLACKROAD_JOIN_PORT": "0"})
    ended = answered(gate, "token", "create")
    assert answered(gate, "token", "revoke", ended["id"])["state"] == "revoked"
    refused = command(late, "join", ended["token"])
    assert (refused.returncode, "was revoked" in refused.stderr) == (2, True)
    text = ended["token"]
    altered = text[:60] + ("b" if text[60] != "b" else "c") + text[61:]
    refused = command(late, "join", altered)
    assert (refused.returncode, "was altered" in refused.stderr) == (2, True)
    once = answered(gate, "token", "create", "--uses", "1")["token"]
    member = answered(late, "join", once)
    assert (member["name"], member["daemon"]) == ("late", False)
    other = Daemon(closed, "other", {"BLACKROAD_LISTEN": "127.0.0.1"})
    refused = command(other, "join", once)
    assert (refused.returncode, "as often as it allows" in refused.stderr) == (2, True)
    assert command(other, "members").returncode == 2
    assert not Path(other.environ["BLACKROAD_STATE_DIR"], "cluster", "cluster.json").exists()
    assert answered(gate, "revoke", "late", "--yes")["revoked"][0]["state"] == "revoked"


def test_a_change_of_keys_under_way(closed: Mesh) -> None:
    """The node gets another id, and the same task still runs there."""
    gate, shed = closed.daemons
    before = shed.wait()["node"]
    done = answered(shed, "rotate", "--yes")
    assert done["done"] is True
    assert done["node"] == shed.facts()["node"] != before
    until(lambda: alive(gate) == {"gate", "shed"}, "the new one in sight")
    states = [row["state"] for row in answered(gate, "members")["members"] if row["name"] == "shed"]
    assert sorted(states) == ["member", "replaced"]
    task = command(gate, "submit", "--wait", "--node", "shed", "--", "echo", "again")
    assert (task.returncode, task.stdout.strip()) == (0, "again")


def test_a_revoked_node_is_out(closed: Mesh) -> None:
    gate, shed = closed.daemons
    node = shed.facts()["node"]
    assert answered(gate, "revoke", node, "--yes")["revoked"][0]["state"] == "revoked"
    # Suspect is not enough: for what may be heard again, work is taken.
    until(lambda: "shed" not in in_the_membership(gate), "shed out of the membership")
    refused = command(gate, "submit", "--wait", "--node", "shed", "--", "true")
    assert refused.returncode == 3


def test_many_join_at_once(door: DoorThread, tmp_path: Path) -> None:
    """Every one of them, and each is its own member."""
    before = set(threading.enumerate())  # what earlier tests left is not this one's
    rings = [Keyring(state(tmp_path, f"n{i}")) for i in range(6)]
    names = [f"n{i}" for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(join_by_token, ring, door.token(), name, timeout_ms=LONG_MS)
            for ring, name in zip(rings, names, strict=True)
        ]
        found = [job.result() for job in jobs]
    assert {one.name for one in found} == set(names)
    assert len(door.members.members()) == 7
    assert len(set(threading.enumerate()) - before) < 20


def test_a_revocation_of_a_stranger_changes_nothing_here(door: DoorThread) -> None:
    before = door.members.digest
    door.members.merge([gone("nobody", "nobody"), by("x", invite("z"))], wall_ms())
    assert door.members.digest == before
