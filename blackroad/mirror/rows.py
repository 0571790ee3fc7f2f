"""What is written to the mirror, and under which keys.

Source  docs/redis.md.  Pure.  This file must not know how it gets there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from blackroad import __version__
from blackroad.bus import payload
from blackroad.bus.messages import End, Ended, Ref
from blackroad.errors import BlackroadError
from blackroad.ids import short, text32

if TYPE_CHECKING:
    from blackroad.node import Node

SCHEMA: Final = 1
# Larger results are told by their size only.
RESULT_BYTES_MAX: Final = 16 * 1024
# A list of lists can be long as JSON where it was short.
JSON_BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 64
_CODECS: Final = {payload.PLAIN: "plain", payload.PICKLE: "pickle", payload.CLOUDPICKLE: "pickle",
                  payload.RAW: "bytes"}  # fmt: skip
_INTEGER_MAX: Final = 2**63


class Keys:
    """The names of all keys of one cluster's mirror."""

    def __init__(self, cluster: str) -> None:
        self._base = f"blackroad:{cluster}:mirror"
        self.nodes = f"{self._base}:nodes"
        self.ended = f"{self._base}:ended"

    def node(self, node: str) -> str:
        """A row about one node."""
        return f"{self._base}:node:{node}"

    def result(self, task: str) -> str:
        """The outcome of one task."""
        return f"{self._base}:result:{task}"

    def mark(self, node: str) -> str:
        """A sign that what one node mirrored is still there."""
        return f"{self._base}:mark:{node}"


class Outcome(NamedTuple):
    """One ended task on its way to the child; a result that is too large comes as a Ref."""

    ended_ms: int
    ended: Ended


class Target(Struct, tag="target", frozen=True):
    """Where the child is to write: always the first thing it is told."""

    url: str
    cluster: str
    node: str
    keep_ms: int


class Batch(Struct, tag="batch", frozen=True):
    """Outcomes, which the child says by their serial that it has written."""

    serial: int
    rows: list[Outcome]


class Row(Struct, tag="row", frozen=True):
    """What is to be said of this node."""

    node: dict[str, Any]


class Report(Struct):
    """One thing that the child tells."""

    state: Annotated[str, Meta(max_length=32)] = ""
    problem: Annotated[str, Meta(max_length=600)] = ""
    final: bool = False
    # All batches up to this one have been written, or given up.
    done: int = 0
    written: int = 0
    dropped: int = 0
    again: int = 0


Message = Target | Batch | Row


# --- what other programs read ---------------------------------------------------------------------


def outcome_json(task: str, row: Outcome) -> bytes:
    """One outcome as other programs read it: JSON, at most 64 KiB and a little."""
    ended, facts = row.ended, row.ended.facts
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "id": task,
        "state": ended.end.name.lower(),
        "ended_ms": row.ended_ms,
        "run_us": facts.run_us,
        "attempts": ended.attempts,
        "node": short(ended.node) if ended.node else "",
    }
    texts = (("reason", ended.reason), ("error", facts.type_name), ("text", facts.text))
    told |= {name: value for name, value in texts if value}
    if facts.exit_status is not None:
        told["exit_status"] = facts.exit_status
    if ended.end is End.DONE:
        told |= _result(ended.result)
    return msgspec.json.encode(told)


def _result(result: bytes | Ref) -> dict[str, Any]:
    """The value where it is plain data, else how it is written and how large it is."""
    if isinstance(result, Ref):
        return {"encoding": "large", "bytes": result.size}
    told: dict[str, Any] = {"bytes": len(result)}
    try:
        told["encoding"] = _CODECS[payload.codec_of(result)] if result else "none"
        # Nothing is ever unpickled here: that would run a stranger's code.
        value = json_value(payload.decode(result, allow_pickle=False))
        if len(msgspec.json.encode(value)) <= JSON_BYTES_MAX:
            told["value"] = value
    except (BlackroadError, ValueError, TypeError, OverflowError, RecursionError, ImportError):
        told.setdefault("encoding", "unknown")
    return told


def json_value(value: Any, depth: int = 0) -> Any:
    """The same value as JSON knows it.

    Raises  ValueError, TypeError where JSON has nothing like it.
    """
    if depth > DEPTH_MAX:
        raise ValueError("too deep")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) >= _INTEGER_MAX:
            raise ValueError("a number that most programs would read wrong")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("no number in JSON")
        # Those of NumPy are floats as well, and foreign to the encoder.
        return float(value)
    if isinstance(value, list | tuple):
        return [json_value(one, depth + 1) for one in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys that are no text")
        return {key: json_value(one, depth + 1) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "strict")
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        # Arrays and scalars of NumPy.
        return json_value(value.tolist(), depth + 1)
    raise TypeError(f"JSON has no {type(value).__name__}")


def node_row(node: Node, now_ms: int) -> dict[str, Any]:
    """What is told of this node; when, is added by who writes it."""
    beat = node.beat(now_ms)
    supply = beat.supply
    caps = node.capabilities[node.me]
    return {
        "schema": SCHEMA,
        "id": short(node.me),
        "node": text32(node.me),
        "name": node.name,
        "version": __version__,
        "incarnation": node.inc >> 32,
        "uptime_ms": now_ms - node.started_ms,
        "state": "draining" if supply.draining else "alive",
        "coordinator": short(node.election.follows) if node.election.follows else "",
        "arch": caps.arch,
        "python": caps.python,
        "slots": supply.cpu_units // 10_000,
        "running": supply.running,
        "waiting": supply.waiting,
        "done": supply.done,
        "memory_bytes": supply.memory_bytes,
        "free_memory_bytes": supply.free_memory_bytes,
        "gpus": [device.name for device in caps.gpus()],
        "labels": dict(caps.labels),
        "load_percent": supply.load_percent,
        "temperature_c": supply.temperature_c,
        "throttled": supply.throttled,
    }
