"""`blackroad submit`: options become needs, words become tasks.

What is sent and how it is waited for stands in `jobs.py` and `sending.py`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import click

from blackroad.cli.commands import Command, duration, json_option, session
from blackroad.errors import UsageError

COMMAND_KEY: Final = "blackroad.command"
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)")


class SubmitCommand(Command):
    """Keeps what stands after `--` apart: it is a command, and its options are not ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND_KEY] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


def needs_options(command: Any) -> Any:
    """Add the options that say what a task needs and how it is treated."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: Final = (
    click.option("--cpu", metavar="N", help="Processor cores, such as 4 or 0.5."),
    click.option("--memory", metavar="SIZE", help="Memory, such as 2GiB or 900MB."),
    click.option("--gpu", type=int, metavar="N", help="Whole GPUs; shared ones with --gpu-memory."),
    click.option("--gpu-memory", metavar="SIZE", help="Memory on each GPU."),
    click.option("--arch", metavar="NAME", multiple=True, help="An architecture, such as aarch64."),
    click.option("--python", metavar="VERSION", help="A Python version, such as 3.11 or '>=3.12'."),
    click.option("--label", metavar="K=V", multiple=True, help="A label; K alone for any value."),
    click.option("--node", metavar="NAME", help="This node and no other."),
    click.option("--priority", type=int, default=0, metavar="N", help="-128 to 127, higher first."),
    click.option("--retries", type=int, default=0, metavar="N", help="Run it again if it fails."),
    click.option("--timeout", callback=duration, metavar="TIME", help="End an attempt after this."),
    click.option("--once", is_flag=True, help="Never run it twice, even if its node is lost."),
    click.option("--pure", is_flag=True, help="May run twice at a time: starts again sooner."),
    click.option("--exclusive", is_flag=True, help="Nothing else on its node meanwhile."),
    click.option("--wait-for-node", is_flag=True, help="Stay queued until a node can run it."),
)


@click.command(
    "submit",
    cls=SubmitCommand,
    context_settings={"ignore_unknown_options": True},
    examples=(
        "blackroad submit --cpu 4 --memory 2GiB -- ffmpeg -i /srv/a.mkv /srv/b.mp4",
        "blackroad submit --wait math:comb 10 3",
        "blackroad submit --wait --kernel mandelbrot width=800 height=600 -o set.png",
        "blackroad submit --wait --kernel convolve image=photo.png filter=edges -o edges.png",
        "blackroad submit --array 1-100 -- ./render --frame {}",
        "ls *.wav | blackroad submit --each-line - -- flac {}",
    ),
)
@click.argument("words", nargs=-1, metavar="[-- CMD... | module:fn ARGS... | k=v...]")
@click.option("--kernel", metavar="NAME", help="Compute a kernel; its parameters are k=v.")
@needs_options
@click.option("--array", metavar="RANGE", help="A task for each number, such as 1-100 or 0-90:10.")
@click.option("--each-line", metavar="FILE", help="A task for each line of FILE; - is the input.")
@click.option("--wait", is_flag=True, help="Wait, print the result, exit with the task's code.")
@click.option(
    "-o", "--output", "file", metavar="FILE", help="With --wait: write a .npy, .png or .json file."
)
@json_option
@click.pass_context
def submit_command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    kernel: str | None,
    array: str | None,
    each_line: str | None,
    wait: bool,
    file: str | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Submit a command, a function or a kernel. Each task's id is printed when it is on disk.

    \b
    -- CMD ARGS...        runs a program on the node
    module:fn ARGS...     imports a function there and calls it
    --kernel NAME k=v...  computes a kernel; see `blackroad kernels`

    Arguments of functions are Python literals, else text; k=v goes by name. An array of a kernel
    is a .npy file or a picture. In an array of tasks, {} becomes the number or the line; commands
    find the number in BLACKROAD_ARRAY_INDEX, too.

    With --wait a kernel is cut into pieces over all nodes; without, it is one task on one node.
    """
    from blackroad.cli import jobs, results, sending

    _refuse_stray_options(ctx, words)
    kind, target, rest = jobs.read(words, ctx.meta.get(COMMAND_KEY), kernel)
    found = jobs.expand(kind, target, rest, array, each_line)
    options = _task_options(asked)
    wanted = sending.Wanted(wait, as_json, file)
    if file is not None:
        _check_file(file, wait, found)
        results.check_output(file)
    if wait and kind == "kernel" and len(found) == 1:
        kernel_and_values = jobs.kernel_call(found[0])
        with session() as client:
            sending.compute(client, found[0], *kernel_and_values, options, wanted)
        return 0
    ready = jobs.prepared(found)
    with session() as client:
        futures = sending.send(client, ready, options)
        if not wait:
            sending.tell_ids(futures, found, as_json)
            return 0
        if len(found) == 1 and not found[0].label:
            sending.wait_for_one(client, futures[0], found[0], wanted)
            return 0
        return sending.wait_for_all(client, futures, found, wanted)


def _refuse_stray_options(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Negative numbers are arguments; whatever else begins with a dash is a misspelt option.

    Raises  UsageError with the nearest option.
    """
    from blackroad.cli import report

    for word in words:
        if word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
            name = word.partition("=")[0]
            known = [
                one
                for parameter in ctx.command.get_params(ctx)
                if isinstance(parameter, click.Option)
                for one in parameter.opts
            ]
            error = report.no_such_option(name, known, ctx.command_path)
            if ":" in words[0]:
                error.hint += f"; as text for the function it is written '\"{word}\"'"
            raise error


def _task_options(asked: dict[str, Any]) -> dict[str, Any]:
    """Options of the client; what was not asked for is left to its defaults.

    Raises  UsageError naming the option, what was given and what is allowed.
    """
    from blackroad.requirements import Needs

    if not -128 <= asked["priority"] <= 127:
        raise UsageError(
            f"priority: {asked['priority']} is not from -128 to 127", hint="0 is what others have"
        )
    if not 0 <= asked["retries"] <= 1000:
        raise UsageError(
            f"retries: {asked['retries']} is not from 0 to 1000",
            hint="lost nodes do not count as a failure, and cost no retry",
        )
    options: dict[str, Any] = {}
    needs = _needs_of(asked)
    if needs:
        options["needs"] = Needs(**needs)
    for name in ("priority", "retries", "once", "pure", "exclusive", "wait_for_node"):
        if asked[name]:
            options[name] = asked[name]
    if asked["timeout"] is not None:
        if asked["timeout"] < 1:
            raise UsageError("timeout: 0 ends the task before it begins", hint="write 10m or 90s")
        options["timeout"] = f"{asked['timeout']}ms"
    return options


def _needs_of(asked: dict[str, Any]) -> dict[str, Any]:
    names = ("cpu", "memory", "gpu", "gpu_memory", "python", "node")
    needs = {name: asked[name] for name in names if asked[name] is not None}
    if asked["gpu_memory"] is not None and asked["gpu"] is None:
        needs["gpu"] = 1
    if asked["arch"]:
        needs["arch"] = asked["arch"]
    if asked["label"]:
        needs["labels"] = dict(_label(text) for text in asked["label"])
        if len(needs["labels"]) < len(asked["label"]):
            raise UsageError("label: one label is given twice", hint="keep one of them")
    return needs


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


def _check_file(file: str, wait: bool, found: list[Any]) -> None:
    if not wait:
        raise UsageError(
            "-o without --wait has nothing to write yet",
            hint="add --wait, or use `blackroad result ID -o FILE` later",
        )
    if len(found) > 1 and "{}" not in file:
        raise UsageError(
            f"{file}: one file for {len(found)} results",
            hint="write {} where the number goes, such as -o frame-{}.png",
        )
