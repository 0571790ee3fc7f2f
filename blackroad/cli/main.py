"""`blackroad`: the list of all commands, and the one place where errors become words.

A command's module is imported when the command is used, so that `blackroad --help` starts at
once.  This file must not know what any command does.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import click

from blackroad import __version__
from blackroad.cli import report
from blackroad.errors import EXIT_OK, BlackroadError

EXIT_INTERRUPTED: Final = 130
PROGRAM: Final = "blackroad"
WIDTH_MAX: Final = 96


class Entry(NamedTuple):
    """One line of `blackroad --help`: who has the command, and its help in short."""

    module: str
    help: str


SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Run nodes": {
        "demo": Entry("start", "Three daemons, a real job, one of them is killed on the way."),
        "node": Entry("start", "Run this machine's daemon in the foreground."),
        "up": Entry("mesh", "Start a local mesh in the background, for development."),
        "down": Entry("mesh", "End the mesh that `up` started."),
        "chaos": Entry("chaos", "Kill and stop daemons of a test mesh under work, and judge."),
    },
    "Make a cluster": {
        "init": Entry("cluster", "Make a closed cluster, and the command that lets others in."),
        "join": Entry("cluster", "Make this machine a member of a cluster."),
        "token": Entry("members", "Make, list and end tokens that let others in."),
        "members": Entry("members", "Show who belongs to the cluster."),
        "approve": Entry("members", "Let a machine in that asks without a token."),
        "revoke": Entry("members", "Put a member out for good."),
        "rotate": Entry("members", "Give this machine other keys."),
    },
    "Submit and follow tasks": {
        "submit": Entry("submit", "Submit a command, a function or a kernel."),
        "status": Entry("tasks", "Tell how far a task is."),
        "result": Entry("tasks", "Wait for a task and print its result."),
        "logs": Entry("tasks", "Print what a task printed."),
        "why": Entry("why", "Tell why a task is not running."),
        "cancel": Entry("tasks", "End tasks."),
        "retry": Entry("tasks", "Submit tasks anew that failed or were set aside."),
        "tasks": Entry("tasks", "List tasks, the newest first."),
    },
    "The message bus": {
        "pub": Entry("topics", "Publish a value on a topic."),
        "sub": Entry("topics", "Print values of topics as they come."),
    },
    "Look at the mesh": {
        "nodes": Entry("nodes", "Show the nodes: what they have and what they do."),
        "top": Entry("top", "Watch nodes, tasks and events live."),
        "events": Entry("events", "Show what happened on all nodes, and what happens."),
        "drain": Entry("nodes", "Let a node take nothing new."),
        "resume": Entry("nodes", "Let a node take work again."),
        "history": Entry("history", "Show what was: tasks, nodes, who used what, events."),
        "kernels": Entry("kernels", "Show what can be computed, and on which devices."),
        "doctor": Entry("doctor", "Find what is wrong with machines and networks, and what to do."),
    },
}
ENTRIES: Final = {name: entry for part in SECTIONS.values() for name, entry in part.items()}


class Program(click.Group):
    """The top of the command line: imports late, and answers for every error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"blackroad.cli.{entry.module}")
        command = getattr(module, f"{cmd_name}_command")
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in ENTRIES:
            raise report.no_such_command(args[0], list(ENTRIES))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, part in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in part.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl(
                [
                    ("0", "all went well"),
                    ("1", "the task failed or was cancelled"),
                    ("2", "the command line or the configuration is wrong"),
                    ("3", "no node can run it"),
                    ("4", "no daemon answers, or the task's owner is out of reach"),
                    ("5", "this machine: a port, directory, disk, package; or not now"),
                ]
            )

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)

        def run() -> Any:
            return super(Program, self).main(
                words, prog_name or PROGRAM, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return run()
        sys.exit(guarded(run, as_json=wants_json(words)))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            # `--help` prints from within.
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            _close_stdout()
            raise click.exceptions.Exit(EXIT_OK) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Caught before click does, which would print an empty line.
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            _close_stdout()
            return EXIT_OK


def wants_json(words: Sequence[str]) -> bool:
    """Tell whether --json is asked for, even where the rest cannot be read."""
    ours = words[: words.index("--")] if "--" in words else words
    return "--json" in ours


def guarded(run: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command; turn what it raises into words and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a letter is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _outcome(run, as_json)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return EXIT_OK
    return code


def _outcome(run: Callable[[], Any], as_json: bool) -> int:
    try:
        value = run()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        return tell(error, as_json=as_json)
    return value if isinstance(value, int) else EXIT_OK


def tell(error: Exception, *, as_json: bool) -> int:
    """Print an error the way every command does; return its exit code."""
    if os.environ.get("BLACKROAD_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        # `blackroad` alone is no mistake; older versions of click have no such class.
        click.echo(error.format_message())
        return EXIT_OK
    shown: BlackroadError = report.readable(error)
    if as_json:
        from blackroad.cli.output import print_json

        print_json({"error": report.as_data(shown)})
    click.echo(report.as_text(shown, colour=report.in_colour(sys.stderr)), err=True)
    return shown.exit_code


def _close_stdout() -> None:
    """Give the interpreter something to flush into when nobody reads any more."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH_MAX},
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def main() -> None:
    """A shelf of mixed machines as one executor: submit work anywhere, it runs where it fits.

    `blackroad COMMAND --help` explains a command and shows examples.
    """
