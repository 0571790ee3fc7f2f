"""The tables and views of the history, the same in SQLite and PostgreSQL.

Times are whole milliseconds of the wall clock since 1970, so that both databases compute with them
alike; sizes are bytes.  Tables are changed by a migration only (`migrations/`), and a test holds
the two equal.  This file must not know where records come from.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
)

# The newest migration: tables of this revision need none.
REVISION: Final = "0001"
# A node that was not heard for so long does not count as healthy, whatever was said last.
FRESH_MS: Final = 5 * 60_000
HEALTHY_PERCENT: Final = 80
DEGRADED_PERCENT: Final = 50
ALERT_MS: Final = 24 * 3_600_000

metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s"}
)


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, String, primary_key=key, nullable=False)


def _whole(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


cluster_nodes = Table(
    "cluster_nodes",
    metadata,
    _text("node", key=True),
    _text("name"),
    _text("status"),
    _whole("incarnation"),
    _whole("joined_ms"),
    _whole("last_heartbeat_ms"),
    _text("arch"),
    _whole("cores"),
    _whole("slots"),
    _whole("memory_bytes"),
    _text("python"),
    _text("os"),
    _text("model"),
    _text("version"),
    _text("address"),
    Column("labels", JSON, nullable=False),
)

gpu_resources = Table(
    "gpu_resources",
    metadata,
    _text("node"),
    Column("gpu", Integer, nullable=False),
    _text("name"),
    _whole("memory_bytes"),
    _text("driver"),
    _text("problem"),
    _whole("seen_ms"),
    PrimaryKeyConstraint("node", "gpu"),
)

# One row a node and sample.  `memory_bytes` is what tasks may ask for, and what is free of that;
# `cpu_percent` and `memory_percent` are what is used of the machine, by whomever.  Older rows are
# means over `span_ms`, `samples` says of how many.
system_resources = Table(
    "system_resources",
    metadata,
    _text("node"),
    _whole("at_ms"),
    _whole("span_ms"),
    Column("samples", Integer, nullable=False),
    Column("slots", Float, nullable=False),
    Column("running", Float, nullable=False),
    Column("waiting", Float, nullable=False),
    Column("owned", Float, nullable=False),
    _whole("done"),
    Column("load_percent", Float, nullable=False),
    Column("load_percent_max", Float, nullable=False),
    Column("cpu_percent", Float, nullable=False),
    Column("memory_percent", Float, nullable=False),
    Column("memory_bytes", Float, nullable=False),
    Column("free_memory_bytes", Float, nullable=False),
    Column("temperature_c", Float, nullable=False),
    Column("temperature_c_max", Float, nullable=False),
    Column("throttled", Float, nullable=False),
    Column("receiving_kib_s", Float, nullable=False),
    Column("sending_kib_s", Float, nullable=False),
    PrimaryKeyConstraint("node", "span_ms", "at_ms"),
    Index("ix_system_resources_at_ms", "span_ms", "at_ms"),
)

cluster_events = Table(
    "cluster_events",
    metadata,
    _text("id", key=True),
    _whole("at_ms"),
    _text("node"),
    _text("host"),
    _text("name"),
    _text("severity"),
    _text("cause"),
    Column("facts", JSON, nullable=False),
    Index("ix_cluster_events_at_ms", "at_ms"),
    Index("ix_cluster_events_cause", "cause"),
)

# What each node did for each owner, by the minute and later by the hour: exact, also where there
# were too many tasks to keep a row of each.
load_balancing_metrics = Table(
    "load_balancing_metrics",
    metadata,
    _whole("at_ms"),
    _whole("span_ms"),
    _text("owner"),
    _text("node"),
    _text("name"),
    _text("user_name"),
    _text("state"),
    _whole("tasks"),
    _whole("run_us"),
    _whole("core_us"),
    PrimaryKeyConstraint("span_ms", "at_ms", "owner", "node", "name", "user_name", "state"),
)

cluster_config = Table(
    "cluster_config",
    metadata,
    _text("node"),
    _text("key"),
    _text("value"),
    _text("kind"),
    _whole("changed_ms"),
    PrimaryKeyConstraint("node", "key"),
)

# How each node that writes a history hears the others, now.
network_topology = Table(
    "network_topology",
    metadata,
    _text("source"),
    _text("target"),
    _whole("at_ms"),
    _text("state"),
    _whole("silent_ms"),
    _whole("receiving_kib_s"),
    _whole("sending_kib_s"),
    PrimaryKeyConstraint("source", "target"),
)

tasks = Table(
    "tasks",
    metadata,
    _text("task", key=True),
    _text("owner"),
    _text("state"),
    _text("reason"),
    _text("name"),
    _text("user_name"),
    Column("priority", Integer, nullable=False),
    Column("durable", Boolean, nullable=False),
    Column("gang", Integer, nullable=False),
    _whole("cpu_units"),
    _whole("memory_bytes"),
    Column("gpus", Integer, nullable=False),
    _whole("submitted_ms"),
    _whole("ended_ms"),
    _whole("run_us"),
    _text("node"),
    Column("tries", Integer, nullable=False),
    _text("backend"),
    Index("ix_tasks_ended_ms", "ended_ms"),
)

# The attempts that came to nothing; the view `attempts` adds each task's last one.
lost_attempts = Table(
    "lost_attempts",
    metadata,
    _text("task"),
    Column("number", Integer, nullable=False),
    _text("node"),
    _whole("granted_ms"),
    _whole("ended_ms"),
    _whole("run_us"),
    _text("status"),
    PrimaryKeyConstraint("task", "number"),
    Index("ix_lost_attempts_ended_ms", "ended_ms"),
)

# How far each segment of a spool was read: written together with its rows, so that nothing is
# taken twice, whatever ends in between.
spool_positions = Table(
    "spool_positions",
    metadata,
    _text("segment", key=True),
    _whole("position"),
    _whole("read_ms"),
)

# --- views --------------------------------------------------------------------------------------

_NOW: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM now()) * 1000 AS BIGINT)",
}

_ATTEMPTS: Final = """
SELECT task, number, node, granted_ms, ended_ms, run_us, status FROM lost_attempts
UNION ALL
SELECT task, tries, node, ended_ms - run_us / 1000, ended_ms, run_us, state FROM tasks
WHERE tries > 0 AND node <> ''
"""

_ALLOCATIONS: Final = """
SELECT a.task AS task, a.number AS attempt, t.user_name AS allocated_to, a.node AS node,
       t.cpu_units AS cpu_units, t.memory_bytes AS memory_bytes, t.gpus AS gpus,
       t.priority AS priority, a.granted_ms AS allocated_ms, a.ended_ms AS released_ms
FROM attempts a JOIN tasks t ON t.task = a.task
"""

_HEALTH: Final = f"""
SELECT c.nodes AS nodes, c.healthy AS healthy, c.absent AS absent,
       CAST(CASE WHEN c.nodes = 0 THEN 0 ELSE 100.0 * c.healthy / c.nodes END
            AS DOUBLE PRECISION) AS percent,
       CASE WHEN c.nodes = 0 THEN 'unknown'
            WHEN 100.0 * c.healthy / c.nodes > {HEALTHY_PERCENT} THEN 'healthy'
            WHEN 100.0 * c.healthy / c.nodes > {DEGRADED_PERCENT} THEN 'degraded'
            ELSE 'critical' END AS status
FROM (SELECT COALESCE(SUM(CASE WHEN n.status = 'left' THEN 0 ELSE 1 END), 0) AS nodes,
             COALESCE(SUM(CASE WHEN n.status IN ('alive', 'draining')
                  AND n.last_heartbeat_ms >= {{now}} - {FRESH_MS} THEN 1 ELSE 0 END), 0) AS healthy,
             COALESCE(SUM(CASE WHEN n.status = 'left' THEN 1 ELSE 0 END), 0) AS absent
      FROM cluster_nodes n) c
"""

_UTILISATION: Final = """
SELECT n.node AS node, n.name AS name, r.at_ms AS at_ms, r.slots AS slots, r.running AS running,
       r.waiting AS waiting, r.load_percent AS load_percent, r.cpu_percent AS cpu_percent,
       r.memory_percent AS memory_percent,
       CASE WHEN r.slots > 0 THEN 100.0 * r.running / r.slots ELSE 0 END AS slots_percent,
       CASE WHEN r.memory_bytes > 0
            THEN 100.0 * (r.memory_bytes - r.free_memory_bytes) / r.memory_bytes
            ELSE 0 END AS memory_given_percent,
       r.temperature_c AS temperature_c, r.receiving_kib_s AS receiving_kib_s,
       r.sending_kib_s AS sending_kib_s
FROM cluster_nodes n
JOIN (SELECT node, MAX(at_ms) AS at_ms FROM system_resources GROUP BY node) l ON l.node = n.node
JOIN system_resources r ON r.node = l.node AND r.at_ms = l.at_ms
     AND r.span_ms = (SELECT MIN(s.span_ms) FROM system_resources s
                      WHERE s.node = l.node AND s.at_ms = l.at_ms)
"""

_ALERTS: Final = f"""
SELECT id, at_ms, node, host, name, severity, cause, facts FROM cluster_events
WHERE severity IN ('warning', 'error', 'critical') AND at_ms >= {{now}} - {ALERT_MS}
"""

# Whoever changes a view adds a migration, be it an empty one: views are made anew after each.
# In the order in which they are made; each rests on tables and on those above it.
VIEWS: Final = {
    "attempts": _ATTEMPTS,
    "resource_allocations": _ALLOCATIONS,
    "health_summary": _HEALTH,
    "resource_utilisation": _UTILISATION,
    "active_alerts": _ALERTS,
}


def view_sql(name: str, dialect: str) -> str:
    """The statement that makes a view, as this kind of database understands it."""
    return f"CREATE VIEW {name} AS {VIEWS[name].format(now=_NOW[dialect])}"
