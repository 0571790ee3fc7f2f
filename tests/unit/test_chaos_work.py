"""Which tasks chaos submits, and how its diary keeper behaves outside of a task."""

from __future__ import annotations

import pytest

from blackroad.cli.chaos_tasks import KINDS, result_of, work
from blackroad.cli.chaos_work import LENGTHS_MS, plan

MANY = [plan("7", "client-1", number) for number in range(2_000)]


def test_a_task_is_the_same_whenever_it_is_drawn() -> None:
    assert plan("7", "client-1", 1_234) == MANY[1_234]


def test_tasks_of_other_runs_and_clients_are_others() -> None:
    ids = {plan(seed, client, 3).task for seed in ("7", "8") for client in ("a", "b")}
    assert len(ids) == 4
    assert len({each.task for each in MANY}) == len(MANY)
    assert {len(each.task) for each in MANY} == {16}


def test_there_is_some_of_everything() -> None:
    assert {each.kind for each in MANY} == set(KINDS)
    for said in ("durable", "pure", "once"):
        assert {getattr(each, said) for each in MANY} == {True, False}
    assert not any(each.pure and each.once for each in MANY)
    for _, shortest_ms, longest_ms in LENGTHS_MS:
        assert any(shortest_ms <= each.run_ms <= longest_ms for each in MANY)
    assert any(each.result_bytes > 64 * 1024 for each in MANY)
    assert any(each.cancel_ms for each in MANY)


def test_an_order_says_what_the_task_needs() -> None:
    each = MANY[0]
    order = each.order("/h", "/l")
    assert order == {
        "history": "/h",
        "locks": "/l",
        "task": "client-1-0",
        "kind": each.kind,
        "run_ms": each.run_ms,
        "result_bytes": each.result_bytes,
    }


def test_the_diary_is_kept_in_tasks_only() -> None:
    with pytest.raises(RuntimeError, match="as a task only"):
        work(MANY[0].order("/nowhere", "/nowhere"))


def test_a_result_is_known_by_its_token_and_its_bytes() -> None:
    assert result_of(("7/1", b"x")) == result_of(("7/1", b"x"))
    assert len({result_of(("7/1", b"x")), result_of(("7/2", b"x")), result_of(("7/1", b"y"))}) == 3
