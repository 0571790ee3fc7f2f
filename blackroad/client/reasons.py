"""Why a task is not running, asked of who knows: its owner, and the coordinator it depends on.

This file must not know how queries travel, nor what the rules are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blackroad.errors import Unreachable, UsageError
from blackroad.ids import bytes32

if TYPE_CHECKING:
    from blackroad.client.client import Client


def why(client: Client, task_id: str) -> dict[str, Any]:
    """Everything that keeps a task from running; nothing does where `holds` is empty.

    Raises  UnknownTask, Unreachable, UsageError, NoDaemon.
    """
    from blackroad.router.why import together

    told = client._about("why", task_id)
    if not told.get("holds") or not told["coordinator_node"]:
        return together(told, None) if "holds" in told else told
    args = {"owner": bytes32(told["owner"]), "cls": told["class"]}
    try:
        pool = client._ask("pool", args, target=bytes32(told["coordinator_node"]))
    except (Unreachable, UsageError):
        # It is silent or of an older version: then there is the owner's part.
        pool = None
    return together(told, pool)
