"""Which database a node writes its history to, if any, by what was configured and what is there.

Edge: looks at the table of mounts.  This file must not import anything heavy, and opens nothing.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from blackroad.errors import MissingPackage

if TYPE_CHECKING:
    from blackroad.config import Config

FOLDER: Final = "history"
FILE: Final = "history.db"
SPOOL: Final = "spool"
# On these a database that is written every few seconds does harm, or does not last.
UNFIT: Final = frozenset({"sd", "memory", "network"})
INSTALL: Final = "pip install 'blackroad[history]'"
INSTALL_POSTGRES: Final = "pip install 'blackroad[history,postgres]'"


class Choice(NamedTuple):
    """The address, "" for none, and why; `asked` where a person wants it in so many words."""

    url: str
    why: str
    asked: bool


def choose(config: Config, state: Path) -> Choice:
    """Find the database of this node.

    Raises  MissingPackage where one is asked for that needs a package which is not installed.
    """
    asked = config.history_url
    if asked == "off":
        return Choice("", "history_url is off", True)
    there = find_spec("sqlalchemy") is not None and find_spec("alembic") is not None
    if asked == "auto":
        if not there:
            return Choice("", f"SQLAlchemy is not installed ({INSTALL})", False)
        kind = storage_kind(state)
        if kind in UNFIT:
            return Choice("", f"the state directory is on a disk of the kind `{kind}`", False)
        return Choice(own_url(state), f"the state directory is on real storage ({kind})", False)
    if not there:
        raise MissingPackage("history_url needs SQLAlchemy and Alembic", hint=INSTALL)
    if asked.startswith("postgres"):
        if find_spec("psycopg") is None:
            raise MissingPackage("a history in PostgreSQL needs psycopg", hint=INSTALL_POSTGRES)
        return Choice("postgresql://" + asked.partition("://")[2], "history_url", True)
    return Choice(own_url(state) if asked == "sqlite" else asked, "history_url", True)


def own_url(state: Path) -> str:
    """The SQLite file in a state directory."""
    return f"sqlite:///{state / FOLDER / FILE}"


def spool_of(state: Path) -> Path:
    """Where records wait for the database."""
    return state / FOLDER / SPOOL


def storage_kind(state: Path) -> str:
    """One word for the disk that a directory, or what is there of its parents, is on."""
    from blackroad.checkup.disk import disk_facts

    while not os.path.lexists(state) and state != state.parent:
        state = state.parent
    return str(disk_facts(state).get("kind", "unknown"))
