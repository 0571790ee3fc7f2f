"""A Redis server: how it is connected, what its errors mean, and what it says of itself.

Edge.  The only file that imports redis; it is used in child processes, for a server may hang.  This
file must not know what is kept there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from blackroad.capabilities import printable
from blackroad.errors import ConfigError

ANSWER_S: Final = 2.0
UP: Final = "up"
# Words for a server that lives but takes nothing; it may still be read.
TAKES_NOTHING: Final = frozenset({"read-only", "denied", "refused", "full"})
# Older ones have holes that one command of anybody with access goes through (CVE-2025-49844,
# CVE-2026-23479), unless a distribution has repaired them.
SAFE_REDIS: Final = (8, 6, 3)
SAFE_VALKEY: Final = {(7, 2): 11, (8, 0): 6, (8, 1): 4}


class ServerFacts(NamedTuple):
    """What was found: "up" or one word for what is wrong, and that in some more words."""

    state: str
    problem: str = ""
    product: str = ""
    version: str = ""
    read_only: bool = False
    used_bytes: int = 0
    limit_bytes: int = 0
    policy: str = ""


def check_url(url: str) -> None:
    """Refuse a server that anybody on the network could write to.

    Raises  ConfigError.
    """
    try:
        parts = urlsplit(url)
        host, password = parts.hostname or "", parts.password
        _ = parts.port
    except ValueError:
        raise ConfigError(
            "redis_url: this is no address of a Redis server",
            hint='write it like "rediss://user:password@host:6379/0"',
        ) from None
    if parts.scheme in ("rediss", "unix") or password or _is_loopback(host):
        return
    raise ConfigError(
        f"redis_url: the server on {host or 'no host'} has no password, so anybody on the network "
        "could tell this node where its peers are",
        hint='give it one (requirepass or an ACL) and write "redis://:PASSWORD@host:6379/0", or '
        "use rediss://",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def place(url: str) -> str:
    """Name the server without its password."""
    if not _is_whole(url):
        return "the server of redis_url"
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"Redis at {parts.path}"
    return f"Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"


def _is_whole(url: str) -> bool:
    """Whether the host is where it seems to be: a / or # in a password ends it early."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return "@" not in parts.path + parts.query + parts.fragment


def missing() -> str:
    """Say what is to be installed, "" where all is there."""
    try:
        import redis  # noqa: F401
    except ImportError as error:
        return f"{error}; `pip install 'blackroad[redis]'`, or leave redis_url out"
    return ""


def connect(url: str, answer_s: float = ANSWER_S) -> Any:
    """Make a client that never tries twice and waits no longer than that; asks nothing yet."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        # Whoever calls knows when to try again.
        retry=Retry(NoBackoff(), 0),
        socket_timeout=answer_s,
        socket_connect_timeout=answer_s,
        client_name="blackroad",
    )


def judged(error: Exception) -> tuple[str, str]:
    """Return in one word and in some what is wrong with the server."""
    import redis

    text = printable(str(error) or type(error).__name__, 300)
    exceptions = redis.exceptions
    kinds: tuple[tuple[type[Exception], str], ...] = (
        (exceptions.TimeoutError, "slow"),
        (exceptions.ReadOnlyError, "read-only"),
        (exceptions.AuthenticationError, "denied"),
        (exceptions.NoPermissionError, "denied"),
        (exceptions.BusyLoadingError, "loading"),
        (exceptions.OutOfMemoryError, "full"),
        (exceptions.ConnectionError, "down"),
        (exceptions.ResponseError, "refused"),
        (OSError, "down"),
    )
    for kind, word in kinds:
        if isinstance(error, kind):
            return word, text
    return "broken", f"{type(error).__name__}: {text}"


def examine(url: str) -> ServerFacts:
    """Ask a server whether it takes what this node would write, and what it is; writes nothing."""
    lacks = missing()
    if lacks:
        return ServerFacts("off", lacks)
    if not _is_whole(url):
        return ServerFacts(
            "broken",
            "redis_url is no address of a server: within a password write / as %2F, # as %23, "
            "@ as %40",
        )
    try:
        check_url(url)
        server = connect(url)
    except ConfigError as error:
        return ServerFacts("open", error.message)
    except (ValueError, OSError) as error:
        return ServerFacts("broken", printable(str(error), 300))
    try:
        server.ping()
        return _told(server)
    except Exception as error:
        # Whatever the server or its library came up with is what is to be told.
        return ServerFacts(*judged(error))
    finally:
        with contextlib.suppress(Exception):
            server.close()


def _told(server: Any) -> ServerFacts:
    """Read what a server that answers says of itself; a strict ACL may forbid that."""
    try:
        info: dict[str, Any] = server.info()
    except Exception as error:
        word, text = judged(error)
        return ServerFacts(UP) if word == "denied" else ServerFacts(word, text)
    valkey = str(info.get("valkey_version", ""))
    read_only = info.get("role") == "slave" and bool(int(info.get("slave_read_only", 1)))
    return ServerFacts(
        "read-only" if read_only else UP,
        "it is a replica, and takes nothing" if read_only else "",
        "Valkey" if valkey else "Redis",
        printable(valkey or str(info.get("redis_version", "")), 32),
        read_only,
        int(info.get("used_memory", 0)),
        int(info.get("maxmemory", 0)),
        printable(str(info.get("maxmemory_policy", "")), 32),
    )


def is_old(product: str, version: str) -> bool:
    """May this version have a hole that one command of anybody with access goes through?"""
    numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:3])
    if len(numbers) < 3:
        return False
    if product != "Valkey":
        return numbers < SAFE_REDIS
    branch, patch = (numbers[0], numbers[1]), numbers[2]
    return patch < SAFE_VALKEY[branch] if branch in SAFE_VALKEY else branch < max(SAFE_VALKEY)
