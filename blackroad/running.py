"""The daemon's hands on its tasks: launches, ends, output, results.

Edge.  Turns Start and Kill into pool calls and what the pool reports into events.  What becomes
of a task is decided in the node, never here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from blackroad.bus import messages as m
from blackroad.bus.parcels import is_name
from blackroad.bus.patience import processors
from blackroad.errors import BlackroadError, invariant
from blackroad.happenings import AnyEvent, Finished, Killed, Returned, Split
from blackroad.ids import short, task_text, text32
from blackroad.limits import DISK_PROBLEM
from blackroad.router import effects as fx
from blackroad.runtime import pool as tasks
from blackroad.runtime.output import OutputStore, Page
from blackroad.runtime.sealing import Sealer

if TYPE_CHECKING:
    from blackroad.node import Node
    from blackroad.runtime.objects import ObjectStore

LABELS_MAX = 4_096
LOG_PAGE_BYTES = 48 * 1024


class Running:
    """All tasks of one daemon that have processes, or had them a moment ago."""

    def __init__(
        self,
        node: Node,
        pool: tasks.Pool,
        store: ObjectStore,
        emit: Callable[[AnyEvent], None],
        log: Any,
        lookers: int = 2,
    ) -> None:
        """`lookers` wait for a single task already, awake: a program, and a daemon beside it."""
        self.found_environment: Mapping[str, str] = {}
        self._node = node
        self._pool = pool
        self._store = store
        self._emit = emit
        self._log = log
        self.sealer = Sealer(store)
        self._output = OutputStore()
        self._labels: OrderedDict[fx.Key, str] = OrderedDict()
        self._code_paths: dict[bytes, str] = {}
        # With one processor, who looks is in the way of whom it waits for.
        self._processors = processors() if processors() > 1 else 0
        self._lookers = lookers
        pool.looks = self._looks

    @property
    def few(self) -> bool:
        """Is so little under way that a processor is free for looking?"""
        return self._under_way() < self._processors

    def _looks(self) -> bool:
        """Is one free for the process of another task, too, whose time is its own?"""
        return max(1, self._under_way()) + self._lookers <= self._processors

    def _under_way(self) -> int:
        return max(self._pool.busy, len(self._node.owner.attempts))

    # --- start and stop ---------------------------------------------------------------------------

    def launch(self, start: fx.Start) -> None:
        """Hand an attempt to the pool, with its code and work from wherever they are."""
        run = self._run_of(start)
        if run is None:
            self._lost(start.key, "its code or input left the object store before it could start")
            return
        try:
            for event in self._pool.launch(start.key, run):
                self.on_event(event)
        except BlackroadError as error:
            task = task_text(start.key[0], start.task)
            self._log.error("task.unstarted", task=task, error=error.message, hint=error.hint)
            self._lost(start.key, error.message)

    def perform(self, effect: fx.HandAhead | fx.TakeBack | fx.Divide | fx.Kill | fx.Extend) -> None:
        """Do what is asked about an attempt that was launched, or lies ready to be."""
        pool, events = self._pool, []
        match effect:
            case fx.HandAhead():
                run = self._run_of(effect.start)
                if run is not None:
                    pool.hand_ahead(effect.start.key, run, effect.after)
            case fx.TakeBack():
                events = pool.withdraw(effect.key)
            case fx.Divide():
                events = pool.divide(effect.key)
            case fx.Kill():
                pool.kill(effect.key, effect.why)
            case fx.Extend():
                pool.extend(effect.key, effect.deadline_ms)
        for event in events:
            self.on_event(event)

    def _run_of(self, start: fx.Start) -> tasks.Run | None:
        """What the pool has to know, None where something of it is not here any more."""
        code_digest = b""
        code_path: str | None = ""
        if start.code is not None:
            code_digest = start.code.digest
            code_path = self._code_paths.get(code_digest) or self._store.path(code_digest)
            if code_path:
                self._code_paths[code_digest] = code_path
        work = start.work
        work_path: str | None = ""
        if isinstance(work, m.Ref):
            work_path = self._store.path(work.digest)
            work = b""
        if code_path is None or work_path is None:
            return None
        environment = self.found_environment
        if start.devices:
            devices = ",".join(map(str, start.devices))
            environment = {**environment, "BLACKROAD_DEVICES": devices}
        return tasks.Run(
            task=start.task,
            token=(start.key[1].inc, start.key[1].serial),
            attempt=start.attempt,
            node=self._node.name,
            work=work,
            work_path=work_path,
            code_digest=code_digest,
            code_path=code_path,
            environment=environment,
            deadline_ms=start.deadline_ms,
            more=start.more,
        )

    def dropped(self, digest: bytes) -> None:
        """An object left the store."""
        self._code_paths.pop(digest, None)

    # --- what the pool reports --------------------------------------------------------------------

    def on_event(self, event: tasks.PoolEvent) -> None:
        """Turn one report into events of the node."""
        match event:
            case tasks.Finished():
                self._on_finished(event)
            case tasks.Output():
                self._on_output(event)
            case tasks.Crashed():
                status = m.Status.LAPSED if event.lost else m.Status.CRASHED
                if not event.started:
                    status = m.Status.NO_INPUT
                facts = m.Facts(exit_status=event.exit_status, text=event.text[:512])
                self._tell_crash(event, facts)
                self._ended(event.key, status, b"", facts, event.before)
            case tasks.Apart():
                self._emit(Split(_key(event.key), event.before))
            case tasks.Returned():
                self._emit(Returned(_key(event.key)))
            case tasks.Gone():
                if event.why == "deadline":
                    # The fork server held the lease while this loop did not.
                    lapsed = m.Facts(text="lease ended")
                    self._ended(event.key, m.Status.LAPSED, b"", lapsed, event.before)
                else:
                    key = _key(event.key)
                    self._output.ended(key)
                    self._emit(Killed(key, event.before))
            case tasks.Problem():
                error = event.error
                self._log.error("pool.problem", error=error.message, hint=error.hint)
            case tasks.Clean():
                if event.killed:
                    self._log.warning("pool.leftovers", killed=event.killed)

    def _tell_crash(self, event: tasks.Crashed, facts: m.Facts) -> None:
        key = _key(event.key)
        work = self._node.worker.works.get(key)
        if work is None or not event.started:
            return
        task = task_text(key[0], work.task_at(len(event.before)))
        said = {"exit_status": facts.exit_status, "text": facts.text}
        self._log.warning("attempt.crashed", task=task, owner=short(key[0]), **said)

    def _on_finished(self, event: tasks.Finished) -> None:
        result: m.Payload = event.result
        if event.path:
            try:
                self._store.adopt(event.path, event.digest, event.size)
            except BlackroadError as error:
                self._no_room(event, f"its result cannot be kept: {error.message}")
                return
            result = m.Ref(event.digest, event.size)
            if is_name(event.digest) and self._lasts(event.key):
                self.sealer.seal(event.digest, event.size, partial(self._on_sealed, event))
                return
        self._over(event, result)

    def _lasts(self, key: object) -> bool:
        """Whether the outcome of this attempt was promised to survive this process."""
        work = self._node.worker.works.get(_key(key))
        return work is not None and bool(work.grant.flags & m.GrantFlag.DURABLE)

    def _on_sealed(self, event: tasks.Finished, digest: bytes, text: str) -> None:
        if digest:
            self._over(event, m.Ref(digest, event.size))
        else:
            self._no_room(event, f"its result cannot be kept: {text}")

    def _over(self, event: tasks.Finished, result: m.Payload) -> None:
        facts = event.facts
        if "disk_problem" in facts:
            self._no_room(event, f"no room for its result: {facts['disk_problem']}")
            return
        status = m.Status.DONE if event.status == "done" else m.Status.FAILED
        exit_status = facts.get("exit_status")
        told = m.Facts(
            int(facts.get("elapsed_us", 0)),
            int(exit_status) if exit_status is not None else None,
            str(facts.get("backend", ""))[:64],
            "",
            str(facts.get("type_name", ""))[:128],
        )
        self._ended(event.key, status, result, told, event.before)

    def _ended(
        self,
        key: object,
        status: m.Status,
        result: m.Payload,
        facts: m.Facts,
        before: tuple[m.Early, ...],
    ) -> None:
        known = _key(key)
        self._output.ended(known)
        self._emit(Finished(known, status, result, facts, before))

    def _lost(self, key: fx.Key, text: str) -> None:
        """It never ran, and not by its own fault: it will be started again."""
        self._emit(Finished(key, m.Status.NO_INPUT, b"", m.Facts(text=text[:512])))

    def _no_room(self, event: tasks.Finished, text: str) -> None:
        """It ran, but this machine could not keep what it made: another one may."""
        facts = m.Facts(text=text[:512], type_name=DISK_PROBLEM)
        self._ended(event.key, m.Status.LAPSED, b"", facts, event.before)

    # --- output -----------------------------------------------------------------------------------

    def _on_output(self, event: tasks.Output) -> None:
        key = _key(event.key)
        work = self._node.worker.works.get(key)
        if key not in self._labels and work is not None:
            self._labels[key] = text32(work.task_at(event.place))
            if len(self._labels) > LABELS_MAX:
                self._labels.popitem(last=False)
        self._output.append(key, event.stream, event.data)

    def printed(self, task: str, offset: int) -> Page | None:
        """What the newest attempt of a task on this machine printed, from a position on."""
        found = self._output.newest(lambda key: self._labels.get(_key(key), "").startswith(task))
        return self._output.read(found, offset, LOG_PAGE_BYTES) if found is not None else None


def _key(key: object) -> fx.Key:
    """The pool gives back the very key it was given."""
    invariant(isinstance(key, tuple), "a key that is none came back from the pool", key)
    return key  # type: ignore[return-value]
