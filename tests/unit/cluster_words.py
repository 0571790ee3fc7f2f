"""Members of a cluster that tests invent: fixed keys, short names, signed records."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from blackroad.bus import keys
from blackroad.bus.members import Invite, Member, Record, Role, signed
from blackroad.ids import node_id_from_key

WALL_MS = 1_900_000_000_000
HOUR_MS = 3_600_000


class Pair(NamedTuple):
    """A signing pair."""

    secret: bytes
    public: bytes


def pair(name: str) -> Pair:
    """The signing pair that belongs to a name."""
    secret = hashlib.blake2b(name.encode(), digest_size=32, person=b"sign").digest()
    return Pair(secret, keys.signing_public(secret))


def curve_secret(name: str) -> bytes:
    """The CURVE secret that belongs to a name."""
    return hashlib.blake2b(name.encode(), digest_size=32, person=b"curve").digest()


ROOT = pair("root")
ROOT_KEY = ROOT.public


def own(name: str) -> keys.NodeKeys:
    """All keys of the node with this name."""
    secret = curve_secret(name)
    public = keys.curve_public(secret)
    return keys.NodeKeys(node_id_from_key(public), secret, public, *pair(name))


def member(name: str, role: Role = Role.NODE, **more: Any) -> Member:
    """A member of this name with its own fixed keys."""
    node = own(name)
    given: dict[str, Any] = {"serial": 1, "issued_ms": WALL_MS, **more}
    return Member(node.node, node.curve_public, node.sign_public, role, name, **given)


def invite(name: str = "i", secret: bytes = b"s" * 16, **more: Any) -> Invite:
    """An invite whose id begins with this name."""
    given: dict[str, Any] = {"expires_ms": WALL_MS + HOUR_MS, "serial": 1, **more}
    role, uses = given.pop("role", Role.NODE), given.pop("uses", 1)
    hashed = keys.secret_hash(secret)
    return Invite(name.encode().ljust(8, b"."), hashed, role, uses, **given)


def by(signer: str, what: Member | Invite, root: bytes = ROOT_KEY) -> Record:
    """The record that the one of this name signs; `root` is the root."""
    return signed(what, root, *pair(signer))


def made(name: str, signer: str = "root", role: Role = Role.NODE, **more: Any) -> Record:
    """A member's record."""
    return by(signer, member(name, role, **more))


def gone(name: str, signer: str, role: Role = Role.NODE) -> Record:
    """The record that revokes a member."""
    return made(name, signer, role, serial=2, revoked=True)
