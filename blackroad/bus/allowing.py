"""Which role it takes to say what: the rule by which every multipart from a known key is judged.

Source  docs/security.md, "Roles".  Pure.  Who has which role is the member list's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from blackroad.bus import messages as m
from blackroad.bus.members import Member, Role

# Questions that show and change nothing; what is not in this list is not among them.
READING: Final = frozenset(
    {"status", "why", "tasks", "nodes", "node", "driver", "logs", "result", "net.status"}
)
# These are judged by what answers them, which knows what each one of them does.
CLUSTER_PREFIX: Final = "cluster."
# Orders to a whole node, which cost everybody something.
OF_NODES: Final = frozenset({"drain", "resume"})
# A session that holds nothing, and what topics tell anyway.
_FREE: Final = (m.Open, m.Alive, m.Subscribe, m.Unsubscribe, m.Taken)


def speaks_for(member: Member, node: bytes) -> bool:
    """May the owner of this record say what that node says?"""
    return member.node == node and member.role >= Role.NODE


def needed(message: m.Message) -> Role:
    """The least role that may say this as a client."""
    if isinstance(message, m.Query):
        if message.name in READING or message.name.startswith(CLUSTER_PREFIX):
            return Role.VIEW
        return Role.ADMIN if message.name in OF_NODES else Role.SUBMIT
    return Role.VIEW if isinstance(message, _FREE) else Role.SUBMIT


def sifted(
    messages: Iterable[m.Message], role: Role, node: bytes
) -> tuple[list[m.Message], list[m.Message]]:
    """Part what that role may say from what it may not; return the first, and answers to the rest.

    `node` is who answers.
    """
    allowed: list[m.Message] = []
    answers: list[m.Message] = []
    for message in messages:
        least = needed(message)
        if role >= least:
            allowed.append(message)
        else:
            answers.append(_refusal(message, role, least, node))
    return allowed, answers


def _refusal(message: m.Message, role: Role, least: Role, node: bytes) -> m.Message:
    text = (
        f"the role `{role.name.lower()}` of your key does not allow this: it takes "
        f"`{least.name.lower()}`"
    )
    match message:
        case m.Query():
            return m.Reply(message.query, node, 0, True, b"", text)
        case m.Submit():
            return m.Rejected(tuple(item.task for item in message.tasks), "role", text)
        case m.Publish():
            return m.Taken(message.serial, text)
        case _:
            return m.Reject("role", text)
