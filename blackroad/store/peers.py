"""Addresses of peers, and the lives they were in, remembered beyond this daemon's own life.

Edge.  Written when the membership changed and not else; never flushed, for a lost or damaged file
costs nothing but the reminder.  This file must not know what is done with it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct

FILE = "peers.json"
SCHEMA = 1
REMEMBERED_MAX = 256
BYTES_MAX = 1024 * 1024


class Remembered(Struct, frozen=True):
    """One peer: its id, its newest life, how far its journal was, where it listened."""

    node: bytes
    inc: int
    mark: int
    endpoints: tuple[str, ...]


class _File(Struct, frozen=True):
    schema: int
    peers: tuple[Remembered, ...]


class Peers:
    """The file in the state directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.known: dict[bytes, Remembered] = {}
        self._written = b""

    def load(self) -> bool:
        """Read what an earlier life left; return False where it left something unreadable."""
        try:
            with self.path.open("rb") as file:
                found = file.read(BYTES_MAX)
            told = msgspec.json.decode(found, type=_File)
            if told.schema != SCHEMA:
                raise ValueError(f"schema {told.schema}")
        except FileNotFoundError:
            return True
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
            return False
        self.known = {one.node: one for one in told.peers[-REMEMBERED_MAX:]}
        self._written = found
        return True

    def learn(self, peer: Remembered) -> None:
        """Take the newest of one peer; who was learnt of last is kept longest."""
        self.known.pop(peer.node, None)
        self.known[peer.node] = peer
        while len(self.known) > REMEMBERED_MAX:
            del self.known[next(iter(self.known))]

    def write(self) -> bool:
        """Write it down if it says something new; return False where the disk refuses."""
        told = msgspec.json.encode(_File(SCHEMA, tuple(self.known.values())))
        if told == self._written:
            return True
        temporary = self.path.with_suffix(".new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(told)
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return False
        self._written = told
        return True
