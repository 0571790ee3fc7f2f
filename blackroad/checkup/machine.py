"""All that a doctor wants to know of one machine, as plain data.

Edge: reads files, asks the clock, and tries the disk and the servers that are configured.  It tells
no secret: whoever may ask a daemon gets this.  This file must not judge what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

import blackroad
from blackroad.capabilities import printable
from blackroad.checkup import servers
from blackroad.checkup.disk import disk_facts, flush_facts
from blackroad.config import Config
from blackroad.discovery.machine import Host, libc_name, memory_bytes, python_facts, sensors
from blackroad.errors import BlackroadError
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN
from blackroad.runtime.cgroups import delegated
from blackroad.store import identity, keyring

SCHEMA: Final = 1
PACKAGE: Final = "blackroad"
# What else matters where results have to be equal, or a server is spoken to.
ALSO: Final = ("scipy", "torch", "mpi4py", "redis", "psycopg", "SQLAlchemy", "textual",
               "prometheus_client", "opentelemetry-sdk")  # fmt: skip
# adjtimex(2)
STA_UNSYNC: Final = 0x0040
TIME_ERROR: Final = 5

_LEAST = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9.]*)")


class Wish(Struct, frozen=True):
    """What the facts are wanted of: one node's configuration, as far as it matters here."""

    name: str = ""
    config_file: str = ""
    state: str = ""
    runtime: str = ""
    cache: str = ""
    memory_bytes: int = 0
    slots: int = 0
    heartbeat_ms: int = 0
    lease_ms: int = 0
    redis_url: str = ""
    redis_mirror: bool = False
    history_url: str = ""
    secret_in_file: bool = False
    overridden: tuple[str, ...] = ()


def wish_of(config: Config, environ: Mapping[str, str] | None = None) -> Wish:
    """What is to be looked at for a node with this configuration, its directories among it."""
    from blackroad.config_keys import KEYS

    environ = os.environ if environ is None else environ
    secret = [key for key in KEYS.values() if key.secret]
    return Wish(
        config.name or "",
        str(config.source or ""),
        str(config.state_dir),
        str(config.runtime_dir),
        str(config.cache_dir),
        config.memory_bytes or 0,
        config.slots or 0,
        config.heartbeat_ms or 0,
        config.lease_ms,
        config.redis_url,
        bool(getattr(config, "redis_mirror", False)),
        str(getattr(config, "history_url", None) or ""),
        any(
            key.variable not in environ and _holds_password(str(getattr(config, key.attribute)))
            for key in secret
        ),
        tuple(key.variable for key in KEYS.values() if environ.get(key.variable, "").strip()),
    )


def _holds_password(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return True  # whatever it is, it is not for everybody


def facts(wish: Wish, host: Host | None = None) -> dict[str, Any]:
    """Gather everything.

    Cost  up to some seconds: a disk that is slow, and servers that do not answer (2 s each).
    """
    host = host or Host()
    began = time.monotonic()
    state = Path(wish.state)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "name": wish.name or os.uname().nodename,
        "user": os.geteuid(),
        "versions": versions(host),
        "packages": packages(),
        "unmet": unmet(),
        "config": config_facts(wish),
        "keys": key_facts(state),
        "directories": [
            directory_facts(key, Path(path))
            for key, path in (
                ("state_dir", wish.state),
                ("runtime_dir", wish.runtime),
                ("cache_dir", wish.cache),
            )
        ],
        "clock": clock_facts(),
        "disk": disk_facts(state, host),
        "memory": memory_facts(wish, host),
        "cgroup": cgroup_facts(host),
        "limits": limit_facts(),
        "devices": device_facts(host),
        "sensors": sensors(host),
        "flush": _flush(state),
        "redis": servers.redis_facts(wish.redis_url, wish.redis_mirror),
        "history": servers.history_facts(wish.history_url),
    }
    found["took_ms"] = round((time.monotonic() - began) * 1000)
    return found


def _is_closed(path: Path) -> bool:
    """May this user not look into that directory?  `directory_facts` tells whose it is."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK | os.X_OK)


def _flush(state: Path) -> dict[str, Any]:
    """How fast the disk flushes; nothing where this user has no way in."""
    if _is_closed(state):
        return {}
    return flush_facts(state) if state.is_dir() else {"problem": "it is not there"}


# --- programs -------------------------------------------------------------------------------------


def versions(host: Host) -> dict[str, Any]:
    """What runs here, from the kernel up to this program."""
    minor, full, implementation = python_facts()
    told = os.uname()
    return {
        "blackroad": blackroad.__version__,
        "protocol": [PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX],
        "python": minor,
        "python_full": full,
        "implementation": implementation,
        "os": host.os_name,
        "kernel": told.release,
        "arch": host.arch,
        "libc": libc_name(host),
        "model": host.model,
    }


def packages() -> dict[str, str]:
    """The installed ones among those that this program can use, with their versions."""
    names = [name for name, _, _ in _wanted()]
    found = {}
    for name in dict.fromkeys([PACKAGE, *names, *ALSO]):
        version = _installed(name)
        if version:
            found[name] = version
    return found


def unmet() -> list[dict[str, str]]:
    """Packages that are missing, or older than this program needs."""
    found: dict[str, dict[str, str]] = {}
    for name, least, extra in _wanted():
        version = _installed(name)
        if (not version and extra) or (version and _numbers(version) >= _numbers(least)):
            continue
        found[name] = {"package": name, "installed": version, "least": least}
    return list(found.values())


def _wanted() -> list[tuple[str, str, bool]]:
    """(package, least version, is it optional) of all that the installed program names."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        # Run from its sources: nobody says what it needs.
        return []
    rows = []
    for line in lines:
        needs, _, marker = line.partition(";")
        match = _LEAST.match(needs.strip())
        if match is not None and not {"dev", "test"} & set(re.findall(r"[a-z]+", marker)):
            rows.append((match[1], match[2], "extra" in marker))
    return rows


def _installed(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, OSError):
        return printable(importlib.metadata.version(name) or "", 64)
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    plain = version.partition("+")[0].split(".")
    numbers = [int(digits[0]) for part in plain if (digits := re.match(r"\d+", part))]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


# --- files ----------------------------------------------------------------------------------------


def config_facts(wish: Wish) -> dict[str, Any]:
    """The file that was read: who may read it, and whether it holds a secret."""
    told: dict[str, Any] = {
        "file": wish.config_file,
        "holds_secret": bool(wish.config_file) and wish.secret_in_file,
        "overridden": list(wish.overridden),
        "mode": "",
        "changed_ms": 0,
    }
    with contextlib.suppress(OSError):
        if wish.config_file:
            seen = os.stat(wish.config_file)
            told["mode"] = f"{seen.st_mode & 0o777:o}"
            told["changed_ms"] = seen.st_mtime_ns // 1_000_000
    return told


def key_facts(state: Path) -> dict[str, Any]:
    """Which cluster's keys are here, what they allow, and whether others can read them."""
    told: dict[str, Any] = {"closed": False, "problem": "", "hint": "", "open": []}
    if _is_closed(state):
        return told
    files = [state / identity.IDENTITY_FILE, *sorted((state / keyring.DIRECTORY).glob("*.json"))]
    for path in files:
        with contextlib.suppress(OSError):
            mode = path.stat().st_mode & 0o777
            if mode & keyring.OPEN_BITS:
                told["open"].append(f"{path} (mode {mode:o})")
    try:
        identity.read_keys(state)
        ring = keyring.Keyring(state)
        if not ring.load():
            return told
    except BlackroadError as error:
        return {**told, "problem": error.message, "hint": error.hint}
    role = ring.role
    told["closed"] = True
    told["cluster"] = printable(ring.name, 64)
    told["role"] = role.name.lower() if role is not None else "none"
    told["members"] = len(ring.members.members())
    told["admins"] = sum(one.role.name == "ADMIN" for one in ring.members.members())
    told["root_here"] = bool(ring.root_secret)
    return told


def directory_facts(key: str, path: Path) -> dict[str, Any]:
    """Who owns a directory, and whom it is open to."""
    told: dict[str, Any] = {"key": key, "path": str(path), "there": False, "problem": ""}
    try:
        seen = path.stat()
    except FileNotFoundError:
        return told
    except OSError as error:
        return {**told, "there": True, "problem": error.strerror or str(error)}
    return {
        **told,
        "there": True,
        "owner": seen.st_uid,
        "mode": f"{seen.st_mode & 0o777:o}",
        "writable": os.access(path, os.W_OK | os.X_OK),
    }


# --- the machine ----------------------------------------------------------------------------------


class _Timex(ctypes.Structure):
    """The beginning of struct timex of adjtimex(2), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_facts() -> dict[str, Any]:
    """The clock of people, and whether something keeps it right (None: the kernel does not say)."""
    told: dict[str, Any] = {"wall_ms": time.time_ns() // 1_000_000, "synchronised": None}
    with contextlib.suppress(OSError, AttributeError):
        timex = _Timex()
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
        if state >= 0:
            told["synchronised"] = state != TIME_ERROR and not timex.status & STA_UNSYNC
            told["off_at_most_ms"] = timex.maxerror // 1000
    return told


def memory_facts(wish: Wish, host: Host) -> dict[str, Any]:
    """Memory that there is, that is free, that may be used, and what is swapped to.

    Units  bytes.
    """
    lines = [line.split() for line in host.text("proc/meminfo").splitlines()]
    rows = {words[0].rstrip(":"): words[1] for words in lines if len(words) > 1}

    def row(name: str) -> int:
        return int(rows[name]) * 1024 if rows.get(name, "").isdigit() else 0

    swaps = [line.split()[0] for line in host.text("proc/swaps").splitlines()[1:] if line.split()]
    return {
        "total_bytes": row("MemTotal"),
        "available_bytes": row("MemAvailable"),
        "allowed_bytes": memory_bytes(host),
        "offered_bytes": wish.memory_bytes,
        "swap_total_bytes": row("SwapTotal"),
        "swap_free_bytes": row("SwapFree"),
        "swap_on_sd": any(swap.startswith("/dev/mmcblk") for swap in swaps),
        "swap_files": [swap for swap in swaps if not swap.startswith("/dev/")],
    }


def cgroup_facts(host: Host) -> dict[str, Any]:
    """Whether limits of memory can be set here, and whether tasks get groups of their own."""
    proc = host.root / "proc/self"
    controllers = ""
    version = 0
    for line in host.text("proc/self/cgroup").splitlines():
        names = line.split(":")[1] if line.count(":") >= 2 else ""
        if names and "memory" in names.split(","):
            version, controllers = 1, "memory"
    unified = host.text("sys/fs/cgroup/cgroup.controllers")
    if unified and not version:
        version, controllers = 2, unified
    switched_off = "memory" not in controllers.split() and any(
        line.split()[:1] == ["memory"] and line.split()[-1:] == ["0"]
        for line in host.text("proc/cgroups").splitlines()
    )
    return {
        "version": version,
        "memory": "memory" in controllers.split(),
        "switched_off": switched_off,
        "delegated": delegated(proc) is not None,
        "is_pi": host.is_pi,
    }


def limit_facts() -> dict[str, Any]:
    """How much of open files and processes this user may have; -1 where there is no end."""

    def shown(which: int) -> list[int]:
        return [-1 if one == resource.RLIM_INFINITY else one for one in resource.getrlimit(which)]

    return {"files": shown(resource.RLIMIT_NOFILE), "processes": shown(resource.RLIMIT_NPROC)}


def device_facts(host: Host) -> dict[str, Any]:
    """Which device files of GPUs this user may open."""
    nodes = host.render_nodes()
    names = [str(path) for path in nodes]
    return {
        "render": names,
        "closed": [str(path) for path in nodes if not os.access(path, os.R_OK | os.W_OK)],
    }
