"""What a doctor sees on its own machine, with a daemon or without one.

Edge: reads the configuration, looks at sockets and ports, asks the service manager.  This file
must not know other machines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad import directories
from blackroad.cli.doctor_checks import NOTE, PROBLEM, Finding
from blackroad.errors import BlackroadError

if TYPE_CHECKING:
    from blackroad.config import Config
    from blackroad.directories import Paths

UNIT: Final = "blackroad-node"
ANSWER_S: Final = 5


class Here(NamedTuple):
    """The configuration that counts for this user, and where its daemon keeps its things."""

    config: Config | None
    paths: Paths | None
    error: BlackroadError | None


def look() -> Here:
    """Read the configuration; nothing is made that is not there."""
    from blackroad import config as configuration
    from blackroad.store import keyring

    def keys_exist(config: Config) -> bool:
        try:
            return keyring.exists(config.state_dir or directories.default_state(os.environ))
        except PermissionError:
            # Somebody else's: a service has keys more often than not.
            return True

    try:
        config = configuration.resolved(
            configuration.load(keys_exist=keys_exist), keys_exist=keys_exist
        )
        runtime = config.runtime_dir or directories.default_runtime(os.environ)
        paths = directories.Paths(
            config.state_dir or directories.default_state(os.environ),
            runtime,
            config.cache_dir or directories.default_cache(os.environ),
            directories.client_socket(runtime),
        )
    except BlackroadError as error:
        return Here(None, None, error)
    return Here(config, paths, None)


def facts(here: Here) -> dict[str, Any] | None:
    """The facts of this machine as this user sees them, where no daemon tells its own."""
    if here.config is None:
        return None
    from blackroad.checkup import machine

    return machine.facts(machine.wish_of(here.config))


def findings(here: Here, problem: BlackroadError | None) -> list[Finding]:
    """What is wrong here; `problem` says why no daemon could be asked, None where one answers."""
    found: list[Finding] = []
    if here.error is not None:
        found.append(Finding("configuration", PROBLEM, here.error.message, _hints(here.error)))
    if problem is None:
        return found
    if here.error is None or type(problem) is not type(here.error):
        found.append(Finding("daemon", PROBLEM, problem.message, _hints(problem)))
    found += _service()
    if here.paths is not None and here.config is not None:
        found += _socket(here.paths)
        found += _ports(here.config)
    return found


def _hints(error: BlackroadError) -> tuple[str, ...]:
    return (error.hint,) if error.hint else ()


# --- the service ----------------------------------------------------------------------------------


def _service() -> list[Finding]:
    """What the service manager says of the unit, where there is one."""
    state = service_state()
    if state in ("", "active", "inactive"):
        return []
    text = f"the service {UNIT} is {state}"
    do = f"`journalctl -u {UNIT} -n 50` tells why; `systemctl restart {UNIT}` tries again"
    return [Finding("service", PROBLEM, text, (do,))]


def service_state() -> str:
    """One word of systemd for the unit; "" where there is no such unit."""
    told = command("systemctl", "show", UNIT, "--property=LoadState,ActiveState")
    words = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    return words.get("ActiveState", "") if words.get("LoadState") == "loaded" else ""


def command(*words: str, bytes_max: int = 4 * 1024 * 1024) -> str:
    """What a program of the system prints, bounded; "" where it cannot be run."""
    if shutil.which(words[0]) is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False
        )
        return done.stdout[-bytes_max:].decode("utf-8", "replace")
    return ""


# --- sockets and ports ----------------------------------------------------------------------------


def _socket(paths: Paths) -> list[Finding]:
    path = paths.client_socket
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return []
    except OSError as error:
        text = f"the socket {path} cannot be looked at: {error.strerror}"
        do = "it is for the daemon's user: run this as that user, or as root"
        return [Finding("socket", PROBLEM, text, (do,))]
    if not stat.S_ISSOCK(seen.st_mode):
        text = f"{path} is no socket, so no daemon can listen there"
        return [Finding("socket", PROBLEM, text, (f"rm {path}",))]
    if not os.access(path, os.R_OK | os.W_OK):
        text = f"the socket {path} belongs to another user ({seen.st_uid})"
        do = "run this as that user or as root"
        return [Finding("socket", PROBLEM, text, (do,))]
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as one:
        one.settimeout(ANSWER_S)
        try:
            one.connect(str(path))
        except ConnectionRefusedError:
            text = f"the socket {path} is left from a daemon that was killed"
            return [Finding("socket", NOTE, text, ("nothing: the next start takes it over",))]
        except OSError as error:
            text = f"the socket {path} does not take a connection: {error.strerror or error}"
            do = "the daemon may hang: `blackroad` has no way in; restart it"
            return [Finding("socket", PROBLEM, text, (do,))]
    text = f"a daemon listens at {path}, and does not answer"
    return [Finding("socket", PROBLEM, text, ("it may hang or be stopped: restart it",))]


def _ports(config: Config) -> list[Finding]:
    """Which of its ports a daemon could not have, were it started now."""
    found = []
    for key in ("port", "telemetry_port", "bulk_port"):
        number = int(getattr(config, key))
        problem = _taken(config.listen or "127.0.0.1", number) if number else ""
        if problem:
            holder = _holder(number)
            text = f"port {number} (`{key}`): {problem}{f' by {holder}' if holder else ''}"
            do = f"end that program, or set `{key}` to another number (0: any free one)"
            found.append(Finding("port", PROBLEM, text, (do,)))
    return found


def _taken(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "is in use"
        return f"cannot be bound at {host}: {error.strerror}"
    return ""


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
                return f"{psutil.Process(one.pid).name()} (pid {one.pid})" if one.pid else ""
    return ""
