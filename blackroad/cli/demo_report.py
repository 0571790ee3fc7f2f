"""What the demo tells: on the screen as it goes, and as one document at its end.

This file must not know daemons, clients or tasks.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.errors import BlackroadError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_COLUMNS: Final = 100
INDENT: Final = 2
REPORT_FILE: Final = "report.json"


class Check(NamedTuple):
    """Something the demo claims, and whether it held."""

    name: str
    held: bool
    detail: str


class Bar:
    """How far a long work is."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task

    def move(self, done: int, note: str = "") -> None:
        """Show that `done` of the total has ended."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


class Report:
    """Collects facts and checks, and shows them as they come.

    `as_json` keeps the screen empty until the document is printed.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.facts: dict[str, Any] = {}
        self.checks: list[Check] = []
        self.doing = "starting"
        self.error: dict[str, Any] | None = None
        self.logs: list[str] = []
        self._console = _console(quiet=as_json)
        self._yes, self._no = ("✓", "✗") if _draws_unicode() else ("ok", "NO")

    # --- as it goes -------------------------------------------------------------------------------

    def part(self, title: str) -> None:
        """Begin a part of the story."""
        self.doing = title
        self._console.print()
        self._console.print(title, style="bold cyan", markup=False)

    def say(self, text: str, style: str = "") -> None:
        """Tell something in a sentence."""
        self._indented(text, style)

    def event(self, at_s: float, text: str) -> None:
        """Tell what happened at a moment of a part."""
        self._indented(f"{at_s:6.2f} s  {text}", "yellow", hang=10)

    def check(self, name: str, held: bool, detail: str = "") -> None:
        """Note a claim and show whether it held."""
        self.checks.append(Check(name, bool(held), detail))
        mark, style = (self._yes, "green") if held else (self._no, "bold red")
        text = f"{mark} {name}" + (f": {detail}" if detail else "")
        self._indented(text, style, hang=len(mark) + 1)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show rows under their headers; numbers stand to the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column, header in enumerate(headers):
            cells = [row[column] for row in rows]
            right = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
            shown.add_column(Text(header), justify="right" if right else "left")
        for row in rows:
            shown.add_row(*(Text(_cell(cell)) for cell in row))
        self._block(shown)

    def lines(self, text: str) -> None:
        """Show text as it came, such as a traceback."""
        from rich.text import Text

        for line in text.rstrip().splitlines():
            self._console.print(Text(f"    | {line}", style="dim"), soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """Show how far something is while the block runs; nothing where nobody looks."""
        if self._console.quiet or not self._console.is_terminal:
            yield Bar(None, None)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield Bar(progress, progress.add_task(title, total=total, note=""))

    def _indented(self, text: str, style: str = "", hang: int = 0) -> None:
        from rich.text import Text

        first = len(text) - len(text.lstrip())
        wrapped = textwrap.wrap(
            text.lstrip(),
            min(self._console.width, PLAIN_COLUMNS),
            initial_indent=" " * (INDENT + first),
            subsequent_indent=" " * (INDENT + first + hang),
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in wrapped or [""]:
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _block(self, shown: object) -> None:
        """Print something that rich lays out; for files and pipes without blanks at line ends."""
        from rich.padding import Padding
        from rich.text import Text

        padded = Padding(shown, (0, 0, 0, INDENT), expand=False)  # type: ignore[arg-type]
        if self._console.is_terminal:
            self._console.print(padded)
            return
        with self._console.capture() as captured:
            self._console.print(padded)
        for line in captured.get().splitlines():
            self._console.print(Text(line.rstrip()), soft_wrap=True)

    # --- at the end -------------------------------------------------------------------------------

    @property
    def failed(self) -> list[Check]:
        """The checks that did not hold."""
        return [check for check in self.checks if not check.held]

    def fail(self, error: BlackroadError, logs: Sequence[str]) -> None:
        """Tell the one thing that stopped the demo, with what the daemons said last."""
        self.error = {
            "during": self.doing,
            "message": error.message,
            "hint": error.hint,
            "because": list(error.because),
            "logs": list(logs),
        }
        self._console.print()
        self._console.print(f"error: {error.message}", style="bold red", markup=False)
        for line in error.because:
            self.say(f"because {line}")
        if self.doing not in error.message:
            self.say(f"during: {self.doing}")
        if logs:
            self.say("what the daemons wrote last:")
            self.lines("\n".join(logs))
        if error.hint:
            self._console.print(f"\nhint: {error.hint}", markup=False)

    def document(self) -> dict[str, Any]:
        """The whole as plain data."""
        return {
            "schema": 1,
            "ok": self.error is None and not self.failed,
            "error": self.error,
            **self.facts,
            "checks": [check._asdict() for check in self.checks],
        }

    def finish(self, out: Path | None) -> None:
        """Write the document into `out`, and to standard output where it was asked for."""
        text = json.dumps(self.document(), indent=2, ensure_ascii=False)
        if out is not None and out.is_dir():
            (out / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        if self.as_json:
            sys.stdout.write(json.dumps(self.document(), indent=2) + "\n")
            sys.stdout.flush()


def _console(*, quiet: bool) -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_COLUMNS
    return Console(quiet=quiet, width=width, highlight=False, emoji=False, soft_wrap=False)


def _draws_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.2f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
