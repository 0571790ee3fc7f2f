"""Whether the servers that a node is configured to use can be used from here.

Edge.  Asks, and writes nothing there.  No password leaves this file.  It must not know what is
kept on those servers.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from blackroad.capabilities import printable
from blackroad.discovery import redis_server

ANSWER_S: Final = 3
_DRIVER = re.compile(r"\+[a-z0-9]+(?=:)")


def redis_facts(url: str, mirror: bool) -> dict[str, Any]:
    """What the Redis server says, if one is configured."""
    if not url:
        return {"on": False, "mirror": mirror, "state": "", "problem": ""}
    found = redis_server.examine(url)
    return {
        "on": True,
        "mirror": mirror,
        "place": redis_server.place(url),
        **found._asdict(),
        "old": redis_server.is_old(found.product, found.version),
    }


def history_facts(url: str) -> dict[str, Any]:
    """What the database of the history says, if one is configured."""
    scheme = url.partition(":")[0].partition("+")[0]
    if not url or scheme in ("off", "auto", "none"):
        return {"on": False, "kind": "", "state": "", "problem": ""}
    if url == "sqlite":
        # In the state directory, which is looked at anyway.
        return {"on": True, "kind": "SQLite", "place": "state_dir", "state": "up", "problem": ""}
    if scheme == "sqlite":
        return {"on": True, **_sqlite(url)}
    if scheme in ("postgresql", "postgres"):
        return {"on": True, **_postgresql(url)}
    return {"on": True, "kind": printable(scheme, 32), "state": "unknown", "problem": ""}


def _sqlite(url: str) -> dict[str, Any]:
    path = Path(unquote(url.partition(":///")[2]).partition("?")[0] or ".")
    told = {"kind": "SQLite", "place": str(path), "state": "up", "problem": ""}
    if not path.parent.is_dir():
        return told | {"state": "refused", "problem": f"{path.parent} is no directory"}
    target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        return told | {"state": "denied", "problem": f"{target} is not writable for this user"}
    return told


def _postgresql(url: str) -> dict[str, Any]:
    where = "PostgreSQL"
    url = _quoted(url)
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        name = parts.path.lstrip("/")
        host = parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]
        where = f"PostgreSQL at {host}:{parts.port or 5432}/{name}"
    told: dict[str, Any] = {"kind": "PostgreSQL", "place": where, "state": "up", "problem": ""}
    try:
        import psycopg
    except ImportError as error:
        problem = f"{error}; `pip install 'blackroad[postgres]'`"
        return {**told, "state": "off", "problem": problem}
    try:
        plain = _DRIVER.sub("", url, count=1)
        with psycopg.connect(plain, connect_timeout=ANSWER_S, autocommit=True) as connection:
            cursor = connection.execute("SELECT pg_is_in_recovery()")
            recovering = cursor.fetchone()
            number = connection.info.server_version
            told["version"] = f"{number // 10_000}.{number % 10_000}"
            if recovering is not None and recovering[0]:
                told |= {"state": "read-only", "problem": "it is a standby, and takes nothing"}
    except psycopg.Error as error:
        return {**told, "state": _word_for(str(error)), "problem": _without(url, str(error))}
    return told


def _quoted(url: str) -> str:
    """The address with user and password as libpq wants them: the history takes them plain, too."""
    scheme, _, rest = url.partition("://")
    before, mark, query = rest.partition("?")
    login, at, place = before.rpartition("@")
    if not at:
        return url
    user, colon, password = (quote(unquote(one), safe="") for one in login.partition(":"))
    return f"{scheme}://{user}{colon and ':'}{password}@{place}{mark}{query}"


def _word_for(text: str) -> str:
    """One word for why there is no connection; the server's own words are in its language."""
    low = text.lower()
    if "timeout" in low or "timed out" in low:
        return "slow"
    if any(word in low for word in ("password", "authentication", "role", "permission")):
        return "denied"
    return "refused" if "does not exist" in low else "down"


def _without(url: str, text: str) -> str:
    """The text on one line, and no password in it."""
    with contextlib.suppress(ValueError):
        secret = urlsplit(url).password or ""
        for one in (secret, unquote(secret)):
            if one:
                text = text.replace(one, "***")
    return printable(text, 300)
