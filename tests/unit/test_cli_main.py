"""The top of the command line: late imports, errors in words, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import click
import pytest

from blackroad.cli import main as top
from blackroad.cli.commands import Command
from blackroad.errors import EnvironmentProblem
from tests.tidy.source import ROOT
from tests.unit.cli_fake import FakeClient, blackroad, client

__all__ = ["client"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this package in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom blackroad.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'rich', 'numpy', 'zmq', 'msgspec', 'zeroconf', 'psutil', 'asyncio', 'PIL'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
        "print(sorted(name for name in sys.modules if name.startswith('blackroad.')))\n"
    )
    *_, heavy, ours = python(code).stdout.splitlines()
    assert heavy == "0 []"
    wanted = ["blackroad.cli", "blackroad.cli.main", "blackroad.cli.report", "blackroad.errors"]
    assert ours == str(wanted)


@pytest.mark.parametrize("name", list(top.ENTRIES))
def test_each_entry_is_a_command_with_help_and_examples(name: str) -> None:
    module = importlib.import_module(f"blackroad.cli.{top.ENTRIES[name].module}")
    command = getattr(module, f"{name}_command")
    assert isinstance(command, Command)
    assert command.name == name
    assert command.help
    assert command.examples
    own = "--json" in [option for one in command.params for option in one.opts]
    # Else each command of the group has one of its own.
    below = command.commands.values() if isinstance(command, click.Group) else [command]
    assert own or all("--json" in [o for one in sub.params for o in one.opts] for sub in below)


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    answer = blackroad("statsu", "x")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err == (
        "error: no such command `statsu`\n\n"
        "hint: did you mean `blackroad status`? `blackroad --help` lists them all\n"
    )


def test_a_misspelt_option_is_answered_with_the_nearest() -> None:
    answer = blackroad("tasks", "--limt", "3")
    assert answer.code == 2
    assert "no such option `--limt`" in answer.err
    assert "did you mean `--limit`?" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status",), "the argument `ID` is missing"),
        (("tasks", "--limit", "x"), "`--limit`: `x` is not a valid integer range"),
        (("tasks", "--limit", "0"), "`--limit`: 0 is not in the range 1<=x<=1000"),
        (("result", "k3f7x2ab-m5c7", "--timeout", "soon"), "timeout: cannot read 'soon'"),
        (("down", "now"), "got unexpected extra argument (now)"),
        (("tasks", "--limit"), "option `--limit` requires an argument"),
    ],
)
def test_usage_errors_have_one_form(words: tuple[str, ...], message: str) -> None:
    answer = blackroad(*words)
    assert answer.code == 2
    first, empty, hint = answer.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert not first.endswith(".")
    assert empty == ""
    assert hint.startswith("hint: ")


def test_with_json_an_error_is_an_object_too() -> None:
    answer = blackroad("status", "nonsense", "--json")
    assert answer.code == 2
    told = json.loads(answer.out)["error"]
    assert told["type"] == "UsageError"
    assert told["message"] == "`nonsense` is not a task id"
    assert told["exit_code"] == 2
    assert told["hint"]
    assert answer.err.startswith("error: `nonsense`")


def test_json_after_two_dashes_is_not_ours() -> None:
    assert top.wants_json(["submit", "--json", "--", "ls"])
    assert not top.wants_json(["submit", "--", "ls", "--json"])


def test_without_a_command_the_help_is_shown() -> None:
    answer = blackroad()
    assert answer.code == 0
    assert answer.out == blackroad("--help").out


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the next session end in `error`."""

    def connect(timeout_s: float | None = None) -> FakeClient:
        raise error

    monkeypatch.setattr("blackroad.cli.commands.connect", connect)


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert blackroad("nodes") == (130, "", "")


def test_an_unknown_failure_is_told_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("no idea"))
    answer = blackroad("nodes", "--json")
    assert answer.code == EnvironmentProblem.exit_code
    assert "error: a fault of blackroad itself: RuntimeError: no idea\n" in answer.err
    assert "Traceback" not in answer.err
    assert json.loads(answer.out)["error"]["type"] == "InternalError"


def test_the_trace_is_shown_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("no idea"))
    answer = blackroad("nodes", BLACKROAD_DEBUG="1")
    assert answer.err.startswith("Traceback (most recent call last):\n")
    assert "error: a fault of blackroad itself" in answer.err


def test_an_error_of_the_disk_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(28, "No space left on device", "/var/x"))
    answer = blackroad("nodes")
    assert answer.code == 5
    assert answer.err.startswith("error: /var/x: No space left on device\n")


def test_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "blackroad", "--help"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from blackroad.cli import report

    error = EnvironmentProblem("no", hint="do")
    assert "\x1b" not in report.as_text(error)
    assert report.as_text(error, colour=True).startswith("\x1b[1;31merror:\x1b[0m no")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not report.in_colour(sys.stderr)
