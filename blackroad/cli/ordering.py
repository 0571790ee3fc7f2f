"""Where orders about the cluster go: to the daemon of this machine, else straight to its files.

This file must not know what is ordered, nor print anything but what is amiss.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blackroad.cli import output
from blackroad.errors import (
    BlackroadError,
    NoDaemon,
    StateDirectoryProblem,
    Unreachable,
    UsageError,
)

if TYPE_CHECKING:
    from blackroad.client.client import Client
    from blackroad.config import Config
    from blackroad.store.keyring import Keyring

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]

CONNECT_S: Final = 1.0
RELOAD_S: Final = 15.0
LOOK_S: Final = 0.05


def configuration() -> Config:
    """Read the configuration as it counts once there are keys: that is what these commands make."""
    from blackroad.config import load, resolved

    return resolved(load(keys_exist=lambda _config: True), keys_exist=lambda _config: True)


def state_of(config: Config) -> Path:
    assert config.state_dir is not None
    return config.state_dir


@contextlib.contextmanager
def serving(config: Config) -> Iterator[Ask]:
    """Yield what answers orders: this machine's daemon, or its files where none runs.

    Raises  UsageError where this machine belongs to no cluster; StateDirectoryProblem.
    """
    from blackroad.bus.admission import Role
    from blackroad.ids import text32

    client = _client(config)
    if client is not None:
        try:
            yield lambda name, args: _asked(client, name, args)
        finally:
            client.close()
        return
    from blackroad.store import keyring
    from blackroad.store.identity import StateDirectory

    state = state_of(config)
    found = keyring.Keyring(state)
    if keyring.exists(state) and found.load() and found.role in (Role.VIEW, Role.SUBMIT):
        # No daemon keeps this machine's list up to date: its own copy is as old as its joining.
        from blackroad.client.client import Client

        own = text32(found.own.node)
        with Client() as remote:
            yield lambda name, args: _as_seen_by(own, _asked(remote, name, args))
        return
    if not keyring.exists(state):
        raise UsageError(
            "this machine belongs to no cluster" + _whose(state),
            hint="`blackroad init` makes one; `blackroad join TOKEN` enters one that is there",
        )
    # No daemon may start meanwhile: it would not know what is changed here.
    directory = StateDirectory(state)
    directory.open()
    try:
        yield _offline(config, state)
    finally:
        directory.close()


def _asked(client: Client, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Give an order to a daemon; what it says against it is a message and, below it, a hint."""
    from blackroad.store.registrar import HINT

    try:
        return client._ask(name, args)
    except UsageError as error:
        message, _, hint = error.message.partition(HINT)
        raise UsageError(message, hint=hint) from None


def _as_seen_by(own: str, told: dict[str, Any]) -> dict[str, Any]:
    """Mark this machine in a list that another one has told."""
    for row in told.get("members", ()):
        row["this"] = row["node"] == own
    return told


def _offline(config: Config, state: Path) -> Ask:
    import msgspec

    from blackroad.bus.members import Role
    from blackroad.starting import own_endpoints, wall_ms
    from blackroad.store.keyring import Keyring
    from blackroad.store.registrar import Registrar

    kept = Keyring(state)
    kept.load()
    registrar = Registrar(
        kept,
        wall_ms=wall_ms,
        door_endpoints=lambda: (
            own_endpoints(config.listen or "127.0.0.1", config.join_port)[:8]
            if config.join_port
            else ()
        ),
    )

    def ask(name: str, args: dict[str, Any]) -> dict[str, Any]:
        if name == "cluster.rotate" and not kept.admin:
            raise NoDaemon(
                "an admin has to sign the new keys, and no daemon runs here to ask one",
                hint="start the daemon, and try again",
            )
        told = registrar.carry_out(name, msgspec.msgpack.encode(args), Role.ADMIN)
        if name == "cluster.rotate":
            kept.switch()
        return told

    return ask


def _client(config: Config) -> Client | None:
    """A session with a daemon of this machine; None where none runs."""
    from blackroad.config import client_sockets

    for socket in client_sockets(config):
        if not os.access(socket, os.W_OK):
            continue
        from blackroad.client.client import Client

        with contextlib.suppress(NoDaemon):
            return Client(f"ipc://{socket}", connect_timeout=CONNECT_S)
    return None


def _whose(state: Path) -> str:
    """A hint for who forgot `sudo` on a machine whose daemon the system runs."""
    from blackroad.directories import SYSTEM_STATE

    if os.geteuid() != 0 and state != SYSTEM_STATE and SYSTEM_STATE.exists():
        return f" for this user; the system's daemon has its own in {SYSTEM_STATE}"
    return ""


def reload(config: Config, keyring: Keyring) -> bool:
    """Let a running daemon use its new keys; return whether one runs and serves with them.

    Raises  StateDirectoryProblem where it does not come back.
    """
    client = _client(config)
    if client is None:
        return False
    try:
        client._ask("cluster.reload", {})
    except Unreachable:
        # The answer may be lost with the sockets that are opened anew.
        pass
    except UsageError as error:
        output.note(f"the daemon that runs here cannot use the keys: {error.message}")
        return False
    finally:
        client.close()
    node = keyring.own.node
    until = time.monotonic() + RELOAD_S
    while time.monotonic() < until:
        with contextlib.suppress(BlackroadError):
            client = _client(config)
            if client is not None:
                try:
                    if client.node_id == node and client._ask("cluster.members", {}):
                        return True
                finally:
                    client.close()
        time.sleep(LOOK_S)
    raise StateDirectoryProblem(
        "the keys are made, but the daemon of this machine has not come back with them",
        hint="see its log: `journalctl -u blackroad-node`, or start it anew",
    )


def warn_loopback(endpoints: list[str]) -> None:
    if not endpoints:
        output.note("The token names no address: start the daemon and make another token.")
    elif all("//127." in one or "//[::1]" in one for one in endpoints):
        output.note("The token leads to this machine alone: `listen` is set to loopback.")
