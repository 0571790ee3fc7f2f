"""What the pool, its fork server and its task processes say to each other.

All of it stays on one machine, between processes of one user and one version, over sockets that
keep message borders.  This file must not know what the work is.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from blackroad.limits import INLINE_BYTES_MAX, KIB, SLOTS_MAX
from blackroad.runtime.tray import TRAYS

PACKET_BYTES_MAX: Final = 256 * KIB  # one message between pool and task process
RESULT_INLINE_MAX: Final = INLINE_BYTES_MAX
FUNCTIONS_KEPT: Final = 128  # code a task process remembers; the pool counts along
PROCESSES_MAX: Final = 2 * SLOTS_MAX  # task processes of one pool, idle and dying ones included
POOL_VARIABLE: Final = "BLACKROAD_POOL"  # marks every process of a pool, whoever forked it

# --- pool -> fork server ------------------------------------------------------------------------


class Setup(Struct, frozen=True, array_like=True, tag=1):
    """First message: who the pool is, and what to prepare.

    Task processes get groups of their own below `cgroup`, the directory of a delegated one.
    """

    pool: str
    generation: str
    parent: int
    preload: list[str]
    incoming: str
    python_path: str | None
    cgroup: str = ""


class Spawn(Struct, frozen=True, array_like=True, tag=2):
    """Fork a task process; its channel, two output pipes and mailboxes travel beside it.

    `slot` is its place in the table of deadlines that pool and fork server share.
    """

    process: int
    slot: Annotated[int, Meta(ge=0, lt=PROCESSES_MAX)]
    environment: dict[str, str]


class End(Struct, frozen=True, array_like=True, tag=3):
    """Kill a task process and all it started."""

    process: int


# --- fork server -> pool ------------------------------------------------------------------------


class Ready(Struct, frozen=True, array_like=True, tag=11):
    """The modules are loaded; `notes` says which could not be."""

    notes: list[str]


class Swept(Struct, frozen=True, array_like=True, tag=12):
    """Nothing of an earlier generation of this pool runs any more."""

    killed: int


class Born(Struct, frozen=True, array_like=True, tag=13):
    """A task process was forked."""

    process: int
    pid: int


NOT_FORKED: Final = -1
UNKNOWN: Final = -2


class Ended(Struct, frozen=True, array_like=True, tag=14):
    """A task process and all it started are gone.

    `status` is the wait status, or NOT_FORKED, or UNKNOWN where nobody waited for it;
    `deadline_ms` is not zero where the fork server killed it by itself.
    """

    process: int
    status: int
    deadline_ms: int = 0
    text: str = ""


Request = Setup | Spawn | End
Report = Ready | Swept | Born | Ended

# --- pool <-> task process ----------------------------------------------------------------------


class Start(Struct, frozen=True, array_like=True):
    """Run one task, unless `deadline_ms` of the boot-time clock is over (0: there is none).

    What is sent `ahead` runs only if the one before it ended as it should, and once it was
    claimed from its `tray`; otherwise it is passed over without a word.
    """

    serial: int
    task: bytes
    token: tuple[int, int]
    attempt: int
    node: str
    work: memoryview
    work_path: str
    code_digest: bytes
    code: memoryview
    code_path: str
    deadline_ms: int
    # A bundle: ids and work of the tasks that run after it, each once it was claimed.
    more: list[tuple[bytes, memoryview]] = []
    tray: Annotated[int, Meta(ge=0, lt=TRAYS)] = 0
    ahead: bool = False
    # When it has ended, look for the next one before sleeping: a processor is free for that.
    look: bool = False


DONE: Final[Literal["done"]] = "done"
FAILED: Final[Literal["failed"]] = "failed"

Status = Literal["done", "failed"]

IN_FILE: Final = 1  # the result stands in the task's incoming file
LEFT_BEHIND: Final = 2  # threads or processes of the task still run
RETIRE: Final = 4  # the process has grown and should be replaced
OUTPUT_WAITS: Final = 8  # the pipes hold output that belongs to this task
CODE_MISSING: Final = 16  # nothing ran: the code has to be sent along
LAPSED: Final = 32  # nothing ran: the deadline was over
FAILURE: Final = 64  # the task failed; it stands in `status` on the wire
# After any other flag the process begins nothing that was sent ahead.
ORDINARY: Final = IN_FILE | FAILURE


Word = Annotated[str, Meta(max_length=200)]


class Done(Struct, frozen=True, array_like=True):
    """The end of one task; `result` is a payload, or a failure where `status` is failed.

    Of a bundle it is the last one that began; what the `before` earlier ones came to stands in
    the mailbox.
    """

    serial: int
    status: Literal["done", "failed"]
    flags: int
    result: Annotated[bytes, Meta(max_length=RESULT_INLINE_MAX)]
    digest: Annotated[bytes, Meta(max_length=32)] = b""
    size: int = 0
    facts: dict[Word, int | Word] = {}
    before: Annotated[int, Meta(ge=0)] = 0


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_start = msgspec.msgpack.Decoder(Start).decode
decode_done = msgspec.msgpack.Decoder(Done).decode


def incoming_name(generation: str, process: int, serial: int) -> str:
    """Name the file that a task process may write one large result to."""
    return f"{generation}-{process}-{serial}"
