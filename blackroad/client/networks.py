"""What the daemons know of the ways between them, asked for by whatever way there is.

This file must not judge what it is told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.errors import BlackroadError, UsageError
from blackroad.ids import bytes32, text32

if TYPE_CHECKING:
    from blackroad.client.client import Client

NODES_MAX: Final = 32
HELPERS_MAX: Final = 3


class View(NamedTuple):
    """One node's own view; `status` is None where nobody could ask it.

    `via` names the node through which it was asked, "" where it was asked directly; `probed` are
    rows of node, host, port and result, None where they could not be had.

    Units  `ahead_ms` is how far its clock of people is ahead of the asked daemon's, at most
           `within_ms` off.
    """

    node: str
    name: str
    status: dict[str, Any] | None
    probed: list[dict[str, Any]] | None
    via: str = ""
    ahead_ms: int = 0
    within_ms: int = 0
    state: str = ""


def look(client: Client) -> list[View]:
    """Ask the own daemon first, then everybody whom it or others know.

    Raises  NoDaemon, Unreachable where the own daemon does not answer.
    """
    me = text32(client.node_id)
    began_ms = _now_ms()
    status = client._ask("net.status", {})
    offset_ms = int(status["wall_ms"]) - (began_ms + _now_ms()) // 2
    rows = {str(row["node"]): row for row in client.nodes()["nodes"]}
    probed = client._ask("net.probe", {})["probed"]
    views = {me: View(me, str(status["name"]), status, probed, state=_state(rows, me))}
    waiting = [*rows, *(str(peer["node"]) for peer in status["peers"])]
    # Whom two machines claim to be gets no answer, and would wait for each in vain.
    shut_out = views[me].state == "clone"
    for node in waiting:
        if node in views or len(views) >= NODES_MAX:
            continue
        unasked = View(node, "", None, None)
        view = unasked if shut_out else _of_another(client, node, views, offset_ms)
        views[node] = view._replace(
            name=view.name or _name(rows, views, node), state=_state(rows, node)
        )
        if view.status is not None:
            waiting += [str(peer["node"]) for peer in view.status["peers"]]
    return list(views.values())


def _of_another(client: Client, node: str, views: dict[str, View], offset_ms: int) -> View:
    """Ask one node: over the own daemon's link to it, else through a node that was reached."""
    ways = [("", b"")]
    helpers = [one for one in views.values() if one.status is not None and not one.via]
    for one in helpers[1 : 1 + HELPERS_MAX]:
        ways.append((one.name, bytes32(one.node)))
    for name, target in ways:
        began_ms = _now_ms()
        status = _asked(client, node, "net.status", target)
        if status is None:
            continue
        ended_ms = _now_ms()
        probed = _asked(client, node, "net.probe", target)
        return View(
            node,
            str(status["name"]),
            status,
            None if probed is None else probed["probed"],
            name,
            int(status["wall_ms"]) - (began_ms + ended_ms) // 2 - offset_ms,
            (ended_ms - began_ms) // 2 + 1,
        )
    return View(node, "", None, None)


def _asked(client: Client, node: str, what: str, target: bytes) -> dict[str, Any] | None:
    try:
        return client._ask("net.ask", {"node": node, "ask": what}, target=target)
    except UsageError:
        # A daemon that does not know the question yet.
        return None
    except BlackroadError:
        return None


def _state(rows: dict[str, dict[str, Any]], node: str) -> str:
    return str(rows[node]["state"]) if node in rows else ""


def _name(rows: dict[str, dict[str, Any]], views: dict[str, View], node: str) -> str:
    if node in rows:
        return str(rows[node]["name"])
    for view in views.values():
        for peer in view.status["peers"] if view.status is not None else ():
            if peer["node"] == node and peer["name"]:
                return str(peer["name"])
    return node[:8]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
