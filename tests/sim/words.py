"""How histories are written down: one line per thing that happened, with names instead of ids.

Used by `--trace` and by the scenarios; this file changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus import messages as m
from blackroad.discovery.membership import Change

if TYPE_CHECKING:
    from blackroad.ids import Token

MESSAGES = frozenset(
    name for name, kind in vars(m).items() if isinstance(kind, type) and issubclass(kind, m.Message)
)
NOTES = frozenset(
    {
        *(f"node.{change.name.lower()}" for change in Change),
        *("task.isolated", "coordinator.changed", "space.full", "space.again"),
    }
)
# What a line of the history says of a task or a machine.
VERBS = frozenset(
    {
        *("runs", "ends", "dies", "starts", "loses", "daemon", "pauses"),
        *("resumes", "freezes", "thaws", "leaves", "takes", "gets", "counts"),
        *("disk", "retires", "forgot", "shuns", "cannot"),
    }
)
KINDS = MESSAGES | NOTES | VERBS
# What may stand in a line besides names and numbers.
WORDS = frozenset(
    {
        *(one.name.lower() for kind in (m.Reason, m.Status, m.End, m.AttemptState) for one in kind),
        *(one.name.lower() for one in m.GrantFlag),
        *(
            "nobody",
            "stop",
            "all",
            "(lost)",
            "(held)",
            "unplaceable",
            "conflict",
            "session",
            "no_space",
        ),
    }
)


class Names:
    """Names of nodes, tasks and incarnations, as a history shows them."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, str] = {}
        self.tasks: dict[bytes, str] = {}

    def node(self, node: bytes) -> str:
        """Name of a node."""
        return self.nodes.get(node, node.hex()[:8] if node else "nobody")

    def task(self, task: bytes) -> str:
        """Name of a task."""
        return self.tasks.get(task, task.hex()[:8])

    def token(self, token: Token) -> str:
        """A token as counter of the owner's life and serial."""
        return f"{token.inc >> 32}/{token.serial}"

    def message(self, message: m.Message) -> str:
        """One message with the fields that a story needs."""
        kind = type(message).__name__
        return f"{kind} {self._facts(message)}".rstrip()

    def _facts(self, message: m.Message) -> str:
        match message:
            case m.Grant():
                flags = [
                    name.lower()
                    for name in ("HOLD", "GO", "EXCLUSIVE")
                    if message.flags & m.GrantFlag[name]
                ]
                text = f"{self.task(message.task)} token={self.token(message.token)}"
                along = [self.task(one.task) for one in message.more]
                along = ["with", *along] if along else []
                return " ".join((text, f"lease={message.lease_ms // 1000}s", *flags, *along))
            case m.Refused():
                return f"token={self.token(message.token)} {message.reason.name.lower()}"
            case m.Recall():
                return f"token={self.token(message.token)}" + (" stop" if message.stop else "")
            case m.Renew():
                listed = (
                    f"{self.token(one.token)}:{one.state.name.lower()}" for one in message.attempts
                )
                return " ".join(listed)
            case m.Renewed():
                refused = " ".join(self.token(token) for token in message.refused)
                return f"refused {refused}" if refused else "all"
            case m.Outcome():
                text = f"{self.task(message.task)} token={self.token(message.token)}"
                done = f" after {len(message.before)}" if message.before else ""
                return f"{text} {message.status.name.lower()}{done}"
            case m.Divided():
                return f"token={self.token(message.token)} after {len(message.before)}"
            case m.Results():
                return " ".join(self.task(one.task) for one in message.results)
            case m.OutcomeAck():
                return " ".join(self.token(token) for token in message.tokens)
            case m.Accepted():
                return " ".join(self.task(task) for task in message.tasks)
            case m.Rejected() | m.Busy():
                what = message.reason if isinstance(message, m.Rejected) else message.what
                return " ".join((*(self.task(task) for task in message.tasks), what))
            case m.Ended():
                text = f"{self.task(message.task)} {message.end.name.lower()} {message.reason}"
                return text.strip() + f" attempts={message.attempts}"
            case _:
                return self._more(message)

    def _more(self, message: m.Message) -> str:
        match message:
            case m.Demand():
                classes = (
                    f"c{one.cls} queued={one.queued} in_use="
                    + ",".join(f"{self.node(use.node)}:{use.slots}" for use in one.in_use)
                    for one in message.classes
                )
                return f"{message.seq} " + "; ".join(classes)
            case m.Allocation():
                rows = (f"c{row.cls} {self.node(row.node)}:{row.slots}" for row in message.rows)
                epoch = f"{message.epoch.counter}.{message.seq} for {message.demand_seq}"
                return f"epoch={epoch} " + ", ".join(rows)
            case m.Submit() | m.Cancel() | m.Seen():
                ids = (
                    (item.task for item in message.tasks)
                    if isinstance(message, m.Submit)
                    else message.tasks
                )
                return " ".join(self.task(task) for task in ids)
            case m.Heartbeat():
                claim = f" claim={message.claim.counter}" if message.claim else ""
                return f"stamp={message.stamp_ms} follows={self.node(message.follows)}{claim}"
            case _:
                return ""
