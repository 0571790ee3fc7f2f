"""Every message that daemons and clients exchange, with the limits that make it valid.

Source  docs/protocol.md, "All message kinds"; the tag of each class is its kind number there.
Decoding validates: what does not fit the types below never reaches a state machine.  A field is
only ever added at the end, with a default, so that neighbouring versions read each other.
This file knows no socket and no state.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from msgspec import Meta

from blackroad.bus.admission import ALL_ADMISSION, GossipMessage
from blackroad.bus.admission import AskMembers as AskMembers
from blackroad.bus.admission import Denied as Denied
from blackroad.bus.admission import DoorKey as DoorKey
from blackroad.bus.admission import DoorMessage as DoorMessage
from blackroad.bus.admission import Join as Join
from blackroad.bus.admission import Joined as Joined
from blackroad.bus.admission import Members as Members
from blackroad.bus.admission import Pending as Pending
from blackroad.bus.admission import Rotate as Rotate
from blackroad.bus.bulk_kinds import Chunk as Chunk
from blackroad.bus.bulk_kinds import Dial as Dial
from blackroad.bus.bulk_kinds import Gone as Gone
from blackroad.bus.bulk_kinds import Line as Line
from blackroad.bus.bulk_kinds import Want as Want
from blackroad.bus.demand_kinds import Allocation as Allocation
from blackroad.bus.demand_kinds import ClassDemand as ClassDemand
from blackroad.bus.demand_kinds import Demand as Demand
from blackroad.bus.demand_kinds import InUse as InUse
from blackroad.bus.demand_kinds import Row as Row
from blackroad.bus.fields import (
    Endpoint,
    HeardId,
    Inline,
    LeaseMs,
    Name,
    NeedsWire,
    OptionalDigest,
    OptionalNode,
    Text,
    User,
)
from blackroad.bus.parts import Message as Message
from blackroad.bus.parts import Part
from blackroad.bus.topic_kinds import AskTopics as AskTopics
from blackroad.bus.topic_kinds import Publish as Publish
from blackroad.bus.topic_kinds import Subscribe as Subscribe
from blackroad.bus.topic_kinds import Taken as Taken
from blackroad.bus.topic_kinds import Topic as Topic
from blackroad.bus.topic_kinds import Topics as Topics
from blackroad.bus.topic_kinds import Unsubscribe as Unsubscribe
from blackroad.bus.topic_kinds import Updates as Updates
from blackroad.bus.topic_kinds import Value as Value
from blackroad.ids import (
    NODE_BYTES,
    U16,
    U32,
    U63,
    Digest,
    Epoch,
    NodeId,
    SessionId,
    TaskId,
    Token,
)
from blackroad.limits import (
    BUNDLE_TASKS_MAX,
    GANG_NODES_MAX,
    LEASE_MS_MAX,
    LEASE_MS_MIN,
    PROTOCOL_VERSION_MAX,
)


class Ref(Part, frozen=True, array_like=True, gc=False):
    """An object by content: its BLAKE2b-256 digest and its size in bytes."""

    digest: Digest
    size: Annotated[int, Meta(ge=0, le=2**50)]


Payload = Inline | Ref


def _whole_or_absent(name: str, value: bytes) -> None:
    """Refuse part of an id; `Meta` has no way to say "empty or so many bytes"."""
    if value and len(value) != NODE_BYTES:
        raise ValueError(f"{name}: {len(value)} bytes, an id has {NODE_BYTES} or none")


class ClassSpec(Part, frozen=True, array_like=True, gc=False):
    """What tasks of one class have in common; equal specs are one class.

    Units  `timeout_ms` and `lease_ms` are milliseconds; 0 means none, or the default lease.
    """

    needs: NeedsWire
    priority: Annotated[int, Meta(ge=-128, le=127)] = 0
    user: User = ""
    gang: Annotated[int, Meta(ge=1, le=GANG_NODES_MAX)] = 1
    exclusive: bool = False
    isolated: bool = False
    pure: bool = False
    once: bool = False
    retries: Annotated[int, Meta(ge=0, le=1000)] = 0
    timeout_ms: Annotated[int, Meta(ge=0, le=2**40)] = 0
    lease_ms: Annotated[int, Meta(ge=0, le=LEASE_MS_MAX)] = 0
    name: Name = ""

    def __post_init__(self) -> None:
        # A Grant could not carry it: its receiver would cut the link to the owner.
        if 0 < self.lease_ms < LEASE_MS_MIN:
            raise ValueError(f"lease_ms: 0 or at least {LEASE_MS_MIN}, not {self.lease_ms}")


class Supply(Part, frozen=True, array_like=True, gc=False):
    """A worker's ledger in numbers: what it gives in all, and what is free now."""

    cpu_units: U63 = 0
    memory_bytes: U63 = 0
    gpu_bytes: Annotated[tuple[U63, ...], Meta(max_length=16)] = ()
    free_cpu_units: U63 = 0
    free_memory_bytes: U63 = 0
    running: U32 = 0
    waiting: U32 = 0
    draining: bool = False
    speed_permille: U32 = 1000
    temperature_c: Annotated[int, Meta(ge=-100, le=300)] = 0
    throttled: bool = False
    load_percent: U32 = 0
    done: U63 = 0


class Facts(Part, frozen=True, array_like=True, gc=False):
    """What a worker reports of an ended attempt beside its result.

    Units  `run_us` is microseconds of the attempt's own running time.
    """

    run_us: U63 = 0
    exit_status: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    backend: Annotated[str, Meta(max_length=64)] = ""
    text: Text = ""
    type_name: Annotated[str, Meta(max_length=128)] = ""


class Status(IntEnum):
    """How an attempt ended on its worker."""

    DONE = 0
    FAILED = 1
    CRASHED = 2
    STOPPED = 3
    LAPSED = 4
    OUT_OF_MEMORY = 5
    TIMEOUT = 6
    NO_INPUT = 7


class Reason(IntEnum):
    """Why a worker refused a Grant."""

    INCARNATION = 0
    LATE = 1
    FULL = 2
    NEEDS = 3
    DRAINING = 4
    RECALLED = 5
    LAPSED = 6
    NO_SPACE = 7


class End(IntEnum):
    """How a task ended, once and for all."""

    DONE = 0
    FAILED = 1
    CANCELLED = 2
    EXPIRED = 3
    QUARANTINED = 4
    UNKNOWN = 5


class GrantFlag(IntFlag):
    """Bits of a Grant."""

    NONE = 0
    HOLD = 1
    GO = 2
    EXCLUSIVE = 4
    DURABLE = 8


class AttemptState(IntEnum):
    """What a worker says of a live attempt in its Renew."""

    WAITING = 0
    HELD = 1
    RUNNING = 2


# --- links --------------------------------------------------------------------------------------


class Peer(Part, frozen=True, array_like=True, gc=False):
    """A node and where it listens, told on to a newcomer."""

    node: NodeId
    endpoint: Endpoint


class Hello(Message, frozen=True, array_like=True, gc=False, tag=0x01):
    """Any -> any: open a link."""

    version_min: U32
    version_max: U32
    cluster: OptionalDigest
    node: NodeId
    inc: U63
    your_inc: U63
    name: Name
    endpoints: Annotated[tuple[Endpoint, ...], Meta(min_length=1, max_length=16)]
    telemetry_port: Annotated[int, Meta(ge=0, le=65535)]
    bulk_port: Annotated[int, Meta(ge=0, le=65535)]
    dialled: Annotated[str, Meta(max_length=128)] = ""


class Welcome(Message, frozen=True, array_like=True, gc=False, tag=0x02):
    """The answer to Hello: `session` numbers what you send me from now on."""

    version: U32
    session: U63
    credit: U32
    your_inc: U63
    node: NodeId
    inc: U63
    peers: Annotated[tuple[Peer, ...], Meta(max_length=64)] = ()
    dialled: Annotated[str, Meta(max_length=128)] = ""
    your_mark: U63 = 0


class Reject(Message, frozen=True, array_like=True, gc=False, tag=0x03):
    """The other answer to Hello: no link, for this reason."""

    reason: Annotated[str, Meta(max_length=32)]
    text: Annotated[str, Meta(max_length=256)] = ""
    dialled: Annotated[str, Meta(max_length=128)] = ""
    inc: U63 = 0


class Goodbye(Message, frozen=True, array_like=True, gc=False, tag=0x04):
    """Any -> all: this incarnation leaves in order, and nothing of it runs."""

    inc: U63


class Busy(Message, frozen=True, array_like=True, gc=False, tag=0x05):
    """Any -> any: not taken; keep it and come back."""

    what: Annotated[str, Meta(max_length=64)]
    retry_after_ms: Annotated[int, Meta(ge=0, le=60_000)]
    tasks: Annotated[tuple[TaskId, ...], Meta(max_length=256)] = ()


class Capabilities(Message, frozen=True, array_like=True, gc=False, tag=0x06):
    """Any -> any: what this node has, whole."""

    node: NodeId
    inc: U63
    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]
    body: Annotated[bytes, Meta(max_length=16 * 1024)]


class AskCapabilities(Message, frozen=True, array_like=True, gc=False, tag=0x07):
    """Any -> any: your Heartbeat names a digest that I do not have."""

    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]


# --- attempts -----------------------------------------------------------------------------------


class Small(Part, frozen=True, array_like=True, gc=False):
    """One task more of a bundle."""

    task: TaskId
    work: Inline


class Grant(Message, frozen=True, array_like=True, gc=False, tag=0x20):
    """Owner -> worker: run one attempt while its lease lives.

    Units   `echo_ms` is the worker's own stamp that the owner heard last; the attempt may run
            until echo_ms + lease_ms - K on the worker's clock.  `share` is how many attempts of
            this class the owner may have running there at once, 0 for no limit.  With `more` it
            is a bundle: these tasks run after the first one, one after the other.
    """

    token: Token
    task: TaskId
    cls: U32
    spec: ClassSpec
    echo_ms: U63
    inc: U63
    lease_ms: LeaseMs
    flags: Annotated[int, Meta(ge=0, le=15)]
    code: Ref | None
    work: Payload
    attempt: U32 = 1
    share: U16 = 0
    more: Annotated[tuple[Small, ...], Meta(max_length=BUNDLE_TASKS_MAX - 1)] = ()


class Refused(Message, frozen=True, array_like=True, gc=False, tag=0x21):
    """Worker -> owner: never started here, and never will."""

    token: Token
    inc: U63
    stamp_ms: U63
    reason: Reason


class Recall(Message, frozen=True, array_like=True, gc=False, tag=0x22):
    """Owner -> worker: give back unless started; with `stop`, end it whatever it does."""

    token: Token
    stop: bool


class Listed(Part, frozen=True, array_like=True, gc=False):
    """One live attempt in a Renew."""

    token: Token
    state: AttemptState


class Renew(Message, frozen=True, array_like=True, gc=False, tag=0x23):
    """Worker -> owner: all live attempts of yours here, at this stamp."""

    inc: U63
    stamp_ms: U63
    attempts: Annotated[tuple[Listed, ...], Meta(max_length=3500)]


class Renewed(Message, frozen=True, array_like=True, gc=False, tag=0x24):
    """Owner -> worker: what that Renew listed lives on, but for these."""

    inc: U63
    stamp_ms: U63
    refused: Annotated[tuple[Token, ...], Meta(max_length=3500)]


class Early(Part, frozen=True, array_like=True, gc=False):
    """What a task of a bundle that is *done* came to; `run_us` is its own time, microseconds."""

    result: Inline
    run_us: U63 = 0


Before = Annotated[tuple[Early, ...], Meta(max_length=BUNDLE_TASKS_MAX - 1)]


class Divided(Message, frozen=True, array_like=True, gc=False, tag=0x27):
    """Worker -> owner: of this bundle, these are done and the next one runs; the rest is yours."""

    token: Token
    inc: U63
    before: Before


class Outcome(Message, frozen=True, array_like=True, gc=False, tag=0x25):
    """Worker -> owner: the attempt ended like this; repeated until OutcomeAck.

    Of a bundle, `task` is the last one that began; those `before` it are done, and those after it
    never began.
    """

    token: Token
    task: TaskId
    inc: U63
    status: Status
    result: Payload
    facts: Facts
    before: Before = ()


class OutcomeAck(Message, frozen=True, array_like=True, gc=False, tag=0x26):
    """Owner -> worker: these may be forgotten."""

    tokens: Annotated[tuple[Token, ...], Meta(max_length=1024)]


# --- clients ------------------------------------------------------------------------------------


class Open(Message, frozen=True, array_like=True, gc=False, tag=0x30):
    """Client -> owner: this is my session; it lives `lease_ms` after my last message."""

    session: SessionId
    lease_ms: Annotated[int, Meta(ge=1000, le=600_000)]
    user: User = ""
    version: U32 = PROTOCOL_VERSION_MAX


class Opened(Message, frozen=True, array_like=True, gc=False, tag=0x31):
    """Owner -> client: the session lives; `credit` tasks may be outstanding at once."""

    session: SessionId
    node: NodeId
    inc: U63
    credit: U32
    name: Name = ""
    lost: Annotated[tuple[TaskId, ...], Meta(max_length=1024)] = ()


class Alive(Message, frozen=True, array_like=True, gc=False, tag=0x32):
    """Client -> owner: the session lives on."""

    session: SessionId


class Item(Part, frozen=True, array_like=True, gc=False):
    """One task of a Submit."""

    task: TaskId
    work: Payload


class Submit(Message, frozen=True, array_like=True, gc=False, tag=0x33):
    """Client -> owner: tasks of one class.  The same id again gets the same answer."""

    session: SessionId
    spec: ClassSpec
    code: Ref | None
    durable: bool
    wait_for_node: bool
    tasks: Annotated[tuple[Item, ...], Meta(min_length=1, max_length=256)]
    deadline_ms: Annotated[int, Meta(ge=0, le=2**40)] = 0


class Accepted(Message, frozen=True, array_like=True, gc=False, tag=0x34):
    """Owner -> client: mine now; for durable tasks, flushed."""

    tasks: Annotated[tuple[TaskId, ...], Meta(max_length=256)]


class Lack(Part, frozen=True, array_like=True, gc=False):
    """One line of "what is missing"."""

    item: Text
    asked: Text
    nearest: Text
    verdict: Text


class Rejected(Message, frozen=True, array_like=True, gc=False, tag=0x35):
    """Owner -> client: not taken, and why."""

    tasks: Annotated[tuple[TaskId, ...], Meta(max_length=256)]
    reason: Annotated[str, Meta(max_length=32)]
    text: Text = ""
    rows: Annotated[tuple[Lack, ...], Meta(max_length=64)] = ()
    nodes: U32 = 0


class Cancel(Message, frozen=True, array_like=True, gc=False, tag=0x36):
    """Client -> owner: a wish; the answer is the outcome."""

    tasks: Annotated[tuple[TaskId, ...], Meta(max_length=1024)]
    reason: Text = ""


class Ended(Message, frozen=True, array_like=True, gc=False, tag=0x37):
    """Owner -> client: the task's one outcome; repeated until Seen."""

    task: TaskId
    end: End
    reason: Annotated[str, Meta(max_length=32)]
    result: Payload
    facts: Facts
    node: OptionalNode
    attempts: U32

    def __post_init__(self) -> None:
        _whole_or_absent("node", self.node)


class Result(Part, frozen=True, array_like=True, gc=False):
    """What one task of a bundle came to; `run_us` is its own running time in microseconds."""

    task: TaskId
    result: Payload
    run_us: U63 = 0


class Results(Message, frozen=True, array_like=True, gc=False, tag=0x43):
    """Owner -> client: these are *done*, each at its first attempt; as good as an Ended each."""

    node: OptionalNode
    results: Annotated[tuple[Result, ...], Meta(min_length=1, max_length=1024)]

    def __post_init__(self) -> None:
        _whole_or_absent("node", self.node)


class Seen(Message, frozen=True, array_like=True, gc=False, tag=0x38):
    """Client -> owner: these outcomes arrived."""

    tasks: Annotated[tuple[TaskId, ...], Meta(max_length=1024)]


class Query(Message, frozen=True, array_like=True, gc=False, tag=0x39):
    """Client -> any daemon -> the one concerned: read something; `target` b"" means here."""

    query: U63
    target: OptionalNode
    name: Annotated[str, Meta(max_length=32)]
    args: Annotated[bytes, Meta(max_length=4096)] = b""

    def __post_init__(self) -> None:
        _whole_or_absent("target", self.target)


class Reply(Message, frozen=True, array_like=True, gc=False, tag=0x3A):
    """The answer to a Query, in pages; `error` is empty where it went well."""

    query: U63
    node: OptionalNode
    page: U32
    last: bool
    body: Annotated[bytes, Meta(max_length=64 * 1024)] = b""
    error: Text = ""

    def __post_init__(self) -> None:
        _whole_or_absent("node", self.node)


# --- telemetry ----------------------------------------------------------------------------------


class Heartbeat(Message, frozen=True, array_like=True, gc=False, tag=0x50):
    """PUB: this life of this node, now.

    Units  `stamp_ms` is the sender's boot-time clock; it means something only to the sender.
           `owned` counts the tasks that were submitted there and have not ended.
    """

    node: NodeId
    inc: U63
    stamp_ms: U63
    version: U32
    claim: Epoch | None
    follows: OptionalNode
    served: bool
    heard: Annotated[tuple[HeardId, ...], Meta(max_length=1024)]
    supply: Supply
    loop_lag_ms: U32
    journal_mark: U63
    caps_digest: Annotated[bytes, Meta(max_length=16)]
    priority: Annotated[int, Meta(ge=-128, le=127)] = 0
    interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1000
    receiving_kib_s: U32 = 0
    sending_kib_s: U32 = 0
    owned: U32 = 0
    cpu_percent: U32 = 0
    memory_percent: U32 = 0

    def __post_init__(self) -> None:
        _whole_or_absent("follows", self.follows)
        _whole_or_absent("caps_digest", self.caps_digest)


class Event(Message, frozen=True, array_like=True, gc=False, tag=0x51):
    """PUB: something happened; for people and dashboards."""

    name: Annotated[str, Meta(max_length=64)]
    payload: Annotated[bytes, Meta(max_length=16 * 1024)]
    seq: U63


LinkMessage = Hello | Welcome | Reject
PeerMessage = (
    Goodbye
    | Busy
    | Capabilities
    | AskCapabilities
    | GossipMessage
    | Demand
    | Allocation
    | Grant
    | Refused
    | Recall
    | Renew
    | Renewed
    | Outcome
    | OutcomeAck
    | Divided
    | Query
    | Reply
    | AskTopics
    | Topics
)
ClientMessage = (
    Open
    | Alive
    | Submit
    | Cancel
    | Seen
    | Query
    | Want
    | Chunk
    | Gone
    | Subscribe
    | Unsubscribe
    | Publish
    | Taken
)
OwnerMessage = (
    Opened
    | Accepted
    | Rejected
    | Ended
    | Results
    | Reply
    | Busy
    | Want
    | Chunk
    | Gone
    | Reject
    | Taken
    | Updates
)
BulkMessage = Want | Chunk | Gone | Dial | Line
TelemetryMessage = Heartbeat | Event | Topic

ALL_MESSAGES: tuple[type[Message], ...] = (
    Hello,
    Welcome,
    Reject,
    Goodbye,
    Busy,
    Capabilities,
    AskCapabilities,
    Demand,
    Allocation,
    Grant,
    Refused,
    Recall,
    Renew,
    Renewed,
    Outcome,
    OutcomeAck,
    Divided,
    Open,
    Opened,
    Alive,
    Submit,
    Accepted,
    Rejected,
    Cancel,
    Ended,
    Results,
    Seen,
    Query,
    Reply,
    Want,
    Chunk,
    Gone,
    Dial,
    Line,
    Heartbeat,
    Event,
    Topic,
    AskTopics,
    Topics,
    Subscribe,
    Unsubscribe,
    Publish,
    Taken,
    Updates,
    *ALL_ADMISSION,
)
