"""Who belongs to the cluster: tokens, the list, approval, revocation, other keys.

This file must not know how keys are made or kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, duration, json_option
from blackroad.cli.ordering import LOOK_S, configuration, serving, warn_loopback
from blackroad.cli.output import Cell
from blackroad.errors import BlackroadError, UsageError
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.config import Config

ROTATE_S: Final = 30.0
ROLES: Final = ("view", "submit", "node", "admin")
_STYLES: Final = {"member": "green", "replaced": "yellow", "expired": "dim", "revoked": "red"}
_HEADS: Final = ("name", "id", "role", "state", "let in by", "expires", "")
_role = click.Choice(ROLES)


class Commands(Command, click.Group):
    """Several commands under one name."""


# --- tokens -------------------------------------------------------------------------------------


@click.group(
    "token",
    cls=Commands,
    invoke_without_command=True,
    examples=("blackroad token", "blackroad token create --role submit"),
)
@json_option
@click.pass_context
def token_command(ctx: click.Context, as_json: bool) -> None:
    """Make tokens that let others in (create), list them (list), end them (revoke).

    Without more it lists them. Only admins can: their role is in `blackroad members`.
    """
    if ctx.invoked_subcommand is None:
        _list_tokens(as_json)


@token_command.command(
    "create",
    cls=Command,
    examples=(
        "blackroad token create",
        "blackroad token create --role submit --uses 5 --expires 7d --member-expires 90d",
    ),
)
@click.option("--role", type=_role, default="node", show_default=True, help="What it makes.")
@click.option(
    "--expires",
    callback=duration,
    metavar="TIME",
    default="1h",
    show_default=True,
    help="How long it counts.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="How many machines may use it.",
)
@click.option(
    "--member-expires",
    callback=duration,
    metavar="TIME",
    help="How long members who come by it belong; for ever if not given.",
)
@json_option
def create_command(
    role: str, expires: int, uses: int, member_expires: int | None, as_json: bool
) -> None:
    """Make a token and print it; its secret is kept nowhere.

    A role may do what the ones before it may: view looks, submit gives work to the cluster, node
    works in it, admin lets others in and puts them out.
    """
    with serving(configuration()) as ask:
        args = {"role": role, "for_ms": expires, "uses": uses, "member_ms": member_expires or 0}
        told = ask("cluster.token", args)
    if as_json:
        output.print_json({**told, "command": f"blackroad join {told['token']}"})
        return
    output.say(told["token"])
    machines = output.count(uses, "machine")
    output.note(f"Role {role}, for {machines} within {format_ms(expires)}: blackroad join TOKEN")
    warn_loopback(told["endpoints"])


@token_command.command("list", cls=Command, examples=("blackroad token list",))
@json_option
def list_command(as_json: bool) -> None:
    """List tokens, without their secrets."""
    _list_tokens(as_json)


def _list_tokens(as_json: bool) -> None:
    with serving(configuration()) as ask:
        told = ask("cluster.tokens", {})
    if as_json:
        output.print_json(told)
        return
    rows = [
        (
            Cell(row["id"]),
            Cell(row["role"]),
            Cell(row["state"], "green" if row["state"] == "valid" else "dim"),
            Cell(f"{row['used']} of {row['uses']}"),
            Cell(_left(row["expires_ms"])),
        )
        for row in told["tokens"]
    ]
    output.print_grid(output.Grid(("id", "role", "state", "used", "expires"), rows))


@token_command.command("revoke", cls=Command, examples=("blackroad token revoke nfuws2lj",))
@click.argument("token")
@json_option
def token_revoke_command(token: str, as_json: bool) -> None:
    """End a token: TOKEN itself or the start of its id.

    Who came by it stays.
    """
    with serving(configuration()) as ask:
        told = ask("cluster.token_revoke", {"what": _short_token(token)})
    if as_json:
        output.print_json(told)
        return
    output.say(f"{told['id']}  revoked, used {told['used']} of {told['uses']} times")


def _short_token(token: str) -> str:
    """The id in a whole token, which is longer than what an order may name."""
    from blackroad.bus.tokens import PREFIX, parse_token
    from blackroad.ids import text32

    return text32(parse_token(token).id) if token.lower().startswith(PREFIX) else token


# --- members ------------------------------------------------------------------------------------


@click.command(
    "members", cls=Command, examples=("blackroad members", "blackroad members --pending")
)
@click.option("--pending", is_flag=True, help="Show who waits to be approved instead.")
@json_option
def members_command(pending: bool, as_json: bool) -> None:
    """Show who belongs to the cluster: keys, roles, who let them in."""
    with serving(configuration()) as ask:
        told = ask("cluster.members", {})
    if as_json:
        output.print_json(told)
        return
    if pending:
        _print_pending(told["pending"])
        return
    order = {"member": 0, "replaced": 1, "expired": 2, "revoked": 3}
    rows = sorted(told["members"], key=lambda row: (order[row["state"]], row["name"], row["id"]))
    output.print_grid(output.Grid(_HEADS, [_member_row(row) for row in rows]).without_empty(""))
    if told["pending"]:
        waiting = output.count(len(told["pending"]), "machine")
        output.say()
        output.say(f"waiting to be approved: {waiting}, see `blackroad members --pending`")
    # Keys that were rotated end by themselves; those of a machine that was set up anew do not.
    lasting = [row for row in rows if row["state"] == "replaced" and not row["expires_ms"]]
    for name in sorted({row["name"] for row in lasting}):
        output.say()
        output.say(
            f"`{name}` has other keys now; `blackroad revoke {name} --replaced` ends the old"
        )


def _member_row(row: dict[str, Any]) -> tuple[Cell, ...]:
    state = row["state"]
    followed = f"{state} by {row['replaced_by']}" if row["replaced_by"] else state
    return (
        Cell(row["name"], "bold"),
        Cell(row["id"], "dim"),
        Cell(row["role"]),
        Cell(followed, _STYLES.get(state, "")),
        Cell(row["by"]),
        Cell(_left(row["expires_ms"]) if state != "revoked" else ""),
        Cell("this node" if row["this"] else ""),
    )


def _print_pending(rows: list[dict[str, Any]]) -> None:
    if not rows:
        output.say("nobody waits to be approved by this node")
        return
    cells = [
        (
            Cell(row["phrase"], "bold"),
            Cell(row["name"]),
            Cell(row["id"], "dim"),
            Cell(row["address"]),
            Cell(format_ms(row["left_ms"] // 1000 * 1000)),
        )
        for row in rows
    ]
    output.print_grid(output.Grid(("phrase", "name", "id", "address", "time left"), cells))


def _left(expires_ms: int) -> str:
    if not expires_ms:
        return "never"
    left_ms = expires_ms - time.time_ns() // 1_000_000
    return f"in {format_ms(left_ms // 1000 * 1000)}" if left_ms > 0 else "over"


@click.command(
    "approve",
    cls=Command,
    examples=("blackroad approve lusab-babad-gutih-tugad", "blackroad approve shed --role submit"),
)
@click.argument("who")
@click.option("--role", type=_role, default="node", show_default=True, help="What it may do.")
@click.option("--yes", is_flag=True, help="Do not ask whether the phrases are the same.")
@json_option
def approve_command(who: str, role: str, yes: bool, as_json: bool) -> None:
    """Let a machine in that asks without a token.

    WHO is the phrase that the machine shows. It may be its name or id as well; then compare the
    phrases, for a name can be anybody's.
    """
    with serving(configuration()) as ask:
        row = _waiting(ask("cluster.members", {})["pending"], who)
        if row is not None and _plain(who) != row["phrase"]:
            _confirm(f"Does `{row['name']}` show {row['phrase']}?", yes, needed=True)
        what = row["phrase"] if row is not None else who
        told = ask("cluster.approve", {"what": what, "role": role})
    if as_json:
        output.print_json(told)
        return
    output.say(f"`{told['name']}` ({told['id']}) is a member now, role {told['role']}.")


def _waiting(rows: list[dict[str, Any]], who: str) -> dict[str, Any] | None:
    found = [
        row
        for row in rows
        if _plain(who) in (row["phrase"], row["name"].lower())
        or (len(who) >= 4 and row["node"].startswith(who.lower()))
    ]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return "-".join(text.lower().replace("-", " ").split())


@click.command(
    "revoke",
    cls=Command,
    examples=("blackroad revoke shed", "blackroad revoke shed --replaced --yes"),
)
@click.argument("node")
@click.option("--replaced", is_flag=True, help="Only keys of NODE that other keys followed.")
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
@json_option
def revoke_command(node: str, replaced: bool, yes: bool, as_json: bool) -> None:
    """Put a member out, for good: its key never counts again.

    NODE is a name or the start of an id. All members cut it off within two seconds; what it ran
    for others runs again elsewhere. The machine can join anew with another key.

    Whom a revoked admin has let in stays; its tokens end, and those of all other admins too, since
    it knew the door's key.
    """
    with serving(configuration()) as ask:
        _confirm(f"Revoke `{node}` for good?", yes, needed=False)
        told = ask("cluster.revoke", {"what": node, "replaced": replaced})
    if as_json:
        output.print_json(told)
        return
    for row in told["revoked"]:
        output.say(f"`{row['name']}` ({row['id']}) is revoked.")
    if told["kept"]:
        output.say(f"It had let in, and they stay: {', '.join(told['kept'])}")
    if told["door_changed"]:
        output.say("Outstanding tokens are void; `blackroad token create` makes new ones.")


@click.command("rotate", cls=Command, examples=("blackroad rotate", "blackroad rotate --yes"))
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
@json_option
def rotate_command(yes: bool, as_json: bool) -> None:
    """Give this machine other keys.

    An admin signs a record of the new keys, and the old ones count for ten more minutes. The node
    has another id then; tasks that run here start again, so `blackroad drain --wait` may come
    first.
    """
    config = configuration()
    _confirm("Change this machine's keys now?", yes, needed=False)
    with serving(config) as ask:
        told = ask("cluster.rotate", {})
    done = _rotated(config, told["node"])
    if as_json:
        output.print_json({**told, "done": done})
        return
    if done:
        output.say(f"This machine is {told['id']} now; the old key counts for ten more minutes.")
    else:
        output.say(f"The keys of {told['id']} are made; they count when an admin has signed them.")
        output.say("The daemon asks for it by itself; `blackroad members` shows when it is done.")


def _rotated(config: Config, node: str) -> bool:
    """Wait until the daemon, or the files where none runs, have changed over."""
    until = time.monotonic() + ROTATE_S
    while time.monotonic() < until:
        with contextlib.suppress(BlackroadError), serving(config) as ask:
            if ask("cluster.members", {})["node"] == node:
                return True
        time.sleep(4 * LOOK_S)
    return False


def _confirm(question: str, yes: bool, *, needed: bool) -> None:
    """Ask a person; a script must say --yes where it is `needed`.

    Raises  UsageError.
    """
    if yes:
        return
    if sys.stdin.isatty() and output.is_terminal():
        if not click.confirm(question, err=True):
            raise click.Abort
    elif needed:
        raise UsageError(
            "nobody can compare the phrases here", hint="give the phrase itself, or --yes"
        )
