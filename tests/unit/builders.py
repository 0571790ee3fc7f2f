"""Small builders: a message, a node or a machine in one line, with only what a test is about."""

from __future__ import annotations

from typing import Any

from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities, Device
from blackroad.ids import Epoch, Token, incarnation
from blackroad.node import FromClient, Node
from blackroad.requirements import Needs
from blackroad.router.effects import Effect, Outbox, Persist, Publish, Send, Start, Tell
from blackroad.router.owner import Owner
from blackroad.router.worker import Worker

GIB = 2**30
NEEDS = Needs().to_wire()
CLIENT = b"client-1"
SESSION = b"s" * 16
INC = incarnation(7, 0x1234)
NO_FACTS = m.Facts()


def node_id(number: int) -> bytes:
    """A node id that sorts by its number and whose first 8 bytes tell it."""
    return number.to_bytes(8, "big") * 2


ME, PEER, OTHER, FOURTH = (node_id(number) for number in (1, 2, 3, 4))


def task_id(number: int) -> bytes:
    """The id of task `number`."""
    return b"t" * 12 + number.to_bytes(4, "big")


def digest(number: int) -> bytes:
    """The digest of object `number`."""
    return number.to_bytes(32, "big")


def caps(name: str = "attic", **changes: Any) -> Capabilities:
    """A small machine; `cores`, `memory_bytes` and all other fields may be given."""
    fields: dict[str, Any] = {
        "name": name,
        "arch": "aarch64",
        "page_bytes": 4096,
        "cores": 4,
        "memory_bytes": 8 * GIB,
        "python": "3.11",
        "python_full": "3.11.2",
        "implementation": "CPython",
        "os": "Linux",
        "libc": "glibc 2.36",
        "model": "",
    }
    return Capabilities(**{**fields, **changes})


def gpu(memory_bytes: int = 4 * GIB, index: int = 0) -> Device:
    """A real GPU."""
    return Device("gpu", "card", "opencl", memory_bytes, 8, True, False, "p", "d", index)


def spec(needs: bytes = NEEDS, **changes: Any) -> m.ClassSpec:
    """A class spec of one core."""
    return m.ClassSpec(needs, **changes)


def supply(cores: int = 4, memory_bytes: int = 8 * GIB, **changes: Any) -> m.Supply:
    """What an idle machine of `cores` gives."""
    units = cores * 10_000
    return m.Supply(
        units, memory_bytes, (), units, memory_bytes, **{"speed_permille": 1000, **changes}
    )


def beat(node: bytes, stamp_ms: int = 0, inc: int = INC, **changes: Any) -> m.Heartbeat:
    """A Heartbeat; `claim`, `follows`, `served`, `heard`, `supply`, `priority` may be given."""
    fields: dict[str, Any] = {
        "node": node,
        "inc": inc,
        "stamp_ms": stamp_ms,
        "version": 1,
        "claim": None,
        "follows": b"",
        "served": False,
        "heard": (),
        "supply": supply(),
        "loop_lag_ms": 0,
        "journal_mark": 0,
        "caps_digest": caps().digest(),
        "priority": 0,
        "interval_ms": 250,
    }
    return m.Heartbeat(**{**fields, **changes})


def grant(serial: int = 1, **changes: Any) -> m.Grant:
    """A Grant of task `serial` to the machine with incarnation INC, echoing stamp 1000."""
    fields: dict[str, Any] = {
        "token": Token(5 << 32, serial),
        "task": task_id(serial),
        "cls": 1,
        "spec": spec(),
        "echo_ms": 1000,
        "inc": INC,
        "lease_ms": 20_000,
        "flags": 0,
        "code": None,
        "work": b"work",
        "attempt": 1,
    }
    return m.Grant(**{**fields, **changes})


def submit(*numbers: int, **changes: Any) -> m.Submit:
    """A Submit of attached tasks with these numbers."""
    fields: dict[str, Any] = {
        "session": SESSION,
        "spec": spec(),
        "code": None,
        "durable": False,
        "wait_for_node": False,
        "tasks": tuple(m.Item(task_id(number), b"work") for number in numbers),
        "deadline_ms": 0,
    }
    return m.Submit(**{**fields, **changes})


def outcome(token: Token, number: int = 1, **changes: Any) -> m.Outcome:
    """A *done* Outcome of task `number` from the machine with incarnation INC."""
    fields: dict[str, Any] = {
        "token": token,
        "task": task_id(number),
        "inc": INC,
        "status": m.Status.DONE,
        "result": b"42",
        "facts": m.Facts(run_us=5_000),
    }
    return m.Outcome(**{**fields, **changes})


def renew(stamp_ms: int, *listed: tuple[Token, m.AttemptState], inc: int = INC) -> m.Renew:
    """A Renew that lists these attempts."""
    return m.Renew(inc, stamp_ms, tuple(m.Listed(*one) for one in listed))


def worker(slots: int = 2, machine: Capabilities | None = None) -> tuple[Worker, Outbox]:
    """A worker of `slots` slots on node ME."""
    out = Outbox(ME)
    return Worker(ME, "me", INC, machine or caps(), slots, out), out


class OwnerBench:
    """An owner on node ME with its outbox, some nodes it hears, and a table of slots."""

    def __init__(self, now_ms: int = 0, nodes: tuple[bytes, ...] = (PEER,), inc: int = INC) -> None:
        self.out = Outbox(ME)
        self.owner = Owner(ME, inc, self.out, lambda _ask: 0, now_ms)
        self.mark = 0
        for node in (ME, *nodes):
            self.meet(node, now_ms)
        self.owner.granting.coordinator = OTHER
        self.owner.sessions.open(CLIENT, m.Open(SESSION, 600_000), now_ms)
        self.turn(now_ms)

    def meet(self, node: bytes, now_ms: int, inc: int = INC, stamp_ms: int = 500) -> None:
        """Let the owner hear a node that can run what tests ask for."""
        view = self.owner.view.get(node, node.hex()[:8])
        view.present, view.suspect = True, False
        self.owner.view.on_stamp(node, inc, stamp_ms, now_ms)
        self.owner.view.on_capabilities(node, node.hex()[:8], caps(node.hex()[:8]))

    def allow(self, cls: int = 1, **slots_of: int) -> None:
        """Write the table: slots by the name of a node constant, such as PEER=2."""
        table = {globals()[name]: slots for name, slots in slots_of.items()}
        self.owner.granting.table[cls] = table
        if cls in self.owner.by_id:
            self.owner.granting.dirty(self.owner.by_id[cls])

    def turn(self, now_ms: int, *, demands: bool = False) -> list[Effect]:
        """End the turn; return what left, Demands only where a test is about them."""
        self.owner.settle(now_ms)
        effects: list[Effect] = [Send(ME, one) for one in self.out.local] + self.out.take()
        self.out.local = []
        for effect in effects:
            if isinstance(effect, Persist):
                self.mark = effect.mark
        return [
            one
            for one in effects
            if demands or not (isinstance(one, Send) and isinstance(one.message, m.Demand))
        ]

    def submit(self, *numbers: int, now_ms: int = 0, **changes: Any) -> list[Effect]:
        """Submit and end the turn."""
        self.owner.on_submit(CLIENT, submit(*numbers, **changes), now_ms)
        return self.turn(now_ms)

    def granted(self, number: int = 1, now_ms: int = 0, **changes: Any) -> Token:
        """Submit an attached task that is granted to PEER at once; return its token."""
        self.allow(PEER=4)
        effects = self.submit(number, now_ms=now_ms, **changes)
        found = [one for one in messages(effects) if isinstance(one, m.Grant)]
        assert len(found) == 1, effects
        return found[0].token

    def flush(self, now_ms: int) -> list[Effect]:
        """Report everything persisted as flushed, and end the turn."""
        self.owner.on_flushed(self.mark, now_ms)
        return self.turn(now_ms)

    def beat(self, node: bytes, now_ms: int) -> None:
        """Let the owner hear that node again, so that its stamp is a new one."""
        self.owner.view.on_stamp(node, self.owner.view.nodes[node].inc, now_ms + 500, now_ms)

    def tick(self, now_ms: int) -> list[Effect]:
        """Let time pass, and end the turn."""
        self.owner.tick(now_ms)
        return self.turn(now_ms)


def messages(effects: list[Effect]) -> list[m.Message]:
    """Every message that these effects send, to nodes and to clients."""
    return [one.message for one in effects if isinstance(one, Send | Tell)]


def of_kind(effects: list[Effect], kind: type) -> list[Any]:
    """The effects of one kind, or the messages of one kind."""
    if issubclass(kind, Effect):
        return [one for one in effects if isinstance(one, kind)]
    return [one for one in messages(effects) if isinstance(one, kind)]


def make_node(number: int = 1, now_ms: int = 0, **changes: Any) -> Node:
    """A whole node."""
    me = node_id(number)
    return Node(me, INC, caps(f"n{number}"), 2, now_ms, **changes)


def client(*said: m.Message) -> FromClient:
    """The event that a client of this daemon said something."""
    return FromClient(CLIENT, said)


__all__ = [
    "CLIENT",
    "FOURTH",
    "GIB",
    "INC",
    "ME",
    "NEEDS",
    "NO_FACTS",
    "OTHER",
    "PEER",
    "SESSION",
    "Epoch",
    "OwnerBench",
    "Publish",
    "Start",
    "beat",
    "caps",
    "client",
    "digest",
    "gpu",
    "grant",
    "make_node",
    "messages",
    "node_id",
    "of_kind",
    "outcome",
    "renew",
    "spec",
    "submit",
    "supply",
    "task_id",
    "worker",
]
