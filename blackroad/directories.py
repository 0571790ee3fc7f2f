"""Where a daemon keeps what lasts, what dies with it, and what can be made again.

Nothing here knows a key of the configuration but by name, for messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from blackroad.errors import ConfigError, StateDirectoryProblem
from blackroad.limits import PATH_BYTES_MAX

SYSTEM_STATE: Final = Path("/var/lib/blackroad")
SYSTEM_RUNTIME: Final = Path("/run/blackroad")
SYSTEM_CACHE: Final = Path("/var/cache/blackroad")
CLIENT_SOCKET: Final = "client.sock"
OPEN_BITS: Final = 0o027


class Paths(NamedTuple):
    """The directories of one daemon, and the socket its clients speak to."""

    state: Path
    runtime: Path
    cache: Path
    client_socket: Path


def default_state(environ: Mapping[str, str]) -> Path:
    """Return the state directory of this user: systemd's, the machine's for root, else XDG's."""
    return (
        _from_systemd(environ, "STATE_DIRECTORY", SYSTEM_STATE)
        or xdg(environ, "XDG_STATE_HOME", ".local/state") / "blackroad"
    )


def default_cache(environ: Mapping[str, str]) -> Path:
    """Return the cache directory of this user, by the same rule."""
    return (
        _from_systemd(environ, "CACHE_DIRECTORY", SYSTEM_CACHE)
        or xdg(environ, "XDG_CACHE_HOME", ".cache") / "blackroad"
    )


def default_runtime(environ: Mapping[str, str]) -> Path:
    """Return the runtime directory of this user, the same with and without a login session."""
    given = _from_systemd(environ, "RUNTIME_DIRECTORY", SYSTEM_RUNTIME)
    if given is not None:
        return given
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return Path(environ["XDG_RUNTIME_DIR"]) / "blackroad"
    # A daemon started by cron has no XDG_RUNTIME_DIR while the shell that looks for it has one.
    usual = Path(f"/run/user/{os.geteuid()}")
    return usual / "blackroad" if usual.is_dir() else Path(f"/tmp/blackroad-{os.geteuid()}")


def xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """Return one of the user's base directories.

    Raises  ConfigError when neither the variable nor HOME tells where it is.
    """
    if environ.get(variable, "").startswith("/"):
        return Path(environ[variable])
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        raise ConfigError(
            f"no home directory is known for user {os.geteuid()}",
            hint="set HOME, or state_dir, runtime_dir and cache_dir",
        )
    return Path(home) / below_home


def _from_systemd(environ: Mapping[str, str], variable: str, system: Path) -> Path | None:
    # Another service that calls our client hands down directories of its own; only one that is
    # called like us is ours.
    given = Path(environ.get(variable, "").partition(":")[0])
    if given.is_absolute() and given.name == "blackroad":
        return given
    return system if os.geteuid() == 0 else None


def client_socket(runtime: Path) -> Path:
    """Return the path of the client socket.

    Raises  ConfigError when it is longer than Linux allows for a socket.
    """
    socket = runtime / CLIENT_SOCKET
    length = len(os.fsencode(socket))
    if length > PATH_BYTES_MAX:
        raise ConfigError(
            f"runtime_dir: the socket {socket} has a path of {length} bytes, and Linux allows "
            f"{PATH_BYTES_MAX}",
            hint="set runtime_dir (or BLACKROAD_RUNTIME_DIR) to a shorter path",
        )
    return socket


def make_private(directory: Path, key: str) -> None:
    """Make `directory` if it is missing, for this user alone.

    Raises  StateDirectoryProblem naming `key` when it cannot be made, belongs to somebody else,
            or lets others in.  A group that may only read was let in by the administrator.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        facts = directory.stat()
    except OSError as error:
        raise StateDirectoryProblem(
            f"{key}: cannot make {directory}: {error.strerror}",
            hint=f"make the directory writable for this user, or set {key}",
        ) from error
    if facts.st_uid != os.geteuid():
        raise StateDirectoryProblem(
            f"{key}: {directory} belongs to user {facts.st_uid}, and this is user {os.geteuid()}",
            hint=f"run as that user, give the directory away, or set {key}",
        )
    if facts.st_mode & OPEN_BITS:
        raise StateDirectoryProblem(
            f"{key}: {directory} is open to others (mode {facts.st_mode & 0o777:o})",
            hint=f"chmod 700 {directory}",
        )
