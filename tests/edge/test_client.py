"""Programs and the mesh: what goes out, what comes back, and what goes wrong on the way."""

from __future__ import annotations

import collections
import gc
import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import zmq

from blackroad import Client, Needs
from blackroad.client.client import ObjectRef
from blackroad.errors import (
    KernelInputError,
    NoDaemon,
    NotPicklable,
    ResultNotPicklable,
    TaskFailed,
    TaskTimeout,
    UnknownKernel,
    Unplaceable,
    UsageError,
    WorkerCrashed,
)
from tests.edge.meshes import Mesh, mark_and_wait, until, where, with_children

pytestmark = pytest.mark.edge

WAIT_S = 60.0
NODES = ("one", "two")
There = tuple[str, Path]


def square(number: int) -> int:
    return number * number


def fails(kind: str) -> None:
    import builtins

    raise getattr(builtins, kind)("the shelf is empty")


def dies() -> None:
    os._exit(7)


def lists_itself(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    os._exit(7)


# --- work ---------------------------------------------------------------------------------------


def test_a_call_with_words_and_keywords(client: Client) -> None:
    assert client.submit(pow, 7, 3, mod=5).result(WAIT_S) == 3
    assert client.submit("math:hypot", 3, 4).result(WAIT_S) == 5.0


def test_a_map_keeps_its_order(client: Client) -> None:
    assert list(client.map(square, range(300))) == [n * n for n in range(300)]


def test_a_map_of_several_lists_and_without_order(client: Client) -> None:
    assert list(client.map(pow, [2, 3, 4], [5, 2, 3], chunksize=2)) == [32, 9, 64]
    found = list(client.map(square, range(50), ordered=False, chunksize=3))
    assert collections.Counter(found) == collections.Counter(n * n for n in range(50))


def test_a_map_of_nothing(client: Client) -> None:
    assert list(client.map(square, [])) == []


def test_a_map_raises_where_the_function_did(client: Client) -> None:
    results = client.map(lambda n: 10 // (3 - n), range(6), chunksize=1)
    assert [next(results) for _ in range(3)] == [3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_kernel_is_put_together_again(client: Client) -> None:
    whole = client.kernel("mandelbrot", width=96, height=64, max_iter=50).result(WAIT_S)
    assert whole.shape == (64, 96)
    alone = client.kernel_task("mandelbrot", {"width": 96, "height": 64, "max_iter": 50})
    np.testing.assert_array_equal(whole, alone.result(WAIT_S))


def test_a_wrong_kernel_is_refused_here(client: Client) -> None:
    with pytest.raises(UnknownKernel):
        client.kernel("mandelbread")
    with pytest.raises(KernelInputError):
        client.kernel("mandelbrot", wide=4)


def test_a_program_runs_and_its_words_are_kept(client: Client) -> None:
    words = ["sh", "-c", "echo $GREETING; cat; exit 3"]
    future = client.run(words, env={"GREETING": "good day"}, stdin=b"from here", durable=True)
    with pytest.raises(TaskFailed) as caught:
        future.result(WAIT_S)
    assert caught.value.exit_status == 3
    text = until(lambda: client.logs(future.task_id)["text"], "output")
    assert text == "good day\nfrom here"
    assert client.run(["true"]).result(WAIT_S) == 0


@pytest.mark.parametrize("node", NODES)
def test_a_task_goes_where_it_is_sent(client: Client, node: str) -> None:
    assert client.submit(where, needs=Needs(node=node)).result(WAIT_S) == node


# --- large things -------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_large_arguments_and_results_go_both_ways(client: Client, node: str) -> None:
    given = np.arange(5_000_000, dtype=np.uint8)

    def four_times(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, array, array, array[::-1]])

    found = client.submit(four_times, given, needs=Needs(node=node)).result(WAIT_S)
    assert found.nbytes == 20_000_000
    np.testing.assert_array_equal(found[:5_000_000], given)
    np.testing.assert_array_equal(found[15_000_000:], given[::-1])


def test_values_are_put_once_and_got_from_anywhere(pair: Mesh, client: Client) -> None:
    value = {"picture": np.ones((700, 900)), "words": ["a", "b"]}
    ref = client.put(value)
    with pair.daemons[1].client() as other:
        assert other.node_id != client.node_id
        found = other.get(ref)
        assert found["words"] == ["a", "b"]
        np.testing.assert_array_equal(found["picture"], value["picture"])
    assert client.get(ref)["words"] == ["a", "b"]
    assert client.get(client.put(5)) == 5


def test_what_nobody_holds_cannot_be_got(pair: Mesh, client: Client) -> None:
    lost = ObjectRef(b"\x07" * 32, 1_000, client.node_id)
    with pytest.raises(Exception, match=r"held|gone|holder"):
        client.get(lost)
    with pair.daemons[1].client() as other, pytest.raises(Exception, match=r"holder|held"):
        other.get(lost)


def test_many_large_arguments_need_few_descriptors(mesh: Mesh) -> None:
    daemon = mesh.add("narrow")
    import resource

    with daemon.client() as client:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (200, 200))
        arguments = [np.full(70_000, n, dtype=np.uint8) for n in range(250)]
        futures = [client.submit(lambda one: int(one[0]), one) for one in arguments]
        assert [future.result(WAIT_S) for future in futures] == list(range(250))


# --- what a task raises -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ValueError", "KeyError", "ZeroDivisionError", "TimeoutError"])
def test_a_built_in_error_is_caught_as_what_it_is(client: Client, kind: str) -> None:
    import builtins

    with pytest.raises(getattr(builtins, kind)) as caught:
        client.submit(fails, kind).result(WAIT_S)
    error = caught.value
    assert isinstance(error, TaskFailed)
    assert error.type_name == kind
    assert "the shelf is empty" in error.text
    assert "in fails" in error.traceback_text
    assert error.task_id


def test_an_error_of_ones_own_comes_as_text(client: Client) -> None:
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def raises() -> None:
        raise OddError(1, 2)

    with pytest.raises(TaskFailed) as caught:
        client.submit(raises).result(WAIT_S)
    assert caught.value.type_name.endswith("OddError")
    assert caught.value.text == "1 and 2"


def test_what_cannot_travel_is_refused_before_it_leaves(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklable) as caught:
        client.submit(lambda: lock)
    assert "lock" in caught.value.message
    with pytest.raises(NotPicklable):
        client.submit(square, lock)
    with pytest.raises(NotPicklable):
        client.submit(42)  # type: ignore[arg-type]


def test_a_result_that_cannot_travel_is_told_apart(client: Client) -> None:
    with pytest.raises(ResultNotPicklable) as caught:
        client.submit(lambda: threading.Lock()).result(WAIT_S)
    assert "lock" in str(caught.value)


def test_a_function_the_nodes_do_not_have(client: Client) -> None:
    with pytest.raises(TaskFailed) as caught:
        client.submit("no.such.module:function").result(WAIT_S)
    assert "no" in str(caught.value)


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_task_whose_process_dies_is_started_three_times(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    with pytest.raises(WorkerCrashed) as caught:
        client.submit(lists_itself, str(path)).result(WAIT_S)
    assert len(set(path.read_text().split())) == 3
    assert "3 times" in caught.value.message


def test_a_dying_task_disturbs_no_other(client: Client, there: There) -> None:
    here, go = there
    bystander = client.submit(mark_and_wait, here, str(go))
    until(lambda: os.path.exists(here), "the bystander's start")
    with pytest.raises(WorkerCrashed):
        client.submit(dies).result(WAIT_S)
    go.touch()
    bystander.result(WAIT_S)
    assert len(Path(here).read_text().split()) == 1, "it was started once"


def test_retries_are_counted(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "tries")

    def third_time_lucky() -> int:
        with open(path, "a") as file:
            file.write("x")
        tries = os.path.getsize(path)
        if tries < 3:
            raise OSError(f"try {tries}")
        return tries

    assert client.submit(third_time_lucky, retries=2).result(WAIT_S) == 3
    os.unlink(path)
    with pytest.raises(OSError, match="try 2"):
        client.submit(third_time_lucky, retries=1).result(WAIT_S)
    assert os.path.getsize(path) == 2


def test_an_attempt_that_takes_too_long_ends(client: Client, there: There) -> None:
    here, go = there
    with pytest.raises(TaskTimeout):
        client.submit(mark_and_wait, here, str(go), timeout="0.5s").result(WAIT_S)
    pid = int(Path(here).read_text())
    assert not os.path.exists(f"/proc/{pid}")


def test_cancelling_ends_the_whole_family(pair: Mesh, client: Client, there: There) -> None:
    here, go = there
    idle = set(pair.processes())
    future = client.submit(with_children, here, str(go))
    until(lambda: os.path.exists(here), "the start")
    family = until(
        lambda: {
            pid: line
            for pid, line in pair.processes().items()
            if pid not in idle and "sleep 600" in line
        },
        "the grandchild",
    )
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    # Told only when all of them are gone: nothing is waited for here.
    left = pair.processes()
    assert not any(pid in left for pid in family)
    assert int(Path(here).read_text()) not in left
    assert not future.cancel()


def test_a_queued_task_is_cancelled_without_having_run(client: Client, there: There) -> None:
    here, go = there
    needs = Needs(node="one", cpu=2)
    first = client.submit(mark_and_wait, here, str(go), needs=needs)
    until(lambda: os.path.exists(here), "the start")
    queued = client.submit(mark_and_wait, here + "-2", str(go), needs=needs)
    queued.cancel()
    with pytest.raises(CancelledError):
        queued.result(WAIT_S)
    go.touch()
    first.result(WAIT_S)
    assert not os.path.exists(here + "-2")


def test_what_no_node_has_is_said_at_once(client: Client) -> None:
    with pytest.raises(Unplaceable) as caught:
        client.submit(square, 2, needs=Needs(cpu=900)).result(WAIT_S)
    assert caught.value.rows
    assert any("900" in str(row) for row in caught.value.rows)
    assert caught.value.nodes_answered == 2
    for needs in (Needs(node="attic"), Needs(arch="s390x"), Needs(labels={"colour": "blue"})):
        with pytest.raises(Unplaceable):
            client.submit(square, 2, needs=needs).result(WAIT_S)


def test_a_task_that_waits_for_its_node_says_why(client: Client) -> None:
    future = client.submit(square, 2, needs=Needs(node="attic"), wait_for_node=True)
    why = until(lambda: client.why(future.task_id), "an answer")
    assert why["state"] == "queued"
    assert why["reason"]
    assert not future.done()
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 500},
        {"retries": -1},
        {"lease": "1s"},
        {"needs": "gpu"},
        {"timeout": "soon"},
    ],
)
def test_wrong_options_are_refused_here(client: Client, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        client.submit(square, 2, **options)


def test_unknown_options_are_refused_here(client: Client) -> None:
    with pytest.raises(UsageError, match="colour"):
        list(client.map(square, [1], colour="red"))
    with pytest.raises(UsageError):
        client.map(square, [1], chunksize=0)
    with pytest.raises(UsageError):
        client.run("ls -l")


# --- questions ----------------------------------------------------------------------------------


def test_a_task_can_be_followed_by_its_id(pair: Mesh, client: Client, there: There) -> None:
    here, go = there
    future = client.submit(mark_and_wait, here, str(go), needs=Needs(node="two"), durable=True)
    with pair.daemons[1].client() as other:
        until(lambda: other.status(future.task_id)["state"] == "running", "running")
        assert [row["name"] for row in other.status(future.task_id)["nodes"]] == ["two"]
        assert other.tasks(state="running")["counts"]["running"] >= 1
        go.touch()
        other.outcome(future.task_id, timeout=WAIT_S)
        assert other.status(future.task_id)["state"] == "done"


def test_an_outcome_comes_to_whoever_knows_the_id(pair: Mesh, client: Client) -> None:
    good = client.submit(lambda: np.arange(200_000), durable=True)
    bad = client.submit(fails, "ValueError", durable=True)
    for one in (good, bad):
        one.exception(WAIT_S)
    with pair.daemons[1].client() as other:
        np.testing.assert_array_equal(other.outcome(good.task_id, WAIT_S), np.arange(200_000))
        with pytest.raises(ValueError, match="the shelf is empty"):
            other.outcome(bad.task_id, WAIT_S)


def test_a_task_may_be_cancelled_by_its_id(pair: Mesh, client: Client, there: There) -> None:
    here, go = there
    future = client.submit(mark_and_wait, here, str(go))
    until(lambda: os.path.exists(here), "the start")
    with pair.daemons[1].client() as other:
        other.cancel(future.task_id)
    with pytest.raises(CancelledError):
        future.result(WAIT_S)


def test_waiting_for_an_outcome_has_an_end(client: Client, there: There) -> None:
    here, go = there
    future = client.submit(mark_and_wait, here, str(go))
    until(lambda: os.path.exists(here), "the start")
    with pytest.raises(TimeoutError):
        client.outcome(future.task_id, timeout=0.1)
    go.touch()
    future.result(WAIT_S)


# --- sessions -----------------------------------------------------------------------------------


def test_nobody_there_is_said_within_its_time(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon) as caught:
        Client(f"ipc://{tmp_path}/none.sock", connect_timeout=0.2)
    assert "none.sock" in str(caught.value.because)
    assert "blackroad up" in caught.value.hint
    with pytest.raises(NoDaemon):
        Client("tcp://127.0.0.1:1", connect_timeout=0.2)
    with pytest.raises(NoDaemon):
        Client("no address at all", connect_timeout=0.2)


def test_nobody_there_leaves_nothing_to_the_collector() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for endpoint in ("no address at all", "tcp://127.0.0.1:1") * 3:
        with pytest.raises(NoDaemon):
            Client(endpoint, connect_timeout=0.05)
    # Sockets that nobody closed would stop the whole program when they are collected.
    assert not [one for one in gc.get_objects() if isinstance(one, zmq.Socket) and not one.closed]
    until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, "descriptors given back")


def test_a_client_over_tcp(pair: Mesh) -> None:
    endpoint = pair.daemons[0].facts()["endpoints"][0]
    with Client(endpoint, connect_timeout=WAIT_S) as client:
        assert client.node_name == "one"
        assert client.submit(square, 4).result(WAIT_S) == 16


def test_leaving_ends_what_is_attached(pair: Mesh, there: There) -> None:
    here, go = there
    with pair.daemons[0].client() as client:
        future = client.submit(mark_and_wait, here, str(go))
        until(lambda: os.path.exists(here), "the start")
    with pytest.raises(NoDaemon):
        future.result(WAIT_S)
    pid = int(Path(here).read_text())
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the task")


def test_two_programs_at_once(pair: Mesh) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with pair.daemons[number % 2].client() as client:
            found[number] = list(client.map(square, range(100)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(WAIT_S)
    assert found == {number: [n * n for n in range(100)] for number in range(4)}
