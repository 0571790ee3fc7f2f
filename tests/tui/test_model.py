"""What the view knows: speeds from differences, tasks of all owners, and JSON for programs."""

from __future__ import annotations

import pytest

from blackroad.glance import ClassRow
from blackroad.ids import short, text32
from blackroad.tui import banner, details, sheets, words
from blackroad.tui.model import Happening, Model, happening
from tests.tui.fakes import beat, node_id, node_row, status_row, task_row, view, work


def clock(at_ms: int) -> str:
    return f"{at_ms}"


def text(model: Model, columns: int = 80) -> list[str]:
    return ["".join(part for part, _ in line) for line in banner.lines(model, columns, "12:00:00")]


# --- speeds -------------------------------------------------------------------------------------


def test_a_speed_is_what_was_done_between_two_heartbeats() -> None:
    model = Model()
    model.take_mesh(view(beat(0, done=100), beat(1, done=7, silent_ms=900)), 10_000)
    assert model.per_s() == 0
    # Half a second lies between the two heartbeats, and a second between the looks.
    model.take_mesh(view(beat(0, done=600), beat(1, done=57, silent_ms=1_400)), 11_000)
    assert model.traces[node_id(0)].per_s == 500
    assert model.traces[node_id(1)].per_s == 100
    assert model.per_s() == 600


def test_between_two_heartbeats_the_speed_stays() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1, done=0)), 1_000)
    model.take_mesh(view(beat(0), beat(1, done=80)), 2_000)
    model.take_mesh(view(beat(0), beat(1, done=80, silent_ms=500)), 2_500)
    assert model.traces[node_id(1)].per_s == 80


def test_a_new_life_is_no_negative_speed() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1, done=5_000)), 1_000)
    model.take_mesh(view(beat(0), beat(1, done=3, incarnation=4)), 2_000)
    assert model.per_s() == 0
    model.take_mesh(view(beat(0), beat(1, done=13, incarnation=4)), 3_000)
    assert model.per_s() == 10


def test_who_is_dead_does_nothing() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1, done=0)), 1_000)
    model.take_mesh(view(beat(0), beat(1, done=50)), 2_000)
    dead = beat(1, done=50, state="dead", silent_ms=9_000)
    model.take_mesh(view(beat(0), dead), 11_000)
    assert model.per_s() == 0
    model.take_mesh(view(beat(0)), 12_000)
    assert set(model.traces) == {node_id(0)}


def test_another_daemon_begins_anew() -> None:
    model = Model()
    model.take_mesh(view(beat(0, done=0), beat(1, done=0)), 1_000)
    model.take_mesh(view(beat(1, done=999), beat(0, done=999)), 1_200)
    assert model.per_s() == 0


# --- tasks --------------------------------------------------------------------------------------


def test_counts_are_of_all_owners() -> None:
    model = Model()
    model.take_mesh(view(beat(0, owned=3), beat(1, owned=2), beat(2, owned=40)), 1_000)
    model.take_work(work(0, open={"queued": 2, "running": 1}, ended={"done": 10, "failed": 1}))
    model.take_work(work(1, open={"running": 2}, ended={"done": 5}))
    assert model.counts() == {"running": 3, "queued": 2, "failed": 1, "done": 15, "untold": 40}
    assert list(model.counts()) == ["running", "queued", "failed", "done", "untold"]


@pytest.mark.parametrize("changes", [{"state": "dead"}, {"incarnation": 4}])
def test_what_an_owner_said_goes_with_its_life(changes: dict[str, object]) -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1)), 1_000)
    model.take_work(work(1, task_row(1)))
    assert len(model.tasks()) == 1
    model.take_mesh(view(beat(0), beat(1, **changes)), 2_000)
    assert model.tasks() == []
    assert model.counts() == {}


def test_tasks_that_run_stand_first() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1)), 1_000)
    model.take_work(work(0, task_row(1, "done"), task_row(2, "queued"), task_row(3, "running")))
    model.take_work(work(1, task_row(4, "running", age_ms=90_000)))
    states = [(one.row.state, one.owner) for one in model.tasks()]
    assert states == [
        ("running", "shed"),
        ("running", "attic"),
        ("queued", "attic"),
        ("done", "attic"),
    ]


def test_queues_by_class_user_and_owner() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1)), 1_000)
    render, merge = ClassRow("render", "ann", 2, 5, 1, 2, 1000, 7_000), ("merge", "bob", 0, 9)
    other = ClassRow(*merge, 0, 0, 3000, 100)
    model.take_work(work(0, classes=(render, other)))
    model.take_work(work(1, classes=(render,)))

    def rows(by: str) -> list[tuple[str, str, str, str, str]]:
        made = sheets.queues(model, sheets.ORDERS["queues"], by=by)
        columns = (0, 1, 3, 5, 8)
        return [tuple(one.cells[at].text for at in columns) for one in made.rows]

    assert rows("class") == [
        ("merge", "bob", "9", "0", "attic"),
        ("render", "ann", "5", "2", "attic"),
        ("render", "ann", "5", "2", "shed"),
    ]
    assert rows("user") == [
        ("2 classes", "ann", "10", "4", ""),
        ("merge", "bob", "9", "0", "attic"),
    ]
    assert rows("owner") == [
        ("2 classes", "", "14", "2", "attic"),
        ("render", "ann", "5", "2", "shed"),
    ]


def test_of_a_function_the_end_is_shown_and_all_of_it_found() -> None:
    model = Model()
    model.take_mesh(view(beat(0)), 1)
    names = ("laboratory.pictures.edges:find_edges", "ffmpeg -i http://a/very/long/name.mkv", "x")
    model.take_work(work(0, *(task_row(at, name=name) for at, name in enumerate(names))))
    shown = sheets.tasks(model, sheets.ORDERS["tasks"])
    found = {row.cells[2].text for row in shown.rows}
    assert found == {"…pictures.edges:find_edges", names[1], "x"}
    assert len(sheets.tasks(model, sheets.ORDERS["tasks"], "laboratory").rows) == 1


# --- events -------------------------------------------------------------------------------------


def event(at: int, **changes: object) -> Happening:
    fields = {"id": f"n-1-{at}", "at_ms": at, "host": "attic", "name": "node.joined", **changes}
    return happening({"severity": "info", "cause": "", "facts": {"a": 1, "b": "x y"}, **fields})


def test_events_are_shown_once_in_the_order_of_their_time() -> None:
    model = Model()
    model.take_happenings([event(30), event(10)])
    model.take_happenings([event(20), event(30)])
    shown = sheets.events(model, sheets.ORDERS["events"], "", clock)
    assert [row.cells[0].text for row in shown.rows] == ["30", "20", "10"]
    assert shown.rows[0].cells[5].text == "a=1 b=x y"


def test_what_all_nodes_see_is_one_line() -> None:
    model = Model()
    for at, host in enumerate(("attic", "shed", "loft")):
        same = {"host": host, "name": "node.suspected", "cause": "k3f7-2"}
        model.take_happenings([event(1_000 * at, **same, id=f"{host}-1-1")])
    model.take_happenings([event(60_000, name="node.suspected", cause="k3f7-2", id="later")])
    model.take_happenings([event(-1, name="task.failed", cause="t", id=f"{n}") for n in (1, 2)])
    shown = sheets.events(model, sheets.ORDERS["events"], "", clock)
    told = [(row.cells[3].text, row.cells[2].text, row.cells[5].text) for row in shown.rows]
    facts = "a=1 b=x y"
    assert told == [
        ("node.suspected", "attic", facts),
        ("node.suspected", "attic", f"{facts} (seen by 3 nodes)"),
        ("task.failed", "attic", facts),
        ("task.failed", "attic", facts),
    ]


def test_the_newest_few_are_chosen_before_they_are_drawn() -> None:
    model = Model()
    model.take_happenings(event(at) for at in range(2_500))
    assert len(model.happenings) == 1_000
    shown = sheets.events(model, sheets.ORDERS["events"], "", clock, limit=2)
    assert [row.cells[0].text for row in shown.rows] == ["2499", "2498"]


def test_a_cause_is_found_by_all_of_it() -> None:
    task = "k3f7x2ab-" + "m5c7q" * 5
    model = Model()
    model.take_happenings([event(1, cause=task), event(2)])
    found = sheets.events(model, sheets.ORDERS["events"], task, clock)
    assert [row.key for row in found.rows] == ["n-1-1"]
    assert found.rows[0].cells[4].text == f"{task[:8]}…{task[-8:]}"


def test_nothing_that_others_say_steers_the_terminal() -> None:
    hostile = "x\x1b]0;pwned\x07\n' ; rm -rf /\u202e"
    model = Model()
    model.take_mesh(view(beat(0, name=hostile, arch=hostile, gpus=(hostile,))), 1)
    model.take_work(
        work(0, task_row(1, name=hostile, user=hostile, note=hostile), open={hostile: 1})
    )
    model.take_happenings([event(1, host=hostile, cause=hostile, facts={hostile: hostile})])
    from blackroad.tui.sheet import layout, row_line

    made = [
        sheets.nodes(model, sheets.ORDERS["nodes"]),
        sheets.tasks(model, sheets.ORDERS["tasks"]),
        sheets.queues(model, sheets.ORDERS["queues"]),
        sheets.events(model, sheets.ORDERS["events"], "", clock),
    ]
    drawn = [
        part for one in made for row in one.rows for part, _ in row_line(one, layout(one, 200), row)
    ]
    drawn += [part for line in banner.lines(model, 200, "12:00:00") for part, _ in line]
    drawn += details.node({**node_row(), "name": hostile, "labels": {hostile: hostile}})
    drawn += details.task(status_row("t", name=hostile, last=hostile))
    assert len(drawn) > 40
    assert all(part.isprintable() for part in drawn)


# --- the lines at the top -----------------------------------------------------------------------


def test_banner() -> None:
    model = Model()
    states = [beat(0), beat(1, state="suspect"), beat(2, state="dead"), beat(3, astray=True)]
    model.take_mesh(view(*states, epoch=7), 1_000)
    model.take_work(work(0, open={"running": 2, "queued": 1_200_000}, ended={"done": 9}))
    who, used, tasks = text(model, 120)
    assert who.startswith(" blackroad  3 nodes, 1 dead, 1 suspect  led by attic since epoch 7")
    assert "  1 follow another " in who
    assert who.endswith(" 12:00:00")
    assert " 6/12  " in used
    assert "6.0G/24G" in used
    assert tasks == " tasks  2 running  1.2M queued  9 done"


def test_banner_without_a_coordinator_or_an_answer() -> None:
    model = Model()
    assert text(model)[2] == " tasks  none"
    model.take_mesh(view(beat(0), coordinator=None), 1)
    assert "no coordinator" in text(model)[0]
    model.problem = "no daemon answers (for 3 s; trying again)"
    assert text(model)[0] == " no daemon answers (for 3 s; trying again)"


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 60, 80, 132, 300])
def test_the_banner_fits_every_terminal(columns: int) -> None:
    model = Model()
    model.take_mesh(view(*(beat(at, name="n" * 60) for at in range(9)), coordinator=4), 1)
    model.take_work(work(0, open={"running": 10**9}, ended={"done": 10**9, "unknown": 5}))
    assert max(map(words.width, text(model, columns))) <= columns


# --- nodes --------------------------------------------------------------------------------------


def test_what_is_wrong_stands_at_the_top() -> None:
    model = Model()
    states = ("alive", "left", "draining", "dead", "suspect")
    beats = [beat(at, state=state, silent_ms=4_200) for at, state in enumerate(states)]
    model.take_mesh(view(*beats), 1)
    rows = sheets.nodes(model, sheets.ORDERS["nodes"]).rows
    shown = [row.cells[1].text for row in rows]
    assert shown == ["suspect 4.2s", "dead 4.2s", "draining", "alive", "left"]
    assert {cell.text for cell in rows[1].cells[4:11]} == {"-", ""}


def test_heat_load_and_memory_have_colours() -> None:
    model = Model()
    calm = beat(0, load_percent=10, temperature_c=40)
    hot = beat(
        1,
        cpu_percent=99,
        memory_percent=96,
        load_percent=320,
        temperature_c=83,
        throttled=True,
    )
    model.take_mesh(view(calm, hot), 1)
    first, second = sheets.nodes(model, sheets.ORDERS["nodes"]).rows
    assert {cell.style for cell in first.cells[5:9]} == {""}
    assert [cell.style for cell in second.cells[5:9]] == ["yellow", "red", "red", "red"]
    assert [cell.text for cell in second.cells[5:9]] == ["99%", "96%", "320%", "83° slow"]


def test_roles() -> None:
    model = Model()
    model.take_mesh(view(beat(0), beat(1), beat(2, slots=0)), 1)
    roles = [one["role"] for one in model.as_json()["nodes"]]
    assert roles == ["coord", "worker", "entry"]


# --- for programs -------------------------------------------------------------------------------


def test_json() -> None:
    model = Model()
    model.take_mesh(view(beat(0, done=0), beat(1, done=0), epoch=7), 1_000)
    model.take_mesh(view(beat(0, done=5), beat(1, done=20), epoch=7), 3_000)
    model.take_work(work(0, open={"queued": 2}, ended={"done": 9}))
    told = model.as_json()
    assert list(told)[:4] == ["schema", "asked", "coordinator", "epoch"]
    assert told["schema"] == 1
    assert told["coordinator"] == short(node_id(0))
    assert told["epoch"] == [7, short(node_id(0))]
    assert told["tasks"] == {"queued": 2, "done": 9}
    assert told["tasks_per_s"] == 12.5
    second = told["nodes"][1]
    assert {"id", "name", "state", "arch", "slots"} <= set(second)
    assert (second["id"], second["node"]) == (short(node_id(1)), text32(node_id(1)))
    assert second["tasks_per_s"] == 10.0


def test_json_before_anything_is_known() -> None:
    told = Model().as_json()
    assert (told["coordinator"], told["epoch"], told["nodes"]) == (None, None, [])


# --- in full ------------------------------------------------------------------------------------


def test_a_node_in_full() -> None:
    lines = dict(line.split("  ", 1) for line in details.node(node_row()))
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    assert facts["state"] == "alive, coordinator"
    assert facts["memory"] == "6 GiB not reserved of 8 GiB"
    assert facts["throttled"].startswith("yes")
    assert facts["note"] == "the clock is not set"


def test_a_task_in_full() -> None:
    lines = details.task(status_row("k3f7x2ab-aaaa"))
    assert "since     submitted 4 s ago" in lines
    ended = {"run_us": 340, "type": "KeyError", "text": "'x'", "exit_status": 1, "backend": ""}
    lines = details.task(status_row("t", state="failed", ended=ended, waited_ms=0))
    found = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines}
    assert found["took"] == "340 µs"
    assert found["error"] == "KeyError 'x'"
