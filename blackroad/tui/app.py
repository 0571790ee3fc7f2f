"""The live view itself: keys, panes, and what they do to tasks and nodes.

Edge: Textual.  What is shown is made in `sheets.py` and `banner.py` from what `feed.py` brings;
this file must not know how a daemon is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding

from blackroad.errors import BlackroadError
from blackroad.tui import banner, details, sheets, words
from blackroad.tui.feed import Feed
from blackroad.tui.model import Model
from blackroad.tui.pane import FIXED, Lines, Pane, Parts
from blackroad.tui.screens import Asking, Reading, shown
from blackroad.tui.sheet import FILTER_MAX, Order, Row, Sheet

VIEWS: Final = ("all", "nodes", "tasks", "queues", "events")
TITLES: Final = {"nodes": "nodes", "tasks": "tasks", "queues": "queues", "events": "events"}
PANES_OF_ALL: Final = ("nodes", "tasks", "events")
INTERVALS_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
EVENT_ROWS: Final = 3
WIDE: Final = 120
SAY_S: Final = 6.0
# The same letter means what is nearest to it in each pane.
SORTS: Final = {
    "P": {"nodes": "cpu"},
    "M": {"nodes": "memory"},
    "T": {
        "nodes": "rate",
        "tasks": "age",
        "queues": "oldest",
        "events": "time",
    },
    "N": {"nodes": "name", "tasks": "name", "queues": "name", "events": "name"},
}
KEYS: Final = {
    "nodes": ("d describe", "D drain", "R resume"),
    "tasks": ("d describe", "l logs", "w why", "c cancel", "t retry"),
    "queues": ("b by user, owner",),
    "events": ("d describe",),
}
KEYS_ALL: Final = ("/ filter", "<> sort", "1-5 view", "Tab pane")
KEYS_LAST: Final = ("? help", "q end")
GAP: Final = "  "
ALWAYS: Final = ("leave",)
KEYS_OF_ALL: Final = (
    *(Binding(str(at + 1), f"view('{name}')", name) for at, name in enumerate(VIEWS)),
    Binding("q", "quit", "end"),
    Binding("ctrl+c", "leave", "end"),
    Binding("tab", "other(1)", "next pane"),
    Binding("shift+tab", "other(-1)", "pane before"),
    Binding("down,j", "move(1)", "down"),
    Binding("up,k", "move(-1)", "up"),
    Binding("pagedown,ctrl+d", "pages(1)", "page down"),
    Binding("pageup,ctrl+u", "pages(-1)", "page up"),
    Binding("home,g", "move(-1000000)", "first"),
    Binding("end,G", "move(1000000)", "last"),
    Binding("slash,f3,f4", "filter", "filter"),
    Binding("escape", "clear", "no filter"),
    Binding("less_than_sign,comma", "sort(-1)", "sort left"),
    Binding("greater_than_sign,full_stop", "sort(1)", "sort right"),
    Binding("I", "reverse", "upside down"),
    *(Binding(key, f"sort_by('{key}')", "sort") for key in SORTS),
    Binding("b", "by", "queues by"),
    Binding("enter,d", "describe", "describe"),
    Binding("l", "logs", "logs"),
    Binding("w", "why", "why"),
    Binding("c,f9", "cancel", "cancel"),
    Binding("t", "retry", "try again"),
    Binding("D", "drain", "drain"),
    Binding("R", "resume", "resume"),
    Binding("p", "pause", "pause"),
    Binding("plus,equals_sign", "pace(-1)", "more often"),
    Binding("minus", "pace(1)", "less often"),
    Binding("question_mark,h,f1", "help", "help"),
)


class Banner(Lines):
    """The lines at the top."""

    def __init__(self, model: Model) -> None:
        super().__init__("banner")
        self._model = model

    def lines(self) -> list[tuple[Parts, str]]:
        """Who is there, what is used, how fast it goes."""
        clock = clock_text(time.time_ns() // 1_000_000)
        return [(parts, "") for parts in banner.lines(self._model, self.size.width, clock)]


class Foot(Lines):
    """The last line: what the keys do here, or what has just happened."""

    def __init__(self) -> None:
        super().__init__("foot")
        self.keys = ""
        self.typing = ""
        self.said = ""
        self.wrong = False
        self.until = 0.0

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Tell something for some seconds."""
        self.said, self.wrong, self.until = text, wrong, time.monotonic() + SAY_S
        self.redraw()

    def lines(self) -> list[tuple[Parts, str]]:
        """One line."""
        if self.typing:
            # Of a long filter the end is seen, where letters are added.
            room = max(1, self.size.width - 1)
            text = words.clean(self.typing)[-room:]
            return [([(text, "bold"), (" ", "reverse")], "")]
        if self.said and time.monotonic() < self.until:
            style = "bold red" if self.wrong else "bold green"
            return [([(words.fit(f" {words.clean(self.said)}", self.size.width), style)], "")]
        self.said = ""
        return [([(words.fit(f" {self.keys}", self.size.width), "dim")], "")]


class Top(App[None]):
    """`blackroad top` in a terminal."""

    CSS = """
    Screen { background: ansi_default; color: ansi_default; layout: vertical; }
    #banner { height: 3; }
    Pane { height: 1fr; }
    #foot { height: 1; }
    #pages { height: 1fr; }
    Asking { align: center middle; background: transparent; }
    #asking { width: 72; max-width: 96%; height: auto; border: solid ansi_yellow; padding: 0 1;
              background: ansi_default; }
    #question { text-style: bold; }
    #detail { color: ansi_default; margin-top: 1; }
    #answers { margin-top: 1; text-style: dim; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "blackroad top"
    # Keys are taken here, in their order, before any widget sees them: who types fast must not have
    # a letter that was meant for the filter or for a question be taken for an order.
    BINDINGS: ClassVar = [replace(binding, priority=True) for binding in KEYS_OF_ALL]

    def __init__(
        self, feed: Feed, model: Model, why_lines: Callable[[dict[str, Any]], Sequence[str]]
    ) -> None:
        super().__init__(ansi_color=True)
        self.feed = feed
        self.model = model
        self.view = "all"
        self.by = sheets.BY[0]
        self.orders: dict[str, Order] = dict(sheets.ORDERS)
        self.filters: dict[str, str] = dict.fromkeys(TITLES, "")
        self._why_lines = why_lines
        self._banner = Banner(model)
        self._foot = Foot()
        self._panes = {name: Pane(name, title) for name, title in TITLES.items()}
        self._filtering = ""

    def compose(self) -> ComposeResult:
        """Banner, panes, foot."""
        yield self._banner
        yield from self._panes.values()
        yield self._foot

    def on_mount(self) -> None:
        """Show what the first look brought, and go on looking."""
        self.theme = "textual-ansi" if "textual-ansi" in self.available_themes else self.theme
        self.action_view("all")
        self.feed.start(self._changed)

    def on_unmount(self) -> None:
        """Stop looking."""
        self.feed.close()

    def on_resize(self, event: events.Resize) -> None:
        """Give the panes their share of another height."""
        self._share(event.size.height)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave keys to what is open above the tables."""
        return len(self.screen_stack) == 1 or action in ALWAYS

    def action_leave(self) -> None:
        """End, whatever is open."""
        self.exit()

    # --- what is seen -----------------------------------------------------------------------------

    def _changed(self) -> None:
        """A thread has something new."""
        try:
            self.call_from_thread(self.pull)
        except RuntimeError:
            # The view ends at this moment.
            return

    def pull(self) -> None:
        """Take what has come, and draw it."""
        self.feed.drain(self.model)
        self.draw()

    def draw(self) -> None:
        """Draw what has changed."""
        if not self.is_running:
            return
        self._share(self.size.height)
        for name in self._seen():
            self._show(name)
        self._banner.redraw()
        self._foot.keys = self._keys()
        self._foot.typing = f"/{self.filters[self._filtering]}" if self._filtering else ""
        self._foot.redraw()

    def _seen(self) -> tuple[str, ...]:
        return PANES_OF_ALL if self.view == "all" else (self.view,)

    def _show(self, name: str) -> None:
        order, filtered = self.orders[name], self.filters[name]
        made: Sheet
        match name:
            case "nodes":
                made = sheets.nodes(self.model, order, filtered, self.size.width >= WIDE)
            case "tasks":
                made = sheets.tasks(self.model, order, filtered)
            case "queues":
                made = sheets.queues(self.model, order, filtered, self.by)
            case _:
                few = EVENT_ROWS if self.view == "all" else 0
                made = sheets.events(self.model, order, filtered, clock_text, few)
        remarks = [f"filter: {filtered}" if filtered else "", "paused" if self.feed.paused else ""]
        if name == "queues":
            remarks.append(f"by {self.by}")
        if name == "tasks":
            remarks.append(self._sample())
        self._panes[name].show(made, "  ".join(filter(None, remarks)))

    def _sample(self) -> str:
        """That not all tasks are listed, where there are more than that."""
        listed = sum(len(work.tasks) for work in self.model.works.values())
        known = sum(self.model.counts().values())
        return f"some of {words.count(known)}" if known > listed else ""

    def _keys(self) -> str:
        pane = self._focused()
        own = KEYS[pane.id or "nodes"] if pane is not None else ()
        # The ways out are told in any case, and of the others those that there is room for.
        kept, left = list(KEYS_LAST), self.size.width - 2 - len(GAP.join(KEYS_LAST))
        for key in (*own, *KEYS_ALL):
            left -= len(key) + len(GAP)
            if left >= 0:
                kept.insert(len(kept) - len(KEYS_LAST), key)
        return GAP.join(kept)

    def _share(self, height: int) -> None:
        """Few nodes need little room; many may have almost half of it."""
        if self.view != "all":
            return
        room = height - banner.LINES - 1
        events = min(EVENT_ROWS + FIXED, max(0, room - 2 * (FIXED + 3)))
        wanted = len(self.model.beats()) + FIXED
        nodes = max(FIXED + 1, min(wanted, (room - events) // 2))
        for name, rows in (("nodes", nodes), ("events", events)):
            pane = self._panes[name]
            if pane.styles.height is None or pane.styles.height.value != rows:
                pane.styles.height = rows
        self._panes["events"].display = events > FIXED

    def _focused(self) -> Pane | None:
        focused = self.screen_stack[0].focused if self.screen_stack else None
        return focused if isinstance(focused, Pane) else None

    # --- moving about -----------------------------------------------------------------------------

    def action_view(self, name: str) -> None:
        """Show everything, or one pane in full."""
        before = self._focused()
        self.view = name
        seen = self._seen()
        for one, pane in self._panes.items():
            pane.display = one in seen
            pane.styles.height = "1fr"
        at = before.id if before is not None and before.id in seen else seen[0]
        if name == "all" and before is None:
            at = "nodes"
        self.screen.set_focus(self._panes[str(at)])
        self.draw()

    def action_other(self, by: int) -> None:
        """Go to another pane."""
        if self.view != "all":
            at = VIEWS.index(self.view) + by
            self.action_view(VIEWS[1:][(at - 1) % (len(VIEWS) - 1)])
            return
        seen = [name for name in self._seen() if self._panes[name].display]
        pane = self._focused()
        now = seen.index(str(pane.id)) if pane is not None and pane.id in seen else 0
        self.screen.set_focus(self._panes[seen[(now + by) % len(seen)]])

    def on_pane_moved(self) -> None:
        """Other keys may count now."""
        self._foot.keys = self._keys()
        self._foot.redraw()

    def on_pane_opened(self) -> None:
        """The mouse asks to describe a row."""
        self.action_describe()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        pane = self._focused()
        if pane is not None:
            pane.move(by)

    def action_pages(self, by: int) -> None:
        """Move the cursor by what is seen at once."""
        pane = self._focused()
        if pane is not None:
            pane.move(by * pane.page())

    # --- filter and order -------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Ask for words, and filter while they are typed."""
        pane = self._focused()
        if pane is not None:
            self._filtering = str(pane.id)
            self.draw()

    async def on_event(self, event: events.Event) -> None:
        """Take letters of the filter at once, in their order, before any of them is a command."""
        typing = self._filtering and len(self.screen_stack) == 1
        if typing and isinstance(event, events.Key):
            self._typed(event.key, event.character if event.is_printable else None)
        elif typing and isinstance(event, events.Paste):
            self._typed("", words.clean(event.text))
        else:
            await super().on_event(event)

    def _typed(self, key: str, letters: str | None) -> None:
        name = self._filtering
        text = self.filters[name]
        match key:
            case "enter" | "tab":
                self._filtering = ""
            case "escape":
                self._filtering, text = "", ""
            case "ctrl+c":
                self.exit()
            case "backspace" | "ctrl+h":
                text = text[:-1]
            case "ctrl+u":
                text = ""
            case "ctrl+w":
                text = text.rstrip().rpartition(" ")[0]
            case _:
                text += letters or ""
        self.filters[name] = text[:FILTER_MAX]
        self._panes[name].cursor = 0
        self.draw()

    def action_clear(self) -> None:
        """Show all rows again."""
        pane = self._focused()
        if pane is None:
            return
        self.filters[str(pane.id)] = ""
        self.draw()

    def action_sort(self, by: int) -> None:
        """Sort by another column that is shown."""
        pane = self._focused()
        if pane is None:
            return
        names = [column.name for column in pane.sheet.columns]
        name = self.orders[str(pane.id)].column
        at = names.index(name) if name in names else 0
        self._order(pane, Order(names[(at + by) % len(names)]))

    def action_sort_by(self, key: str) -> None:
        """Sort as people know it from other programs; once more turns it around."""
        pane = self._focused()
        if pane is None:
            return
        column = SORTS[key].get(str(pane.id))
        if column is None:
            self._foot.say(f"{pane.title} have nothing that {key} sorts by", wrong=True)
            return
        before = self.orders[str(pane.id)]
        turned = before.column == column and not before.reverse
        self._order(pane, Order(column, turned))

    def action_reverse(self) -> None:
        """Turn the order around."""
        pane = self._focused()
        if pane is not None:
            before = self.orders[str(pane.id)]
            self._order(pane, Order(before.column, not before.reverse))

    def _order(self, pane: Pane, order: Order) -> None:
        self.orders[str(pane.id)] = order
        pane.cursor = 0
        self._show(str(pane.id))

    def action_by(self) -> None:
        """Queues by class, by user, by owner."""
        self.by = sheets.BY[(sheets.BY.index(self.by) + 1) % len(sheets.BY)]
        self.action_view("queues")

    def action_pause(self) -> None:
        """Look no more, or again."""
        self.feed.paused = not self.feed.paused
        self.draw()

    def action_pace(self, by: int) -> None:
        """Look more often, or less often."""
        nearest = min(INTERVALS_S, key=lambda one: abs(one - self.feed.interval_s))
        at = INTERVALS_S.index(nearest) + by
        self.feed.interval_s = INTERVALS_S[max(0, min(at, len(INTERVALS_S) - 1))]
        self._foot.say(f"looks every {self.feed.interval_s:g} s")

    # --- what is done -----------------------------------------------------------------------------

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(Reading("keys", details.HELP.splitlines()))

    def action_describe(self) -> None:
        """Tell all of what the cursor is on."""
        pane = self._focused()
        row = pane.row() if pane is not None else None
        if pane is None or row is None:
            return
        match pane.id:
            case "nodes":
                self._read(row.cells[0].text, partial(self._node_lines, row.key))
            case "tasks":
                self._read(row.key, lambda: details.task(self._ask("status", row.key)))
            case _:
                names = [column.head for column in pane.sheet.columns]
                texts = [cell.key if isinstance(cell.key, str) else cell.text for cell in row.cells]
                lines = details.event(names, texts)
                self.push_screen(Reading(row.cells[0].text, lines))

    def _node_lines(self, key: str) -> list[str]:
        for row in self._ask("nodes")["nodes"]:
            if row["node"] == key:
                return details.node(row)
        return ["this node is not known any more"]

    def action_why(self) -> None:
        """Why the task at the cursor is not running."""
        task = self._chosen_task()
        if task:
            self._read(f"why {task}", lambda: self._why_lines(self._ask("why", task)))

    def action_logs(self) -> None:
        """What the task at the cursor prints, as it comes."""
        task = self._chosen_task()
        if task:
            follow = partial(self._in_thread, partial(self._log_lines, task))
            self.push_screen(Reading(f"output of {task}", ["..."], follow))

    def _log_lines(self, task: str) -> list[str]:
        told = self._ask("logs", task)
        cut = [f"({told['cut']} bytes are not kept any more)"] if told["cut"] else []
        text = [*cut, *told["text"].splitlines()]
        return text or [f"({told['state']}: it has printed nothing that is kept)"]

    def action_cancel(self) -> None:
        """Cancel the task at the cursor, if that is meant."""
        task = self._chosen_task()
        if task:
            self._sure("Cancel this task?", task, "cancel", task, f"{task} is cancelled")

    def action_retry(self) -> None:
        """Try the task at the cursor again."""
        task = self._chosen_task()
        if task:
            self._sure("Try this task again?", task, "retry", task, "it was submitted anew as {}")

    def action_drain(self) -> None:
        """Let the node at the cursor take nothing new."""
        self._order_node("drain", "takes nothing new; what runs there goes on")

    def action_resume(self) -> None:
        """Let the node at the cursor take work again."""
        self._order_node("resume", "takes work again")

    def _order_node(self, order: str, done: str) -> None:
        row = self._row_of("nodes")
        if row is None:
            return
        name = row.cells[0].text
        detail = "It takes nothing new until `resume`, also after a restart; what runs goes on."
        if order == "drain":
            self._sure(f"Drain {name}?", detail, order, row.key, f"{name} {done}")
        else:
            self._do(order, row.key, f"{name} {done}")

    def _chosen_task(self) -> str:
        row = self._row_of("tasks")
        if row is None:
            return ""
        return row.key

    def _row_of(self, name: str) -> Row | None:
        """The row at the cursor, if this pane has the focus; else say what would help."""
        pane = self._focused()
        if pane is None or pane.id != name:
            self._foot.say(f"this is for {name}: Tab goes to them", wrong=True)
            return None
        row = pane.row()
        if row is None:
            self._foot.say(f"there are no {name} here", wrong=True)
        return row

    def _sure(self, question: str, detail: str, order: str, key: str, done: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._do(order, key, done)

        self.push_screen(Asking(question, detail), answered)

    # --- asking daemons, beside the drawing -------------------------------------------------------

    def _ask(self, name: str, *args: Any) -> Any:
        return self.feed.mesh.ask(name, *args)

    def _do(self, order: str, key: str, done: str) -> None:
        self._foot.say(f"{order} ...")

        def run() -> None:
            try:
                told = self._ask(order, key)
            except BlackroadError as error:
                self._later(partial(self._foot.say, shown(error), wrong=True))
            else:
                # Only this one has a place for an answer; a node's name may have braces, too.
                text = done.replace("{}", str(told)) if order == "retry" else done
                self._later(partial(self._foot.say, text))

        self.run_worker(run, thread=True, exit_on_error=False)

    def _read(self, title: str, lines: Callable[[], Sequence[str]]) -> None:
        """Open a page at once, and fill it when the answer is there."""
        screen = Reading(title, ["..."])
        self.push_screen(screen)
        self._in_thread(lines, screen.pages.show)

    def _in_thread(
        self, lines: Callable[[], Sequence[str]], show: Callable[[Sequence[str]], None]
    ) -> None:
        def run() -> None:
            try:
                found = list(lines())
            except BlackroadError as error:
                hint = getattr(error, "hint", "")
                found = [shown(error), *(["", f"hint: {hint}"] if hint else [])]
            self._later(partial(show, found))

        self.run_worker(run, thread=True, exit_on_error=False)

    def _later(self, call: Callable[[], None]) -> None:
        try:
            self.call_from_thread(call)
        except RuntimeError:
            return


def clock_text(at_ms: int) -> str:
    """A wall time as people here read it."""
    return time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))
