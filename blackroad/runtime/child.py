"""Edge: a task process as the pool sees it, and the channels between the two.

This file must not know when a task is started or what its end means.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import Hashable

from blackroad.errors import Busy
from blackroad.runtime import wire
from blackroad.runtime.events import Finished, Run
from blackroad.runtime.mailbox import Mailbox


class Child:
    """One task process: starting or idle (no key), busy, or ending."""

    __slots__ = (
        "doomed",
        "environment",
        "fault",
        "finished",
        "generation",
        "idle_since_ms",
        "key",
        "known",
        "mailbox",
        "number",
        "pid",
        "pipes",
        "run",
        "serial",
        "slot",
        "socket",
        "unsent",
        "why",
    )

    def __init__(self, number: int, slot: int, environment: tuple[tuple[str, str], ...]) -> None:
        self.number = number
        self.slot = slot
        self.environment = environment
        self.generation = ""  # of the fork server that made it
        self.pid = 0
        self.key: Hashable = None
        self.run: Run | None = None
        self.serial = 0
        self.known: OrderedDict[bytes, None] = OrderedDict()
        self.idle_since_ms = 0
        self.doomed = False  # will not get another task
        self.why: str | None = None  # of a wanted kill
        self.fault = ""  # what it did on the channel that no task process does
        self.finished: Finished | None = None  # held back until the process is gone
        self.mailbox: Mailbox
        self.socket: socket.socket
        self.pipes: dict[int, int] = {}  # stream -> our end
        self.unsent: tuple[int, ...] = ()  # its ends, until the fork server has them

    def ends(self) -> tuple[int, ...]:
        """All descriptors that the process gets."""
        return (*self.unsent, self.mailbox.claims_fd, self.mailbox.memory_fd)


def channels() -> tuple[socket.socket, dict[int, int], tuple[int, int, int], Mailbox]:
    """Make what a task process is reached by: our socket, our pipes, its ends of them, a mailbox.

    Raises  Busy where there are no descriptors left.
    """
    made: list[int] = []
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made += (end.detach() for end in pair)
        for _ in (1, 2):
            made += os.pipe2(os.O_CLOEXEC)
        mailbox = Mailbox()
    except OSError as error:
        for fd in made:
            os.close(fd)
        raise Busy(
            f"no further task process: {error.strerror}",
            hint="raise the limit of open files (LimitNOFILE, ulimit -n)",
        ) from None
    channel, channel_theirs, output, output_theirs, errors, errors_theirs = made
    ours = socket.socket(fileno=channel)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.PACKET_BYTES_MAX)
    ours.setblocking(False)
    os.set_blocking(output, False)
    os.set_blocking(errors, False)
    return ours, {1: output, 2: errors}, (channel_theirs, output_theirs, errors_theirs), mailbox
