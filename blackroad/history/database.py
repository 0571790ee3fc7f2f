"""One database of the history: connected, brought up to date, and what its errors mean.

Edge: SQLite or PostgreSQL, by SQLAlchemy.  Both may hang, so this is used in processes of their
own, never in the daemon's loop.  This file must not know what is written or read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from blackroad.errors import ConfigError, HistoryProblem, MissingPackage
from blackroad.history.schema import REVISION, VIEWS, view_sql

INSTALL: Final = "pip install 'blackroad[history]'"
INSTALL_POSTGRES: Final = "pip install 'blackroad[history,postgres]'"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
CONNECT_S: Final = 5
BUSY_S: Final = 15
STATEMENT_MS: Final = 60_000
# Nodes that start together migrate one after the other.
_MIGRATING: Final = 0x62724869


class RowRefused(Exception):
    """The database will never take this row, whenever it is asked."""


def address(url: str) -> str:
    """The address without what is secret, for messages."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme.startswith("sqlite"):
            return url
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    return "(no address)"


class Database:
    """An engine for one address; connects when first asked.

    Raises  MissingPackage, ConfigError.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        try:
            import sqlalchemy as sa
        except ImportError:
            raise MissingPackage("the history needs SQLAlchemy", hint=INSTALL) from None
        self.address = address(url)
        self.dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
        self.read_only = read_only
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}
        if self.dialect == "sqlite":
            options["connect_args"] = {"timeout": BUSY_S}
        else:
            url = "postgresql+psycopg://" + url.partition("://")[2]
            options["connect_args"] = {
                "connect_timeout": CONNECT_S,
                "options": f"-c statement_timeout={STATEMENT_MS}",
                "application_name": "blackroad history",
            }
        try:
            self.engine = sa.create_engine(url, **options)
        except ImportError:
            raise MissingPackage(
                "a history in PostgreSQL needs psycopg", hint=INSTALL_POSTGRES
            ) from None
        except (sa.exc.ArgumentError, ValueError):
            raise ConfigError(
                "history_url: this is no address of a database",
                hint='write it like "postgresql://user:password@host/database"',
            ) from None
        if self.dialect == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def begin(self, *, rows: bool = False) -> Iterator[Any]:
        """One transaction; it counts whole or not at all.

        Raises  HistoryProblem in words; with `rows` RowRefused where only a row is to blame.
        """
        import sqlalchemy as sa

        try:
            with self.engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            if rows and isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
                raise RowRefused from None
            raise HistoryProblem(
                f"{self.address}: {plain(error)}", hint="look at the database server and its log"
            ) from None
        except OSError as error:
            raise HistoryProblem(
                f"{self.address}: {error.strerror or error}", hint="look at the disk it is on"
            ) from None

    @contextlib.contextmanager
    def within(self, connection: Any) -> Iterator[None]:
        """A part of a transaction that may fail alone.

        Raises  RowRefused; what is wrong with the database itself ends the whole.
        """
        import sqlalchemy as sa

        try:
            with connection.begin_nested():
                yield
        except (sa.exc.DataError, sa.exc.IntegrityError):
            raise RowRefused from None

    def prepare(self) -> None:
        """Bring tables and views up to date.

        Cost  one look where they are; else 11 MiB for Alembic as well.
        Raises  HistoryProblem, also where a newer program has made the tables.
        """
        if self.dialect == "sqlite":
            # What tasks were called and who had them run is nobody else's business.
            with contextlib.suppress(OSError):
                os.close(os.open(self.engine.url.database or "", os.O_CREAT | os.O_RDWR, 0o600))
        with self.begin() as connection:
            if revision(connection) != REVISION:
                self._migrate(connection)

    def _migrate(self, connection: Any) -> None:
        from alembic.script import ScriptDirectory

        config = alembic_config()
        known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
        if self.dialect == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
        before = revision(connection)
        if before and before not in known:
            raise HistoryProblem(
                f"{self.address}: its tables are of a newer blackroad (revision {before})",
                hint="install that version here, or give this node a database of its own",
            )
        if before == REVISION:
            # Another node was faster.
            return
        for name in reversed(VIEWS):
            connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
        upgrade(connection, config)
        for name in VIEWS:
            connection.exec_driver_sql(view_sql(name, self.dialect))

    def ready(self) -> bool:
        """Are there tables of this program at all?"""
        with self.begin() as connection:
            return bool(revision(connection))

    def close(self) -> None:
        """Let go of the connection."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver begins transactions by guessing from statements, and not before it makes tables.
    connection.isolation_level = None
    # More than one connection with a write-ahead log can damage the file before SQLite 3.51.3,
    # and people look while a node writes; the rollback journal cannot.
    for pragma in ("journal_mode=TRUNCATE", "synchronous=NORMAL", "cache_size=-2000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN")


def alembic_config() -> Any:
    """Where Alembic finds the migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def revision(connection: Any) -> str:
    """The revision that the tables have, "" where there are none."""
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")


def upgrade(connection: Any, config: Any, target: str = "head") -> None:
    """Run the migrations that are missing, in this transaction."""
    from alembic import command

    config.attributes["connection"] = connection
    command.upgrade(config, target)


def plain(error: Exception) -> str:
    """What a database says, on one line and without the statement that it refused."""
    said = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
