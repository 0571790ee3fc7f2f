"""`blackroad init` and `blackroad join`: make a closed cluster, or enter one.

This file must not know how keys are made or kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, duration, json_option
from blackroad.cli.ordering import configuration, reload, serving, state_of, warn_loopback
from blackroad.errors import JoinRefused, Unreachable, UsageError

if TYPE_CHECKING:
    from blackroad.config import Config
    from blackroad.joining import Outcome
    from blackroad.store.keyring import Keyring

APPROVAL_MS: Final = 10 * 60_000
# The first token is for a whole shelf, set up in one go: enough uses for it, over by tomorrow.
FIRST_TOKEN_MS: Final = 24 * 3_600_000
FIRST_TOKEN_USES: Final = 16


@click.command("init", cls=Command, examples=("blackroad init", "blackroad init --name workshop"))
@click.option("--name", default="", metavar="NAME", help="Call the cluster so; `home` if none.")
@json_option
def init_command(name: str, as_json: bool) -> None:
    """Make a closed cluster of which this machine is the first member and admin.

    It makes the keys of the cluster and of this machine, and prints the command that lets other
    machines in: it counts for 24 hours and 16 machines, a shelf on one day. Later ones get a token
    of `blackroad token create`.

    A daemon that runs here opens its ports to the network at once, to members only.
    """
    config = configuration()
    keyring = _found(config, name or "home")
    running = reload(config, keyring)
    with serving(config) as ask:
        token = ask("cluster.token", {"for_ms": FIRST_TOKEN_MS, "uses": FIRST_TOKEN_USES})
        told = ask("cluster.members", {})
    command = f"blackroad join {token['token']}"
    root_file = str(keyring.path / "root.json")
    if as_json:
        keys = ("cluster", "id", "node", "role")
        rest = {"token": token["token"], "token_id": token["id"], "command": command}
        more = {key: token[key] for key in ("uses", "expires_ms", "endpoints")}
        output.print_json(
            {**{key: told[key] for key in keys}, **rest, **more}
            | {"root_file": root_file}
            | {"daemon": running}
        )
        return
    output.say(f"This machine is the first admin of the new cluster `{told['cluster']}`.")
    output.say()
    output.say(f"On every other machine, within 24 hours ({FIRST_TOKEN_USES} of them at most):")
    output.say()
    output.say(f"  {command}")
    output.say()
    warn_loopback(token["endpoints"])
    _next_step(running)
    output.say(
        f"Keep a copy of {root_file} in a safe place: with it the cluster can be kept "
        "should its admins be lost or stolen."
    )


def _found(config: Config, name: str) -> Keyring:
    """Make a cluster and write its keys.

    Raises  JoinRefused where this machine belongs to one already; StateDirectoryProblem.
    """
    from blackroad.bus import keys
    from blackroad.bus.members import Member, MemberList, Role, signed
    from blackroad.bus.sockets import key_pair
    from blackroad.capabilities import printable
    from blackroad.store.keyring import Keyring

    keyring = Keyring(state_of(config))
    with keyring.locked():
        if keyring.load():
            raise JoinRefused(
                f"this machine belongs to the cluster `{keyring.name}` already",
                hint="`blackroad token create` lets others in; to leave it for good, stop the "
                f"daemon and remove {keyring.path}",
            )
        own = keyring.prepare()
        root_secret, root = keys.new_signing()
        members = MemberList(root)
        wall_ms = time.time_ns() // 1_000_000
        label = printable(config.name or "node", 64)
        member = Member(own.node, own.curve_public, own.sign_public, Role.ADMIN, label, 1, wall_ms)
        members.merge([signed(member, root, root_secret, root)], wall_ms)
        secret, public = key_pair()
        keyring.establish(printable(name, 64), members, (public, secret, 1), (), root_secret)
    return keyring


@click.command(
    "join",
    cls=Command,
    examples=(
        "blackroad join br1-sxcbay3dmnrwgy3d",
        "blackroad join   # asks, and waits until an admin approves",
    ),
)
@click.argument("token", required=False, default="")
@click.option("--name", default="", metavar="NAME", help="Call this machine so on the list.")
@click.option("--new-key", is_flag=True, help="Take other keys: this becomes a new node.")
@click.option(
    "--cluster", default="", metavar="ID", help="Without TOKEN: ask this cluster, of several."
)
@click.option(
    "--timeout", callback=duration, metavar="TIME", help="Give up after this, such as 30s."
)
@json_option
def join_command(
    token: str, name: str, new_key: bool, cluster: str, timeout: int | None, as_json: bool
) -> None:
    """Make this machine a member of a closed cluster.

    TOKEN comes from `blackroad init` or `blackroad token create` on an admin. It says which
    cluster is meant, so that nobody else is told its secret.

    Without TOKEN it looks for a cluster on this network, shows four words, and waits until an
    admin has typed `blackroad approve` with the same words. Other words mean that somebody
    stands in between.
    """
    from blackroad import joining
    from blackroad.bus.tokens import parse_token
    from blackroad.store.keyring import Keyring

    invite = parse_token(token) if token else None
    config = configuration()
    keyring = Keyring(state_of(config))
    label = name or config.name or "node"
    if invite is not None:
        outcome = joining.join_by_token(
            keyring,
            invite,
            label,
            timeout_ms=timeout or joining.JOIN_MS,
            new_key=new_key,
            say=output.note,
        )
    else:
        outcome = joining.join_by_approval(
            keyring,
            _choose(joining.find_doors(), cluster),
            label,
            timeout_ms=timeout or APPROVAL_MS,
            new_key=new_key,
            on_phrase=lambda phrase, pending: _show_phrase(phrase, pending.node_name),
        )
    _tell_joined(outcome, reload(config, keyring), as_json)


def _choose(doors: list[Any], cluster: str) -> Any:
    """The one door to knock at.

    Raises  Unreachable where there is none; UsageError where there are several clusters.
    """
    from blackroad.joining import door_name

    fitting = [door for door in doors if door_name(door).startswith(cluster)]
    if not fitting:
        seen = f" (heard of: {', '.join(map(door_name, doors))})" if doors else ""
        raise Unreachable(
            f"no cluster that takes newcomers was heard of on this network{seen}",
            hint="multicast may be blocked here: ask an admin for a token (`blackroad token "
            "create`)",
        )
    names = sorted({door_name(door) for door in fitting})
    if len(names) > 1:
        raise UsageError(
            f"there are {len(names)} clusters on this network: {', '.join(names)}",
            hint="choose one with --cluster, or ask an admin of it for a token",
        )
    return fitting[0]


def _show_phrase(phrase: str, where: str) -> None:
    there = f" on {where}" if where else ""
    output.note(f"This machine asks to be let in. Let an admin type{there}:")
    output.note("")
    output.note(f"  blackroad approve {phrase}")
    output.note("")
    output.note("The same words must be in `blackroad members --pending` there. Waiting ...")


def _tell_joined(outcome: Outcome, running: bool, as_json: bool) -> None:
    from blackroad.bus.members import Role
    from blackroad.ids import text32
    from blackroad.joining import describe_clock

    role = outcome.role.name.lower()
    if as_json:
        output.print_json(
            {
                "cluster": outcome.cluster,
                "id": text32(outcome.cluster_id),
                "node": text32(outcome.node),
                "name": outcome.name,
                "role": role,
                "endpoint": outcome.endpoint,
                "clock_off_ms": outcome.clock_off_ms,
                "daemon": running,
            }
        )
        return
    output.say(f"Joined the cluster `{outcome.cluster}` as `{outcome.name}`, role {role}.")
    if outcome.clock_off_ms:
        output.note(describe_clock(outcome.clock_off_ms))
    if outcome.role >= Role.NODE:
        _next_step(running)
        output.say("`blackroad nodes` shows the others as soon as they have met.")
    else:
        output.say("Programs on this machine may use the cluster now; it runs no daemon.")


def _next_step(running: bool) -> None:
    if running:
        output.say("The daemon of this machine serves members of the cluster now.")
    else:
        output.say("Start the daemon: `systemctl start blackroad-node`, or `blackroad node`.")
