"""`blackroad submit`: what reaches the client, and what is told of the outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackroad.cli import jobs, sending
from blackroad.errors import OwnerLost, TaskFailed, Unplaceable, Unreachable, UsageError
from blackroad.requirements import Needs
from tests.unit.cli_fake import NODE, FakeClient, blackroad, client, node_row

__all__ = ["client"]

FIRST, SECOND, THIRD = (f"{NODE}-task{letter}" for letter in "abc")
DURABLE = {"durable": True}


def lacking() -> Unplaceable:
    return Unplaceable(
        "no node can run `render`",
        rows=[
            ("memory", "24 GiB", "9.4 GiB on `attic`", "too little"),
            ("arch", "gfx1100", "gfx1030 on `attic`", "different"),
            ("gpu", "1", "1 on `attic`", ""),
        ],
        nodes_answered=2,
        task_id=FIRST,
        hint="ask for less",
    )


# --- what is sent -------------------------------------------------------------------------------


def test_a_command_after_two_dashes(client: FakeClient) -> None:
    answer = blackroad("submit", "--", "ls", "-l", "--json", "a b")
    assert answer == (0, f"{FIRST}\n", "")
    assert client.asked == [("run", ("ls", "-l", "--json", "a b"), {"env": {}, **DURABLE})]


def test_a_function_with_arguments(client: FakeClient) -> None:
    answer = blackroad("submit", "pkg.mod:fn", "-1", "-.5", "text", "k=[1]")
    assert answer.code == 0
    assert client.asked == [("submit", "pkg.mod:fn", (-1, -0.5, "text"), {"k": [1], **DURABLE})]


def test_a_kernel_as_one_task(client: FakeClient) -> None:
    answer = blackroad("submit", "--kernel", "collatz", "start=1", "count=1e6")
    assert answer == (0, f"{FIRST}\n", "")
    asked = ("kernel_task", "collatz", {"start": "1", "count": "1e6"}, DURABLE)
    assert client.asked == [asked]


def test_options_may_stand_behind_the_target(client: FakeClient) -> None:
    assert blackroad("submit", "m:f", "1", "--cpu", "2").code == 0
    assert client.asked == [("submit", "m:f", (1,), {"needs": Needs(cpu=2), **DURABLE})]


def test_every_option_reaches_the_client(client: FakeClient) -> None:
    words = (
        "--cpu 0.5 --memory 2GiB --gpu 1 --gpu-memory 900MB --arch arm64 --arch x86_64 "
        "--python >=3.11 --label disk=ssd --label ups --node attic --priority -3 --retries 2 "
        "--timeout 1m30s --once --pure --exclusive --wait-for-node"
    )
    assert blackroad("submit", *words.split(), "--", "ls").code == 0
    needs = Needs(
        cpu=0.5,
        memory="2GiB",
        gpu=1,
        gpu_memory="900MB",
        arch=("aarch64", "x86_64"),
        python=">=3.11",
        labels={"disk": "ssd", "ups": ""},
        node="attic",
    )
    options = {
        "needs": needs,
        "priority": -3,
        "retries": 2,
        "once": True,
        "pure": True,
        "exclusive": True,
        "wait_for_node": True,
        "timeout": "90000ms",
        **DURABLE,
    }
    assert client.asked == [("run", ("ls",), {"env": {}, **options})]


def test_gpu_memory_alone_means_one_gpu(client: FakeClient) -> None:
    assert blackroad("submit", "--gpu-memory", "1GiB", "--", "x").code == 0
    assert client.asked[0][2]["needs"] == Needs(gpu=1, gpu_memory="1GiB")


def test_an_array_is_a_task_for_each_number(client: FakeClient) -> None:
    answer = blackroad("submit", "--array", "3,7-8", "--", "echo", "n{}", "{}-{}")
    assert answer.out.split() == [FIRST, SECOND, THIRD]
    assert client.asked == [
        ("run", ("echo", f"n{n}", f"{n}-{n}"), {"env": {jobs.INDEX_VARIABLE: str(n)}, **DURABLE})
        for n in (3, 7, 8)
    ]


def test_the_number_is_a_literal_for_functions_and_kernels(client: FakeClient) -> None:
    blackroad("submit", "--array", "5", "m:f", "{}", "k={}")
    blackroad("submit", "--array", "5", "--kernel", "collatz", "start={}", "count=9")
    assert client.asked[0] == ("submit", "m:f", (5,), {"k": 5, **DURABLE})
    assert client.asked[1][2] == {"start": "5", "count": "9"}


def test_each_line_is_a_task(client: FakeClient) -> None:
    answer = blackroad("submit", "--each-line", "-", "--json", "m:f", "{}", stdin="a\n\n7\n")
    assert [one[2] for one in client.asked] == [("a",), (7,)]
    assert json.loads(answer.out) == {
        "tasks": [
            {"id": FIRST, "line": 1, "state": "accepted"},
            {"id": SECOND, "line": 2, "state": "accepted"},
        ]
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "nothing to submit"),
        (("--",), "no command after"),
        (("ls",), "`ls` is no function"),
        (("m:f", "--", "ls"), "both `m:f` and a command"),
        (("--kernel", "collatz", "--", "ls"), "both --kernel collatz and a command"),
        (("--kernel", "colatz"), "no kernel `colatz`"),
        (("--kernel", "collatz", "start=0", "count=1"), "kernel `collatz`: `start` is '0'"),
        (("--kernel", "collatz", "start"), "`start` is no parameter"),
        (("m:f", "--wiat"), "no such option `--wiat`"),
        (("m:f", "timeout=3"), "`timeout` of a function cannot be given by name"),
        (("--array", "1", "--each-line", "-", "m:f", "{}"), "are both given"),
        (("--each-line", "-", "m:f"), "no argument says where the line goes"),
        (("-o", "a.npy", "m:f"), "-o without --wait"),
        (("--wait", "-o", "a.npy", "--array", "1-2", "m:f"), "one file for 2 results"),
        (("--memory", "2x", "m:f"), "memory: cannot read '2x'"),
        (("--label", "a=1", "--label", "a=2", "m:f"), "one label is given twice"),
        (("--priority", "200", "m:f"), "priority: 200"),
        (("--retries", "-1", "m:f"), "retries: -1"),
        (("--timeout", "0", "m:f"), "timeout: 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    client: FakeClient, words: tuple[str, ...], why: str
) -> None:
    answer = blackroad("submit", *words, stdin="line\n")
    assert answer.code == 2
    assert why in answer.err.splitlines()[0]
    assert "\n\nhint: " in answer.err
    assert client.asked == []


def test_what_is_wrong_is_told_even_without_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(timeout_s: float | None = None) -> FakeClient:
        raise AssertionError("nothing may be connected for this")

    monkeypatch.setattr("blackroad.cli.commands.connect", connect)
    for wait in ((), ("--wait",)):
        assert blackroad("submit", *wait, "--kernel", "collatz", "start=0", "count=1").code == 2
        assert blackroad("submit", *wait, "m:f", "timeout=1").code == 2


def test_a_wrong_job_among_many_stops_all(client: FakeClient) -> None:
    answer = blackroad("submit", "--array", "0-1", "--kernel", "collatz", "start={}", "count=1")
    assert answer.code == 2
    assert client.asked == []


# --- refused ------------------------------------------------------------------------------------


def test_what_no_node_can_run_is_a_table_and_exit_3(client: FakeClient) -> None:
    client.refusals = [lacking()]
    client.rows.append(node_row("garage", "g" * 8, state="dead", silent_ms=41_000))
    answer = blackroad("submit", "--memory", "24GiB", "--arch", "gfx1100", "--", "render")
    assert answer.code == 3
    assert answer.out == ""
    assert answer.err == (
        "error: no node can run `render`\n"
        "  item    asked    nearest node\n"
        "  memory  24 GiB   9.4 GiB on `attic`  too little\n"
        "  arch    gfx1100  gfx1030 on `attic`  different\n"
        "  gpu     1        1 on `attic`\n"
        "\n"
        "  2 of 3 nodes answered; `garage` was last heard 41 s ago\n"
        "\n"
        "hint: ask for `--memory 9GiB` without `--arch`, or wait for a node that has it: "
        "`--wait-for-node`\n"
    )


def test_what_was_accepted_before_a_refusal_is_told(client: FakeClient) -> None:
    client.refusals = [None, lacking(), None]
    answer = blackroad("submit", "--array", "1-3", "--", "render", "{}")
    assert answer.code == 3
    assert answer.out.split() == [FIRST, THIRD]
    assert "2 of 3 tasks were accepted" in answer.err


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([("gpu", "1", "none on `a`", "missing")], "submit it without `--gpu`"),
        ([("cpu", "8", "4 on `a`", "too little")], "ask for `--cpu 4`"),
        (
            [
                ("label disk", "ssd", "hdd on `a`", "different"),
                ("label ups", "any value", "none on `a`", "missing"),
            ],
            "submit it without `--label`",
        ),
        ([("program", "ffmpeg", "none on `a`", "missing")], ""),
        ([("together", "all on one node", "`a` comes nearest", "missing")], ""),
        ([], ""),
    ],
)
def test_hints_name_the_options_to_change(rows: list[tuple[str, str, str, str]], hint: str) -> None:
    tail = ", or wait for a node that has it: `--wait-for-node`"
    assert sending.better_needs(rows) == (hint + tail if hint else "")


# --- waited for ---------------------------------------------------------------------------------


def test_a_result_is_printed_as_json(client: FakeClient) -> None:
    client.results = [{"a": (1, 2)}]
    assert blackroad("submit", "--wait", "m:f") == (0, '{"a": [1, 2]}\n', "")


def test_with_json_a_result_has_its_task(client: FakeClient) -> None:
    client.results = [np.zeros(100)]
    told = json.loads(blackroad("submit", "--wait", "--json", "m:f").out)
    (task,) = told["tasks"]
    assert (task["id"], task["state"], task["result"]["shape"]) == (FIRST, "done", [100])


def test_a_command_prints_what_it_printed(client: FakeClient) -> None:
    client.results = [0]
    assert blackroad("submit", "--wait", "--", "cat") == (0, "one\ntwo\n", "")


def test_a_failed_command_prints_that_too_and_its_status(client: FakeClient) -> None:
    client.results = [
        TaskFailed(
            "CommandFailed: `cat` exited with status 3",
            type_name="CommandFailed",
            text="`cat` exited with status 3",
            traceback_text="Traceback: inner workings",
            exit_status=3,
        )
    ]
    answer = blackroad("submit", "--wait", "--", "cat")
    assert answer == (1, "one\ntwo\n", "error: `cat` exited with status 3\n")


def test_a_failed_function_shows_where(client: FakeClient) -> None:
    client.results = [
        TaskFailed(
            "ValueError: bad",
            type_name="ValueError",
            text="bad",
            traceback_text='Traceback (most recent call last):\n  File "a.py"\nValueError: bad\n',
        )
    ]
    answer = blackroad("submit", "--wait", "m:f")
    assert answer.code == 1
    assert answer.err == (
        'error: ValueError: bad\n  Traceback (most recent call last):\n    File "a.py"\n'
    )


def test_a_missing_module_comes_with_a_hint(client: FakeClient) -> None:
    client.results = [TaskFailed("no module", type_name="ModuleNotFoundError")]
    assert "PYTHONPATH=$PWD blackroad up" in blackroad("submit", "--wait", "m:f").err


def test_a_result_goes_to_a_file(client: FakeClient, tmp_path: Path) -> None:
    client.results = [np.arange(3)]
    file = tmp_path / "r.npy"
    answer = blackroad("submit", "--wait", "-o", str(file), "m:f")
    assert (answer.code, answer.out) == (0, "")
    assert np.load(file).tolist() == [0, 1, 2]


def test_many_results_come_in_order_whatever_becomes_of_others(client: FakeClient) -> None:
    client.results = [1, TaskFailed("boom"), 3]
    answer = blackroad("submit", "--wait", "--array", "1-3", "m:f", "{}")
    assert answer.code == 1
    assert answer.out == "1\n3\n"
    assert answer.err == f"{SECOND} (2): boom\n1 of 3 tasks failed\n"
    client.results, client._serial = [1, TaskFailed("boom"), 3], 0
    told = json.loads(blackroad("submit", "--wait", "--json", "--array", "1-3", "m:f").out)
    assert [one["state"] for one in told["tasks"]] == ["done", "failed", "done"]
    assert [one["index"] for one in told["tasks"]] == [1, 2, 3]
    assert told["tasks"][1]["error"]["message"] == "boom"


def test_many_results_go_to_many_files(client: FakeClient, tmp_path: Path) -> None:
    client.results = [np.zeros(1), np.ones(1)]
    name = str(tmp_path / "r-{}.npy")
    assert blackroad("submit", "--wait", "-o", name, "--array", "4-5", "m:f").code == 0
    assert [np.load(tmp_path / f"r-{n}.npy")[0] for n in (4, 5)] == [0, 1]


def test_the_outputs_of_many_commands_come_in_order(client: FakeClient) -> None:
    client.results = [0, 0]
    answer = blackroad("submit", "--wait", "--array", "1-2", "--", "cat")
    assert answer == (0, "one\ntwo\none\ntwo\n", "")


def test_a_kernel_is_cut_over_the_mesh(client: FakeClient) -> None:
    client.results = [{"numbers": 9}]
    words = ("submit", "--wait", "--cpu", "2", "--kernel", "collatz", "start=1", "count=9")
    answer = blackroad(*words)
    assert answer == (0, '{"numbers": 9}\n', "")
    options = {"needs": Needs(cpu=2)}
    assert client.asked == [("kernel", "collatz", {"start": "1", "count": "9"}, options)]


def test_a_kernel_that_no_node_can_run(client: FakeClient) -> None:
    client.refusals = [lacking()]
    answer = blackroad("submit", "--wait", "--kernel", "collatz", "start=1", "count=9")
    assert answer.code == 3
    assert "2 of 2 nodes answered" in answer.err


def test_a_cancelled_task_is_told_as_one(client: FakeClient, monkeypatch: Any) -> None:
    from concurrent.futures import CancelledError

    client.results = [CancelledError()]
    answer = blackroad("submit", "--wait", "m:f")
    assert answer.code == 1
    assert answer.err.startswith(f"error: {FIRST} was cancelled\n")


def test_waiting_outlives_a_restart_of_the_daemon(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.results = [OwnerLost("the daemon was started anew")]
    answers: list[Any] = [Unreachable("not yet"), TimeoutError("queued"), 42]

    def outcome(task: str, timeout: float | None = None) -> Any:
        found = answers.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(client, "outcome", outcome)
    monkeypatch.setattr("blackroad.cli.waiting.STEP_S", 0.0)
    assert blackroad("submit", "--wait", "m:f") == (0, "42\n", "")
    assert answers == []


def test_ctrl_c_while_waiting_is_quiet(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blackroad.cli.waiting.settled", interrupted)
    assert blackroad("submit", "--wait", "m:f") == (130, "", "")


def test_names_that_the_client_takes_are_known() -> None:
    import inspect

    from blackroad.client.client import Client

    parameters = inspect.signature(Client.submit).parameters.values()
    own = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert own == jobs.TAKEN


def test_a_refused_job_is_no_usage_of_others() -> None:
    with pytest.raises(UsageError, match="both given"):
        jobs.expand("command", "ls", ("ls",), "1", "-")
