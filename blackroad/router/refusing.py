"""What an owner says to a client whose tasks it does not take.

Pure.  This file must not know how tasks are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import Lack, Rejected
from blackroad.requirements import explain, from_wire

if TYPE_CHECKING:
    from blackroad.bus.messages import ClassSpec, Item
    from blackroad.router.nodes_view import NodesView

NO_SPACE = (
    "the disk under this node's state directory is full: make room there (`blackroad nodes` names "
    "the node), or submit to another node; tasks that are not durable are still taken"
)


def unplaceable(spec: ClassSpec, items: Sequence[Item], view: NodesView) -> Rejected:
    """No node that is there could run it: say of each need what is nearest to it."""
    nodes = [
        (one.capabilities.name, one.text, one.capabilities)
        for one in view.present()
        if one.capabilities is not None
    ]
    rows = explain(from_wire(spec.needs), nodes)
    lacks = tuple(Lack(*(str(cell)[:128] for cell in row)) for row in rows[:64])
    ids = tuple(item.task for item in items)
    name = spec.name or "this task"
    text = f"no node can run `{name}`"
    if not rows:
        text = f"`{name}` needs {spec.gang} nodes at once, and fewer can run it"
    return Rejected(ids, "unplaceable", text, lacks, len(nodes))
