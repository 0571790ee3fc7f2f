"""Short answers for who looks again and again: all nodes, and one owner's tasks.

This file must not know how queries travel, nor what is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from blackroad.client.asking import QUERY_MS
from blackroad.errors import Unreachable
from blackroad.glance import MeshView, WorkArgs, WorkView

if TYPE_CHECKING:
    from blackroad.client.client import Client

T = TypeVar("T")
_mesh = msgspec.msgpack.Decoder(MeshView)
_work = msgspec.msgpack.Decoder(WorkView)
_encode = msgspec.msgpack.encode


def mesh(client: Client) -> MeshView:
    """All nodes, as this client's daemon sees them.

    Raises  Unreachable, NoDaemon; UsageError where that daemon does not know the question.
    """
    body = client._connection.query("mesh", b"", b"", QUERY_MS / 1000)
    return _read(_mesh, body, "mesh")


def work(client: Client, owner: bytes, tasks: int) -> WorkView:
    """One owner's tasks: totals, classes, and so many rows at most.

    Raises  as `mesh`.
    """
    args = _encode(WorkArgs(tasks))
    body = client._connection.query("work", args, owner, QUERY_MS / 1000)
    return _read(_work, body, "work")


def _read(decoder: msgspec.msgpack.Decoder[T], body: bytes, name: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreachable(
            f"a daemon answered `{name}` in another way than this program reads: {error}",
            hint="are both of one version? `blackroad doctor` compares them",
        ) from None
