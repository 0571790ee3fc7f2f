"""Sessions with a mesh that lives in the calling process itself.

Edge.  This file must not know what is said to it.
"""

from __future__ import annotations

import atexit
import os
import weakref

from blackroad.client.connection import Connection
from blackroad.errors import UsageError
from blackroad.limits import SLOTS_MAX

START_S = 30.0

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def private_mesh(endpoint: str | None, workers: int | None, user: str) -> Connection:
    """Start a mesh of one node in this process, and return a session with it.

    Raises  UsageError; EnvironmentProblem where processes cannot be started; DiskProblem.
    """
    if endpoint is not None:
        raise UsageError(
            "an embedded mesh has no endpoint",
            hint="leave either `embedded` or the endpoint out",
        )
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if type(count) is not int or not 1 <= count <= SLOTS_MAX:
        raise UsageError(f"`workers` is a number from 1 to {SLOTS_MAX}, not {workers!r}")
    # What a daemon is made of: only programs that are one need to pay for it.
    from blackroad.embedded import EmbeddedWire

    wire = EmbeddedWire(count)
    connection = Connection(wire, user, wire.where)
    wire.held = connection.outgoing.chunks
    connection.start(START_S)
    _open.add(connection)
    return connection


@atexit.register
def _close_all() -> None:
    """No task process outlives the program, and no directory."""
    for connection in list(_open):
        connection.close()
