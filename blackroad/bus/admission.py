"""What is said about who belongs to a cluster: signed records, their gossip, and the door.

Source  docs/protocol.md, "Joining".  Decoding validates, as in `messages.py`, which passes these
kinds on.  This file knows no key but as bytes, and judges no signature.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from blackroad.bus.parts import Message, Part
from blackroad.ids import U32, U63, NodeId

RECORD_BYTES_MAX: Final = 1024
MEMBERS_PAGE_MAX: Final = 128
DOOR_RECORDS_MAX: Final = 12
DOOR_ENDPOINTS_MAX: Final = 8
INVITE_BYTES: Final = 8
SECRET_BYTES: Final = 16
NONCE_BYTES: Final = 16

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
MembersDigest = Annotated[bytes, Meta(min_length=16, max_length=16)]
NodeName = Annotated[str, Meta(max_length=64)]
WallMs = U63


def _whole_or_absent(name: str, value: bytes, whole: int) -> None:
    if value and len(value) != whole:
        raise ValueError(f"{name}: {len(value)} bytes, must be {whole} or none")


class Role(IntEnum):
    """What a key may do; each role may do what the lower ones may."""

    VIEW = 1
    SUBMIT = 2
    NODE = 3
    ADMIN = 4


class Member(Part, frozen=True, array_like=True, gc=False):
    """One key of the cluster: whose it is and what it may do.

    Units  `issued_ms` and `expires_ms` are wall clock; 0 means that it does not expire.

    `invite` is the token it came by, `replaces` the node whose key this one follows; both may be
    empty.  A key is revoked for good.
    """

    node: NodeId
    key: Key
    sign_key: Key
    role: Role
    name: NodeName
    serial: U32
    issued_ms: WallMs
    expires_ms: WallMs = 0
    revoked: bool = False
    invite: Annotated[bytes, Meta(max_length=INVITE_BYTES)] = b""
    replaces: Annotated[bytes, Meta(max_length=16)] = b""

    def __post_init__(self) -> None:
        _whole_or_absent("invite", self.invite, INVITE_BYTES)
        _whole_or_absent("replaces", self.replaces, 16)

    def expired(self, wall_ms: int) -> bool:
        """Is its time over?"""
        return 0 < self.expires_ms <= wall_ms


class Invite(Part, frozen=True, array_like=True, gc=False):
    """A token, as the cluster remembers it: the secret only as its hash.

    Units  `expires_ms` is wall clock; `member_ms` is how long a member lives who came by it, 0
           for ever.
    """

    id: Annotated[bytes, Meta(min_length=INVITE_BYTES, max_length=INVITE_BYTES)]
    secret_hash: Key
    role: Role
    uses: Annotated[int, Meta(ge=1, le=4096)]
    expires_ms: WallMs
    serial: U32
    revoked: bool = False
    member_ms: WallMs = 0


class Record(Part, frozen=True, array_like=True, gc=False):
    """A Member (kind 1) or an Invite (kind 2), encoded and signed by an admin or the root."""

    kind: Annotated[int, Meta(ge=0, le=255)]
    body: Annotated[bytes, Meta(max_length=RECORD_BYTES_MAX)]
    signer: Key
    signature: Signature


# --- between members ----------------------------------------------------------------------------


class Members(Message, frozen=True, array_like=True, gc=False, tag=0x08):
    """Any -> any: records of the member list, and the digest of the sender's whole list."""

    digest: MembersDigest
    records: Annotated[tuple[Record, ...], Meta(max_length=MEMBERS_PAGE_MAX)] = ()


class AskMembers(Message, frozen=True, array_like=True, gc=False, tag=0x09):
    """Any -> any: my list has this digest; tell me yours where it differs."""

    digest: MembersDigest


class DoorKey(Message, frozen=True, array_like=True, gc=False, tag=0x0C):
    """Admin -> admin: the secret of the door, the newest wins."""

    serial: U63
    secret: Key

    def __repr__(self) -> str:
        """Without the secret: logs and tracebacks show this."""
        return f"DoorKey({self.serial})"


class Rotate(Message, frozen=True, array_like=True, gc=False, tag=0x0D):
    """Node -> admin, over a link that its old key opened: these are my next keys.

    `proof` signs them, and the old node's id, with the next signing key.
    """

    key: Key
    sign_key: Key
    proof: Signature


# --- at the door --------------------------------------------------------------------------------


class Join(Message, frozen=True, array_like=True, gc=False, tag=0x60):
    """Joiner -> door: let me in, by this token, or without one after somebody approved.

    The CURVE key is that of the connection; `proof` signs it with `sign_key`, so that nobody can
    put down another's signing key as its own.
    """

    version: U32
    sign_key: Key
    proof: Signature
    nonce: Nonce
    name: NodeName
    wall_ms: WallMs
    cluster: Annotated[bytes, Meta(max_length=16)] = b""
    invite: Annotated[bytes, Meta(max_length=INVITE_BYTES)] = b""
    secret: Annotated[bytes, Meta(max_length=SECRET_BYTES)] = b""

    def __post_init__(self) -> None:
        _whole_or_absent("cluster", self.cluster, 16)
        _whole_or_absent("invite", self.invite, INVITE_BYTES)
        _whole_or_absent("secret", self.secret, SECRET_BYTES)

    def __repr__(self) -> str:
        """Without the secret: logs and tracebacks show this."""
        return f"Join({self.name!r}, invite {self.invite.hex() or 'none'})"


class Joined(Message, frozen=True, array_like=True, gc=False, tag=0x61):
    """Door -> joiner: you belong to it; `records` are yours, the door's, and their signers'.

    `door_secret` is empty unless the joiner is an admin.
    """

    name: NodeName
    root: Key
    records: Annotated[tuple[Record, ...], Meta(min_length=1, max_length=DOOR_RECORDS_MAX)]
    endpoints: Annotated[
        tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=DOOR_ENDPOINTS_MAX)
    ]
    wall_ms: WallMs
    door_serial: U63 = 0
    door_secret: Annotated[bytes, Meta(max_length=32)] = b""

    def __post_init__(self) -> None:
        _whole_or_absent("door_secret", self.door_secret, 32)

    def __repr__(self) -> str:
        """Without the secret: logs and tracebacks show this."""
        return f"Joined({self.name!r}, {len(self.records)} records, {self.endpoints})"


class Denied(Message, frozen=True, array_like=True, gc=False, tag=0x62):
    """Door -> joiner: no, and why; after `retry_after_ms` it may be worth asking again."""

    reason: Annotated[str, Meta(max_length=32)]
    text: Annotated[str, Meta(max_length=256)]
    wall_ms: WallMs
    retry_after_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0


class Pending(Message, frozen=True, array_like=True, gc=False, tag=0x63):
    """Door -> joiner: somebody has to approve; compare the phrase made of both nonces."""

    nonce: Nonce
    root: Key
    name: NodeName
    node_name: NodeName
    left_ms: Annotated[int, Meta(ge=0, le=3_600_000)]


GossipMessage = Members | AskMembers | DoorKey | Rotate
DoorMessage = Join | Joined | Denied | Pending
ALL_ADMISSION: Final = (Members, AskMembers, DoorKey, Rotate, Join, Joined, Denied, Pending)
