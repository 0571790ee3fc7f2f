"""A table, or lines of text, on the screen: draws what is seen, and again only what has changed.

Edge: Textual.  This file must not know what rows are about.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from blackroad.tui import banner, words
from blackroad.tui.sheet import GAP, Layout, Order, Row, Sheet, head_line, layout, row_line

FIXED: Final = 2
_EMPTY: Final = Sheet((), (), 0, Order(""))
Parts = list[tuple[str, str]]


@lru_cache(maxsize=512)
def style_of(text: str) -> Style:
    """The style that a few words name."""
    return Style.parse(text) if text else Style.null()


def strip(parts: Parts, columns: int, base: str = "") -> Strip:
    """Parts as one line of the terminal, filled up to its end."""
    under = style_of(base)
    segments = [Segment(text, under + style_of(style)) for text, style in parts if text]
    return Strip(segments).adjust_cell_length(columns, under)


class Lines(Widget):
    """Lines that know what they showed: a change of one letter costs one line."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._shown: list[tuple[Parts, str]] = []

    def lines(self) -> list[tuple[Parts, str]]:
        """All lines as they are now, each with the style beneath."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw anew what differs from what is on the screen."""
        before, self._shown = self._shown, self.lines()
        wide, high = self.size
        for at in range(min(high, max(len(before), len(self._shown)))):
            old = before[at] if at < len(before) else None
            new = self._shown[at] if at < len(self._shown) else None
            if old != new:
                self.refresh(Region(0, at, wide, 1))

    def on_resize(self) -> None:
        """Everything has another width now."""
        self._shown = self.lines()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line for the compositor."""
        if y >= len(self._shown):
            return Strip.blank(self.size.width)
        parts, base = self._shown[y]
        return strip(parts, self.size.width, base)


class Pane(Lines, can_focus=True):
    """A sheet with a title, its heads, a cursor, and rows that scroll."""

    class Opened(Message):
        """Enter was pressed, or the row at the cursor was clicked again."""

        def __init__(self, pane: Pane) -> None:
            super().__init__()
            self.pane = pane

    class Moved(Message):
        """The pane has the focus, or its cursor another row."""

    def __init__(self, id: str, title: str) -> None:
        super().__init__(id=id)
        self.title = title
        self.remark = ""
        self.sheet = _EMPTY
        self.cursor = 0
        self._top = 0
        self._layout = Layout((), ())

    def show(self, sheet: Sheet, remark: str = "") -> None:
        """Show other rows; the cursor stays on its row, wherever that has gone."""
        key = self.key()
        self.sheet, self.remark = sheet, remark
        if self.cursor and key and not (self.cursor < len(sheet.rows) and self.key() == key):
            keys = [row.key for row in sheet.rows]
            if key in keys:
                self.cursor = keys.index(key)
        self._bound()
        self.redraw()

    def row(self) -> Row | None:
        """The row at the cursor."""
        rows = self.sheet.rows
        return rows[self.cursor] if 0 <= self.cursor < len(rows) else None

    def key(self) -> str:
        """The key of the row at the cursor."""
        row = self.row()
        return row.key if row is not None else ""

    def move(self, by: int) -> None:
        """Move the cursor."""
        self.cursor += by
        self._bound()
        self.redraw()
        self.post_message(self.Moved())

    def page(self) -> int:
        """How many rows are seen at once."""
        return max(1, self.size.height - FIXED)

    def _bound(self) -> None:
        self.cursor = max(0, min(self.cursor, len(self.sheet.rows) - 1))
        page = self.page()
        self._top = min(max(self._top, self.cursor - page + 1), self.cursor)
        self._top = max(0, min(self._top, len(self.sheet.rows) - page))

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        self._bound()
        super().on_resize()

    def on_focus(self) -> None:
        """Show where keys go."""
        self.redraw()
        self.post_message(self.Moved())

    def on_blur(self) -> None:
        """Show that keys go elsewhere."""
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Move to the row; open it where the cursor was there already."""
        at = self._top + event.y - FIXED
        if event.y < FIXED or at >= len(self.sheet.rows):
            return
        if at == self.cursor and event.chain > 1:
            self.post_message(self.Opened(self))
        else:
            self.move(at - self.cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Three rows at a time."""
        self.move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Three rows at a time."""
        self.move(-3)

    # --- lines ------------------------------------------------------------------------------------

    def lines(self) -> list[tuple[Parts, str]]:
        """The title, the heads, and the rows in sight."""
        wide, high = self.size
        self._layout = layout(self.sheet, wide)
        made = [(self._title(wide), "")]
        heads = head_line(self.sheet, self._layout)
        made.append((_gapped([(text, "bold" if sorts else "dim") for text, sorts in heads]), ""))
        for at in range(self._top, min(len(self.sheet.rows), self._top + high - FIXED)):
            cells = _gapped(row_line(self.sheet, self._layout, self.sheet.rows[at]))
            here = at == self.cursor and self.has_focus
            made.append((_plain(cells, wide) if here else cells, "reverse" if here else ""))
        return made[: max(0, high)]

    def _title(self, wide: int) -> Parts:
        sheet = self.sheet
        count = len(sheet.rows)
        shown = f"{count}" if count == sheet.total else f"{count} of {sheet.total}"
        page = self.page()
        if count > page:
            shown += f", from {self._top + 1}"
        style = "bold cyan" if self.has_focus else "dim"
        remark = f"  {words.clean(self.remark)}" if self.remark else ""
        parts = [(f"─ {self.title} ", style), (shown, style), (remark, "yellow"), (" ", "")]
        left = wide - sum(words.width(text) for text, _ in parts)
        return banner.cut([*parts, ("─" * max(0, left), style)], wide)


def _gapped(cells: Parts) -> Parts:
    made: Parts = []
    for at, cell in enumerate(cells):
        if at:
            made.append((" " * GAP, ""))
        made.append(cell)
    return made


def _plain(cells: Parts, wide: int) -> Parts:
    # Colours within a reversed line would be stripes.
    return [(words.fit("".join(text for text, _ in cells), wide), "")]
