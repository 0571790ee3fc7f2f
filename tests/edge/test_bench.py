"""Cells of the comparison as processes of their own: what comes with Python, and what is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import proc
from bench.runner import Plan, Row, one_cell
from bench.sockets import Wire
from tests.tidy.source import ROOT

pytestmark = pytest.mark.edge
PLAN = Plan((), (), 1, (50, 200), 5.0, 0.0, 0)


def figures(rows: list[Row]) -> dict[str, object]:
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.parametrize("system", ["zmq-raw", "zmq-raw-curve", "processpool", "blackroad"])
def test_a_cell_tells_rates_and_leaves_nothing_behind(system: str) -> None:
    before = set(proc.below(os.getpid()))
    told = figures(one_cell(system, "noop", PLAN))
    assert "failed" not in told
    assert all(float(str(told[f"{kind} 200"])) > 0 for kind in ("one", "map"))
    assert float(str(told["first result"])) > 0
    assert set(proc.below(os.getpid())) <= before


def test_a_cell_that_fails_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    told = figures(one_cell("zmq-raw", "noop", PLAN._replace(sizes=(0,))))
    assert str(told["failed"]).startswith("ZeroDivisionError")
    assert "first result" in told
    assert "Traceback" in capfd.readouterr().err


def test_a_bare_socket_echoes_with_tls_and_without() -> None:
    import numpy as np

    array = np.arange(100_000)
    for secure in (True, False):
        with Wire(secure=secure) as wire:
            assert (wire.echo(array) == array).all()


def test_the_command_writes_json_and_prints_targets(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--quick", "--systems", "zmq-raw", "--work", "start", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(out.read_text())
    assert report["quick"] is True
    assert figures(report["rows"]).keys() == {"first result"}
    assert "≥ 2 x zmq-raw" in done.stdout
