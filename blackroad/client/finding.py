"""Which daemon a program speaks with: the machine's own, else those that the configuration names.

Edge.  This file must not know what is said to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.admission import Role
from blackroad.client.connection import Connection
from blackroad.client.local_wire import LocalWire
from blackroad.client.wire import SocketWire, Wire
from blackroad.errors import BlackroadError, NoDaemon

if TYPE_CHECKING:
    from blackroad.config import Config

_NO_DAEMON_HINT = (
    "start one: `blackroad up` for a mesh on this machine, `systemctl start blackroad-node` for "
    "the service, or name a daemon in BLACKROAD_ENDPOINTS"
)


def find_daemon(endpoint: str | None, user: str, timeout_s: float) -> Connection:
    """Try the addresses in their order; the first that answers is the one.

    Over TCP this machine's keys prove who asks, where it has some.

    Raises  NoDaemon saying what was tried; ConfigError; StateDirectoryProblem.
    """
    if endpoint is not None:
        tried = [endpoint if "://" in endpoint else f"tcp://{endpoint}"]
        # Who names a socket of this machine needs nothing of what is configured.
        settings = None if tried[0].startswith("ipc://") else _settings()
    else:
        from blackroad.config import client_sockets

        settings = _settings()
        sockets = [path for path in client_sockets(settings) if path.exists()]
        tried = [f"ipc://{path}" for path in sockets]
        tried += [f"tcp://{one}" if "://" not in one else one for one in settings.endpoints]
        tried += [one for one in _joined_at(settings) if one not in tried]
    reasons = []
    for one in tried:
        try:
            return _started(one, user, settings, timeout_s)
        except NoDaemon as error:
            reasons.append(error.message)
        except BlackroadError as error:
            reasons.append(f"{one}: {error.message}")
    raise NoDaemon(
        "no daemon answers on this machine or at any configured endpoint",
        hint=_NO_DAEMON_HINT,
        because=reasons,
    )


def _settings() -> Config:
    from blackroad import config

    # A program listens nowhere, whatever the daemon's configuration says.
    return config.load(keys_exist=lambda _config: True)


def _joined_at(settings: Config) -> tuple[str, ...]:
    """Where this machine was let in: one that may only use the cluster has no daemon of its own."""
    from blackroad.client.keys import keyring_of

    keyring = keyring_of(settings)
    role = keyring.role if keyring is not None else None
    return keyring.seeds if keyring is not None and role in (Role.VIEW, Role.SUBMIT) else ()


def _started(endpoint: str, user: str, settings: Config | None, timeout_s: float) -> Connection:
    """Speak with the daemon there.

    Raises  NoDaemon; BlackroadError where it refuses.
    """
    if settings is not None and endpoint.startswith("tcp://"):
        from blackroad.client.keys import key_of, keyring_of

        keyring = keyring_of(settings)
        if keyring is not None:
            key = key_of(endpoint, keyring, timeout_s)
            connection = Connection(SocketWire(endpoint, keyring.own, key), user, endpoint)
            connection.start(timeout_s)
            return connection
    wire: Wire
    if endpoint.startswith("ipc://"):
        wire = LocalWire(endpoint.removeprefix("ipc://"))
    else:
        wire = SocketWire(endpoint)
    connection = Connection(wire, user, endpoint)
    connection.start(timeout_s)
    return connection
