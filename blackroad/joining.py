"""The joiner's side of the door: knock at all addresses, show the secret to one, keep the keys.

Edge.  Nothing is shown to anybody who has not proved the door's key, which only admins of the
cluster hold.  What is answered counts when the root key has the token's fingerprint and a chain
of signatures leads from it to this machine's own record; then it is written down.
"""

from __future__ import annotations

import errno
import os
import select
import socket as sockets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blackroad import chance
from blackroad.bus import codec, keys
from blackroad.bus import messages as m
from blackroad.bus.admission import NONCE_BYTES, Role
from blackroad.bus.door import phrase_of
from blackroad.bus.issuing import joining
from blackroad.bus.members import MemberList
from blackroad.bus.sockets import Bus, Poller, connect, drain, send
from blackroad.errors import Busy, JoinRefused, RemoteProtocolError, Unreachable
from blackroad.ids import text32
from blackroad.limits import PROTOCOL_VERSION_MAX
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.bus.keys import NodeKeys
    from blackroad.bus.sockets import Socket
    from blackroad.bus.tokens import InviteText
    from blackroad.store.keyring import Keyring

JOIN_MS: Final = 15_000
LOOK_MS: Final = 4_000
SETTLE_MS: Final = 700
ANSWER_MS: Final = 2_000
RETRY_MS: Final = 20
POLL_MS: Final = 1_000
PROBE_S: Final = 1.0
CLOCK_OFF_MS: Final = 60_000
_ANOTHER_KEY: Final = (
    "`blackroad join --new-key TOKEN` makes this machine a new node; what its old key was for is "
    "over"
)
_HINTS: Final = {
    "cluster": "ask an admin of the cluster that you mean for a token",
    "token": "ask an admin for another one: `blackroad token create`",
    "token_revoked": "ask an admin for another one: `blackroad token create`",
    "expired": "ask an admin for another one: `blackroad token create --expires 24h`",
    "used_up": "ask an admin for another one: `blackroad token create --uses 10`",
    "key_revoked": _ANOTHER_KEY,
    "taken": _ANOTHER_KEY,
    "no_token": "ask an admin for a token: `blackroad token create`",
    "crowded": "let an admin look at `blackroad members --pending`, or ask for a token",
    "deep": "use a token of the machine where `blackroad init` ran",
    "version": "install the version of blackroad that the cluster runs",
}


Said = m.Joined | m.Denied | m.Pending


class Outcome(NamedTuple):
    """How joining ended: the cluster, what this machine is there, and how far its clock is off.

    Units  `clock_off_ms` is this clock minus the admin's, 0 where they agree within a minute.
    """

    cluster: str
    cluster_id: bytes
    node: bytes
    name: str
    role: Role
    endpoint: str
    clock_off_ms: int


class DoorPlace(NamedTuple):
    """A door that somebody announces: its key, where it is, whose cluster it is said to be."""

    key: bytes
    endpoints: tuple[str, ...]
    cluster: str


def join_by_token(
    keyring: Keyring,
    token: InviteText,
    name: str,
    *,
    timeout_ms: int = JOIN_MS,
    new_key: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Enter the cluster that a token names, and write its keys.

    Raises  JoinRefused where it says no or is another one; Unreachable saying what was tried;
            Busy where too many failed before; StateDirectoryProblem.
    """
    with keyring.locked():
        _check_cluster(keyring, token.cluster)
        own = keyring.prepare(anew=new_key)
        with _Visit(own, token.door_key, token.endpoints) as visit:
            said = _join(own, token.door_key, name, chance.token_bytes(NONCE_BYTES), token)
            answer = _answer(visit, said, _now_ms() + timeout_ms, say)
            if not isinstance(answer, m.Joined):
                raise JoinRefused("the door asks for approval though a token was shown")
            return _enter(keyring, answer, token.cluster, token.door_key, visit)


def join_by_approval(
    keyring: Keyring,
    door: DoorPlace,
    name: str,
    *,
    timeout_ms: int,
    new_key: bool = False,
    on_phrase: Callable[[str, m.Pending], None],
) -> Outcome:
    """Ask to be let in, show the phrase, and wait until an admin has compared and approved it.

    Raises  as `join_by_token` does; Unreachable where nobody approves in time.
    """
    with keyring.locked():
        _check_cluster(keyring, b"")
        own = keyring.prepare(anew=new_key)
        with _Visit(own, door.key, door.endpoints) as visit:
            said = _join(own, door.key, name, chance.token_bytes(NONCE_BYTES), None)
            answer = _answer(visit, said, _now_ms() + min(timeout_ms, JOIN_MS), _silent)
            if isinstance(answer, m.Pending):
                root = answer.root
                phrase = phrase_of(door.key, own.curve_public, said, answer.nonce, root)
                on_phrase(phrase, answer)
                until_ms = _now_ms() + min(timeout_ms, answer.left_ms)
                joined = _await_approval(visit, said, answer, until_ms)
                return _enter(keyring, joined, keys.fingerprint(root), door.key, visit)
            # The list has this key already: an earlier approval whose answer was lost.
            return _enter(keyring, answer, keys.fingerprint(answer.root), door.key, visit)


def _check_cluster(keyring: Keyring, cluster: bytes) -> None:
    """Refuse to leave a cluster by accident."""
    if not keyring.load() or (cluster and keyring.cluster_id == cluster):
        return
    raise JoinRefused(
        f"this machine belongs to the cluster `{keyring.name}` already",
        hint=f"to leave it for good, stop its daemon and remove {keyring.path}",
    )


def _join(
    own: NodeKeys, door_key: bytes, name: str, nonce: bytes, token: InviteText | None
) -> m.Join:
    return m.Join(
        PROTOCOL_VERSION_MAX,
        own.sign_public,
        keys.sign(own.sign_secret, joining(door_key, own.curve_public, nonce)),
        nonce,
        name[:64],
        _wall_ms(),
        token.cluster if token else b"",
        token.id if token else b"",
        token.secret if token else b"",
    )


def _answer(
    visit: _Visit, said: m.Join, until_ms: int, say: Callable[[str], None]
) -> m.Joined | m.Pending:
    """Ask until there is an answer that is not "busy".

    Raises  JoinRefused, Busy, Unreachable.
    """
    while True:
        answer = visit.ask(said, until_ms)
        if answer is None:
            raise unreached(visit.endpoints)
        if not isinstance(answer, m.Denied):
            return answer
        if answer.reason != "busy":
            raise _refusal(answer)
        if _now_ms() + answer.retry_after_ms >= until_ms:
            raise Busy(
                answer.text,
                retry_after_ms=answer.retry_after_ms,
                hint=f"try again in {format_ms(answer.retry_after_ms)}",
            )
        say(f"{answer.text}; waiting {format_ms(answer.retry_after_ms)}")
        time.sleep(answer.retry_after_ms / 1000)


def _refusal(answer: m.Denied) -> JoinRefused:
    because = []
    off_ms = _wall_ms() - answer.wall_ms
    if answer.reason == "expired" and abs(off_ms) > CLOCK_OFF_MS:
        because.append(f"the admin's clock is {_direction(-off_ms)} this machine's")
    return JoinRefused(
        f"refused: {answer.text}",
        hint=_HINTS.get(answer.reason, "ask an admin of the cluster"),
        because=because,
    )


def _await_approval(visit: _Visit, said: m.Join, pending: m.Pending, until_ms: int) -> m.Joined:
    while _now_ms() < until_ms:
        answer = visit.ask(said, min(until_ms, _now_ms() + ANSWER_MS))
        if isinstance(answer, m.Joined):
            return answer
        if isinstance(answer, m.Denied) and answer.reason != "busy":
            raise _refusal(answer)
        if isinstance(answer, m.Pending) and answer.nonce != pending.nonce:
            # The daemon was started anew and has forgotten who asked: the phrase would differ.
            break
        time.sleep(max(0, min(POLL_MS, until_ms - _now_ms())) / 1000)
    raise Unreachable(
        "nobody has approved this machine in time",
        hint="try again, and let an admin run `blackroad members --pending` meanwhile",
    )


def _enter(
    keyring: Keyring, joined: m.Joined, cluster: bytes, door_key: bytes, visit: _Visit
) -> Outcome:
    """Check what the door says, and write it down.

    Raises  JoinRefused where it is not signed as it must be; StateDirectoryProblem.
    """
    own = keyring.own
    if not keys.same(keys.fingerprint(joined.root), cluster):
        raise JoinRefused(
            "the answer comes from another cluster than the token's",
            hint="do not use this token; tell the admins that somebody else holds their door's key",
        )
    known = keyring.members if keyring.cluster_id == cluster else MemberList(joined.root)
    known.merge(joined.records, _wall_ms())
    member = known.by_key(own.curve_public)
    if member is None or member.sign_key != own.sign_public:
        raise JoinRefused(
            "the answer has no signed record of this machine",
            hint="try again; if it stays so, ask for a token of another admin",
        )
    serial, secret = joined.door_serial, joined.door_secret
    if secret and keys.curve_public(secret) != door_key:
        serial, secret = 0, b""
    if not secret and keyring.cluster_id == cluster:
        door_key, secret, serial = *keyring.door, keyring.door_serial
    seeds = tuple(dict.fromkeys((*joined.endpoints, *keyring.seeds)))
    keyring.establish(joined.name, known, (door_key, secret, serial), seeds, keyring.root_secret)
    off_ms = _wall_ms() - joined.wall_ms
    return Outcome(
        joined.name,
        cluster,
        own.node,
        member.name,
        member.role,
        visit.answered,
        off_ms if abs(off_ms) > CLOCK_OFF_MS else 0,
    )


# --- at the door ----------------------------------------------------------------------------------


class _Visit:
    """Connections to all addresses of one door; the first that proves its key is spoken to."""

    def __init__(self, own: NodeKeys, door_key: bytes, endpoints: Sequence[str]) -> None:
        self.endpoints = tuple(endpoints)
        self.answered = ""
        self._bus = Bus(own)
        self._poller = Poller()
        self._doors: dict[str, Socket] = {}
        for endpoint in self.endpoints:
            door = self._bus.newcomer(door_key)
            if connect(door, endpoint):
                self._doors[endpoint] = door
                self._poller.watch(door)
            else:
                self._bus.drop(door)

    def __enter__(self) -> _Visit:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bus.close()

    def ask(self, message: m.Join, until_ms: int) -> Said | None:
        """Say something and return the answer; None where nobody answers until then."""
        frames = [codec.encode_header(0, 0), codec.frame_of((codec.encode(message),))]
        untried = list(self._doors)
        if self.answered:
            untried.remove(self.answered)
            untried.insert(0, self.answered)
        next_ms = 0
        while untried or next_ms:
            now_ms = _now_ms()
            if now_ms >= until_ms:
                return None
            if now_ms >= next_ms and self._say(untried, frames):
                # Another address gets the secret only where this one takes too long.
                next_ms = now_ms + ANSWER_MS
            elif not untried and now_ms >= next_ms:
                untried, next_ms = list(self._doors), 0
            self._poller.wait(min(until_ms - now_ms, RETRY_MS if untried else ANSWER_MS))
            answer = self._heard()
            if answer is not None:
                return answer
        return None

    def _say(self, untried: list[str], frames: list[bytes]) -> bool:
        for endpoint in untried:
            if send(self._doors[endpoint], frames):
                untried.remove(endpoint)
                return True
        return False

    def _heard(self) -> Said | None:
        for endpoint, door in self._doors.items():
            for frames in drain(door):
                try:
                    for frame in frames[1:]:
                        for answer in codec.DOOR.decode(frame)[0]:
                            if isinstance(answer, m.Joined | m.Denied | m.Pending):
                                self.answered = endpoint
                                return answer
                except RemoteProtocolError:
                    continue
        return None


def unreached(endpoints: Sequence[str]) -> JoinRefused | Unreachable:
    """Why nobody answered at any of these addresses, one line for each."""
    lines, listening = [], False
    for endpoint, problem in _probe(endpoints).items():
        listening = listening or not problem
        lines.append(f"{endpoint}: {problem or 'somebody listens, but cannot prove the key'}")
    if listening:
        return JoinRefused(
            "nobody there holds the key that the token names",
            hint="it was made for another cluster, or before an admin was revoked: ask for a new "
            "one with `blackroad token create`",
            because=lines,
        )
    return Unreachable(
        "no admin of the cluster could be reached" + ("" if lines else ": the token names none"),
        hint="is the daemon running there, and port 7700 open in its firewall? "
        "`blackroad doctor net` there tells",
        because=lines,
    )


def _probe(endpoints: Iterable[str]) -> dict[str, str]:
    """Connect to all addresses at once; return what is wrong with each, "" for nothing."""
    found: dict[str, str] = {}
    waiting: dict[int, tuple[str, sockets.socket]] = {}
    poll = select.poll()
    for endpoint in endpoints:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        try:
            address = sockets.getaddrinfo(host.strip("[]"), int(port), type=sockets.SOCK_STREAM)[0]
            one = sockets.socket(address[0], address[1])
            one.setblocking(False)
            code = one.connect_ex(address[4])
        except (OSError, ValueError, OverflowError) as error:
            found[endpoint] = f"no such address ({error})"
            continue
        found[endpoint] = "no answer: the machine is off, or a firewall drops what comes"
        if code not in (0, errno.EINPROGRESS):
            found[endpoint] = os.strerror(code).lower()
        waiting[one.fileno()] = (endpoint, one)
        poll.register(one.fileno(), select.POLLOUT)
    until = time.monotonic() + PROBE_S
    while waiting and (left_s := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            endpoint, one = waiting.pop(fd)
            poll.unregister(fd)
            code = one.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR)
            refused = code == errno.ECONNREFUSED
            told = "nobody listens there" if refused else os.strerror(code).lower()
            found[endpoint] = told if code else ""
            one.close()
    for _, one in waiting.values():
        one.close()
    return found


# --- looking around -------------------------------------------------------------------------------


def find_doors(timeout_ms: int = LOOK_MS) -> list[DoorPlace]:
    """Listen for doors that are announced on this network; one entry for each key.

    Cost  returns a moment after the first one was heard, or when the time is over.
    """
    from blackroad.discovery.mdns import Mdns

    until_ms = _now_ms() + timeout_ms
    found: dict[bytes, DoorPlace] = {}
    mdns = Mdns(None)
    try:
        while (left_ms := until_ms - _now_ms()) > 0:
            select.select([mdns.fileno()], [], [], left_ms / 1000)
            mdns.read()
            for door in mdns.take_doors():
                if not found:
                    until_ms = min(until_ms, _now_ms() + SETTLE_MS)
                before = found[door.key].endpoints if door.key in found else ()
                places = tuple(dict.fromkeys((*before, *door.endpoints)))
                found[door.key] = DoorPlace(door.key, places, door.cluster)
    finally:
        mdns.close()
    return list(found.values())


def describe_clock(off_ms: int) -> str:
    """Say how far this machine's clock is off, against an admin's."""
    return f"this machine's clock is {_direction(off_ms)} the admin's: set it, for tokens expire"


def _direction(off_ms: int) -> str:
    return f"{format_ms(abs(off_ms))} {'ahead of' if off_ms > 0 else 'behind'}"


def _silent(_line: str) -> None:
    return None


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def door_name(door: DoorPlace) -> str:
    """What a door is called before anybody was asked: the start of its key."""
    return door.cluster or text32(door.key)[:8]
