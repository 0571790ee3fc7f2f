"""`blackroad nodes` and `blackroad kernels`, against a fake client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blackroad.cli import nodes
from blackroad.errors import NoDaemon, OwnerLost, StillRunning, UnknownKernel, Unreachable
from blackroad.kernels import registry
from tests.unit.cli_fake import NODE, OTHER, FakeClient, blackroad, client, node_row

__all__ = ["client"]

DEVICE = {
    "kind": "gpu",
    "name": "V3D 7.1",
    "backend": "opencl",
    "memory_bytes": 4 * 2**30,
    "compute_units": 1,
    "fp64": False,
    "software": False,
    "platform": "rusticl",
    "driver": "25",
    "index": 0,
    "problem": "",
}


def test_the_table_of_nodes(client: FakeClient) -> None:
    assert blackroad("nodes") == (
        0,
        "name   id        state     arch     slots  running  waiting  done     memory free  load\n"
        "attic  k3f7x2ab  alive  *  aarch64      4        1        0    12  6 GiB of 8 GiB  25 %\n"
        "shed   zxy2zxy2  alive     aarch64      4        1        0    12  6 GiB of 8 GiB  25 %\n",
        "",
    )
    assert json.loads(blackroad("nodes", "--json").out)["nodes"][1]["name"] == "shed"


def test_what_only_some_nodes_have_gets_a_column(client: FakeClient) -> None:
    client.rows = [
        node_row("a", NODE, gpus=["RTX", "RTX", "V3D"], coordinator=True),
        node_row("b", OTHER, temperature_c=81, throttled=True, state="draining"),
        node_row("c", "cccccccc", state="dead", silent_ms=41_000),
    ]
    lines = blackroad("nodes").out.splitlines()
    assert lines[0].split()[-4:] == ["free", "gpu", "temp", "load"]
    assert "  2 x RTX, V3D  " in lines[1]
    assert "  draining  " in lines[2]
    assert "  81 °C throttled  " in lines[2]
    assert lines[3].split()[2:6] == ["dead", "41", "s", "aarch64"]
    assert lines[3].count(" -") == 6


def test_an_undecided_mesh_is_told(client: FakeClient) -> None:
    client.rows[1]["follows"] = "otherone"
    assert blackroad("nodes").out.endswith("\n\nfollowing another coordinator: shed\n")
    told: dict[str, Any] = {"coordinator": None, "nodes": []}
    assert nodes.remarks(told) == ["no coordinator yet: each node uses its own machine meanwhile"]


def test_watching_needs_a_terminal(client: FakeClient) -> None:
    answer = blackroad("nodes", "--watch")
    assert answer.code == 2
    assert "--watch needs a terminal" in answer.err
    assert client.asked == []


# --- drain and resume ---------------------------------------------------------------------------


def test_drain_and_resume_name_the_node(client: FakeClient) -> None:
    assert blackroad("drain") == (0, "attic  draining, runs 2 tasks\n", "")
    assert blackroad("resume", "attic") == (0, "attic  alive, runs 1 task\n", "")
    assert client.asked == [("drain", ""), ("resume", "attic")]


def test_drain_waits_when_asked_to(client: FakeClient) -> None:
    answer = blackroad("drain", "attic", "--wait", "--timeout", "90s")
    assert answer == (0, "attic  draining, runs nothing\n", "")
    assert client.asked == [("drain", "attic"), ("drained", "attic", 90.0)]
    client.results = [StillRunning("`attic` still runs 2 tasks", hint="it goes on draining")]
    answer = blackroad("drain", "--wait", "--timeout", "0")
    assert (answer.code, answer.out) == (5, "")
    assert "`attic` still runs 2 tasks" in answer.err
    assert client.asked[-1] == ("drained", "", 0.0)


def test_drain_as_json_tells_what_matters(client: FakeClient) -> None:
    told = json.loads(blackroad("drain", "--wait", "--json").out)
    assert told == {"id": NODE, "name": "attic", "draining": True, "running": 0, "waiting": 0}


def test_a_time_without_waiting_is_a_mistake(client: FakeClient) -> None:
    answer = blackroad("drain", "--timeout", "5")
    assert answer.code == 2
    assert "hint: add --wait" in answer.err
    assert client.asked == []


# --- watching -----------------------------------------------------------------------------------


def test_watching_outlives_the_daemon(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [{"n": 1}, Unreachable("gone"), OwnerLost("anew"), {"n": 2}]

    def ask() -> Any:
        found = answers.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(client, "nodes", ask)
    looker = nodes.Looker()
    seen = []
    for _ in range(4):
        looker.look()
        seen.append((looker.told, bool(looker.problem)))
    looker.close()
    assert seen == [({"n": 1}, False), ({"n": 1}, True), ({"n": 1}, True), ({"n": 2}, False)]
    assert client.closed == 3


def test_without_a_daemon_from_the_start_watching_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(timeout_s: float | None = None) -> FakeClient:
        raise NoDaemon("nobody")

    monkeypatch.setattr("blackroad.cli.commands.connect", connect)
    answer = blackroad("nodes", "--watch", "--json")
    assert answer.code == 4
    assert json.loads(answer.out)["error"]["type"] == "NoDaemon"


def test_watching_as_json_is_an_object_a_line(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter([None, None])

    def rest(_: float) -> None:
        if next(rounds, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    monkeypatch.setattr("blackroad.cli.nodes.time.sleep", rest)
    answer = blackroad("nodes", "--watch", "--json")
    assert answer.code == 130
    assert [json.loads(line)["coordinator"] for line in answer.out.splitlines()] == [NODE] * 3


# --- kernels ------------------------------------------------------------------------------------


def test_kernels_without_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(timeout_s: float | None = None) -> FakeClient:
        raise NoDaemon("no daemon answers")

    monkeypatch.setattr("blackroad.cli.commands.connect", connect)
    answer = blackroad("kernels")
    assert (answer.code, answer.err) == (0, "")
    for name in registry.names():
        assert f"\n{name}: {registry.get(name).summary}\n" in answer.out
    assert answer.out.endswith(
        "\n\nwhich nodes have OpenCL devices is not known: no daemon answers\n"
    )
    told = json.loads(blackroad("kernels", "--json").out)
    assert told["nodes"] is None
    assert told["note"] == "no daemon answers"
    assert [one["name"] for one in told["kernels"]] == registry.names()


def test_the_parameters_of_one_kernel(client: FakeClient) -> None:
    answer = blackroad("kernels", "mandelbrot")
    kernel = registry.get("mandelbrot")
    for parameter in kernel.parameters:
        assert f"\n{parameter.name} " in answer.out
        assert parameter.allowed() in answer.out
    assert kernel.tolerance in answer.out
    assert "collatz" not in answer.out


def test_devices_and_what_is_missing_for_more(client: FakeClient) -> None:
    note = "no OpenCL driver: sudo apt install pocl-opencl-icd"
    broken = {**DEVICE, "name": "old", "problem": "build failed", "fp64": True, "software": True}
    client.rows = [
        node_row("attic", NODE, devices=[DEVICE, broken]),
        node_row("shed", OTHER, notes=[note]),
        node_row("garage", "gggggggg", state="dead", devices=[DEVICE]),
    ]
    lines = blackroad("kernels").out.splitlines()
    at = lines.index(next(line for line in lines if line.startswith("node ")))
    assert lines[at + 1].split("  ")[0] == "attic"
    assert lines[at + 1].endswith("4 GiB   float32")
    assert lines[at + 2].endswith("gpu, software  4 GiB   float64    not used: build failed")
    assert lines[at + 3] == "shed   none: NumPy computes"
    assert lines[at + 4 :] == [f"shed: {note}"]


def test_a_kernel_that_is_none(client: FakeClient) -> None:
    answer = blackroad("kernels", "mandelbrod")
    assert answer.code == UnknownKernel.exit_code
    assert "did you mean `mandelbrot`?" in answer.err
    assert client.asked == []
