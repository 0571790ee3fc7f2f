"""Every figure that a node shows: its name, its kind, its labels and what it means.

Pure.  docs/metrics.md is made from this list, and a figure that is not in it cannot be shown.  The
values of every label come from a set that is closed or capped here; this file knows no node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# Beyond these many lines of figures nothing more is shown, whatever there is to tell.
SERIES_MAX: Final = 2_000
# The first so many names (of tasks, of users) have figures of their own, later ones share one.
TASK_NAMES_MAX: Final = 100
USERS_MAX: Final = 50
WORDS_MAX: Final = 64
PEERS_MAX: Final = 128
LABEL_CHARS_MAX: Final = 64
OTHER: Final = "other"

GAUGE: Final = "gauge"
COUNTER: Final = "counter"
HISTOGRAM: Final = "histogram"


class Metric(NamedTuple):
    """One figure; `series_max` is how many lines of it there can be."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    series_max: int = 1


def _gauge(name: str, help_: str, *labels: str, most: int = 1) -> Metric:
    return Metric(f"blackroad_{name}", GAUGE, help_, labels, most)


def _counter(name: str, help_: str, *labels: str, most: int = 1) -> Metric:
    return Metric(f"blackroad_{name}", COUNTER, help_, labels, most)


# How a task can end, as the label `end` says it.
ENDS: Final = ("done", "failed", "cancelled", "expired", "quarantined", "unknown")
# Times are counted in powers of two: from about a millisecond to some twelve days.
RUN_POWERS: Final = tuple(range(10, 41, 2))
WHOLE_POWERS: Final = tuple(range(0, 31, 2))

NODE: Final = (
    _gauge(
        "node_info",
        "Always 1; what this node is.",
        "node",
        "name",
        "version",
        "arch",
        "python",
    ),
    _gauge("incarnation", "How many lives this node has begun, by its state directory."),
    _gauge("uptime_seconds", "How long this life of the daemon has lasted."),
    _gauge("slots", "Tasks of one core that this node runs at once."),
    _gauge("slots_free", "Those that are free."),
    _gauge("tasks_running", "Attempts that run on this node now, of any owner."),
    _gauge("tasks_waiting", "Attempts that wait on this node for a slot."),
    _counter("attempts_done_total", "Attempts that this node has brought to an end, of any owner."),
    _gauge("memory_bytes", "Memory that tasks may ask for on this node."),
    _gauge("memory_free_bytes", "What no task has asked for of it."),
    _gauge("load_ratio", "Load average of one minute, over the number of cores."),
    _gauge("temperature_celsius", "The hottest part of the machine; 0 where nothing tells."),
    _gauge("throttled", "1 while the machine slows itself down because of heat or weak power."),
    _gauge("draining", "1 while this node takes nothing new."),
    _gauge("loop_lag_seconds", "How late the daemon's loop was lately."),
    _gauge(
        "device_memory_bytes",
        "Memory of a device that computes; its name and kind stand beside it.",
        "device",
        "kind",
        "device_name",
        most=32,
    ),
)

TASKS: Final = (
    _gauge(
        "tasks",
        "Tasks submitted to this node: queued, granted to a worker, or ended and kept.",
        "state",
        most=3,
    ),
    _gauge("tasks_queued", "Tasks of each user that wait here.", "user", most=USERS_MAX + 1),
    _gauge("queue_oldest_seconds", "How long the task has waited that has waited longest."),
    _gauge("task_classes", "Kinds of tasks with equal needs, priority and user."),
    _counter("tasks_ended_total", "Tasks submitted to this node that have ended.", "end", most=6),
    Metric(
        "cluster_jobs_total",
        COUNTER,
        "The same figures under the name that dashboards of other systems ask for.",
        ("status",),
        6,
    ),
    _counter(
        "tasks_by_name_total",
        f"Ended tasks by name; the first {TASK_NAMES_MAX} names, all later ones as `{OTHER}`.",
        "task",
        "end",
        most=(TASK_NAMES_MAX + 1) * len(ENDS),
    ),
    _counter("tasks_requeued_total", "Times that a task went back to the queue."),
    _counter("attempts_lost_total", "Attempts given up since their bound ran out."),
    _counter("outcomes_stale_total", "Late outcomes that counted for nothing."),
    _counter(
        "grants_refused_total", "Grants of this node that a worker refused.", "reason", most=9
    ),
    _counter("refusals_total", "Grants that this node's worker refused.", "reason", most=9),
    Metric(
        "blackroad_task_run_seconds",
        HISTOGRAM,
        "How long done and failed tasks ran, of those submitted to this node.",
        (),
        len(RUN_POWERS) + 3,
    ),
    Metric(
        "blackroad_task_whole_seconds",
        HISTOGRAM,
        "From when a task was queued last to its end.",
        (),
        len(WHOLE_POWERS) + 3,
    ),
    _gauge("sessions", "Programs that are connected with tasks of their own."),
)

MESH: Final = (
    _gauge("coordinator", "1 on the node that coordinates."),
    _gauge("coordinator_known", "1 while this node follows a coordinator, itself included."),
    _gauge("epoch", "The reign that this node follows; it only rises."),
    _counter("tables_total", "Allocation tables that this node made while it coordinated."),
    _gauge("nodes", "Nodes that this one knows, itself included, by state.", "state", most=8),
    _gauge(
        "peer_up",
        "1 while that node is heard: of at most 128 nodes, as all figures of peers.",
        "peer",
        "peer_name",
        most=PEERS_MAX,
    ),
    _gauge("peer_silent_seconds", "Since when that node was not heard.", "peer", most=PEERS_MAX),
    _gauge("peer_slots", "Slots of that node.", "peer", most=PEERS_MAX),
    _gauge("peer_tasks_running", "Attempts that run on that node.", "peer", most=PEERS_MAX),
    _counter(
        "peer_attempts_done_total",
        "Attempts that it has brought to an end.",
        "peer",
        most=PEERS_MAX,
    ),
)

EDGES: Final = (
    _counter(
        "bus_total",
        "What the bus counts that should be rare: breaches, refusals, cut links.",
        "what",
        most=WORDS_MAX + 1,
    ),
    _counter(
        "objects_total", "What the exchange of large values counts.", "what", most=WORDS_MAX + 1
    ),
    _gauge("objects_bytes", "Large values that are kept on this node."),
    _counter(
        "topics_total", "What topics count: values, repairs, losses.", "what", most=WORDS_MAX + 1
    ),
    _gauge("topics_subscriptions", "Subscriptions of programs on this node."),
    _gauge("topics_kept_bytes", "Memory of last values that are kept for late subscribers."),
    _counter("journal_commits_total", "Flushes of the journal to the disk."),
    _counter("journal_rows_total", "Rows written to the journal."),
    _counter("journal_damaged_total", "Rows set aside as damaged, in all lives of this node."),
    _gauge("disk_full", "1 while the state directory has no room for new durable tasks."),
    _gauge("members", "Members of a closed cluster; 0 in an open one."),
    _counter(
        "connections_refused_total",
        "Connections that did not prove who they are.",
        "kind",
        most=WORDS_MAX + 1,
    ),
    _counter(
        "events_total", "Events that this node told of.", "event", "severity", most=2 * WORDS_MAX
    ),
)

PROCESS: Final = (
    _counter("process_cpu_seconds_total", "Processor time of the daemon alone, without tasks."),
    _gauge("process_resident_bytes", "Memory of the daemon alone, without tasks."),
    _gauge("process_descriptors", "Open files and sockets of the daemon."),
    _gauge("process_descriptors_max", "How many it may have open."),
)

SERVER: Final = (
    _counter("http_requests_total", "Answers of this server.", "code", most=12),
    _counter("http_dropped_total", "Connections it dropped, by why.", "why", most=4),
    _gauge("http_connections", "Connections it has now."),
    _gauge("page_seconds", "What making the page before this one cost the daemon."),
    _gauge("series", "Lines of figures on the page before this one."),
    _gauge("series_cut", f"Lines left out of it, beyond {SERIES_MAX}."),
)

GROUPS: Final[Mapping[str, tuple[Metric, ...]]] = {
    "This node": NODE,
    "Tasks submitted to this node": TASKS,
    "The mesh, as this node sees it": MESH,
    "Edges: bus, objects, topics, journal, security, events": EDGES,
    "The daemon's process": PROCESS,
    "The server of these figures": SERVER,
}
METRICS: Final[Mapping[str, Metric]] = {
    metric.name: metric for group in GROUPS.values() for metric in group
}
