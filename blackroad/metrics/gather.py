"""A node's figures, put on a page.

Reads what the node and its edges know, and changes nothing.  What a figure means stands in
`names.py`; how a page is written, in `page.py`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from blackroad import __version__
from blackroad.discovery.membership import PeerState
from blackroad.ids import inc_counter, short, text32
from blackroad.metrics.names import (
    ENDS,
    PEERS_MAX,
    RUN_POWERS,
    USERS_MAX,
    WHOLE_POWERS,
    WORDS_MAX,
)
from blackroad.metrics.page import Folded, Page, words

if TYPE_CHECKING:
    from blackroad.metrics.tally import Tally
    from blackroad.node import Node

# Classes beyond these are left out of what is told by user, and of the oldest task.
CLASSES_MAX: Final = 2_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STATES: Final = {state: state.name.lower() for state in PeerState}
_UNITS: Final = 10_000


def gather(page: Page, node: Node, edges: Mapping[str, Any], tally: Tally, now_ms: int) -> None:
    """Put everything on the page but what its server knows of itself.

    Cost  for each known node and each class of tasks, nothing for each task.
    """
    _machine(page, node, now_ms)
    _tasks(page, node, tally, now_ms)
    _mesh(page, node, now_ms)
    _edges(page, node, edges, tally)
    _process(page, edges)


def _machine(page: Page, node: Node, now_ms: int) -> None:
    caps = node.capabilities[node.me]
    beat = node.beat(now_ms)
    supply = beat.supply
    python = caps.python_full
    page.many(
        "blackroad_node_info",
        [((short(node.me), node.name, __version__, caps.arch, python), 1)],
    )
    page.one("blackroad_incarnation", inc_counter(node.inc))
    page.one("blackroad_uptime_seconds", max(0, now_ms - node.started_ms) / 1000)
    page.one("blackroad_slots", supply.cpu_units / _UNITS)
    page.one("blackroad_slots_free", supply.free_cpu_units / _UNITS)
    page.one("blackroad_tasks_running", supply.running)
    page.one("blackroad_tasks_waiting", supply.waiting)
    page.one("blackroad_attempts_done_total", supply.done)
    page.one("blackroad_memory_bytes", supply.memory_bytes)
    page.one("blackroad_memory_free_bytes", supply.free_memory_bytes)
    page.one("blackroad_load_ratio", supply.load_percent / 100)
    page.one("blackroad_temperature_celsius", supply.temperature_c)
    page.one("blackroad_throttled", supply.throttled)
    page.one("blackroad_draining", node.worker.draining)
    page.one("blackroad_loop_lag_seconds", beat.loop_lag_ms / 1000)
    page.many(
        "blackroad_device_memory_bytes",
        [
            ((str(at), device.kind, device.name), device.memory_bytes)
            for at, device in enumerate(caps.devices)
            if not device.problem
        ],
    )


def _tasks(page: Page, node: Node, tally: Tally, now_ms: int) -> None:
    owner = node.owner
    unended = queued = 0
    by_user: dict[str, int] = {}
    users = Folded(USERS_MAX)
    oldest_ms = now_ms
    for at, cls in enumerate(owner.classes.values()):
        unended += cls.tasks
        queued += cls.queued
        if not cls.queued or at >= CLASSES_MAX:
            continue
        user = users.value(cls.spec.user)
        by_user[user] = by_user.get(user, 0) + cls.queued
        first = cls.oldest()
        if first is not None:
            oldest_ms = min(oldest_ms, first.queued_ms)
    states = {"queued": queued, "granted": unended - queued, "ended": len(owner.tasks) - unended}
    page.many("blackroad_tasks", [((state,), max(0, n)) for state, n in states.items()])
    page.many("blackroad_tasks_queued", [((user,), count) for user, count in by_user.items()])
    page.one("blackroad_queue_oldest_seconds", (now_ms - oldest_ms) / 1000)
    page.one("blackroad_task_classes", len(owner.classes))
    counters = owner.counters
    ends = [((end,), counters.get(f"ended.{end}", 0)) for end in ENDS]
    page.many("blackroad_tasks_ended_total", ends)
    page.many("cluster_jobs_total", ends)
    page.many("blackroad_tasks_by_name_total", tally.by_name.items())
    page.one("blackroad_tasks_requeued_total", counters.get("requeued", 0))
    page.one("blackroad_attempts_lost_total", counters.get("bound", 0))
    page.one("blackroad_outcomes_stale_total", counters.get("outcome.stale", 0))
    refused = [
        ((name.removeprefix("refused."),), count)
        for name, count in sorted(counters.items())
        if name.startswith("refused.")
    ]
    page.many("blackroad_grants_refused_total", refused)
    mine = sorted(node.worker.counters.items())
    page.many("blackroad_refusals_total", [((name.lower(),), count) for name, count in mine])
    micro, milli = 1e-6, 1e-3
    page.spread("blackroad_task_run_seconds", tally.runs, RUN_POWERS, micro, tally.runs_us * micro)
    page.spread(
        "blackroad_task_whole_seconds", tally.wholes, WHOLE_POWERS, milli, tally.wholes_ms * milli
    )
    page.one("blackroad_sessions", len(owner.sessions.sessions))


def _mesh(page: Page, node: Node, now_ms: int) -> None:
    election = node.election
    page.one("blackroad_coordinator", election.follows == node.me)
    page.one("blackroad_coordinator_known", bool(election.follows))
    epoch = election.follows_epoch
    page.one("blackroad_epoch", epoch.counter if epoch is not None else 0)
    page.one("blackroad_tables_total", node.coordinator.tables)
    states = {"alive": 1}
    up: list[tuple[tuple[str, str], int]] = []
    silent, slots, running, done = [], [], [], []
    shorts: set[str] = set()
    for peer in sorted(node.membership.peers.values(), key=lambda one: one.node):
        state = _STATES[peer.state]
        states[state] = states.get(state, 0) + 1
        # Who said goodbye is not missed: nobody should be woken for it.
        if peer.state is PeerState.LEFT or len(up) >= PEERS_MAX:
            continue
        # Two that begin alike would be one line twice, and nobody would read the page.
        text = short(peer.node)
        key = (text if text not in shorts else text32(peer.node),)
        shorts.add(text)
        caps = node.capabilities.get(peer.node)
        supply = peer.beat.supply
        name = caps.name if caps is not None else ""
        up.append(((*key, name), int(peer.state is PeerState.ALIVE)))
        silent.append((key, max(0, now_ms - peer.heard_ms) / 1000))
        slots.append((key, supply.cpu_units // _UNITS))
        running.append((key, supply.running))
        done.append((key, supply.done))
    page.many("blackroad_nodes", [((state,), count) for state, count in states.items()])
    page.many("blackroad_peer_up", up)
    page.many("blackroad_peer_silent_seconds", silent)
    page.many("blackroad_peer_slots", slots)
    page.many("blackroad_peer_tasks_running", running)
    page.many("blackroad_peer_attempts_done_total", done)


def _edges(page: Page, node: Node, edges: Mapping[str, Any], tally: Tally) -> None:
    topics = dict(edges.get("topics", {}))
    subscriptions = topics.pop("subscriptions", 0)
    kept_bytes = topics.pop("kept_bytes", 0)
    for gauge in ("kept_own", "kept_heard", "waiting_bytes"):
        topics.pop(gauge, None)
    journal = edges.get("journal", {})
    gate = edges.get("gate", {})
    refused = gate.get("refused", {}).get("kinds", {})
    page.many("blackroad_bus_total", words(edges.get("transport", {}).items(), WORDS_MAX))
    # A figure that is there only from its first one on hides that one from who looks for a rise.
    objects = {"object.damaged": 0, **edges.get("objects", {})}
    page.many("blackroad_objects_total", words(objects.items(), WORDS_MAX))
    page.one("blackroad_objects_bytes", edges.get("stored_bytes", 0))
    page.many("blackroad_topics_total", words(topics.items(), WORDS_MAX))
    page.one("blackroad_topics_subscriptions", subscriptions)
    page.one("blackroad_topics_kept_bytes", kept_bytes)
    page.one("blackroad_journal_commits_total", journal.get("commits", 0))
    page.one("blackroad_journal_rows_total", journal.get("rows", 0))
    page.one("blackroad_journal_damaged_total", journal.get("damaged", 0))
    page.one("blackroad_disk_full", node.owner.full)
    page.one("blackroad_members", gate.get("members", 0))
    page.many("blackroad_connections_refused_total", words(refused.items(), WORDS_MAX))
    page.many("blackroad_events_total", tally.events.items())


def _process(page: Page, edges: Mapping[str, Any]) -> None:
    descriptors = edges.get("descriptors", {})
    page.one("blackroad_process_cpu_seconds_total", round(time.process_time(), 3))
    page.one("blackroad_process_resident_bytes", resident_bytes())
    page.one("blackroad_process_descriptors", descriptors.get("used", 0))
    page.one("blackroad_process_descriptors_max", descriptors.get("limit", 0))


def resident_bytes() -> int:
    """Memory of this process that is in RAM; its peak where the kernel tells no more."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read(64).split()[1]) * _PAGE_BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
