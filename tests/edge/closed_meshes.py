"""Real daemons of one closed cluster on loopback, their keys made without the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blackroad.bus.members import MemberList, Role
from blackroad.bus.sockets import key_pair
from blackroad.client import Client
from blackroad.store.keyring import Keyring
from tests.edge.closed_nets import Shelf
from tests.edge.meshes import Daemon, Mesh

OPEN = {"BLACKROAD_JOIN_PORT": "0", "BLACKROAD_LISTEN": "127.0.0.1"}


class ClosedMesh:
    """A mesh whose daemons have keys of one cluster, and other machines that have some as well."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.shelf = Shelf()
        self.rings: dict[str, Keyring] = {}
        self._door = (*reversed(key_pair()), 1)

    def admit(self, name: str, role: Role = Role.NODE) -> Keyring:
        """Make a member with a state directory of its own."""
        ring = Keyring(self.state(name))
        ring.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ring.locked():
            own = ring.prepare()
            self.shelf.sign(own, role, name=name)
        self.rings[name] = ring
        return ring

    def establish(self) -> None:
        """Write down, for everybody, who is a member."""
        for ring in self.rings.values():
            one = MemberList(self.shelf.root_public)
            one.merge(self.shelf.records, 1)
            with ring.locked():
                public, secret, serial = self._door
                admin = one.signs(ring.own.sign_public)
                ring.establish("shelf", one, (public, secret if admin else b"", serial), ())

    def state(self, name: str) -> Path:
        """Where that member keeps its keys."""
        return self.mesh.base / f"state-{name}"

    def start(self, name: str, **settings: str) -> Daemon:
        """Start the daemon of a member."""
        state = {"BLACKROAD_STATE_DIR": str(self.state(name))}
        return self.mesh.add(name, **{**OPEN, **state, **settings})

    @contextmanager
    def client(self, there: Daemon, who: str) -> Iterator[Client]:
        """A program on the machine of `who` that reaches a daemon over TCP."""
        before = dict(os.environ)
        os.environ["BLACKROAD_STATE_DIR"] = str(self.state(who))
        try:
            one = Client(there.facts()["endpoints"][0], connect_timeout=10)
        finally:
            os.environ.clear()
            os.environ.update(before)
        with one:
            yield one
