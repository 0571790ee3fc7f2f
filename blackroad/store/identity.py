"""Who this node is: its key pair, its incarnation counter, and the lock on its state directory.

Edge.  The node id is the hash of the public key; the counter is raised and flushed at each
start, before anything is told to anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from blackroad import chance
from blackroad.errors import AlreadyRunning, StateDirectoryProblem
from blackroad.ids import inc_counter, incarnation, node_id_from_key

IDENTITY_FILE = "identity.json"
COUNTER_FILE = "incarnation"
DRAIN_FILE = "draining"
LOCK_FILE = "lock"
KEY_BYTES = 32


class Life(NamedTuple):
    """One start of one node."""

    node: bytes
    inc: int
    public_key: bytes

    @property
    def first(self) -> bool:
        """Has this node never lived before?"""
        return inc_counter(self.inc) == 1


class StateDirectory:
    """A node's state directory, locked for as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def open(self) -> None:
        """Make the directory if it is not there, and lock it.

        Raises  StateDirectoryProblem where it cannot be used; AlreadyRunning where another daemon
                holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        self._lock = fd

    def _take(self, fd: int) -> None:
        """Lock the lock file, and write into it who has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip()
            raise AlreadyRunning(
                f"another daemon{f' (pid {holder})' if holder else ''} uses the state directory "
                f"{self.path}",
                hint="use that one, stop it first, or give this one its own `state_dir`",
            ) from None
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StateDirectoryProblem:
        return StateDirectoryProblem(
            f"cannot use the state directory {self.path}: {LOCK_FILE}: {error.strerror}",
            hint="give this user write access to it and free some space, or set `state_dir` to "
            "another one",
        )

    def begin_life(self, above: int = 0) -> Life:
        """Read or make the key pair, raise the incarnation counter, and flush it.

        `above` is the highest counter of this node that anybody knows, if that is known.

        Raises  StateDirectoryProblem where either file is unreadable or damaged.
        """
        # In this order: a first start that is cut short leaves a counter without a key, which is
        # harmless, while a key without its counter is a node that forgot its age.
        counter = self._raise_counter(above)
        _, public_key = read_keys(self.path) or _new_keys(self.path)
        return Life(
            node_id_from_key(public_key), incarnation(counter, chance.randbits(32)), public_key
        )

    def drains(self) -> bool:
        """Was this node ordered to drain, in this life or an earlier one?"""
        return (self.path / DRAIN_FILE).exists()

    def keep_drain(self, on: bool) -> None:
        """Remember beyond this life that the node drains, or that it takes work again.

        Raises  StateDirectoryProblem where the disk refuses.
        """
        path = self.path / DRAIN_FILE
        if on:
            write_flushed(path, b"by order; `blackroad resume` ends it\n")
            return
        try:
            path.unlink(missing_ok=True)
            flush_directory(self.path)
        except OSError as error:
            raise StateDirectoryProblem(
                f"cannot remove {path}: {error.strerror}",
                hint="check the disk: is it mounted read-only, or failing?",
            ) from None

    def close(self) -> None:
        """Let another daemon have the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- files ------------------------------------------------------------------------------------

    def _raise_counter(self, above: int) -> int:
        path = self.path / COUNTER_FILE
        try:
            before = int(path.read_text("ascii").strip())
            counter = max(before, above) + 1
            if before < 0 or counter >= 2**31:
                raise ValueError(f"{before} is out of range")
        except FileNotFoundError as error:
            if (self.path / IDENTITY_FILE).exists():
                # Counting from one again, its peers would take it for its own past.
                raise self._counter_problem(path, error) from None
            counter = above + 1
        except (OSError, ValueError) as error:
            raise self._counter_problem(path, error) from None
        write_flushed(path, f"{counter}\n".encode("ascii"))
        return counter

    @staticmethod
    def _counter_problem(path: Path, error: Exception) -> StateDirectoryProblem:
        return StateDirectoryProblem(
            f"the incarnation counter {path} cannot be read: {error}",
            hint="write a number into it that is higher than any before, for instance 100000",
        )


def read_keys(state: Path) -> tuple[bytes, bytes] | None:
    """Read the node's X25519 pair, as CURVE uses it: (secret, public); None where it has none yet.

    Raises  StateDirectoryProblem where the file is unreadable or damaged.
    """
    path = state / IDENTITY_FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_text("ascii"))
        secret = bytes.fromhex(stored["secret_key"])
        public = bytes.fromhex(stored["public_key"])
        if len(secret) != KEY_BYTES or len(public) != KEY_BYTES:
            raise ValueError(f"keys of {len(secret)} and {len(public)} bytes")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateDirectoryProblem(
            f"the node's identity {path} cannot be read: {error}",
            hint="restore the file from a backup; removing it makes this a new node",
        ) from None
    return secret, public


def ensure_keys(state: Path) -> tuple[bytes, bytes]:
    """Read the node's key pair, or make it before the first life of the node: (secret, public).

    Raises  StateDirectoryProblem.
    """
    found = read_keys(state)
    if found is not None:
        return found
    if not (state / COUNTER_FILE).exists():
        # In the order of `begin_life`, and for its reason.
        write_flushed(state / COUNTER_FILE, b"0\n")
    return _new_keys(state)


def write_keys(state: Path, secret: bytes, public: bytes) -> None:
    """Make this another node: its incarnations go on counting where they were.

    Raises  StateDirectoryProblem.
    """
    text = json.dumps({"public_key": public.hex(), "secret_key": secret.hex()})
    write_flushed(state / IDENTITY_FILE, text.encode("ascii"))


def _new_keys(state: Path) -> tuple[bytes, bytes]:
    from blackroad.bus.sockets import key_pair

    secret, public = key_pair()
    write_keys(state, secret, public)
    return secret, public


def write_flushed(path: Path, data: bytes) -> None:
    """Replace a file so that after a power cut it holds the old bytes or the new ones.

    Raises  StateDirectoryProblem.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                # Root may prepare the directory of a daemon that runs as somebody else.
                owner = path.parent.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateDirectoryProblem(
            f"cannot write {path}: {error.strerror}",
            hint="check the disk: is it full, mounted read-only, or failing?",
        ) from None


def flush_directory(path: Path) -> None:
    """Put on disk which files a directory holds."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
