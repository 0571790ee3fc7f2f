"""`blackroad pub` and `blackroad sub`: the message bus from a shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session
from blackroad.cli.report import clean
from blackroad.errors import EXIT_OK, UsageError
from blackroad.ids import short

if TYPE_CHECKING:
    from blackroad.client.topics import Update

STDIN: Final = "-"
TAKEN_S: Final = 30.0
FOR_EVER: Final = 0


# --- pub ----------------------------------------------------------------------------------------


@click.command(
    "pub",
    cls=Command,
    # A value may be a negative number, which looks like an option.
    context_settings={"ignore_unknown_options": True},
    examples=(
        "blackroad pub lab/oven/temperature 21.5",
        'blackroad pub lab/oven \'{"on": true, "target": 180}\'',
        "tail -f /var/log/syslog | blackroad pub logs/attic -",
    ),
)
@click.argument("topic", metavar="TOPIC")
@click.argument("value", metavar="VALUE")
@json_option
def pub_command(topic: str, value: str, as_json: bool) -> None:
    """Publish a value on a topic, for whoever subscribes to it on any node.

    VALUE is JSON, or text where it is none; - publishes each line of standard input. The last
    value of a topic is kept, and new subscribers get it first. Nothing tells whether anybody
    listens.
    """
    from blackroad.bus.patterns import check_name

    check_name(topic)
    if value.startswith("-") and value != STDIN and isinstance(_read(value), str):
        raise UsageError(
            f"no such option `{value}`",
            hint="a text that begins with - is written as JSON: '\"-x\"'",
        )
    count = 0
    with session() as client:
        for one in _lines() if value == STDIN else (value,):
            client.publish(topic, _read(one))
            count += 1
        client.published(TAKEN_S)
    if as_json:
        output.print_json({"topic": topic, "published": count})


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input: not UTF-8 text (byte {error.start})",
            hint="bytes are published from a program: Client().publish(topic, data)",
        ) from None


def _read(text: str) -> Any:
    """Read a value as JSON; what is none is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# --- sub ----------------------------------------------------------------------------------------


@click.command(
    "sub",
    cls=Command,
    examples=(
        "blackroad sub lab/oven/temperature",
        "blackroad sub 'lab/*/temperature' --json | jq .value",
        "blackroad sub 'lab/#' --count 10 --no-snapshot",
    ),
)
@click.argument("pattern", metavar="PATTERN")
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="End after so many values; else Ctrl-C ends it.",
)
@click.option("--no-snapshot", is_flag=True, help="Leave out the last values that are known now.")
@json_option
def sub_command(pattern: str, count: int | None, no_snapshot: bool, as_json: bool) -> int:
    """Print values of topics as they are published on any node.

    In PATTERN a * is one segment, and # at the end is the rest: 'lab/*/temperature', 'lab/#'.
    Values can be lost, where they come faster than they are read or the network fails; a line on
    standard error, or `missed` with --json, says how many.
    """
    from blackroad.bus.patterns import Pattern

    Pattern(pattern)
    left = count if count is not None else FOR_EVER
    try:
        with session() as client, client.subscribe(pattern, snapshot=not no_snapshot) as found:
            for update in found:
                _print(update, as_json)
                left -= 1
                if left == 0:
                    break
    except KeyboardInterrupt:
        # There is no other way to end it, so it is no failure.
        return EXIT_OK
    return EXIT_OK


def _print(update: Update, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json_line(update) + "\n")
    else:
        if update.missed:
            output.note(f"({output.count(update.missed, 'value')} missed)")
        sys.stdout.write(f"{update.topic}  {shown(update.value)}\n")
    sys.stdout.flush()


def json_line(update: Update) -> str:
    """Write an update as one line of JSON, of which no terminal can be steered."""
    row = {
        "topic": update.topic,
        "value": _plain(update.value),
        "node": short(update.node),
        "user": update.user,
        "time_ms": update.time_ms,
        "missed": update.missed,
    }
    return json.dumps(row)


def shown(value: Any) -> str:
    """Write a value for people, on one line: text as it is, anything else as JSON or Python does.

    What could steer a terminal is spelled out.
    """
    if isinstance(value, str):
        return clean(value).replace("\n", "\\n").replace("\t", "\\t")
    try:
        return clean(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return clean(_spelled(value)).replace("\n", "\\n")


def _plain(value: Any) -> Any:
    """Put a value into what JSON has; what cannot be is text."""
    import msgspec

    try:
        found = msgspec.to_builtins(value, builtin_types=(), str_keys=True, enc_hook=repr)
        json.dumps(_finite(found))
    except (TypeError, ValueError, RecursionError):
        return _spelled(value)
    return _finite(found)


def _spelled(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return "(nested too deep to be shown)"


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for."""
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
