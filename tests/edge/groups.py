"""A control group that belongs to one test, where this machine lets us make one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad.runtime import cgroups


@pytest.fixture
def group() -> Iterator[Path]:
    mounted = cgroups._mount_point(Path("/proc/self/mountinfo").read_text("utf-8"))
    if mounted is None or not os.access(mounted, os.W_OK):
        pytest.skip("needs a writable cgroup v2 tree (root, or a delegated group)")
    made = Path(tempfile.mkdtemp(prefix="blackroad-test-", dir=mounted))
    yield made
    assert cgroups.remove(made)
