"""What `blackroad submit` is asked to do, as jobs: one for each number, line, or just one.

Nothing is sent here, and no options of tasks are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from blackroad.cli import arguments
from blackroad.errors import UsageError
from blackroad.limits import SESSION_TASKS_MAX

if TYPE_CHECKING:
    from blackroad.client.client import Client
    from blackroad.client.futures import TaskFuture
    from blackroad.kernels.contract import Kernel

Kind = Literal["command", "function", "kernel"]

PLACE: Final = "{}"
INDEX_VARIABLE: Final = "BLACKROAD_ARRAY_INDEX"
# A function's own arguments of these names cannot be told from the options of its task.
TAKEN: Final = frozenset(
    {
        *("needs", "priority", "retries", "timeout", "durable", "pure", "once", "exclusive"),
        *("wait_for_node", "lease"),
    }
)


class Job(NamedTuple):
    """One task to be: `words` are the arguments as typed, `number` its place in an array."""

    kind: Kind
    target: str
    words: tuple[str, ...]
    label: str = ""
    number: int | None = None


Send = Callable[["Client", dict[str, Any]], "TaskFuture"]


def read(
    words: Sequence[str], command: Sequence[str] | None, kernel: str | None
) -> tuple[Kind, str, tuple[str, ...]]:
    """Tell a command, a function and a kernel apart; return kind, target and arguments.

    Raises  UsageError where it is none or more than one of them; UnknownKernel.
    """
    if command is not None:
        if words or kernel is not None:
            given = f"--kernel {kernel}" if kernel is not None else f"`{words[0]}`"
            raise UsageError(
                f"both {given} and a command after `--` are given", hint="submit one of them"
            )
        if not command:
            raise UsageError("there is no command after `--`", hint="blackroad submit -- uname -m")
        return "command", command[0], tuple(command)
    if kernel is not None:
        from blackroad.kernels import registry

        registry.get(kernel)
        return "kernel", kernel, tuple(words)
    if not words:
        raise UsageError(
            "nothing to submit",
            hint="a command `-- CMD...`, a function `module:fn ARGS...`, or `--kernel NAME k=v...`",
        )
    arguments.check_target(words[0])
    return "function", words[0], tuple(words[1:])


def expand(
    kind: Kind, target: str, words: tuple[str, ...], array: str | None, lines: str | None
) -> list[Job]:
    """Return one job, or one for each number of `array` or each line of the file `lines`.

    Raises  UsageError where both are given, or no argument says where the line goes.
    """
    if array is not None and lines is not None:
        raise UsageError("--array and --each-line are both given", hint="use one of them")
    if array is not None:
        found = arguments.indexes(array, SESSION_TASKS_MAX)
        return [_filled(kind, target, words, str(index), index) for index in found]
    if lines is None:
        return [Job(kind, target, words)]
    if not any(PLACE in word for word in words):
        raise UsageError("no argument says where the line goes", hint=f"write {PLACE} in its place")
    read_lines = arguments.lines_of(lines, SESSION_TASKS_MAX)
    jobs = [_filled(kind, target, words, line, None) for line in read_lines]
    return [job._replace(label=str(number)) for number, job in enumerate(jobs, 1)]


def _filled(kind: Kind, target: str, words: tuple[str, ...], text: str, number: int | None) -> Job:
    return Job(kind, target, tuple(word.replace(PLACE, text) for word in words), text, number)


def prepared(jobs: Sequence[Job]) -> list[Send]:
    """Return for each job what sends it; everything that can be wrong is found before.

    Raises  UsageError, KernelInputError, MissingPackage naming what is wrong.
    """
    return [_SENDERS[job.kind](job) for job in jobs]


def _send_command(job: Job) -> Send:
    env = {} if job.number is None else {INDEX_VARIABLE: str(job.number)}
    return lambda client, options: client.run(list(job.words), env=env, **options)


def _send_function(job: Job) -> Send:
    args, kwargs = arguments.call_arguments(job.words)
    for name in kwargs:
        if name in TAKEN:
            raise UsageError(
                f"the argument `{name}` of a function cannot be given by name here",
                hint="give it by position; options of the task are written "
                f"--{name.replace('_', '-')}",
            )
    return lambda client, options: client.submit(job.target, *args, **options, **kwargs)


def _send_kernel(job: Job) -> Send:
    kernel, values = kernel_call(job)
    return lambda client, options: client.kernel_task(kernel.name, values, options=options)


def kernel_call(job: Job) -> tuple[Kernel, dict[str, Any]]:
    """Return a kernel and its parameters, read and checked.

    Raises  UnknownKernel, KernelInputError, UsageError, MissingPackage.
    """
    from blackroad.kernels import registry

    kernel = registry.get(job.target)
    values = arguments.kernel_parameters(kernel, job.words)
    kernel.check(values)
    return kernel, values


_SENDERS: Final = {"command": _send_command, "function": _send_function, "kernel": _send_kernel}
