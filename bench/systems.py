"""One small adapter for each measured system: this project, what comes with Python, the yardstick.

`peers.py` has those that are installed apart.  An adapter starts its system with a number of
single-threaded workers, submits one call, gives its value, and ends everything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bench import proc

# Enough for what travels and runs as one unit to hide the cost of the unit.
CHUNK = 256
REGISTRY: dict[str, type[System]] = {}


def add(cls: type[System]) -> type[System]:
    """Make a system known under its name."""
    REGISTRY[cls.name] = cls
    return cls


class System:
    """A system under measurement."""

    name: ClassVar[str] = ""
    # What `pip install` is given, and what is imported then.
    packages: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    # The only workloads it is for, where those are not all.
    only: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here, and what to type; empty where it can."""
        lacking = [one for one in cls.modules if importlib.util.find_spec(one) is None]
        if lacking:
            return f"not installed: pip install {shlex.join(cls.packages)}"
        return ""

    @classmethod
    def launcher(cls, workers: int) -> list[str]:
        """What has to be typed before a program that uses it."""
        return []

    def start(self, workers: int) -> None:
        """Start the system."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Submit one call; return what `value` takes."""
        raise NotImplementedError

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The value of one call; raises what it raised, or a ...Timeout...."""
        raise NotImplementedError

    def values(self, handles: Sequence[Any]) -> list[Any]:
        """The values of many calls."""
        return [self.value(one) for one in handles]

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        """Apply `fn` to all items in chunks of its own choice, of `chunk` where it has none."""
        raise NotImplementedError

    # The chunk sizes among which the best counts.
    chunks: ClassVar[tuple[int, ...]] = ()

    def stop(self) -> None:
        """End the system."""

    def root(self) -> int:
        """The process that all others of the system descend from."""
        return os.getpid()

    def daemon(self) -> int:
        """The one process that goes on while nothing is submitted; 0 where there is none."""
        return 0


class Executors(System):
    """Everything with the interface of `concurrent.futures`."""

    pool: Any

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(fn, *args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.result(timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=chunk)

    def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


@add
class Blackroad(System):
    """A program that reaches a daemon of this machine."""

    name = "blackroad"
    chunks = (0,)
    settings: ClassVar[dict[str, str]] = {}

    def start(self, workers: int) -> None:
        from bench.mesh import mesh

        self._end = contextlib.ExitStack()
        settings = {"BLACKROAD_SLOTS": str(workers), "BLACKROAD_OPENCL": "off", **self.settings}
        [self._daemon] = self._end.enter_context(mesh(1, **settings))
        self.client = self._end.enter_context(self._daemon.client())

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(fn, *args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.result(timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        return self.client.map(fn, items)

    def stop(self) -> None:
        self._end.close()

    def daemon(self) -> int:
        return self._daemon.process.pid if self._daemon.process else 0


@add
class Embedded(Blackroad):
    """A program that is a node itself, without a daemon."""

    name = "blackroad-embedded"

    @classmethod
    def missing(cls) -> str:
        from blackroad.client import Client

        if "embedded" not in inspect.signature(Client).parameters:
            return "this version has no Client(embedded=True)"
        return ""

    def start(self, workers: int) -> None:
        from blackroad.client import Client

        self._end = contextlib.ExitStack()
        base = Path(self._end.enter_context(tempfile.TemporaryDirectory(prefix="br-")))
        for part in ("state", "runtime", "cache"):
            os.environ[f"BLACKROAD_{part.upper()}_DIR"] = str(base / part)
            (base / part).mkdir(mode=0o700)
        os.environ["BLACKROAD_SLOTS"] = str(workers)
        os.environ["BLACKROAD_OPENCL"] = "off"
        self.client = self._end.enter_context(Client(embedded=True))

    def daemon(self) -> int:
        return 0


@add
class RawZmq(System):
    """The yardstick: see `chain.py`."""

    name = "zmq-raw"
    chunks = (CHUNK,)
    curve = False

    def start(self, workers: int) -> None:
        from bench.chain import Chain

        self._chain = Chain(workers, curve=self.curve)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._chain.send(fn.__name__, [args])[0]

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return self._chain.value(handle, timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        handles = []
        for first in range(0, len(items), chunk):
            calls = [(item,) for item in items[first : first + chunk]]
            handles += self._chain.send(fn.__name__, calls)
        return self.values(handles)

    def stop(self) -> None:
        self._chain.close()


@add
class RawZmqCurve(RawZmq):
    """The same with every connection encrypted."""

    name = "zmq-raw-curve"
    curve = True


@add
class MpPool(System):
    """`multiprocessing.Pool`."""

    name = "mp-pool"
    chunks = (CHUNK, 1_024, 4_096, 12_500)

    def start(self, workers: int) -> None:
        import multiprocessing

        self.pool = multiprocessing.Pool(workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.get(timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=chunk)

    def stop(self) -> None:
        self.pool.terminate()


@add
class ProcessPool(Executors):
    """`concurrent.futures.ProcessPoolExecutor`."""

    name = "processpool"
    chunks = (CHUNK, 1_024, 4_096, 12_500)

    def start(self, workers: int) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(workers)


# --- two nodes ------------------------------------------------------------------------------------


class Pair(System):
    """Two nodes: the program speaks with the one that has no slots, the other one works."""

    only = ("pair", "bulk")
    curve = False

    def start(self, workers: int) -> None:
        from bench.pair import pair

        self._end = contextlib.ExitStack()
        self.pair = self._end.enter_context(pair(workers, curve=self.curve))
        self.client = self._end.enter_context(self.pair.client())

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(fn, *args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.result(timeout_s)

    def stop(self) -> None:
        self._end.close()


@add
class OpenPair(Pair):
    """Without keys: what travels can be read on the way."""

    name = "blackroad-pair"


@add
class ClosedPair(Pair):
    """A closed cluster."""

    name = "blackroad-pair-curve"
    curve = True


@add
class TlsSocket(System):
    """The yardstick for encrypted bulk: one TLS 1.3 connection between two processes."""

    name = "tls-socket"
    only = ("bulk",)
    secure = True

    def start(self, workers: int) -> None:
        from bench.sockets import Wire

        self._end = contextlib.ExitStack()
        self._wire = self._end.enter_context(Wire(secure=self.secure))

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        # There are no tasks here: whoever asks for an echo gets one, all else is answered at once.
        return self._wire.echo(args[0]) if fn.__name__ == "echo" else fn(*args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle

    def stop(self) -> None:
        self._end.close()


@add
class PlainSocket(TlsSocket):
    """The same without encryption."""

    name = "tcp-socket"
    secure = False


def processes_of(system: System) -> list[int]:
    """The system's processes, without the measuring one."""
    return [pid for pid in proc.below(system.root()) if pid != os.getpid()]


def program(name: str) -> str:
    """The path of a program, empty where there is none."""
    return shutil.which(name) or ""
