"""Open files: the limit is raised, and running out of them is said; how fast boxes are made."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blackroad import starting
from blackroad.bus import boxes
from blackroad.starting import Descriptors

pytestmark = pytest.mark.edge

RAISED = """
import resource
from blackroad.starting import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
assert raise_descriptor_limit() == 200
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
assert raise_descriptor_limit() == 200
"""


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def error(self, name: str, **facts: Any) -> None:
        self.said.append((name, facts))


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    subprocess.run([sys.executable, "-c", RAISED], check=True, timeout=60)


def test_running_out_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, watch = Log(), Descriptors()
    now_ms = [1_000_000]
    monkeypatch.setattr(starting, "boot_ms", lambda: now_ms[0])
    watch.look(log)
    assert log.said == []
    used = watch.told()["used"]
    assert used > 2
    full = used * 100 // starting.DESCRIPTORS_ALARM_PERCENT
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (full, full))
    for _ in range(3):
        watch.look(log)
    assert [name for name, _ in log.said] == ["daemon.descriptors"]
    assert log.said[0][1]["limit"] == full
    now_ms[0] += starting.ALARM_MS
    watch.look(log)
    assert len(log.said) == 2


def test_the_speed_of_boxes_is_measured_or_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import zmq

    zmq.curve_keypair()
    boxes.bytes_per_second.cache_clear()
    assert boxes.bytes_per_second() > 1_000_000
    boxes.bytes_per_second.cache_clear()
    monkeypatch.setattr(boxes, "MAPS", tmp_path / "none")
    assert boxes.bytes_per_second() == 0
    boxes.bytes_per_second.cache_clear()
