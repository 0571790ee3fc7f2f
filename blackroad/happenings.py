"""What can happen to a node: everything that a driver ever tells `Node.handle`.

Pure data.  This file must not know what any of it leads to.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities
from blackroad.router.effects import Key


class Event(Struct, frozen=True, gc=False):
    """Base of all events."""


class Heard(Event, frozen=True, gc=False):
    """A Heartbeat came on SUB."""

    beat: m.Heartbeat


class Met(Event, frozen=True, gc=False):
    """A Hello or Welcome of a peer came: its life, and the newest of mine it knows (0: none)."""

    node: bytes
    inc: int
    your_inc: int
    your_mark: int = 0


class FromPeer(Event, frozen=True, gc=False):
    """Messages of one multipart came from a peer's link; `inc` is the life it belongs to."""

    node: bytes
    messages: Sequence[m.Message]
    inc: int = 0


class FromClient(Event, frozen=True, gc=False):
    """Messages came from a client of this daemon."""

    client: bytes
    messages: Sequence[m.Message]


class Finished(Event, frozen=True, gc=False):
    """An attempt has ended and left this; of a bundle, the tasks `before` this one are done."""

    key: Key
    status: m.Status
    result: m.Payload
    facts: m.Facts
    before: tuple[m.Early, ...] = ()


class Split(Event, frozen=True, gc=False):
    """A running bundle was divided: these are done, the next one runs, the rest never will."""

    key: Key
    before: tuple[m.Early, ...]


class Killed(Event, frozen=True, gc=False):
    """A killed attempt is proven gone; of a bundle, the tasks `before` the last one are done."""

    key: Key
    before: tuple[m.Early, ...] = ()


class Returned(Event, frozen=True, gc=False):
    """What was handed ahead was taken back before it began."""

    key: Key


class Fetched(Event, frozen=True, gc=False):
    """An object is here, checked."""

    digest: bytes


class FetchFailed(Event, frozen=True, gc=False):
    """An object cannot be had: all holders say so (`gone`), or it stands still for too long.

    `here` says that the fault is this node's, which has no room for it.
    """

    digest: bytes
    text: str
    gone: bool = True
    here: bool = False


class Evicted(Event, frozen=True, gc=False):
    """An object left the store."""

    digest: bytes


class Flushed(Event, frozen=True, gc=False):
    """Everything persisted up to `mark` is on disk."""

    mark: int


class Probed(Event, frozen=True, gc=False):
    """The hardware probe ended."""

    capabilities: Capabilities


class Sensed(Event, frozen=True, gc=False):
    """What the machine's sensors say now."""

    temperature_c: int
    throttled: bool
    load_percent: int
    receiving_kib_s: int = 0
    sending_kib_s: int = 0
    cpu_percent: int = 0
    memory_percent: int = 0


class Drain(Event, frozen=True, gc=False):
    """Take nothing new (or take work again)."""

    on: bool


class Leave(Event, frozen=True, gc=False):
    """The daemon ends in order and cannot wait: end what runs, and report it as stopped."""


class Space(Event, frozen=True, gc=False):
    """The state directory has no room for new durable work, or has room again."""

    full: bool


class Overslept(Event, frozen=True, gc=False):
    """The driver's loop stood still for so long."""

    gap_ms: int


class Tick(Event, frozen=True, gc=False):
    """Time is now."""

    lag_ms: int = 0


AnyEvent = (
    Heard
    | Met
    | FromPeer
    | FromClient
    | Finished
    | Killed
    | Split
    | Returned
    | Fetched
    | FetchFailed
    | Evicted
    | Flushed
    | Probed
    | Sensed
    | Drain
    | Leave
    | Space
    | Overslept
    | Tick
)
