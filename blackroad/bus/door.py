"""The door: who may come in, by a token or because somebody approved.

Source  docs/protocol.md, "Joining".  Pure: `handle` takes one message of a stranger whose CURVE
key the connection has proved, and returns the answer; the address serves for counting alone.
This file must not know sockets, nor where members are kept or told on.

A stranger who knocks has completed a handshake with the door's key, which only admins hold: it
knows whom it tells its secret.  Guesses are judged five times a minute for an address and sixty
times in all; a secret has 128 bits.  Which invites exist is not told to who lacks the secret.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from blackroad.bus import codec, issuing, keys
from blackroad.bus import messages as m
from blackroad.bus.admission import (
    DOOR_ENDPOINTS_MAX,
    DOOR_RECORDS_MAX,
    NONCE_BYTES,
    Invite,
    Role,
)
from blackroad.bus.issuing import Issuer
from blackroad.bus.members import MEMBERS_MAX, Record
from blackroad.capabilities import printable
from blackroad.errors import UsageError
from blackroad.ids import node_id_from_key, text32
from blackroad.limits import DOOR_FRAME_BYTES_MAX

WINDOW_MS: Final = 60_000
FAILURES_MAX: Final = 60
FAILURES_OF_ADDRESS_MAX: Final = 5
PENDING_MAX: Final = 16
PENDING_OF_ADDRESS_MAX: Final = 4
PENDING_MS: Final = 10 * 60_000
_NOBODYS_HASH: Final = bytes(32)

_TEXTS: Final = {
    "version": "the joiner speaks another version of the protocol",
    "cluster": "this is another cluster than the one the token was made for",
    "proof": "the joiner's signing key is not proved",
    "taken": "the joiner's signing key belongs to another node or to the cluster itself",
    "key_revoked": "the joiner's key was revoked for good: it needs another one",
    "token": "no such token is known here: it was altered, or forgotten long after it expired",
    "token_revoked": "the token was revoked",
    "expired": "the token has expired",
    "used_up": "the token has been used as often as it allows",
    "full": f"the cluster has {MEMBERS_MAX} members, revoked ones included, and takes no more",
    "no_token": "this cluster takes nobody without a token (pending_joins is off)",
    "crowded": "too many machines wait to be approved already",
    "busy": "too many failed attempts to join within the last minute",
    "deep": "this admin is too many signatures away from the root to let others in",
}


class Asking:
    """A joiner without a token, waiting for somebody to compare the phrase."""

    __slots__ = ("address", "key", "name", "nonce", "own_nonce", "phrase", "sign_key", "until_ms")

    def __init__(
        self, join: m.Join, key: bytes, address: str, own_nonce: bytes, phrase: str, until_ms: int
    ) -> None:
        self.key = key
        self.sign_key = join.sign_key
        self.name = _name(join.name, key)
        self.nonce = join.nonce
        self.own_nonce = own_nonce
        self.address = address
        self.phrase = phrase
        self.until_ms = until_ms

    @property
    def node(self) -> bytes:
        return node_id_from_key(self.key)


class Limiter:
    """Counts failures of the last minute, by address and in all."""

    def __init__(self) -> None:
        self._failures: deque[tuple[int, str]] = deque()

    def wait_ms(self, address: str, now_ms: int) -> int:
        """How long nothing from there is judged; 0 where it may be now.

        Cost  at most sixty entries, for beyond them nothing is judged and nothing fails.
        """
        failures = self._failures
        while failures and failures[0][0] + WINDOW_MS <= now_ms:
            failures.popleft()
        if len(failures) >= FAILURES_MAX:
            return failures[0][0] + WINDOW_MS - now_ms
        own = [at for at, where in failures if where == _site(address)]
        return own[0] + WINDOW_MS - now_ms if len(own) >= FAILURES_OF_ADDRESS_MAX else 0

    def failed(self, address: str, now_ms: int) -> None:
        """Count one failure."""
        self._failures.append((now_ms, _site(address)))


class Door:
    """The server's side of joining, on one admin."""

    def __init__(
        self,
        issuer: Issuer,
        issue: Callable[[Record], None],
        door: tuple[bytes, bytes],
        name: str,
        endpoints: Callable[[], tuple[str, ...]],
        *,
        pending_joins: bool,
        serial: int = 0,
    ) -> None:
        self._issuer = issuer
        self._members = issuer.members
        self._issue = issue
        self._public, self._secret = door
        self._serial = serial
        self._name = name
        self._endpoints = endpoints
        self._pending_joins = pending_joins
        self._limiter = Limiter()
        self._asking: dict[bytes, Asking] = {}
        self._cluster = keys.fingerprint(self._members.root_public)
        # How often each answer was given.
        self.counters: dict[str, int] = {}

    def handle(
        self, message: m.DoorMessage, key: bytes, address: str, now_ms: int, wall_ms: int
    ) -> m.DoorMessage:
        """Answer one message of whoever holds that CURVE key."""
        answer = self._answer(message, key, address, now_ms, wall_ms)
        what = answer.reason if isinstance(answer, m.Denied) else type(answer).__name__.lower()
        self.counters[what] = self.counters.get(what, 0) + 1
        return answer

    def asking(self, now_ms: int) -> list[Asking]:
        """Who waits for approval, the oldest first."""
        for key in [key for key, one in self._asking.items() if one.until_ms <= now_ms]:
            del self._asking[key]
        return list(self._asking.values())

    def approve(self, asking: Asking, role: Role, wall_ms: int) -> None:
        """Let one of them in; it is told when it asks next."""
        self._asking.pop(asking.key, None)
        self._issue(
            self._issuer.admit(asking.key, asking.sign_key, role, asking.name, wall_ms, None)
        )

    # --- judging ----------------------------------------------------------------------------------

    def _answer(
        self, join: m.DoorMessage, key: bytes, address: str, now_ms: int, wall_ms: int
    ) -> m.DoorMessage:
        if not isinstance(join, m.Join) or join.version < 1:
            return self._denied("version", wall_ms)
        waiting = self._asking.get(key)
        if waiting is not None and not join.invite and waiting.nonce == join.nonce:
            # It asks whether it was approved meanwhile, every second: that is no attempt.
            if waiting.until_ms > now_ms:
                return self._pending(waiting, now_ms)
            del self._asking[key]
        wait_ms = self._limiter.wait_ms(address, now_ms)
        if wait_ms:
            return self._denied("busy", wall_ms, wait_ms)
        reason = self._objection(join, key)
        if not reason and join.invite:
            reason = self._by_token(join, key, wall_ms)
        elif not reason and self._members.by_key(key, wall_ms) is None:
            reason = self._may_ask(address, now_ms)
            if not reason:
                return self._ask(join, key, address, now_ms)
        if reason:
            self._limiter.failed(address, now_ms)
            return self._denied(reason, wall_ms)
        return self._joined(key, wall_ms)

    def _objection(self, join: m.Join, key: bytes) -> str:
        """Why nobody with these keys may come in, whatever it brings; "" for no reason."""
        if join.cluster and join.cluster != self._cluster:
            return "cluster"
        said = issuing.joining(self._public, key, join.nonce)
        if not keys.verifies(join.sign_key, said, join.proof):
            return "proof"
        node = node_id_from_key(key)
        if issuing.taken(self._members, join.sign_key, node):
            return "taken"
        member = self._members.of_node(node)
        return "key_revoked" if member is not None and member.revoked else ""

    def _by_token(self, join: m.Join, key: bytes, wall_ms: int) -> str:
        """Let the joiner in if its token counts; return what is against it."""
        invite = self._members.invite(join.invite)
        kept = invite.secret_hash if invite else _NOBODYS_HASH
        # Both are always worked out, so that the time does not tell which invites exist.
        if not keys.same(keys.secret_hash(join.secret), kept) or invite is None:
            return "token"
        member = self._members.by_key(key, wall_ms)
        if member is not None and (member.invite == invite.id or member.role >= invite.role):
            # An answer was lost on its way, and the joiner asks again; nothing is used up.
            return ""
        reason = self._against(invite, wall_ms)
        if not reason:
            name = _name(join.name, key)
            self._issue(self._issuer.admit(key, join.sign_key, invite.role, name, wall_ms, invite))
        return reason

    def _against(self, invite: Invite, wall_ms: int) -> str:
        if invite.revoked:
            return "token_revoked"
        if invite.expires_ms and wall_ms >= invite.expires_ms:
            return "expired"
        if self._members.uses(invite.id) >= invite.uses:
            return "used_up"
        return "full" if len(self._members.members()) >= MEMBERS_MAX else ""

    # --- asking without a token -------------------------------------------------------------------

    def _may_ask(self, address: str, now_ms: int) -> str:
        if not self._pending_joins:
            return "no_token"
        waiting = self.asking(now_ms)
        near = [one for one in waiting if _site(one.address) == _site(address)]
        crowded = len(waiting) >= PENDING_MAX or len(near) >= PENDING_OF_ADDRESS_MAX
        return "crowded" if crowded else ""

    def _ask(self, join: m.Join, key: bytes, address: str, now_ms: int) -> m.Pending:
        # Nobody without the door's secret can tell it beforehand: a man in the middle would need
        # both nonces before he commits himself to either key.
        stamp = now_ms.to_bytes(8, "big")
        own_nonce = keys.keyed(self._secret, key, join.nonce, stamp)[:NONCE_BYTES]
        phrase = phrase_of(self._public, key, join, own_nonce, self._members.root_public)
        # An attempt as well: who asks again and again with other nonces is looking for a phrase.
        self._limiter.failed(address, now_ms)
        asking = Asking(join, key, address, own_nonce, phrase, now_ms + PENDING_MS)
        self._asking[key] = asking
        return self._pending(asking, now_ms)

    def _pending(self, asking: Asking, now_ms: int) -> m.Pending:
        own = self._members.of_node(self._issuer.own.node)
        return m.Pending(
            asking.own_nonce,
            self._members.root_public,
            self._name,
            own.name if own else "",
            max(0, asking.until_ms - now_ms),
        )

    # --- answers ----------------------------------------------------------------------------------

    def _denied(self, reason: str, wall_ms: int, retry_after_ms: int = 0) -> m.Denied:
        return m.Denied(reason, _TEXTS[reason], wall_ms, retry_after_ms)

    def _joined(self, key: bytes, wall_ms: int) -> m.DoorMessage:
        """All that the joiner needs for its first link; the rest of the list comes by gossip."""
        node = node_id_from_key(key)
        own = self._members.chain(self._issuer.own.node)
        records = tuple(dict.fromkeys([*self._members.chain(node), *own]))
        if not records or len(records) > DOOR_RECORDS_MAX:
            return self._denied("deep", wall_ms)
        member = self._members.of_node(node)
        is_admin = member is not None and member.role >= Role.ADMIN
        answer = m.Joined(
            self._name,
            self._members.root_public,
            records,
            self._endpoints()[:DOOR_ENDPOINTS_MAX],
            wall_ms,
            self._serial if is_admin else 0,
            self._secret if is_admin else b"",
        )
        while answer.endpoints and not _fits(answer):
            answer = replace(answer, endpoints=answer.endpoints[:-1])
        return answer if _fits(answer) else self._denied("deep", wall_ms)


def phrase_of(
    door_public: bytes, key: bytes, join: m.Join, door_nonce: bytes, root_public: bytes
) -> str:
    """The words that both sides show; they differ where somebody is in between."""
    return keys.phrase(door_public, key, join.sign_key, join.nonce, door_nonce, root_public)


def find_asking(waiting: list[Asking], text: str) -> Asking:
    """The one that is meant by a phrase, a name or the start of an id.

    Raises  UsageError where there is none, or more than one.
    """
    wanted = "-".join(text.lower().replace("-", " ").split())
    found = [one for one in waiting if keys.same(one.phrase.encode(), wanted.encode())]
    found = found or [one for one in waiting if wanted and one.name.lower() == wanted]
    found = found or [
        one for one in waiting if len(wanted) >= 4 and text32(one.node).startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"`{text}` stands for {len(found)} machines that wait", hint="write the phrase instead"
        )
    raise UsageError(
        f"nobody waits here with `{text}`",
        hint="`blackroad members --pending` lists who waits; compare the phrase letter by letter: "
        "another one means that somebody is in between",
    )


def _fits(answer: m.Joined) -> bool:
    return len(codec.frame_of((codec.encode(answer),))) <= DOOR_FRAME_BYTES_MAX


def _name(given: str, key: bytes) -> str:
    """The name a joiner gave, as it may be printed; its id where it gave none."""
    return printable(given, 64).strip() or text32(node_id_from_key(key))[:8]


def _site(address: str) -> str:
    """What counts as one address: a machine has as many of version 6 as it likes."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        return str(mapped or ipaddress.ip_network((parsed.packed, 64), strict=False))
    return str(parsed)
