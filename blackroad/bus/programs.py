"""The programs of this machine, in line with all other clients.

Edge.  This file must not know what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from blackroad.bus.local import LocalServer

if TYPE_CHECKING:
    from blackroad.bus.lines import Lines
    from blackroad.bus.messages import Message
    from blackroad.bus.sources import Sources

# What their handles begin with.
CLIENT_PREFIX: Final = b"i"


def serve_programs(
    path: str, lines: Lines, sources: Sources, said: Callable[[bytes, list[Message]], None]
) -> LocalServer:
    """Listen at `path`; `said` is given a client's handle and what it says.

    Raises  EnvironmentProblem where the path cannot be used.
    """

    def hear(route: bytes, packets: Iterator[bytes]) -> None:
        client = CLIENT_PREFIX + route
        for found in lines.read(client, packets):
            said(client, found)

    local = LocalServer(path, sources, hear, lambda route: lines.forget(CLIENT_PREFIX + route))
    lines.senders[CLIENT_PREFIX] = lambda route, _number, frames: local.send(route, frames)
    return local
