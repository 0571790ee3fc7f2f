"""The daemon: one event loop that runs a node with real sockets, disks and processes.

Edge.  Everything that is decided is decided in `node.py`; this file turns what the world does
into events and effects into what the world should do, in order.  Drain each source until it
would block, then flush once: so batches form under load, and without load nothing waits.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from blackroad import config as configuration
from blackroad import logs, service, starting
from blackroad.answering import Answering
from blackroad.bus import messages as m
from blackroad.bus.boxes import bytes_per_second
from blackroad.bus.programs import CLIENT_PREFIX as CLIENT_PREFIX
from blackroad.bus.programs import serve_programs
from blackroad.bus.sockets import Socket
from blackroad.bus.sources import Sources
from blackroad.bus.topic_wires import TopicWires
from blackroad.discovery.machine import sensors
from blackroad.discovery.usage import Usage
from blackroad.errors import BlackroadError, StateDirectoryProblem
from blackroad.events import Chronicle
from blackroad.gate import PREFIX, Gate
from blackroad.ids import inc_counter, short, text32
from blackroad.inventory import Inventory
from blackroad.limits import FOREVER_MS
from blackroad.node import (
    AnyEvent,
    Drain,
    Evicted,
    Fetched,
    FetchFailed,
    Flushed,
    FromClient,
    FromPeer,
    Heard,
    Leave,
    Met,
    Node,
    Overslept,
    Probed,
    Sensed,
    Space,
    Tick,
)
from blackroad.router import effects as fx
from blackroad.running import Running
from blackroad.runtime import pool as tasks
from blackroad.runtime.cgroups import delegated
from blackroad.runtime.exchange import Exchange
from blackroad.runtime.objects import ObjectStore
from blackroad.runtime.streams import Streams
from blackroad.starting import boot_ms, wall_ms
from blackroad.store import rows as rowing
from blackroad.store.identity import Life, StateDirectory
from blackroad.store.journal import Journal
from blackroad.store.peers import Peers
from blackroad.watching import Myself, Watching

if TYPE_CHECKING:
    from blackroad.config import Config

POLL_MS_MAX = 1_000
HOUSEKEEPING_MS = 1_000
SENSE_MS = 5_000
STOP_MS = 3_000
GC_THRESHOLD = 20_000
HOLD_MS = 2
HOLD_WAITING = 8
HOLD_MESSAGES = 64
OVERSLEPT_MS = 750
RUNTIME_FILE = "daemon.json"
PREFORKED_MAX = 4
MEMBERSHIP_NOTES = frozenset({"node.joined", "node.reincarnated"})


def run_daemon(config: Config) -> int:
    """Run a daemon until it is told to stop; return its exit code.

    Raises  BlackroadError where it cannot start: a port, a directory, a setting.
    """
    starting.steady_heap()
    above = 0
    chronicle = Chronicle()
    while True:
        daemon = Daemon(config, above, chronicle)
        try:
            daemon.start()
            code = daemon.run()
        finally:
            daemon.close()
        above = daemon.above
        if not daemon.again:
            return code


class Daemon:
    """All edges of one node, and the loop that serves them."""

    def __init__(self, config: Config, above: int = 0, chronicle: Chronicle | None = None) -> None:
        self.config = configuration.resolved(config, keys_exist=starting.keys_exist)
        self._above = above
        self._chronicle = Chronicle() if chronicle is None else chronicle
        # Is another life to follow, in the same process?
        self.again = False
        # The counter that the next life has to be above, 0 where none is to follow (R-life-2).
        self.above = 0
        self.paths = configuration.paths(self.config)
        self.log: Any = None
        self._stopping = False
        self._closers: list[Callable[[], None]] = []
        self._sources = Sources()
        self._poller = self._sources.poller
        self._events: list[AnyEvent] = []
        self._environment: dict[str, str] = {}
        self._held_ms = self._woke_ms = 0
        self._pool_version = -1
        self._pool_fds: set[int] = set()
        self._watchdog_ms = service.watchdog_ms()
        self._watchdog_due_ms = 0
        self._housekeeping_due_ms = 0
        self._sense_due_ms = 0
        self._members_changed = False
        self._descriptors = starting.Descriptors()
        self._usage = Usage()

    # --- start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock the state, begin a life, listen, and only then tell anybody."""
        starting.check_clock()
        config = self.config
        state = self._state = StateDirectory(self.paths.state)
        state.open()
        self._closers.append(state.close)
        self._launch_pool()
        self._gate = Gate(config, self.paths.state)
        self._journal = Journal(self.paths.state)
        self._closers.append(self._journal.close)
        rows = self._journal.load()
        life = self._begin_life(self._above)
        self._inventory = Inventory(config)
        caps = self._inventory.quick()
        log = logs.setup(config.log_format, config.log_level, caps.name)
        me = Myself(short(life.node), inc_counter(life.inc), caps.name)
        self._watching = Watching(config, self.paths, me, log, self._chronicle)
        self._closers.append(self._watching.close)
        self.log = self._gate.log = self._watching.log
        self._bus = self._gate.open_bus()
        self._closers.append(self._bus.close)
        self._transport = self._gate.open_transport(self._bus, life, caps.name)
        # Whoever finds this daemon may end it: from here on it goes in order.
        self._take_signals()
        path = str(self.paths.client_socket)
        local = serve_programs(path, self._transport.clients, self._sources, self._from_client)
        self._closers.append(local.close)
        self._open_store(rowing.objects_of(chain.from_iterable(rows)))
        # Nothing of an earlier life runs any more after this.
        starting.await_clean(self._pool, self.log)
        # After the task runtime, which programs inherit the usual limit from.
        starting.raise_descriptor_limit()
        life, early = self._recall(life)
        # The node's own life begins when it can serve: its timers must not count what the
        # runtime took to come up.
        now_ms = boot_ms()
        self.node = Node(
            life.node,
            life.inc,
            caps,
            1 if config.slots is None else config.slots,
            now_ms,
            election_priority=config.priority if config.coordinate else -128,
            heartbeat_ms=config.heartbeat_ms or 0,
            lease_ms=config.lease_ms,
            journal_base=self._journal.base,
        )
        self._start_runtime()
        accepted, attempts, ends, owed = rows
        owned = rowing.remaining(accepted, wall_ms())
        self.node.owner.restore(owned, attempts, ends, now_ms)
        self.node.worker.restore(owed, now_ms)
        if not self._journal.findings.sound:
            self.log.error("journal.damaged", **self._journal.findings.told())
        if state.drains():
            self._events.append(Drain(True))
        self._journal.start()
        self._watch_all()
        self._transport.on_met = lambda *met: self._events.append(Met(*met))
        self._transport.on_refused = lambda node, one: self._events.append(FromPeer(node, (one,)))
        for node, client, found in early:
            self._took(node, client, found)
        self._start_discovery()
        self._write_runtime_file()
        self.log.info(
            "daemon.started",
            id=short(life.node),
            incarnation=life.inc >> 32,
            endpoints=list(self._transport.endpoints),
            closed=self._gate.closed,
            slots=config.slots,
            restored=len(rows[0]),
        )

    def _take_signals(self) -> None:
        """Have a signal end the loop; one that comes before its first turn is kept for it."""
        signals = service.Signals(self.stop)
        self._closers.append(signals.close)
        signals.install()
        self._sources.watch(signals.fd, signals.read)

    def _launch_pool(self) -> None:
        """Begin with the fork server: it comes up while this process reads its journal."""
        self._environment = starting.task_environment(self.config, self.paths.cache)
        self._pool = tasks.Pool(
            objects_dir=str(self.paths.state / "objects"),
            environment=self._environment,
            cgroup=delegated(),
        )
        self._pool.start()
        self._pool.prefork(min(self.config.slots or 1, PREFORKED_MAX))
        self._closers.append(self._pool.close)

    def _open_store(self, keep: set[bytes]) -> None:
        objects_dir = self.paths.state / "objects"
        limit_bytes = self.config.object_limit_bytes
        self._store = ObjectStore.shared(objects_dir, self.paths.runtime, limit_bytes, keep)
        self._store.on_dropped = self._on_evicted
        self._closers.append(self._store.close)

    def _start_runtime(self) -> None:
        self._exchange = Exchange(
            self._store,
            self._bus,
            self._poller,
            self._transport.bulk,
            self._transport.bulk_endpoint,
            self._transport.tell,
            self._on_arrived,
            self._on_fetch_failed,
            self._transport.key_of,
            self._gate.guard.node_with if self._gate.guard is not None else None,
            Streams.beside(self.config, self._store.peek, self._gate.closed),
        )
        self._topics = TopicWires(
            self._bus,
            self._transport,
            self.config.topics_keep_bytes,
            wall_ms,
            self._sources.watch,
            self._sources.unwatch,
        )
        self._running = Running(self.node, self._pool, self._store, self._events.append, self.log)
        self._answering = Answering(
            self.node,
            self._transport,
            self._running,
            self._store,
            self._exchange,
            boot_ms,
            self._journal.status,
            self._edges,
        )
        self._seeking = starting.seek(
            self.config, self._transport, self.node.membership, self.log, self._answering
        )
        self._closers.append(self._seeking.close)
        starting.examine(self.config, self._sources, self._answering, self._closers.append)
        self._gate.on_cut.append(self._exchange.forget_holder)
        self._gate.on_reload = self.reload

    def _edges(self) -> dict[str, Any]:
        return {
            **self._watching.told(),
            "gate": self._gate.told(),
            "topics": self._topics.status(),
            "descriptors": self._descriptors.told(),
            "box_bytes_per_second": bytes_per_second() if self._gate.closed else 0,
        }

    def _recall(self, life: Life) -> tuple[Life, list[tuple[bytes, bytes, list[m.Message]]]]:
        """Be reminded by peers of lives that this state directory has forgotten (R-life-2)."""
        transport = self._transport
        self._peers = Peers(self.paths.state)
        if not self._peers.load():
            self.log.warning("peers.unreadable", file=str(self._peers.path))
        seeds = self._gate.keyring.seeds
        starting.hint_known(transport, self._peers, self.config.peers, boot_ms(), seeds)
        if life.first:
            return life, []
        told = starting.ask_past(
            transport, self.config.heartbeat_ms or 0, boot_ms, self._gate.guard
        )
        behind = max(0, told.mark - self._journal.base)
        early = told.early
        if told.above:
            before = inc_counter(life.inc)
            life = self._begin_life(told.above)
            transport.begin_again(life.inc)
            early = [one for one in early if one[1]]
            self._watching.lives_anew(inc_counter(life.inc))
            self._watching.tell("node.amnesia", known=told.above, counter=before, behind=behind)
        elif behind:
            self._watching.tell("journal.behind", behind=behind)
        return life, early

    def _begin_life(self, above: int) -> Life:
        return self._journal.ballast.behind(lambda: self._state.begin_life(above))

    def _start_discovery(self) -> None:
        self._watching.start(
            self.node,
            self._transport,
            self._sources,
            self._topics.topics,
            self._answering.statistics,
        )
        self._answering.events = self._watching.asked
        if self._watching.serves:
            self._events.append(Probed(self._inventory.serving(self._watching.serves)))
        arch = self.node.capabilities[self.node.me].arch
        self._seeking.start(self._sources.watch, arch, self._gate.door_shown())
        self._inventory.start(self.paths.cache, self._environment)
        self._closers.append(self._inventory.close)
        if self._inventory.fileno() >= 0:
            self._sources.watch(self._inventory.fileno(), self._on_probe)

    def _write_runtime_file(self) -> None:
        """Tell local tools where this daemon is; written when it serves, removed when it stops."""
        path = self.paths.runtime / RUNTIME_FILE
        facts = {
            "pid": os.getpid(),
            "node": text32(self.node.me),
            "name": self.node.name,
            "endpoints": list(self._transport.endpoints),
            "telemetry_port": self._transport.telemetry_port,
            "bulk_port": self._transport.bulk_port,
            "client_socket": str(self.paths.client_socket),
            "metrics": self._watching.serves,
            "started_ms": wall_ms(),
        }
        starting.write_runtime_file(path, facts)
        self._closers.append(lambda: path.unlink(missing_ok=True))

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop."""
        # Long-lived tables need no collector to walk them again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        service.notify("READY=1")
        while not self._stopping:
            self._turn()
        if not self.again:
            service.notify("STOPPING=1")
        self._leave()
        return 0

    def stop(self) -> None:
        """End the loop after this turn, and for good."""
        self._stopping = True
        self.above, self.again = 0, False

    def reload(self) -> None:
        """End this life in order and begin the next one with the keys that are there now."""
        if not self._stopping:
            self._stopping = self.again = True

    def _live_anew(self, above: int) -> None:
        """End this life; the next one's counter will be above that."""
        if not self._stopping:
            self._stopping = self.again = True
            self.above = above

    def _turn(self, until_ms: int = FOREVER_MS) -> None:
        """One turn: wait, drain what is ready, look at the time, flush."""
        began_ms = boot_ms()
        due_ms = self._due_ms(began_ms)
        wake_ms = min(due_ms, until_ms, self._topics.next_deadline_ms())
        if self._held_ms:
            wake_ms = min(wake_ms, self._held_ms + HOLD_MS)
        wait_ms = max(0, min(POLL_MS_MAX, wake_ms - began_ms))
        ready = self._poller.wait(wait_ms, look=self._running.few)
        now_ms = boot_ms()
        # Stopped or starved, be it while it waited or while it worked.
        worked_ms = began_ms - self._woke_ms if self._woke_ms else 0
        late_ms = max(0, now_ms - max(wake_ms, began_ms), worked_ms)
        self._woke_ms = now_ms
        if late_ms > OVERSLEPT_MS:
            # Whoever overslept reads its inbox before it judges anybody.
            self._apply(Overslept(late_ms), now_ms)
            self.log.warning("daemon.overslept", gap_ms=late_ms)
        self._drain(ready, now_ms)
        if now_ms >= due_ms:
            self._apply(Tick(late_ms), now_ms)
            self._transport.tick(now_ms)
            self._gate.tick(now_ms)
            self._exchange.tick(now_ms)
            self._housekeeping(now_ms)
            self._apply_all(now_ms)
        self._flush(now_ms)
        if self._pool.version != self._pool_version:
            self._watch_pool()

    def _flush(self, now_ms: int) -> None:
        """Send what this turn produced; under load, outcomes wait a moment for company.

        While the worker has enough queued to stay busy nobody loses by it, and one wake-up of the
        client then serves many tasks.
        """
        self._topics.turn(now_ms)
        lined_up = self._transport.clients.lined_up
        if (
            lined_up
            and lined_up < HOLD_MESSAGES
            and self.node.worker.queued >= HOLD_WAITING * self.node.worker.slots
        ):
            if not self._held_ms:
                self._held_ms = now_ms
            if now_ms - self._held_ms < HOLD_MS:
                self._transport.flush_links(now_ms)
                return
        self._held_ms = 0
        self._transport.flush(now_ms)

    def _drain(self, ready: list[tuple[Any, bool]], now_ms: int) -> None:
        """Turn what is ready into events; output of tasks comes before their ends."""
        pool_fds = self._pool_fds
        finished: list[int] = []
        for what, room in ready:
            if what in pool_fds:
                finished.append(what)
            elif not self._sources.handle(what, room) and not self._exchange.on_readable(
                what, now_ms
            ):
                self._poller.forget(what)
        for fd in finished:
            for event in self._pool.read(fd):
                self._running.on_event(event)
        self._apply_all(now_ms)

    def _apply_all(self, now_ms: int) -> None:
        """Handle what was gathered, and what handling it brought about, before the next wait."""
        while self._events:
            events = self._events.copy()
            self._events.clear()
            for effect in self.node.handle_all(events, now_ms):
                self._perform(effect, now_ms)

    def _apply(self, event: AnyEvent, now_ms: int) -> None:
        """One event through the node, and its effects into the world, in order."""
        for effect in self.node.handle(event, now_ms):
            self._perform(effect, now_ms)

    def _perform(self, effect: fx.Effect, now_ms: int) -> None:
        match effect:
            case fx.Tell():
                self._transport.tell(effect.client, effect.message, effect.lazy)
            case fx.Start():
                self._running.launch(effect)
            case fx.HandAhead() | fx.TakeBack() | fx.Divide() | fx.Kill() | fx.Extend():
                self._running.perform(effect)
            case fx.Send():
                self._transport.send(effect.to, effect.message)
            case fx.Publish():
                self._transport.publish(effect.beat)
            case fx.Persist():
                self._persist(effect)
            case fx.Fetch():
                self._exchange.fetch(effect.ref, effect.holder, effect.client, now_ms)
            case fx.Pin():
                self._store.pin(effect.digest, "task")
            case fx.Unpin():
                self._store.unpin(effect.digest, "task")
            case fx.Note():
                self._note(effect)
            case fx.Lookup():
                self._answering.answer(effect)
            case fx.KeepDrain():
                self._keep_drain(effect.on)
            case fx.Shun():
                self._transport.shun(effect.node, now_ms)
                self._exchange.forget_holder(effect.node)
            case fx.NewLife():
                self._live_anew(effect.above)

    def _persist(self, persist: fx.Persist) -> None:
        """Journal rows, after the objects they rest on."""
        for digest in sorted(rowing.objects_of(persist.rows)):
            self._store.flush(digest)
        self._journal.append(persist.mark, rowing.by_wall_clock(persist.rows, wall_ms()))

    def _keep_drain(self, on: bool) -> None:
        try:
            self._state.keep_drain(on)
        except StateDirectoryProblem as error:
            self.log.error("drain.not_kept", error=error.message, hint=error.hint)

    def _due_ms(self, now_ms: int) -> int:
        return min(
            self.node.next_deadline_ms(),
            self._transport.next_deadline_ms(),
            self._gate.next_deadline_ms(),
            self._exchange.next_deadline_ms(now_ms),
            self._housekeeping_due_ms,
        )

    # --- sources ----------------------------------------------------------------------------------

    def _watch_all(self) -> None:
        self._sources.watch(self._transport.inbox, self._on_inbox)
        self._hear_telemetry()
        self._gate.watch_all(self._sources.watch, self._sources.unwatch)
        self._sources.watch(self._transport.bulk, self._exchange.on_server_readable)
        self._sources.watch(self._journal.wake_fd, self._on_flushed)
        self._sources.watch(self._running.sealer.fileno(), self._running.sealer.read)

    def _hear_telemetry(self) -> None:
        telemetry = self._transport.telemetry

        def hear(socket: Socket) -> None:
            self._sources.watch(socket, partial(self._on_telemetry, socket))

        telemetry.watch, telemetry.unwatch = hear, self._sources.unwatch
        for socket in telemetry.sockets():
            hear(socket)

    def _watch_pool(self) -> None:
        """The pool's descriptors come and go with its processes."""
        self._pool_version = self._pool.version
        # Those that were closed have left the poller by that, and their numbers may be in use
        # again, by the pool itself as well: so none is taken out, and all are put in.
        self._pool_fds = set(self._pool.fds())
        for fd in self._pool_fds:
            self._poller.watch(fd)

    def _on_inbox(self) -> None:
        now_ms = boot_ms()
        for node, client, found in self._transport.receive(now_ms):
            self._took(node, client, found)

    def _took(self, node: bytes, client: bytes, found: list[m.Message]) -> None:
        if client:
            self._from_client(client, found)
        else:
            link = self._transport.links.get(node)
            inc = link.inc if link is not None else 0
            found = self._topics.sift(node, self._gate.sift(node, found), boot_ms())
            found = self._watching.take(node, self._seeking.take(node, found))
            self._events.append(FromPeer(node, found, inc))

    def _from_client(self, client: bytes, found: list[m.Message]) -> None:
        """Objects are the driver's business, all else is the node's."""
        now_ms = boot_ms()
        kept = []
        for message in found:
            match message:
                case m.Chunk():
                    self._exchange.on_chunk(message, now_ms)
                case m.Gone():
                    self._exchange.on_gone(message.digest)
                case m.Query() if message.name.startswith(PREFIX):
                    self._gate.order(client, message)
                case m.Want():
                    self._exchange.serve(message, lambda one: self._tell_one(client, one))
                case m.Publish() | m.Subscribe() | m.Unsubscribe() | m.Taken():
                    self._topics.on_client(client, message, now_ms)
                case _:
                    kept.append(message)
        if kept:
            self._events.append(FromClient(client, kept))

    def _tell_one(self, client: bytes, message: m.Message) -> bool:
        self._transport.tell(client, message)
        return True

    def _on_telemetry(self, socket: Socket) -> None:
        for beat in self._transport.heartbeats(socket):
            self._transport.meet(beat.node, beat.inc, beat.journal_mark)
            self._events.append(Heard(beat))

    def _on_flushed(self) -> None:
        marks = self._journal.flushed()
        self._events += map(Space, self._journal.space())
        if marks:
            self._events.append(Flushed(marks[-1]))

    def _on_probe(self) -> None:
        # Its descriptor is closed when it has ended, and its number is anybody's then.
        fd = self._inventory.fileno()
        caps = self._inventory.look(self.log)
        if caps is not None:
            self._sources.unwatch(fd)
            self._running.found_environment = self._inventory.environment
            self._events.append(Probed(caps))

    # --- objects ----------------------------------------------------------------------------------

    def _on_arrived(self, digest: bytes) -> None:
        self._events.append(Fetched(digest))
        self._answering.arrived(digest)

    def _on_fetch_failed(self, digest: bytes, text: str, gone: bool, here: bool) -> None:
        self._events.append(FetchFailed(digest, text, gone, here))
        self._answering.failed(digest, text)

    def _on_evicted(self, digest: bytes) -> None:
        self._running.dropped(digest)
        self._events.append(Evicted(digest))

    # --- notes, time, end -------------------------------------------------------------------------

    def _note(self, note: fx.Note) -> None:
        self._watching.tell(note.name, "", **note.facts)
        self._members_changed = self._members_changed or note.name in MEMBERSHIP_NOTES
        node = note.facts.get("node")
        if note.name in ("node.died", "node.left") and isinstance(node, str):
            for one in list(self._transport.links):
                if short(one) == node:
                    self._exchange.forget_holder(one)
                    if note.name == "node.left":
                        self._transport.forget(one)
                    else:
                        self._transport.reset(one, boot_ms())

    def _remember_peers(self) -> None:
        """Write down where the members are, for the next life."""
        self._members_changed = False
        starting.learn_members(self._transport, self._peers)
        if not self._peers.write():
            self.log.warning("peers.unwritten", file=str(self._peers.path))

    def _housekeeping(self, now_ms: int) -> None:
        if now_ms < self._housekeeping_due_ms:
            return
        self._housekeeping_due_ms = now_ms + HOUSEKEEPING_MS
        self._pool.tick(now_ms)
        self._watching.tick(now_ms)
        if self._members_changed:
            self._remember_peers()
        self._seeking.show_door(*self._gate.door_shown())
        self._seeking.tick(now_ms)
        self._on_probe()
        if now_ms >= self._sense_due_ms:
            self._sense_due_ms = now_ms + SENSE_MS
            self._journal.look()
            self._descriptors.look(self.log)
            self._sense(now_ms)
        if self._watchdog_ms and now_ms >= self._watchdog_due_ms:
            self._watchdog_due_ms = now_ms + self._watchdog_ms // 2
            service.notify("WATCHDOG=1")

    def _sense(self, now_ms: int) -> None:
        told = sensors()
        with contextlib.suppress(OSError):
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            temperature = int(told.get("temperature_c", 0))
            throttled = bool(told.get("throttled", False))
            self._watching.noticed(throttled, temperature, self._journal.slowest_ms())
            used = self._usage.look(now_ms)
            self._apply(Sensed(temperature, throttled, int(load * 100), *used), now_ms)

    def _leave(self) -> None:
        """End what runs, tell the owners, say Goodbye."""
        self.log.info("daemon.stopping")
        now_ms = boot_ms()
        self._apply(Leave(), now_ms)
        until_ms = now_ms + STOP_MS
        out = self.node.out
        # What is journaled of those ends is worth the wait: else they would count as crashes.
        while (self.node.worker.running or out.flushed < out.mark) and boot_ms() < until_ms:
            self._turn(until_ms)
        if self.node.worker.running:
            # Goodbye is proof that nothing runs (R-lease-3): then the next life has to be it.
            self.log.warning("daemon.left_running", tasks=self.node.worker.running)
        else:
            for node in list(self._transport.links):
                self._transport.send(node, m.Goodbye(self.node.inc))
        self._transport.flush(boot_ms())

    def close(self) -> None:
        """Undo everything that `start` did, last first."""
        for closer in reversed(self._closers):
            with contextlib.suppress(OSError, BlackroadError):
                closer()
        self._closers.clear()
