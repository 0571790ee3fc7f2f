"""The keys of a program that reaches the mesh over TCP: its own, and the one the daemon proves.

Edge.  Whose address it is, is not known beforehand: the keys of all nodes are tried at once, and
the one that opens the connection is the daemon's.  Nothing is said to anybody else.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from blackroad import directories
from blackroad.bus.sockets import Bus, Poller, Socket, connect, connected
from blackroad.errors import NoDaemon, StateDirectoryProblem
from blackroad.store.keyring import Keyring, exists

if TYPE_CHECKING:
    from blackroad.config import Config

AT_ONCE: Final = 64
POLL_MS: Final = 100


def keyring_of(config: Config) -> Keyring | None:
    """The keys of this configuration's state directory; None where this machine has none.

    Raises  StateDirectoryProblem where they are damaged, or not this user's.
    """
    state = config.state_dir or directories.default_state(os.environ)
    try:
        if not exists(state):
            return None
    except OSError as error:
        raise StateDirectoryProblem(
            f"cannot look for keys in {state}: {error.strerror}",
            hint="run this as the user whose keys they are, or set `state_dir` to your own and "
            "join with a token of the role `submit`",
        ) from None
    keyring = Keyring(state)
    return keyring if keyring.load() else None


def key_of(endpoint: str, keyring: Keyring, timeout_s: float) -> bytes:
    """Find out which node's key opens that address.

    Raises  NoDaemon where none does in time.
    """
    members = keyring.members
    own = members.by_key(keyring.own.curve_public)
    if own is None:
        raise NoDaemon(
            f"{endpoint}: this machine's key is no member of `{keyring.name}` any more",
            hint="join again: `blackroad join TOKEN`",
        )
    keys = members.node_keys()
    until_s = time.monotonic() + timeout_s
    share_s = timeout_s / max(1, -(-len(keys) // AT_ONCE))
    bus = Bus(keyring.own)
    try:
        for at in range(0, len(keys), AT_ONCE):
            part_s = min(until_s, time.monotonic() + share_s)
            found = _opened(bus, endpoint, keys[at : at + AT_ONCE], part_s)
            if found:
                return found
    finally:
        bus.close()
    raise NoDaemon(f"no member of `{keyring.name}` answers at {endpoint}")


def _opened(bus: Bus, endpoint: str, keys: list[bytes], until_s: float) -> bytes:
    """Try some keys at once; return the one with which a handshake came about."""
    poller = Poller()
    tried: dict[Socket, tuple[bytes, Socket]] = {}
    try:
        for key in keys:
            socket = bus.client(key)
            monitor = bus.monitor(socket)
            tried[monitor] = (key, socket)
            poller.watch(monitor)
            if not connect(socket, endpoint):
                raise NoDaemon(f"{endpoint} is not an address")
        while (left_ms := int((until_s - time.monotonic()) * 1000)) > 0:
            for monitor, _ in poller.wait(min(POLL_MS, left_ms)):
                if any(connected(monitor)):
                    return tried[monitor][0]
        return b""
    finally:
        for monitor, (_, socket) in tried.items():
            bus.drop(monitor)
            bus.drop(socket)
