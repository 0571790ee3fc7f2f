"""What programs import: submit work to the mesh, get futures.

Nothing here runs a daemon; `Client()` finds one or says how to start one.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from blackroad import chance
from blackroad.bus import messages as m
from blackroad.bus import payload, work
from blackroad.client.asking import QUERY_MS
from blackroad.client.finding import find_daemon
from blackroad.client.futures import GatheredFuture, TaskFuture, Template
from blackroad.errors import Busy, NotPicklable, UnknownTask, Unreachable, UsageError
from blackroad.ids import bytes32, parse_task, text32
from blackroad.limits import INLINE_BYTES_MAX, LEASE_MS_MAX, LEASE_MS_MIN
from blackroad.requirements import Needs
from blackroad.units import parse_ms

if TYPE_CHECKING:
    from types import TracebackType

    from blackroad.bus.payload import Segment
    from blackroad.client.topics import Subscription

R = TypeVar("R")

SUBMIT_TIMEOUT_S = 60.0
CONNECT_S = 2.0
MAP_TARGET_US = 100_000
MAP_CHUNK_MAX = 4_096
PIECES_PER_SLOT = 8
_CALLS_MAX = 1_024
_SMALL_BODY_BYTES = work.SMALL_PAYLOAD_BYTES - 16  # what is before it is a few bytes


class ObjectRef(msgspec.Struct, frozen=True):
    """An object in the mesh: what it is, and a node that has it."""

    digest: bytes
    size: int
    node: bytes


class Client:
    """A program's session with the mesh; use it as a context manager.

    It finds the local daemon's socket, then the endpoints of the configuration
    (`BLACKROAD_ENDPOINTS`).  Attached tasks end with it; durable ones go on.

    With `embedded` it needs no daemon: a private mesh of one node, with so many task processes as
    `workers` says (one for each core), lives in this program and ends with it.

    Raises  NoDaemon after 2 s without an answer.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        user: str | None = None,
        submit_timeout: float | str = SUBMIT_TIMEOUT_S,
        connect_timeout: float | str = CONNECT_S,
        embedded: bool = False,
        workers: int | None = None,
    ) -> None:
        self._submit_timeout_s = parse_ms(submit_timeout) / 1000
        self.user = user if user is not None else _user_name()
        self._embedded = embedded
        if embedded:
            from blackroad.client.private import private_mesh

            self._connection = private_mesh(endpoint, workers, self.user)
        elif workers is not None:
            raise UsageError(
                "`workers` is for a client with embedded=True",
                hint="a daemon's `slots` say how many tasks it runs at once",
            )
        else:
            self._connection = find_daemon(endpoint, self.user, parse_ms(connect_timeout) / 1000)
        self._specs: dict[tuple[Any, ...], m.ClassSpec] = {}
        self._calls: dict[int, _Calls] = {}
        self._codes: dict[bytes, m.Ref] = {}
        self._task_prefix = chance.token_bytes(10)
        self._task_numbers = itertools.count(chance.randbits(24))
        self._lock = threading.Lock()
        self._minor = ".".join(map(str, _python_minor()))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; attached tasks that have not ended are cancelled."""
        self._connection.close()

    @property
    def node_id(self) -> bytes:
        """The daemon this client speaks with: the owner of its tasks."""
        return self._connection.node

    @property
    def node_name(self) -> str:
        """The label of that daemon."""
        return self._connection.name

    # --- work -------------------------------------------------------------------------------------

    def submit(
        self,
        fn: Callable[..., Any] | str,
        /,
        *args: Any,
        needs: Needs | None = None,
        priority: int = 0,
        retries: int = 0,
        timeout: float | str | None = None,
        durable: bool = False,
        pure: bool = False,
        once: bool = False,
        exclusive: bool = False,
        wait_for_node: bool = False,
        lease: float | str | None = None,
        **kwargs: Any,
    ) -> TaskFuture:
        """Run `fn(*args, **kwargs)` somewhere; return its future at once.

        `fn` may be `"module:function"`, imported on the node.  `pure` tasks may be started again
        as soon as their node falls silent; others wait until their lease has surely ended.

        Raises  NotPicklable, UsageError; Busy where the session's credit stays spent.
        """
        options = (
            needs, priority, retries, timeout, durable, pure, once, exclusive, wait_for_node, lease
        )  # fmt: skip
        calls = self._calls.get(id(fn))
        if calls is not None and calls.options == options and calls.fn is fn and calls.same():
            segments = payload.encode_call(args, kwargs)
            if len(segments) == 2 and len(segments[1]) < _SMALL_BODY_BYTES:
                return self._post(calls.template, calls.head + segments[0] + segments[1])
            todo: work.Work = work.Call(calls.template.name, segments)
            return self._send(calls.template, todo)
        segments = payload.encode_call(args, kwargs)
        if isinstance(fn, str):
            python = self._minor if _is_pickled(segments) else ""
            code, name, same = None, fn, None
            todo = work.Module(fn, segments)
        else:
            python = self._minor
            code, name, same = self._code(fn)
            todo = work.Call(name, segments)
        spec = self._spec(
            name, needs, priority, retries, timeout, pure, once, exclusive, lease, python
        )
        template = self._made(spec, code, durable, wait_for_node, name)
        if same is not None and not isinstance(fn, str):
            if len(self._calls) >= _CALLS_MAX:
                self._calls.clear()
            self._calls[id(fn)] = _Calls(fn, same, options, template)
        return self._send(template, todo)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunksize: int | Literal["auto"] = "auto",
        ordered: bool = True,
        **options: Any,
    ) -> Iterator[R]:
        """Apply `fn` to every item, in chunks over the mesh; yield results as they are due.

        With `ordered=False` results come as they end.  `options` are those of `submit`.

        Raises  what `fn` raised, at the item where it did.
        """
        if chunksize != "auto" and (isinstance(chunksize, bool) or chunksize < 1):
            raise UsageError(f"chunksize must be 'auto' or at least 1, not {chunksize!r}")
        star = len(iterables) != 1
        items: Iterator[Any] = zip(*iterables, strict=False) if star else iter(iterables[0])
        return self._map(fn, items, star, chunksize, ordered, options)

    def _map(
        self,
        fn: Callable[..., R],
        items: Iterator[Any],
        star: bool,
        chunksize: int | Literal["auto"],
        ordered: bool,
        options: dict[str, Any],
    ) -> Iterator[R]:
        code, name, _ = self._code(fn)
        template = self._template(name, options, code)
        window = max(8, 4 * self.slots())
        size = chunksize if chunksize != "auto" else 1
        outstanding: deque[tuple[TaskFuture, int]] = deque()
        ended: deque[TaskFuture] = deque()
        wake = threading.Semaphore(0)

        def on_done(future: Future[Any]) -> None:
            ended.append(future)  # type: ignore[arg-type]
            wake.release()

        try:
            live = 0
            while True:
                while live < window:
                    chunk = list(itertools.islice(items, size))
                    if not chunk:
                        break
                    todo = work.MapCall(name, star, payload.encode(chunk))
                    future = self._send(template, todo)
                    outstanding.append((future, len(chunk)))
                    live += 1
                    if not ordered:
                        future.add_done_callback(on_done)
                if not live:
                    return
                if ordered:
                    future, count = outstanding.popleft()
                else:
                    wake.acquire()
                    future = ended.popleft()
                    count = next(n for f, n in outstanding if f is future)
                    outstanding.remove((future, count))
                live -= 1
                results = future.result()
                if chunksize == "auto" and future.ended is not None:
                    size = _next_size(size, count, future.ended.facts.run_us)
                yield from results
        finally:
            for future, _ in outstanding:
                future.cancel()

    def kernel(
        self, name: str, /, *, options: Mapping[str, Any] | None = None, **params: Any
    ) -> GatheredFuture:
        """Compute a registered kernel, cut into tiles over the mesh and put together here.

        `options` are those of `submit` (needs, priority, ...).

        Raises  UnknownKernel, KernelInputError before anything is sent.
        """
        from blackroad.kernels import registry

        kernel = registry.get(name)
        checked = kernel.check(params)
        pieces = kernel.pieces(checked, max(1, PIECES_PER_SLOT * self.slots()))
        given = {"pure": kernel.pure, **(options or {})}
        template = self._template(f"kernel {name}", given, python="")
        parts = [
            self._send(template, work.KernelRun(name, payload.encode(piece))) for piece in pieces
        ]
        return GatheredFuture(parts, lambda found: kernel.gather(checked, pieces, found), name)

    def kernel_task(
        self, name: str, params: Mapping[str, Any], *, options: Mapping[str, Any] | None = None
    ) -> TaskFuture:
        """Compute a whole kernel as one task on one node: for jobs nobody waits for."""
        from blackroad.kernels import registry

        kernel = registry.get(name)
        given = {"pure": kernel.pure, **(options or {})}
        template = self._template(f"kernel {name}", given, python="")
        return self._send(template, work.KernelRun(name, payload.encode(kernel.check(params))))

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stdin: bytes = b"",
        **options: Any,
    ) -> TaskFuture:
        """Run a program on some node; `options` are those of `submit`.

        The future's result is the exit status 0; a program that fails raises TaskFailed, and
        `logs` shows what it printed.
        """
        if isinstance(argv, str) or not argv:
            raise UsageError("a command is a list of words, such as ['ffmpeg', '-i', 'a.mkv']")
        words = [str(word) for word in argv]
        todo = work.Command(words, dict(env or {}), cwd, payload.encode(stdin) if stdin else b"")
        name = os.path.basename(str(argv[0]))[:120]
        return self._send(self._template(name, options, python=""), todo)

    def put(self, value: Any) -> ObjectRef:
        """Store a value at the daemon; return its reference, which `get` takes anywhere.

        It is kept until newer ones need its room, half of the daemon's object store.
        """
        segments = payload.encode(value)
        ref = self._connection.outgoing.pack(segments, lasting=True)
        try:
            self._ask("put", {"digest": ref.digest, "size": ref.size}, timeout_s=60)
        finally:
            self._connection.outgoing.release(ref.digest)
        return ObjectRef(ref.digest, ref.size, self.node_id)

    def get(self, ref: ObjectRef) -> Any:
        """Fetch a value that `put` stored, from whichever node has it."""
        if ref.node != self.node_id:
            args = {"digest": ref.digest, "size": ref.size, "node": ref.node}
            self._ask("get", args, timeout_s=60)
        return payload.decode(self._connection.fetch(m.Ref(ref.digest, ref.size)).result())

    def cancel_task(self, task: bytes) -> None:
        """Ask the owner to end one of its tasks."""
        self._connection.post(m.Cancel((task,)))

    # --- topics -----------------------------------------------------------------------------------

    def publish(self, topic: str, value: Any) -> None:
        """Publish a value, 16 KiB at most, to whoever subscribes to that topic on any node.

        It is lossy: nothing tells whether anybody listens.  The last value is kept for new
        subscribers.  Where the daemon does not keep up, this waits.

        Raises  UsageError, also for a value that was refused earlier; Busy; NoDaemon.
        """
        self._connection.topics.publish(topic, value)

    def published(self, timeout: float = 30.0) -> None:
        """Wait until the daemon has taken all that was published.

        Raises  what it refused; Unreachable.
        """
        self._connection.topics.published(timeout)

    def subscribe(self, pattern: str, *, snapshot: bool = True) -> Subscription:
        """Subscribe to topics: `lab/*` is one segment, `lab/#` the rest; iterate over the result.

        With `snapshot` the last values that are known come first.

        Raises  UsageError; Unreachable where the daemon does not take it.
        """
        return self._connection.topics.subscribe(pattern, snapshot)

    # --- questions --------------------------------------------------------------------------------

    def nodes(self) -> dict[str, Any]:
        """The cluster as this client's daemon sees it now."""
        return self._ask("nodes", {})

    def tried(self) -> list[str]:
        """How the daemon looked for others, and what came of it, in words."""
        return list(self._ask("net.status", {})["tried_words"])

    def tasks(self, state: str = "", limit: int = 100) -> dict[str, Any]:
        """Tasks of all nodes that answer: counts by state, and the newest ones."""
        seen = self.nodes()
        counts: dict[str, int] = {}
        listed: list[dict[str, Any]] = []
        silent: list[str] = []
        for row in seen["nodes"]:
            if row["state"] not in ("alive", "draining"):
                silent.append(row["name"])
                continue
            try:
                told = self._ask(
                    "tasks", {"state": state, "limit": limit}, target=bytes32(row["node"])
                )
            except (Unreachable, UsageError):
                silent.append(row["name"])
                continue
            for name, count in told["counts"].items():
                counts[name] = counts.get(name, 0) + count
            listed += [{**task, "owner": row["name"]} for task in told["tasks"]]
        return {"counts": counts, "tasks": listed[:limit], "silent": silent}

    def status(self, task_id: str) -> dict[str, Any]:
        """One task's life so far."""
        return self._about("status", task_id)

    def why(self, task_id: str) -> dict[str, Any]:
        """Why a task is not running: `holds` is empty where nothing keeps it from it."""
        from blackroad.client import reasons

        return reasons.why(self, task_id)

    def logs(self, task_id: str, offset: int = 0) -> dict[str, Any]:
        """What a task printed, as far as its node still has it: {text, offset, end, cut}."""
        told = self.status(task_id)
        args = {"task": parse_task(told["id"])[1], "offset": offset}
        for where in told["nodes"]:
            found = self._ask("logs", args, target=bytes32(where["node"]))
            return {**found, "node": where["name"], "state": told["state"]}
        return {"text": "", "offset": 0, "end": 0, "cut": 0, "node": "", "state": told["state"]}

    def outcome(self, task_id: str, timeout: float | None = None) -> Any:
        """Wait for a task by its id, from any program, and return its value.

        Raises  what the task raised; TimeoutError; UnknownTask; Unreachable.
        """
        from blackroad.client.outcomes import wait_for_outcome

        return wait_for_outcome(self, task_id, timeout)

    def cancel(self, task_id: str) -> None:
        """Ask for the end of a task by its id, from any program."""
        owner, id_ = self._owner_of(task_id)
        self._ask("cancel", {"task": id_}, target=owner)

    # --- orders -----------------------------------------------------------------------------------

    def retry(self, task_id: str) -> str:
        """Submit a task that ended otherwise than done anew; return the new task's id.

        It runs as a durable task with all its retries, from any program, as long as the owner
        keeps its work: `blackroad result` or `outcome` fetches what it comes to.

        Raises  UsageError where its work is gone, or it is done or not ended; UnknownTask;
                Unreachable.
        """
        from blackroad.client import orders

        return orders.retry(self, task_id, self._new_task())

    def drain(self, node: str = "") -> dict[str, Any]:
        """Let a node take nothing new, until `resume`; what runs there goes on.

        `node` is a name or the start of an id, nothing for the daemon of this client.

        Raises  UsageError where no such node is known; Unreachable.
        """
        from blackroad.client import orders

        return orders.order(self, "drain", node)

    def drained(self, node: str = "", timeout: float | None = None) -> dict[str, Any]:
        """Wait until a draining node runs nothing.

        Raises  StillRunning after `timeout` seconds; UsageError where it takes work again.
        """
        from blackroad.client import orders

        return orders.drained(self, node, timeout)

    def resume(self, node: str = "") -> dict[str, Any]:
        """Let a node that drains take work again."""
        from blackroad.client import orders

        return orders.order(self, "resume", node)

    # --- mesh -------------------------------------------------------------------------------------

    def slots(self) -> int:
        """How many tasks of one core each the mesh can run at once."""
        rows = self.nodes()["nodes"]
        return max(1, sum(int(row["slots"]) for row in rows if row["state"] == "alive"))

    # --- inside -----------------------------------------------------------------------------------

    def _send(self, template: Template, todo: work.Work) -> TaskFuture:
        segments = work.encode_work(todo)
        size = payload.total_bytes(segments)
        if size <= INLINE_BYTES_MAX:
            return self._post(template, b"".join(segments))
        packed = self._connection.outgoing.pack(segments, lasting=template.durable)
        return self._post(template, packed)

    def _post(self, template: Template, travelling: m.Payload) -> TaskFuture:
        future = TaskFuture(self, self._new_task(), template, travelling)
        if template.durable:
            future.accepted = Future()
        if not self._connection.submit(future, self._submit_timeout_s):
            raise Busy(
                f"{self._connection.credit} tasks of this session have not ended, and none did "
                f"within {self._submit_timeout_s:g} s",
                hint="wait for results before submitting more, or raise submit_timeout",
            )
        return future

    def lead(self, over: Callable[[], bool], timeout_s: float | None) -> float | None:
        """Serve the connection in the calling thread while it waits; return what time is left."""
        return self._connection.lead(over, timeout_s)

    def nudge(self) -> None:
        """Have the thread that serves the connection look whether its wait is over."""
        self._connection.nudge()

    def _new_task(self) -> bytes:
        return self._task_prefix + next(self._task_numbers).to_bytes(6, "big")

    def _code(self, fn: Callable[..., Any]) -> tuple[m.Ref, str, Callable[[], bool] | None]:
        """The code of a function, its name, and what tells that both still are the same."""
        if not callable(fn):
            raise NotPicklable(
                f"{fn!r} is not a function",
                hint='pass a function, or "package.module:function" as text',
            )
        (digest, blob, name), same = payload.sealed_function(fn)
        ref = self._codes.get(digest)
        if ref is None:
            with self._lock:
                # In this order: known code is held, whatever interrupts this.
                ref = m.Ref(digest, len(blob))
                self._connection.hold(ref, [blob])
                ref = self._codes.setdefault(digest, ref)
        return ref, name, same

    def _template(
        self,
        name: str,
        options: Mapping[str, Any],
        code: m.Ref | None = None,
        python: str | None = None,
    ) -> Template:
        spec = self._spec_from_options(name, options, python)
        durable, wait = options.get("durable", False), options.get("wait_for_node", False)
        return self._made(spec, code, durable, wait, name)

    def _made(
        self, spec: m.ClassSpec, code: m.Ref | None, durable: bool, wait: bool, name: str
    ) -> Template:
        if durable and self._embedded:
            raise UsageError(
                "an embedded mesh ends with this program, so no task of it can be durable",
                hint="leave `durable` out, or start a daemon (`blackroad up`) and use Client()",
            )
        return Template(spec, code, bool(durable), bool(wait), name)

    def _spec_from_options(
        self, name: str, options: Mapping[str, Any], python: str | None = None
    ) -> m.ClassSpec:
        known = {
            "needs", "priority", "retries", "timeout", "pure", "once", "exclusive", "lease",
            "durable", "wait_for_node",
        }  # fmt: skip
        unknown = sorted(set(options) - known)
        if unknown:
            raise UsageError(
                f"unknown option `{unknown[0]}`", hint=f"there are: {', '.join(sorted(known))}"
            )
        return self._spec(
            name,
            options.get("needs"),
            options.get("priority", 0),
            options.get("retries", 0),
            options.get("timeout"),
            options.get("pure", False),
            options.get("once", False),
            options.get("exclusive", False),
            options.get("lease"),
            self._minor if python is None else python,
        )

    def _spec(
        self,
        name: str,
        needs: Needs | None,
        priority: int,
        retries: int,
        timeout: float | str | None,
        pure: bool,
        once: bool,
        exclusive: bool,
        lease: float | str | None,
        python: str,
    ) -> m.ClassSpec:
        """The class spec for these options; equal options give the very same object."""
        key = (name, needs, priority, retries, timeout, pure, once, exclusive, lease, python)
        spec = self._specs.get(key)
        if spec is not None:
            return spec
        if needs is not None and not isinstance(needs, Needs):
            raise UsageError(
                f"needs must be Needs(...), not {type(needs).__name__}",
                hint="for instance needs=Needs(cpu=2, memory='1GiB')",
            )
        requirement = (needs or Needs()).requirement
        if python:
            requirement = requirement.narrowed(python=python)
        if not -128 <= priority <= 127:
            raise UsageError(f"priority is -128 to 127, not {priority}")
        if not 0 <= retries <= 1000:
            raise UsageError(f"retries is 0 to 1000, not {retries}")
        lease_ms = parse_ms(lease) if lease is not None else 0
        if lease_ms and not LEASE_MS_MIN <= lease_ms <= LEASE_MS_MAX:
            raise UsageError(f"lease is 5 s to 24 h, not {lease!r}")
        spec = m.ClassSpec(
            requirement.to_wire(),
            priority,
            self.user[:64],
            1,
            exclusive,
            False,
            pure,
            once,
            retries,
            parse_ms(timeout) if timeout is not None else 0,
            lease_ms,
            name[:128],
        )
        if len(self._specs) > 10_000:
            self._specs.clear()
        self._specs[key] = spec
        return spec

    def _ask(
        self,
        name: str,
        args: Mapping[str, Any],
        *,
        target: bytes = b"",
        timeout_s: float = QUERY_MS / 1000,
    ) -> dict[str, Any]:
        body = self._connection.query(name, msgspec.msgpack.encode(args), target, timeout_s)
        told: dict[str, Any] = msgspec.msgpack.decode(body)
        return told

    def _about(self, name: str, task_id: str, **args: Any) -> dict[str, Any]:
        owner, id_ = self._owner_of(task_id)
        return self._ask(name, {"task": id_, **args}, target=owner)

    def _owner_of(self, task_id: str) -> tuple[bytes, str]:
        """Find the node that a printed task id names.

        Raises  UnknownTask where no such node was ever heard of; Unreachable where it is silent.
        """
        owner, id_ = parse_task(task_id)
        if text32(self.node_id).startswith(owner):
            return self.node_id, id_
        for row in self.nodes()["nodes"]:
            if row["node"].startswith(owner):
                if row["state"] in ("dead", "left"):
                    raise Unreachable(
                        f"`{row['name']}`, the owner of {task_id}, is {row['state']}",
                        hint="the task goes on when that node is back; its journal has it",
                    )
                return bytes32(row["node"]), id_
        raise UnknownTask(
            f"no node {owner} is in this mesh",
            hint="`blackroad nodes` lists the nodes; a task id begins with its owner's id",
        )


class _Calls:
    """How to submit a function with the options it was submitted with the last time."""

    __slots__ = ("fn", "head", "options", "same", "template")

    def __init__(
        self,
        fn: Callable[..., Any],
        same: Callable[[], bool],
        options: tuple[Any, ...],
        template: Template,
    ) -> None:
        self.fn = fn
        self.same = same
        self.options = options
        self.template = template
        self.head = work.small_call_head(template.name)


def _next_size(size: int, count: int, run_us: int) -> int:
    """Let a chunk take about 100 ms, growing at most four-fold at a time."""
    per_item_us = max(run_us / max(count, 1), 0.2)
    wanted = int(MAP_TARGET_US / per_item_us)
    return max(1, min(MAP_CHUNK_MAX, 4 * size, wanted))


def _is_pickled(segments: list[Segment]) -> bool:
    return payload.codec_of(payload.join(segments[:2])) != 0


def _python_minor() -> tuple[int, int]:
    import sys

    return sys.version_info[:2]


def _user_name() -> str:
    with contextlib.suppress(KeyError, OSError, ImportError):
        return getpass.getuser()[:64]
    return str(os.getuid())
