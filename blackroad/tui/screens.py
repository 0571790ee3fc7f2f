"""What opens above the tables: a page of text, a question with yes and no.

Edge: Textual.  This file must not know tasks or nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widgets import Static

from blackroad.tui import words
from blackroad.tui.pane import Lines, Parts

LINES_MAX: Final = 5_000
FOLLOW_S: Final = 0.5
# After so many turns without an answer it is asked for again.
ASKED_MAX: Final = 20


class Pages(Lines, can_focus=True):
    """Lines of text that scroll; at the end it stays at the end while more come."""

    def __init__(self, title: str, lines: Sequence[str], at_end: bool) -> None:
        super().__init__("pages")
        self.title = title
        self.text = list(lines)
        self.at_end = at_end
        self.top = 0

    def show(self, lines: Sequence[str]) -> None:
        """Show another text in its place."""
        self.text = list(lines)[-LINES_MAX:]
        self.scroll(0)

    def scroll(self, by: int) -> None:
        """Move, and stay within the text."""
        last = max(0, len(self.text) - self.room())
        if by:
            self.top = max(0, min(self.top + by, last))
            self.at_end = self.at_end and self.top == last
        elif self.at_end:
            self.top = last
        self.redraw()

    def room(self) -> int:
        """How many lines are seen at once."""
        return max(1, self.size.height - 2)

    def on_resize(self) -> None:
        """Keep to the end where it was."""
        self.scroll(0)
        super().on_resize()

    def lines(self) -> list[tuple[Parts, str]]:
        """The title, and the text in sight."""
        wide, high = self.size
        title = f"─ {words.clean(self.title)} "
        line = "─" * max(0, wide - words.width(title))
        parts: Parts = [(words.fit(title + line, wide), "bold cyan")]
        made = [(parts, "")]
        for line in self.text[self.top : self.top + self.room()]:
            made.append(([(words.fit(words.clean(line.expandtabs(4)), wide), "")], ""))
        left = max(0, len(self.text) - self.top - self.room())
        more = f"{left} lines below   " if left else ""
        hint: Parts = [(f" {more}Esc, q: back", "dim")]
        made += [([], "")] * (high - 1 - len(made))
        return [*made[: high - 1], (hint, "")]


class Reading(Screen[None]):
    """A text over the whole terminal; `follow` gives what is new, again and again."""

    BINDINGS: ClassVar = [
        Binding("escape,q,h", "back", "back"),
        Binding("down,j", "scroll(1)", "down"),
        Binding("up,k", "scroll(-1)", "up"),
        Binding("pagedown,space", "pages(1)", "page down"),
        Binding("pageup", "pages(-1)", "page up"),
        Binding("home,g", "scroll(-1000000)", "first"),
        Binding("end,G", "last", "last"),
    ]

    def __init__(
        self,
        title: str,
        lines: Sequence[str],
        follow: Callable[[Callable[[Sequence[str]], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self.pages = Pages(title, lines, follow is not None)
        self._follow = follow
        # For how many turns an answer is awaited.
        self._asked = 0
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """One widget."""
        yield self.pages

    def on_mount(self) -> None:
        """Begin to follow."""
        self.pages.focus()
        if self._follow is not None:
            self._ask()
            self._timer = self.set_interval(FOLLOW_S, self._ask)

    def _ask(self) -> None:
        # One at a time: else they pile up while a daemon is away, and an old answer comes last.
        if self._follow is not None and (not self._asked or self._asked >= ASKED_MAX):
            self._asked = 0
            self._follow(self._show)
        self._asked += 1

    def _show(self, lines: Sequence[str]) -> None:
        self._asked = 0
        self.pages.show(lines)

    def action_back(self) -> None:
        """Close it."""
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        """Some lines down, or up."""
        self.pages.scroll(by)

    def action_pages(self, by: int) -> None:
        """A page down, or up."""
        self.pages.scroll(by * self.pages.room())

    def action_last(self) -> None:
        """To the end, and stay there."""
        self.pages.at_end = True
        self.pages.scroll(0)


class Asking(ModalScreen[bool]):
    """A question; only `y` means yes."""

    def __init__(self, question: str, detail: str = "") -> None:
        super().__init__()
        self.question = question
        self.detail = detail

    def compose(self) -> ComposeResult:
        """A small box in the middle."""
        with Vertical(id="asking"):
            yield Static(words.clean(self.question), id="question", markup=False)
            if self.detail:
                yield Static(words.clean(self.detail), id="detail", markup=False)
            yield Static("y: yes    n, Esc: no", id="answers", markup=False)

    def on_key(self, event: Key) -> None:
        """Take the answer; every other key waits for one."""
        event.stop()
        if event.key in ("y", "Y"):
            self.dismiss(True)
        elif event.key in ("n", "N", "escape", "q"):
            self.dismiss(False)


def shown(value: Any) -> str:
    """An error or an answer in one line."""
    return words.clean(getattr(value, "message", None) or str(value))
