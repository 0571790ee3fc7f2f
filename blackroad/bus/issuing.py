"""What an admin signs: new members, invites, revocations, keys that follow other keys.

Pure: chance and the time are given.  Each method returns records to be merged and told on, and
changes nothing.  This file must not know how they travel, nor where keys are kept.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec.structs import replace

from blackroad.bus import keys
from blackroad.bus.keys import NodeKeys
from blackroad.bus.members import Invite, Member, MemberList, Record, Role, body_of, signed
from blackroad.errors import UsageError
from blackroad.ids import node_id_from_key, short

# A key that was followed by another one counts for so long, until all have heard of its successor.
OVERLAP_MS: Final = 10 * 60_000


class Revocation(NamedTuple):
    """Records that revoke a member, and whom it had signed and who therefore stays."""

    records: list[Record]
    kept: list[Member]


class Issuer:
    """Signs on behalf of one admin, and of the root where this machine has its key."""

    def __init__(self, own: NodeKeys, members: MemberList, root_secret: bytes = b"") -> None:
        self.own = own
        self.members = members
        self._root_secret = root_secret

    def sign(self, what: Member | Invite, *, by_root: bool = False) -> Record:
        """Sign as this admin; with `by_root` as the root, where that is possible."""
        root = self.members.root_public
        if by_root and self._root_secret:
            return signed(what, root, self._root_secret, root)
        return signed(what, root, self.own.sign_secret, self.own.sign_public)

    def admit(
        self,
        key: bytes,
        sign_key: bytes,
        role: Role,
        name: str,
        wall_ms: int,
        invite: Invite | None,
    ) -> Record:
        """Make this key a member; one of the same name is followed by it."""
        node = node_id_from_key(key)
        before = self.members.of_node(node)
        member = Member(
            node,
            key,
            sign_key,
            role,
            name,
            before.serial + 1 if before else 1,
            wall_ms,
            expires_ms=wall_ms + invite.member_ms if invite and invite.member_ms else 0,
            invite=invite.id if invite else b"",
            replaces=before.replaces if before else self._namesake(node, name, wall_ms),
        )
        return self.sign(member, by_root=role >= Role.ADMIN)

    def _namesake(self, node: bytes, name: str, wall_ms: int) -> bytes:
        """The newest member that is called like this and still counts."""
        found = [
            one
            for one in self.members.members()
            if one.name == name
            and one.node != node
            and self.members.by_key(one.key, wall_ms) is not None
        ]
        newest = max(found, key=lambda one: (one.issued_ms, one.node), default=None)
        return newest.node if newest else b""

    def revoke(self, node: bytes, wall_ms: int) -> Revocation:
        """Revoke a member; what it had signed for others is signed anew first, so that they stay.

        Raises  UsageError where that would cut off this node or somebody else: who was made an
                admin by the one that is to go can be kept by another admin or the root only.
        """
        target = self.members.of_node(node)
        if target is None or target.revoked:
            raise UsageError(f"{short(node)} is no member any more", hint="`blackroad members`")
        if node == self.own.node:
            raise UsageError(
                "an admin cannot revoke itself: nobody would vouch for those it let in",
                hint="run this on another admin, or make one with `blackroad token create "
                "--role admin`",
            )
        anew: list[Record] = []
        kept: list[Member] = []
        for record in self.members.records_by(target.sign_key):
            what = body_of(record)
            # Outstanding tokens end with whoever made them: the door gets another key as well.
            if isinstance(what, Member) and what.node != node:
                anew.append(self.sign(what, by_root=what.role >= Role.ADMIN))
                if not what.revoked:
                    kept.append(what)
        last = replace(target, revoked=True, serial=target.serial + 1, issued_ms=wall_ms)
        records = [*anew, self.sign(last, by_root=target.role >= Role.ADMIN)]
        self._check_loss(records, node, wall_ms)
        return Revocation(records, kept)

    def _check_loss(self, records: list[Record], node: bytes, wall_ms: int) -> None:
        after = self.members.copy()
        after.merge(records, wall_ms, verified=True)
        lost = [
            one.name
            for one in self.members.members()
            if one.node != node and self.members.by_key(one.key) and not after.by_key(one.key)
        ]
        if after.by_key(self.own.curve_public) is None or lost:
            raise UsageError(
                "this cannot be revoked from here: it is what makes an admin of "
                + (", ".join(lost) or "this node"),
                hint="run this where `blackroad init` ran (root.json is there), or put a copy of "
                "root.json into this node's cluster directory meanwhile",
            )

    def follow(
        self, old: Member, key: bytes, sign_key: bytes, proof: bytes, wall_ms: int
    ) -> list[Record]:
        """Let a member change to other keys: the old one counts on for ten minutes.

        The new record carries `replaces`; the old one is not revoked but expires, so that what
        it signed goes on counting and need not be signed anew.

        Raises  UsageError where the proof is false or the keys are somebody's already.
        """
        node = node_id_from_key(key)
        if not keys.verifies(sign_key, rotation(self.members.root_public, old.node, key), proof):
            raise UsageError("the new keys are not proved by their signature")
        if self.members.of_node(node) is not None or taken(self.members, sign_key, node):
            raise UsageError("these keys are on the member list already")
        made = replace(
            old,
            node=node,
            key=key,
            sign_key=sign_key,
            serial=1,
            issued_ms=wall_ms,
            invite=b"",
            replaces=old.node,
        )
        until_ms = wall_ms + OVERLAP_MS
        ending = replace(
            old,
            serial=old.serial + 1,
            expires_ms=min(old.expires_ms or until_ms, until_ms),
        )
        return [self.sign(made, by_root=made.role >= Role.ADMIN), self.sign(ending)]

    def countersign(self, records: list[Record]) -> list[Record]:
        """Vouch as the root for admins whom other admins made.

        Then no admin rests on another one, and each of them may revoke any other.
        """
        if not self._root_secret:
            return []
        found = []
        for record in records:
            what = body_of(record)
            if (
                isinstance(what, Member)
                and what.role >= Role.ADMIN
                and not what.revoked
                and record.signer != self.members.root_public
            ):
                found.append(self.sign(what, by_root=True))
        return found


def rotation(root_public: bytes, old_node: bytes, key: bytes) -> bytes:
    """What the next signing key signs to prove that both next keys are one machine's."""
    return b"".join((b"blackroad-rotate", root_public, old_node, key))


def joining(door_public: bytes, key: bytes, nonce: bytes) -> bytes:
    """What a joiner signs to prove that it holds its signing key."""
    return b"".join((b"blackroad-join", door_public, key, nonce))


def taken(members: MemberList, sign_key: bytes, node: bytes) -> bool:
    """Is that signing key the root's or another node's?"""
    return sign_key == members.root_public or any(
        one.sign_key == sign_key and one.node != node for one in members.members()
    )
