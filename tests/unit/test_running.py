"""When waiting threads and processes may keep a processor awake."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from blackroad import running
from blackroad.running import Running


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Running]:
    """One that has so many processors, attempts under way, and others that look."""

    def made(processors: int, busy: int = 0, lookers: int = 2) -> Running:
        monkeypatch.setattr(running, "processors", lambda: processors)
        node: Any = SimpleNamespace(owner=SimpleNamespace(attempts={}))
        pool: Any = SimpleNamespace(busy=busy)
        store: Any = SimpleNamespace()
        monkeypatch.setattr(running, "Sealer", lambda _store: None)
        found = Running(node, pool, store, lambda _event: None, None, lookers)
        assert pool.looks == found._looks
        return found

    return made


@pytest.mark.parametrize(
    ("processors", "lookers", "busy", "looks"),
    [
        (1, 1, 0, False),
        (2, 1, 0, True),
        (2, 1, 1, True),
        (2, 1, 2, False),
        (2, 2, 0, False),
        (3, 2, 1, True),
        (4, 2, 2, True),
        (4, 2, 3, False),
    ],
)
def test_a_task_process_looks_where_a_processor_is_left(
    among: Callable[..., Running], processors: int, lookers: int, busy: int, looks: bool
) -> None:
    """Beside the program that waits, and the daemon if there is one."""
    assert among(processors, busy, lookers)._looks() is looks


def test_with_one_processor_nobody_looks(among: Callable[..., Running]) -> None:
    assert not among(1).few
    assert among(2, busy=1).few
    assert not among(2, busy=2).few
