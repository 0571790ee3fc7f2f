"""Errors in words, the same everywhere: what is wrong, because of what, and a hint.

Nothing is printed here, and nothing is decided but the wording: exit codes stand in `errors.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Final, TextIO

import click

from blackroad.errors import (
    BlackroadError,
    Busy,
    EnvironmentProblem,
    TaskError,
    TaskFailed,
    Unplaceable,
    UsageError,
)

ROW_HEADS: Final = ("item", "asked", "nearest node", "")
GAP: Final = "  "
_QUOTED = re.compile(r"'([^'\n]*)'")
_UNSEEN = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


# --- any exception becomes one of ours ----------------------------------------------------------


def readable(error: BaseException) -> BlackroadError:
    """Return `error` as an error that has a message, a hint and an exit code."""
    from concurrent.futures import CancelledError

    if isinstance(error, BlackroadError):
        return error
    if isinstance(error, click.ClickException):
        return of_click(error)
    if isinstance(error, CancelledError):
        return TaskError("the task was cancelled")
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return EnvironmentProblem(
            f"{what}{error.strerror or error}", hint="is the path right, and is there room?"
        )
    return _Fault(
        f"a fault of blackroad itself: {type(error).__name__}: {error}",
        hint="the same command with BLACKROAD_DEBUG=1 before it shows where",
    )


class _Fault(EnvironmentProblem):
    """Something that must not happen; shown under the name of what was raised."""


def of_click(error: click.ClickException) -> BlackroadError:
    """Say in our words what is wrong with the command line."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "blackroad"
    more = f"`{path} --help` shows what there is"
    if isinstance(error, click.NoSuchOption):
        return no_such_option(error.option_name, _options(context), path)
    if isinstance(error, click.MissingParameter):
        name = _parameter_name(error)
        kind = "option" if name.startswith("-") else "argument"
        return UsageError(f"the {kind} `{name}` is missing", hint=f"`{path} --help` shows examples")
    if isinstance(error, click.BadParameter):
        name = _parameter_name(error)
        where = f"`{name}`: " if name else ""
        return UsageError(where + _ours(error.message), hint=more)
    if isinstance(error, click.FileError):
        return UsageError(f"{error.ui_filename}: {_ours(error.message)}", hint="check the path")
    return UsageError(_ours(error.format_message()), hint=more)


def no_such_option(name: str, known: Sequence[str], path: str) -> UsageError:
    """Refuse an option, with the nearest one that there is."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean `{near[0]}`? " if near else ""
    return UsageError(f"no such option `{name}`", hint=f"{meant}`{path} --help` lists them all")


def no_such_command(name: str, known: Sequence[str]) -> UsageError:
    """Refuse a command, with the nearest one that there is."""
    import difflib

    near = difflib.get_close_matches(name, known, n=2)
    meant = f"did you mean {' or '.join(f'`blackroad {one}`' for one in near)}? " if near else ""
    return UsageError(f"no such command `{name}`", hint=f"{meant}`blackroad --help` lists them all")


def _options(context: click.Context | None) -> list[str]:
    if context is None:
        return []
    parameters = context.command.get_params(context)
    return [name for one in parameters if isinstance(one, click.Option) for name in one.opts]


def _parameter_name(error: click.BadParameter) -> str:
    hint = error.param_hint
    if hint is not None:
        return hint if isinstance(hint, str) else " / ".join(hint)
    if isinstance(error.param, click.Option):
        return max(error.param.opts, key=len)
    return error.param.human_readable_name if error.param is not None else ""


def _ours(text: str) -> str:
    """A sentence of click as one of ours: back-quotes, no capital, no full stop."""
    text = _QUOTED.sub(r"`\1`", text.strip())
    if text[:1].isupper() and not text[1:2].isupper():
        text = text[0].lower() + text[1:]
    return without_stop(text)


# --- one of ours becomes text or data -----------------------------------------------------------


def as_text(error: BlackroadError, *, colour: bool = False) -> str:
    """Write an error for people: one line, its reasons, an empty line, the hint."""
    head, *rest = headline(error).split("\n")
    red, cyan, plain = ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") if colour else ("", "", "")
    lines = [f"{red}error:{plain} {head}", *(f"{GAP}{line}".rstrip() for line in rest)]
    if isinstance(error, Unplaceable):
        lines += [GAP + line for line in table(ROW_HEADS, error.rows)] if error.rows else []
        lines += ["", *(f"{GAP}{one}" for one in error.because or _answered(error))]
    else:
        for reason in error.because:
            first, *more = clean(reason).split("\n")
            lines += [f"{GAP}because {without_stop(first)}"]
            lines += [f"{GAP}{GAP}{line}".rstrip() for line in more]
    if isinstance(error, TaskFailed):
        lines += [f"{GAP}{line}".rstrip() for line in _frames(error)]
    hint = clean(error.hint)
    if hint:
        lines += ["", f"{cyan}hint:{plain} {without_stop(hint)}"]
    return "\n".join(line.rstrip() for line in lines)


def headline(error: BlackroadError) -> str:
    """What is wrong, without what a command's exit status says twice."""
    if isinstance(error, TaskFailed) and _is_command(error):
        return without_stop(clean(error.text))
    return without_stop(clean(error.message))


def as_data(error: BlackroadError) -> dict[str, Any]:
    """Return an error for programs; what is empty is left out, but for message and hint."""
    name = "InternalError" if isinstance(error, _Fault) else _type_name(error)
    data: dict[str, Any] = {
        "type": name,
        "message": headline(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if error.because:
        data["because"] = list(error.because)
    if isinstance(error, Busy):
        data["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, TaskError) and error.task_id:
        data["task"] = error.task_id
    if isinstance(error, TaskFailed):
        data["raised"] = error.type_name
        data["traceback"] = error.traceback_text
        data["exit_status"] = error.exit_status
    if isinstance(error, Unplaceable):
        keys = ("item", "asked", "nearest", "verdict")
        data["rows"] = [dict(zip(keys, row, strict=True)) for row in error.rows]
        data["nodes_answered"] = error.nodes_answered
    return data


def _type_name(error: BlackroadError) -> str:
    """The name in `errors.py`: remote failures are raised as classes made for the occasion."""
    from blackroad import errors

    ours = vars(errors)
    name: str = next(k.__name__ for k in type(error).__mro__ if ours.get(k.__name__) is k)
    return name


def _is_command(error: TaskFailed) -> bool:
    return error.type_name == "CommandFailed" and bool(error.text)


def _frames(error: TaskFailed) -> list[str]:
    """The calls that led to a remote error, without its last line, which is the headline."""
    text = clean(error.traceback_text).rstrip()
    if _is_command(error) or not text.startswith("Traceback"):
        return []
    return text.removesuffix(clean(error.message).rstrip()).rstrip().splitlines()


def _answered(error: Unplaceable) -> list[str]:
    count = error.nodes_answered
    return [f"{count} {'node' if count == 1 else 'nodes'} answered"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """Lay out rows below their heads, two spaces apart; `right` marks columns with an "r"."""
    cells = [[clean(cell).replace("\n", " ") for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    marks = right.ljust(len(heads))
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if mark == "r" else cell.ljust(width)
            for cell, width, mark in zip(row, widths, marks, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def clean(text: str) -> str:
    """Spell out what could steer a terminal; other machines' words pass through here."""
    return _UNSEEN.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def without_stop(text: str) -> str:
    """A text without its final full stop, dots of an ellipsis kept."""
    return text[:-1] if text.endswith(".") and not text.endswith("..") else text


def in_colour(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that is welcome to colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:
        return False
