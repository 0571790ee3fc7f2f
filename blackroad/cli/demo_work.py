"""The demo's long jobs, each with the check that its result is right: numbers and words.

This file must not know how daemons are started or killed.
"""

from __future__ import annotations

import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blackroad.cli.demo_stage import Finishes, shared
from blackroad.cli.demo_tasks import searcher, word_counter
from blackroad.requirements import Needs

if TYPE_CHECKING:
    from blackroad.cli.demo_stage import Stage

JOB_S: Final = 60.0
WARM_NUMBERS: Final = 70_000
ALONE_SHARE: Final = 10
CHUNKS: Final = 24
SHOWN: Final = 3
MILLION: Final = 1_000_000
# Each takes more steps than every smaller number.  Source  OEIS A006877 and A006878.
KNOWN_RECORDS: Final = {837_799: 524, 8_400_511: 685, 15_733_191: 704}
NOT_SOURCE: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
RAISES: Final = r"(?m)^\s*raise\s+([A-Za-z_]\w*)"


# --- numbers ------------------------------------------------------------------------------------


def collatz(stage: Stage) -> None:
    """Compute a range on each node alone, then a larger one on all of them together."""
    report, numbers = stage.report, stage.scale.numbers
    report.part(f"Collatz trajectories of 1 to {numbers:,}: a kernel, cut into tiles")
    names = [str(row["name"]) for row in stage.rows()]
    _warm_up(stage, names)
    measured = {name: _alone(stage, name) for name in names}
    alone = {name: rate for name, (rate, _) in measured.items()}
    report.check(
        "tasks that need a certain node ran there", all(there for _, there in measured.values())
    )
    job = stage.client.kernel("collatz", start=1, count=numbers)
    clock = Finishes(job.parts)
    stage.finish("all nodes", job.parts, JOB_S)
    result, together = job.result(), numbers / clock.wall_s
    backends = stage.backends(job.parts)
    report.table(
        ["where", "computes with", "tiles", "million numbers a second"],
        [
            *([name, backends.get(name, ""), "", rate / MILLION] for name, rate in alone.items()),
            ["all together", "", len(job.parts), together / MILLION],
        ],
    )
    fastest = max(alone, key=lambda name: alone[name])
    slowest = min(alone, key=lambda name: alone[name])
    report.say(
        f"{numbers:,} numbers in {clock.wall_s:.2f} s: {together / alone[slowest]:.2f} times "
        f"{slowest} alone, {together / alone[fastest]:.2f} times {fastest} alone. {_cores_note()}"
    )
    shares = stage.shares(job.parts)
    report.say(f"tiles by node: {shared(shares)}")
    _check_collatz(stage, result)
    report.facts["collatz"] = {
        "numbers": numbers,
        "seconds": clock.wall_s,
        "numbers_per_second": together,
        "numbers_per_second_alone": alone,
        "speed_up_over_slowest_node": together / alone[slowest],
        "speed_up_over_fastest_node": together / alone[fastest],
        "tiles": len(job.parts),
        "tiles_by_node": shares,
        "backends": backends,
        "most_steps": result["most_steps"],
        "highest_peak": result["highest_peak"],
    }


def _warm_up(stage: Stage, names: Sequence[str]) -> None:
    """Let each node import NumPy and compile the kernel before anything is measured."""
    tasks = [
        stage.client.kernel_task(
            "collatz", {"start": 1, "count": WARM_NUMBERS}, options={"needs": Needs(node=name)}
        )
        for name in names
    ]
    stage.finish("warming up", tasks, JOB_S)


def _alone(stage: Stage, name: str) -> tuple[float, bool]:
    """Measure how many numbers a second one node does, amid the range that all will do.

    Tells also whether it was indeed that node.
    """
    numbers = stage.scale.numbers
    count = max(1, numbers // ALONE_SHARE)
    options = {"needs": Needs(node=name)}
    job = stage.client.kernel("collatz", start=numbers // 2, count=count, options=options)
    clock = Finishes(job.parts)
    stage.finish(f"{name} alone", job.parts, JOB_S)
    return count / clock.wall_s, {stage.where(part) for part in job.parts} == {name}


def _cores_note() -> str:
    import os

    cores = len(os.sched_getaffinity(0))
    if cores >= SHOWN:
        return f"Three daemons share the {cores} cores of this machine."
    return (
        f"Three daemons share {'one core' if cores == 1 else 'two cores'} here; on machines of "
        "their own they would not take them from each other."
    )


def _check_collatz(stage: Stage, result: Mapping[str, Any]) -> None:
    numbers = stage.scale.numbers
    found = {row["number"]: row["steps"] for row in result["records"]}
    below = {number: steps for number, steps in found.items() if number < MILLION}
    best = max(below, key=lambda number: below[number])
    stage.report.check(
        "the record below one million is the known one",
        (best, below[best]) == (837_799, 524),
        f"{best:,} takes {below[best]} steps",
    )
    larger = [number for number in KNOWN_RECORDS if MILLION < number <= numbers]
    if larger:
        stage.report.check(
            "and so are the larger ones that were published",
            all(found.get(number) == KNOWN_RECORDS[number] for number in larger),
            ", ".join(f"{number:,}: {found.get(number)}" for number in larger),
        )
    stage.report.check(
        "no number is missing or counted twice",
        result["numbers"] == numbers,
        f"{result['numbers']:,} numbers",
    )


# --- words --------------------------------------------------------------------------------------


def words(stage: Stage) -> None:
    """Count words in, and search, the sources of the standard library; compare with one process."""
    report = stage.report
    report.part("Words in the sources of Python's standard library: plain functions")
    files = _sources(stage.scale.source_bytes)
    if not files:
        report.say("this Python comes without its sources, so there is nothing to read: left out")
        report.facts["words"] = {"skipped": "no sources"}
        return
    report.say(
        "The functions travel as code; the nodes read the files themselves, which works because "
        "they are on this machine."
    )
    count, search = word_counter(), searcher(RAISES)
    paths = [str(path) for path in files]
    chunks = [paths[first::CHUNKS] for first in range(min(CHUNKS, len(paths)))]
    tasks = [stage.client.submit(count, chunk) for chunk in chunks]
    clock = Finishes(tasks)
    stage.finish("counting words", tasks, JOB_S)
    size, found = _added(task.result() for task in tasks)
    began_s = time.monotonic()
    raised: Counter[str] = Counter()
    for part in stage.client.map(search, paths):
        raised.update(part)
    search_s = time.monotonic() - began_s
    began_s = time.monotonic()
    here_size, here = _added([count(paths)])
    here_s = time.monotonic() - began_s
    here_raised = sum((Counter(search(path)) for path in paths), Counter())
    _tell_words(stage, len(paths), size, clock.wall_s, here_s)
    shares = stage.shares(tasks)
    report.say(f"tasks by node: {shared(shares)}")
    report.say(f"most frequent words: {_most(found)}")
    report.say(f"most often raised, found by a search of {search_s:.2f} s: {_most(raised)}")
    report.check(
        "every count equals that of one process here",
        (size, found) == (here_size, here),
        f"{found.total():,} words, {len(found):,} different",
    )
    report.check(
        "and so does every match of the search",
        raised == here_raised,
        f"{raised.total():,} `raise` of {len(raised):,} kinds",
    )
    report.facts["words"] = {
        "files": len(paths),
        "bytes": size,
        "words": found.total(),
        "different": len(found),
        "raises": raised.total(),
        "seconds": clock.wall_s,
        "seconds_one_process": here_s,
        "search_seconds": search_s,
        "tasks_by_node": shares,
    }


def _most(found: Counter[str]) -> str:
    return ", ".join(f"{word} {times:,}" for word, times in found.most_common(SHOWN))


def _tell_words(stage: Stage, files: int, size: int, wall_s: float, here_s: float) -> None:
    stage.report.say(
        f"{files:,} files, {size / MILLION:.1f} MB: {wall_s:.2f} s on the nodes, {here_s:.2f} s in "
        f"one process here ({here_s / wall_s:.2f} times as fast)"
    )


def _added(parts: Iterable[tuple[int, Mapping[str, int]]]) -> tuple[int, Counter[str]]:
    size, found = 0, Counter[str]()
    for part_size, part in parts:
        size += part_size
        found.update(part)
    return size, found


def _sources(bytes_max: int) -> list[Path]:
    """List readable source files, without tests and foreign packages, up to a total size."""
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen: list[Path] = []
    total = 0
    for path in sorted(root.rglob("*.py")):
        if NOT_SOURCE.intersection(path.relative_to(root).parts):
            continue
        try:
            with path.open("rb") as file:
                total += file.seek(0, 2)
        except OSError:
            continue
        if total > bytes_max:
            break
        chosen.append(path)
    return chosen
