"""What happens to a mesh, in one vocabulary: the names, what an event holds, and a ring of them.

Source  docs/events.md, which is made from this file.  Pure vocabulary.  This file must not know
who tells, who listens, or what the time is.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Final

import msgspec
from msgspec import Struct

from blackroad.errors import UsageError

Fact = str | int | float | bool

RING_EVENTS: Final = 10_000
FACTS_MAX: Final = 32
TEXT_MAX: Final = 512
SEVERITIES: Final = ("debug", "info", "warning", "error")
TOPIC: Final = "blackroad/events/"
# Those that are told only while somebody follows: nobody else shall have to hear them.
FOLLOWED: Final = "blackroad/followed/"
# What the log writes by itself, or what would be read as something else.
_TAKEN: Final = frozenset({"event", "level", "timestamp"})

# Name: (severity, what happened).  A name is never used for another thing.
VOCABULARY: Final[Mapping[str, tuple[str, str]]] = {
    "attempt.crashed": ("warning", "A task's process died on this machine."),
    "attempt.lost": ("warning", "An attempt at a task came to nothing: its node or process died."),
    "cluster.cut": ("warning", "The link to a node was cut: it is no member any more."),
    "cluster.expelled": ("error", "This node was expelled from its cluster."),
    "coordinator.changed": ("info", "This node follows another coordinator, or none."),
    "daemon.descriptors": ("error", "The daemon has nearly used up its open files."),
    "daemon.left_running": ("warning", "The daemon stopped while tasks still ran."),
    "daemon.leftovers": ("warning", "Processes of an earlier life of the daemon were ended."),
    "daemon.overslept": ("warning", "The daemon did not run for a while: suspended or starved."),
    "daemon.started": ("info", "The daemon serves."),
    "daemon.stopping": ("info", "The daemon ends its tasks and stops."),
    "device.quarantined": ("warning", "A device fails its checks, and gets no work."),
    "drain.not_kept": ("error", "That this node drains is forgotten at its next start."),
    "events.skipped": ("warning", "Events came faster than they are told: so many were left out."),
    "guard.refused": ("warning", "Connections were refused: no keys, wrong keys, or too many."),
    "history.again": ("info", "The history is written again; what waited is in it."),
    "history.behind": ("warning", "The history cannot be written now: it waits on the disk."),
    "history.lost": ("error", "Records of the history were given up for want of room."),
    "journal.behind": ("error", "The journal is older than what peers remember of it."),
    "journal.damaged": ("error", "The journal was damaged; what could be read was kept."),
    "journal.slow": ("warning", "Flushing the journal takes long, and durable submits wait."),
    "journal.steady": ("info", "Flushing the journal is as fast as before."),
    "machine.cooled": ("info", "The machine runs at full speed again."),
    "machine.throttled": (
        "warning",
        "The machine slows itself down: too hot, or too little power.",
    ),
    "mdns.problem": ("warning", "Nodes cannot be found by mDNS, or can be found again."),
    "metrics.refused": (
        "warning",
        "Figures were asked for without the token, or under a foreign name.",
    ),
    "mirror.down": ("warning", "The mirror in Redis is not written; outcomes wait, within bounds."),
    "mirror.up": ("info", "The mirror in Redis is written."),
    "net.addresses": ("info", "This machine's addresses changed."),
    "net.alone": ("warning", "No other node was found for a while."),
    "node.amnesia": ("error", "The state directory is older than what peers remember."),
    "node.clone": ("error", "Two machines use one identity."),
    "node.died": ("warning", "A node was silent for too long: it counts as lost."),
    "node.doubt": ("error", "Somebody knows a newer life of this node."),
    "node.draining": ("info", "A node takes nothing new."),
    "node.joined": ("info", "A node joined."),
    "node.left": ("info", "A node said goodbye."),
    "node.recovered": ("info", "A suspected node was heard again."),
    "node.reincarnated": ("info", "A node was started again."),
    "node.resumed": ("info", "A node takes work again."),
    "node.suspected": ("warning", "A node is silent; it is not lost yet."),
    "peer.breach": ("warning", "A message of a peer makes no sense, and was refused."),
    "peers.unreadable": ("warning", "The list of known peers cannot be read."),
    "peers.unwritten": ("warning", "The list of known peers cannot be written."),
    "pool.leftovers": ("warning", "Processes that tasks left behind were ended."),
    "pool.problem": ("error", "The task runtime has a problem."),
    "probe.ended": ("info", "The machine was examined: what it can do is known."),
    "space.again": ("info", "The disk has room for durable tasks again."),
    "space.full": ("error", "The disk is full: durable submits are refused."),
    "task.cancelled": ("info", "A task was cancelled."),
    "task.done": ("debug", "A task is done; told while somebody follows."),
    "task.expired": ("warning", "A task was not done by its deadline."),
    "task.failed": ("warning", "A task failed."),
    "task.isolated": ("warning", "A task whose processes died runs alone now."),
    "task.quarantined": ("error", "A task is given up: it ended the processes that ran it."),
    "task.retried": ("info", "An ended task was submitted anew."),
    "task.stuck": ("warning", "A task can run, there is room for it, and nobody gives it any."),
    "task.unknown": ("error", "Nobody can say how a task ended."),
    "task.unstarted": ("error", "A task could not be started on this machine."),
    "telemetry.unheard": ("error", "Peers' Heartbeats cannot be heard."),
    "traces.again": ("info", "Traces of tasks are sent again."),
    "traces.behind": ("warning", "Traces of tasks cannot be sent, and wait or are left out."),
}
_RANK: Final = {name: rank for rank, name in enumerate(SEVERITIES)}


class Event(Struct, frozen=True, gc=False):
    """Something that happened, as one node saw it.

    Units  `at_ms` is the wall clock of the node that tells.
    """

    id: str
    at_ms: int
    node: str
    host: str
    name: str
    severity: str
    cause: str
    facts: dict[str, Fact]


_Kept = tuple[int, int, str, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


def severity_of(name: str) -> str:
    """How much a name matters; one that is not in the vocabulary is of this version's future."""
    known = VOCABULARY.get(name)
    return known[0] if known is not None else "info"


def is_of_tasks(name: str) -> bool:
    """Tell whether events of that name come as often as tasks do."""
    return name.startswith(("task.", "attempt."))


def topic_of(name: str) -> str:
    """Where events of that name are told to other nodes."""
    return (FOLLOWED if severity_of(name) == "debug" else TOPIC) + name


def event_id(node: str, counter: int, number: int) -> str:
    """Name an event: its node, that node's life, and its number in there."""
    return f"{node}-{counter}-{number}"


def split_id(text: str) -> tuple[str, int, int]:
    """Read an event's id.

    Raises  UsageError where it is none.
    """
    node, _, rest = text.partition("-")
    counter, dash, number = rest.partition("-")
    digits = counter + number
    if not (node and dash and counter and number and digits.isascii() and digits.isdigit()):
        raise UsageError(
            f"`{text}` is no id of an event",
            hint="one looks like k3f7x2ab-4-17; `blackroad events --json` shows them",
        )
    return node, int(counter), int(number)


def cause_of(name: str, facts: Mapping[str, object]) -> str:
    """What an event is about, spelled alike on every machine.

    A task is its whole id, a life of a node is `node-counter`, a reign is `epoch-counter-node`.
    """
    task = facts.get("task")
    if isinstance(task, str) and task:
        return task
    node = facts.get("node")
    if not isinstance(node, str) or not node:
        return ""
    epoch = facts.get("epoch")
    if isinstance(epoch, int) and epoch:
        return f"epoch-{epoch}-{node}"
    inc = facts.get("inc")
    counter = facts.get("counter", inc >> 32 if isinstance(inc, int) else None)
    return f"{node}-{counter}" if counter is not None else node


def plain_facts(facts: Mapping[str, object]) -> dict[str, Fact]:
    """Facts as an event may hold them: few, short, and nothing nested."""
    plain: dict[str, Fact] = {}
    for key, value in facts.items():
        if len(plain) >= FACTS_MAX:
            break
        if value is None or key in _TAKEN:
            continue
        if isinstance(value, bool | int | float):
            plain[key] = value
        elif isinstance(value, list | tuple):
            plain[key] = _text(", ".join(str(one) for one in value))
        else:
            plain[key] = _text(str(value))
    return plain


def _text(given: str) -> str:
    """Names of files may hold bytes that are no text, and only text travels."""
    return given.encode("utf-8", "replace").decode("utf-8")[:TEXT_MAX]


def encode(event: Event) -> bytes:
    """An event as it travels and is kept."""
    return _encode(event)


def decode(data: bytes) -> Event:
    """Read an event that came from elsewhere.

    Raises  ValueError where it is none.
    """
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"that is no event: {error}") from None


class Wanted(Struct, frozen=True):
    """Which events somebody wants to see; empty fields choose everything.

    `name` is a pattern as in file names, or several with commas between; `severity` the least;
    `node` a label or (the start of) a short id; `cause` a part of it.
    """

    name: str = ""
    severity: str = ""
    node: str = ""
    cause: str = ""

    def names(self) -> list[str]:
        """What can be among them, of this version's vocabulary."""
        return [name for name in VOCABULARY if self.takes(name)]

    def takes(self, name: str) -> bool:
        """Tell whether events of that name can be among them."""
        if self.severity and _RANK[severity_of(name)] < _RANK.get(self.severity, 0):
            return False
        return not self.name or any(fnmatchcase(name, one.strip()) for one in self.name.split(","))

    def chooses(self, event: Event) -> bool:
        """Tell whether it is among them."""
        if self.node and event.host != self.node and not event.node.startswith(self.node):
            return False
        if self.cause and self.cause not in event.cause and self.cause != event.id:
            return False
        return self.takes(event.name)


def wanted(name: str = "", severity: str = "", node: str = "", cause: str = "") -> Wanted:
    """Make a filter of what a person typed.

    Raises  UsageError where a name or severity can choose nothing.
    """
    if severity and severity not in _RANK:
        raise UsageError(f"`{severity}` is no severity", hint=f"there are {', '.join(SEVERITIES)}")
    for one in name.split(",") if name else ():
        pattern = one.strip()
        if not any(fnmatchcase(known, pattern) for known in VOCABULARY):
            raise UsageError(
                f"no event is called `{pattern}`",
                hint="`blackroad events --names` lists them; a pattern is 'node.*'",
            )
    return Wanted(name, severity, node, cause)


class Chronicle:
    """The newest events of one node: half of them about tasks, so that these push out no others.

    Cost  about 450 bytes an event: they are kept as they travel, and read where somebody asks.
    """

    def __init__(self, limit: int = RING_EVENTS) -> None:
        # The counter of the life that told it, its number in there, its name, all of it.
        self._of_tasks: deque[_Kept] = deque(maxlen=limit // 2)
        self._others: deque[_Kept] = deque(maxlen=limit - limit // 2)
        self._node = ""

    def __len__(self) -> int:
        return len(self._of_tasks) + len(self._others)

    def add(self, event: Event) -> bytes:
        """Keep an event, for the oldest one where there is no room; return it as it travels."""
        self._node, counter, number = split_id(event.id)
        data = encode(event)
        ring = self._of_tasks if is_of_tasks(event.name) else self._others
        ring.append((counter, number, event.name, data))
        return data

    def since(self, id_: str, limit: int = RING_EVENTS) -> list[Event]:
        """The events after that one, the oldest first: all of them where it is another node's.

        Raises  UsageError where that is no id.
        """
        after = (0, 0)
        if id_:
            node, *place = split_id(id_)
            if node == self._node:
                after = (place[0], place[1])
        kept = heapq.merge(self._of_tasks, self._others)
        found = (data for *place, _, data in kept if tuple(place) > after)
        return [decode(data) for data in islice(found, limit)]

    def find(
        self, pattern: str = "", severity: str = "", node: str = "", cause: str = ""
    ) -> list[Event]:
        """The events that are wanted, the oldest first."""
        return self.newest(Wanted(pattern, severity, node, cause), limit=len(self))

    def newest(self, choice: Wanted, since_ms: int = 0, limit: int = 1_000) -> list[Event]:
        """The newest of the events that are wanted, the oldest of them first.

        Cost  a look at each; those whose names are wanted are read.
        """
        found: list[Event] = []
        names: dict[str, bool] = {}
        part = choice.cause.encode()
        rings = (reversed(self._of_tasks), reversed(self._others))
        for _, _, name, data in heapq.merge(*rings, reverse=True):
            if len(found) >= limit:
                break
            if name not in names:
                names[name] = choice.takes(name)
            if names[name] and part in data:
                event = decode(data)
                if event.at_ms >= since_ms and choice.chooses(event):
                    found.append(event)
        found.reverse()
        return found
