"""What people ask a history: tasks, nodes, usage, events, in a stretch of time.

Edge: reads one database.  Every figure is computed from rows; none is kept.  Counts and running
times come from the counts by the minute, which are exact also where there were too many tasks to
keep a row of each.  This file must not know how anything is shown.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Select, and_, func, or_, select, text

from blackroad.errors import UsageError
from blackroad.history import schema
from blackroad.history.database import Database
from blackroad.history.ingest import SAMPLE_MS

BUCKETS: Final = 48
SEVERITIES: Final = ("debug", "info", "warning", "error")
BY: Final = {
    "name": schema.load_balancing_metrics.c.name,
    "node": schema.load_balancing_metrics.c.node,
    "owner": schema.load_balancing_metrics.c.owner,
    "user": schema.load_balancing_metrics.c.user_name,
    "state": schema.load_balancing_metrics.c.state,
}

Row = dict[str, Any]


class Span(NamedTuple):
    """From when until when, in milliseconds of the wall clock; the end is not in it."""

    since_ms: int
    until_ms: int

    def parts(self, finest_ms: int) -> tuple[int, int]:
        """Into how many equal parts a plot divides it, and how long each is."""
        length_ms = max(1, self.until_ms - self.since_ms)
        width_ms = max(finest_ms, -(-length_ms // BUCKETS))
        return -(-length_ms // width_ms), width_ms


class Filter(NamedTuple):
    """Which tasks or events: patterns with * and ?, and a node's name or the start of its id."""

    state: str = ""
    name: str = ""
    user: str = ""
    node: str = ""


class Reader:
    """Asks one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- tasks ------------------------------------------------------------------------------------

    def tasks(self, span: Span, which: Filter, limit: int) -> Row:
        """The newest tasks that ended, and how many there were in all, by state."""
        table, counts = schema.tasks, schema.load_balancing_metrics
        nodes = self._nodes_called(which.node)
        chosen = _chosen(table.c.ended_ms, span, which, table.c, nodes)
        rows = self._rows(
            select(table).where(*chosen).order_by(table.c.ended_ms.desc()).limit(limit)
        )
        names = self.names()
        for row in rows:
            row["node_name"] = names.get(row["node"], row["node"])
            row["owner_name"] = names.get(row["owner"], row["owner"])
        counted = self._rows(
            select(counts.c.state, func.sum(counts.c.tasks).label("tasks"))
            .where(*_chosen(counts.c.at_ms, _whole(span), which, counts.c, nodes))
            .group_by(counts.c.state)
        )
        return {
            "since_ms": span.since_ms,
            "until_ms": span.until_ms,
            "tasks": rows,
            "counts": {row["state"]: int(row["tasks"]) for row in counted},
        }

    # --- nodes ------------------------------------------------------------------------------------

    def nodes(self, span: Span) -> Row:
        """How the nodes were: there, busy, warm; with figures over time for a plot."""
        found: dict[str, Row] = {}
        for row in self._rows(select(schema.cluster_nodes).order_by(schema.cluster_nodes.c.name)):
            row |= {
                "seen_percent": 0.0,
                "busy_percent": 0.0,
                "load_percent": 0.0,
                "cpu_percent": 0.0,
            }
            row |= {"temperature_c_max": 0.0, "throttled_percent": 0.0, "memory_percent": 0.0}
            row |= {"tasks": 0, "failed": 0, "core_hours": 0.0, "series": []}
            found[row["node"]] = row
        for row in self._sampled(span):
            self._put_together(found, row, span)
        counts = schema.load_balancing_metrics
        for row in self._rows(
            select(
                counts.c.node,
                counts.c.state,
                func.sum(counts.c.tasks).label("tasks"),
                func.sum(counts.c.core_us).label("core_us"),
            )
            .where(counts.c.at_ms >= _whole(span).since_ms, counts.c.at_ms < span.until_ms)
            .group_by(counts.c.node, counts.c.state)
        ):
            node = found.get(row["node"])
            if node is not None:
                node["tasks"] += int(row["tasks"])
                node["failed"] += int(row["tasks"]) if row["state"] != "done" else 0
                node["core_hours"] += float(row["core_us"]) / 3.6e9
        count, _ = span.parts(SAMPLE_MS)
        for node in found.values():
            parts = node.pop("_parts", {})
            node["series"] = [parts.get(at) for at in range(count)]
            node.pop("_samples", None)
        return {
            "since_ms": span.since_ms,
            "until_ms": span.until_ms,
            "health": self.health(),
            "nodes": list(found.values()),
        }

    def _sampled(self, span: Span) -> list[Row]:
        table = schema.system_resources
        weight = table.c.samples
        # Whole buckets of rows: a week of a large mesh is a few thousand of them, not millions.
        _, width = span.parts(SAMPLE_MS)
        part = ((table.c.at_ms - span.since_ms) // width).label("part")

        def mean(column: Any) -> Any:
            return func.sum(column * weight) / func.sum(weight)

        busy = table.c.running / func.nullif(table.c.slots, 0)
        return self._rows(
            select(
                table.c.node,
                part,
                func.sum(weight).label("samples"),
                mean(func.coalesce(busy, 0)).label("busy"),
                mean(table.c.cpu_percent).label("cpu"),
                mean(table.c.memory_percent).label("memory"),
                mean(table.c.load_percent).label("load"),
                mean(table.c.throttled).label("throttled"),
                func.max(table.c.temperature_c_max).label("hottest"),
            )
            .where(table.c.at_ms >= span.since_ms, table.c.at_ms < span.until_ms)
            .group_by(table.c.node, part)
        )

    @staticmethod
    def _put_together(found: dict[str, Row], row: Row, span: Span) -> None:
        node = found.get(row["node"])
        if node is None:
            return
        samples, before = int(row["samples"]), int(node.get("_samples", 0))
        node["_samples"] = samples + before
        means = {
            "busy_percent": 100.0 * float(row["busy"]),
            "throttled_percent": 100.0 * float(row["throttled"]),
            "cpu_percent": float(row["cpu"]),
            "memory_percent": float(row["memory"]),
            "load_percent": float(row["load"]),
        }
        for name, value in means.items():
            node[name] = (node[name] * before + value * samples) / (samples + before)
        node["temperature_c_max"] = max(node["temperature_c_max"], float(row["hottest"]))
        begin_ms = max(span.since_ms, int(node["joined_ms"]))
        expected = max(1.0, (span.until_ms - begin_ms) / SAMPLE_MS)
        node["seen_percent"] = min(100.0, 100.0 * (samples + before) / expected)
        node.setdefault("_parts", {})[int(row["part"])] = 100.0 * float(row["busy"])

    def health(self) -> Row:
        """The view `health_summary`, and how many alerts there are."""
        with self._database.begin() as connection:
            row = dict(connection.execute(text("SELECT * FROM health_summary")).mappings().one())
            alerts = connection.execute(text("SELECT COUNT(*) FROM active_alerts")).scalar()
        return {**row, "alerts": int(alerts or 0)}

    # --- usage ------------------------------------------------------------------------------------

    def usage(self, span: Span, by: str, which: Filter) -> Row:
        """Who used what: tasks, hours, hours of cores, by one of `BY`; with figures over time.

        Raises  UsageError.
        """
        column = BY.get(by)
        if column is None:
            raise UsageError(f"usage is not counted by `{by}`", hint=f"by {', '.join(BY)}")
        table = schema.load_balancing_metrics
        nodes = self._nodes_called(which.node)
        whole = _whole(span)
        count, width = whole.parts(60_000)
        part = ((table.c.at_ms - whole.since_ms) // width).label("part")
        rows = self._rows(
            select(
                column.label("key"),
                part,
                func.sum(table.c.tasks).label("tasks"),
                func.sum(table.c.run_us).label("run_us"),
                func.sum(table.c.core_us).label("core_us"),
                func.sum(_if_not(table.c.state, "done", table.c.tasks)).label("failed"),
            )
            .where(*_chosen(table.c.at_ms, whole, which, table.c, nodes))
            .group_by(column, part)
        )
        names = self.names() if by in ("node", "owner") else {}
        found: dict[str, Row] = {}
        parts: dict[str, dict[int, float]] = {}
        for row in rows:
            key = str(row["key"])
            one = found.setdefault(
                key,
                {"key": names.get(key, key), "tasks": 0, "failed": 0, "hours": 0.0}
                | {"core_hours": 0.0, "mean_ms": 0.0},
            )
            one["tasks"] += int(row["tasks"])
            one["failed"] += int(row["failed"])
            one["hours"] += float(row["run_us"]) / 3.6e9
            one["core_hours"] += float(row["core_us"]) / 3.6e9
            at = min(count - 1, int(row["part"]))
            mine = parts.setdefault(key, {})
            mine[at] = mine.get(at, 0.0) + float(row["tasks"])
        for key, one in found.items():
            one["mean_ms"] = 3.6e6 * one["hours"] / one["tasks"] if one["tasks"] else 0.0
            one["series"] = [parts[key].get(at, 0.0) for at in range(count)]
        ordered = sorted(found.values(), key=lambda one: (-one["core_hours"], -one["tasks"]))
        told = {"since_ms": span.since_ms, "until_ms": span.until_ms}
        return {**told, "by": by, "usage": ordered}

    # --- events -----------------------------------------------------------------------------------

    def events(self, span: Span, which: Filter, severity: str, cause: str, limit: int) -> list[Row]:
        """The newest events that are wanted, the oldest of them first.

        Raises  UsageError.
        """
        table = schema.cluster_events
        chosen = [table.c.at_ms >= span.since_ms, table.c.at_ms < span.until_ms]
        if severity:
            if severity not in SEVERITIES:
                hint = f"there are {', '.join(SEVERITIES)}"
                raise UsageError(f"`{severity}` is no severity", hint=hint)
            chosen.append(table.c.severity.in_(SEVERITIES[SEVERITIES.index(severity) :]))
        if which.name:
            chosen.append(_like(table.c.name, which.name))
        if which.node:
            by_name = table.c.host == which.node
            chosen.append(or_(by_name, table.c.node.like(_escaped(which.node) + "%", escape="\\")))
        if cause:
            chosen.append(or_(table.c.cause == cause, table.c.id == cause))
        rows = self._rows(select(table).where(*chosen).order_by(table.c.at_ms.desc()).limit(limit))
        return rows[::-1]

    # --- what is shared ---------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        """The label of each node, by its short id."""
        table = schema.cluster_nodes
        return {row["node"]: row["name"] for row in self._rows(select(table.c.node, table.c.name))}

    def _nodes_called(self, given: str) -> list[str] | None:
        if not given:
            return None
        named = self.names()
        found = [node for node, name in named.items() if name == given or node.startswith(given)]
        if not found:
            known = ", ".join(sorted(f"`{name}`" for name in named.values())) or "none yet"
            raise UsageError(f"the history knows no node `{given}`", hint=f"known are {known}")
        return found

    def _rows(self, statement: Select[Any]) -> list[Row]:
        with self._database.begin() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]


def _whole(span: Span) -> Span:
    """Counts are kept by the minute: the minute in which it begins belongs to it."""
    return Span(span.since_ms - span.since_ms % 60_000, span.until_ms)


def _chosen(
    time: Column[int], span: Span, which: Filter, columns: Any, nodes: list[str] | None
) -> list[Any]:
    chosen: list[Any] = [and_(time >= span.since_ms, time < span.until_ms)]
    if which.state:
        chosen.append(columns.state == which.state)
    if which.name:
        chosen.append(_like(columns.name, which.name))
    if which.user:
        chosen.append(_like(columns.user_name, which.user))
    if nodes is not None:
        chosen.append(columns.node.in_(nodes))
    return chosen


def _if_not(column: Any, value: str, then: Any) -> Any:
    from sqlalchemy import case

    return case((column != value, then), else_=0)


def _like(column: Any, pattern: str) -> Any:
    """A pattern as people type it, as SQL has it."""
    return column.like(_escaped(pattern).replace("*", "%").replace("?", "_"), escape="\\")


def _escaped(given: str) -> str:
    return given.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
