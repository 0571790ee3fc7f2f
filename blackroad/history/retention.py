"""What is kept for how long: old samples become means, older ones go, in small steps.

Edge.  Each step is one short transaction, so that people who look are not kept waiting, and may be
done by any node that writes here, again and again.  This file must not know what the figures are
used for.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table, case, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from blackroad.history import schema
from blackroad.history.database import Database

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
# Whole samples and minutes for so long, then means of five minutes and sums of an hour.
FINE_MS: Final = DAY_MS
COARSE_SAMPLE_MS: Final = 5 * 60_000
COARSE_COUNT_MS: Final = HOUR_MS
STEP_ROWS: Final = 5_000
# Nodes that share a database put rows together one after the other.
_TIDYING: Final = 0x62724874
# However long things are kept: no more rows than this, the oldest go first.
ROWS_MAX: Final = {
    "tasks": 1_000_000,
    "lost_attempts": 200_000,
    "cluster_events": 500_000,
    "load_balancing_metrics": 1_000_000,
    "system_resources": 2_000_000,
}
_AGES: Final = (
    (schema.tasks, "ended_ms"),
    (schema.lost_attempts, "ended_ms"),
    (schema.cluster_events, "at_ms"),
    (schema.load_balancing_metrics, "at_ms"),
    (schema.system_resources, "at_ms"),
    (schema.network_topology, "at_ms"),
    (schema.gpu_resources, "seen_ms"),
    (schema.cluster_nodes, "last_heartbeat_ms"),
)


def tidy(database: Database, keep_days: int, now_ms: int) -> dict[str, int]:
    """Do all that is due; return how many rows went, by table.

    Cost  a short transaction for each 5,000 rows or each hour of samples.
    Raises  HistoryProblem.
    """
    gone: dict[str, int] = {}
    for table, column in _AGES:
        time = table.c[column]
        limit_ms = max(
            now_ms - keep_days * DAY_MS, _cap_ms(database, table, time, ROWS_MAX.get(table.name))
        )
        gone[table.name] = _drop(database, table, time, limit_ms)
    fine_ms = now_ms - FINE_MS
    _coarsen(database, schema.system_resources, COARSE_SAMPLE_MS, fine_ms)
    _coarsen(database, schema.load_balancing_metrics, COARSE_COUNT_MS, fine_ms)
    # A place outlives its segment only where a process ended in between.
    places = schema.spool_positions
    age_ms = now_ms - 2 * keep_days * DAY_MS - 30 * DAY_MS
    _drop(database, places, places.c.read_ms, age_ms)
    return gone


def _cap_ms(database: Database, table: Table, time: Column[int], rows: int | None) -> int:
    """The age from which on there are more rows than may be kept."""
    if rows is None:
        return 0
    newest = select(time).order_by(time.desc()).offset(rows).limit(1)
    with database.begin() as connection:
        found = connection.execute(newest).scalar()
    return int(found) + 1 if found is not None else 0


def _drop(database: Database, table: Table, time: Column[int], limit_ms: int) -> int:
    """Delete what is older, a piece at a time."""
    gone = 0
    step = select(time).where(time < limit_ms).order_by(time).offset(STEP_ROWS - 1).limit(1)
    while True:
        with database.begin() as connection:
            found = connection.execute(step).scalar()
            until = limit_ms if found is None else int(found) + 1
            result = connection.execute(table.delete().where(time < min(until, limit_ms)))
            gone += int(result.rowcount)
        if found is None:
            return gone


def _coarsen(database: Database, table: Table, span_ms: int, before_ms: int) -> None:
    """Put fine rows together that are old enough, an hour at a time."""
    fine = select(func.min(table.c.at_ms)).where(
        table.c.span_ms < span_ms, table.c.at_ms < before_ms - before_ms % HOUR_MS
    )
    while True:
        with database.begin() as connection:
            if database.dialect == "postgresql":
                # Two nodes at once would both see the fine rows, and the sums would be doubled.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TIDYING})")
            first = connection.execute(fine).scalar()
            if first is None:
                return
            begin = int(first) - int(first) % HOUR_MS
            hour = (table.c.span_ms < span_ms) & table.c.at_ms.between(begin, begin + HOUR_MS - 1)
            connection.execute(_merged(database, table, span_ms, hour))
            connection.execute(table.delete().where(hour))


def _merged(database: Database, table: Table, span_ms: int, which: Any) -> Any:
    """Insert one row for each coarse span; one that is there already takes in the latecomers."""
    insert = sqlite.insert if database.dialect == "sqlite" else postgresql.insert
    at = (table.c.at_ms - table.c.at_ms % span_ms).label("at_ms")
    keys = [column for column in table.primary_key.columns if column.name not in _SPAN]
    rest = [column for column in table.c if not column.primary_key]
    sums = _MEANT[table.name]
    values = [_together(column, sums).label(column.name) for column in rest]
    rows = (
        select(*keys, literal(span_ms).label("span_ms"), at, *values)
        .where(which)
        .group_by(*keys, at)
    )
    names = [column.name for column in (*keys, table.c.span_ms, table.c.at_ms, *rest)]
    statement = insert(table).from_select(names, rows)
    late = {column.name: _both(column, table, statement.excluded, sums) for column in rest}
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns), set_=late
    )


_SPAN: Final = ("span_ms", "at_ms")
# Of each table, the columns that are added up, and how the others are put together.
_MEANT: Final = {
    "system_resources": ("samples",),
    "load_balancing_metrics": ("tasks", "run_us", "core_us"),
}
_LARGEST: Final = ("load_percent_max", "temperature_c_max", "done")


def _together(column: Column[Any], sums: tuple[str, ...]) -> Any:
    if column.name in sums:
        return func.sum(column)
    if column.name in _LARGEST:
        return func.max(column)
    samples = column.table.c.samples
    return func.sum(column * samples) / func.sum(samples)


def _both(column: Column[Any], table: Table, new: Any, sums: tuple[str, ...]) -> Any:
    if column.name in sums:
        return column + new[column.name]
    if column.name in _LARGEST:
        return case((column > new[column.name], column), else_=new[column.name])
    weight = table.c.samples + new.samples
    return (column * table.c.samples + new[column.name] * new.samples) / weight
