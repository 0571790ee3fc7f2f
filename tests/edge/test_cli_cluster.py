"""`init`, `join`, tokens and members on the command line, where no daemon runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus.tokens import parse_token
from blackroad.store.identity import StateDirectory
from blackroad.store.keyring import Keyring
from tests.edge.doors import DoorThread, lasting
from tests.unit.cli_fake import Answer, blackroad

pytestmark = pytest.mark.edge
Type = Callable[..., Answer]


@pytest.fixture
def here(tmp_path: Path) -> Type:
    """A machine of its own on which commands are typed."""

    def type_(*words: str, stdin: str | None = None, **env: str) -> Answer:
        given = {
            "BLACKROAD_CONFIG": str(tmp_path / "none.toml"),
            "BLACKROAD_STATE_DIR": str(tmp_path / "state"),
            "BLACKROAD_RUNTIME_DIR": str(tmp_path / "run"),
            "BLACKROAD_CACHE_DIR": str(tmp_path / "cache"),
            "BLACKROAD_NAME": "attic",
            "BLACKROAD_LISTEN": "127.0.0.1",
            **env,
        }
        (tmp_path / "none.toml").touch()
        return blackroad(*words, stdin=stdin, **given)

    return type_


def told(answer: Answer) -> Any:
    assert answer.code == 0, answer
    return json.loads(answer.out)


def rows(here: Type) -> dict[str, str]:
    return {row["id"]: row["state"] for row in told(here("members", "--json"))["members"]}


@pytest.fixture
def made(here: Type) -> Type:
    """The same, after `init`."""
    assert here("init").code == 0
    return here


def test_init_prints_the_line_for_the_other_machines(here: Type, tmp_path: Path) -> None:
    answer = here("init", "--name", "workshop")
    assert answer.code == 0
    [line] = [one.strip() for one in answer.out.splitlines() if "blackroad join br1-" in one]
    token = parse_token(line.split()[-1])
    ring = Keyring(tmp_path / "state")
    assert ring.load()
    assert (token.cluster, token.door_key) == (ring.cluster_id, ring.door[0])
    assert token.endpoints == ("tcp://127.0.0.1:7700",)
    assert str(ring.path / "root.json") in answer.out
    assert "systemctl start blackroad-node" in answer.out
    assert "this machine alone" in answer.err
    assert ring.name == "workshop"
    [invite] = ring.members.invites()
    assert invite.uses == 16
    # Nothing but the token gives anything away.
    for secret in (ring.own.curve_secret, ring.own.sign_secret, ring.root_secret, ring.door[1]):
        assert secret.hex() not in answer.out + answer.err


def test_init_for_programs(here: Type) -> None:
    found = told(here("init", "--json"))
    assert found["command"] == f"blackroad join {found['token']}"
    assert (found["cluster"], found["role"], found["uses"]) == ("home", "admin", 16)
    assert found["daemon"] is False
    [row] = told(here("members", "--json"))["members"]
    assert (row["node"], row["name"], row["this"]) == (found["node"], "attic", True)


def test_init_works_where_the_configuration_waits_for_it(here: Type) -> None:
    """`listen` on all addresses is refused without keys, and this makes them."""
    assert here("init", BLACKROAD_LISTEN="0.0.0.0").code == 0


def test_init_twice(made: Type) -> None:
    answer = made("init")
    assert answer.code == 2
    assert "belongs to the cluster `home` already" in answer.err


@pytest.mark.parametrize(
    "words",
    [
        ("members",),
        ("token", "create"),
        ("token",),
        ("token", "revoke", "abcd"),
        ("approve", "lusab-babad-gutih-tugad"),
        ("revoke", "shed"),
        ("rotate",),
    ],
)
def test_without_a_cluster_there_is_one_hint(here: Type, words: tuple[str, ...]) -> None:
    answer = here(*words, "--json")
    assert answer.code == 2
    assert "blackroad init" in json.loads(answer.out)["error"]["hint"]


def test_tokens_are_made_listed_and_ended(made: Type) -> None:
    answer = made("token", "create", "--role", "submit", "--uses", "3", "--expires", "2d")
    assert answer.code == 0
    # For `$(blackroad token create)`: nothing else is on standard output.
    token = parse_token(answer.out.strip())
    assert answer.out.count("\n") == 1
    listed = {row["id"]: row for row in told(made("token", "--json"))["tokens"]}
    assert sorted(row["role"] for row in listed.values()) == ["node", "submit"]
    [row] = [one for one in listed.values() if one["role"] == "submit"]
    assert (row["uses"], row["used"], row["state"]) == (3, 0, "valid")
    ended = told(made("token", "revoke", token.text(), "--json"))
    assert (ended["id"], ended["state"]) == (row["id"], "revoked")
    assert "revoked" in made("token", "list").out


@pytest.mark.parametrize(
    "words",
    [
        ("token", "create", "--role", "king"),
        ("token", "create", "--uses", "0"),
        ("token", "create", "--expires", "soon"),
        ("token", "create", "--expires", "1s"),
        ("token", "create", "--role", "admin", "--member-expires", "1d"),
        ("token", "revoke", "zzzz"),
        ("revoke", "nobody"),
        ("revoke", "attic"),
        ("approve", "lusab-babad-gutih-tugad"),
        ("join", "br1-abc"),
        ("join", "nonsense"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(made: Type, words: tuple[str, ...]) -> None:
    before = rows(made)
    answer = made(*words)
    assert (answer.code, "Traceback" in answer.err) == (2, False), answer
    assert answer.err.startswith("error: ")
    assert rows(made) == before


def test_an_admin_changes_its_own_keys(made: Type, tmp_path: Path) -> None:
    [before] = rows(made)
    done = told(made("rotate", "--json"))
    assert (done["done"], done["id"] != before) == (True, True)
    assert rows(made) == {before: "replaced", done["id"]: "member"}
    # The list can still be added to, by the new key.
    assert made("token", "create").code == 0
    state = StateDirectory(tmp_path / "state")
    state.open()
    assert state.begin_life().first
    state.close()


def test_files_are_left_alone_while_a_daemon_has_them(made: Type, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    try:
        answer = made("token", "create")
    finally:
        state.close()
    assert answer.code == 5
    assert "another daemon" in answer.err


@pytest.fixture
def door() -> Iterator[DoorThread]:
    """The door of another cluster's admin."""
    one = DoorThread(lasting())
    yield one
    one.close()


def test_join_says_what_comes_next(here: Type, door: DoorThread) -> None:
    answer = here("join", door.token().text(), "--name", "shed")
    assert answer.code == 0
    assert "Joined the cluster `home` as `shed`, role node." in answer.out
    assert "systemctl start blackroad-node" in answer.out
    found = told(here("members", "--json"))
    assert {row["name"] for row in found["members"]} == {"a", "shed"}
    refused = here("token", "create")
    assert refused.code == 2
    assert "run this on a" in refused.err
    refused = here("rotate")
    assert refused.code == 4
    assert "start the daemon" in refused.err


def test_join_for_programs(here: Type, door: DoorThread) -> None:
    found = told(here("join", door.token().text(), "--json"))
    assert (found["cluster"], found["name"], found["role"]) == ("home", "attic", "node")
    assert (found["endpoint"], found["clock_off_ms"]) == (door.endpoint, 0)


def test_join_where_nobody_is_says_what_was_tried(here: Type, door: DoorThread) -> None:
    door.close()
    answer = here("join", door.token().text(), "--timeout", "500ms")
    assert answer.code == 4
    assert f"{door.endpoint}: nobody listens there" in answer.err
