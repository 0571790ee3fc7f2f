"""The keys of this node and its cluster, in the directory `cluster` of the state directory.

Edge.  Files are for their owner alone, and replaced whole.  This file must not know sockets, the
door, or who may be let in.

    cluster.json     the cluster's name and root key, where to find it; for admins the door's pair
    signing.json     this node's Ed25519 pair (its CURVE pair is in identity.json above)
    root.json        the cluster's root pair, only where `blackroad init` ran: keep a copy elsewhere
    members.msgpack  the member list, under a check sum that only this node can make
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from blackroad import chance
from blackroad.bus import keys
from blackroad.bus.keys import NodeKeys as NodeKeys
from blackroad.bus.members import Member, MemberList, Record, Role
from blackroad.errors import StateDirectoryProblem
from blackroad.ids import node_id_from_key
from blackroad.store import identity

DIRECTORY: Final = "cluster"
CLUSTER_FILE: Final = "cluster.json"
SIGNING_FILE: Final = "signing.json"
ROOT_FILE: Final = "root.json"
MEMBERS_FILE: Final = "members.msgpack"
NEXT_FILE: Final = "next.json"
ANEW_FILE: Final = "anew.json"
LOCK_FILE: Final = "lock"
SCHEMA: Final = 1
SEEDS_MAX: Final = 64
BYTES_MAX: Final = 16 * 1024 * 1024
OPEN_BITS: Final = 0o077
_SUM_BYTES: Final = 32
_OWN_FIELDS: Final = ("curve_secret", "curve_public", "sign_secret", "sign_public")
_MADE_ANEW: Final = (
    "restore it from a backup; without one, remove the directory and join the cluster again with "
    "`blackroad join`"
)

_records = msgspec.msgpack.Decoder(list[Record])


def exists(state_dir: Path) -> bool:
    """Has this node keys of a cluster?"""
    return (state_dir / DIRECTORY / CLUSTER_FILE).exists()


class Keyring:
    """All keys of one state directory; empty until `load`, `found` or `enter`."""

    own: NodeKeys
    members: MemberList

    def __init__(self, state_dir: Path) -> None:
        self.state = state_dir
        self.path = state_dir / DIRECTORY
        self.name = ""
        self.cluster_id = b""
        self.root_secret = b""
        # Public half, and for admins the secret one; the newest serial counts.
        self.door: tuple[bytes, bytes] = (b"", b"")
        self.door_serial = 0
        # Where members were when this node joined.
        self.seeds: tuple[str, ...] = ()
        self._list_secret = b""

    # --- reading ----------------------------------------------------------------------------------

    def load(self) -> bool:
        """Read everything; return False where there are no keys yet.

        Raises  StateDirectoryProblem where a file is missing, damaged or open to others.
        """
        told = self._read(CLUSTER_FILE)
        if told is None:
            return False
        with _damage(self.path / CLUSTER_FILE):
            if told["schema"] != SCHEMA:
                raise ValueError(f"schema {told['schema']}, this program reads {SCHEMA}")
            self.name = str(told["name"])
            root = _key(told["root"])
            self.door = (_key(told["door_key"]), _key(told["door_secret"], absent=True))
            self.door_serial = int(told["door_serial"])
            self._list_secret = _key(told["list_secret"])
            self.seeds = tuple(str(one) for one in told["seeds"])[:SEEDS_MAX]
        self.cluster_id = keys.fingerprint(root)
        self.own = self._load_own()
        secret = self._pair(ROOT_FILE)
        self.root_secret = secret[0] if secret and secret[1] == root else b""
        self.members = MemberList(root)
        self.members.merge(self._load_members(), 0, verified=True)
        return True

    @property
    def role(self) -> Role | None:
        """What this node may do; None where its key is revoked or not on the list."""
        member = self.members.by_key(self.own.curve_public)
        return member.role if member else None

    @property
    def admin(self) -> bool:
        """May this node sign for others?"""
        return self.members.signs(self.own.sign_public)

    def _load_own(self) -> NodeKeys:
        pair, signing = identity.read_keys(self.state), self._pair(SIGNING_FILE)
        if pair is None or signing is None:
            missing = self.path / SIGNING_FILE if pair else self.state / identity.IDENTITY_FILE
            raise StateDirectoryProblem(f"{missing} is missing", hint=_MADE_ANEW)
        return NodeKeys(node_id_from_key(pair[1]), *pair, *signing)

    def _load_members(self) -> list[Record]:
        path = self.path / MEMBERS_FILE
        with _damage(path), path.open("rb") as file:
            data = file.read(BYTES_MAX)
            mac, body = data[:_SUM_BYTES], data[_SUM_BYTES:]
            if not keys.same(mac, self._sum(body)):
                raise ValueError("its check sum does not fit")
            return _records.decode(body)

    def _sum(self, body: bytes) -> bytes:
        # Whoever can read that secret is this node: what stands under it was verified before.
        return keys.keyed(self._list_secret, body)

    def _pair(self, name: str) -> tuple[bytes, bytes] | None:
        told = self._read(name)
        if told is None:
            return None
        with _damage(self.path / name):
            secret, public = _key(told["secret"]), _key(told["public"])
            if keys.signing_public(secret) != public:
                raise ValueError("its two halves do not belong together")
            return secret, public

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & OPEN_BITS:
                    raise StateDirectoryProblem(
                        f"{path} is open to other users of this machine",
                        hint=f"chmod 600 {path}; if somebody may have read it, join anew with "
                        "another key (`blackroad rotate`)",
                    )
                with _damage(path):
                    told = json.loads(file.read(BYTES_MAX))
                    if not isinstance(told, dict):
                        raise ValueError("not a table")
                    return told
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirectoryProblem(
                f"{path} cannot be read: {error.strerror}",
                hint="run this as the user whose daemon it is, or as root",
            ) from None

    # --- writing ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs from changing the keys meanwhile; makes the directories.

        Raises  StateDirectoryProblem.
        """
        try:
            _make_owned(self.state)
            _make_owned(self.path)
            fd = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirectoryProblem(
                f"cannot use {self.path}: {error.strerror}",
                hint="run this as the user whose daemon it is, or as root",
            ) from None
        try:
            if os.geteuid() == 0:
                owner = self.state.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise StateDirectoryProblem(
                f"another program is changing the keys in {self.path}",
                hint="is a `blackroad join` still waiting to be approved? let it, or end it",
            ) from None
        finally:
            os.close(fd)

    def prepare(self, *, anew: bool = False) -> NodeKeys:
        """Read this node's own keys, or make them.

        With `anew` they are others, so that it becomes a new node, but not before `establish`; the
        same ones again where an earlier attempt came to nothing.

        Raises  StateDirectoryProblem.
        """
        if anew:
            self.own = self._read_keys(ANEW_FILE) or self._make_keys(ANEW_FILE)
            return self.own
        pair = identity.ensure_keys(self.state)
        signing = self._pair(SIGNING_FILE)
        if signing is None:
            signing = keys.new_signing()
            self._write_pair(SIGNING_FILE, signing)
        self.own = NodeKeys(node_id_from_key(pair[1]), *pair, *signing)
        return self.own

    def establish(
        self,
        name: str,
        members: MemberList,
        door: tuple[bytes, bytes, int],
        seeds: Sequence[str],
        root_secret: bytes = b"",
    ) -> None:
        """Write down the cluster that this node belongs to from now on; `prepare` comes first.

        `door` is the public half, the secret one or nothing, and their serial.

        Raises  StateDirectoryProblem.
        """
        self.name = name
        self.members = members
        self.cluster_id = keys.fingerprint(members.root_public)
        self.root_secret = root_secret
        self.seeds = tuple(seeds)[:SEEDS_MAX]
        self.door, self.door_serial = door[:2], door[2]
        self._list_secret = chance.token_bytes(keys.KEY_BYTES)
        if root_secret:
            self._write_pair(ROOT_FILE, (root_secret, members.root_public))
        if self.own == self._read_keys(ANEW_FILE):
            # The counter of lives goes on, and is there before the key: see `begin_life`.
            identity.ensure_keys(self.state)
            self._use_keys(ANEW_FILE, self.own)
        self.save_members()
        # Last: from here on the keys exist.
        self.save_cluster()

    def save_members(self) -> None:
        """Write the member list.

        Raises  StateDirectoryProblem.
        """
        body = msgspec.msgpack.encode(self.members.records())
        identity.write_flushed(self.path / MEMBERS_FILE, self._sum(body) + body)

    def save_cluster(self) -> None:
        """Write what is known of the cluster beside its members.

        Raises  StateDirectoryProblem.
        """
        self._write(
            CLUSTER_FILE,
            {
                "schema": SCHEMA,
                "name": self.name,
                "root": self.members.root_public.hex(),
                "door_key": self.door[0].hex(),
                "door_secret": self.door[1].hex(),
                "door_serial": self.door_serial,
                "list_secret": self._list_secret.hex(),
                "seeds": self.seeds,
            },
        )

    def _write_pair(self, name: str, pair: tuple[bytes, bytes]) -> None:
        self._write(name, {"secret": pair[0].hex(), "public": pair[1].hex()})

    def _write(self, name: str, told: Mapping[str, object]) -> None:
        text = json.dumps(told, indent=1) + "\n"
        identity.write_flushed(self.path / name, text.encode())

    # --- rotation ---------------------------------------------------------------------------------

    def next_keys(self) -> NodeKeys:
        """The keys this node changes to; made and kept until `switch` makes them its own.

        Raises  StateDirectoryProblem.
        """
        return self.rotating() or self._make_keys(NEXT_FILE)

    def rotating(self) -> NodeKeys | None:
        """The keys this node is about to change to, if it is."""
        return self._read_keys(NEXT_FILE)

    def switch(self) -> bool:
        """Change to the next keys, once they are on the member list; return whether it was done.

        A switch that a power cut interrupts can be done again.
        """
        made = self.rotating()
        if made is None or self.members.by_key(made.curve_public) is None:
            return False
        self._use_keys(NEXT_FILE, made)
        return True

    def _make_keys(self, name: str) -> NodeKeys:
        from blackroad.bus.sockets import key_pair

        curve, signing = key_pair(), keys.new_signing()
        made = NodeKeys(node_id_from_key(curve[1]), *curve, *signing)
        self._write(name, {field: getattr(made, field).hex() for field in _OWN_FIELDS})
        return made

    def _read_keys(self, name: str) -> NodeKeys | None:
        told = self._read(name)
        if told is None:
            return None
        with _damage(self.path / name):
            made = [_key(told[field]) for field in _OWN_FIELDS]
            return NodeKeys(node_id_from_key(made[1]), made[0], made[1], made[2], made[3])

    def _use_keys(self, name: str, made: NodeKeys) -> None:
        """Make those keys this node's own; the file they were kept in goes last."""
        self._write_pair(SIGNING_FILE, (made.sign_secret, made.sign_public))
        identity.write_keys(self.state, made.curve_secret, made.curve_public)
        self.own = made
        (self.path / name).unlink(missing_ok=True)

    def member(self) -> Member | None:
        """What the list says of this node."""
        return self.members.of_node(self.own.node)


def _make_owned(path: Path) -> None:
    """Make a directory for its owner alone; root gives it to whom the one above belongs."""
    if path.is_dir():
        return
    path.mkdir(mode=0o700, parents=True)
    if os.geteuid() == 0 and path.name == DIRECTORY:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _key(text: object, *, absent: bool = False) -> bytes:
    key = bytes.fromhex(str(text))
    if len(key) != keys.KEY_BYTES and not (absent and not key):
        raise ValueError(f"a key of {len(key)} bytes")
    return key


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of a file that cannot be made sense of which one it is, and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise StateDirectoryProblem(f"{path} is missing", hint=_MADE_ANEW) from None
    except OSError as error:
        raise StateDirectoryProblem(
            f"{path} cannot be read: {error.strerror}", hint="check the disk and its rights"
        ) from None
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise StateDirectoryProblem(f"{path} is damaged: {reason}", hint=_MADE_ANEW) from None
