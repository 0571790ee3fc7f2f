"""Orders to daemons: try a task again, let a node drain, let it work again.

Each sets a state and may be repeated, so a lost answer is asked for again.  This file must not
know how queries travel.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blackroad.errors import StillRunning, Unreachable, UsageError
from blackroad.ids import bytes32, task_text

if TYPE_CHECKING:
    from blackroad.client.client import Client

ASKS = 3
LOOK_S = 0.25
_HERE = ("alive", "draining", "suspect")


def retry(client: Client, task_id: str, new: bytes) -> str:
    """Have the owner of an ended task submit its work anew under the id `new`.

    Return the new task's printed id.

    Raises  UsageError where it cannot be tried again; UnknownTask; Unreachable.
    """
    owner, id_ = client._owner_of(task_id)
    try:
        told = _insist(client, "retry", {"task": id_, "new": new}, owner)
    except Unreachable as error:
        text = task_text(owner, new)
        raise Unreachable(
            error.message,
            hint=f"whether it was taken is not known: `blackroad status {text}` tells",
        ) from None
    return str(told["id"])


def _insist(client: Client, name: str, args: Mapping[str, Any], target: bytes) -> dict[str, Any]:
    """Ask again where an answer may have been lost on the way."""
    for _ in range(ASKS - 1):
        with contextlib.suppress(Unreachable):
            return client._ask(name, args, target=target)
    return client._ask(name, args, target=target)


def order(client: Client, name: str, node: str) -> dict[str, Any]:
    """Give `drain` or `resume` to a node; return what it says of itself afterwards."""
    return _insist(client, name, {}, node_of(client, node))


def drained(client: Client, node: str, timeout_s: float | None) -> dict[str, Any]:
    """Wait until a draining node runs nothing; return what it says of itself then.

    Raises  StillRunning after `timeout_s`; UsageError where it was told to resume meanwhile;
            Unreachable.
    """
    target = node_of(client, node)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        told = _insist(client, "node", {}, target)
        if not told["draining"]:
            raise UsageError(
                f"`{told['name']}` takes work again: somebody ended its draining meanwhile",
                hint=f"`blackroad drain {told['name']}` begins it anew",
            )
        if not told["running"] and not told["waiting"]:
            return told
        if until is not None and time.monotonic() >= until:
            count = told["running"]
            raise StillRunning(
                f"`{told['name']}` still runs {count} task{'s' if count != 1 else ''}",
                hint="it goes on draining; `blackroad nodes` shows what it runs",
            )
        time.sleep(LOOK_S if until is None else max(0, min(LOOK_S, until - time.monotonic())))


def node_of(client: Client, text: str) -> bytes:
    """The node that a name or the start of an id stands for; nothing stands for the own daemon.

    Raises  UsageError naming what is near; Unreachable where that node is away.
    """
    if not text:
        return client.node_id
    wanted = text.lower()
    rows = client.nodes()["nodes"]
    found = [row for row in rows if row["name"].lower() == wanted]
    found = found or [row for row in rows if row["node"].startswith(wanted)]
    if not found:
        names = [row["name"] for row in rows]
        near = difflib.get_close_matches(text, names, n=1)
        meant = f"did you mean `{near[0]}`? " if near else ""
        raise UsageError(
            f"no node `{text}` is in this mesh", hint=f"{meant}there are: {', '.join(names)}"
        )
    if len(found) > 1:
        ids = ", ".join(row["id"] for row in found)
        raise UsageError(f"`{text}` stands for {len(found)} nodes", hint=f"write an id: {ids}")
    [row] = found
    if row["state"] not in _HERE:
        raise Unreachable(
            f"`{row['name']}` is {row['state']}", hint="it can be told when it is back"
        )
    return bytes32(row["node"])
