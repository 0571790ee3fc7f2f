"""What every command is made of: examples in its help, --json, and a session with the mesh.

This file must not know any one command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from blackroad.client.client import Client

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help ends with examples, printed as they are typed."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def json_option(command: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def duration(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read an option such as 250ms, 1.5s, 10m or a number of seconds as milliseconds."""
    if value is None:
        return None
    from blackroad.units import parse_ms

    return parse_ms(value, max(param.opts, key=len).lstrip("-"))


def connect(timeout_s: float | None = None) -> Client:
    """Open a session with the daemon that this machine's configuration names.

    Raises  NoDaemon, ConfigError.
    """
    from blackroad.client.client import CONNECT_S, Client

    return Client(connect_timeout=CONNECT_S if timeout_s is None else timeout_s)


@contextlib.contextmanager
def session(timeout_s: float | None = None) -> Iterator[Client]:
    """Open a session and close it afterwards."""
    client = connect(timeout_s)
    try:
        yield client
    finally:
        client.close()
