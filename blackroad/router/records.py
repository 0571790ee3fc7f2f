"""The owner's books: tasks, their attempts, and the classes they belong to.

Plain records without behaviour of their own beyond simple counting; `owner.py` moves tasks and
`attempts.py` their attempts.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from blackroad.digest import blake2b
from blackroad.ids import Token
from blackroad.limits import FOREVER_MS

if TYPE_CHECKING:
    from blackroad.bus.messages import ClassSpec, End, Ended, Item, Outcome, Payload, Ref, Submit
    from blackroad.requirements import Requirement


class TaskState(IntEnum):
    """Where a task is in its life."""

    QUEUED = 0
    GRANTED = 1
    ENDED = 2


class MemberState(IntEnum):
    """Where one member of an attempt is, as far as its owner knows."""

    WRITING = 0
    SENT = 1
    WAITING = 2
    HELD = 3
    RUNNING = 4
    COLLECTING = 5
    ENDED = 6


class Cause(IntEnum):
    """What the ending of an attempt counts as."""

    NOTHING = 0
    USER = 1
    CRASH = 2
    LOSS = 3
    KILLER = 4


class Verdict(NamedTuple):
    """How the first member of an attempt ended that was not done."""

    cause: Cause
    why: str
    node: bytes
    outcome: Outcome | None


class Use:
    """What one class does on one node."""

    __slots__ = ("ahead", "backoff_ms", "backoff_until_ms", "live", "mean_us", "node", "waiting")

    def __init__(self, node: bytes) -> None:
        self.node = node
        self.live = 0
        # Members granted beyond the allocation; they wait in the worker and occupy nothing.
        self.ahead = 0
        self.waiting: deque[Member] = deque()
        self.mean_us = 0
        self.backoff_until_ms = 0
        self.backoff_ms = 0

    def in_use(self) -> int:
        """Slots occupied: waiting attempts are not occupation."""
        return self.live - self.ahead

    def waits_since_ms(self, now_ms: int) -> int:
        """Since when the first of those that wait does so; `now_ms` where none does."""
        return next((one.first_ms or now_ms for one in self.waiting if one.ahead), now_ms)

    def goes_ahead(self, member: Member) -> None:
        """That attempt was sent to wait there."""
        if not self.ahead:
            # Whoever is left in there has ended or runs by now.
            self.waiting.clear()
        member.ahead = True
        self.ahead += 1
        self.waiting.append(member)

    def promote(self) -> None:
        """A slot became free there: the longest waiting attempt has it now."""
        while self.waiting:
            member = self.waiting.popleft()
            if member.ahead:
                member.ahead = False
                self.ahead -= 1
                return

    def learn(self, run_us: int) -> None:
        """Fold one measured duration into the mean of this class on this node."""
        run_us = max(run_us, 1)
        if not self.mean_us:
            self.mean_us = run_us
        else:
            self.mean_us += (run_us - self.mean_us) // 8 or (1 if run_us > self.mean_us else 0)


class ClassState:
    """Tasks of equal spec: their queue and their use of nodes."""

    __slots__ = (
        "active_ms",
        "aside_ms",
        "aside_until_ms",
        "id",
        "mean_us",
        "queue",
        "queued",
        "requirement",
        "spec",
        "tasks",
        "uses",
    )

    def __init__(self, id_: int, spec: ClassSpec, requirement: Requirement) -> None:
        self.id = id_
        self.spec = spec
        self.requirement = requirement
        self.queue: deque[Task] = deque()
        # Tasks of the queue that are still queued; others are dropped when they come up.
        self.queued = 0
        self.tasks = 0
        self.uses: dict[bytes, Use] = {}
        self.mean_us = 0
        self.active_ms = 0
        # A gang that could not be gathered waits before it tries again.
        self.aside_ms = 0
        self.aside_until_ms = 0

    def learn(self, run_us: int) -> None:
        """Fold one measured duration into the mean of the class."""
        if self.mean_us:
            self.mean_us += (run_us - self.mean_us) // 8
        else:
            self.mean_us = max(run_us, 1)

    def use(self, node: bytes) -> Use:
        """The record for one node, made when first asked for."""
        found = self.uses.get(node)
        if found is None:
            found = self.uses[node] = Use(node)
        return found

    def oldest(self) -> Task | None:
        """The task that waits at the head."""
        while self.queue:
            task = self.queue[0]
            if task.state is TaskState.QUEUED:
                return task
            self.queue.popleft()
        return None


class Task(Struct, eq=False):
    """One task of this owner.

    A struct, since a hundred thousand of them are made in seconds.
    """

    id: bytes
    cls: ClassState
    # The spec as submitted: a task that must run alone changes its class, not this.
    spec: ClassSpec
    session: bytes
    code: Ref | None
    work: Payload
    durable: bool
    queued_ms: int
    wait_for_node: bool = False
    state: TaskState = TaskState.QUEUED
    attempts: list[Attempt] = []
    tries: int = 0
    deadline_ms: int = FOREVER_MS
    kept: bool = True
    ended: Ended | None = None
    stop: tuple[End, str] | None = None
    # Stands for the work once an ended task has let it go.
    content: bytes = b""
    past: tuple[Token, ...] = ()
    failures: int = 0
    crashes: int = 0
    losses: int = 0
    killers: int = 0
    # Its client has the outcome.
    seen: bool = False
    last_status: str = ""


class Member:
    """One node's part of an attempt."""

    __slots__ = (
        "ahead",
        "attempt",
        "bound_ms",
        "first_ms",
        "inc",
        "node",
        "outcome",
        "recalled",
        "resends",
        "sent_ms",
        "share",
        "state",
        "stopping",
        "use",
    )

    def __init__(self, attempt: Attempt, node: bytes, inc: int, use: Use) -> None:
        self.attempt = attempt
        self.node = node
        self.inc = inc
        self.use = use
        self.state = MemberState.WRITING
        self.bound_ms = FOREVER_MS
        self.first_ms = 0
        self.sent_ms = 0
        self.resends = 0
        self.ahead = False
        # How many of its class may run there at once, by the table it was granted under.
        self.share = 0
        # The table under which it was recalled as surplus.
        self.recalled = 0
        self.stopping = False
        self.outcome: Outcome | None = None


class Attempt:
    """One try at a task; more than one member only for gangs, more than one task only in bundles.

    The tasks of a bundle run one after the other: `task` first, then `more` in their order.
    """

    __slots__ = (
        "abandoned",
        "adopted",
        "dividing",
        "go",
        "going",
        "hold",
        "isolated",
        "lease_ms",
        "members",
        "more",
        "ran",
        "stored",
        "task",
        "token",
        "verdict",
    )

    def __init__(self, token: Token, task: Task, lease_ms: int) -> None:
        spec = task.cls.spec
        self.token = token
        self.task = task
        self.more: tuple[Task, ...] = ()
        # Its worker was asked to give back those that have not begun.
        self.dividing = False
        self.lease_ms = lease_ms
        self.isolated = spec.isolated
        self.hold = spec.gang > 1 or spec.isolated
        # Set when *go* is being journaled, and when it may leave.
        self.going = False
        self.go = False
        self.members: list[Member] = []
        # A pure task's attempt on a silent node: another may run meanwhile.
        self.abandoned = False
        # Found in the journal: nobody knows what was told to its members.
        self.adopted = False
        self.ran = False
        # The large result of its first member, kept here until the others have ended.
        self.stored = b""
        self.verdict: Verdict | None = None

    def tasks(self) -> tuple[Task, ...]:
        """All its tasks, in the order in which they run."""
        return (self.task, *self.more)

    def live(self) -> bool:
        """Is there a member that is not proven ended?"""
        return any(member.state is not MemberState.ENDED for member in self.members)


def same_content(task: Task, submit: Submit, item: Item) -> bool:
    """Is this the content that the task was made from?  Its id alone proves nothing."""
    if task.spec != submit.spec or task.code != submit.code or task.durable != submit.durable:
        return False
    if task.content and isinstance(item.work, bytes):
        return blake2b(item.work, digest_size=32).digest() == task.content
    return task.work == item.work


def state_text(task: Task) -> str:
    """One word for where a task is in its life."""
    if task.ended is not None:
        return task.ended.end.name.lower()
    if task.stop is not None:
        return "cancelling" if task.stop[0].name == "CANCELLED" else "expiring"
    if task.state is TaskState.QUEUED:
        return "queued"
    states = [one.state for attempt in task.attempts for one in attempt.members]
    if MemberState.COLLECTING in states:
        return "collecting"
    waiting = (MemberState.WAITING, MemberState.WRITING)
    return "waiting" if states and all(s in waiting for s in states) else "running"
