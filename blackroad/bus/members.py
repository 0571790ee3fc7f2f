"""Who belongs to a cluster: signed records merged into one list, the same one on every node.

Pure: what counts follows from the set of records alone, never from the order they came in.  This
file must not know sockets, files or the door, and asks no clock; expiry is judged against the
wall clock that the caller gives.

What counts.  The root signs the first admin, admins sign everybody else.  A record counts when
the root signed it, or an admin whose own record counts and who is not revoked.  A revocation also
counts where its signer was revoked later, unless the root itself revoked the signer: two admins
who revoke each other are both out, and the root alone can cut a stolen admin key off for good.
Of several records about one key the revoked one wins, then the higher serial, then the greater
signature.

Weak sides.  Expiry ends membership, not the right to sign: admins do not expire.  An admin who
was never revoked may fill the list.  A token's uses are counted by the members that carry it, so
two admins who let joiners in at the same moment may exceed it by what the other has not heard of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from blackroad.bus import keys
from blackroad.bus.admission import Invite as Invite
from blackroad.bus.admission import Member as Member
from blackroad.bus.admission import Record as Record
from blackroad.bus.admission import Role as Role
from blackroad.digest import blake2b
from blackroad.ids import node_id_from_key

MEMBER: Final = 1
INVITE: Final = 2
MEMBERS_MAX: Final = 4096
INVITES_MAX: Final = 1024
RECORDS_MAX: Final = 4 * MEMBERS_MAX
# Records whose signer nobody has vouched for yet; the oldest go first.
WAITING_MAX: Final = 1024
# An invite is forgotten so long after it expired.
INVITE_KEPT_MS: Final = 30 * 24 * 3_600_000

_encode = msgspec.msgpack.Encoder().encode
_member = msgspec.msgpack.Decoder(Member)
_invite = msgspec.msgpack.Decoder(Invite)
_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)

Slot = tuple[int, bytes, bytes]


class _Entry(NamedTuple):
    """A record that was read: where it belongs, and how it compares to others there."""

    record: Record
    slot: Slot
    what: Member | Invite
    rank: tuple[bool, int, bytes]

    @property
    def member(self) -> Member | None:
        return self.what if isinstance(self.what, Member) else None


def signed(what: Member | Invite, root_public: bytes, secret: bytes, public: bytes) -> Record:
    """Make the record of a member or an invite of the cluster whose root that is."""
    kind = MEMBER if isinstance(what, Member) else INVITE
    body = _encode(what)
    return Record(kind, body, public, keys.sign(secret, _said(root_public, kind, body)))


def body_of(record: Record) -> Member | Invite | None:
    """Read what a record says, whoever signed it; None where it makes no sense."""
    try:
        if record.kind == MEMBER:
            member = _member.decode(record.body)
            return member if member.node == node_id_from_key(member.key) else None
        return _invite.decode(record.body) if record.kind == INVITE else None
    except _BROKEN:
        return None


def _said(root_public: bytes, kind: int, body: bytes) -> bytes:
    return b"".join((b"blackroad-record", root_public, bytes((kind,)), body))


class MemberList:
    """The members and invites of one cluster."""

    def __init__(self, root_public: bytes) -> None:
        self.root_public = root_public
        self.version = 0
        # Records that were false or made no sense, and those there was no room for.
        self.forged = 0
        self.refused = 0
        self._entries: dict[Slot, _Entry] = {}
        self._waiting: dict[Record, _Entry] = {}
        self._subjects: dict[int, set[bytes]] = {MEMBER: set(), INVITE: set()}
        self._members: dict[bytes, tuple[Member, Record]] = {}
        self._by_key: dict[bytes, Member] = {}
        self._invites: dict[bytes, tuple[Invite, Record]] = {}
        self._uses: dict[bytes, int] = {}
        # Signing keys: of all who were admins once, of those who are, and those revoked for good.
        self._ever: set[bytes] = set()
        self._admins: set[bytes] = set()
        self._revoked: set[bytes] = set()
        self._digest = b""

    # --- reading ----------------------------------------------------------------------------------

    def by_key(self, curve_public: bytes, wall_ms: int = 0) -> Member | None:
        """The member with this key; None where it is unknown, revoked, or expired by then.

        Cost  one look into a dictionary: it is asked for each multipart.
        """
        member = self._by_key.get(curve_public)
        if member is None or (member.expires_ms and 0 < member.expires_ms <= wall_ms):
            return None
        return member

    def of_node(self, node: bytes) -> Member | None:
        """The record about a node, revoked or not."""
        found = self._members.get(node)
        return found[0] if found else None

    def record_of(self, node: bytes) -> Record | None:
        """The signed form of what `of_node` returns."""
        found = self._members.get(node)
        return found[1] if found else None

    def members(self) -> list[Member]:
        """All members, revoked and expired ones too, by node id."""
        return [self._members[node][0] for node in sorted(self._members)]

    def invites(self) -> list[Invite]:
        """All invites, by id."""
        return [self._invites[one][0] for one in sorted(self._invites)]

    def invite(self, invite: bytes) -> Invite | None:
        """The invite with this id."""
        found = self._invites.get(invite)
        return found[0] if found else None

    def uses(self, invite: bytes) -> int:
        """How many members came by that invite, revoked ones included."""
        return self._uses.get(invite, 0)

    def records(self) -> list[Record]:
        """All records that count, signers before those they vouch for."""
        return [entry.record for entry in sorted(self._entries.values(), key=_told_order)]

    def records_by(self, signer: bytes) -> list[Record]:
        """All records that count and that this key has signed."""
        return [one.record for one in self._entries.values() if one.record.signer == signer]

    def chain(self, node: bytes) -> list[Record]:
        """The record of a node and those of its signers, up to one that the root signed.

        Empty where the node is unknown or revoked.
        """
        best = self._members.get(node)
        if best is None or best[0].revoked:
            return []
        above = self._signed_by()
        alike = [
            one
            for one in self._entries.values()
            if one.slot[:2] == (MEMBER, node)
            and one.rank[:2] == (False, best[0].serial)
            and self.signs(one.record.signer)
        ]
        at = min(alike, key=lambda one: len(_ancestry(one.record.signer, above)))
        return [at.record, *_ancestry(at.record.signer, above)]

    def _signed_by(self) -> dict[bytes, Record]:
        """By signing key of each admin: the record that makes him one, the nearest to the root."""
        found: dict[bytes, Record] = {}
        level = {self.root_public}
        while level:
            reached: dict[bytes, Record] = {}
            for entry in self._entries.values():
                key = _sign_key(entry)
                if (
                    entry.record.signer in level
                    and entry.what.role >= Role.ADMIN
                    and key in self._admins
                    and key not in found
                    and not entry.rank[0]
                ):
                    reached[key] = max(reached.get(key, entry.record), entry.record, key=_signature)
            found |= reached
            level = set(reached)
        return found

    def node_keys(self) -> list[bytes]:
        """CURVE keys of those who may listen: to dial an address whose owner is not known."""
        return [
            member.key
            for member in self.members()
            if member.role >= Role.NODE and not member.revoked
        ]

    def signs(self, sign_public: bytes) -> bool:
        """May this key sign records?"""
        return sign_public == self.root_public or sign_public in self._admins

    @property
    def digest(self) -> bytes:
        """16 bytes that two lists have in common when they say the same."""
        if not self._digest:
            digest = blake2b(digest_size=16, person=b"blackroad-list")
            digest.update(self.root_public)
            for signature in sorted(entry.record.signature for entry in self._entries.values()):
                digest.update(signature)
            self._digest = digest.digest()
        return self._digest

    # --- merging ----------------------------------------------------------------------------------

    def merge(
        self, records: Iterable[Record], wall_ms: int, *, verified: bool = False
    ) -> list[Record]:
        """Take in records from anywhere; return those that are news and count.

        With `verified` their signatures are not looked at: only for what this node itself has
        kept and can vouch for.

        Cost  a record that is here already is recognised by its signature and not verified again;
              a new one costs 0.2 ms, and the list is judged anew once for the whole batch.
        """
        before = self._entries
        fresh = self._sift(records, wall_ms)
        if not fresh and not self._forgettable(wall_ms):
            return []
        self._entries = dict(before)
        self._forget(wall_ms)
        trusted = {entry.record for entry in fresh} if verified else set()
        for entry in fresh:
            self._wait(entry)
        self._settle(trusted)
        news = [one for slot, one in self._entries.items() if before.get(slot) is not one]
        if news or len(self._entries) != len(before):
            self.version += 1
            self._digest = b""
        return [one.record for one in sorted(news, key=_told_order)]

    def copy(self) -> MemberList:
        """Another list that says the same, to try something on."""
        made = MemberList(self.root_public)
        made.merge(self.records(), 0, verified=True)
        return made

    def _sift(self, records: Iterable[Record], wall_ms: int) -> list[_Entry]:
        """Read records; leave out what is here, makes no sense or is long over."""
        found: list[_Entry] = []
        for record in records:
            if record in self._waiting or record.kind not in (MEMBER, INVITE):
                # Other kinds may come from a newer version.
                continue
            entry = _entry(record)
            if entry is None:
                self.forged += 1
                continue
            here = self._entries.get(entry.slot)
            if (here is None or entry.rank > here.rank) and not _over(entry, wall_ms):
                found.append(entry)
        return found

    def _wait(self, entry: _Entry) -> None:
        self._waiting[entry.record] = entry

    def _settle(self, trusted: set[Record]) -> None:
        """Move records between those that count and those that wait, until nothing moves.

        It ends: what is moved out was signed by nobody who counts, so that nobody else rests on it,
        and what is moved in only ever replaces something lower in the same slot.
        """
        self._judge()
        for kind in (MEMBER, INVITE):
            self._subjects[kind] = {slot[1] for slot in self._entries if slot[0] == kind}
        moved = True
        while moved:
            moved = False
            for record, entry in list(self._waiting.items()):
                if not self._counts(entry):
                    continue
                del self._waiting[record]
                moved = self._admit(entry, record in trusted) or moved
            if moved:
                self._judge()
            for slot, entry in list(self._entries.items()):
                if not self._counts(entry):
                    del self._entries[slot]
                    self._wait(entry)
                    moved = True
            if moved:
                self._judge()
        while len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._tabulate()

    def _admit(self, entry: _Entry, trusted: bool) -> bool:
        """Take one record in, if it is newer, true, and there is room; say whether it was."""
        here = self._entries.get(entry.slot)
        if here is not None and here.rank >= entry.rank:
            return False
        if here is None and not self._room(entry):
            self.refused += 1
            return False
        record = entry.record
        said = _said(self.root_public, record.kind, record.body)
        if not trusted and not keys.verifies(record.signer, said, record.signature):
            self.forged += 1
            return False
        self._entries[entry.slot] = entry
        self._subjects[record.kind].add(entry.slot[1])
        return True

    def _room(self, entry: _Entry) -> bool:
        if len(self._entries) >= RECORDS_MAX:
            return False
        kind, subject, _ = entry.slot
        subjects = self._subjects[kind]
        most = MEMBERS_MAX if kind == MEMBER else INVITES_MAX
        return subject in subjects or len(subjects) < most

    def _forgettable(self, wall_ms: int) -> bool:
        return any(_over(entry, wall_ms) for entry in self._entries.values())

    def _forget(self, wall_ms: int) -> None:
        for slot in [slot for slot, entry in self._entries.items() if _over(entry, wall_ms)]:
            del self._entries[slot]

    # --- judging ----------------------------------------------------------------------------------

    def _counts(self, entry: _Entry) -> bool:
        signer = entry.record.signer
        if signer == self.root_public or signer in self._admins:
            return True
        # Of somebody who was an admin: revocations, and whom he made an admin, since whether
        # their revocations count rests on it.
        member = entry.member
        return (
            signer in self._ever
            and member is not None
            and (member.revoked or member.role >= Role.ADMIN)
        )

    def _judge(self) -> None:
        """Find out whose signatures count, from the records alone."""
        of_members = [entry for entry in self._entries.values() if entry.member is not None]
        root = self.root_public
        revoking = [entry for entry in of_members if entry.rank[0]]
        by_root = {_sign_key(one) for one in revoking if one.record.signer == root}
        making = [one for one in of_members if one.what.role >= Role.ADMIN]
        self._ever = _closure(root, making, by_root)
        self._revoked = by_root | {
            _sign_key(one) for one in revoking if one.record.signer in self._ever
        }
        lasting = [one for one in making if not one.rank[0]]
        self._admins = _closure(root, lasting, self._revoked)

    def _tabulate(self) -> None:
        """Lay out what is asked for often."""
        best: dict[tuple[int, bytes], _Entry] = {}
        for entry in self._entries.values():
            signer = entry.record.signer
            if signer != self.root_public and signer not in self._admins and not entry.rank[0]:
                continue
            about = entry.slot[:2]
            if about not in best or best[about].rank < entry.rank:
                best[about] = entry
        self._members, self._invites, self._uses = {}, {}, {}
        for entry in best.values():
            if isinstance(entry.what, Invite):
                self._invites[entry.what.id] = (entry.what, entry.record)
                continue
            member = entry.what
            self._members[member.node] = (member, entry.record)
            if member.invite:
                self._uses[member.invite] = self._uses.get(member.invite, 0) + 1
        self._by_key = {
            member.key: member
            for member, _ in self._members.values()
            if not member.revoked and member.sign_key not in self._revoked
        }


def _entry(record: Record) -> _Entry | None:
    what = body_of(record)
    if what is None:
        return None
    subject = what.node if isinstance(what, Member) else what.id
    rank = (what.revoked, what.serial, record.signature)
    return _Entry(record, (record.kind, subject, record.signer), what, rank)


def _sign_key(entry: _Entry) -> bytes:
    return entry.what.sign_key if isinstance(entry.what, Member) else b""


def _closure(root: bytes, making: Sequence[_Entry], without: set[bytes]) -> set[bytes]:
    """Signing keys that a chain of admins leads to from the root, through none of `without`."""
    found: set[bytes] = set()
    grown = True
    while grown:
        grown = False
        for entry in making:
            key = _sign_key(entry)
            if key in found or key in without or key == root:
                continue
            if entry.record.signer == root or entry.record.signer in found:
                found.add(key)
                grown = True
    return found


def _over(entry: _Entry, wall_ms: int) -> bool:
    """Is that an invite which expired so long ago that nobody has to know it?"""
    what = entry.what
    if isinstance(what, Member) or not what.expires_ms:
        return False
    return what.expires_ms + INVITE_KEPT_MS <= wall_ms


def _ancestry(signer: bytes, above: dict[bytes, Record]) -> list[Record]:
    """The records that lead from a signer up to the root."""
    found: list[Record] = []
    while signer in above:
        found.append(above[signer])
        signer = above[signer].signer
    return found


def _signature(record: Record) -> bytes:
    return record.signature


def _told_order(entry: _Entry) -> tuple[bool, int, bytes]:
    member = entry.member
    admin = member is not None and member.role >= Role.ADMIN
    return (not admin, entry.slot[0], entry.record.signature)


def pages(
    records: Sequence[Record], count_max: int, bytes_max: int
) -> Iterator[tuple[Record, ...]]:
    """Cut a list of records into parts that fit into one message each."""
    part: list[Record] = []
    size = 0
    for record in records:
        own = len(record.body) + 112
        if part and (len(part) >= count_max or size + own > bytes_max):
            yield tuple(part)
            part, size = [], 0
        part.append(record)
        size += own
    if part:
        yield tuple(part)
