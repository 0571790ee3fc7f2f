"""Tables, views and migrations: the same in both kinds of database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from blackroad.errors import BlackroadError, ConfigError, HistoryProblem
from blackroad.history.__main__ import Writer
from blackroad.history.database import Database, address, alembic_config
from blackroad.history.schema import REVISION, VIEWS, metadata
from tests.history.postgres import Postgres
from tests.history.words import one, rows


def test_migrations_make_what_the_schema_says(database: Database) -> None:
    with database.begin() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
        assert differences == []
        assert set(inspect(connection).get_view_names()) == set(VIEWS)
    wanted = {"cluster_nodes", "system_resources", "cluster_events", "gpu_resources"}
    wanted |= {"load_balancing_metrics", "cluster_config", "network_topology", "tasks"}
    assert wanted <= set(metadata.tables)
    assert {"resource_allocations", "attempts", "health_summary"} <= set(VIEWS)


def test_every_view_can_be_read_while_there_is_nothing(database: Database) -> None:
    for name in VIEWS:
        found = rows(database, f"SELECT * FROM {name}")
        if name == "health_summary":
            assert [(row["nodes"], row["status"]) for row in found] == [(0, "unknown")]
        else:
            assert found == []


def test_preparing_again_changes_nothing(database: Database) -> None:
    before = one(database, "SELECT version_num FROM alembic_version")
    database.prepare()
    assert one(database, "SELECT version_num FROM alembic_version") == before == REVISION
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == REVISION


def test_where_all_is_up_to_date_alembic_is_not_loaded(database: Database, url: str) -> None:
    code = (
        "import sys; from blackroad.history.database import Database; import os; "
        "Database(os.environ['URL']).prepare(); print('alembic' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "False\n"


def test_down_and_up_again(database: Database) -> None:
    with database.begin() as connection:
        for name in reversed(VIEWS):
            connection.exec_driver_sql(f"DROP VIEW {name}")
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    database.prepare()
    assert one(database, "SELECT COUNT(*) FROM attempts") == 0


def test_tables_of_a_newer_program_are_left_alone(database: Database) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(HistoryProblem, match="newer blackroad"):
        database.prepare()


def test_a_migration_that_is_cut_off_leaves_nothing_behind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Database(url)
    monkeypatch.setitem(VIEWS, "attempts", "SELECT FROM WHERE")
    with pytest.raises(HistoryProblem):
        made.prepare()
    with made.begin() as connection:
        assert inspect(connection).get_table_names() == []
    monkeypatch.undo()
    made.prepare()
    made.close()


def test_nodes_that_start_together_migrate_one_after_the_other(postgres: Postgres) -> None:
    url = postgres.fresh("together")
    problems: list[BlackroadError] = []

    def prepare() -> None:
        made = Database(url)
        try:
            made.prepare()
        except BlackroadError as error:
            problems.append(error)
        made.close()

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_what_is_wrong_is_said_without_the_password(postgres: Postgres, tmp_path: Path) -> None:
    wrong = Database(postgres.url("postgres", "another-word"))
    with pytest.raises(HistoryProblem) as refused:
        wrong.prepare()
    assert "another-word" not in refused.value.message
    assert "password authentication failed" in refused.value.message
    nowhere = Database(f"postgresql://lab:secret@/lab?host={tmp_path}")
    with pytest.raises(HistoryProblem) as down:
        nowhere.prepare()
    assert "secret" not in down.value.message + down.value.hint
    missing = Database(f"sqlite:///{tmp_path}/no/such/place.db")
    with pytest.raises(HistoryProblem, match="unable to open"):
        missing.prepare()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        Database("postgresql://me:secret@shelf:no-port/lab")
    assert "secret" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:word@shelf:5432/lab", "postgresql://shelf:5432/lab"),
        ("postgresql://me@shelf/lab?password=word", "postgresql://shelf/lab"),
        ("sqlite:////var/lib/h.db", "sqlite:////var/lib/h.db"),
        ("postgresql://[nonsense", "(no address)"),
    ],
)
def test_addresses_are_shown_without_secrets(url: str, shown: str) -> None:
    assert address(url) == shown


def test_a_spool_that_cannot_be_read_now_is_told_and_read_later(tmp_path: Path) -> None:
    said: list[dict[str, object]] = []
    lock = tmp_path / "history" / "spool" / "reader.lock"
    lock.mkdir(parents=True)
    writer = Writer(f"sqlite:///{tmp_path / 'it.db'}", lock.parent, 7, said.append)
    assert writer.turn() > 0
    assert str(lock.parent) in str(said[-1]["problem"])
    lock.rmdir()
    writer.turn()
    assert said[-1]["problem"] == ""
