"""Edge: what chaos needs around it: a mesh, directories, and the programs that submit.

This file must not know what is done to them, or when.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad.cli import mesh_record, mesh_run
from blackroad.cli.chaos_client import Order
from blackroad.cli.chaos_nemesis import FAULTS
from blackroad.cli.mesh_record import Home, Place
from blackroad.discovery import children
from blackroad.errors import EnvironmentProblem, NoDaemon, UsageError
from blackroad.limits import PATH_BYTES_MAX

MINUTES: Final = 2.0
NODES: Final = 3
SLOTS: Final = 4
PER_S: Final = 4.0
OPEN_S: Final = 8.0
SETTLE_S: Final = 180.0
SOCKETS_BYTES: Final = 60


class Wishes(NamedTuple):
    """What was asked for."""

    minutes: float = MINUTES
    nodes: int = NODES
    seed: str = ""
    per_s: float = PER_S
    faults: tuple[str, ...] = tuple(FAULTS)
    running: bool = False
    keep: Path | None = None
    as_json: bool = False
    tasks_max: int = 10**9
    settle_s: float = SETTLE_S

    def again(self) -> str:
        """The command that does the same faults again."""
        words = [f"blackroad chaos --seed {self.seed} --minutes {self.minutes:g}"]
        words += ["--running"] if self.running else [f"--nodes {self.nodes}"]
        words += [f"--rate {self.per_s:g}"]
        if self.faults != tuple(FAULTS):
            words += [f"--fault '{fault}'" for fault in self.faults]
        return " ".join(words)


# --- the mesh -------------------------------------------------------------------------------------


class Shop(NamedTuple):
    """Where it happens: the daemons and the directory of the history."""

    places: list[Place]
    slots: int | None
    base: Path
    outcome: dict[str, Any]


@contextlib.contextmanager
def workshop(wishes: Wishes) -> Iterator[Shop]:
    """Have a mesh and directories; leave nothing, but what is asked for or was found."""
    base = _directory(wishes.keep)
    sockets = base if _short(base) else _directory(None)
    outcome: dict[str, Any] = {"keep": wishes.keep is not None}
    try:
        (base / "locks").mkdir()
        if wishes.running:
            yield Shop(*_running_mesh(), base, outcome)
            return
        home = Home(base / "mesh", sockets / "run")
        found = [Place(number, home) for number in range(1, wishes.nodes + 1)]
        mesh_record.check_paths(found)
        # Looking for devices would take more time than the faults.
        os.environ.setdefault("BLACKROAD_OPENCL", "off")
        try:
            mesh_run.start(found, SLOTS)
            mesh_run.await_together(found, time.monotonic() + mesh_run.UP_S)
            yield Shop(found, SLOTS, base, outcome)
        finally:
            mesh_run.stop(found)
    except BaseException:
        outcome["keep"] = outcome["keep"] or "began" in outcome
        raise
    finally:
        if sockets != base:
            shutil.rmtree(sockets, ignore_errors=True)
        if not outcome["keep"]:
            shutil.rmtree(base, ignore_errors=True)


def _running_mesh() -> tuple[list[Place], int | None]:
    at = mesh_record.home()
    found = mesh_record.places(at)
    missing = [place.name for place in found if not place.pid()]
    if not found or missing:
        raise NoDaemon(
            f"{', '.join(missing)} of the mesh do not run" if missing else "no mesh runs",
            hint="`blackroad up` starts one; without --running chaos has daemons of its own",
        )
    return found, mesh_record.slots_of(at)


def _directory(wanted: Path | None) -> Path:
    """Make the directory of the history: the one asked for, or a short one of our own."""
    if wanted is None:
        short = _short(Path(tempfile.gettempdir()) / "br-chaos-xxxxxxxx")
        return Path(tempfile.mkdtemp(prefix="br-chaos-", dir=None if short else "/tmp"))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if any(wanted.iterdir()):
            raise UsageError(f"{wanted} is not empty", hint="name a new directory with --keep")
    except OSError as error:
        raise EnvironmentProblem(
            f"{wanted} cannot be written: {error.strerror}", hint="choose another with --keep"
        ) from error
    return wanted.resolve()


def _short(base: Path) -> bool:
    """Whether sockets below it have paths that the system takes."""
    return len(os.fsencode(base)) + SOCKETS_BYTES <= PATH_BYTES_MAX


# --- who submits ----------------------------------------------------------------------------------


class Submitter:
    """A process of `chaos_client.py`, which may be killed and started again."""

    def __init__(self, order: Order, log: Path) -> None:
        self.name = order.name
        self.log = log
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        parent = os.getpid()
        words = json.dumps(self._order._asdict())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*children.command("blackroad.cli.chaos_client"), words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=children.environment({}),
                start_new_session=True,
                preexec_fn=lambda: children.die_with_parent(parent),
            )

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ended(self) -> bool:
        """Whether it has ended in order.

        Raises  EnvironmentProblem where it failed, with the end of its log.
        """
        status = None if self._process is None else self._process.poll()
        if status:
            text = self.log.read_text("utf-8", "replace")[-2_000:]
            raise EnvironmentProblem(
                f"`{self.name}`, which submits, ended with status {status}",
                hint=f"its whole log is {self.log}",
                because=[f"it wrote last:\n{text}"],
            )
        return status == 0


def submitters(wishes: Wishes, shop: Shop) -> list[Submitter]:
    """One at each of the first two nodes."""
    owners = shop.places[:2]
    per_s = wishes.per_s / len(owners)
    return [
        Submitter(
            Order(
                name=f"client-{number}",
                seed=wishes.seed,
                endpoint=place.endpoint,
                history=str(shop.base / "history.jsonl"),
                locks=str(shop.base / "locks"),
                stop=str(shop.base / "stop"),
                per_s=per_s,
                open_max=max(8, round(per_s * OPEN_S)),
                tasks_max=wishes.tasks_max // len(owners),
            ),
            shop.base / f"client-{number}.log",
        )
        for number, place in enumerate(owners, 1)
    ]
