"""Control groups: what counts as delegated, and that nothing gets out of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blackroad.runtime import cgroups
from blackroad.runtime.events import Gone
from tests.edge.groups import group as group
from tests.edge.pool_bench import Bench, alive, call, wait_file, wait_gone

pytestmark = pytest.mark.edge

MOUNTS = "30 24 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A made-up /proc/self and cgroup tree; the process is in `unit`."""
    unit = tmp_path / "cgroup" / "system.slice" / "blackroad-node.service"
    unit.mkdir(parents=True)
    (unit / "cgroup.procs").touch()
    (tmp_path / "mountinfo").write_text(MOUNTS.format(tmp_path / "cgroup"))
    return tmp_path


def in_group(tree: Path, line: str) -> Path | None:
    proc = tree / "proc"
    proc.mkdir(exist_ok=True)
    (proc / "mountinfo").write_text((tree / "mountinfo").read_text())
    (proc / "cgroup").write_text(line)
    return cgroups.delegated(proc)


def test_a_marked_unit_is_delegated(tree: Path) -> None:
    unit = tree / "cgroup/system.slice/blackroad-node.service"
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    assert in_group(tree, "0::/system.slice/blackroad-node.service\n") == unit


def test_a_unit_of_root_without_the_mark_is_not(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert in_group(tree, "0::/system.slice/blackroad-node.service\n") is None


def test_a_group_owned_by_a_user_is_his(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tree / "cgroup/system.slice/blackroad-node.service"
    os.chown(unit, os.getuid() or 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: unit.stat().st_uid)
    assert in_group(tree, "12:cpu:/x\n0::/system.slice/blackroad-node.service\n") == unit


@pytest.mark.parametrize("line", ["0::/\n", "", "1:cpu:/system.slice\n", "0::/gone\n"])
def test_the_root_and_what_is_not_there_are_not(tree: Path, line: str) -> None:
    assert in_group(tree, line) is None


def test_without_a_mounted_tree_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("1 2 0:3 / /proc rw - proc proc rw\n")
    (tmp_path / "cgroup").write_text("0::/a\n")
    assert cgroups.delegated(tmp_path) is None
    assert cgroups.delegated(tmp_path / "missing") is None


def test_a_task_runs_in_a_group_of_its_own(group: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "objects", preload=(), cgroup=group)
    mine = bench.value(Path.read_text, Path("/proc/self/cgroup"))
    line = next(one for one in mine.splitlines() if one.startswith("0::"))
    assert f"{group.name}/blackroad-" in line
    bench.pool.close()
    assert not [one for one in group.iterdir() if one.is_dir()]


def test_a_group_cannot_be_left_by_daemons_of_daemons(group: Path, tmp_path: Path) -> None:
    def scatter(path: str) -> None:
        """Each starts the next in a session of its own and ends."""
        program = (
            "import os,sys,time\n"
            "for _ in range(3):\n"
            "    if os.fork(): os._exit(0)\n"
            "    os.setsid()\n"
            "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
            "time.sleep(1000)\n"
        )
        subprocess.run([sys.executable, "-c", program, path], check=True)
        signal.pause()

    bench = Bench(tmp_path / "objects", preload=("cloudpickle",), cgroup=group)
    bench.pool.launch("scatter", call(scatter, str(tmp_path / "pid")))
    left = bench.until(lambda: wait_file(tmp_path / "pid", 1))
    bench.pool.kill("scatter", "test")
    assert bench.end("scatter") == Gone("scatter", "test")
    assert [pid for pid in left if alive(pid)] == []
    bench.pool.close()


def test_what_an_earlier_generation_left_in_its_group_is_swept(group: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "objects", preload=(), cgroup=group)
    name = bench.pool._serving._name
    bench.pool.close()
    left = group / f"blackroad-{name}-cafe" / "1"
    left.mkdir(parents=True)
    # Without the mark of the pool in its environment: only the group tells.
    sleeper = subprocess.Popen(["sleep", "1000"], env={})
    (left / "cgroup.procs").write_text(str(sleeper.pid))
    bench = Bench(tmp_path / "objects", preload=(), cgroup=group)
    assert bench.value(abs, -1) == 1
    assert sleeper.wait() == -signal.SIGKILL
    assert wait_gone([sleeper.pid]) == []
    bench.until(lambda: not left.parent.exists())
    bench.pool.close()


def test_a_base_that_is_gone_is_not_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "objects", preload=(), cgroup=tmp_path / "missing")
    assert bench.value(abs, -1) == 1
    bench.pool.close()
