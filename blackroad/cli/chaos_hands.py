"""Edge: does to the daemons of a mesh what the nemesis has drawn, and undoes it.

It touches the daemons it was given, their children and the submitters it was given, and makes sure
of each process before it sends a signal.  This file must not know when anything is done.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from blackroad.cli import chaos_record, mesh_run
from blackroad.cli.chaos_nemesis import COORDINATOR, Strike
from blackroad.cli.mesh_record import Place
from blackroad.errors import BlackroadError, EnvironmentProblem

if TYPE_CHECKING:
    from blackroad.client.client import Client

DEAD_S: Final = 10.0
ASK_S: Final = 1.0
ORDER_S: Final = 20.0
RETRY_S: Final = 0.25
LOOK_BYTES: Final = 256 * 1024
FRESH_MS: Final = 300
STOP_PASSES: Final = 20


class Program(Protocol):
    """A submitter: a process that can be killed and started again."""

    name: str

    def kill(self) -> None:
        """End it as a crash would."""

    def start(self) -> None:
        """Start it, or start it again."""


class Hands:
    """All faults of one run; `heal` undoes whatever is left of them."""

    def __init__(
        self,
        places: Sequence[Place],
        slots: int | None,
        programs: Sequence[Program],
        history: Path,
        chance: random.Random,
    ) -> None:
        self._places = {place.name: place for place in places}
        self._slots = slots
        self._programs = {program.name: program for program in programs}
        self._history = history
        self._chance = chance
        self._undo: dict[int, tuple[str, Callable[[], None]]] = {}
        self._undoing: dict[str, Future[None]] = {}
        # A daemon takes seconds to start, and the next fault does not wait for it.
        self._pool = ThreadPoolExecutor(max(1, len(self._places)), "chaos")
        self.skipped = 0

    def struck(self) -> set[str]:
        """The names of those that something is done to now."""
        undoing = {name for name, future in self._undoing.items() if not future.done()}
        return undoing | {name for name, _ in self._undo.values()}

    def begin(self, number: int, strike: Strike) -> str:
        """Do it; return whom it hit, "" where there was nothing to do it to.

        Raises  EnvironmentProblem where a process does not obey.
        """
        name = self._coordinator() if strike.target == COORDINATOR else strike.target
        undo: Callable[[], None] | None = None
        if name and name not in self.struck():
            if name in self._programs:
                undo = self._kill_program(strike, self._programs[name])
            elif name in self._places:
                undo = self._strike(strike, self._places[name])
        if undo is None:
            self.skipped += 1
            return ""
        if strike.for_ms:
            self._undo[number] = (name, undo)
        return name

    def undo(self, number: int) -> str:
        """Begin to undo it; return whom it had hit."""
        name, undo = self._undo.pop(number, ("", None))
        if undo is not None:
            self._undoing[name] = self._pool.submit(undo)
        return name

    def check(self) -> None:
        """Look at what has been undone since.

        Raises  EnvironmentProblem where a daemon does not start again.
        """
        for name, future in list(self._undoing.items()):
            if future.done():
                del self._undoing[name]
                future.result()

    def heal(self) -> None:
        """Undo everything that is left, and wait for it.

        Raises  EnvironmentProblem after all was tried.
        """
        for number in list(self._undo):
            self.undo(number)
        wait(self._undoing.values())
        failed = [one.exception() for one in self._undoing.values()]
        self._undoing.clear()
        for error in failed:
            if error is not None:
                raise error

    def raise_up(self, place: Place) -> None:
        """Start a daemon that ended although nothing was done to it."""
        self._undoing[place.name] = self._pool.submit(self._start, place, "ended by itself")

    # --- nodes ------------------------------------------------------------------------------------

    def _strike(self, strike: Strike, place: Place) -> Callable[[], None] | None:
        handle = mesh_run.grip(place)
        if handle is None:
            return None
        try:
            if strike.fault == "stop daemon":
                self._tell("fault", strike.fault, place.name)
                _send(handle, signal.SIGSTOP)
                return lambda: self._go_on(strike.fault, place)
            if strike.fault == "freeze node":
                self._tell("fault", strike.fault, place.name, frozen=True)
                _send(handle, signal.SIGSTOP)
                _stop_children(place.pid())
                return lambda: self._thaw(strike.fault, place)
            if strike.fault == "kill task":
                return (lambda: None) if self._kill_task(strike, place) else None
            if strike.fault == "drain":
                return self._drain(strike, place)
            self._tell("fault", strike.fault, place.name)
            _send(handle, signal.SIGKILL)
            _await_end(handle, place)
        finally:
            os.close(handle)
        return lambda: self._start(place, strike.fault)

    def _start(self, place: Place, fault: str) -> None:
        """Start a daemon again; the log of its earlier life is kept beside the new one."""
        with contextlib.suppress(OSError):
            lives = len(list(place.directory.glob("daemon.*.log")))
            place.log.rename(place.directory / f"daemon.{lives + 1}.log")
        self._tell("heal", fault, place.name)
        mesh_run.start_one(place, list(self._places.values()), self._slots)

    def _go_on(self, fault: str, place: Place) -> None:
        self._tell("heal", fault, place.name)
        _continue(place, ())

    def _thaw(self, fault: str, place: Place) -> None:
        self._tell("heal", fault, place.name, frozen=True)
        children = _children(place.pid())
        # Tasks may wake before whoever should end them, or after: nobody promises an order.
        self._chance.shuffle(children)
        _continue(place, children)

    def _kill_task(self, strike: Strike, place: Place) -> bool:
        found = chaos_record.read_end(self._history, LOOK_BYTES)
        fresh_ms = chaos_record.boot_ms() - FRESH_MS
        running = {
            attempt.pid
            for task in found.tasks.values()
            for attempt in task.attempts
            if attempt.node == place.name
            and attempt.stop_ms is None
            and attempt.signs_ms[-1] >= fresh_ms
        }
        ours = [child for child in _children(place.pid()) if child.pid in running]
        if not ours:
            return False
        self._tell("fault", strike.fault, place.name)
        _gently(self._chance.choice(ours).kill)
        return True

    def _drain(self, strike: Strike, place: Place) -> Callable[[], None] | None:
        self._tell("fault", strike.fault, place.name)
        # Where no answer came nobody knows whether it was heard, so it is undone all the same.
        with contextlib.suppress(BlackroadError):
            _order(place, "drain", ASK_S)
        return lambda: self._resume(strike.fault, place)

    def _resume(self, fault: str, place: Place) -> None:
        self._tell("heal", fault, place.name)
        _order(place, "resume", ORDER_S)

    def _coordinator(self) -> str:
        """The name of the node that coordinates, as far as any daemon knows."""
        struck = self.struck()
        for place in self._places.values():
            if place.name in struck or not place.pid():
                continue
            with contextlib.suppress(BlackroadError), _client(place) as client:
                told = client.nodes()
                names = {row["id"]: row["name"] for row in told["nodes"]}
                return str(names.get(told["coordinator"], ""))
        return ""

    # --- programs ---------------------------------------------------------------------------------

    def _kill_program(self, strike: Strike, program: Program) -> Callable[[], None]:
        self._tell("fault", strike.fault, program.name)
        program.kill()

        def again() -> None:
            self._tell("heal", strike.fault, program.name)
            program.start()

        return again

    def _tell(self, what: str, fault: str, node: str, *, frozen: bool = False) -> None:
        extra = {"frozen": True} if frozen else {}
        chaos_record.append(self._history, what, name=fault, node=node, **extra)


# --- processes ------------------------------------------------------------------------------------


def _send(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def _await_end(handle: int, place: Place) -> None:
    ready, _, _ = select.select([handle], [], [], DEAD_S)
    if not ready:
        raise EnvironmentProblem(
            f"`{place.name}` does not end by SIGKILL within {DEAD_S:g} s",
            hint="a process that waits for a disk or a driver ends when that answers",
        )


def _children(pid: int) -> list[Any]:
    """All processes below a daemon, however deep; each of them knows when its number is reused."""
    import psutil

    try:
        found = psutil.Process(pid).children(recursive=True)
    except (psutil.Error, ValueError):
        return []
    return sorted(found, key=lambda child: int(child.pid))


def _stop_children(pid: int) -> None:
    """Stop all of them; what was forked meanwhile is found in the next pass."""
    stopped: set[int] = set()
    for _ in range(STOP_PASSES):
        left = [child for child in _children(pid) if child.pid not in stopped]
        if not left:
            return
        for child in left:
            _gently(child.suspend)
            stopped.add(child.pid)


def _continue(place: Place, children: Sequence[Any]) -> None:
    for child in children:
        _gently(child.resume)
    handle = mesh_run.grip(place)
    if handle is not None:
        _send(handle, signal.SIGCONT)
        os.close(handle)


def _gently(act: Callable[[], object]) -> None:
    """Do something to a process that may have ended."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        act()


# --- orders ---------------------------------------------------------------------------------------


def _order(place: Place, name: str, limit_s: float) -> None:
    """Give a daemon an order; repeat it until it is heard.

    Raises  BlackroadError of the last try.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            with _client(place) as client:
                if name == "drain":
                    client.drain()
                else:
                    client.resume()
                return
        except BlackroadError:
            if time.monotonic() >= until or not place.pid():
                raise
        time.sleep(RETRY_S)


def _client(place: Place) -> Client:
    from blackroad.client.client import Client

    return Client(place.endpoint, user="chaos", connect_timeout=ASK_S)
