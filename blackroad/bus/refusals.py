"""Greetings that get no link: another mesh, no common version, a clone.

Source  docs/protocol.md, R-link-3.  Pure.  This file must not know how the answer travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.link import common_version
from blackroad.bus.messages import Hello, Reject
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN

if TYPE_CHECKING:
    from blackroad.bus.pasts import Pasts

CLONE_TEXT = (
    "two machines use the identity of this node; stop the daemon on the copy, remove "
    "identity.json and cluster/ from its state directory (and the journal, if that is a copy "
    "too), then start both again and let the copy join"
)


def refusal_of(hello: Hello, cluster: bytes, pasts: Pasts) -> Reject | None:
    """Why that greeting gets no session in this cluster, or None."""
    if hello.cluster != cluster:
        text = "this daemon belongs to another mesh"
        return Reject("cluster", text, hello.dialled)
    if not common_version(hello):
        text = (
            f"this daemon speaks protocol {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}, "
            f"yours {hello.version_min} to {hello.version_max}"
        )
        return Reject("version", text, hello.dialled, hello.inc)
    if pasts.is_shunned(hello.node, hello.inc):
        return Reject("clone", CLONE_TEXT, hello.dialled, hello.inc)
    return None
