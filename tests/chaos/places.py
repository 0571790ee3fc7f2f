"""Namespaces for a suite of its own: nothing it makes is on the host, and all of it goes with it.

The outside process makes a directory and a group for freezing, then starts the suite as the child
of a small init in fresh network, process and mount namespaces.  Whatever happens to the suite,
when that init ends the kernel ends every process in there and removes every interface.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BASE, GROUP = "CHAOS_BASE", "CHAOS_GROUP"
NETNS = Path("/run/netns")
_V1 = Path("/sys/fs/cgroup/freezer")
_V2 = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def missing() -> str:
    """What this machine lacks for the suite, in words; empty where all is there."""
    if os.geteuid() != 0:
        return "it needs root, to make networks of its own"
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"it needs the program `{program}` (packages iproute2 and util-linux)"
    if not os.path.exists("/dev/net/tun"):
        return "it needs /dev/net/tun (the kernel's tun module)"
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"it may not make namespaces here: {tried.stderr.strip()}"
    return ""


def inside(words: Sequence[str]) -> int:
    """Run the suite with these arguments in namespaces of its own; return its exit code."""
    base = Path(tempfile.mkdtemp(prefix="brc", dir="/tmp"))
    group = _make_group()
    environ = {**os.environ, BASE: str(base), GROUP: str(group or "")}
    command = [
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("--propagation", "private", sys.executable, "-m", "tests.chaos.places", *words),
    ]
    child = subprocess.Popen(command, env=environ)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                # Ctrl-C reached the suite as well; it says what it has and ends.
                with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    return child.wait(timeout=15)
                return 130
    finally:
        # Thawed first: what is frozen does not die.
        if group is not None:
            _thaw(group)
        child.kill()
        child.wait()
        _remove(base, group, keep="--keep" in words)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _make_group() -> Path | None:
    """A group of processes that can be frozen together; None where the kernel has no such."""
    name = f"blackroad-chaos-{os.getpid()}"
    for root, mark in ((_V1, "cgroup.procs"), *((one, "cgroup.controllers") for one in _V2)):
        if (root / mark).exists():
            with contextlib.suppress(OSError):
                (root / name).mkdir()
                return root / name
    return None


def _thaw(group: Path) -> None:
    for place in (group, *group.glob("**/")):
        with contextlib.suppress(OSError):
            if (place / "freezer.state").exists():
                (place / "freezer.state").write_text("THAWED")
            elif (place / "cgroup.freeze").exists():
                (place / "cgroup.freeze").write_text("0")


def _remove(base: Path, group: Path | None, keep: bool) -> None:
    if not keep:
        shutil.rmtree(base, ignore_errors=True)
    until = time.monotonic() + 5
    while group is not None and group.exists() and time.monotonic() < until:
        for place in sorted((group, *group.glob("**/")), key=lambda one: -len(one.parts)):
            with contextlib.suppress(OSError):
                place.rmdir()
        time.sleep(0.05)


# --- inside ---------------------------------------------------------------------------------------


def init(words: Sequence[str]) -> int:
    """Be the first process in there: start the suite, collect orphans, end with the suite."""
    subprocess.run(["mount", "-t", "tmpfs", "chaos", "/run"], check=True)
    NETNS.mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    suite = os.fork()
    if not suite:
        os.execv(sys.executable, [sys.executable, "-m", "tests.chaos", "--inside", *words])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == suite:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(init(sys.argv[1:]))
