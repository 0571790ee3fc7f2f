"""The live view under Textual's pilot: what is on the screen, and what the keys do.

The screens are kept as texts, taken from the SVG that Textual draws; `REWRITE=1` writes them anew.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("textual")

from textual import events
from textual.pilot import Pilot

from blackroad.errors import Unreachable
from blackroad.ids import task_text, text32
from blackroad.tui.app import Top
from blackroad.tui.feed import Feed
from blackroad.tui.model import Model
from blackroad.tui.rota import Rota
from tests.edge import snapshots
from tests.tui.fakes import (
    GIB,
    FakeMesh,
    beat,
    node_id,
    node_row,
    status_row,
    task_id,
    task_row,
    work,
)

SCREENS = Path(__file__).parent / "screens"
TASK = task_text(node_id(0), task_id(1))
HOT = {
    "temperature_c": 83,
    "throttled": True,
    "running": 4,
    "load_percent": 104,
    "cpu_percent": 97,
}
Steps = Callable[[Pilot[None], Top], Awaitable[None]]


class Still(Feed):
    """A feed that looks when a test says so."""

    def start(self, changed: Callable[[], None]) -> None:
        self.changed = changed


def mesh() -> FakeMesh:
    """Four nodes: one leads, one is silent, one is hot, one has a GPU and a long queue."""
    made = FakeMesh(
        beat(0, owned=6, done=1_000),
        beat(1, state="suspect", silent_ms=4_200),
        beat(2, **HOT),
        beat(
            3,
            memory_percent=60,
            gpus=("RTX 3060",),
            slots=16,
            running=11,
            memory_bytes=64 * GIB,
            owned=120_345,
        ),
    )
    made.works[node_id(0)] = work(
        0,
        task_row(1),
        task_row(2, user="bob", name="encode", nodes=(node_id(2),)),
        task_row(3, "queued", user="bob", name="encode", priority=5),
        task_row(4, "failed", note="TaskFailed"),
        task_row(5, "done"),
        ended={"done": 10_234_567, "failed": 3},
    )
    made.works[node_id(3)] = work(3, open={"queued": 120_345})
    made.happened = []
    made.told = {
        "nodes": {"nodes": [node_row(at) for at in range(4)]},
        "status": status_row(TASK),
        "why": {"reason": "it is running"},
        "logs": {"text": "frame 1\nframe 2\x1b[2J\n", "cut": 0, "state": "running"},
        "cancel": None,
        "retry": "aaaaaaaa-again",
        "drain": {},
        "resume": {},
    }
    return made


def look(app: Top) -> None:
    """One round: nodes, tasks and events."""
    app.feed.look()
    app.feed.ask_owners(Rota(), app.feed.mesh.mesh())
    app.pull()


def run(
    steps: Steps, size: tuple[int, int] = (80, 24), fake: FakeMesh | None = None
) -> tuple[Top, FakeMesh]:
    """Run the view in a terminal of that size, with these steps."""
    from blackroad.tui.model import happening

    fake = fake or mesh()
    feed, model = Still(fake, 1.0), Model()
    feed.first()
    feed.drain(model)
    model.take_happenings(
        happening(
            {
                "id": f"a-3-{at}",
                "at_ms": 1_700_000_000_000 + at * 1_000,
                "host": "attic",
                "name": name,
                "severity": severity,
                "cause": "",
                "facts": {"node": "shed"},
            }
        )
        for at, (name, severity) in enumerate(
            [("node.joined", "info"), ("node.suspected", "warning"), ("task.failed", "error")]
        )
    )
    app = Top(feed, model, lambda told: [f"because {told['reason']}"])

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            look(app)
            await pilot.pause()
            await steps(pilot, app)

    asyncio.run(go())
    return app, fake


def text_of(svg: str) -> str:
    """The letters of a screenshot, where they stand."""
    width = float(re.findall(r'x="([\d.]+)" y="[\d.]+" textLength="([\d.]+)"', svg)[0][1])
    first = re.findall(r'textLength="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    width = min(float(length) / len(html.unescape(text)) for length, text in first if text)
    lines: dict[int, list[str]] = {}
    for x, line, text in re.findall(
        r'<text [^>]*?x="([\d.]+)"[^>]*?line-(\d+)\)"[^>]*>([^<]*)</text>', svg
    ):
        letters = lines.setdefault(int(line), [])
        at = round(float(x) / width)
        letters += [" "] * (at - len(letters))
        letters[at:] = list(html.unescape(text).replace("\xa0", " "))
    rows = ["".join(lines.get(at, [])).rstrip() for at in range(max(lines, default=-1) + 1)]
    return "\n".join(rows)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackroad.tui.app.clock_text", lambda _at_ms: "12:00:00")


def screen(app: Top) -> str:
    return text_of(app.export_screenshot())


async def settle(pilot: Pilot[None], app: Top) -> None:
    """Wait for what was asked in threads, and for what that draws."""
    await pilot.pause()
    await app.workers.wait_for_complete()
    await pilot.pause()


# --- what is seen -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "keys"),
    [
        ("all-80x24", (80, 24), ()),
        ("all-140x40", (140, 40), ()),
        ("tasks-80x24", (80, 24), ("3",)),
        ("queues-80x24", (80, 24), ("4",)),
        ("events-80x24", (80, 24), ("5",)),
        ("help-80x24", (80, 24), ("question_mark",)),
        ("all-40x10", (40, 10), ()),
    ],
)
def test_screens(name: str, size: tuple[int, int], keys: tuple[str, ...]) -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press(*keys)
        await pilot.pause()
        shown = screen(app)
        assert max(map(len, shown.splitlines())) <= size[0]
        snapshots.check(SCREENS / f"{name}.txt", shown)

    run(steps, size)


def test_another_coordinator_and_a_daemon_that_is_away() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        assert "led by attic since epoch 3" in screen(app)
        fake = app.feed.mesh
        assert isinstance(fake, FakeMesh)
        fake.coordinator, fake.epoch = 2, 4
        look(app)
        await pilot.pause()
        assert "led by loft since epoch 4" in screen(app)
        fake.away = True
        app.feed.look()
        app.pull()
        await pilot.pause()
        assert "no daemon answers" in screen(app)
        assert "garage" in screen(app)
        fake.away = False
        look(app)
        await pilot.pause()
        assert "no daemon answers" not in screen(app)

    run(steps)


def test_a_small_terminal_grows() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        assert "events" not in screen(app)
        await pilot.resize_terminal(100, 40)
        await pilot.pause()
        shown = screen(app)
        assert "events 3" in shown
        assert all(name in shown for name in ("attic", "shed", "loft", "garage"))

    run(steps, (60, 12))


def test_only_what_changed_is_drawn() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        drawn: list[Any] = []
        pane = app._panes["nodes"]
        pane.refresh = lambda *regions, **_: drawn.extend(regions)
        look(app)
        assert drawn == []
        fake = app.feed.mesh
        assert isinstance(fake, FakeMesh)
        fake.beats[2] = beat(2, **{**HOT, "temperature_c": 84})
        look(app)
        assert [region.height for region in drawn] == [1]

    run(steps)


# --- moving about -------------------------------------------------------------------------------


def test_the_cursor_stays_on_its_row_when_rows_move() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        pane = app._panes["nodes"]
        await pilot.press("down", "j")
        before = pane.key()
        assert pane.cursor == 2
        fake = app.feed.mesh
        assert isinstance(fake, FakeMesh)
        fake.beats.append(beat(5, state="dead"))
        look(app)
        assert (pane.key(), pane.cursor) == (before, 3)
        await pilot.press("G", "down")
        assert pane.cursor == 4
        await pilot.press("g", "up")
        assert pane.cursor == 0
        fake.beats = fake.beats[:1]
        await pilot.press("end")
        look(app)
        assert pane.cursor == 0

    run(steps)


def test_tab_goes_round() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        seen = []
        for key in ("tab", "tab", "tab", "shift+tab"):
            await pilot.press(key)
            await pilot.pause()
            assert app.focused is not None
            seen.append(app.focused.id)
        assert seen == ["tasks", "events", "nodes", "events"]

    run(steps)


def test_filter_while_it_is_typed() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "slash", *"user:bob")
        pane = app._panes["tasks"]
        assert [row.cells[3].text for row in pane.sheet.rows] == ["bob", "bob"]
        await pilot.press("enter")
        await pilot.pause()
        assert app.focused is pane
        assert "filter: user:bob" in screen(app)
        # Keys are keys again.
        await pilot.press("3")
        assert app.view == "tasks"
        await pilot.press("escape")
        assert len(pane.sheet.rows) == 5
        await pilot.press("slash", *"q", "escape")
        assert app.focused is pane
        assert app.filters["tasks"] == ""

    run(steps)


def test_letters_that_come_all_at_once_are_a_filter_and_no_commands() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        # All are in line before the first one is looked at: as who types fast, or pastes.
        for key in ("slash", *"clot", "ctrl+u", *"lofd", "backspace", "t", "enter", "D"):
            letter = key if len(key) == 1 else None
            app.post_message(events.Key(key, letter))
        await settle(pilot, app)
        assert [row.cells[0].text for row in app._panes["nodes"].sheet.rows] == ["loft"]
        assert "Drain loft?" in screen(app)

    _, fake = run(steps)
    assert orders(fake) == []


def test_a_filter_is_pasted_and_shortened() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("slash")
        app.post_message(events.Paste("user:ann\nat\x1btic"))
        await pilot.pause()
        assert app.filters["nodes"] == "user:ann·at·tic"
        app.post_message(events.Paste("x" * 1_000))
        await pilot.pause()
        assert len(app.filters["nodes"]) == 200
        assert max(map(len, screen(app).splitlines())) <= 80
        await pilot.press("ctrl+u", *"two", "space", *"words", "ctrl+w")
        assert app.filters["nodes"] == "two"
        assert screen(app).splitlines()[-1] == "/two"

    run(steps)


def test_sort() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        pane = app._panes["nodes"]

        def names() -> list[str]:
            return [row.cells[0].text for row in pane.sheet.rows]

        assert names() == ["shed", "attic", "garage", "loft"]
        await pilot.press("P")
        assert names()[0] == "loft"
        await pilot.press("P")
        assert names()[-1] == "loft"
        await pilot.press("N")
        assert names() == ["attic", "garage", "loft", "shed"]
        await pilot.press("I")
        assert names() == ["shed", "loft", "garage", "attic"]
        await pilot.press("greater_than_sign")
        assert app.orders["nodes"].column == "state"
        await pilot.press("less_than_sign", "less_than_sign")
        assert app.orders["nodes"].column == "id"
        await pilot.press("tab", "P")
        await pilot.pause()
        assert "tasks have nothing that P sorts by" in screen(app)

    run(steps)


def test_queues_by_user_and_owner() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("b")
        await pilot.pause()
        assert (app.view, app.by) == ("queues", "user")
        assert "by user" in screen(app)
        await pilot.press("b", "b")
        assert app.by == "class"

    run(steps)


def test_pause_and_pace() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("p")
        await pilot.pause()
        assert app.feed.paused
        assert "paused" in screen(app)
        await pilot.press("p", "minus", "minus")
        assert (app.feed.paused, app.feed.interval_s) == (False, 5.0)
        await pilot.press(*["plus"] * 9)
        assert app.feed.interval_s == 0.25

    run(steps)


def test_mouse() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        pane = app._panes["nodes"]
        await pilot.click("#nodes", offset=(3, 4))
        assert pane.cursor == 2
        await pilot.click("#nodes", offset=(3, 4), times=2)
        await settle(pilot, app)
        assert "alive, coordinator" in screen(app)

    run(steps)


# --- in full ------------------------------------------------------------------------------------


def test_describe_a_node() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("down", "enter")
        await settle(pilot, app)
        assert "alive, coordinator" in screen(app)
        assert text32(node_id(0)) in screen(app)
        await pilot.press("escape")
        assert "alive, coordinator" not in screen(app)

    run(steps)


def test_describe_a_task_and_why() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "d")
        await settle(pilot, app)
        assert "the worker went away" in screen(app)
        await pilot.press("q", "w")
        await settle(pilot, app)
        assert "because it is running" in screen(app)

    _, fake = run(steps)
    first = [one for one in fake.asked if one[0] in ("status", "why")]
    assert [name for name, _ in first] == ["status", "why"]
    assert {task for _, task in first} <= {task_text(node_id(0), task_id(at)) for at in (1, 2)}


def test_an_answer_that_does_not_come_is_told() -> None:
    fake = mesh()
    fake.told["why"] = Unreachable("its owner is silent", hint="wait")

    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "w")
        await settle(pilot, app)
        assert "its owner is silent" in screen(app)
        assert "hint: wait" in screen(app)

    run(steps, fake=fake)


def test_logs_follow_and_stay_harmless() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "l")
        await settle(pilot, app)
        assert "frame 2·[2J" in screen(app)
        fake = app.feed.mesh
        assert isinstance(fake, FakeMesh)
        lines = "".join(f"frame {at}\n" for at in range(300))
        fake.told["logs"] = {"text": lines, "cut": 9, "state": "running"}
        reading: Any = app.screen
        reading._ask()
        await settle(pilot, app)
        assert "frame 299" in screen(app)
        await pilot.press("g")
        assert "(9 bytes are not kept any more)" in screen(app)
        assert "lines below" in screen(app)
        # Who has gone up stays there while more comes.
        reading._ask()
        await settle(pilot, app)
        assert "frame 299" not in screen(app)
        await pilot.press("G")
        assert "frame 299" in screen(app)

    run(steps)


def test_an_event_in_full() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("5", "d")
        await pilot.pause()
        assert re.search(r"what +node=shed", screen(app))

    run(steps)


# --- orders -------------------------------------------------------------------------------------


def orders(fake: FakeMesh) -> list[tuple[Any, ...]]:
    return [one for one in fake.asked if one[0] != "work"]


@pytest.mark.parametrize(("key", "name"), [("c", "cancel"), ("t", "retry")])
def test_tasks_are_told_only_after_yes(key: str, name: str) -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab")
        task = app._panes["tasks"].key()
        for no in ("n", "escape"):
            await pilot.press(key)
            await pilot.pause()
            assert task in screen(app)
            await pilot.press("enter", "x", no)
            await settle(pilot, app)
        fake = app.feed.mesh
        assert isinstance(fake, FakeMesh)
        assert orders(fake) == []
        await pilot.press(key, "y")
        await settle(pilot, app)
        assert orders(fake) == [(name, task)]
        assert "cancelled" in screen(app) or "aaaaaaaa-again" in screen(app)

    run(steps)


def test_drain_asks_and_resume_does_not() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("D")
        await pilot.pause()
        assert "Drain shed?" in screen(app)
        await pilot.press("y")
        await settle(pilot, app)
        assert "shed takes nothing new" in screen(app)
        await pilot.press("down", "R")
        await settle(pilot, app)

    _, fake = run(steps)
    assert orders(fake) == [("drain", text32(node_id(1))), ("resume", text32(node_id(0)))]


def test_a_name_with_braces_is_a_name() -> None:
    fake = mesh()
    fake.beats = [msgspec.structs.replace(one, name="rack{1}") for one in fake.beats]

    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("D", "y")
        await settle(pilot, app)
        assert "rack{1} takes nothing new" in screen(app)

    run(steps, fake=fake)


def test_logs_are_asked_for_one_after_the_other() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "l")
        await settle(pilot, app)
        reading: Any = app.screen
        asked: list[object] = []
        reading._follow = asked.append
        reading._asked = 0
        for _ in range(5):
            reading._ask()
        assert len(asked) == 1
        answered: Any = asked[0]
        answered(["there"])
        reading._ask()
        assert len(asked) == 2

    run(steps)


def test_orders_that_fail_are_told() -> None:
    fake = mesh()
    fake.told["drain"] = Unreachable("`shed` is dead")

    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("D", "y")
        await settle(pilot, app)
        assert "`shed` is dead" in screen(app)

    run(steps, fake=fake)


def test_a_key_of_another_pane_says_where_it_belongs() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("c")
        await pilot.pause()
        assert "this is for tasks: Tab goes to them" in screen(app)
        await pilot.press("tab", "D")
        await pilot.pause()
        assert "this is for nodes" in screen(app)

    _, fake = run(steps)
    assert orders(fake) == []


def test_an_empty_mesh_has_nothing_to_cancel() -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("tab", "c", "l", "w", "d", "enter", "down", "pagedown")
        await pilot.pause()
        assert "there are no tasks here" in screen(app)

    run(steps, fake=FakeMesh(beat(0)))


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_the_end(key: str) -> None:
    async def steps(pilot: Pilot[None], app: Top) -> None:
        await pilot.press(key)
        await pilot.pause()
        assert not app.is_running

    _, fake = run(steps)
    assert fake.closed
