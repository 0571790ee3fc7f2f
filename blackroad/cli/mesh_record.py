"""What `blackroad up` remembers of the mesh it started: where each daemon lives, and which it is.

Edge: reads and writes small files and looks into /proc.  This file starts and ends nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad import config as configuration
from blackroad import directories
from blackroad.digest import blake2b
from blackroad.errors import ConfigError, StateDirectoryProblem

RECORD: Final = "mesh.json"
RUNTIME_FILE: Final = "daemon.json"
TAIL_BYTES: Final = 8 * 1024


class Home(NamedTuple):
    """The directories of this user's mesh: `state` for all of it, `runtime` of the first node."""

    state: Path
    runtime: Path

    @property
    def record(self) -> Path:
        return self.state / RECORD

    @property
    def cluster(self) -> str:
        """A name that no other user, machine or directory has: two meshes never meet."""
        words = f"{os.geteuid()} {os.uname().nodename} {self.state}"
        return f"mesh-{blake2b(words.encode(), digest_size=8).hexdigest()}"


class Place(NamedTuple):
    """One daemon of the mesh, running or not."""

    number: int
    home: Home

    @property
    def name(self) -> str:
        return f"mesh-{self.number}"

    @property
    def directory(self) -> Path:
        """Everything it keeps, its log and its configuration."""
        return self.home.state / str(self.number)

    @property
    def runtime(self) -> Path:
        """The first one is where every program looks for a daemon."""
        return self.home.runtime if self.number == 1 else self.home.runtime / self.name

    @property
    def config(self) -> Path:
        return self.directory / "blackroad.toml"

    @property
    def log(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def endpoint(self) -> str:
        return f"ipc://{directories.client_socket(self.runtime)}"

    def facts(self) -> dict[str, Any] | None:
        """What its daemon says of itself since it serves, or None."""
        try:
            told = json.loads((self.runtime / RUNTIME_FILE).read_text("utf-8"))
            return told if isinstance(told["pid"], int) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def pid(self) -> int:
        """The process that is this daemon and lives, or 0."""
        facts = self.facts()
        noted = _read_number(self.directory / "pid")
        for pid in dict.fromkeys((facts["pid"] if facts else 0, noted)):
            if pid > 0 and is_daemon(pid, self.config):
                return pid
        return 0

    def log_end(self, lines: int) -> list[str]:
        """The last lines that its daemon wrote."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]


def home(environ: Mapping[str, str] | None = None) -> Home:
    """Return where this user's mesh lives, whether there is one or not.

    Raises  ConfigError.
    """
    environ = os.environ if environ is None else environ
    # Asked only where things are; whether that may be listened on is the daemon's question.
    settings = configuration.load(environ=environ, keys_exist=lambda _config: True)
    state = settings.state_dir or directories.default_state(environ)
    runtime = settings.runtime_dir or directories.default_runtime(environ)
    return Home(state / "mesh", runtime)


def places(at: Home) -> list[Place]:
    """Return the daemons of the mesh that was started last and not ended; none without one.

    Raises  StateDirectoryProblem where the record cannot be read.
    """
    try:
        count = json.loads(at.record.read_text("utf-8"))["nodes"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateDirectoryProblem(
            f"{at.record}: cannot be read: {error.strerror}",
            hint="become the user who started the mesh",
        ) from None
    except (ValueError, KeyError, TypeError):
        count = None
    if not isinstance(count, int) or not 1 <= count <= 1024:
        raise StateDirectoryProblem(
            f"{at.record}: is damaged",
            hint=f"end the daemons below {at.state} by hand, and remove the file",
        )
    return [Place(number, at) for number in range(1, count + 1)]


def slots_of(at: Home) -> int | None:
    """Return the slots that were asked for when the mesh was started, None without such a wish."""
    try:
        slots = json.loads(at.record.read_text("utf-8")).get("slots")
    except (OSError, ValueError, AttributeError):
        return None
    return slots if isinstance(slots, int) else None


def remember(at: Home, nodes: int, slots: int | None = None) -> None:
    """Write down that a mesh of so many daemons is being started.

    Raises  StateDirectoryProblem.
    """
    directories.make_private(at.state, "state_dir")
    write_text(at.record, json.dumps({"nodes": nodes, "slots": slots, "cluster": at.cluster}))


def forget(at: Home) -> None:
    """Write down that there is no mesh any more; what its daemons kept stays."""
    for place in places(at):
        for name in (RUNTIME_FILE, directories.CLIENT_SOCKET):
            with contextlib.suppress(OSError):
                (place.runtime / name).unlink()
        with contextlib.suppress(OSError):
            (place.directory / "pid").unlink()
        if place.number > 1:
            shutil.rmtree(place.runtime, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        at.record.unlink()


def purge(at: Home) -> None:
    """Remove what the daemons of an ended mesh kept: journals, results, identities, logs."""
    shutil.rmtree(at.state, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all.

    Raises  StateDirectoryProblem.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        raise StateDirectoryProblem(
            f"{path}: cannot be written: {error.strerror}", hint="make room, or set state_dir"
        ) from None


def check_paths(found: list[Place]) -> None:
    """Refuse directories in which a socket could not be made.

    Raises  ConfigError naming the key to set.
    """
    for place in found:
        directories.client_socket(place.runtime)
        if not str(place.directory).isprintable():
            raise ConfigError(
                f"state_dir: {str(place.directory)!r} cannot be written into a configuration",
                hint="set state_dir to a path of printable letters",
            )


def is_daemon(pid: int, config: Path) -> bool:
    """Tell whether a process lives and is the daemon that was started with this configuration."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return False
    # The path is in no other process's command line; a number that came round again has another.
    return os.fsencode(config) in words and b"node" in words and state[:1] not in (["Z"], ["X"])


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0
