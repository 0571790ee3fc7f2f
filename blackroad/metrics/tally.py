"""What is counted of tasks as they end, and of events as they are told.

Pure.  For each task this costs a few look-ups and no memory: times fall into powers of two, names
into a bounded table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import End
from blackroad.metrics.names import TASK_NAMES_MAX, WORDS_MAX
from blackroad.metrics.page import Folded

if TYPE_CHECKING:
    from blackroad.router.records import Task

POWER_MAX = 64
_ENDS = {end: end.name.lower() for end in End}
_RAN = frozenset({End.DONE, End.FAILED})


class Tally:
    """Counters of one life of a daemon."""

    def __init__(self) -> None:
        self.names = Folded(TASK_NAMES_MAX)
        self.by_name: dict[tuple[str, str], int] = {}
        # At k: how many lay above 2^(k-1) and up to 2^k; microseconds, and milliseconds.
        self.runs = [0] * (POWER_MAX + 1)
        self.runs_us = 0
        self.wholes = [0] * (POWER_MAX + 1)
        self.wholes_ms = 0
        self.events: dict[tuple[str, str], int] = {}
        self._event_names = Folded(WORDS_MAX)

    def ended(self, tasks: Sequence[Task], now_ms: int) -> None:
        """Count tasks that have ended.

        Cost  about half a microsecond a task, where those of a batch have one name.
        """
        runs, wholes = self.runs, self.wholes
        runs_us = wholes_ms = 0
        name, end, count = "", End.DONE, 0
        for task in tasks:
            ended = task.ended
            if ended is None:
                continue
            if ended.end in _RAN:
                run_us = ended.facts.run_us
                runs_us += run_us
                runs[(run_us - 1).bit_length() if run_us else 0] += 1
            whole_ms = now_ms - task.queued_ms
            if whole_ms > 1:
                wholes_ms += whole_ms
                wholes[(whole_ms - 1).bit_length()] += 1
            else:
                wholes_ms += max(0, whole_ms)
                wholes[0] += 1
            spec_name = task.spec.name
            if spec_name == name and ended.end is end:
                count += 1
                continue
            self._named(name, end, count)
            name, end, count = spec_name, ended.end, 1
        self._named(name, end, count)
        self.runs_us += runs_us
        self.wholes_ms += wholes_ms

    def _named(self, name: str, end: End, count: int) -> None:
        if count:
            key = (self.names.value(name), _ENDS[end])
            self.by_name[key] = self.by_name.get(key, 0) + count

    def told(self, name: str, severity: str) -> None:
        """Count an event."""
        key = (self._event_names.value(name), severity)
        self.events[key] = self.events.get(key, 0) + 1
