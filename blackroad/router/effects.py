"""What a pure machine asks the world to do, as data, in order.

The driver (daemon or simulator) executes the list from front to back; order is part of the
contract.  This file must not know who executes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from blackroad.bus.messages import (
    ClassSpec,
    End,
    Facts,
    Heartbeat,
    Message,
    Outcome,
    Payload,
    Ref,
    Small,
)
from blackroad.ids import Token

Key = tuple[bytes, Token]
Handle = bytes


class Effect(Struct, frozen=True, gc=False):
    """Base of all effects."""


class Send(Effect, frozen=True, gc=False):
    """Put a message on the direct link to another node."""

    to: bytes
    message: Message


class Tell(Effect, frozen=True, gc=False):
    """Put a message on the connection of one client of this daemon.

    A `lazy` one may wait up to a second for company: nobody waits for it.
    """

    client: Handle
    message: Message
    lazy: bool = False


class Publish(Effect, frozen=True, gc=False):
    """Send a Heartbeat on PUB."""

    beat: Heartbeat


class Start(Effect, frozen=True, gc=False):
    """Run an attempt in a task process, whose supervisor kills it at `deadline_ms` by itself.

    Units  `deadline_ms` is a stamp of this node's boot-time clock.
    """

    key: Key
    task: bytes
    spec: ClassSpec
    code: Ref | None
    work: Payload
    attempt: int
    devices: tuple[int, ...]
    deadline_ms: int = 2**62
    # A bundle: these run after it in the same process, one after the other.
    more: tuple[Small, ...] = ()


class HandAhead(Effect, frozen=True, gc=False):
    """Give an attempt to the process of another one, to begin there as soon as that one ended.

    No more than a hint: Start follows in any case, or TakeBack does.
    """

    start: Start
    after: Key


class TakeBack(Effect, frozen=True, gc=False):
    """Have what was handed ahead not begin any more, and report that it is returned.

    Nothing is reported where it has begun: the end of the one before it is, anyway.
    """

    key: Key


class Divide(Effect, frozen=True, gc=False):
    """Take back from a running bundle what has not begun, and report what is done."""

    key: Key


class Extend(Effect, frozen=True, gc=False):
    """Tell the supervisor of a running attempt its later deadline."""

    key: Key
    deadline_ms: int


class Kill(Effect, frozen=True, gc=False):
    """End an attempt's whole process tree, then report that it is gone."""

    key: Key
    why: str


class Fetch(Effect, frozen=True, gc=False):
    """Bring an object here: from a node (`holder`) or from a client (`client`)."""

    ref: Ref
    holder: bytes
    client: Handle = b""


class Pin(Effect, frozen=True, gc=False):
    """Keep an object until the matching Unpin."""

    digest: bytes


class Unpin(Effect, frozen=True, gc=False):
    """One reason less to keep an object."""

    digest: bytes


class Note(Effect, frozen=True, gc=False):
    """Something a person may want to know; goes to the log and the event stream."""

    name: str
    facts: dict[str, object]


class NewLife(Effect, frozen=True, gc=False):
    """End this life, raise the incarnation counter above `above`, flush it, begin another life."""

    above: int


class Shun(Effect, frozen=True, gc=False):
    """Close the link to that node, and answer its Hello with Reject `reason`."""

    node: bytes
    reason: str


class KeepDrain(Effect, frozen=True, gc=False):
    """Remember beyond this life whether the node drains: somebody ordered it."""

    on: bool


class Lookup(Effect, frozen=True, gc=False):
    """Answer a query from what only the driver has (output of tasks, the journal).

    The answer goes to `to`: a client's handle, or a node where `peer` is set.
    """

    to: bytes
    peer: bool
    query: int
    name: str
    args: bytes


class TaskRow(Effect, frozen=True, gc=False):
    """Journal: this task is mine.

    Units  `deadline_ms` is what remains from the moment of writing, 0 for none; at a restart the
           driver hands over what still remains then, at least 1.
    """

    task: bytes
    spec: ClassSpec
    code: Ref | None
    work: Payload
    wait_for_node: bool
    deadline_ms: int


class AttemptRow(Effect, frozen=True, gc=False):
    """Journal: an attempt of the task may exist on these nodes from now on.

    It replaces the task's earlier rows of this kind.  Without members it says that the attempt
    is proven over and the task queued again; the counts hold in both cases.  `stop` is how the
    task shall end once all members are over, where that is wished; `lease_ms` is what it was
    granted for, since the default may be another one after a restart (0 in old rows).
    """

    task: bytes
    token: Token
    members: tuple[tuple[bytes, int], ...]
    isolated: bool
    go: bool
    tries: int
    crashes: int
    losses: int
    killers: int
    failures: int = 0
    stop: End | None = None
    stop_reason: str = ""
    lease_ms: int = 0


class EndRow(Effect, frozen=True, gc=False):
    """Journal: the task's one outcome."""

    task: bytes
    end: End
    reason: str
    result: Payload
    facts: Facts
    node: bytes
    attempts: int


class ForgetRow(Effect, frozen=True, gc=False):
    """Journal: nothing about this task need be kept."""

    task: bytes


class SpoolRow(Effect, frozen=True, gc=False):
    """Spool: this outcome is owed to that owner until it acknowledges."""

    owner: bytes
    outcome: Outcome


class UnspoolRow(Effect, frozen=True, gc=False):
    """Spool: that outcome is acknowledged or given up."""

    owner: bytes
    token: Token


JournalRow = TaskRow | AttemptRow | EndRow | ForgetRow | SpoolRow | UnspoolRow
Then = Callable[[Any, int], None]


class Persist(Effect, frozen=True, gc=False):
    """Flush these rows, in order with all earlier ones; then report `mark` as flushed."""

    rows: tuple[JournalRow, ...]
    mark: int


class Outbox:
    """Where the machines of one node put their effects.

    A message to this very node does not become an effect: it waits in `local` for the node to
    hand it over by function call.
    """

    def __init__(self, me: bytes) -> None:
        self.me = me
        self.effects: list[Effect] = []
        self.local: list[Message] = []
        self.rows: list[JournalRow] = []
        self.mark = 0
        self.flushed = 0
        self._waiting: deque[tuple[int, Then, Any]] = deque()

    def send(self, to: bytes, message: Message) -> None:
        """Queue a message to a node, this one included."""
        if to == self.me:
            self.local.append(message)
        else:
            self.effects.append(Send(to, message))

    def tell(self, client: Handle, message: Message, lazy: bool = False) -> None:
        """Queue a message to a client."""
        self.effects.append(Tell(client, message, lazy))

    def add(self, effect: Effect) -> None:
        """Queue any other effect."""
        self.effects.append(effect)

    def note(self, name: str, **facts: object) -> None:
        """Queue a note."""
        self.effects.append(Note(name, facts))

    def persist(self, row: JournalRow) -> None:
        """Queue a journal row."""
        self.rows.append(row)

    def when_flushed(self, then: Then, what: Any, now_ms: int) -> None:
        """Call `then(what, now_ms)` when all rows queued up to now are on disk, maybe at once."""
        mark = self.mark + 1 if self.rows else self.mark
        if mark <= self.flushed:
            then(what, now_ms)
        else:
            self._waiting.append((mark, then, what))

    def on_flushed(self, mark: int, now_ms: int) -> None:
        """Everything up to `mark` is on disk: do what waited for that, in order."""
        self.flushed = max(self.flushed, mark)
        waiting = self._waiting
        while waiting and waiting[0][0] <= self.flushed:
            _, then, what = waiting.popleft()
            then(what, now_ms)

    def take_urgent(self) -> list[Effect]:
        """Hand over what is here before all is; rows still come after it."""
        effects, self.effects = self.effects, []
        return effects

    def take(self) -> list[Effect]:
        """Hand over all effects; rows gathered since the last call are flushed first."""
        if self.rows:
            self.mark += 1
            self.effects.append(Persist(tuple(self.rows), self.mark))
            self.rows.clear()
        effects, self.effects = self.effects, []
        return effects
