"""What a daemon has to find out and lay ready before it serves.

Edge.  Each function does one such thing; their order is the daemon's business (R-life-1).  This
file must not know what a task is, nor what the node will decide.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from blackroad import directories
from blackroad.bus.messages import Message
from blackroad.bus.sockets import BACKLOG, Poller
from blackroad.discovery.hints import from_static
from blackroad.discovery.lives import is_news
from blackroad.discovery.machine import Host, cache_environment
from blackroad.errors import ClockProblem, EnvironmentProblem
from blackroad.ids import inc_counter
from blackroad.limits import T_DEAD_BEATS, heartbeat_ms
from blackroad.runtime import pool as tasks
from blackroad.store import keyring
from blackroad.store.peers import Remembered

if TYPE_CHECKING:
    from blackroad.answering import Answering
    from blackroad.bus.guard import Guard
    from blackroad.bus.sources import Sources
    from blackroad.bus.transport import Transport
    from blackroad.capabilities import Capabilities
    from blackroad.config import Config
    from blackroad.discovery.membership import Membership
    from blackroad.seeking import Seeking
    from blackroad.store.peers import Peers

CLEAN_MS = 10_000
# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
HEAP_BYTES = 256 * 1024
# Nobody is sought for longer where somebody once was: he remembers this daemon as well.
REMEMBERED_MS = 300_000

DESCRIPTORS_MAX = 524_288
# From here on the daemon says that descriptors run out, once a minute.
DESCRIPTORS_ALARM_PERCENT = 80
# From here on few may wait to be accepted, until there was room for so long.
DESCRIPTORS_SHORT_PERCENT = 90
SHORT_QUEUE = 8
SHORT_MS = 60_000
# Sockets that listen are made early, and have low numbers.
LISTENERS_BELOW = 4_096
ALARM_MS = 60_000

# What a person has to do about it; the facts are in the same line.
ADVICE: Final[Mapping[str, str]] = {
    "node.amnesia": "this node's state directory is older than what its peers remember (a backup, "
    "a snapshot, a copied disk?): tasks that it accepted in between are lost, and those that ended "
    "in between may run again.  It goes on by itself as a newer life",
    "node.clone": "two machines use one identity, and neither gets new work: stop the daemon on "
    "the machine that is the copy, remove identity.json and cluster/ from its state directory (and "
    "journal.sqlite, unless the tasks in it shall run there as well), then start both again, and "
    "let the copy join anew where there are keys",
    "node.doubt": "somebody knows a newer life of this node: it takes nothing new until it is "
    "clear whether its own memory is old or another machine uses its identity",
    "journal.behind": "the journal is older than what peers remember of it: was journal.sqlite "
    "restored or moved away?  Tasks that were accepted in between are lost",
}


def keys_exist(config: Config) -> bool:
    """Has the node with this configuration keys of a cluster?"""
    return keyring.exists(config.state_dir or directories.default_state(os.environ))


def boot_ms() -> int:
    """The clock that decides: milliseconds since boot, suspend included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def wall_ms() -> int:
    """The clock of people, for what must mean something after a restart."""
    return time.time_ns() // 1_000_000


def steady_heap() -> bool:
    """Have large tables given back to the system when they are freed; False where that is unknown.

    glibc raises the size from which it does so each time that such a table is freed.  Tables that
    grow and are replaced for weeks would then leave holes in the heap: measured over 700,000 tasks,
    a node's memory stays at 42 MiB with this, and creeps to 52 MiB without.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, HEAP_BYTES) and mallopt(M_TRIM_THRESHOLD, HEAP_BYTES))
    return False


def check_clock() -> None:
    """Raise ClockProblem where this machine lacks the clock that leases rest on."""
    try:
        boot_ms()
    except (OSError, AttributeError) as error:
        raise ClockProblem(
            f"this system has no boot-time clock: {error}",
            hint="blackroad needs Linux 2.6.39 or newer; leases cannot be kept without it",
        ) from None


def as_configured(caps: Capabilities, config: Config) -> Capabilities:
    """What the probe found, as this node's owner wants it told."""
    return msgspec.structs.replace(
        caps,
        arch=config.arch or caps.arch,
        cores=caps.cores if config.slots is None else config.slots,
        memory_bytes=min(config.memory_bytes or caps.memory_bytes, caps.memory_bytes),
    )


def own_endpoints(listen: str, port: int) -> tuple[str, ...]:
    """Where others reach this daemon's inbox, the likely addresses first."""
    if listen not in ("0.0.0.0", "::"):
        host = f"[{listen}]" if ":" in listen else listen
        return (f"tcp://{host}:{port}",)
    from blackroad.discovery.interfaces import choose, interfaces

    addresses = list(choose(interfaces(), None).addresses) or ["127.0.0.1"]
    hosts = [f"[{one}]" if ":" in one else one for one in addresses]
    return tuple(f"tcp://{host}:{port}" for host in hosts[:16])


def seek(
    config: Config, transport: Transport, membership: Membership, log: Any, answering: Answering
) -> Seeking:
    """Make what looks for others and answers for it; nothing is announced before it is started."""
    from blackroad.seeking import Seeking

    own = partial(own_endpoints, config.listen or "127.0.0.1", transport.port)
    seeking = Seeking(config, transport, membership, log, (boot_ms, wall_ms), own)
    seeking.reply, seeking.refuse = answering.reply, answering.refuse
    answering.net = seeking.answer
    return seeking


def examine(
    config: Config,
    sources: Sources,
    answering: Answering,
    closing: Callable[[Callable[[], None]], None],
) -> None:
    """Have the daemon answer a doctor; `closing` is given what ends that."""
    from blackroad.checkup.asked import Examination

    examination = Examination(config, boot_ms, sources.watch, sources.unwatch)
    answering.checkup = examination.told
    closing(examination.close)


def task_environment(config: Config, cache: Path) -> dict[str, str]:
    """All that task processes get: the daemon's own but for its secrets, caches, the device."""
    opencl = config.opencl
    # A slot is a core: NumPy's own threads in each task would fight over the others'.
    share = max(1, (os.cpu_count() or 1) // (config.slots or 1))
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **dict.fromkeys(threads, str(share)),
        "POCL_CACHE_DIR": str(cache),
        "MESA_SHADER_CACHE_DIR": str(cache),
        **cache_environment(Host()),
        **tasks.base_environment(),
        "BLACKROAD_OPENCL_DEVICE": "" if opencl == "auto" else opencl,
    }


def await_clean(pool: tasks.Pool, log: Any) -> None:
    """A new incarnation is the claim that nothing older runs here: make sure of it first.

    Raises  EnvironmentProblem where the fork server does not come up.
    """
    until_ms = boot_ms() + CLEAN_MS
    while boot_ms() < until_ms:
        ready, _, _ = select.select(list(pool.fds()), [], [], 0.05)
        for fd in ready:
            for event in pool.read(fd):
                if isinstance(event, tasks.Clean):
                    if event.killed:
                        log.warning("daemon.leftovers", killed=event.killed)
                    return
                if isinstance(event, tasks.Problem):
                    raise event.error
    raise EnvironmentProblem(
        f"the task runtime did not start within {CLEAN_MS // 1000} s",
        hint="is the machine out of memory or processes? see its system log",
    )


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as the system lets it; return how many.

    Where they run out, ZeroMQ spins and nobody can join.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


class Descriptors:
    """Watches how many of its open files this process has used up."""

    def __init__(self) -> None:
        self.used = 0
        self.limit = 0
        self._told_ms = -ALARM_MS
        # Until when few may wait, 0 while many may.
        self._short_until_ms = 0

    def look(self, log: Any) -> None:
        """Count them, and raise the alarm where they run out.

        Precision  the lowest free number: right but for holes, and it costs no walk over them all.
        """
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.used = self.limit
        else:
            os.close(fd)
            self.used = fd
        now_ms = boot_ms()
        self._shorten(now_ms)
        full = self.used * 100 >= self.limit * DESCRIPTORS_ALARM_PERCENT
        if full and now_ms - self._told_ms >= ALARM_MS:
            self._told_ms = now_ms
            log.error(
                "daemon.descriptors",
                used=self.used,
                limit=self.limit,
                hint="many open connections: `blackroad doctor net` shows who makes them; raise "
                "LimitNOFILE in the unit, and let a packet filter admit known machines only",
            )

    def _shorten(self, now_ms: int) -> None:
        """Keep the line of those who wait to be accepted short while descriptors are short.

        They are served in their order, and as slowly as silent ones are cut; who waits for longer
        than a handshake may take has given up when its turn comes.  So nobody gets in from a long
        line, and members do from a short one.
        """
        if self.used * 100 >= self.limit * DESCRIPTORS_SHORT_PERCENT:
            if not self._short_until_ms:
                queue_at_most(SHORT_QUEUE)
            self._short_until_ms = now_ms + SHORT_MS
        elif self._short_until_ms and now_ms >= self._short_until_ms:
            self._short_until_ms = 0
            queue_at_most(BACKLOG)

    def told(self) -> dict[str, int]:
        """The last count, as plain data."""
        return {"used": self.used, "limit": self.limit}


def queue_at_most(length: int) -> int:
    """Let so many connections wait on each TCP socket that listens; return how many sockets do.

    Cost  a look at each low descriptor, and none is opened, for there may be none left.
    """
    found = 0
    for fd in range(3, LISTENERS_BELOW):
        try:
            one = socket.socket(fileno=fd)
        except OSError:
            continue
        try:
            tcp = one.family in (socket.AF_INET, socket.AF_INET6)
            if tcp and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                one.listen(length)
                found += 1
        except OSError:
            pass
        finally:
            # It is somebody else's.
            one.detach()
    return found


def write_runtime_file(path: Path, facts: Mapping[str, object]) -> None:
    """Tell local tools where this daemon is."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts), "utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)


# --- lives ----------------------------------------------------------------------------------------


def hint_known(
    transport: Transport,
    peers: Peers,
    static: Sequence[str],
    now_ms: int,
    seeds: Sequence[str] = (),
) -> None:
    """Lay ready all addresses that are configured, remembered, or came when this node joined."""
    for endpoint in seeds:
        transport.hint(endpoint, now_ms, source="token")
    for hint in from_static(static):
        for endpoint in hint.endpoints:
            transport.hint(endpoint, now_ms)
    for one in peers.known.values():
        transport.remember(one.node, one.inc, one.mark)
        for endpoint in one.endpoints:
            until_ms = now_ms + REMEMBERED_MS
            transport.hint(endpoint, now_ms, until_ms, one.node, "remembered")


def learn_members(transport: Transport, peers: Peers) -> None:
    """Take down where the members are, the address that works first."""
    for link in transport.links.values():
        if link.present and link.endpoints:
            inc, mark = transport.past(link.node)
            there = (transport.address(link), *link.endpoints[:3])
            peers.learn(Remembered(link.node, inc, mark, tuple(dict.fromkeys(filter(None, there)))))


class Memories(NamedTuple):
    """What peers said before this daemon served.

    `above` is the highest counter of a life of this node that it has not lived, 0 for none; `mark`
    how far its journal had come; `early` what came besides, as `Transport.receive` yields it.
    """

    above: int
    mark: int
    early: list[tuple[bytes, bytes, list[Message]]]


def ask_past(
    transport: Transport,
    fixed_heartbeat_ms: int,
    clock: Callable[[], int],
    guard: Guard | None = None,
) -> Memories:
    """Greet all hinted addresses; wait until all have answered, T_dead at most (R-life-2)."""
    me = transport.me
    told: list[int] = []
    marks = [0]

    def met(node: bytes, inc: int, your_inc: int, your_mark: int) -> None:
        told.extend((your_inc, inc) if node == me.node else (your_inc,))
        marks.append(your_mark)

    transport.on_met = met
    early: list[tuple[bytes, bytes, list[Message]]] = []
    poller = Poller()
    poller.watch(transport.inbox)
    if guard is not None:
        # Who is to answer has to get in.
        poller.watch(guard.judge)
    now_ms = clock()
    until_ms = now_ms + T_DEAD_BEATS * (fixed_heartbeat_ms or heartbeat_ms(1))
    while transport.unanswered() and now_ms < until_ms:
        transport.tick(now_ms)
        transport.flush(now_ms)
        wake_ms = min(until_ms, transport.next_deadline_ms())
        poller.wait(max(1, wake_ms - now_ms))
        if guard is not None:
            guard.serve()
        now_ms = clock()
        early += transport.receive(now_ms)
        transport.flush(now_ms)
    news = [inc_counter(one) for one in told if is_news(me.inc, one)]
    return Memories(max(news, default=0), max(marks), early)
