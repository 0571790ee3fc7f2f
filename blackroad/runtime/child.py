"""Edge: a task process as the pool sees it, and the channels between the two.

This file must not know when a task is started, nor what its end leads to.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import OrderedDict
from collections.abc import Hashable

import msgspec

from blackroad.bus.messages import Early
from blackroad.errors import Busy, invariant
from blackroad.runtime import wire
from blackroad.runtime.events import Crashed, Finished, Gone, PoolEvent, Run, crash
from blackroad.runtime.mailbox import Mailbox, mailboxes


class Ahead:
    """What a task process was sent to run next, if it may."""

    __slots__ = ("deadline_ms", "key", "run", "serial")

    def __init__(self, key: Hashable, run: Run, serial: int) -> None:
        self.key = key
        self.run = run
        self.serial = serial
        self.deadline_ms = run.deadline_ms


class Child:
    """One task process: starting or idle (no key), busy, or ending."""

    __slots__ = (
        "ahead",
        "current",
        "doomed",
        "environment",
        "fault",
        "finished",
        "generation",
        "idle_since_ms",
        "key",
        "known",
        "mailboxes",
        "memory_fd",
        "number",
        "pid",
        "pipes",
        "run",
        "serial",
        "slot",
        "socket",
        "stale",
        "tray",
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
        self.serial = 0  # of the last packet sent
        self.current = 0  # of the one it runs
        self.tray = 0  # which mailbox that one has; what was handed ahead has the other one
        self.ahead: Ahead | None = None
        # A packet that was taken back, until the process has passed it over for certain: as long
        # as it may look at the other mailbox for a claim, no claim is put in there.
        self.stale = 0
        self.known: OrderedDict[bytes, None] = OrderedDict()
        self.idle_since_ms = 0
        self.doomed = False  # will not get another task
        self.why: str | None = None  # of a wanted kill
        self.fault = ""  # what it did on the channel that no task process does
        self.finished: Finished | None = None  # held back until the process is gone
        self.mailboxes: list[Mailbox]
        self.memory_fd = -1
        self.socket: socket.socket
        self.pipes: dict[int, int] = {}  # stream -> our end
        self.unsent: tuple[int, ...] = ()  # its ends, until the fork server has them

    @property
    def mailbox(self) -> Mailbox:
        """That of what it runs."""
        return self.mailboxes[self.tray]

    def ends(self) -> tuple[int, ...]:
        """All descriptors that the process gets."""
        return (*self.unsent, self.memory_fd, *[one.claims_fd for one in self.mailboxes])

    def close_unsent(self) -> None:
        """Close its ends, which it has by now or never gets."""
        for fd in self.unsent:
            os.close(fd)
        self.unsent = ()

    def close_mailboxes(self) -> None:
        """Give back what the two had in common."""
        for one in self.mailboxes:
            one.close()
        os.close(self.memory_fd)

    def take_back(self) -> bool:
        """Have what was handed ahead not begin; False if it has."""
        ahead = self.ahead
        if ahead is None:
            return True
        mailbox = self.mailboxes[not self.tray]
        mailbox.take_back()
        if mailbox.tasks:
            return False
        self.stale = ahead.serial
        self.ahead = None
        return True

    def advance(self, ahead: Ahead) -> None:
        """Its task is over, and what was handed ahead is what it runs from now on."""
        invariant(ahead is self.ahead, "that was not handed ahead", self.number)
        self.ahead = None
        self.tray = int(not self.tray)
        self.key, self.run, self.current = ahead.key, ahead.run, ahead.serial
        self.finished = None

    def draw_back(self) -> bool:
        """What it advanced to shall not begin after all; False if it has."""
        mailbox = self.mailbox
        mailbox.take_back()
        if mailbox.tasks:
            return False
        self.stale = self.current
        self.tray = int(not self.tray)
        return True

    def before(self) -> tuple[Early, ...]:
        """What is done of a bundle whose last begun task is known, () where it is unreadable."""
        try:
            return self.mailbox.done(max(0, self.mailbox.tasks - 1))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ()


def packet_of(
    run: Run,
    serial: int,
    tray: int,
    code: bytes,
    code_path: str,
    deadline_ms: int,
    *,
    ahead: bool = False,
    look: bool = False,
) -> bytes:
    """What a task process is told to run: a `wire.Start`, without making one."""
    return wire.encode(
        (
            serial,
            run.task,
            run.token,
            run.attempt,
            run.node,
            run.work,
            run.work_path,
            run.code_digest,
            code,
            code_path,
            deadline_ms,
            run.more,
            tray,
            ahead,
            look,
        )
    )


def ending(process: Child, ended: wire.Ended, deadline_ms: int) -> PoolEvent:
    """How the task of a process ended that is gone; `deadline_ms` is what was watched last."""
    if process.finished is not None:
        return process.finished
    key = process.key
    process.mailbox.take_back()
    before = process.before()
    if process.why is not None:
        return Gone(key, process.why, before)
    if not process.mailbox.tasks:
        text = "its task process ended before it began"
        return Crashed(key, None, None, text, lost=True, started=False)
    if process.fault:
        return Crashed(key, None, None, process.fault, before=before)
    if ended.deadline_ms:
        if ended.deadline_ms == deadline_ms:
            return Gone(key, "deadline", before)
        # Whatever of the two was read first here: it has outlived nothing itself.
        text = "killed at the deadline of the task before it in its process"
        return Crashed(key, signal.SIGKILL, None, text, lost=True, before=before)
    if ended.status < 0:
        started = ended.status != wire.NOT_FORKED
        return Crashed(key, None, None, ended.text, True, started, before)
    return crash(key, ended.status, before)


def channels(process: Child) -> None:
    """Make what a task process is reached by: our socket, our pipes, its ends of them, mailboxes.

    Raises  Busy where there are no descriptors left.
    """
    made: list[int] = []
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made += (end.detach() for end in pair)
        for _ in (1, 2):
            made += os.pipe2(os.O_CLOEXEC)
        process.mailboxes, process.memory_fd = mailboxes()
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
    process.socket = ours
    process.pipes = {1: output, 2: errors}
    process.unsent = (channel_theirs, output_theirs, errors_theirs)
