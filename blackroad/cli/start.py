"""`blackroad node` and `blackroad demo`: programs that run until they are done.

What they do stands elsewhere; this file only reads their options.
"""

from __future__ import annotations

from pathlib import Path

import click

from blackroad.cli.commands import Command, json_option


@click.command(
    "node",
    cls=Command,
    examples=(
        "blackroad node",
        "blackroad node --config /etc/blackroad/blackroad.toml",
        "BLACKROAD_SLOTS=2 BLACKROAD_PEERS=attic:7701 blackroad node",
    ),
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read this configuration instead of the usual one.",
)
@json_option
def node_command(config: Path | None, as_json: bool) -> int:
    """Run this machine's daemon in the foreground, until SIGTERM or Ctrl-C.

    It finds its peers, offers this machine's processors, memory and devices, and takes tasks from
    programs on this machine. It logs to standard error; with --json every line is an object.

    The configuration is FILE, else $BLACKROAD_CONFIG, else the user's, else the machine's. Every
    key can be set by a variable: BLACKROAD_ and the key in capitals.
    """
    import dataclasses

    from blackroad.config import load
    from blackroad.daemon import run_daemon
    from blackroad.starting import keys_exist

    settings = load(config, keys_exist=keys_exist)
    if as_json:
        settings = dataclasses.replace(settings, log_format="json")
    return run_daemon(settings)


@click.command(
    "demo",
    cls=Command,
    examples=("blackroad demo", "blackroad demo --out pictures --keep"),
)
@click.option("--keep", is_flag=True, help="Leave the daemons' directory with their logs.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=Path("blackroad-demo"),
    show_default=True,
    help="Write pictures and report.json into this directory.",
)
@json_option
def demo_command(keep: bool, out: Path, as_json: bool) -> int:
    """Start three daemons on this machine, give them a real job, and kill one on the way.

    Nothing is needed beforehand and nothing is left behind, unless asked for.
    """
    from blackroad.cli.demo import run_demo

    return run_demo(out=out, keep=keep, as_json=as_json)
