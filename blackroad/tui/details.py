"""One node, one task, one reason in full: what `d` and `w` show.

Pure.  This file must not know what draws the lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from blackroad.tui.words import clean
from blackroad.units import format_bytes, format_ms

Fact = tuple[str, object]
HELP: Final = """\
Panes
  1  everything     2  nodes     3  tasks     4  queues     5  events
  Tab, Shift-Tab    the next pane, the one before
  Up, Down, j, k    the row above or below; PgUp, PgDn, Home, End, g, G as well
  Enter, d          describe what the cursor is on

Rows
  /                 filter: all words must be in the row;
                    `user:ann` in that column, `!word` nowhere
  Escape            no filter; close what is open
  < >               sort by the column on the left, on the right
  I                 upside down
  P M T N           sort by processor, memory, tasks/s or time, name
  b                 queues: by class, by user, by owner

Tasks
  l                 what it prints, as it comes
  w                 why it is not running
  c                 cancel (asks first)
  t                 try again, one that failed (asks first)

Nodes
  D                 drain: take nothing new (asks first)
  R                 resume: take work again

The rest
  p                 pause, and go on
  + -               look more often, less often
  q, Ctrl-C         end\
"""


def facts(pairs: Iterable[Fact]) -> list[str]:
    """Names and values in two columns, without those that say nothing."""
    shown = [(name, clean(str(value))) for name, value in pairs if value not in ("", None, [], {})]
    wide = max((len(name) for name, _ in shown), default=0)
    return [f"{name.ljust(wide)}  {value}" for name, value in shown]


def node(row: Mapping[str, Any]) -> list[str]:
    """One row of `Client.nodes` in full."""
    there = row["state"] in ("alive", "draining", "suspect")
    labels = " ".join(f"{name}={value}" for name, value in row["labels"].items())
    pairs: list[Fact] = [
        ("name", row["name"]),
        ("id", row["node"]),
        ("state", row["state"] + (", coordinator" if row["coordinator"] else "")),
        ("heard", "" if not row["silent_ms"] else f"{format_ms(row['silent_ms'])} ago"),
        ("follows", row["follows"]),
        ("life", f"{row['incarnation']}"),
        ("machine", f"{row['arch']}, {row['cores']} cores, Python {row['python']}"),
        ("slots", f"{row['running']} of {row['slots']} busy, {row['waiting']} waiting"),
        ("done", f"{row['done']} tasks in this life"),
        ("owns", f"{row.get('owned', 0)} tasks that have not ended"),
        ("memory", _memory(row) if there else ""),
        ("used", _used(row) if there else ""),
        ("load", f"{row['load_percent']} % of its cores" if there else ""),
        ("temperature", f"{row['temperature_c']} °C" if row["temperature_c"] else ""),
        ("throttled", "yes: it is slowed down by heat or power" if row["throttled"] else ""),
        ("network", _network(row) if there else ""),
        ("loop lag", format_ms(row["loop_lag_ms"]) if there else ""),
        ("heartbeat", f"every {format_ms(row['heartbeat_ms'])}"),
        ("speed", f"{row['speed']:g} million turns a second"),
        ("labels", labels),
    ]
    pairs += [("device", _device(device)) for device in row["devices"]]
    pairs += [("note", note) for note in row["notes"]]
    return facts(pairs)


def _memory(row: Mapping[str, Any]) -> str:
    free, total = (format_bytes(row[name]) for name in ("free_memory_bytes", "memory_bytes"))
    return f"{free} not reserved of {total}"


def _used(row: Mapping[str, Any]) -> str:
    """By whomever, not by tasks alone."""
    return f"processor {row.get('cpu_percent', 0)} %, memory {row.get('memory_percent', 0)} %"


def _network(row: Mapping[str, Any]) -> str:
    ways = (("receiving_kib_s", "in"), ("sending_kib_s", "out"))
    return ", ".join(f"{format_bytes(row.get(name, 0) * 1024)}/s {way}" for name, way in ways)


def _device(device: Mapping[str, Any]) -> str:
    parts = [device["name"], device["backend"]]
    if device["memory_bytes"]:
        parts.append(format_bytes(device["memory_bytes"]))
    if device.get("problem"):
        parts.append(f"not used: {device['problem']}")
    return ", ".join(parts)


def task(told: Mapping[str, Any]) -> list[str]:
    """What `Client.status` tells of a task."""
    ended = told["ended"] or {}
    places = ", ".join(f"{place['name']} ({place['id']})" for place in told["nodes"])
    run_us = ended.get("run_us", 0)
    deadline_ms = told["deadline_in_ms"]
    kind = "durable" if told["durable"] else "attached"
    waits = told["ended"] is None and told["waited_ms"]
    return facts(
        [
            ("id", told["id"]),
            ("state", told["state"]),
            ("name", told["name"]),
            ("user", told["user"]),
            ("needs", told["needs"]),
            ("kind", f"{kind}, pure" if told["pure"] else kind),
            ("priority", told["priority"] or ""),
            ("ran on" if told["ended"] else "node", places),
            ("since", f"submitted {format_ms(told['waited_ms'])} ago" if waits else ""),
            ("deadline", f"in {format_ms(deadline_ms)}" if deadline_ms is not None else ""),
            ("attempts", told["attempts"] or ""),
            ("lost", told["lost"] or ""),
            ("crashed", told["crashed"] or ""),
            ("last", told["last"] if not ended else ""),
            ("took", _took(run_us)),
            ("computed by", ended.get("backend", "")),
            ("reason", told["reason"]),
            ("error", " ".join(filter(None, (ended.get("type"), ended.get("text"))))),
            ("exit status", ended.get("exit_status")),
        ]
    )


def _took(run_us: int) -> str:
    if not run_us:
        return ""
    return format_ms(run_us // 1000) if run_us >= 1000 else f"{run_us} µs"


def event(names: Sequence[str], cells: Sequence[str]) -> list[str]:
    """One event in full."""
    return facts(zip(names, cells, strict=True))
