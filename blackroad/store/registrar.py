"""Orders about a cluster's members, carried out on its keyring: tokens, approval, revocation.

Edge.  The daemon's keeper uses it, and where no daemon runs so does the command line.  This file
must not know how records travel; `on_issued` and `on_door` are told what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from blackroad import chance
from blackroad.bus import keys
from blackroad.bus.admission import INVITE_BYTES, SECRET_BYTES
from blackroad.bus.door import Door, find_asking
from blackroad.bus.issuing import Issuer, rotation
from blackroad.bus.members import INVITES_MAX, Invite, Member, Record, Role
from blackroad.bus.tokens import InviteText
from blackroad.errors import BlackroadError, RemoteProtocolError, UsageError
from blackroad.ids import short, text32

if TYPE_CHECKING:
    from blackroad.store.keyring import Keyring

DAY_MS: Final = 24 * 3_600_000
TOKEN_MS_MIN: Final = 10_000
TOKEN_MS_MAX: Final = 366 * DAY_MS
ID_CHARS_MIN: Final = 4
# Between what is wrong and what to do about it, in the text of an answer.
HINT: Final = "\n"
ROLES: Final = tuple(role.name.lower() for role in Role)

_Ms = Annotated[int, Meta(ge=0, le=100 * 366 * DAY_MS)]
_Text = Annotated[str, Meta(max_length=128)]


class TokenArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `cluster.token`.

    Units  `for_ms` is how long the token counts, `member_ms` how long a member who came by it
           does, 0 for ever.
    """

    role: _Text = "node"
    for_ms: Annotated[int, Meta(ge=TOKEN_MS_MIN, le=TOKEN_MS_MAX)] = 3_600_000
    uses: Annotated[int, Meta(ge=1, le=4096)] = 1
    member_ms: _Ms = 0


class WhatArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of orders about one thing: a name, the start of an id, or a phrase."""

    what: _Text
    role: _Text = "node"


class RevokeArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `cluster.revoke`; `replaced` means those of this name that others followed."""

    what: _Text
    replaced: bool = False


class NoArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of orders that take none."""


class Registrar:
    """Serves `cluster.*` orders."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        wall_ms: Callable[[], int],
        door_endpoints: Callable[[], tuple[str, ...]],
    ) -> None:
        self._keyring = keyring
        self._wall_ms = wall_ms
        self._door_endpoints = door_endpoints
        # Set by a daemon: what it does with new records and a new door, and its own door.
        self.on_issued: Callable[[list[Record]], None] = lambda _news: None
        self.on_door: Callable[[], None] = lambda: None
        self.door: Door | None = None
        self.clock: Callable[[], int] = lambda: 0

    # --- for daemons ------------------------------------------------------------------------------

    @property
    def issuer(self) -> Issuer:
        """Signs as this node."""
        keyring = self._keyring
        return Issuer(keyring.own, keyring.members, keyring.root_secret)

    def issue(self, records: list[Record]) -> None:
        """Put records that this node has signed on the list, keep them, and tell of them.

        Raises  StateDirectoryProblem where they cannot be kept.
        """
        news = self._keyring.members.merge(records, self._wall_ms(), verified=True)
        if news:
            self._keyring.save_members()
            self.on_issued(news)

    def order(self, name: str, args: bytes, role: Role) -> bytes:
        """Carry out one order of somebody with that role; return the answer, encoded.

        Raises  RemoteProtocolError with a text for people.
        """
        try:
            told = self.carry_out(name, args, role)
        except RemoteProtocolError:
            raise
        except BlackroadError as error:
            raise RemoteProtocolError(
                error.message + (f"{HINT}{error.hint}" if error.hint else "")
            ) from None
        return msgspec.msgpack.encode(told)

    def carry_out(self, name: str, args: bytes, role: Role) -> dict[str, Any]:
        """Carry out one order.

        Raises  UsageError, StateDirectoryProblem; RemoteProtocolError where the order is unknown.
        """
        if name == "cluster.members":
            _decoded(name, args, NoArgs)
            return self._members(with_pending=role >= Role.ADMIN)
        if name not in ORDERS:
            raise RemoteProtocolError(f"this daemon knows no query `{name}`")
        kind, carry = ORDERS[name]
        given = _decoded(name, args, kind)
        if role < Role.ADMIN:
            raise UsageError(
                f"this needs the role admin, and yours is {role.name.lower()}",
                hint="ask somebody who may do it",
            )
        if name != "cluster.rotate" and not self._keyring.admin:
            raise UsageError(
                "this node is no admin of the cluster", hint=f"run this on {self._admins()}"
            )
        answer: dict[str, Any] = carry(self, given)
        return answer

    def _admins(self) -> str:
        names = [
            one.name
            for one in self._keyring.members.members()
            if one.role >= Role.ADMIN and self._counts(one)
        ]
        return " or ".join(names) or "a node whose role is admin"

    def _counts(self, member: Member) -> bool:
        return self._keyring.members.by_key(member.key, self._wall_ms()) is not None

    # --- looking ----------------------------------------------------------------------------------

    def _members(self, *, with_pending: bool) -> dict[str, Any]:
        keyring = self._keyring
        own = keyring.role
        return {
            "cluster": keyring.name,
            "id": text32(keyring.cluster_id),
            "node": text32(keyring.own.node),
            "role": own.name.lower() if own else "",
            "root_here": bool(keyring.root_secret),
            "members": [self.row(one) for one in keyring.members.members()],
            "pending": self._pending() if with_pending else [],
        }

    def row(self, member: Member) -> dict[str, Any]:
        """One member as plain data."""
        members = self._keyring.members
        record = members.record_of(member.node)
        follower = self._follower(member)
        if member.revoked or (not self._counts(member) and not member.expired(self._wall_ms())):
            state = "revoked"
        elif follower is not None:
            state = "replaced"
        else:
            state = "expired" if member.expired(self._wall_ms()) else "member"
        return {
            "node": text32(member.node),
            "id": short(member.node),
            "name": member.name,
            "role": member.role.name.lower(),
            "state": state,
            "issued_ms": member.issued_ms,
            "expires_ms": member.expires_ms,
            "replaced_by": short(follower.node) if follower else "",
            "token": text32(member.invite) if member.invite else "",
            "by": self._signer_name(record) if record else "",
            "this": member.node == self._keyring.own.node,
        }

    def _follower(self, member: Member) -> Member | None:
        found = [
            one
            for one in self._keyring.members.members()
            if one.replaces == member.node and self._counts(one)
        ]
        return found[0] if found else None

    def _signer_name(self, record: Record) -> str:
        members = self._keyring.members
        if record.signer == members.root_public:
            return "root"
        return next((one.name for one in members.members() if one.sign_key == record.signer), "")

    def _pending(self) -> list[dict[str, Any]]:
        if self.door is None:
            return []
        now_ms = self.clock()
        return [
            {
                "node": text32(one.node),
                "id": short(one.node),
                "name": one.name,
                "phrase": one.phrase,
                "address": one.address,
                "left_ms": max(0, one.until_ms - now_ms),
            }
            for one in self.door.asking(now_ms)
        ]

    # --- tokens -----------------------------------------------------------------------------------

    def token(self, args: TokenArgs) -> dict[str, Any]:
        """Make a token; its secret is kept nowhere but in the answer.

        Raises  UsageError.
        """
        keyring = self._keyring
        role = parse_role(args.role)
        if role >= Role.ADMIN and args.member_ms:
            raise UsageError(
                "admins do not expire: what they sign would not",
                hint="leave the time of members out; `blackroad revoke` ends an admin",
            )
        if not keyring.door[1]:
            raise UsageError(
                "this admin has not been told the key of the door yet",
                hint="start its daemon and wait until it has met another admin",
            )
        if len(keyring.members.invites()) >= INVITES_MAX:
            raise UsageError(
                f"the cluster remembers {INVITES_MAX} tokens, and no more",
                hint="expired ones are forgotten after thirty days; one token may be used often",
            )
        endpoints = self._door_endpoints()
        secret = chance.token_bytes(SECRET_BYTES)
        invite = Invite(
            chance.token_bytes(INVITE_BYTES),
            keys.secret_hash(secret),
            role,
            args.uses,
            self._wall_ms() + args.for_ms,
            1,
            member_ms=args.member_ms,
        )
        self.issue([self.issuer.sign(invite)])
        text = InviteText(keyring.cluster_id, keyring.door[0], invite.id, secret, endpoints)
        return {**self._invite_row(invite), "token": text.text(), "endpoints": list(endpoints)}

    def tokens(self, _args: NoArgs) -> dict[str, Any]:
        """All tokens that are remembered."""
        return {"tokens": [self._invite_row(one) for one in self._keyring.members.invites()]}

    def _invite_row(self, invite: Invite) -> dict[str, Any]:
        used = self._keyring.members.uses(invite.id)
        if invite.revoked:
            state = "revoked"
        elif invite.expires_ms and self._wall_ms() >= invite.expires_ms:
            state = "expired"
        else:
            state = "used up" if used >= invite.uses else "valid"
        return {
            "id": text32(invite.id),
            "role": invite.role.name.lower(),
            "state": state,
            "uses": invite.uses,
            "used": used,
            "expires_ms": invite.expires_ms,
            "member_ms": invite.member_ms,
        }

    def revoke_token(self, args: WhatArgs) -> dict[str, Any]:
        """End a token, which may be given whole or by the start of its id.

        Raises  UsageError.
        """
        from blackroad.bus.tokens import PREFIX, parse_token

        wanted = args.what.lower()
        if wanted.startswith(PREFIX):
            wanted = text32(parse_token(wanted).id)
        found = [
            one
            for one in self._keyring.members.invites()
            if len(wanted) >= ID_CHARS_MIN and text32(one.id).startswith(wanted)
        ]
        if len(found) != 1:
            what = f"{len(found)} tokens begin" if found else "no token begins"
            raise UsageError(f"{what} with `{args.what}`", hint="`blackroad token list`")
        ended = replace(found[0], revoked=True, serial=found[0].serial + 1)
        if not found[0].revoked:
            self.issue([self.issuer.sign(ended)])
        return self._invite_row(ended)

    # --- members ----------------------------------------------------------------------------------

    def approve(self, args: WhatArgs) -> dict[str, Any]:
        """Let somebody in who asks without a token.

        Raises  UsageError.
        """
        role = parse_role(args.role)
        if self.door is None:
            raise UsageError(
                "nobody can ask here: no daemon of this node runs, or its door is not open",
                hint="run this on the machine that the joiner names, while its daemon runs",
            )
        asking = find_asking(self.door.asking(self.clock()), args.what)
        self.door.approve(asking, role, self._wall_ms())
        member = self._keyring.members.of_node(asking.node)
        if member is None:
            raise UsageError("the member list is full", hint="`blackroad members` shows it")
        return {**self.row(member), "phrase": asking.phrase}

    def revoke(self, args: RevokeArgs) -> dict[str, Any]:
        """Revoke members for good; whom a revoked admin had let in stays.

        Raises  UsageError.
        """
        targets = self._targets(args)
        revoked: list[Member] = []
        kept: dict[bytes, Member] = {}
        for target in targets:
            done = self.issuer.revoke(target.node, self._wall_ms())
            self.issue(done.records)
            if target.role >= Role.ADMIN:
                # Not before: the new key is told to all who are admins at that moment.
                self._change_door()
            revoked.append(target)
            kept |= {one.node: one for one in done.kept}
        members = self._keyring.members
        return {
            "revoked": [self.row(members.of_node(one.node) or one) for one in revoked],
            "kept": sorted(one.name for one in kept.values() if self._counts(one)),
            "door_changed": any(one.role >= Role.ADMIN for one in revoked),
        }

    def _targets(self, args: RevokeArgs) -> list[Member]:
        if not args.replaced:
            return [self.find(args.what)]
        found = [
            one
            for one in self._keyring.members.members()
            if self._is(one, args.what) and not one.revoked and self._follower(one) is not None
        ]
        if not found:
            raise UsageError(
                f"no member `{args.what}` was replaced by another one", hint="`blackroad members`"
            )
        return found

    @staticmethod
    def _is(member: Member, text: str) -> bool:
        wanted = text.lower()
        by_id = len(wanted) >= ID_CHARS_MIN and text32(member.node).startswith(wanted)
        return member.name.lower() == wanted or by_id

    def find(self, text: str) -> Member:
        """The member that is not revoked with this name or start of an id.

        Raises  UsageError where there is none, or more than one.
        """
        here = [one for one in self._keyring.members.members() if not one.revoked]
        found = [one for one in here if self._is(one, text)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UsageError(
                f"no member is called `{text}`",
                hint="there are: " + (", ".join(sorted({one.name for one in here})) or "none"),
            )
        ids = ", ".join(
            short(one.node) + (" (replaced)" if self._follower(one) else "") for one in found
        )
        raise UsageError(
            f"`{text}` stands for {len(found)} members: {ids}",
            hint="write an id; --replaced means those that others followed",
        )

    def _change_door(self) -> None:
        """Give the door another key: the one that goes has had the present one."""
        from blackroad.bus.sockets import key_pair

        secret, public = key_pair()
        self.take_door(secret, public, self._keyring.door_serial + 1)

    def take_door(self, secret: bytes, public: bytes, serial: int) -> None:
        """Use that key at the door from now on.

        Raises  StateDirectoryProblem.
        """
        self._keyring.door = (public, secret)
        self._keyring.door_serial = serial
        self._keyring.save_cluster()
        self.on_door()

    # --- keys -------------------------------------------------------------------------------------

    def rotate(self, _args: NoArgs) -> dict[str, Any]:
        """Begin to change to other keys.

        The next pair is made and kept; an admin, which may be this node itself, signs a record
        for it that `replaces` the present one, and lets the present one expire in ten minutes.
        Only when the new record is on the list does the node change over (`Keyring.switch`), and
        a daemon then opens its sockets anew as the new node.

        Raises  UsageError, StateDirectoryProblem.
        """
        keyring = self._keyring
        member = keyring.member()
        if member is None or not self._counts(member):
            raise UsageError(
                "this node's key does not count any more, so no other can follow it",
                hint="join again: `blackroad join --new-key TOKEN`",
            )
        made = keyring.next_keys()
        if keyring.admin and keyring.members.of_node(made.node) is None:
            said = rotation(keyring.members.root_public, member.node, made.curve_public)
            proof = keys.sign(made.sign_secret, said)
            self.issue(
                self.issuer.follow(
                    member, made.curve_public, made.sign_public, proof, self._wall_ms()
                )
            )
        done = keyring.members.of_node(made.node) is not None
        return {"node": text32(made.node), "id": short(made.node), "signed": done}


ORDERS: Final[dict[str, tuple[type[Struct], Callable[[Registrar, Any], dict[str, Any]]]]] = {
    "cluster.token": (TokenArgs, Registrar.token),
    "cluster.tokens": (NoArgs, Registrar.tokens),
    "cluster.token_revoke": (WhatArgs, Registrar.revoke_token),
    "cluster.approve": (WhatArgs, Registrar.approve),
    "cluster.revoke": (RevokeArgs, Registrar.revoke),
    "cluster.rotate": (NoArgs, Registrar.rotate),
}


def parse_role(text: str) -> Role:
    """Read the name of a role.

    Raises  UsageError.
    """
    try:
        return Role[text.upper()]
    except KeyError:
        raise UsageError(f"`{text}` is no role", hint=f"roles are {', '.join(ROLES)}") from None


def _decoded(name: str, args: bytes, kind: type[Struct]) -> Any:
    try:
        return msgspec.msgpack.decode(args or b"\x80", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"`{name}`: {error}") from None
