"""A door with real sockets in a thread, and the keys of somebody who knocks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from blackroad.bus import codec, keys
from blackroad.bus import messages as m
from blackroad.bus.door import Door
from blackroad.bus.guard import Guard
from blackroad.bus.issuing import Issuer
from blackroad.bus.members import Invite, MemberList, Record, Role
from blackroad.bus.sockets import Bus, Poller, bind, drain_door, key_pair, send
from blackroad.bus.tokens import InviteText
from blackroad.errors import RemoteProtocolError
from tests.unit.cluster_words import ROOT_KEY, by, invite, made, own

SECRET = b"s" * 16
MESH_PLACE = "tcp://127.0.0.1:7701"


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def boot_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class DoorThread:
    """The door of an admin `a`, on loopback; `silent` says nothing to the first that knock."""

    def __init__(self, *records: Record, root: bytes = ROOT_KEY, silent: int = 0) -> None:
        self.members = MemberList(ROOT_KEY)
        self.members.merge([made("a", role=Role.ADMIN), *records], wall_ms())
        self.secret, self.public = key_pair()
        self.heard: list[m.DoorMessage] = []
        self.silent = silent
        self.wall_off_ms = 0
        self.root = root
        self.door = Door(
            Issuer(own("a"), self.members),
            lambda record: self.members.merge([record], wall_ms()) and None,
            (self.public, self.secret),
            "home",
            lambda: (MESH_PLACE,),
            pending_joins=True,
        )
        self._bus = Bus(own("a"))
        self._guard = Guard(self._bus, own("a").curve_public, self.members, boot_ms, wall_ms)
        self._socket = self._bus.door(self.secret)
        self.port = bind(self._socket, "127.0.0.1", 0, "join_port")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = Poller()
        poller.watch(self._socket)
        poller.watch(self._guard.judge)
        while not self._ending.is_set():
            poller.wait(20)
            self._guard.serve()
            for key, frames, address in drain_door(self._socket):
                try:
                    [said], _ = codec.DOOR.decode(frames[2])
                except (RemoteProtocolError, ValueError):
                    continue
                self.heard.append(said)
                if len(self.heard) <= self.silent:
                    continue
                now = wall_ms() + self.wall_off_ms
                answer = self.door.handle(said, key, address, boot_ms(), now)
                body = codec.frame_of((codec.encode(answer),))
                send(self._socket, (frames[0], codec.encode_header(0, 0), body))
        self._bus.close()

    def token(self, *places: str, ident: str = "i", secret: bytes = SECRET) -> InviteText:
        """A token that leads here, or to these places."""
        there = places or (self.endpoint,)
        cluster = keys.fingerprint(ROOT_KEY)
        return InviteText(cluster, self.public, ident.encode().ljust(8, b"."), secret, there)

    def close(self) -> None:
        self._ending.set()
        self._thread.join(20)


def lasting(ident: str = "i", **more: object) -> Record:
    """An invite that `a` made and that counts for an hour of the real clock."""
    given: dict[str, object] = {"expires_ms": wall_ms() + 3_600_000, "uses": 100, **more}
    made_: Invite = invite(ident, SECRET, **given)
    return by("a", made_)


def state(path: Path, name: str = "n") -> Path:
    """An empty state directory."""
    there = path / name
    there.mkdir(mode=0o700)
    return there
