"""The keys on disk: made, read back, closed to others, and what damage is said to be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from blackroad.bus.members import MemberList, Role, signed
from blackroad.errors import StateDirectoryProblem
from blackroad.ids import node_id_from_key
from blackroad.store import identity, keyring
from blackroad.store.identity import StateDirectory
from blackroad.store.keyring import Keyring
from tests.unit.cluster_words import ROOT, ROOT_KEY, WALL_MS, curve_secret, made, member

DOOR = (b"D" * 32, b"d" * 32, 3)


def entered(state: Path, *, root: bool = False, role: Role = Role.ADMIN) -> Keyring:
    """Keys of a cluster in that directory, made the way `init` and `join` do."""
    made_ = Keyring(state)
    with made_.locked():
        own = made_.prepare()
        mine = member("x", role)
        mine = type(mine)(own.node, own.curve_public, own.sign_public, role, "me", 1, WALL_MS)
        members = MemberList(ROOT_KEY)
        members.merge([signed(mine, ROOT_KEY, *ROOT), made("n")], WALL_MS)
        made_.establish("home", members, DOOR, ("tcp://a:1",), ROOT.secret if root else b"")
    return made_


def loaded(state: Path) -> Keyring:
    found = Keyring(state)
    assert found.load()
    return found


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    before = entered(tmp_path, root=True)
    after = loaded(tmp_path)
    assert after.own == before.own
    assert (after.name, after.cluster_id) == ("home", before.cluster_id)
    assert (after.door, after.door_serial) == (DOOR[:2], 3)
    assert after.seeds == ("tcp://a:1",)
    assert after.root_secret == ROOT.secret
    assert after.members.digest == before.members.digest
    assert (after.role, after.admin) == (Role.ADMIN, True)
    assert after.own.node == node_id_from_key(after.own.curve_public)


def test_without_keys_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert Keyring(tmp_path).load() is False
    assert keyring.exists(tmp_path) is False
    entered(tmp_path)
    assert keyring.exists(tmp_path) is True


def test_all_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    entered(tmp_path, root=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        keyring.CLUSTER_FILE,
        keyring.SIGNING_FILE,
        keyring.ROOT_FILE,
        keyring.MEMBERS_FILE,
        identity.IDENTITY_FILE,
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / keyring.DIRECTORY).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", [keyring.CLUSTER_FILE, keyring.SIGNING_FILE, keyring.ROOT_FILE])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    entered(tmp_path, root=True)
    (tmp_path / keyring.DIRECTORY / name).chmod(0o640)
    with pytest.raises(StateDirectoryProblem, match="open to other users") as found:
        Keyring(tmp_path).load()
    assert "chmod 600" in found.value.hint


@pytest.mark.parametrize(
    "name", [keyring.CLUSTER_FILE, keyring.SIGNING_FILE, keyring.ROOT_FILE, keyring.MEMBERS_FILE]
)
def test_damage_is_one_clear_error(tmp_path: Path, name: str) -> None:
    """Cut anywhere, or with any byte changed: either it says which file, or it says the same."""
    before = entered(tmp_path, root=True)
    path = tmp_path / keyring.DIRECTORY / name
    whole = path.read_bytes()
    spoilt = [b"", whole[: len(whole) // 2], b"[]", b"\xff" * 40, b"[" * 5000]
    spoilt += [whole[:at] + b"?" + whole[at + 1 :] for at in range(3, len(whole), 37)]
    for data in spoilt:
        path.write_bytes(data)
        found = Keyring(tmp_path)
        problem = None
        try:
            found.load()
        except StateDirectoryProblem as error:
            problem = error
        if problem is None:
            # Only what is no key may have changed: a name, an address.
            assert found.own == before.own
            assert found.members.digest == before.members.digest
        else:
            assert str(path) in problem.message
            assert problem.hint
    path.write_bytes(whole)
    assert Keyring(tmp_path).load()


@pytest.mark.parametrize("name", [keyring.SIGNING_FILE, keyring.MEMBERS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    entered(tmp_path)
    (tmp_path / keyring.DIRECTORY / name).unlink()
    with pytest.raises(StateDirectoryProblem, match=name):
        Keyring(tmp_path).load()


def test_a_list_that_somebody_else_wrote_is_not_believed(tmp_path: Path) -> None:
    """Its signatures are not verified again at each start, so it is sealed."""
    one, other = tmp_path / "one", tmp_path / "other"
    entered(one)
    entered(other)
    data = (other / keyring.DIRECTORY / keyring.MEMBERS_FILE).read_bytes()
    (one / keyring.DIRECTORY / keyring.MEMBERS_FILE).write_bytes(data)
    with pytest.raises(StateDirectoryProblem, match="check sum"):
        Keyring(one).load()


def test_a_root_key_of_another_cluster_is_not_used(tmp_path: Path) -> None:
    before = entered(tmp_path)
    other = {"secret": before.own.sign_secret.hex(), "public": before.own.sign_public.hex()}
    path = tmp_path / keyring.DIRECTORY / keyring.ROOT_FILE
    path.write_text(json.dumps(other))
    path.chmod(0o600)
    assert loaded(tmp_path).root_secret == b""


def test_two_programs_do_not_change_keys_at_once(tmp_path: Path) -> None:
    one, other = Keyring(tmp_path), Keyring(tmp_path)
    with (
        one.locked(),
        pytest.raises(StateDirectoryProblem, match="another program"),
        other.locked(),
    ):
        raise AssertionError("both have it")
    with other.locked():
        pass


def test_a_node_keeps_the_key_that_it_has(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.open()
    life = state.begin_life()
    state.close()
    assert entered(tmp_path).own.node == life.node


def test_keys_made_before_the_first_life_do_not_spoil_it(tmp_path: Path) -> None:
    own = entered(tmp_path).own
    state = StateDirectory(tmp_path)
    state.open()
    life = state.begin_life()
    state.close()
    assert (life.node, life.first) == (own.node, True)


def test_other_keys_make_another_node_only_when_it_has_joined(tmp_path: Path) -> None:
    first = entered(tmp_path)
    again = Keyring(tmp_path)
    assert again.load()
    fresh = again.prepare(anew=True)
    assert fresh.node != first.own.node
    assert loaded(tmp_path).own == first.own
    # An attempt that came to nothing does not make a third pair.
    assert Keyring(tmp_path).prepare(anew=True) == fresh
    again.establish("home", again.members, DOOR, ())
    assert loaded(tmp_path).own == fresh
    state = StateDirectory(tmp_path)
    state.open()
    assert state.begin_life().node == fresh.node
    state.close()


def test_a_change_of_keys_waits_for_its_record(tmp_path: Path) -> None:
    kept = entered(tmp_path)
    made_ = kept.next_keys()
    assert kept.next_keys() == made_
    assert kept.switch() is False
    assert kept.own.node != made_.node
    new = member("x", Role.ADMIN)
    new = type(new)(made_.node, made_.curve_public, made_.sign_public, Role.ADMIN, "me", 1, WALL_MS)
    kept.members.merge([signed(new, ROOT_KEY, *ROOT)], WALL_MS)
    kept.save_members()
    assert kept.switch() is True
    after = loaded(tmp_path)
    assert (after.own, after.rotating(), after.admin) == (made_, None, True)
    assert kept.switch() is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_writes_files_for_the_owner_of_the_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 4711, 4712)
    entered(state, root=True)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in state.rglob("*")}
    assert owners == {(4711, 4712)}


def test_secrets_are_not_shown_by_accident(tmp_path: Path) -> None:
    own = entered(tmp_path).own
    assert own.curve_secret.hex() not in repr(own)
    assert repr(own.sign_secret) not in repr(own)
    assert curve_secret("door") not in repr(own).encode()
