"""A client without a mesh: it answers what a test put in, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import click.testing
import pytest

from blackroad.cli.main import main
from blackroad.client.futures import GatheredFuture
from blackroad.errors import BlackroadError, UnknownTask

NODE = "k3f7x2ab"
OTHER = "zxy2zxy2"
TASK = f"{NODE}-m5c7qaaaaaaaaaaaaaaaaaaaaa"


class Answer(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


def blackroad(*words: str, stdin: str | None = None, **env: str | None) -> Answer:
    """Run the program in this process, without a terminal, 80 columns wide."""
    result = click.testing.CliRunner().invoke(
        main, list(words), input=stdin, env={"COLUMNS": "80", **env}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Answer(result.exit_code, result.stdout, result.stderr)


class FakeFuture(Future[Any]):
    """A task of the fake: accepted and ended before anybody asks."""

    def __init__(self, task_id: str, outcome: object, refusal: BlackroadError | None) -> None:
        super().__init__()
        self.task_id = task_id
        self.name = "task"
        self.ended = None
        self.accepted: Future[None] = Future()
        if refusal is not None:
            self.accepted.set_exception(refusal)
            self.set_exception(refusal)
            return
        self.accepted.set_result(None)
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


class FakeClient:
    """Has the methods of `Client` that commands use; `asked` lists the calls in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.results: list[object] = []
        self.refusals: list[BlackroadError | None] = []
        self.rows = [node_row("attic", NODE, coordinator=True), node_row("shed", OTHER)]
        self.known: dict[str, dict[str, Any]] = {TASK: status()}
        self.printed = "one\ntwo\n"
        self.closed = 0
        self._serial = 0

    def close(self) -> None:
        self.closed += 1

    # --- work -------------------------------------------------------------------------------------

    def _future(self) -> FakeFuture:
        number, self._serial = self._serial, self._serial + 1
        outcome = self.results[number] if number < len(self.results) else None
        refusal = self.refusals[number] if number < len(self.refusals) else None
        return FakeFuture(f"{NODE}-task{'abcdefghij'[number]}", outcome, refusal)

    def submit(self, target: str, *args: Any, **options: Any) -> FakeFuture:
        self.asked.append(("submit", target, args, options))
        return self._future()

    def run(self, argv: Sequence[str], **options: Any) -> FakeFuture:
        self.asked.append(("run", tuple(argv), options))
        return self._future()

    def kernel_task(
        self, name: str, params: Mapping[str, Any], *, options: Mapping[str, Any]
    ) -> FakeFuture:
        self.asked.append(("kernel_task", name, dict(params), dict(options)))
        return self._future()

    def kernel(self, name: str, *, options: Mapping[str, Any], **params: Any) -> GatheredFuture:
        self.asked.append(("kernel", name, params, dict(options)))
        parts: Any = [self._future()]
        return GatheredFuture(parts, lambda found: found[0], name)

    # --- questions --------------------------------------------------------------------------------

    def nodes(self) -> dict[str, Any]:
        self.asked.append(("nodes",))
        return {
            "schema": 1,
            "asked": NODE,
            "coordinator": NODE,
            "epoch": [3, NODE],
            "nodes": self.rows,
        }

    def tasks(self, state: str = "", limit: int = 100) -> dict[str, Any]:
        self.asked.append(("tasks", state, limit))
        listed = [{**task, "owner": "attic"} for task in self.known.values()]
        counts: dict[str, int] = {}
        for task in listed:
            counts[task["state"]] = counts.get(task["state"], 0) + 1
        return {"counts": counts, "tasks": listed[:limit], "silent": []}

    def status(self, task: str) -> dict[str, Any]:
        self.asked.append(("status", task))
        for id_, told in self.known.items():
            if id_.startswith(task):
                return told
        raise UnknownTask(f"no task {task} is known here", hint="`blackroad tasks` lists them")

    def why(self, task: str) -> dict[str, Any]:
        self.asked.append(("why", task))
        return why()

    def logs(self, task: str, offset: int = 0) -> dict[str, Any]:
        self.asked.append(("logs", task, offset))
        state = self.known[task]["state"] if task in self.known else "done"
        text = self.printed[offset:]
        end = len(self.printed)
        return {"text": text, "offset": offset, "end": end, "cut": 0, "node": "a", "state": state}

    def outcome(self, task: str, timeout: float | None = None) -> Any:
        self.asked.append(("outcome", task))
        outcome = self.results.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def cancel(self, task: str) -> None:
        self.asked.append(("cancel", task))

    # --- orders -----------------------------------------------------------------------------------

    def retry(self, task: str) -> str:
        self.asked.append(("retry", task))
        self.status(task)
        return f"{NODE}-again{task[9:13]}"

    def drain(self, node: str = "") -> dict[str, Any]:
        self.asked.append(("drain", node))
        return node_told(draining=True, running=2)

    def drained(self, node: str = "", timeout: float | None = None) -> dict[str, Any]:
        self.asked.append(("drained", node, timeout))
        outcome = self.results.pop(0) if self.results else node_told(draining=True)
        if isinstance(outcome, BaseException):
            raise outcome
        assert isinstance(outcome, dict)
        return outcome

    def resume(self, node: str = "") -> dict[str, Any]:
        self.asked.append(("resume", node))
        return node_told(running=1)


# --- answers of a mesh --------------------------------------------------------------------------


def node_row(name: str, id_: str, **changes: Any) -> dict[str, Any]:
    """One node as `Client.nodes` tells it."""
    return {
        "id": id_,
        "node": id_ + "a" * 18,
        "name": name,
        "state": "alive",
        "silent_ms": 0,
        "incarnation": 1,
        "coordinator": False,
        "follows": NODE,
        "arch": "aarch64",
        "python": "3.11",
        "cores": 4,
        "slots": 4,
        "running": 1,
        "waiting": 0,
        "done": 12,
        "memory_bytes": 8 * 2**30,
        "free_memory_bytes": 6 * 2**30,
        "gpus": [],
        "devices": [],
        "notes": [],
        "labels": {},
        "speed": 1.0,
        "temperature_c": 0,
        "throttled": False,
        "load_percent": 25,
        "loop_lag_ms": 0,
        "heartbeat_ms": 250,
        **changes,
    }


def node_told(**changes: Any) -> dict[str, Any]:
    """What a node says of itself to `Client.drain`, among much else; idle, unless changed."""
    return {
        "id": NODE,
        "name": "attic",
        "incarnation": 1,
        "draining": False,
        "running": 0,
        "waiting": 0,
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    """A task as `Client.status` tells it; running, unless changed."""
    return {
        "id": TASK,
        "state": "running",
        "name": "render",
        "user": "zoe",
        "priority": 0,
        "durable": True,
        "pure": False,
        "attempts": 1,
        "lost": 0,
        "crashed": 0,
        "last": "",
        "waited_ms": 0,
        "deadline_in_ms": None,
        "nodes": [{"id": OTHER, "node": OTHER + "a" * 18, "name": "shed"}],
        "reason": "",
        "needs": "cpu=1",
        "ended": None,
        **changes,
    }


def ended(end: str, **changes: Any) -> dict[str, Any]:
    """How a task ended, as `Client.status` tells it."""
    return {
        "end": end,
        "reason": "",
        "run_us": 1_500_000,
        "exit_status": None,
        "backend": "",
        "type": "",
        "text": "",
        "attempts": 1,
        **changes,
    }


def why() -> dict[str, Any]:
    """What `Client.why` tells of a task that asks for a GPU."""
    return {
        "id": TASK,
        "state": "queued",
        "reason": "no present node can run it",
        "holds": [["nowhere", "no present node can run it"]],
        "needs": "cpu=1 gpu=1",
        "waited_ms": 0,
        "ahead": 2,
        "coordinator": NODE,
        "last": "",
        "pool": None,
        "nodes": [
            {
                "id": NODE,
                "node": NODE,
                "name": "attic",
                "rule": "lacks",
                "missing": [["gpu", "1", "none", "missing"]],
                "state": "alive",
                "slots_here": 0,
                "in_use": 0,
                "waiting": 0,
                "backing_off_ms": 0,
            },
            {
                "id": OTHER,
                "node": OTHER,
                "name": OTHER,
                "rule": "unknown",
                "missing": [],
                "state": "unknown",
            },
        ],
    }


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClient]:
    """A fake in place of every session; each is closed as often as it was opened."""
    fake = FakeClient()
    opened = []

    def connect(timeout_s: float | None = None) -> FakeClient:
        opened.append(timeout_s)
        return fake

    monkeypatch.setattr("blackroad.cli.commands.connect", connect)
    yield fake
    assert fake.closed == len(opened)
