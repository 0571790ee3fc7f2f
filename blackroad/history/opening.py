"""The history for somebody who looks: the database opened, and what waits in the spool read first.

Edge.  This file must not know what is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blackroad.errors import BlackroadError, HistoryProblem, UsageError
from blackroad.history.storage import choose, own_url, spool_of

if TYPE_CHECKING:
    from blackroad.config import Config
    from blackroad.history.figures import Reader

NOTHING_HINT: Final = (
    'set history_url = "sqlite", or the address of a PostgreSQL, and start the daemon anew'
)


@contextlib.contextmanager
def opened(config: Config, state: Path, url: str = "") -> Iterator[Reader]:
    """Open this node's history, or the one at `url`.

    Raises  UsageError where there is none, HistoryProblem where it cannot be read, MissingPackage.
    """
    if url:
        import dataclasses

        config = dataclasses.replace(config, history_url=url)
    choice = choose(config, state)
    if not choice.url and Path(own_url(state).removeprefix("sqlite:///")).exists():
        # It was switched off since; what was written is still there to be read.
        choice = choice._replace(url=own_url(state))
    if not choice.url:
        raise UsageError(f"this node keeps no history: {choice.why}", hint=NOTHING_HINT)
    from blackroad.history.database import Database
    from blackroad.history.figures import Reader

    spool = spool_of(state)
    database = Database(choice.url)
    try:
        if not url:
            _catch_up(database, spool)
        _check_there(choice.url)
        if not database.ready():
            raise HistoryProblem(
                f"{database.address}: nothing was ever written there",
                hint="look at `blackroad events --name 'history.*'`, and wait for half a minute",
            )
        yield Reader(database)
    finally:
        database.close()


def _check_there(url: str) -> None:
    """Opened by name, a SQLite file that is missing would be made, and be empty."""
    if not url.startswith("sqlite:///"):
        return
    path = Path(url.removeprefix("sqlite:///").partition("?")[0])
    try:
        there = path.stat().st_size > 0
    except FileNotFoundError:
        there = False
    except OSError as error:
        raise HistoryProblem(
            f"{path}: {error.strerror}", hint="look as the user that the daemon runs as"
        ) from None
    if not there:
        raise HistoryProblem(
            f"{path}: there is no history yet",
            hint="it begins half a minute after the daemon's start",
        )


def _catch_up(database: object, spool: Path) -> None:
    """Store what waits, where no other process does; what cannot be stored now can wait on."""
    from blackroad.history.database import Database
    from blackroad.history.ingest import Ingest
    from blackroad.history.spool import reading, segments

    assert isinstance(database, Database)
    with contextlib.suppress(OSError, BlackroadError):
        if segments(spool):
            with reading(spool) as mine:
                if mine:
                    database.prepare()
                    Ingest(database, spool).run()
