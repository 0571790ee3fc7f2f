"""Owner and coordinator: what is wanted, and who may use what.

Source  docs/protocol.md, "Demand and allocation".
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blackroad.bus.fields import NeedsWire, User
from blackroad.bus.parts import Message, Part
from blackroad.ids import U32, U63, Epoch, NodeId
from blackroad.limits import GANG_NODES_MAX


class InUse(Part, frozen=True, array_like=True, gc=False):
    """How many slots of one node a class occupies."""

    node: NodeId
    slots: U32


class ClassDemand(Part, frozen=True, array_like=True, gc=False):
    """One class in a Demand."""

    cls: U32
    needs: NeedsWire
    priority: Annotated[int, Meta(ge=-128, le=127)]
    user: User
    gang: Annotated[int, Meta(ge=1, le=GANG_NODES_MAX)]
    exclusive: bool
    queued: U32
    oldest_wait_ms: U63
    mean_ms: U63
    in_use: Annotated[tuple[InUse, ...], Meta(max_length=256)]


class Demand(Message, frozen=True, array_like=True, gc=False, tag=0x10):
    """Owner -> coordinator: all that this owner wants; a newer one replaces it."""

    inc: U63
    seq: U32
    classes: Annotated[tuple[ClassDemand, ...], Meta(max_length=256)]
    avoid: Annotated[tuple[NodeId, ...], Meta(max_length=64)] = ()


class Row(Part, frozen=True, array_like=True, gc=False):
    """So many slots of this node are for this class."""

    cls: U32
    node: NodeId
    slots: Annotated[int, Meta(ge=0, le=65535)]


class Allocation(Message, frozen=True, array_like=True, gc=False, tag=0x11):
    """Coordinator -> owner: the whole table; it answers the Demand (inc, demand_seq)."""

    epoch: Epoch
    seq: U32
    inc: U63
    demand_seq: U32
    rows: Annotated[tuple[Row, ...], Meta(max_length=2800)]
