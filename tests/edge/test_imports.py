"""What programs and daemons load, and when: counted in modules, since clocks differ."""

from __future__ import annotations

import math
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from blackroad.client import Client
from blackroad.errors import TaskFailed, WorkerCrashed
from tests.edge.meshes import Daemon, Mesh, until

pytestmark = pytest.mark.edge

# Each has some room above what it is today.
IMPORT_MAX, CLIENT_MAX, HELP_MAX = 40, 250, 100
HEAVY = frozenset(
    {
        "asyncio",
        "cryptography",
        "msgspec",
        "numpy",
        "psutil",
        "rich",
        "structlog",
        "zeroconf",
        "zmq",
    }
)
# What a program that only submits has no use for at its start.
RARE = frozenset({"cryptography", "numpy", "psutil", "rich", "structlog", "zeroconf"})

# Megabytes each, and nothing that an idle daemon, or its ears, looks at.
IDLE = frozenset({"_hashlib", "_ssl", "asyncio", "concurrent.futures", "difflib", "rich"})
DAEMON = """
import blackroad.cli.main, blackroad.cli.start, blackroad.daemon
from blackroad.logs import setup
setup("json", "info", "attic")
"""
EARS = """
import runpy, sys
sys.argv = ["mdns_child", "--parent", "0"]
from blackroad.discovery import children
children.die_with_parent = lambda _: sys.exit(0)
try:
    runpy.run_module("blackroad.discovery.mdns_child", run_name="__main__")
except SystemExit:
    pass
import zeroconf.asyncio
"""

HELP = """
import contextlib, io, sys
from blackroad.cli.main import main
sys.argv = ["blackroad", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as told:
    main(prog_name="blackroad")
assert "submit" in told.getvalue()
"""

# Writes the name of every module that this very process looks for to a file.
WATCHED = """
import os, sys
me, file = os.getpid(), os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def note(event, args):
    if event == "import" and os.getpid() == me:
        os.write(file, f"{args[0]}\\n".encode())
sys.addaudithook(note)
from blackroad.cli.main import main
sys.argv = ["blackroad", "node"]
main(prog_name="blackroad")
"""


def loaded(code: str) -> set[str]:
    """The modules that are there after some code ran in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "most", "never"),
    [
        ("import blackroad", IMPORT_MAX, HEAVY),
        ("from blackroad import Client", CLIENT_MAX, RARE),
        (HELP, HELP_MAX, HEAVY),
    ],
    ids=["package", "client", "help"],
)
def test_what_a_start_loads(code: str, most: int, never: frozenset[str]) -> None:
    new = loaded(code) - loaded("pass")
    assert new & never == set()
    assert len(new) <= most, sorted(new)
    assert "blackroad" in new


@pytest.mark.parametrize(
    ("code", "never"),
    [(DAEMON, IDLE), (EARS, IDLE - {"asyncio", "concurrent.futures"})],
    ids=["daemon", "ears"],
)
def test_what_an_idle_node_does_not_keep(code: str, never: frozenset[str]) -> None:
    assert loaded(code) & never == set()


class Watched:
    """A daemon that writes down what it imports."""

    def __init__(self, mesh: Mesh, file: Path) -> None:
        self.daemon = Daemon(mesh, "attic", {})
        mesh.daemons.append(self.daemon)
        self._file = file
        self._read = 0
        with self.daemon.log_file.open("ab") as log:
            self.daemon.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED, str(file)],
                env=self.daemon.environ,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def news(self) -> list[str]:
        """What it looked for since this was asked last."""
        text = self._file.read_text() if self._file.exists() else ""
        new, self._read = text[self._read :].split(), len(text)
        return new


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    mesh = Mesh()
    try:
        yield Watched(mesh, tmp_path / "imports")
    finally:
        mesh.close()


def fails(client: Client) -> None:
    with pytest.raises(TaskFailed):
        client.submit(math.sqrt, "four").result(40)


def crashes(client: Client) -> None:
    with pytest.raises(WorkerCrashed):
        client.submit(os._exit, 3).result(40)


def asks(client: Client) -> None:
    future = client.submit(print, "a line")
    future.result(40)
    client.logs(future.task_id)
    client.status(future.task_id)
    client.why(future.task_id)
    client.tasks()


def listens(client: Client) -> None:
    with client.subscribe("attic/lamp") as heard:
        client.publish("attic/lamp", 1)
        assert heard.get(40).value == 1


LARGE = np.arange(1 << 17, dtype=np.int64)
KINDS: dict[str, Callable[[Client], object]] = {
    "function": lambda client: client.submit(math.factorial, 5).result(40),
    "function by value": lambda client: client.submit(lambda: 1).result(40),
    "module": lambda client: client.submit("math:factorial", 5).result(40),
    "map": lambda client: list(client.map(math.sqrt, range(100))),
    "kernel": lambda client: client.kernel("collatz", start=1, count=1_000).result(40),
    "command": lambda client: client.run(["true"]).result(40),
    "large": lambda client: client.submit(operator.neg, LARGE).result(40),
    "durable": lambda client: client.submit(math.sqrt, 4, durable=True).result(40),
    "object": lambda client: client.get(client.put(LARGE)),
    "failing": fails,
    "crashing": crashes,
    "queries": asks,
    "topic": listens,
}


def test_the_second_task_of_each_kind_imports_nothing_in_the_daemon(watched: Watched) -> None:
    client = watched.daemon.mesh.client(watched.daemon)
    assert "blackroad.daemon" in watched.news()
    # Alone it has become its own coordinator, and its probe is over: nothing else is going on.
    until(lambda: client.nodes()["coordinator"], "a coordinator")
    until(lambda: client.nodes()["nodes"][0]["devices"] is not None, "a probe")
    for work in KINDS.values():
        work(client)
    watched.news()
    late = {}
    for name, work in KINDS.items():
        work(client)
        if found := watched.news():
            late[name] = found
    assert late == {}


def test_the_watch_itself_notices(tmp_path: Path) -> None:
    file = tmp_path / "imports"
    code = WATCHED.partition("from blackroad")[0] + "import wave"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    assert "wave" in file.read_text().split()
