"""What users write, whether a node has it, and what is missing when it has not.

Pure: this file knows no load, no peers and no tasks.  It reads `Capabilities` and never asks the
machine itself.  What travels is in `asks.py`, one node's arithmetic in `ledger.py`; both are to
be had from here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from blackroad.asks import (
    ALTERNATIVES_MAX,
    GPUS_MAX,
    Ask,
    Requirement,
    ask_of,
    from_wire,
    python_fits,
)
from blackroad.capabilities import Capabilities, normal_arch
from blackroad.errors import UsageError
from blackroad.ledger import Lease, Ledger, Totals
from blackroad.units import CPU_UNITS_PER_CORE, format_bytes, format_cpu_units, parse_bytes

__all__ = [
    "DIFFERENT",
    "MISSING",
    "TOO_LITTLE",
    "Ask",
    "Lease",
    "Ledger",
    "Needs",
    "Requirement",
    "Row",
    "Shortfall",
    "Totals",
    "explain",
    "fits",
    "from_wire",
    "shortfall",
]

NODE_PREFIX_MIN: Final = 4

TOO_LITTLE: Final = "too little"
DIFFERENT: Final = "different"
MISSING: Final = "missing"


# --- what users write ---------------------------------------------------------------------------


class Needs:
    """What a task needs from the machine that runs it; immutable, hashable, checked at once.

    `cpu` cores (may be a fraction), `memory` and `gpu_memory` sizes such as "2GiB", `gpu` whole
    devices unless `gpu_memory` says how much of each, `arch` one or several, `python` such as
    "3.11" (that minor version) or ">=3.12", `labels` a mapping (an empty value asks only that
    the label is there), `node` a name or the start of an id, `programs` found on the PATH.

    Raises  UsageError naming the field, what was given and what is allowed.
    """

    __slots__ = ("requirement",)
    requirement: Requirement

    def __init__(
        self,
        cpu: float | str | None = 1,
        memory: int | str | None = 0,
        gpu: int | None = 0,
        gpu_memory: int | str | None = 0,
        arch: str | Sequence[str] | None = None,
        python: str | None = None,
        labels: Mapping[str, str] | None = None,
        node: str | None = None,
        programs: str | Sequence[str] | None = (),
    ) -> None:
        ask = ask_of(cpu, memory, gpu, gpu_memory, arch, python, labels, node, programs)
        self._set(Requirement((ask,)))

    @classmethod
    def any(cls, *alternatives: Needs) -> Needs:
        """Return needs that are met by the first of `alternatives` that fits somewhere."""
        asks: list[Ask] = []
        for given in alternatives:
            if not isinstance(given, Needs):
                raise UsageError(
                    f"Needs.any takes Needs, not {type(given).__name__}",
                    hint="write Needs.any(Needs(gpu=1), Needs(cpu=8))",
                )
            asks += [ask for ask in given.requirement.alternatives if ask not in asks]
        if not 1 <= len(asks) <= ALTERNATIVES_MAX:
            raise UsageError(
                f"Needs.any takes 1 to {ALTERNATIVES_MAX} alternatives, not {len(asks)}",
                hint="write Needs.any(Needs(gpu=1), Needs(cpu=8))",
            )
        return cls.of(Requirement(tuple(asks)))

    @classmethod
    def of(cls, requirement: Requirement) -> Needs:
        """Return the needs that `requirement` stands for."""
        needs = cls.__new__(cls)
        needs._set(requirement)
        return needs

    def to_wire(self) -> bytes:
        """Return at most 1 KiB; equal needs give equal bytes."""
        return self.requirement.to_wire()

    def _set(self, requirement: Requirement) -> None:
        requirement.to_wire()
        object.__setattr__(self, "requirement", requirement)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Needs are immutable: make new ones")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Needs are immutable: make new ones")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Needs) and self.requirement == other.requirement

    def __hash__(self) -> int:
        return hash(self.requirement)

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return _needs_from_wire, (self.to_wire(),)

    def __repr__(self) -> str:
        texts = [f"Needs({_ask_text(ask)})" for ask in self.requirement.alternatives]
        return texts[0] if len(texts) == 1 else f"Needs.any({', '.join(texts)})"


def _needs_from_wire(data: bytes) -> Needs:
    return Needs.of(from_wire(data))


def _ask_text(ask: Ask) -> str:
    parts = [f"{name}={value!r}" for name, value in _spelled(ask).items()]
    return ", ".join(parts)


def _spelled(ask: Ask) -> dict[str, object]:
    """Return the arguments that make `ask`, those at their defaults left out."""
    size = {"memory": ask.memory_bytes, "gpu_memory": ask.gpu_memory_bytes}
    cpu = format_cpu_units(ask.cpu_units)
    spelled: dict[str, object] = {} if cpu == "1" else {"cpu": cpu}
    if ask.gpu:
        spelled["gpu"] = ask.gpu
    for name, value in size.items():
        if value:
            text = format_bytes(value)
            spelled[name] = text if parse_bytes(text) == value else value
    if ask.arch:
        spelled["arch"] = ask.arch[0] if len(ask.arch) == 1 else ask.arch
    if ask.labels:
        spelled["labels"] = dict(ask.labels)
    for name in ("python", "node", "programs"):
        if getattr(ask, name):
            spelled[name] = getattr(ask, name)
    return spelled


# --- does a node have it ------------------------------------------------------------------------


class Shortfall(NamedTuple):
    """One thing a node lacks; `verdict` is "too little", "different" or "missing"."""

    item: str
    asked: str
    there: str
    verdict: str


class Row(NamedTuple):
    """One line of the table that explains why no node can run a task; verdict "" means fine."""

    item: str
    asked: str
    nearest: str
    verdict: str


def fits(requirement: Requirement, caps: Capabilities, node_id_text: str = "") -> int:
    """Return which alternative the node could run if it were idle, or -1."""
    for index, ask in enumerate(requirement.alternatives):
        if _ask_fits(ask, caps, node_id_text):
            return index
    return -1


def shortfall(
    needs: Ask | Requirement, caps: Capabilities, node_id_text: str = ""
) -> list[Shortfall]:
    """Return item by item what the idle node lacks; for alternatives, of the nearest one."""
    if isinstance(needs, Ask):
        checks = _checks(needs, caps, node_id_text)
        return [Shortfall(c.item, c.asked, c.there, c.verdict) for c in checks if c.verdict]
    return min((shortfall(ask, caps, node_id_text) for ask in needs.alternatives), key=len)


def explain(requirement: Requirement, nodes: Sequence[tuple[str, str, Capabilities]]) -> list[Row]:
    """Return the table that says why no node can run this; empty when one can.

    Every item asked for has a row: the best that any one node has, and on which; with several
    alternatives the items are numbered.  Where each item is found somewhere but no node has
    all, the rows are those of the nearest node and the first row says so.

    Cost  nodes times items; for people, not for placement.
    """
    if any(fits(requirement, caps, node_id) >= 0 for _, node_id, caps in nodes):
        return []
    many = len(requirement.alternatives) > 1
    rows: list[Row] = []
    for number, ask in enumerate(requirement.alternatives, 1):
        prefix = f"{number}. " if many else ""
        rows += [row._replace(item=prefix + row.item) for row in _explain_ask(ask, nodes)]
    return rows


class _Check(NamedTuple):
    """One item of an ask held against one node; `rank` is larger where more is there."""

    item: str
    asked: str
    there: str
    verdict: str
    rank: float


def _explain_ask(ask: Ask, nodes: Sequence[tuple[str, str, Capabilities]]) -> list[Row]:
    if not nodes:
        checks = _checks(ask, _NOTHING, "") or [_check_cpu(ask, _NOTHING)]
        return [Row(check.item, check.asked, "no node answered", MISSING) for check in checks]
    held = sorted(
        (
            (sum(bool(check.verdict) for check in checks), name, node_id, checks)
            for name, node_id, caps in nodes
            for checks in (_checks(ask, caps, node_id),)
        ),
        key=lambda entry: entry[:3],
    )
    tables = [(name or node_id[:8], checks) for _, name, node_id, checks in held]
    rows = []
    for at in range(len(tables[0][1])):
        # `max` keeps the first of equals, and the nearest node comes first.
        name, best = max(
            ((name, checks[at]) for name, checks in tables),
            key=lambda pair: (not pair[1].verdict, pair[1].rank),
        )
        rows.append(Row(best.item, best.asked, _on(best.there, name), best.verdict))
    if any(row.verdict for row in rows):
        return rows
    name, checks = tables[0]
    together = Row("together", "all on one node", f"`{name}` comes nearest", MISSING)
    return [together, *(Row(c.item, c.asked, _on(c.there, name), c.verdict) for c in checks)]


def _on(there: str, name: str) -> str:
    return f"{there} on `{name}`"


def _ask_fits(ask: Ask, caps: Capabilities, node_id_text: str) -> bool:
    """Tell whether `_checks` would have no verdict, without making words."""
    if ask.cpu_units > caps.cores * CPU_UNITS_PER_CORE or ask.memory_bytes > caps.memory_bytes:
        return False
    if ask.gpu and ask.gpu > _gpus_with(ask.gpu_memory_bytes, caps):
        return False
    if ask.arch and normal_arch(caps.arch) not in ask.arch:
        return False
    if ask.python and not python_fits(ask.python, caps.python, caps.python_full):
        return False
    if ask.node and not _node_fits(ask.node, caps.name, node_id_text):
        return False
    return all(_label_fits(caps, *pair) for pair in ask.labels) and all(
        program in caps.programs for program in ask.programs
    )


def _checks(ask: Ask, caps: Capabilities, node_id_text: str) -> list[_Check]:
    """Hold every item that `ask` states against the node, in one fixed order."""
    # One core is what everybody asks who says nothing, and every node has it.
    checks = [_check_cpu(ask, caps)] if ask.cpu_units > CPU_UNITS_PER_CORE else []
    if ask.memory_bytes:
        checks.append(_check_size("memory", ask.memory_bytes, caps.memory_bytes))
    if ask.gpu:
        checks += _check_gpu(ask, caps)
    if ask.arch:
        fine = normal_arch(caps.arch) in ask.arch
        checks.append(_check_text("arch", " or ".join(ask.arch), caps.arch, fine))
    if ask.python:
        fine = python_fits(ask.python, caps.python, caps.python_full)
        checks.append(_check_text("python", ask.python, caps.python_full or caps.python, fine))
    for key, value in ask.labels:
        there = caps.labels.get(key)
        fine = _label_fits(caps, key, value)
        checks.append(_check_text(f"label {key}", value or "any value", there, fine))
    if ask.node:
        fine = _node_fits(ask.node, caps.name, node_id_text)
        checks.append(_check_text("node", ask.node, caps.name or node_id_text[:8], fine))
    for program in ask.programs:
        there = program if program in caps.programs else None
        checks.append(_check_text("program", program, there, there is not None))
    return checks


def _check_cpu(ask: Ask, caps: Capabilities) -> _Check:
    fine = ask.cpu_units <= caps.cores * CPU_UNITS_PER_CORE
    verdict = "" if fine else TOO_LITTLE
    return _Check("cpu", format_cpu_units(ask.cpu_units), str(caps.cores), verdict, caps.cores)


def _check_size(item: str, asked_bytes: int, there_bytes: int, each: str = "") -> _Check:
    asked, there = format_bytes(asked_bytes), format_bytes(there_bytes)
    if asked == there and asked_bytes != there_bytes:
        asked, there = f"{asked_bytes} B", f"{there_bytes} B"
    verdict = TOO_LITTLE if there_bytes < asked_bytes else ""
    return _Check(item, asked + each, there, verdict, there_bytes)


def _check_gpu(ask: Ask, caps: Capabilities) -> list[_Check]:
    sizes = sorted((device.memory_bytes for device in caps.gpus()), reverse=True)
    if not sizes:
        unusable = sum(device.kind == "gpu" and bool(device.problem) for device in caps.devices)
        there = f"{unusable} unusable" if unusable else "none"
        checks = [_Check("gpu", str(ask.gpu), there, MISSING, unusable / (GPUS_MAX + 1))]
    else:
        verdict = TOO_LITTLE if len(sizes) < ask.gpu else ""
        checks = [_Check("gpu", str(ask.gpu), str(len(sizes)), verdict, len(sizes))]
    if not ask.gpu_memory_bytes:
        return checks
    each = " each" if ask.gpu > 1 else ""
    if not sizes:
        asked = format_bytes(ask.gpu_memory_bytes) + each
        return [*checks, _Check("gpu-memory", asked, "none", MISSING, 0)]
    scarcest = sizes[min(ask.gpu, len(sizes)) - 1]
    return [*checks, _check_size("gpu-memory", ask.gpu_memory_bytes, scarcest, each)]


def _check_text(item: str, asked: str, there: str | None, fine: bool) -> _Check:
    if fine:
        return _Check(item, asked, there or "", "", 1)
    if there is None:
        return _Check(item, asked, "none", MISSING, 0)
    return _Check(item, asked, there, DIFFERENT, 1)


def _gpus_with(memory_bytes: int, caps: Capabilities) -> int:
    return sum(device.memory_bytes >= memory_bytes for device in caps.gpus())


def _label_fits(caps: Capabilities, key: str, value: str) -> bool:
    there = caps.labels.get(key)
    return there is not None and (not value or there == value)


def _node_fits(asked: str, name: str, node_id_text: str) -> bool:
    if asked == name.lower():
        return True
    return len(asked) >= NODE_PREFIX_MIN and node_id_text.lower().startswith(asked)


_NOTHING: Final = Capabilities(
    name="",
    arch="",
    page_bytes=0,
    cores=1,
    memory_bytes=0,
    python="",
    python_full="",
    implementation="",
    os="",
    libc="",
    model="",
)
