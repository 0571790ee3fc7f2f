"""What people read: the help of every command, every kind of error, and the page of commands.

`REWRITE=1` writes them anew; the diff is the review.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest

from blackroad import errors
from blackroad.cli import report
from blackroad.cli.commands import Command
from blackroad.cli.main import ENTRIES, SECTIONS, main
from blackroad.errors import BlackroadError
from tests.edge import snapshots
from tests.tidy.source import ROOT
from tests.unit.cli_fake import blackroad

TASK = "k3f7x2ab-m5c7qaaaaaaaaaaaaaaaaaaaaa"


def command(name: str) -> Command:
    """The command that these words name: one, or one of several under one name."""
    found: click.Command | None = main
    context = click.Context(main, info_name="blackroad")
    for word in name.split():
        assert isinstance(found, click.Group)
        found = found.get_command(context, word)
    assert isinstance(found, Command)
    return found


def below(name: str) -> list[str]:
    """A command, and those under its name."""
    found = command(name)
    more = list(found.commands) if isinstance(found, click.Group) else []
    return [name, *(f"{name} {one}" for one in more)]


NAMES = [name for entry in ENTRIES for name in below(entry)]


# --- help ---------------------------------------------------------------------------------------


def test_snapshot_of_the_help() -> None:
    parts = []
    for words in ([], *(name.split() for name in NAMES)):
        shown = " ".join(["blackroad", *words, "--help"])
        parts.append(f"$ {shown}\n{blackroad(*words, '--help').out}")
    snapshots.check(snapshots.HERE / "help.txt", "\n".join(parts))


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_the_terminal(name: str) -> None:
    told, examples = blackroad(*name.split(), "--help").out.split("\nExamples:\n")
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert [line for line in examples.splitlines() if len(line) > 96] == []


@pytest.mark.parametrize("line", [line for name in NAMES for line in command(name).examples])
def test_examples_can_be_typed(line: str) -> None:
    parsed = 0
    for part in line.partition("  #")[0].split("|"):
        words = shlex.split(part)
        while words and "=" in words[0]:
            words.pop(0)
        if "$(" in part or words[:1] != ["blackroad"]:
            continue
        found = command(words[1])
        if words[1] == "submit":
            # Everything but the sending: files and kernels of the examples are told apart by it.
            assert found.make_context("submit", [*words[2:]]).params["words"] or "--" in words
        else:
            found.make_context(words[1], [*words[2:]])
        parsed += 1
    assert parsed or "$(" in line


# --- errors -------------------------------------------------------------------------------------


def samples() -> dict[str, BlackroadError]:
    """One error of each class, as it could be raised."""
    task: dict[str, Any] = {"task_id": TASK}
    return {
        "BlackroadError": BlackroadError(
            "the mesh did not form",
            because=["`attic` sees one of 2 nodes", "its switch is off."],
            hint="look at the switch.",
        ),
        "UsageError": errors.UsageError("`x` is no task id", hint="`blackroad tasks` lists them"),
        "ConfigError": errors.ConfigError("blackroad.toml:3: `slots` is -1", hint="1 to 1024"),
        "UnitError": errors.UnitError("memory: cannot read '2x' as a size", hint="write 2GiB"),
        "KernelInputError": errors.KernelInputError("kernel `collatz`: `start` is 0", hint="1 up"),
        "JoinRefused": errors.JoinRefused(
            "refused: the token has expired",
            because=["the admin's clock is 3 h ahead of this machine's"],
            hint="ask an admin for another one",
        ),
        "UnknownKernel": errors.UnknownKernel("there is no kernel `x`", hint="there are: a, b"),
        "NotPicklable": errors.NotPicklable("args[0] is a socket", hint="send what is in it"),
        "EnvironmentProblem": errors.EnvironmentProblem("/proc is not there", hint="mount it"),
        "PortInUse": errors.PortInUse("port 7701 is taken by another program", hint="set port"),
        "StateDirectoryProblem": errors.StateDirectoryProblem("state_dir: is open to others"),
        "AlreadyRunning": errors.AlreadyRunning("another daemon has it", hint="`blackroad down`"),
        "DiskProblem": errors.DiskProblem("the disk is full", hint="make room"),
        "MissingPackage": errors.MissingPackage("Pillow is needed", hint="pip install pillow"),
        "HistoryProblem": errors.HistoryProblem(
            "postgresql://shelf/lab: connection refused", hint="look at the database server"
        ),
        "DeviceProblem": errors.DeviceProblem("the device was lost"),
        "ClockProblem": errors.ClockProblem("the boot-time clock moved backwards"),
        "NoDaemon": errors.NoDaemon(
            "no daemon answers", because=["no daemon answers at ipc:///run/x"], hint="start one"
        ),
        "OwnerLost": errors.OwnerLost("the daemon was started anew", hint="submit again"),
        "Unreachable": errors.Unreachable("`attic` is dead", hint="wait for it"),
        "UnknownTask": errors.UnknownTask("no task k3f7x2ab-m5c7 is known here"),
        "Busy": errors.Busy("262144 tasks have not ended", retry_after_ms=500, hint="wait"),
        "TaskError": errors.TaskError(f"{TASK} was cancelled", **task),
        "TaskFailed": errors.TaskFailed(
            "KeyError: 'x'",
            type_name="KeyError",
            text="'x'",
            traceback_text=(
                'Traceback (most recent call last):\n  File "work.py", line 3, in render\n'
                "    return found[name]\nKeyError: 'x'\n"
            ),
            **task,
        ),
        "TaskFailed of a command": errors.TaskFailed(
            "CommandFailed: `ffmpeg` exited with status 1",
            type_name="CommandFailed",
            text="`ffmpeg` exited with status 1",
            traceback_text="Traceback (most recent call last):\n  ...\n",
            exit_status=1,
            **task,
        ),
        "ResultNotPicklable": errors.ResultNotPicklable("its result is a socket", **task),
        "WorkerCrashed": errors.WorkerCrashed("it crashed each of the 3 times", **task, hint="see"),
        "OutOfMemory": errors.OutOfMemory("it used 3 GiB of 2 GiB", **task),
        "TaskTimeout": errors.TaskTimeout("it ran longer than its timeout", **task),
        "TaskUnknown": errors.TaskUnknown("it was lost with its node", **task),
        "StillRunning": errors.StillRunning(f"{TASK} has not ended within 10 s", hint="wait"),
        "Quarantined": errors.Quarantined("it took its node down 2 times", **task),
        "Unplaceable": errors.Unplaceable(
            "no node can run `matmul`",
            rows=[
                ("gpu", "2", "2 on `attic`", ""),
                ("memory", "24 GiB", "16 GiB on `attic`", "too little"),
                ("arch", "gfx1100", "gfx1030 on `attic`", "different"),
            ],
            nodes_answered=3,
            hint="ask for less",
            **task,
        ),
        "DamagedObject": errors.DamagedObject("the bytes are not what the digest names"),
        "RemoteProtocolError": errors.RemoteProtocolError("needs: 2000 bytes, the limit is 1024"),
        "LocalProtocolError": errors.LocalProtocolError("a message of 90 KiB"),
        "InvariantBroken": errors.InvariantBroken("one result per tile [2] [3]"),
    }


def classes() -> Iterator[type[BlackroadError]]:
    for _, value in inspect.getmembers(errors, inspect.isclass):
        if issubclass(value, BlackroadError):
            yield value


def test_every_class_has_a_sample() -> None:
    families = {errors.BlackroadError}
    sampled = {type(error) for error in samples().values()}
    assert {kind.__name__ for kind in set(classes()) - sampled - families} == set()


def test_snapshot_of_every_error() -> None:
    parts = []
    for name, error in samples().items():
        data = json.dumps(report.as_data(error), ensure_ascii=False)
        parts.append(f"--- {name}: exit {error.exit_code}\n{report.as_text(error)}\n{data}\n")
    snapshots.check(snapshots.HERE / "errors.txt", "\n".join(parts))


# --- the page of commands -----------------------------------------------------------------------

INTRODUCTION = """\
# Commands

One program does everything: `blackroad COMMAND`. Every command has `--json`, which prints objects
for programs on standard output, and `--help`. Ids of tasks may be shortened: all of the part before
the dash, and 4 characters or more of the rest.

A command that fails says so on standard error: what is wrong, because of what, and a hint what to
do. With `--json` the same stands on standard output as
`{"error": {"type", "message", "hint", "exit_code", ...}}`. `BLACKROAD_DEBUG=1` shows where it
happened. Ctrl-C ends a command with 130, and never a task that is on disk.

| exit code | means |
| --- | --- |
| 0 | all went well |
| 1 | the task failed or was cancelled |
| 2 | the command line or the configuration is wrong |
| 3 | no node can run it |
| 4 | no daemon answers, or the task's owner is out of reach |
| 5 | this machine: a port, directory, disk or package; or not now: busy, or not ended in time |

Commands speak with the daemon of this machine, else with those in `BLACKROAD_ENDPOINTS` or the
`endpoints` of the configuration.
"""


def page() -> str:
    """The page as the program describes itself."""
    parts = [INTRODUCTION]
    for title, entries in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [section(name) for entry in entries for name in below(entry)]
    return "\n".join(parts)


def section(name: str) -> str:
    found = command(name)
    context = click.Context(
        found, info_name=name, parent=click.Context(main, info_name="blackroad")
    )
    usage = found.get_usage(context).removeprefix("Usage: ")
    text = inspect.cleandoc(found.help or "")
    lines = [f"### {name}\n", f"    {' '.join(usage.split())}\n", markdown(text), ""]
    rows = [
        record
        for one in found.params
        if isinstance(one, click.Option) and (record := one.get_help_record(context))
    ]
    lines += ["| option | means |", "| --- | --- |"]
    lines += [f"| `{escaped(option)}` | {escaped(means)} |" for option, means in rows]
    lines += ["", "```", *found.examples, "```", ""]
    return "\n".join(lines)


def markdown(text: str) -> str:
    """Help as prose: a paragraph that keeps its lines in a terminal keeps them here, too."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append("```\n" + paragraph.removeprefix("\b\n") + "\n```")
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def test_snapshot_of_the_page_of_commands() -> None:
    snapshots.check(ROOT / "docs" / "commands.md", page())


def test_the_page_tells_what_the_program_returns() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    told: dict[str, Any] = {
        line.split("|")[1].strip(): line for line in INTRODUCTION.splitlines() if "| " in line
    }
    assert {int(code) for code in told if code.isdigit()} == codes
