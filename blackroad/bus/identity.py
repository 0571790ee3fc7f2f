"""Who a daemon is on the wire, and which mesh it belongs to.

Pure.  This file must not know how either is proved.
"""

from __future__ import annotations

from typing import NamedTuple

from blackroad.digest import blake2b


class Identity(NamedTuple):
    """Who this daemon is on the wire."""

    node: bytes
    inc: int
    name: str
    cluster: bytes


def cluster_digest(name: str) -> bytes:
    """What tells the daemons of one mesh from those of another on the same network."""
    return blake2b(name.encode(), digest_size=16, person=b"blackroad-mesh").digest()


def closed_cluster_digest(cluster_id: bytes) -> bytes:
    """The same for a cluster with keys, whose name anybody may give to another one."""
    return blake2b(cluster_id, digest_size=16, person=b"blackroad-keys").digest()
