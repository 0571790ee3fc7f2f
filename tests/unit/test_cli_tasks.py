"""status, result, logs, why, cancel, retry and tasks, against a fake client."""

from __future__ import annotations

import json
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackroad.bus.messages import End
from blackroad.cli import tasks, waiting
from blackroad.errors import StillRunning, TaskFailed, Unreachable
from tests.unit.cli_fake import TASK, FakeClient, blackroad, client, ended, status

__all__ = ["client"]

SHORT = TASK[:14]


@pytest.mark.parametrize("command", ["status", "result", "logs", "why", "cancel", "retry"])
@pytest.mark.parametrize("id_", ["nonsense", "k3f7x2ab", "k3f7x2ab-m5c", "k3f9x2a-m5c7", "-"])
def test_what_is_no_id_is_refused_before_anybody_is_asked(
    client: FakeClient, command: str, id_: str
) -> None:
    answer = blackroad(command, id_)
    assert answer.code == 2
    assert "is not a task id" in answer.err
    assert client.asked == []


# --- status -------------------------------------------------------------------------------------


def test_status_of_a_running_task(client: FakeClient) -> None:
    assert blackroad("status", SHORT) == (
        0,
        f"{TASK}  running\n"
        "  name      render\n"
        "  user      zoe\n"
        "  needs     cpu=1\n"
        "  kind      durable\n"
        "  node      shed (zxy2zxy2)\n"
        "  attempts  1\n",
        "",
    )


def test_status_tells_of_a_node_that_drains(client: FakeClient) -> None:
    [node] = status()["nodes"]
    client.known[TASK] = status(nodes=[{**node, "draining": True}])
    assert "  node      shed (zxy2zxy2), draining\n" in blackroad("status", SHORT).out


def test_status_of_a_queued_task(client: FakeClient) -> None:
    client.known[TASK] = status(
        state="queued",
        nodes=[],
        attempts=2,
        lost=1,
        crashed=1,
        waited_ms=61_000,
        deadline_in_ms=5000,
        pure=True,
        durable=False,
        priority=4,
        last="its node was lost",
    )
    told = blackroad("status", SHORT).out
    for line in (
        "kind      attached, pure",
        "priority  4",
        "waited    1 min 1 s",
        "deadline  in 5 s",
        "attempts  2 (1 lost, 1 crashed)",
        "last      its node was lost",
    ):
        assert f"  {line}\n" in told


def test_status_of_a_failed_task_says_what_it_raised(client: FakeClient) -> None:
    failed = ended("failed", reason="TaskFailed", exit_status=3, backend="numpy")
    client.known[TASK] = status(state="failed", ended=failed, reason="TaskFailed")
    client.results = [TaskFailed("ValueError: bad\nmore")]
    told = blackroad("status", TASK).out
    assert "  ran on       shed (zxy2zxy2)\n" in told
    assert "  took         1.5 s\n" in told
    assert "  computed by  numpy\n" in told
    assert "  error        ValueError: bad\n" in told
    assert "  exit status  3\n" in told


def test_status_as_json_is_what_the_daemon_said(client: FakeClient) -> None:
    assert json.loads(blackroad("status", TASK, "--json").out) == status()


# --- result -------------------------------------------------------------------------------------


def test_the_result_of_a_task(client: FakeClient, tmp_path: Path) -> None:
    client.results = [[1, 2], np.arange(30), np.arange(2)]
    assert blackroad("result", TASK) == (0, "[1, 2]\n", "")
    told = json.loads(blackroad("result", TASK, "--json").out)
    assert (told["id"], told["state"], told["result"]["max"]) == (TASK, "done", 29)
    file = tmp_path / "a.npy"
    assert blackroad("result", TASK, "-o", str(file)).out == ""
    assert np.load(file).tolist() == [0, 1]


def test_a_task_that_failed_is_exit_1(client: FakeClient) -> None:
    client.results = [TaskFailed("ValueError: bad"), CancelledError()]
    assert blackroad("result", TASK) == (1, "", "error: ValueError: bad\n")
    cancelled = blackroad("result", TASK)
    assert cancelled.code == 1
    assert cancelled.err.startswith(f"error: {TASK} was cancelled\n")


def test_a_task_that_has_not_ended_in_time(client: FakeClient) -> None:
    client.results = [TimeoutError("queued")]
    answer = blackroad("result", TASK, "--timeout", "0")
    assert answer.code == StillRunning.exit_code == 5
    assert answer.err.startswith(f"error: {TASK} has not ended within 0 ms\n")


def test_a_remote_timeout_is_a_failure_and_not_ours(client: FakeClient) -> None:
    class RemoteTimeout(TaskFailed, TimeoutError):
        """Made as the client makes them: a failure that is the built-in error, too."""

    client.results = [RemoteTimeout("TimeoutError: the page did not load")]
    answer = blackroad("result", TASK, "--timeout", "5")
    assert answer == (1, "", "error: TimeoutError: the page did not load\n")


def test_an_owner_that_was_never_reached_is_told_at_once(client: FakeClient) -> None:
    client.results = [Unreachable("`attic` is dead", hint="wait")]
    answer = blackroad("result", TASK)
    assert answer.code == 4
    assert answer.err == "error: `attic` is dead\n\nhint: wait\n"


def test_an_owner_that_was_reached_may_be_away_for_a_while(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "STEP_S", 0.0)
    away = Unreachable("`attic` is dead")
    client.results = [TimeoutError("running"), away, away, TimeoutError("queued"), away, 5]
    assert blackroad("result", TASK) == (0, "5\n", "")
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.0)
    client.results = [TimeoutError("running"), away, 5]
    assert blackroad("result", TASK).code == 4


# --- logs ---------------------------------------------------------------------------------------


def test_logs_are_printed_as_they_are(client: FakeClient) -> None:
    client.printed = "\x1b[31mred\x1b[0m no newline at the end"
    assert blackroad("logs", TASK) == (0, client.printed, "")


def test_nothing_kept_is_said(client: FakeClient) -> None:
    client.printed = ""
    assert blackroad("logs", TASK) == (0, "", "it has printed nothing yet\n")
    client.known[TASK] = status(state="done")
    answer = blackroad("logs", TASK)
    assert answer == (0, "", "nothing that this task printed is kept\n")


def told(text: str, offset: int, end: int, **changes: Any) -> dict[str, Any]:
    facts = {"text": text, "offset": offset, "end": end, "cut": 0, "node": "shed"}
    return {**facts, "state": "running", **changes}


def test_following_reads_on_until_the_end(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        told("ab", 0, 2),
        told("", 2, 2),
        told("cd", 2, 4, cut=3),
        # Another node began anew: what it printed is read from its start.
        told("", 4, 4, node="attic"),
        told("ABCDE", 0, 5, node="attic"),
        told("F", 5, 6, node="attic", state="done"),
    ]
    asked = []

    def logs(task: str, offset: int = 0) -> dict[str, Any]:
        asked.append(offset)
        return answers.pop(0)

    monkeypatch.setattr(client, "logs", logs)
    monkeypatch.setattr(waiting, "FOLLOW_S", 0.0)
    answer = blackroad("logs", "-f", TASK)
    assert answer == (0, "abcdABCDEF", "(3 bytes are not kept any more)\n")
    assert asked == [0, 2, 2, 4, 0, 5]


def test_following_as_json_is_an_object_a_line(client: FakeClient) -> None:
    client.known[TASK] = status(state="done")
    lines = blackroad("logs", "-f", TASK, "--json").out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one\ntwo\n"]


# --- why ----------------------------------------------------------------------------------------


def test_why_names_the_reason_and_what_each_node_lacks(client: FakeClient) -> None:
    assert blackroad("why", TASK) == (
        0,
        f"{TASK}  queued\n"
        "  because      no present node can run it\n"
        "  needs        cpu=1 gpu=1\n"
        "  ahead of it  2 tasks of its kind\n"
        "  coordinator  attic\n"
        "\n"
        "node      held by  need  asked  there  slots used\n"
        "attic     lacks    gpu   1      none   none\n"
        "zxy2zxy2  unknown                      none\n",
        "",
    )


# --- cancel -------------------------------------------------------------------------------------


def test_cancel_asks_for_each_and_tells_of_those_that_ended(client: FakeClient) -> None:
    done = TASK.replace("m5c7", "n5c7")
    client.known[done] = status(id=done, state="done", ended=ended("done"))
    answer = blackroad("cancel", SHORT, done, "k3f7x2ab-zzzz")
    assert answer.code == 2
    assert answer.out == f"{TASK}  cancelling\n{done}  done\n"
    assert "no task k3f7x2ab-zzzz is known here" in answer.err
    assert [one for one in client.asked if one[0] == "cancel"] == [("cancel", SHORT)]


def test_cancel_as_json(client: FakeClient) -> None:
    answer = blackroad("cancel", "--json", TASK, "k3f7x2ab-zzzz")
    rows = json.loads(answer.out)["tasks"]
    assert answer.code == 2
    assert rows[0] == {"id": TASK, "state": "cancelling"}
    assert rows[1]["error"]["type"] == "UnknownTask"


# --- retry --------------------------------------------------------------------------------------


def test_retry_prints_the_new_ids(client: FakeClient) -> None:
    other = TASK.replace("m5c7", "n5c7")
    client.known[other] = status(id=other, state="failed", ended=ended("failed"))
    assert blackroad("retry", TASK, other) == (0, "k3f7x2ab-againm5c7\nk3f7x2ab-againn5c7\n", "")
    answer = blackroad("retry", TASK, "k3f7x2ab-zzzz", "--json")
    assert answer.code == 2
    rows = json.loads(answer.out)["tasks"]
    assert rows[0] == {"id": TASK, "new": "k3f7x2ab-againm5c7"}
    assert rows[1]["error"]["type"] == "UnknownTask"


def test_retry_tells_what_could_not_be_tried_again(client: FakeClient) -> None:
    answer = blackroad("retry", "k3f7x2ab-zzzz", TASK)
    assert (answer.code, answer.out) == (2, "k3f7x2ab-againm5c7\n")
    assert "no task k3f7x2ab-zzzz is known here" in answer.err


# --- tasks --------------------------------------------------------------------------------------


def test_the_list_of_tasks(client: FakeClient) -> None:
    two = TASK.replace("m5c7", "n5c7")
    client.known[two] = status(id=two, state="queued", nodes=[], attempts=0, waited_ms=2000)
    three = TASK.replace("m5c7", "p5c7")
    crashed = ended("failed", reason="WorkerCrashed")
    client.known[three] = status(id=three, state="failed", ended=crashed, reason="WorkerCrashed")
    answer = blackroad("tasks")
    assert answer.code == 0
    assert answer.out == (
        "id                                   state    name    owner  node  attempts\n"
        f"{TASK}  running  render  attic  shed  1\n"
        f"{two}  queued   render  attic                  for 2 s\n"
        f"{three}  failed   render  attic  shed  1         WorkerCrashed\n"
        "\n"
        "1 queued, 1 running, 1 failed\n"
    )


def test_options_of_tasks(client: FakeClient) -> None:
    assert blackroad("tasks", "--state", "queued", "--limit", "5", "--ids").out == f"{TASK}\n"
    assert client.asked == [("tasks", "queued", 5)]
    assert json.loads(blackroad("tasks", "--json").out)["counts"] == {"running": 1}


def test_a_short_list_says_that_it_is_short(client: FakeClient) -> None:
    two = TASK.replace("m5c7", "n5c7")
    client.known[two] = status(id=two)
    assert "the newest 1 are shown" in blackroad("tasks", "--limit", "1").err


def test_no_tasks(client: FakeClient) -> None:
    client.known.clear()
    assert blackroad("tasks") == (0, "no tasks\n", "")


def test_a_state_that_is_none(client: FakeClient) -> None:
    answer = blackroad("tasks", "--state", "falied")
    assert answer.code == 2
    assert "did you mean `failed`?" in answer.err


def test_every_end_is_a_state() -> None:
    ends = tuple(end.name.lower() for end in End)
    assert ends == waiting.ENDED == tasks.STATES[-len(ends) :]
