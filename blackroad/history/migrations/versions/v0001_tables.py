"""The tables as they were first made."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    _cluster_config()
    _cluster_events()
    _cluster_nodes()
    _gpu_resources()
    _load_balancing_metrics()
    _lost_attempts()
    _network_topology()
    _spool_positions()
    _system_resources()
    _tasks()


def downgrade() -> None:
    """Take them away again, with all that is in them."""
    op.drop_index("ix_tasks_ended_ms", table_name="tasks")
    op.drop_table("tasks")
    op.drop_index("ix_system_resources_at_ms", table_name="system_resources")
    op.drop_table("system_resources")
    op.drop_table("spool_positions")
    op.drop_table("network_topology")
    op.drop_index("ix_lost_attempts_ended_ms", table_name="lost_attempts")
    op.drop_table("lost_attempts")
    op.drop_table("load_balancing_metrics")
    op.drop_table("gpu_resources")
    op.drop_table("cluster_nodes")
    op.drop_index("ix_cluster_events_cause", table_name="cluster_events")
    op.drop_index("ix_cluster_events_at_ms", table_name="cluster_events")
    op.drop_table("cluster_events")
    op.drop_table("cluster_config")


def _cluster_config() -> None:
    op.create_table(
        "cluster_config",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", "key", name=("pk_cluster_config")),
    )


def _cluster_events() -> None:
    op.create_table(
        "cluster_events",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=("pk_cluster_events")),
    )
    op.create_index("ix_cluster_events_at_ms", "cluster_events", ["at_ms"], unique=False)
    op.create_index("ix_cluster_events_cause", "cluster_events", ["cause"], unique=False)


def _cluster_nodes() -> None:
    op.create_table(
        "cluster_nodes",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), nullable=False),
        sa.Column("joined_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat_ms", sa.BigInteger(), nullable=False),
        sa.Column("arch", sa.String(), nullable=False),
        sa.Column("cores", sa.BigInteger(), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("os", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("node", name=("pk_cluster_nodes")),
    )


def _gpu_resources() -> None:
    op.create_table(
        "gpu_resources",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("gpu", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", "gpu", name=("pk_gpu_resources")),
    )


def _load_balancing_metrics() -> None:
    op.create_table(
        "load_balancing_metrics",
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("span_ms", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("user_name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("tasks", sa.BigInteger(), nullable=False),
        sa.Column("run_us", sa.BigInteger(), nullable=False),
        sa.Column("core_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "span_ms",
            "at_ms",
            "owner",
            "node",
            "name",
            "user_name",
            "state",
            name=("pk_load_balancing_metrics"),
        ),
    )


def _lost_attempts() -> None:
    op.create_table(
        "lost_attempts",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("granted_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.Column("run_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("task", "number", name=("pk_lost_attempts")),
    )
    op.create_index("ix_lost_attempts_ended_ms", "lost_attempts", ["ended_ms"], unique=False)


def _network_topology() -> None:
    op.create_table(
        "network_topology",
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("silent_ms", sa.BigInteger(), nullable=False),
        sa.Column("receiving_kib_s", sa.BigInteger(), nullable=False),
        sa.Column("sending_kib_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "target", name=("pk_network_topology")),
    )


def _spool_positions() -> None:
    op.create_table(
        "spool_positions",
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("read_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment", name=("pk_spool_positions")),
    )


def _system_resources() -> None:
    op.create_table(
        "system_resources",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("span_ms", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("slots", sa.Float(), nullable=False),
        sa.Column("running", sa.Float(), nullable=False),
        sa.Column("waiting", sa.Float(), nullable=False),
        sa.Column("owned", sa.Float(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("load_percent", sa.Float(), nullable=False),
        sa.Column("load_percent_max", sa.Float(), nullable=False),
        sa.Column("cpu_percent", sa.Float(), nullable=False),
        sa.Column("memory_percent", sa.Float(), nullable=False),
        sa.Column("memory_bytes", sa.Float(), nullable=False),
        sa.Column("free_memory_bytes", sa.Float(), nullable=False),
        sa.Column("temperature_c", sa.Float(), nullable=False),
        sa.Column("temperature_c_max", sa.Float(), nullable=False),
        sa.Column("throttled", sa.Float(), nullable=False),
        sa.Column("receiving_kib_s", sa.Float(), nullable=False),
        sa.Column("sending_kib_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("node", "span_ms", "at_ms", name=("pk_system_resources")),
    )
    op.create_index(
        "ix_system_resources_at_ms", "system_resources", ["span_ms", "at_ms"], unique=False
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("user_name", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("durable", sa.Boolean(), nullable=False),
        sa.Column("gang", sa.Integer(), nullable=False),
        sa.Column("cpu_units", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("submitted_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.Column("run_us", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("task", name=("pk_tasks")),
    )
    op.create_index("ix_tasks_ended_ms", "tasks", ["ended_ms"], unique=False)
